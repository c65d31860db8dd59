"""Real chunk server processes under an MDS that lives in the test: it registers them, gives keys and orders, and sees the reports."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vstor.clock import unix_ms
from vstor.codes_gen import ErrorCode
from vstor.cs import repository
from vstor.cs.repository import CsIdentity
from vstor.errors import VstorError
from vstor.net import identity, pki
from vstor.net.rpc_server import Connection, RpcServer
from vstor.proto import messages as m
from vstor.proto.tickets import make_ticket, session_key
from vstor.proto.wire_gen import AuthMode

CLUSTER = "comp"
CLUSTER_ID = "0123456789abcdef0123456789abcdef"
CHUNK_BYTES = 4 << 20
SESSION = 0x55
KEY_ID = 3
START_S = 15.0
ROOT = Path(__file__).resolve().parents[2]


class Mds:
    """Handler of the control RPC: remembers what the CSs said."""

    def __init__(self) -> None:
        self.epoch = 7
        self.lease_ms = 3000
        self.config: dict[str, str] = {"cs.scrub.rate": "0"}
        self.cs_keys: dict[int, bytes] = {}
        self.key_id, self.ticket_key = KEY_ID, secrets.token_bytes(32)
        self.connections: dict[int, Connection] = {}
        self.registered: dict[int, m.CsRegister] = {}
        self.inventories: dict[int, bytes] = {}
        self.registrations: dict[int, int] = {}  # how often each came
        self.refuse_reports = False
        self.complete: dict[int, asyncio.Event] = {}
        self.heartbeats: dict[int, m.CsHeartbeat] = {}
        self.heartbeat_seen = asyncio.Condition()
        self.reports: asyncio.Queue[m.CsReport] = asyncio.Queue()
        self.done: dict[int, asyncio.Future[m.CsOrderDone]] = {}
        self._next_order = 1

    def connected(self, conn: Connection) -> None:
        conn.state = 0

    def disconnected(self, conn: Connection) -> None:
        if self.connections.get(conn.state) is conn:
            del self.connections[conn.state]

    def request(self, conn: Connection, request: m.Request) -> m.ReplyBody | None:
        body = request.body
        if isinstance(body, m.Hello):
            return m.HelloReply(CLUSTER, CLUSTER_ID, 1, True, "", self.epoch, unix_ms(), [])
        if isinstance(body, m.CsRegister):
            conn.state = body.cs_id
            self.connections[body.cs_id] = conn
            self.registered[body.cs_id] = body
            self.registrations[body.cs_id] = self.registrations.get(body.cs_id, 0) + 1
            self.inventories[body.cs_id] = b""
            key = self.cs_keys.setdefault(body.cs_id, secrets.token_bytes(32))
            keys = [(self.key_id, self.ticket_key)]
            return m.CsRegistered(self.lease_ms, 100, unix_ms(), self.epoch, key, keys, AuthMode.SIGN, self.config)
        if isinstance(body, m.CsInventory):
            self.inventories[body.cs_id] += body.packed
            if body.last:
                self.complete.setdefault(body.cs_id, asyncio.Event()).set()
            return m.Ok()
        if isinstance(body, m.CsHeartbeat):
            self.heartbeats[body.cs_id] = body
            asyncio.get_running_loop().create_task(self._notify())
            return m.CsHeartbeatReply(unix_ms(), [(self.key_id, self.ticket_key)], self.config)
        if isinstance(body, m.CsReport):
            if self.refuse_reports:
                raise VstorError(ErrorCode.BAD_REQUEST, "no reports today")
            self.reports.put_nowait(body)
            return m.Ok()
        if isinstance(body, m.CsOrderDone):
            self.done[body.order_id].set_result(body)
            return m.Ok()
        raise AssertionError(f"unexpected {body}")

    async def _notify(self) -> None:
        async with self.heartbeat_seen:
            self.heartbeat_seen.notify_all()

    async def order(self, cs_id: int, order: m.Order, epoch: int | None = None) -> m.CsOrderDone:
        """Send an order, wait for its result."""
        order_id = self._next_order
        self._next_order += 1
        future = self.done[order_id] = asyncio.get_running_loop().create_future()
        self.connections[cs_id].push(m.CsOrder(order_id, self.epoch if epoch is None else epoch, order))
        async with asyncio.timeout(START_S):
            return await future

    async def heartbeat_where(self, cs_id: int, wanted: Any) -> m.CsHeartbeat:
        """The next heartbeat of a CS for which `wanted(heartbeat)` holds."""
        async with asyncio.timeout(START_S), self.heartbeat_seen:
            while cs_id not in self.heartbeats or not wanted(self.heartbeats[cs_id]):
                await self.heartbeat_seen.wait()
        return self.heartbeats[cs_id]

    def ticket(self, chunk_id: int, version: int, *, write: bool = False, create: bool = False) -> bytes:
        return make_ticket(
            self.ticket_key, self.key_id, session_id=SESSION, chunk_id=chunk_id, chunk_version=version,
            chunk_bytes=CHUNK_BYTES, expiry_ms=unix_ms() + 600_000, write=write, create=create,
        )  # fmt: skip

    def source(self, cs_id: int, chunk_id: int, version: int) -> m.Source:
        expiry_ms = unix_ms() + 600_000
        key = session_key(self.cs_keys[cs_id], SESSION, expiry_ms)
        ticket = self.ticket(chunk_id, version)
        return m.Source(cs_id, self.registered[cs_id].addresses, SESSION, expiry_ms, key, ticket)


class Csd:
    """One process."""

    def __init__(self, mds: Mds, repo: Path, cs_id: int) -> None:
        self.mds = mds
        self.repo = repo
        self.cs_id = cs_id
        self.log = repo.parent / f"{cs_id}.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *options: str) -> None:
        """Start and wait until it is registered."""
        self.mds.complete[self.cs_id] = asyncio.Event()
        await self.spawn(*options)
        registered = asyncio.ensure_future(self.mds.complete[self.cs_id].wait())
        ended = asyncio.ensure_future(self.wait())
        await asyncio.wait({registered, ended}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        assert registered.done(), f"{ended}\n{self.text()}"
        ended.cancel()

    async def spawn(self, *options: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "daemons")}
        command = [
            sys.executable,
            "-m",
            "vstor.cs.main",
            "-r",
            str(self.repo),
            "-l",
            str(self.log),
            "-d",
            "debug",
            *options,
        ]
        self.process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )

    async def wait(self) -> tuple[int, str]:
        """(exit status, standard error)."""
        assert self.process is not None
        async with asyncio.timeout(START_S):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()

    async def end(self, sig: int = signal.SIGTERM) -> int:
        """Signal and wait; the exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(sig)
        return (await self.wait())[0]

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def chunk_file(self, chunk_id: int) -> Path:
        """The only file below chunks/ whose name holds the id."""
        found = [p for p in (self.repo / "chunks").rglob("*") if p.is_file() and f"{chunk_id:x}" in p.name.lower()]
        assert len(found) == 1, found
        return found[0]


@asynccontextmanager
async def world(tmp_path: Path, count: int) -> AsyncIterator[tuple[Mds, list[Csd]]]:
    """An MDS on loopback, this node authenticated, `count` chunk servers made but not started. Ends what still runs."""
    ca, ca_key = pki.make_ca(CLUSTER, CLUSTER_ID)
    files = {}
    for name, role in (("mds", pki.ROLE_MDS), ("node", pki.ROLE_NODE)):
        csr, key = pki.make_csr(name)
        files[name] = (pki.issue(ca, ca_key, csr, common=name, role=role), key)
    for path, data in zip(identity.identity_files(CLUSTER), (ca, *files["node"]), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    paths = [tmp_path / name for name in ("mds.crt", "mds.key", "ca.crt")]
    for path, data in zip(paths, (*files["mds"], ca), strict=True):
        path.write_bytes(data)
    mds = Mds()
    server = RpcServer(mds, pki.server_context(*paths))
    await server.start("127.0.0.1", 0)
    identity.bs_list_path(CLUSTER).write_text(f"127.0.0.1:{server.port - 1}\n")
    daemons = []
    for number in range(count):
        repo = tmp_path / f"cs{number}"
        repo.mkdir()
        repository.write_identity(repo, CsIdentity(CLUSTER, CLUSTER_ID, 1025 + number, journal_mb=64))
        daemons.append(Csd(mds, repo, 1025 + number))
    try:
        yield mds, daemons
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.returncode is None:
                await daemon.end(signal.SIGKILL)
        await server.stop()
