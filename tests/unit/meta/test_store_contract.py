"""The contract of the metadata store, on every implementation."""

from __future__ import annotations

import asyncio
import os

import pytest
from vstor import clock
from vstor.meta.store import Change, Fenced, HistoryLost, Store

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]
TTL_S = 5


def batch_id() -> bytes:
    return os.urandom(16)


async def take(store: Store, revision: int, seq: int, count: int) -> list[Change]:
    found: list[Change] = []
    follower = store.follow(revision, seq)
    async for change in follower:
        found.append(change)
        if len(found) == count:
            break
    await follower.aclose()  # type: ignore[attr-defined]
    return found


async def test_empty(store: Store) -> None:
    snapshot = await store.load()
    assert (snapshot.seq, snapshot.leader, snapshot.items) == (0, None, [])
    assert await store.leader() is None


async def test_commits_are_loaded(store: Store) -> None:
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    await leadership.commit(0, batch_id(), [(b"i\0a", b"1"), (b"i\0b", b"2"), (b"m1", b"x")])
    revision = await leadership.commit(1, batch_id(), [(b"i\0a", None), (b"i\0b", b"3")])
    snapshot = await store.load()
    assert sorted(snapshot.items) == [(b"i\0b", b"3"), (b"m1", b"x")]
    assert (snapshot.seq, snapshot.revision) == (2, revision)
    assert snapshot.leader is not None
    assert snapshot.leader.epoch == leadership.epoch
    assert snapshot.leader.value == b"one"
    await leadership.resign()


async def test_one_leader_and_growing_epochs(store: Store) -> None:
    first = await store.campaign(b"one", TTL_S)
    assert first is not None
    assert await store.campaign(b"two", TTL_S) is None
    await first.resign()
    second = await store.campaign(b"two", TTL_S)
    assert second is not None
    assert second.epoch > first.epoch
    await second.resign()


async def test_a_former_leader_is_fenced(store: Store) -> None:
    first = await store.campaign(b"one", TTL_S)
    assert first is not None
    await first.commit(0, batch_id(), [(b"i1", b"1")])
    await first.resign()
    with pytest.raises(Fenced):
        await first.commit(1, batch_id(), [(b"i1", b"2")])
    second = await store.campaign(b"two", TTL_S)
    assert second is not None
    with pytest.raises(Fenced):
        await first.commit(1, batch_id(), [(b"i1", b"2")])
    await second.commit(1, batch_id(), [(b"i1", b"3")])
    with pytest.raises(Fenced):
        await first.commit(2, batch_id(), [(b"i1", b"2")])
    assert (await store.load()).items == [(b"i1", b"3")]
    await second.resign()


async def test_a_retry_is_done_once(store: Store) -> None:
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    batch = batch_id()
    first = await leadership.commit(0, batch, [(b"i1", b"1")])
    assert await leadership.commit(0, batch, [(b"i1", b"1")]) == first
    assert (await store.load()).seq == 1
    with pytest.raises(Fenced):
        await leadership.commit(0, batch_id(), [(b"i1", b"2")])
    with pytest.raises(Fenced):
        await leadership.commit(5, batch_id(), [(b"i1", b"2")])
    assert (await store.load()).items == [(b"i1", b"1")]
    await leadership.resign()


async def test_followers_see_whole_transactions_in_order(store: Store) -> None:
    start = await store.load()
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    following = asyncio.create_task(take(store, start.revision, 0, 4))
    await leadership.commit(0, batch_id(), [(b"i1", b"1"), (b"i2", b"2")])
    await leadership.commit(1, batch_id(), [(b"i1", None), (b"i3", b"3")])
    await leadership.resign()
    changes = await following
    won, one, two, lost = changes
    assert won.leader_changed
    assert won.leader is not None
    assert won.leader.epoch == leadership.epoch == won.revision
    assert (one.seq, sorted(one.mutations, key=lambda m: m[0])) == (
        1,
        [(b"i1", b"1"), (b"i2", b"2")],
    )
    assert (two.seq, sorted(two.mutations, key=lambda m: m[0])) == (
        2,
        [(b"i1", None), (b"i3", b"3")],
    )
    assert lost.leader_changed
    assert lost.leader is None
    assert [c.revision for c in changes] == sorted({c.revision for c in changes})
    again = await take(store, one.revision, 1, 1)
    assert again == [two]


async def test_a_gap_is_noticed(store: Store) -> None:
    start = await store.load()
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    await leadership.commit(0, batch_id(), [(b"i1", b"1")])
    with pytest.raises(HistoryLost):
        await take(store, start.revision, 7, 2)
    await leadership.resign()


async def test_compacted_history_is_noticed(store: Store) -> None:
    start = await store.load()
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    for seq in range(4):
        revision = await leadership.commit(seq, batch_id(), [(b"i1", bytes([seq]))])
    await store.compact(revision)
    await store.compact(revision)
    with pytest.raises(HistoryLost):
        await take(store, start.revision, 0, 5)
    assert (await store.load()).items == [(b"i1", b"\3")]
    assert (await store.status()).revision >= revision
    await leadership.resign()


async def test_a_leader_may_serve_and_after_resigning_not(store: Store) -> None:
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    now_ms = clock.boottime_ms()
    assert now_ms < leadership.serving_until_ms() <= now_ms + TTL_S * 1000
    await leadership.resign()
    assert leadership.serving_until_ms() <= clock.boottime_ms()


async def test_large_batch(store: Store) -> None:
    leadership = await store.campaign(b"one", TTL_S)
    assert leadership is not None
    batch = [(b"e" + i.to_bytes(4, "big"), bytes(1200)) for i in range(1000)]
    await leadership.commit(0, batch_id(), batch)
    assert len((await store.load()).items) == 1000
    await leadership.resign()
