"""The MDS in one process, with the in-memory store: first start, standby, failover, refusals."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds import deathwatch, metrics, presence, repository
from vstor.mds import service as service_module
from vstor.mds.repo_files import Repository
from vstor.mds.service import MdsService
from vstor.meta.memory import MemoryStore
from vstor.net import auth, pki
from vstor.net.identity import load_identity
from vstor.net.rpc_client import CallNow, MdsClient
from vstor.net.rpc_connection import connect, hello
from vstor.proto import messages as m

from tests.helpers.cluster import free_base_port

NAME = "svc"
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ETC", "RUN", "LOG", "STATE"):
        monkeypatch.setenv(f"VSTOR_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr(presence, "REPORT_S", 0.05)
    monkeypatch.setattr(service_module, "LEADER_CHECK_S", 0.2)


@pytest.fixture
def first(tmp_path: Path) -> Repository:
    """The repository of a cluster that was never started."""
    repo = Repository(tmp_path / "mds1")
    address = f"127.0.0.1:{free_base_port('127.0.0.1')}"
    repository.create_cluster(
        NAME, address, repo.root, b"password", None, {"mds.lease.ttl": "2000", "mds.lease.margin": "500"}
    )
    return repo


@asynccontextmanager
async def serving(repo: Repository, store: MemoryStore, wait: bool = True) -> AsyncIterator[MdsService]:
    ready = asyncio.Event()
    service = MdsService(repo, repo.load(), store, ready.set)
    running = asyncio.create_task(service.run())
    try:
        if wait:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if running.done():
                await running
        yield service
    finally:
        await service.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def session() -> AsyncIterator[MdsClient]:
    """A client that resumes its session on every later connection."""
    ids: list[int] = []

    async def on_connect(call: CallNow) -> None:
        if ids:
            await call(m.SessionResume(ids[0], []))
        else:
            reply = await call(m.SessionOpen("unit", 1, "0" * 16, "host"))
            assert isinstance(reply, m.SessionReply)
            ids.append(reply.session_id)

    client = MdsClient(load_identity(NAME), "client", on_connect=on_connect)
    try:
        yield client
    finally:
        await client.close()


async def names(client: MdsClient) -> set[bytes]:
    reply = await client.call(m.ReadDir(m.ROOT_INO, 0, 4096), deadline_s=30)
    assert isinstance(reply, m.DirReply)
    return {entry.name for entry in reply.entries}


async def mkdir(client: MdsClient, name: bytes) -> None:
    await client.call(m.Create(m.ROOT_INO, name, stat.S_IFDIR | 0o755, 0, 0), deadline_s=30)


async def seen_by(leader: MdsService) -> None:
    """Until the second MDS has reported; bounded by the test's timeout."""
    while leader.mds_status()["mds"][1]["state"] != "avail":  # noqa: ASYNC110 - what is awaited is a report over the network
        await asyncio.sleep(0.01)


async def join(tmp_path: Path) -> Repository:
    repo = Repository(tmp_path / "mds2")
    address = f"127.0.0.2:{free_base_port('127.0.0.2')}"
    made = await asyncio.to_thread(repository.join_cluster, NAME, address, repo.root)
    assert made["mds_id"] == 2
    return repo


async def test_first_start_consumes_the_bootstrap_record(first: Repository) -> None:
    store = MemoryStore()
    assert first.bootstrap_path.exists()
    async with serving(first, store), session() as client:
        assert not first.bootstrap_path.exists()
        await mkdir(client, b"dir")
        assert await names(client) == {b"dir"}
        events = await client.call(m.GetEvents(0, 0, 100))
        assert isinstance(events, m.JsonReply)
        assert any("leads now" in event["message"] for event in json.loads(events.json))
    async with serving(first, store), session() as client:
        assert await names(client) == {b"dir"}


async def test_empty_store_of_a_started_cluster_is_refused(first: Repository) -> None:
    async with serving(first, MemoryStore()):
        pass
    with pytest.raises(VstorError, match="restore etcd from a backup") as caught:
        async with serving(first, MemoryStore()):
            pass
    assert caught.value.code == ErrorCode.DAMAGED


async def test_store_of_another_cluster_is_refused(
    first: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with serving(first, store):
        pass
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "other"))
    other = Repository(tmp_path / "foreign")
    repository.create_cluster(NAME, f"127.0.0.1:{free_base_port('127.0.0.1')}", other.root, b"password")
    before = dict(store.records)
    with pytest.raises(VstorError) as caught:
        async with serving(other, store):
            pass
    assert caught.value.code == ErrorCode.WRONG_CLUSTER
    assert store.records == before


async def test_failover_keeps_session_and_data(first: Repository, tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(first, store) as one, session() as client:
        await mkdir(client, b"a")
        second = await join(tmp_path)
        async with serving(second, store) as two:
            assert (one.term is not None, two.term) == (True, None)
            await mkdir(client, b"b")
            standby = await connect(two.control_address, pki.client_context(*_files()), timeout_s=5)
            reply = await standby.send(m.Request(1, hello(NAME, one.config.cluster_id, "ctl", "0" * 16)))
            assert isinstance(reply, m.HelloReply)
            assert (reply.leader, reply.leader_address, reply.mds_id) == (False, one.control_address, 2)
            with pytest.raises(VstorError) as caught:
                await standby.send(m.Request(2, m.GetStatus()))
            assert caught.value.code == ErrorCode.NOT_LEADER
            standby.close()
            await seen_by(one)
            await one.stop()
            await mkdir(client, b"c")
            assert two.term is not None
            assert await names(client) == {b"a", b"b", b"c"}
            assert [item["leader"] for item in two.mds_status()["mds"]] == [False, True]
            assert 'vstor_mds_leader{cluster="svc",mds="2"} 1' in metrics.render(two)


async def test_the_lease_of_an_ended_leader_is_not_waited_for(first: Repository, tmp_path: Path) -> None:
    store = MemoryStore()  # its leases never end by themselves
    async with serving(first, store) as one:
        second = await join(tmp_path)
        async with serving(second, store) as two, session() as client:
            await mkdir(client, b"a")
            await seen_by(one)
            assert not await deathwatch.is_dead(one.control_address)
            assert one.server is not None
            await one.server.stop()  # as if the process had ended
            await mkdir(client, b"b")
            assert two.term is not None
            assert await deathwatch.is_dead(one.control_address)


async def test_a_deposed_leader_starts_over_as_standby(first: Repository, tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(first, store) as one, session() as client:
        second = await join(tmp_path)
        async with serving(second, store):
            await mkdir(client, b"a")
            before = one.counters["terms"]
            await store.depose()
            await mkdir(client, b"b")
            assert await names(client) == {b"a", b"b"}
            assert one.counters["lives_ended"] == 1
            assert one.counters["terms"] in (before, before + 1)  # whoever was faster


async def test_the_password_is_changed_by_who_knows_it(
    first: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with serving(first, store) as one:
        second = await join(tmp_path)
        async with serving(second, store) as two:
            peers = [one.config.address, two.config.address]
            with pytest.raises(VstorError) as caught:
                await asyncio.to_thread(auth.change_password, NAME, b"wrong", b"new one", peers)
            assert caught.value.code == ErrorCode.WRONG_PASSWORD
            with pytest.raises(VstorError, match="empty"):
                await asyncio.to_thread(auth.change_password, NAME, b"password", b"", peers)
            await asyncio.to_thread(auth.change_password, NAME, b"password", b"new one", [two.config.address, *peers])
            monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "other"))
            for address in peers:  # the standby has heard of it too
                with pytest.raises(VstorError) as caught:
                    await asyncio.to_thread(auth.auth_node, NAME, b"password", [address])
                assert caught.value.code == ErrorCode.WRONG_PASSWORD
                await asyncio.to_thread(auth.auth_node, NAME, b"new one", [address])
    async with serving(first, store):
        with pytest.raises(VstorError) as caught:
            await asyncio.to_thread(auth.auth_node, NAME, b"password", [peers[0]])
        assert caught.value.code == ErrorCode.WRONG_PASSWORD


async def test_a_revoked_node_is_refused_at_once(
    first: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with serving(first, store) as one:
        address = one.config.address
        own = load_identity(NAME)
        monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "other"))
        await asyncio.to_thread(auth.auth_node, NAME, b"password", [address])
        other = load_identity(NAME)
        assert other.host_id != own.host_id
        bad = MdsClient(other, "client", bootstrap=[address])
        opened = await bad.call(m.SessionOpen("/mnt", 1, other.host_id, "h"), deadline_s=20)
        assert isinstance(opened, m.SessionReply)
        assert one.term is not None
        cluster = one.state.cluster
        assert cluster is not None
        key_before = cluster.ticket_key_id
        admin = MdsClient(own, "ctl", bootstrap=[address])
        listed = await admin.call(m.ListNodes(), deadline_s=20)
        assert isinstance(listed, m.JsonReply)
        row = next(n for n in json.loads(listed.json) if n["host_id"] == other.host_id)
        assert (row["connected"], row["revoked_ms"], row["roles"]) == (True, 0, ["client"])
        with pytest.raises(VstorError, match="list-nodes"):
            await admin.call(m.RevokeNode("nobody"), deadline_s=20)
        await admin.call(m.RevokeNode(other.host_id, dry_run=True), deadline_s=20)
        assert bad.connected
        await admin.call(m.RevokeNode(other.host_id), deadline_s=20)
        with pytest.raises(VstorError) as caught:
            await bad.call(m.StatFs(m.ROOT_INO), deadline_s=1)
        assert caught.value.code == ErrorCode.DENIED
        assert "revoked" in caught.value.message
        assert one.state.cluster is not None
        assert one.state.cluster.ticket_key_id == key_before + 2, "no ticket given out before opens a chunk"
        await bad.close()
        await admin.close()
    async with serving(first, store):  # also after a restart
        client = MdsClient(other, "ctl", bootstrap=[address])
        with pytest.raises(VstorError) as caught:
            await client.call(m.GetStatus(), deadline_s=1)
        assert caught.value.code == ErrorCode.DENIED
        await client.close()
        assert await asyncio.to_thread(auth.auth_node, NAME, b"password", [address]), "a new certificate"
        client = MdsClient(load_identity(NAME), "ctl", bootstrap=[address])
        await client.call(m.GetStatus(), deadline_s=20)
        await client.close()


async def test_unknown_outcome_of_a_commit_is_found_out_by_the_retry(first: Repository) -> None:
    store = MemoryStore()
    async with serving(first, store) as one, session() as client:
        await mkdir(client, b"a")
        store.lose_replies = 1  # committed, but nobody was told: the leader throws its memory away
        await mkdir(client, b"b")  # not EEXIST: the same request id finds its outcome
        assert await names(client) == {b"a", b"b"}
        assert one.counters["terms"] == 2


async def test_store_outage(first: Repository) -> None:
    store = MemoryStore()
    async with serving(first, store), session() as client:
        await mkdir(client, b"a")
        await store.set_unavailable(True)
        pending = asyncio.create_task(mkdir(client, b"b"))
        await asyncio.sleep(0.2)
        assert not pending.done()
        await store.set_unavailable(False)
        await pending
        assert await names(client) == {b"a", b"b"}


async def test_without_store_at_start_the_daemon_ends(first: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "FIRST_LOAD_S_MAX", 0.1)
    store = MemoryStore()
    await store.set_unavailable(True)
    with pytest.raises(VstorError) as caught:
        async with serving(first, store):
            pass
    assert caught.value.code == ErrorCode.META_UNAVAILABLE


async def test_removed_mds_ends(first: Repository, tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(first, store), session() as client:
        second = await join(tmp_path)
        async with serving(second, store):
            with pytest.raises(VstorError) as caught:
                await client.call(m.RemoveMds(1))
            assert caught.value.code == ErrorCode.UNSAFE
            await client.call(m.RemoveMds(2))
        with pytest.raises(VstorError) as caught:
            async with serving(second, store):
                pass
        assert caught.value.code == ErrorCode.NOT_MDS


async def test_who_may_say_what(first: Repository) -> None:
    store = MemoryStore()
    async with serving(first, store) as one:
        context = pki.client_context(*_files())
        cluster_id = one.config.cluster_id
        wrong = [
            (m.GetStatus(), ErrorCode.BAD_REQUEST),  # before Hello
            (hello("other", cluster_id, "ctl", "h"), ErrorCode.WRONG_CLUSTER),
            (hello(NAME, "0" * 32, "ctl", "h"), ErrorCode.WRONG_CLUSTER),
            (hello(NAME, cluster_id, "king", "h"), ErrorCode.BAD_REQUEST),
            (hello(NAME, cluster_id, "mds", "h"), ErrorCode.DENIED),  # a node is no MDS
            (m.Hello(NAME, cluster_id, "ctl", 99, "9", "h", "h"), ErrorCode.UNSUPPORTED),
        ]
        conn = await connect(one.control_address, context, timeout_s=5)
        for number, (body, code) in enumerate(wrong):
            with pytest.raises(VstorError) as caught:
                await conn.send(m.Request(number, body))
            assert caught.value.code == code
        await conn.send(m.Request(20, hello(NAME, cluster_id, "auth", "h")))
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(21, m.GetStatus()))
        assert caught.value.code == ErrorCode.DENIED
        conn.close()
        conn = await connect(one.control_address, context, timeout_s=5)
        await conn.send(m.Request(1, hello(NAME, cluster_id, "ctl", "h")))
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(2, m.MdsReport(1, "x", 1, "", 0.0, 0, 0)))
        assert caught.value.code == ErrorCode.DENIED
        with pytest.raises(VstorError) as caught:
            await conn.send(m.Request(3, m.MdsJoin("other host", "h", one.config.address, b"")))
        assert caught.value.code == ErrorCode.EXISTS
        conn.close()


def _files() -> tuple[Path, Path, Path]:
    who = load_identity(NAME)
    return who.cert_path, who.key_path, who.ca_path
