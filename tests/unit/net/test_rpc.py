"""Server and client of the control RPC over loopback TLS."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import framing, pki, rpc_client, rpc_server
from vstor.net.identity import load_identity
from vstor.net.rpc_client import MdsClient
from vstor.net.rpc_connection import connect
from vstor.net.rpc_server import Connection
from vstor.proto import messages as m

from tests.unit.net.net_helpers import CLUSTER, Pki, running

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


async def test_call_answers_and_errors(node: Pki) -> None:
    async with running(node) as (mds, _server, address):

        def serve(conn: Connection, request: m.Request) -> m.ReplyBody | None:
            if isinstance(request.body, m.Lookup):
                raise VstorError(ErrorCode.NOT_FOUND, "nothing there")
            asyncio.get_running_loop().call_later(0.01, conn.reply, request.id, m.BytesReply(b"later"))
            return None

        mds.serve = serve
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address])
        assert await client.call(m.ReadLink(5)) == m.BytesReply(b"later")
        with pytest.raises(VstorError, match="nothing there") as caught:
            await client.call(m.Lookup(1, b"x"))
        assert caught.value.code == ErrorCode.NOT_FOUND
        await client.close()
        assert mds.seen[1].ack == mds.seen[1].id - 1


async def test_ack_stays_below_the_oldest_unfinished(node: Pki) -> None:
    async with running(node) as (mds, _server, address):
        first = asyncio.Event()

        def serve(conn: Connection, request: m.Request) -> m.ReplyBody | None:
            if isinstance(request.body, m.ReadLink):
                first.set()
                return None
            return m.Ok()

        mds.serve = serve
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address])
        waiting = asyncio.create_task(client.call(m.ReadLink(5)))
        await first.wait()
        for _ in range(3):
            await client.call(m.Close(1))
        assert mds.seen[-1].ack == mds.seen[0].id - 1
        mds.connections[0].reply(mds.seen[0].id, m.BytesReply(b""))
        await waiting
        await client.close()


async def test_a_waiting_lock_does_not_hold_back_the_ack(node: Pki) -> None:
    async with running(node) as (mds, _server, address):
        came = asyncio.Event()

        def serve(conn: Connection, request: m.Request) -> m.ReplyBody | None:
            if isinstance(request.body, m.LockSet):
                came.set()
                return None
            return m.Ok()

        mds.serve = serve
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address])
        waiting = asyncio.create_task(client.call(m.LockSet(m.LockRange(1, 2, 1, 0, 9, 3), True)))
        await came.wait()
        await client.call(m.Close(1))
        await client.call(m.Close(1))
        assert mds.seen[-1].ack == mds.seen[-2].id > mds.seen[0].id
        waiting.cancel()
        await client.close()


async def test_retry_uses_the_same_id_after_on_connect(node: Pki) -> None:
    async with running(node) as (mds, _server, address):

        def serve(conn: Connection, request: m.Request) -> m.ReplyBody | None:
            if isinstance(request.body, m.SessionOpen):
                return m.SessionReply(9, 1, 1, 1, 1, {})
            if mds.lost == 0:
                conn.abort("test", "test")
                return None
            return m.Ok()

        mds.serve = serve

        async def on_connect(call):
            assert (await call(m.SessionOpen("n", 1, "h", "h"))).session_id == 9

        client = MdsClient(load_identity(CLUSTER), "client", on_connect=on_connect, bootstrap=[address])
        await client.call(m.Unlink(1, b"x"), deadline_s=20)
        kinds = [type(r.body) for r in mds.seen]
        assert kinds == [m.SessionOpen, m.Unlink, m.SessionOpen, m.Unlink]
        assert mds.seen[1].id == mds.seen[3].id
        assert mds.seen[2].id > mds.seen[1].id
        mds.lost = 0
        with pytest.raises(VstorError) as caught:
            await client.call(m.Unlink(1, b"x"), deadline_s=20, retry=False)
        assert caught.value.code == ErrorCode.DISCONNECTED
        await client.close()


async def test_final_error_of_on_connect_reaches_callers(node: Pki) -> None:
    async with running(node) as (_mds, _server, address):

        async def on_connect(call):
            raise VstorError(ErrorCode.WRONG_CLUSTER, "not ours")

        client = MdsClient(load_identity(CLUSTER), "cs", on_connect=on_connect, bootstrap=[address])
        with pytest.raises(VstorError, match="not ours"):
            await client.call(m.GetStatus())
        await client.close()


async def test_finds_the_leader_past_a_dead_entry_and_a_standby(node: Pki) -> None:
    async with (
        running(node, "mds1") as (standby, _, standby_address),
        running(node, "mds2") as (leader, server, _),
    ):
        standby.leader = False
        standby.leader_address = f"127.0.0.1:{server.port}"
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=["127.0.0.1:1", standby_address])
        assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
        assert (len(standby.seen), len(leader.seen)) == (0, 1)
        await client.close()


async def test_moves_to_a_new_leader(node: Pki) -> None:
    async with (
        running(node, "mds1") as (one, _s1, address1),
        running(node, "mds2") as (two, _s2, address2),
    ):
        two.leader = False
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address1, address2])
        await client.call(m.GetStatus())
        one.leader, two.leader = False, True

        def serve(conn: Connection, request: m.Request) -> m.ReplyBody | None:
            raise VstorError(ErrorCode.NOT_LEADER)

        one.serve = serve
        await client.call(m.GetStatus(), deadline_s=20)
        assert len(two.seen) == 1
        await client.close()


async def test_waits_with_a_standby_until_somebody_leads(node: Pki) -> None:
    async with running(node, "mds1") as (standby, server, address):
        standby.leader = False
        standby.leader_address = "127.0.0.1:1"  # the one that has just died
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address])
        waiting = asyncio.create_task(client.call(m.GetStatus()))
        while standby.hellos < 3:  # noqa: ASYNC110 - counted by the server's side
            await asyncio.sleep(0.01)
        assert len(standby.connections) == 1, "asked again on the same connection"
        standby.leader, standby.leader_address = True, f"127.0.0.1:{server.port}"
        assert await waiting == m.Ok()
        assert len(standby.connections) == 1
        await client.close()


async def test_leaves_a_hung_leader_when_it_has_a_successor(node: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_client, "PROBE_S_MAX", 1000.0)  # only the successor can be the reason
    async with (
        running(node, "mds1") as (one, _s1, address1),
        running(node, "mds2") as (two, server2, address2),
    ):
        two.leader, two.leader_address = False, f"127.0.0.1:{_s1.port}"
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address1, address2])
        await client.call(m.GetStatus())
        one.deaf = True
        waiting = asyncio.create_task(client.call(m.GetStatus()))
        while not two.hellos:  # noqa: ASYNC110 - counted by the server's side
            await asyncio.sleep(0.01)
        assert not waiting.done(), "the same epoch is no successor"
        two.leader, two.epoch, two.leader_address = True, 8, f"127.0.0.1:{server2.port}"
        assert await waiting == m.Ok()
        assert len(two.seen) == 1
        await client.close()


async def test_deadline_without_server_names_the_reason(node: Pki) -> None:
    client = MdsClient(load_identity(CLUSTER), "client", bootstrap=["127.0.0.1:1"])
    with pytest.raises(VstorError) as caught:
        await client.call(m.GetStatus(), deadline_s=0.5)
    assert caught.value.code == ErrorCode.UNREACHABLE
    assert "127.0.0.1:2" in caught.value.message
    await client.close()


async def test_push_arrives(node: Pki) -> None:
    async with running(node) as (mds, _server, address):
        got: asyncio.Future[m.PushBody] = asyncio.get_running_loop().create_future()
        client = MdsClient(
            load_identity(CLUSTER),
            "client",
            on_push=got.set_result,
            bootstrap=[address],
        )
        await client.call(m.GetStatus())
        mds.connections[0].push(m.Recall(5, 0, 1))
        assert await got == m.Recall(5, 0, 1)
        await client.close()


async def test_without_a_certificate_only_greeting_and_proof(node: Pki) -> None:
    async with running(node) as (mds, server, _address):
        conn = await connect(
            f"127.0.0.1:{server.port}",
            pki.unverified_context(),
            timeout_s=5,
            verified=False,
        )
        with pytest.raises(VstorError, match="node is not authenticated, run vstorctl auth-node") as caught:
            await conn.send(m.Request(1, m.GetStatus()))
        assert caught.value.code == ErrorCode.DENIED
        assert isinstance(await conn.send(m.Request(2, m.AuthStart())), m.AuthParams)
        assert mds.seen == []
        conn.close()


async def test_a_node_certificate_cannot_serve(node: Pki) -> None:
    async with running(node, "rogue", pki.ROLE_NODE) as (_, server, _):
        files = node.write("caller", pki.ROLE_NODE)
        with pytest.raises(VstorError) as caught:
            await connect(f"127.0.0.1:{server.port}", pki.client_context(*files), timeout_s=5)
        assert caught.value.code in (ErrorCode.DENIED, ErrorCode.WRONG_CLUSTER)


async def test_a_server_of_another_ca_is_refused(node: Pki, make_pki) -> None:
    async with running(make_pki("other")) as (_, server, _):
        files = node.write("caller", pki.ROLE_NODE)
        with pytest.raises(VstorError) as caught:
            await connect(f"127.0.0.1:{server.port}", pki.client_context(*files), timeout_s=5)
        assert caught.value.code == ErrorCode.WRONG_CLUSTER


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x05\0\0\0hello",
        framing.pack(m.Reply(1, m.Ok())),
    ],
)
async def test_garbage_ends_the_connection_not_the_server(node: Pki, garbage: bytes) -> None:
    async with running(node) as (_mds, server, address):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=pki.unverified_context(), server_hostname=""
        )
        writer.write(garbage)
        assert await reader.read() == b""
        writer.close()
        plain_reader, plain = await asyncio.open_connection("127.0.0.1", server.port)
        plain.write(garbage)
        try:
            await plain_reader.read()  # an alert, then the end
        except ConnectionError:
            pass
        plain.close()
        assert server.counters["garbage"] == 1
        client = MdsClient(load_identity(CLUSTER), "client", bootstrap=[address])
        assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
        await client.close()


async def test_in_flight_bound(node: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "IN_FLIGHT_MAX", 2)
    async with running(node) as (mds, server, _address):
        files = node.write("caller", pki.ROLE_NODE)
        conn = await connect(f"127.0.0.1:{server.port}", pki.client_context(*files), timeout_s=5)
        mds.serve = lambda conn, request: m.Ok() if isinstance(request.body, m.SessionRenew) else None
        waiting = [conn.send(m.Request(i, m.GetAttr(1))) for i in (1, 2)]
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(3, m.GetAttr(1)))
        assert caught.value.code == ErrorCode.LIMIT
        assert await conn.send(m.Request(4, m.SessionRenew(1))) == m.Ok()
        conn.close()
        for future in waiting:
            with pytest.raises(VstorError):
                await future


async def test_tls_1_2_is_refused(node: Pki) -> None:
    async with running(node) as (_, server, _):
        context = pki.unverified_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(VstorError):
            await connect(f"127.0.0.1:{server.port}", context, timeout_s=5, verified=False)
