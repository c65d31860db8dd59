"""A change beyond one transaction is done whole or not at all, wherever its leader dies."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds import large
from vstor.mds.large import KIND, MARK, Chain, Staged, key_of, split
from vstor.meta.memory import MemoryLeadership, MemoryStore
from vstor.meta.store import Mutation, StoreUnavailable

BEFORE = {b"i%d" % i: b"old" for i in range(12)}
CHANGE: dict[bytes, bytes | None] = {
    **{b"i%d" % i: None for i in range(6)},
    **{b"i%d" % i: b"new" for i in range(6, 20)},
}
AFTER = {b"i%d" % i: b"new" for i in range(6, 20)}
PARTS = 5  # of four mutations each
TRANSACTIONS = 2 * PARTS + 2


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MUTATIONS_PER_COMMIT_MAX", 5)


class Dying:
    """A leadership that ends at the n-th transaction, before or (done) after it has reached the store."""

    def __init__(self, real: MemoryLeadership, last: int, done: bool) -> None:
        self.epoch = real.epoch
        self._real, self._last, self._done = real, last, done

    async def commit(self, seq: int, batch_id: bytes, mutations: Iterable[Mutation]) -> int:
        self._last -= 1
        if self._last < 0 and not self._done:
            raise StoreUnavailable("dead")
        revision = await self._real.commit(seq, batch_id, mutations)
        if self._last < 0:
            raise StoreUnavailable("dead")
        return revision


def ids() -> large.NewBatchId:
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


async def take_over(
    store: MemoryStore, new_id: large.NewBatchId, last: int = 1000, done: bool = False
) -> list[Mutation]:
    """A new leader begins; what it has to apply to its memory."""
    await store.depose()
    snapshot = await store.load()
    staged = Staged()
    staged.apply(snapshot.items)
    leadership = await store.campaign(b"next", 5)
    assert leadership is not None
    if not staged:
        return []
    return await Chain(Dying(leadership, last, done), snapshot.seq, new_id).finish(staged)  # type: ignore[arg-type]


async def started() -> tuple[MemoryStore, MemoryLeadership, large.NewBatchId]:
    store, new_id = MemoryStore(), ids()
    leadership = await store.campaign(b"one", 5)
    assert leadership is not None
    await leadership.commit(0, new_id(16), list(BEFORE.items()))
    return store, leadership, new_id


async def test_without_a_crash() -> None:
    store, leadership, new_id = await started()
    chain = Chain(leadership, 1, new_id)
    await chain.commit_all(CHANGE)
    assert store.records == AFTER
    assert (chain.seq, chain.revision) == (store.seq, store.revision) == (1 + TRANSACTIONS, store.revision)
    await chain.commit_all({b"i1": b"small"})
    assert store.seq == 2 + TRANSACTIONS, "what fits goes in one"


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("last", range(TRANSACTIONS))
async def test_all_or_nothing(last: int, done: bool) -> None:
    store, leadership, new_id = await started()
    with pytest.raises(StoreUnavailable):
        await Chain(Dying(leadership, last, done), 1, new_id).commit_all(CHANGE)  # type: ignore[arg-type]
    marked = last + done > PARTS
    await take_over(store, new_id)
    assert store.records == (AFTER if marked else BEFORE)


@pytest.mark.parametrize("second", range(PARTS - 1))
async def test_the_next_leader_dies_too(second: int) -> None:
    store, leadership, new_id = await started()
    with pytest.raises(StoreUnavailable):
        await Chain(Dying(leadership, PARTS + 2, True), 1, new_id).commit_all(CHANGE)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        await take_over(store, new_id, second, True)
    await take_over(store, new_id)
    assert store.records == AFTER


async def test_a_standby_that_followed_has_the_same() -> None:
    store, leadership, new_id = await started()
    with pytest.raises(StoreUnavailable):
        await Chain(Dying(leadership, PARTS + 3, True), 1, new_id).commit_all(CHANGE)  # type: ignore[arg-type]
    memory = {key: record for key, record in store.records.items() if not key.startswith(KIND)}  # half of it applied
    for key, record in await take_over(store, new_id):
        if record is None:
            memory.pop(key, None)
        else:
            memory[key] = record
    assert memory == store.records == AFTER


def test_damage_is_said() -> None:
    staged = Staged()
    assert not staged
    staged.apply([(key_of(0), b"\xc1"), (MARK, b"1")])
    assert staged
    with pytest.raises(VstorError) as caught:
        staged.parts()
    assert caught.value.code == ErrorCode.DAMAGED


def test_parts_keep_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "COMMIT_BYTES_MAX", 1000)
    parts = split({b"k%d" % i: bytes(400) for i in range(7)})
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert split({}) == [[]]
