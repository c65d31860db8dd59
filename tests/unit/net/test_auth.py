"""The password proof: right, wrong, limited, and with a man in the middle."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import auth, identity, pki
from vstor.net.rpc_connection import connect
from vstor.net.rpc_server import RpcServer
from vstor.proto import messages as m

from tests.unit.net.net_helpers import CLUSTER, CLUSTER_ID, PASSWORD, running

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def authenticate(password: bytes, address: str, cluster: str = CLUSTER) -> bool:
    return await asyncio.to_thread(auth.auth_node, cluster, password, [address])


async def test_an_expired_certificate_is_said_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, ca_key = pki.make_ca("c", "0" * 32)
    csr, key = pki.make_csr("n")
    monkeypatch.setattr(pki, "CERTIFICATE_DAYS", -1)
    cert = pki.issue(ca, ca_key, csr, common="node-1", role=pki.ROLE_NODE)
    paths = tmp_path / "node.crt", tmp_path / "node.key", tmp_path / "ca.crt"
    for path, data in zip(paths, (cert, key, ca), strict=True):
        path.write_bytes(data)
    with pytest.raises(VstorError, match=r"expired on .*auth-node") as caught:
        pki.client_context(*paths)
    assert caught.value.code == ErrorCode.DENIED


async def test_right_password_makes_the_files_once(etc: Path, make_pki) -> None:
    async with running(make_pki("pki")) as (mds, server, address):
        assert await authenticate(PASSWORD, address)
        who = identity.load_identity(CLUSTER)
        assert who.cluster_id == CLUSTER_ID
        assert stat.S_IMODE(who.key_path.stat().st_mode) == 0o600
        assert identity.read_bs_list(CLUSTER) == [address, "127.0.0.1:2510"]
        before = who.cert_path.read_bytes()
        assert not await authenticate(PASSWORD, address)
        assert who.cert_path.read_bytes() == before
        conn = await connect(
            f"127.0.0.1:{server.port}",
            pki.client_context(who.cert_path, who.key_path, who.ca_path),
            timeout_s=5,
        )
        assert await conn.send(m.Request(1, m.GetStatus())) == m.Ok()
        assert mds.connections[-1].role == pki.ROLE_NODE
        conn.close()


async def test_wrong_password_writes_nothing(etc: Path, make_pki) -> None:
    async with running(make_pki("pki")) as (_, _, address):
        with pytest.raises(VstorError, match="Authentication failure due to wrong credentials") as caught:
            await authenticate(b"wrong", address)
        assert caught.value.code == ErrorCode.WRONG_PASSWORD
        assert not (etc / "clusters").exists()


async def test_a_client_that_lies_gets_no_certificate(etc: Path, make_pki) -> None:
    async with running(make_pki("pki")) as (_, server, _):
        conn = await connect(
            f"127.0.0.1:{server.port}",
            pki.unverified_context(),
            timeout_s=5,
            verified=False,
        )
        csr, _ = pki.make_csr("x")
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(1, m.AuthFinish(b"\0" * 32, csr)))
        assert caught.value.code == ErrorCode.BAD_REQUEST
        side = auth.SPAKE2_A(b"guess", idA=auth.ID_CLIENT, idB=auth.ID_SERVER)
        await conn.send(m.Request(2, m.AuthExchange(side.start())))
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(3, m.AuthFinish(b"\0" * 32, csr)))
        assert caught.value.code == ErrorCode.WRONG_PASSWORD
        for bad in (b"", b"B" + b"\0" * 5, b"A" + b"\xff" * 32, b"B" + b"\xff" * 32):
            with pytest.raises(VstorError) as caught:
                await conn.send(m.Request(4, m.AuthExchange(bad)))
            assert caught.value.code == ErrorCode.BAD_REQUEST
        conn.close()


async def test_man_in_the_middle_is_found_out(etc: Path, make_pki) -> None:
    """A relay with its own certificate passes every message on to the real MDS."""
    async with running(make_pki("pki")) as (_, real, _):
        upstream = await connect(
            f"127.0.0.1:{real.port}",
            pki.unverified_context(),
            timeout_s=5,
            verified=False,
        )
        relayed: list[str] = []

        class Relay:
            def connected(self, conn) -> None: ...

            def disconnected(self, conn) -> None: ...

            def request(self, conn, request):
                relayed.append(type(request.body).__name__)
                upstream.send(request).add_done_callback(
                    lambda f: (
                        conn.fail(request.id, f.exception()) if f.exception() else conn.reply(request.id, f.result())
                    )
                )

        relay = RpcServer(Relay(), pki.server_context(*make_pki("evil").write("mds", pki.ROLE_MDS)))
        await relay.start("127.0.0.1", 0)
        with pytest.raises(VstorError) as caught:
            await authenticate(PASSWORD, f"127.0.0.1:{relay.port - 1}")
        assert caught.value.code == ErrorCode.WRONG_PASSWORD
        assert relayed == ["Hello", "AuthStart", "AuthExchange"]
        assert not (etc / "clusters").exists()
        upstream.close()
        await relay.stop()


async def test_wrong_cluster_name_is_told(etc: Path, make_pki) -> None:
    async with running(make_pki("pki")) as (_, _, address):
        with pytest.raises(VstorError) as caught:
            await authenticate(PASSWORD, address, "other")
        assert caught.value.code == ErrorCode.WRONG_CLUSTER


async def test_node_of_another_cluster_of_that_name_is_refused(node, make_pki) -> None:
    async with running(make_pki("second")) as (_, _, address):
        with pytest.raises(VstorError, match="another cluster named"):
            await authenticate(PASSWORD, address)


async def test_attempts_are_limited_and_successes_are_free() -> None:
    now = 0.0
    limit = auth.AttemptLimit(lambda: now)
    for _ in range(3 * auth.ATTEMPTS_PER_PEER):
        limit.attempt("good")
        limit.succeeded("good")
    for _ in range(auth.ATTEMPTS_PER_PEER):
        limit.attempt("bad")
    with pytest.raises(VstorError) as caught:
        limit.attempt("bad")
    assert caught.value.code == ErrorCode.LIMIT
    limit.attempt("good")
    now = auth.ATTEMPTS_WINDOW_S
    limit.attempt("bad")


async def test_password_bounds() -> None:
    for bad in (b"", b"x" * (auth.PASSWORD_BYTES_MAX + 1)):
        with pytest.raises(VstorError):
            auth.make_verifier(bad)
    verifier = auth.make_verifier(b"x")
    assert auth.Verifier.from_json(verifier.to_json()) == verifier
