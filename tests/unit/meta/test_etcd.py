"""What only etcd can show: restart, expiry, failover between members, loading by spans."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from vstor import clock
from vstor.meta import etcd as etcd_module
from vstor.meta import etcd_client, etcd_pb
from vstor.meta.etcd import EtcdStore
from vstor.meta.etcd_pb import rpc
from vstor.meta.keys import PREFIX
from vstor.meta.store import Fenced, HistoryLost, StoreUnavailable

from tests.unit.meta.etcd_helpers import Etcd, free_port

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_fast_protobuf_backend() -> None:
    assert etcd_pb.backend() == "upb"


async def test_load_by_spans_is_the_same(etcd_store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = etcd_store
    leadership = await store.campaign(b"one", 5)
    assert leadership is not None
    batch = [(bytes([kind, shard]) + b"x" * 8, b"v") for kind in b"idexgznckuov" for shard in (0, 1, 254, 255)]
    await leadership.commit(0, os.urandom(16), [*batch, (b"m1", b"member")])
    whole = await store.load()
    monkeypatch.setattr(etcd_module, "ONE_RANGE_KEYS_MAX", 0)
    spans = await store.load()
    assert sorted(spans.items) == sorted(whole.items) == sorted([*batch, (b"m1", b"member")])
    assert (spans.seq, spans.leader) == (whole.seq, whole.leader)
    await store.client.call("KV", "Put", rpc.PutRequest(key=PREFIX + b"\xf0unknown", value=b""))
    with pytest.raises(Exception, match="newer version"):
        await store.load()
    await leadership.resign()


async def test_a_foreign_write_is_noticed(etcd_store: EtcdStore) -> None:
    store = etcd_store
    start = await store.load()
    await store.client.call("KV", "Put", rpc.PutRequest(key=PREFIX + b"i\0foreign", value=b""))
    with pytest.raises(HistoryLost):
        async for _ in store.follow(start.revision, start.seq):
            pass


async def test_kill_and_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_client, "CALL_S_MAX", 0.5)
    member = Etcd(tmp_path)
    member.start()
    try:
        store = EtcdStore([f"http://127.0.0.1:{free_port()}", member.url], None)  # the first endpoint is dead
        start = await store.load()
        leadership = await store.campaign(b"one", 10)
        assert leadership is not None
        follower = store.follow(start.revision, 0)
        assert (await anext(follower)).leader_changed
        await leadership.commit(0, os.urandom(16), [(b"i1", b"1")])
        assert (await anext(follower)).seq == 1
        member.kill()
        with pytest.raises(StoreUnavailable):
            await store.client.call("KV", "Range", rpc.RangeRequest(key=b"x"), timeout_s=0.5)
        member.start()
        await leadership.commit(1, os.urandom(16), [(b"i2", b"2")])
        assert (await anext(follower)).mutations == [(b"i2", b"2")]  # the watch came back by itself
        await follower.aclose()
        assert sorted((await store.load()).items) == [(b"i1", b"1"), (b"i2", b"2")]
        await leadership.resign()
        await store.close()
    finally:
        member.kill()


async def test_a_hung_loop_loses_the_lease(shared_etcd: Etcd) -> None:
    store = EtcdStore([shared_etcd.url], None)
    await store.load()
    leadership = await store.campaign(b"one", 1)
    assert leadership is not None
    start = await store.load()
    # nobody calls beat(): keepalives stop, the lease expires, and the follower hears of it
    async for change in store.follow(start.revision, start.seq):
        if change.leader_changed:
            assert change.leader is None
            break
    assert leadership.serving_until_ms() <= clock.boottime_ms()
    with pytest.raises(Fenced):
        await leadership.commit(start.seq, os.urandom(16), [(b"i1", b"1")])
    await leadership.resign()
    await store.close()


async def test_a_beating_loop_keeps_it(shared_etcd: Etcd) -> None:
    store = EtcdStore([shared_etcd.url], None)
    leadership = await store.campaign(b"one", 1)
    assert leadership is not None
    first = leadership.serving_until_ms()
    while leadership.serving_until_ms() < first + 2000:
        leadership.beat()
        await asyncio.sleep(0.05)
    held = await store.leader()
    assert held is not None
    assert held.epoch == leadership.epoch
    await leadership.resign()
    await store.close()


async def test_the_lease_of_a_former_run_is_revoked(shared_etcd: Etcd, tmp_path: Path) -> None:
    file = tmp_path / "lease"
    killed = EtcdStore([shared_etcd.url], None, lease_file=file)
    former = await killed.campaign(b"one", 60)
    assert former is not None
    assert file.exists()
    former._keeper.stop()  # as after kill -9
    other = EtcdStore([shared_etcd.url], None)
    assert await other.campaign(b"two", 60) is None
    again = EtcdStore([shared_etcd.url], None, lease_file=file)
    assert (await again.load()).leader is None
    leadership = await again.campaign(b"one", 60)
    assert leadership is not None
    assert leadership.epoch > former.epoch
    await leadership.resign()
    assert not file.exists()
    for store in (killed, other, again):
        await store.close()
