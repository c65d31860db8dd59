"""The store in memory: for tests of the MDS and of what follows it. Same contract as etcd; time and failures by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from vstor import clock
from vstor.meta.store import (
    ChainChecker,
    Change,
    Fenced,
    HistoryLost,
    Leader,
    Mutation,
    Snapshot,
    StoreStatus,
    StoreUnavailable,
    check_batch,
)


class MemoryStore:
    """One "etcd"; share it between several MDSs.

    Attributes for tests: unavailable: calls raise. lose_replies: the next so many commits are done but raise StoreUnavailable.
    """

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.revision = 1
        self.seq = 0
        self.batch_id = b""
        self.unavailable = False
        self.lose_replies = 0
        self.commits = 0
        self._leadership: MemoryLeadership | None = None
        self._history: list[Change] = []
        self._compacted = 0
        self._news = asyncio.Condition()

    def _check(self) -> None:
        if self.unavailable:
            raise StoreUnavailable("the store is switched off")

    async def _append(
        self,
        seq: int,
        mutations: list[Mutation],
        changed: bool = False,
        leader: Leader | None = None,
    ) -> int:
        async with self._news:
            self._history.append(Change(self.revision, seq, mutations, changed, leader))
            self._news.notify_all()
        return self.revision

    async def load(self) -> Snapshot:
        self._check()
        return Snapshot(self.revision, self.seq, await self.leader(), list(self.records.items()))

    async def follow(self, revision: int, seq: int) -> AsyncIterator[Change]:
        checker = ChainChecker(seq)
        while True:
            self._check()
            if revision + 1 < self._compacted:
                raise HistoryLost(f"revision {revision + 1} was compacted")
            for change in [c for c in self._history if c.revision > revision]:
                revision = change.revision
                yield checker.check(change)
            async with self._news:
                while not self.unavailable and self.revision <= revision:
                    await self._news.wait()

    async def leader(self) -> Leader | None:
        self._check()
        held = self._leadership
        return Leader(held.epoch, held.value) if held else None

    async def campaign(self, value: bytes, ttl_s: int) -> MemoryLeadership | None:
        self._check()
        if self._leadership is not None:
            return None
        self.revision += 1
        self._leadership = MemoryLeadership(self, self.revision, value, ttl_s)
        await self._append(0, [], True, Leader(self.revision, value))
        return self._leadership

    async def depose(self, leader: Leader | None = None) -> None:
        """What happens when the leader's lease expires or (leader) is revoked."""
        if self._leadership is not None and (leader is None or leader.epoch == self._leadership.epoch):
            self._leadership = None
            self.revision += 1
            await self._append(0, [], True, None)

    async def set_unavailable(self, unavailable: bool) -> None:
        """Switch the store off or on."""
        self.unavailable = unavailable
        async with self._news:
            self._news.notify_all()

    async def compact(self, revision: int) -> None:
        self._check()
        self._compacted = max(self._compacted, revision)
        self._history = [c for c in self._history if c.revision >= revision]

    async def status(self) -> StoreStatus:
        self._check()
        size = sum(len(k) + len(v) for k, v in self.records.items())
        return StoreStatus(self.revision, size, size, 1)

    async def close(self) -> None:
        await self.set_unavailable(True)

    async def commit(
        self,
        leadership: MemoryLeadership,
        seq: int,
        batch_id: bytes,
        mutations: list[Mutation],
    ) -> int:
        """For MemoryLeadership."""
        self._check()
        check_batch(batch_id, mutations)
        await asyncio.sleep(0)  # like a round trip: others run meanwhile
        self._check()
        if self._leadership is not leadership:
            raise Fenced(f"epoch {leadership.epoch} ended")
        if self.batch_id == batch_id:
            return self.revision
        if seq != self.seq:
            raise Fenced(f"the chain is at {self.seq}, not {seq}")
        self.seq, self.batch_id = seq + 1, batch_id
        self.revision += 1
        self.commits += 1
        for key, record in mutations:
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record
        revision = await self._append(self.seq, mutations)
        if self.lose_replies:
            self.lose_replies -= 1
            raise StoreUnavailable("the reply was lost")
        return revision


class MemoryLeadership:
    """See store.Leadership."""

    def __init__(self, store: MemoryStore, epoch: int, value: bytes, ttl_s: int) -> None:
        self.epoch = epoch
        self.value = value
        self.stopped = False  # True: as if keepalives failed
        self._store = store
        self._ttl_ms = ttl_s * 1000

    def serving_until_ms(self) -> int:
        return 0 if self.stopped or self._store.unavailable else clock.boottime_ms() + self._ttl_ms

    def lost(self) -> bool:
        return not self._store.unavailable and self._store._leadership is not self

    def beat(self, ahead_ms: int = 0) -> None:
        return

    async def commit(self, seq: int, batch_id: bytes, mutations: Iterable[Mutation]) -> int:
        return await self._store.commit(self, seq, batch_id, list(mutations))

    async def resign(self) -> None:
        self.stopped = True
        if self._store._leadership is self:
            await self._store.depose()
