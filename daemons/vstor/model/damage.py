"""Damage that no other replica of the map can mend: named once, looked at again now and then, never copied in vain.

DESIGN: copying from a replica with a damaged block fails at that block, however often it is tried. Such a chunk waits here instead: its server is
asked to read it again, ever more rarely, and only when that finds no damage (somebody has written the block) or another replica is back
does recovery or repair go on. Stale replicas are kept meanwhile. Memory only: a new leader's first copy or scrub finds it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from vstor.codes_gen import ErrorCode
from vstor.model import paths, versions
from vstor.model.step import Step
from vstor.proto.messages import OrderScrub

DAMAGED_MAX = 10_000  # chunks watched; more are found again when there is room
FIRST_LOOK_MS = 30_000
LOOK_MS_MAX = 3_600_000
SHOWN_MAX = 10


@dataclass(slots=True)
class Damaged:
    """A chunk whose only reachable replica has a damaged block."""

    chunk_id: int
    cs_id: int
    since_ms: int
    due_ms: int  # when it is read again
    wait_ms: int
    path: str | None = None  # None: not named yet
    order_id: int = 0  # a look is under way


class Damage:
    """All of them, by chunk id."""

    def __init__(self) -> None:
        self.chunks: dict[int, Damaged] = {}

    def note(self, s: Step, chunk_id: int, cs_id: int) -> bool:
        """A block of the replica is damaged and no other replica can be reached. False: that is known."""
        if chunk_id in self.chunks or len(self.chunks) >= DAMAGED_MAX:
            return False
        self.chunks[chunk_id] = Damaged(chunk_id, cs_id, s.now_ms, s.now_ms + FIRST_LOOK_MS, FIRST_LOOK_MS)
        return True

    def blocks(self, chunk_id: int, sources: list[int]) -> bool:
        """A copy could only be made from the damaged replica."""
        item = self.chunks.get(chunk_id)
        return item is not None and all(n == item.cs_id for n in sources)

    def shown(self) -> list[dict[str, int | str]]:
        """The first ones, for status."""
        return [
            {"chunk_id": d.chunk_id, "cs_id": d.cs_id, "path": d.path or "", "since_ms": d.since_ms}
            for d in list(self.chunks.values())[:SHOWN_MAX]
        ]  # fmt: skip

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, s: Step) -> None:
        """Tell what is new, forget what is over, read again what is due."""
        if not self.chunks:
            return
        self._tell(s)
        for item in list(self.chunks.values()):
            found = versions.locate(s, item.chunk_id)
            if found is None or item.cs_id not in found[2].replicas:
                self._forget(s, item)
            elif not item.order_id and s.core.servers.is_connected(item.cs_id) and s.now_ms >= self._due_ms(s, item):
                self._look(s, item)

    def _due_ms(self, s: Step, item: Damaged) -> int:
        """At once when another replica is back: what the look finds is repaired from it."""
        return 0 if self._others(s, item) else item.due_ms

    @staticmethod
    def _others(s: Step, item: Damaged) -> bool:
        found = versions.locate(s, item.chunk_id)
        return found is not None and any(r != item.cs_id and s.core.servers.is_active(r) for r in found[2].replicas)

    def _tell(self, s: Step) -> None:
        fresh: dict[int, list[Damaged]] = {}
        for item in self.chunks.values():
            found = versions.locate(s, item.chunk_id) if item.path is None else None
            if found is not None:
                fresh.setdefault(found[0], []).append(item)
        names = paths.names_of(s.state, set(fresh)) if fresh else {}
        for ino, items in fresh.items():
            for item in items:
                item.path = names.get(ino, f"inode {ino}")
                s.event(
                    "err",
                    f"CS#{item.cs_id}: chunk {item.chunk_id} of {item.path} has a damaged block and no other replica to repair it from: "
                    "bring back a server that has one, or restore the file from a backup",
                )

    def _look(self, s: Step, item: Damaged) -> None:
        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            item.order_id = 0
            if self.chunks.get(item.chunk_id) is not item:
                return
            if status == ErrorCode.OK and not value:
                step.event("info", f"CS#{server}: chunk {item.chunk_id} of {item.path} has no damaged block any more")
                self._forget(step, item)
            elif status == ErrorCode.OK and self._others(step, item):
                self._forget(step, item)  # the server has reported what it found, which is being repaired
            else:
                item.wait_ms = min(2 * item.wait_ms, LOOK_MS_MAX)
                item.due_ms = step.now_ms + item.wait_ms

        timeout = s.core.config.int("mds.repl.tout")
        item.order_id = s.core.orders.send(s, item.cs_id, OrderScrub(item.chunk_id), done, timeout)

    def _forget(self, s: Step, item: Damaged) -> None:
        if item.order_id:
            s.core.orders.cancel(item.order_id)
        del self.chunks[item.chunk_id]
        s.core.tracker.again(item.chunk_id)
