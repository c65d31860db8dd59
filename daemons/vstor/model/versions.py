"""Raising chunk versions: the fence of the data plane.

DESIGN: a raise commits the map with the new version and the replicas that stay, orders every one of them to take the version, and is
over when all have. Until then nobody gets a map for writing. A replica that fails the order is dropped in turn (another
raise), unless it is the last that can be reached. `then` goes on with what the raise was for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.model.records import VOID, Chunk
from vstor.model.step import Step
from vstor.proto.messages import OrderSetVersion


@dataclass(slots=True)
class Raise:
    """A version under way."""

    chunk_id: int
    version: int
    waiting: dict[int, int]  # cs id -> order id
    retry: dict[int, int] = field(
        default_factory=dict
    )  # cs id -> when the last that could be reached gets its order again
    then: list[Callable[[Step, int], None]] = field(default_factory=list)  # called with the chunk id


class Versions:
    """All raises under way."""

    def __init__(self) -> None:
        self.raising: dict[int, Raise] = {}
        self.busy: dict[
            int, str
        ] = {}  # chunk id -> why writers wait though no raise is under way (repair, last pass of a copy, fence)

    def unsettled(self, chunk_id: int) -> bool:
        """Maps of the chunk are not given out for writing now; wait for ("ver", chunk id)."""
        return chunk_id in self.raising or chunk_id in self.busy

    def hold(self, chunk_id: int, why: str) -> None:
        """Writers wait until `free`."""
        self.busy[chunk_id] = why

    def free(self, s: Step, chunk_id: int) -> None:
        """Writers may go on."""
        self.busy.pop(chunk_id, None)
        wake(s, chunk_id)

    def start(
        self, s: Step, ino: int, index: int, chunk: Chunk, then: Callable[[Step, int], None] | None = None
    ) -> Chunk:
        """Raise the version of `chunk` (its replicas are those that stay, at least one). Returns the chunk as it is now in the map."""
        assert chunk.replicas
        raised = chunk._replace(version=chunk.version + 1)
        s.tx.put_chunk(ino, index, raised)
        before = self.raising.pop(chunk.id, None)
        follow = list(before.then) if before else []
        if then is not None:
            follow.append(then)
        if before:
            for order_id in before.waiting.values():
                s.core.orders.cancel(order_id)
        timeout = 2 * s.core.config.int("mds.order.tout")
        state = self.raising[chunk.id] = Raise(chunk.id, raised.version, {}, then=follow)
        for cs_id in raised.replicas:
            order = self._order(s, ino, raised)
            state.waiting[cs_id] = s.core.orders.send(s, cs_id, order, self._callback(state), timeout)
        for cs_id in raised.replicas:
            if not s.core.servers.is_active(cs_id) and self.raising.get(chunk.id) is state:
                s.core.orders.cancel(state.waiting[cs_id])
                self._answered(s, state, cs_id, ErrorCode.DISCONNECTED)
        return s.tx.chunk(ino, index) or raised

    @staticmethod
    def _order(s: Step, ino: int, chunk: Chunk) -> OrderSetVersion:
        return OrderSetVersion(chunk.id, chunk.version, s.core.chunk_bytes(s, ino) if chunk.flags & VOID else 0)

    def raise_one(self, s: Step, chunk: Chunk, cs_id: int) -> None:
        """A replica in the map that only missed the order gets it again; if it fails that, it leaves the map."""
        if chunk.id in self.raising:
            return

        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            now = locate(step, chunk.id)
            if status != ErrorCode.OK and now is not None and now[2].version == chunk.version:
                drop_replica(step, chunk.id, {server})

        timeout = 2 * s.core.config.int("mds.order.tout")
        found = locate(s, chunk.id)
        if found is not None:
            s.core.orders.send(s, cs_id, self._order(s, found[0], chunk), done, timeout)

    def _callback(self, state: Raise) -> Callable[[Step, int, int, int, int], None]:
        def done(s: Step, cs_id: int, status: int, value: int, copied: int) -> None:
            self._answered(s, state, cs_id, status)

        return done

    def _answered(self, s: Step, state: Raise, cs_id: int, status: int) -> None:
        if self.raising.get(state.chunk_id) is not state:
            return
        found = locate(s, state.chunk_id)
        if found is None or found[2].version != state.version:
            del self.raising[state.chunk_id]  # the chunk was deleted meanwhile
            wake(s, state.chunk_id)
            return
        ino, index, chunk = found
        if status != ErrorCode.OK:
            self._failed(s, state, ino, index, chunk, cs_id, status)
            return
        state.waiting.pop(cs_id, None)
        if not state.waiting:
            s.core.servers.wrote(chunk)
            self._finish(s, state, ino, index, chunk)

    def _failed(self, s: Step, state: Raise, ino: int, index: int, chunk: Chunk, cs_id: int, status: int) -> None:
        others = tuple(r for r in chunk.replicas if r != cs_id)
        if any(s.core.servers.is_active(r) for r in others):
            s.core.recovery.note_stale(chunk.id, cs_id, chunk.version - 1, chunk.version)
            self.start(s, ino, index, chunk._replace(replicas=others))
            return
        # The last one that could be reached: its data is all there is. It gets the order again until it does it.
        state.retry[cs_id] = s.now_ms + s.core.config.int("mds.order.tout")

    def tick(self, s: Step) -> None:
        """Repeat orders that the last replica of a chunk failed."""
        for state in [r for r in self.raising.values() if r.retry]:
            found = locate(s, state.chunk_id)
            if found is None:
                del self.raising[state.chunk_id]
                wake(s, state.chunk_id)
                continue
            for cs_id in [n for n, when in state.retry.items() if when <= s.now_ms and s.core.servers.is_connected(n)]:
                del state.retry[cs_id]
                order = self._order(s, found[0], found[2])
                state.waiting[cs_id] = s.core.orders.send(
                    s, cs_id, order, self._callback(state), 2 * s.core.config.int("mds.order.tout")
                )

    def _finish(self, s: Step, state: Raise, ino: int, index: int, chunk: Chunk) -> None:
        del self.raising[state.chunk_id]
        if chunk.flags & VOID:
            # Every replica exists now, and acknowledged but not yet reported writes may be in them: it is a chunk like any other.
            s.tx.put_chunk(ino, index, chunk._replace(flags=chunk.flags & ~VOID))
            s.tx.inode(ino).used += 1
        for follow in state.then:
            follow(s, state.chunk_id)
        wake(s, state.chunk_id)


def wake(s: Step, chunk_id: int) -> None:
    """The map of the chunk is (perhaps) ready again."""
    s.out.wake.update((("ver", chunk_id), ("map", chunk_id)))


def locate(s: Step, chunk_id: int) -> tuple[int, int, Chunk] | None:
    """(ino, index, chunk) as they will be after this step."""
    home = s.state.chunk_home.get(chunk_id)
    if home is None:
        return None
    ino, index = home >> 32, home & 0xFFFFFFFF
    chunk = s.tx.chunk(ino, index)
    return None if chunk is None or chunk.id != chunk_id else (ino, index, chunk)


def drop_replica(s: Step, chunk_id: int, cs_ids: set[int]) -> bool:
    """Take replicas out of the map and raise the version. False: they are the last that could be reached, or not in the map."""
    found = locate(s, chunk_id)
    if found is None:
        return False
    ino, index, chunk = found
    rest = tuple(r for r in chunk.replicas if r not in cs_ids)
    if len(rest) == len(chunk.replicas) or not any(s.core.servers.is_active(r) for r in rest):
        return False
    for cs_id in cs_ids.intersection(chunk.replicas):
        s.core.recovery.note_stale(chunk_id, cs_id, chunk.version, chunk.version)
    s.core.versions.start(s, ino, index, chunk._replace(replicas=rest))
    return True
