"""A CA in a directory, and a server with a handler made of functions."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vstor.net import auth, pki
from vstor.net.rpc_server import Connection, RpcServer
from vstor.proto import messages as m

CLUSTER = "unit"
CLUSTER_ID = "0123456789abcdef0123456789abcdef"
PASSWORD = b"correct horse"


@dataclass
class Pki:
    directory: Path
    ca: bytes
    ca_key: bytes

    def write(self, name: str, role: str) -> tuple[Path, Path, Path]:
        """(cert, key, ca) files of a certificate with this role."""
        csr, key = pki.make_csr(name)
        cert = pki.issue(self.ca, self.ca_key, csr, common=name, role=role)
        files = (
            self.directory / f"{name}.crt",
            self.directory / f"{name}.key",
            self.directory / "ca.crt",
        )
        for path, data in zip(files, (cert, key, self.ca), strict=True):
            path.write_bytes(data)
        return files


class FakeMds:
    """Answers Hello, the password proof, and what `serve` answers."""

    def __init__(self, files: tuple[Path, Path, Path], made: Pki) -> None:
        self.leader = True
        self.leader_address = ""
        self.epoch = 7
        self.deaf = False  # True: requests are read and never answered, as by a hung process
        self.hellos = 0
        self.addresses: list[str] = []
        self.connections: list[Connection] = []
        self.lost = 0
        self.seen: list[m.Request] = []
        self.serve: Callable[[Connection, m.Request], m.ReplyBody | None] = lambda conn, request: m.Ok()
        der = ssl.PEM_cert_to_DER_cert(files[0].read_text())
        self.auth = auth.Authenticator(
            auth.make_verifier(PASSWORD),
            made.ca,
            made.ca_key,
            CLUSTER_ID,
            hashlib.sha256(der).digest(),
            auth.AttemptLimit(asyncio.get_running_loop().time),
        )

    def connected(self, conn: Connection) -> None:
        self.connections.append(conn)

    def disconnected(self, conn: Connection) -> None:
        self.connections.remove(conn)
        self.lost += 1

    def request(self, conn: Connection, request: m.Request) -> m.ReplyBody | None:
        body = request.body
        if self.deaf:
            return None
        if isinstance(body, m.Hello):
            self.hellos += 1
            return m.HelloReply(
                CLUSTER,
                CLUSTER_ID,
                1,
                self.leader,
                self.leader_address,
                self.epoch,
                0,
                self.addresses,
            )
        if isinstance(body, (m.AuthStart, m.AuthExchange, m.AuthFinish)):
            return self.auth.answer(conn, body, ["127.0.0.1:2510"])
        self.seen.append(request)
        return self.serve(conn, request)


@asynccontextmanager
async def running(
    made: Pki, name: str = "mds", role: str = pki.ROLE_MDS, port: int = 0
) -> AsyncIterator[tuple[FakeMds, RpcServer, str]]:
    """(handler, server, its bs.list address)."""
    files = made.write(name, role)
    handler = FakeMds(files, made)
    server = RpcServer(handler, pki.server_context(*files))
    await server.start("127.0.0.1", port)
    try:
        yield handler, server, f"127.0.0.1:{server.port - 1}"
    finally:
        await server.stop()
