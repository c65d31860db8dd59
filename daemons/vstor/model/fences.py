"""What happens to a file whose writer vanished, before anybody else gets a lease of it.

DESIGN: each chunk the writer may have been writing gets a higher version at all its replicas (late writes are refused, R4), and then
all replicas are made equal to one of them (R2: readers must not see different data by asking different replicas). Which one does not
matter: what was flushed is on all. All of them are flushed, the one that the others were compared with too: nobody is left who would notice that
a power cut took from one what the others keep. Void chunks and those behind the end are removed: what was written to them was never reported, so it was
not flushed, and must not show when somebody makes the file longer.
Each version of a chunk has one round of orders. When it moves on, the rest of the round is forgotten and every replica gets a new order, which
also ends what it still does for the old one: nobody copies from a replica that has left the map, nor is asked twice.
The inode's `writer` is cleared when all is done; a new leader that finds a writer without a session starts again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.model import versions
from vstor.model.files import policy
from vstor.model.outcome import Outcome
from vstor.model.records import VOID, Chunk
from vstor.model.step import Step
from vstor.proto.messages import OrderReconcile

CHUNKS_AT_ONCE = 64  # of one file
RETRY_MS = 2_000


@dataclass(slots=True)
class Fence:
    """A file being fenced."""

    ino: int
    todo: deque[int]  # indexes not begun
    running: dict[int, dict[int, int]] = field(
        default_factory=dict
    )  # chunk id -> servers still to reconcile, with their orders (empty: version under way, or to be tried again)
    retry: dict[int, int] = field(default_factory=dict)  # chunk id -> when


class Fences:
    """All files being fenced."""

    def __init__(self) -> None:
        self.active: dict[int, Fence] = {}

    def start(self, s: Step, ino: int) -> None:
        """The writer of the file is gone."""
        if ino not in self.active and s.tx.peek(ino) is not None:
            self.active[ino] = Fence(ino, deque(s.core.maps.open_indexes(s, ino)))

    def cancel(self, ino: int, out: Outcome) -> None:
        """The file itself is gone."""
        fence = self.active.pop(ino, None)
        if fence is not None:
            out.wake.add(("fence", ino))

    def tick(self, s: Step) -> None:
        """Go on with every file, a bounded number of chunks at a time."""
        for fence in list(self.active.values()):
            inode = s.tx.peek(fence.ino)
            if inode is None:
                self.cancel(fence.ino, s.out)
                continue
            self._forget_deleted(s, fence)
            while fence.todo and len(fence.running) < CHUNKS_AT_ONCE:
                self._begin(s, fence, fence.todo.popleft())
            for chunk_id in [c for c, when in fence.retry.items() if when <= s.now_ms]:
                self._reconcile(s, fence, chunk_id)
            if not fence.todo and not fence.running:
                self._finish(s, fence)

    def _forget_deleted(self, s: Step, fence: Fence) -> None:
        for chunk_id in [c for c in fence.running if versions.locate(s, c) is None]:
            self._chunk_done(s, fence, chunk_id)

    def _begin(self, s: Step, fence: Fence, index: int) -> None:
        chunk = s.tx.chunk(fence.ino, index)
        if chunk is None:
            return
        s.core.recovery.abort(s, chunk.id)
        inode = s.tx.inode(fence.ino)
        if chunk.flags & VOID or index << policy(inode).chunk_shift >= inode.size:
            inode.used -= not chunk.flags & VOID
            s.tx.put_chunk(fence.ino, index, None)
            s.core.garbage.add(chunk.id, chunk.replicas)
            return
        fence.running[chunk.id] = {}
        s.core.versions.hold(chunk.id, "fence")
        active = tuple(r for r in chunk.replicas if s.core.servers.is_active(r))
        for cs_id in set(chunk.replicas) - set(active or chunk.replicas):
            s.core.recovery.note_stale(chunk.id, cs_id, 0, chunk.version)
        kept = chunk._replace(replicas=active or chunk.replicas)
        s.core.versions.start(s, fence.ino, index, kept, self._raised)

    def _raised(self, s: Step, chunk_id: int) -> None:
        found = versions.locate(s, chunk_id)
        fence = self.active.get(found[0]) if found is not None else None
        if fence is not None and chunk_id in fence.running:
            self._reconcile(s, fence, chunk_id)

    def _reconcile(self, s: Step, fence: Fence, chunk_id: int) -> None:
        found = versions.locate(s, chunk_id)
        if found is None or chunk_id not in fence.running:
            return
        self._end_round(s, fence, chunk_id)
        if chunk_id in s.core.versions.raising:  # for another reason: its end is not told here
            self._later(s, fence, chunk_id)
            return
        chunk = found[2]
        source = next((r for r in chunk.replicas if s.core.servers.is_connected(r)), None)
        if source is None and len(chunk.replicas) == 1:
            self._chunk_done(s, fence, chunk_id)
            return
        if source is None:
            self._later(s, fence, chunk_id)
            return
        for target in chunk.replicas:
            fence.running[chunk_id][target] = self._order(s, fence, chunk, source, target)

    @staticmethod
    def _end_round(s: Step, fence: Fence, chunk_id: int) -> None:
        """What the orders under way lead to does not matter any more."""
        for order_id in fence.running[chunk_id].values():
            s.core.orders.cancel(order_id)
        fence.running[chunk_id] = {}
        fence.retry.pop(chunk_id, None)

    @staticmethod
    def _later(s: Step, fence: Fence, chunk_id: int) -> None:
        fence.retry[chunk_id] = s.now_ms + RETRY_MS

    def _order(self, s: Step, fence: Fence, chunk: Chunk, source: int, target: int) -> int:
        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            # A source that cannot deliver is the damaged one, not who asked it.
            self._reconciled(step, fence, chunk, server, source if status == ErrorCode.CORRUPT else server, status)

        access = s.core.keyring.source(s, target, source, chunk, s.core.chunk_bytes(s, fence.ino))
        order = OrderReconcile(chunk.id, chunk.version, [access] if target != source else [])
        return s.core.orders.send(s, target, order, done, s.core.config.int("mds.repl.tout"))

    def _reconciled(self, s: Step, fence: Fence, chunk: Chunk, server: int, suspect: int, status: int) -> None:
        found = versions.locate(s, chunk.id)
        if self.active.get(fence.ino) is not fence or chunk.id not in fence.running or found is None:
            return
        if found[2].version != chunk.version:
            # Another raise came between (a replica was lost): once more, at the new version.
            self._end_round(s, fence, chunk.id)
            self._later(s, fence, chunk.id)
            return
        if status != ErrorCode.OK and len(found[2].replicas) > 1:
            # Not known to be equal: out of the map, with another version; the end of that raise reconciles the others again.
            self._end_round(s, fence, chunk.id)
            if not self._drop(s, found, suspect):
                self._later(s, fence, chunk.id)
            return
        del fence.running[chunk.id][server]
        if not fence.running[chunk.id]:
            self._chunk_done(s, fence, chunk.id)

    def _drop(self, s: Step, found: tuple[int, int, Chunk], server: int) -> bool:
        ino, index, chunk = found
        rest = tuple(r for r in chunk.replicas if r != server)
        if not any(s.core.servers.is_active(r) for r in rest):
            return False
        s.core.recovery.note_stale(chunk.id, server, 0, chunk.version)
        s.core.versions.start(s, ino, index, chunk._replace(replicas=rest), self._raised)
        return True

    def _chunk_done(self, s: Step, fence: Fence, chunk_id: int) -> None:
        self._end_round(s, fence, chunk_id)
        del fence.running[chunk_id]
        s.core.versions.free(s, chunk_id)

    def _finish(self, s: Step, fence: Fence) -> None:
        del self.active[fence.ino]
        s.tx.inode(fence.ino).writer = 0
        s.core.maps.stop_writing(fence.ino)
        s.out.wake.add(("fence", fence.ino))
        s.event("info", f"Inode {fence.ino} was fenced after its writer ended")
