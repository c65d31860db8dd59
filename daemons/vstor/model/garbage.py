"""Replicas that belong to no chunk any more, to be deleted. Memory only: what a failover forgets, the next inventory finds."""

from __future__ import annotations

from collections.abc import Iterable

from vstor.codes_gen import ErrorCode
from vstor.model import versions
from vstor.model.step import Step
from vstor.proto.messages import OrderDelete

DELETES_PER_ORDER = 512
ORDERS_AT_ONCE = 2  # delete orders under way at one server


class Garbage:
    """Chunk ids to delete, by server. An id gets here when it left the maps for good, or when its replica is surplus (R6 is checked before)."""

    def __init__(self) -> None:
        self._todo: dict[int, set[int]] = {}
        self._running: dict[int, list[set[int]]] = {}  # batches under way

    def add(self, chunk_id: int, cs_ids: Iterable[int]) -> None:
        """Delete the replicas of the chunk on these servers. Call it only in a step that commits the reason."""
        for cs_id in cs_ids:
            self._todo.setdefault(cs_id, set()).add(chunk_id)

    def holds(self, chunk_id: int, cs_id: int) -> bool:
        """The replica is being deleted or about to be: nothing new may be made there now."""
        return chunk_id in self._todo.get(cs_id, ()) or any(chunk_id in batch for batch in self._running.get(cs_id, ()))

    def count(self) -> int:
        """Replicas to delete."""
        return sum(map(len, self._todo.values())) + sum(len(b) for batches in self._running.values() for b in batches)

    def tick(self, s: Step) -> None:
        """Give delete orders to servers that are connected; the others tell in their next inventory."""
        for cs_id, ids in list(self._todo.items()):
            if not s.core.servers.is_connected(cs_id):
                if not s.core.servers.is_active(cs_id):
                    del self._todo[cs_id]
                continue
            while ids and len(self._running.get(cs_id, ())) < ORDERS_AT_ONCE:
                batch = [ids.pop() for _ in range(min(DELETES_PER_ORDER, len(ids)))]
                batch = [n for n in batch if not self._in_use(s, n, cs_id)]
                if batch:
                    self._send(s, cs_id, batch)
            if not ids:
                del self._todo[cs_id]

    @staticmethod
    def _in_use(s: Step, chunk_id: int, cs_id: int) -> bool:
        """The replica came back into the map, or is being made, since it was put here."""
        found = versions.locate(s, chunk_id)
        return (found is not None and cs_id in found[2].replicas) or s.core.recovery.is_target(chunk_id, cs_id)

    def _send(self, s: Step, cs_id: int, numbers: list[int]) -> None:
        batch = set(numbers)
        self._running.setdefault(cs_id, []).append(batch)

        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            self._running[server].remove(batch)
            if status == ErrorCode.TIMED_OUT:
                self._todo.setdefault(server, set()).update(batch)
            elif status not in (ErrorCode.OK, ErrorCode.NO_CHUNK, ErrorCode.DISCONNECTED):
                step.core.servers.once(
                    step, f"delete {server}", "warn", f"CS#{server} could not delete replicas (error {status})"
                )

        s.core.orders.send(s, cs_id, OrderDelete(sorted(batch)), done, 60_000)
