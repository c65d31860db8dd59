"""etcd as the MDS sees it: the contract of vstor.meta.store with round trips, lost answers, partitions and leases that end.

DESIGN: one linearizable store. A commit is done at the store's moment or not at all; its answer may be lost afterwards (outcome unknown). The
lease of the leadership is counted here by the store's clock, the leader's part of it (SERVE_PART of the ttl, from before a keepalive was
sent) by the leader's own clock, as in vstor.meta.etcd_lease.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Iterable
from typing import Any

from vstor import clock
from vstor.meta.store import Fenced, Mutation, StoreUnavailable, check_batch

from tests.simulate.loop import Host, Proc, SimLoop
from tests.simulate.net import Net

_NOBODY = contextvars.Context()  # what happens at the store belongs to no process of the simulation
SERVE_PART = 0.7  # of vstor.meta.etcd_lease
COMMIT_TIMEOUT_S = 3.0


class Etcd:
    """Host "etcd" on the network."""

    def __init__(self, loop: SimLoop, net: Net, rng: random.Random) -> None:
        self.loop, self.net, self.rng = loop, net, rng
        self.host = Host("etcd", 1.0, 0)
        self.records: dict[bytes, bytes] = {}
        self.seq = 0
        self.revision = 1
        self.epoch = 0  # of the leadership, 0: nobody leads
        self.leader_value = ""
        self.lease_end_s = 0.0
        self.committed_epochs: list[int] = []
        self.on_commit: Any = None

    async def trip(self, proc: Proc, action: Any, timeout_s: float) -> Any:
        """`action` at the store and its answer back. Raises StoreUnavailable: it may have been done."""
        loop, answer = self.loop, self.loop.create_future()

        def arrive() -> None:
            if not self.net.passes(proc.host.name, "etcd"):
                return
            self._expire()
            try:
                result, error = action(), None
            except Fenced as exc:
                result, error = None, exc
            if self.net.passes("etcd", proc.host.name):
                loop.call_later(self.net.delay_s("etcd", proc.host.name), back, result, error, context=proc.context)

        def back(result: Any, error: Any) -> None:
            if not answer.done():
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(result)

        loop.call_later(self.net.delay_s(proc.host.name, "etcd"), arrive, context=_NOBODY)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as exc:
            raise StoreUnavailable("no answer of the store") from exc

    def _expire(self) -> None:
        if self.epoch and self.loop.now_s >= self.lease_end_s:
            self.epoch, self.leader_value = 0, ""

    # --- what the MDS does

    async def campaign(self, proc: Proc, value: str, ttl_s: float) -> SimLeadership | None:
        """Lead if nobody does. Raises StoreUnavailable."""
        sent_ms = clock.boottime_ms()

        def action() -> int:
            if self.epoch:
                return 0
            self.revision += 1
            self.epoch, self.leader_value = self.revision, value
            self.lease_end_s = self.loop.now_s + ttl_s
            return self.epoch

        epoch = await self.trip(proc, action, COMMIT_TIMEOUT_S)
        return SimLeadership(self, proc, epoch, ttl_s, sent_ms) if epoch else None

    async def load(self, proc: Proc, epoch: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """(seq, records) as they are while `epoch` leads: what a standby that followed the watch has. Raises Fenced."""

        def action() -> tuple[int, list[tuple[bytes, bytes]]]:
            if self.epoch != epoch:
                raise Fenced(f"epoch {epoch} ended")
            return self.seq, list(self.records.items())

        result: tuple[int, list[tuple[bytes, bytes]]] = await self.trip(proc, action, COMMIT_TIMEOUT_S)
        return result

    def apply(self, epoch: int, seq: int, mutations: list[Mutation]) -> int:
        """One guarded transaction."""
        if self.epoch != epoch:
            raise Fenced(f"epoch {epoch} ended")
        if seq != self.seq:
            raise Fenced(f"the chain is at {self.seq}, not {seq}")
        self.seq += 1
        self.revision += 1
        if self.on_commit is not None:
            self.on_commit(epoch, mutations)
        for key, record in mutations:
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record
        return self.revision


class SimLeadership:
    """vstor.meta.store.Leadership."""

    def __init__(self, etcd: Etcd, proc: Proc, epoch: int, ttl_s: float, sent_ms: int) -> None:
        self.epoch = epoch
        self._etcd, self._proc, self._ttl_s = etcd, proc, ttl_s
        self._until_ms = sent_ms + int(ttl_s * 1000 * SERVE_PART)
        self._lost = False
        self._beat_ms = clock.boottime_ms()
        self._task = proc.spawn(self._keep(), "keepalive")

    def serving_until_ms(self) -> int:
        return 0 if self._lost else self._until_ms

    def lost(self) -> bool:
        return self._lost

    def beat(self) -> None:
        self._beat_ms = clock.boottime_ms()

    async def _keep(self) -> None:
        while not self._lost:
            await asyncio.sleep(self._ttl_s / 3)
            sent_ms = clock.boottime_ms()
            if sent_ms - self._beat_ms > self._ttl_s * 500:
                continue
            try:
                alive = await self._etcd.trip(self._proc, self._prolong, max(self._ttl_s / 3, 0.5))
            except StoreUnavailable:
                continue
            if not alive:
                self._lost = True
            else:
                self._until_ms = sent_ms + int(self._ttl_s * 1000 * SERVE_PART)

    def _prolong(self) -> bool:
        if self._etcd.epoch != self.epoch:
            return False
        self._etcd.lease_end_s = self._etcd.loop.now_s + self._ttl_s
        return True

    async def commit(self, seq: int, batch_id: bytes, mutations: Iterable[Mutation]) -> int:
        batch = list(mutations)
        check_batch(batch_id, batch)
        return int(await self._etcd.trip(
            self._proc, lambda: self._etcd.apply(self.epoch, seq, batch), COMMIT_TIMEOUT_S
        ))  # fmt: skip

    async def resign(self) -> None:
        self._lost = True
        self._task.cancel()
