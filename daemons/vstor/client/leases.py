"""Leases: acquiring them for requests that wait, giving them back when recalled, and what the kernel must hear before that.

DESIGN: order of a recall of data (EXCLUSIVE or SHARED to less):
1. while the lease still works, the kernel writes back and drops all pages of the file (it locks pages that are being read or written, so
   those requests have to be able to finish);
2. the engine's lease goes down: new requests park, DRAINED says that no old one runs;
3. pages that were filled between 1 and 2 (the engine remembers their ranges) are dropped as well;
4. what was acknowledged to us as the writer and is not on stable storage is synced: only while we are known as the writer does the MDS take a chunk
   server that restarts, and may have lost it, out of the maps; and a later fsync of ours covers it;
5. LeaseRelease, with size, mtime and first-written chunks when we were the writer.
An inode with writable handles here has EXCLUSIVE or no data lease, never SHARED: a write that waits for an upgrade holds locks on pages,
which a recall of SHARED would have to drop: two such clients would wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from vstor.client import engine_api as cl
from vstor.client.engine import Engine
from vstor.client.inodes import Inode, InodeTable
from vstor.client.kernel import KernelCache
from vstor.client.session import Session
from vstor.client.tasks import Tasks
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.messages import ATTR, CACHE, EXCLUSIVE, NONE, SHARED
from vstor.stamps import later

log = logging.getLogger(__name__)

RANK = {NONE: 0, CACHE: 1, SHARED: 2, EXCLUSIVE: 3}
LEASE_INDEX = 0xFFFFFFFF  # vst_file_fail: whatever is parked on the lease
DROP_ROUNDS_MAX = 3
LATE_PAGES_S_MAX = 0.2  # a page locked by a request that now waits for the lease is left to that request
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.02, 1.0
DIRTY_INDEXES_MAX = 4096
MAPS_ALL = 0xFFFFFFFF
KERNEL_NAMES_MAX = 500_000


def collect(inode: Inode) -> None:
    """Move what the engine noted since the last time into `inode.pending`, and show it: a write changes the times (stamps.py)."""
    while inode.file is not None:
        end, mtime_ns, written = inode.file.take_dirty(DIRTY_INDEXES_MAX)
        inode.pending.written.update(written)
        if mtime_ns:
            inode.pending.mtime_ns = later(mtime_ns, inode.attr.ctime_ns) if inode.attr is not None else mtime_ns
        if end and inode.attr is not None and end > inode.attr.size:
            inode.pending.grown = True
        if inode.attr is not None:
            if inode.ours:
                inode.attr.size = inode.file.size
            if mtime_ns:
                inode.attr.mtime_ns = inode.attr.ctime_ns = inode.pending.mtime_ns
        if len(written) < DIRTY_INDEXES_MAX:
            return


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping and neighbouring (start, end) as one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


class Leases:
    """Concurrency: one event loop. Pushes come in connection order."""

    def __init__(self, table: InodeTable, session: Session, engine: Engine, kernel: KernelCache, tasks: Tasks) -> None:
        self.table, self.session, self.engine, self.kernel, self.tasks = table, session, engine, kernel, tasks
        self.kernel_names: set[tuple[int, bytes]] = set()  # what the kernel may use without asking
        self.on_idle_invalid: Callable[[Inode], None] = lambda _inode: (
            None
        )  # an open file without handles: was it deleted?
        self.on_changed: Callable[[Inode], None] = lambda _inode: None  # attributes of an open file, by another client
        self.recalls = 0
        self.invalidations = 0

    # --- acquiring

    def sufficient(self, inode: Inode, mode: int) -> bool:
        """The lease is held and usable now."""
        return RANK[inode.lease] >= RANK[mode] and self.session.remaining_ms() > 0

    async def acquire(self, inode: Inode, mode: int) -> None:
        """Hold at least `mode`; waits for other clients. Raises VstorError of the MDS."""
        while not self.sufficient(inode, mode):
            await self.recall_finished(inode)
            async with inode.acquire_lock:
                if inode.recalling or self.sufficient(inode, mode):
                    continue
                reply = await self.session.call(m.LeaseAcquire(inode.ino, mode))
                # A reply that meets a recall may have been said before it; the recall's answer settles it, then we ask again.
                if not inode.recalling:
                    self.granted(inode, reply.mode, reply.attr)
                    return
        self.install(inode)

    def not_held(self, inode: Inode) -> None:
        """The MDS does not count us as the holder: what is under way waits until the lease is got again."""
        self.table.lower(inode, NONE)
        inode.ours = False
        inode.file.set_lease(0, 0)

    async def recall_finished(self, inode: Inode) -> None:
        while inode.recalling:
            assert inode.recall_done is not None
            await inode.recall_done.wait()

    def granted(self, inode: Inode, mode: int, attr: m.Attr) -> None:
        """The MDS gave us `mode`. Same loop step as the reply."""
        had = inode.lease
        if RANK[mode] > RANK[had]:
            inode.lease = mode
            inode.ours = mode == EXCLUSIVE
            inode.tenure += 1
            if inode.file is not None:
                inode.file.forget_maps(0, MAPS_ALL)
        if inode.file is not None and had != EXCLUSIVE:
            inode.file.set_size(attr.size)
        self.table.learn(attr)
        self.install(inode)

    def install(self, inode: Inode) -> None:
        """The engine works under the lease that is held."""
        if inode.file is not None and inode.lease in (SHARED, EXCLUSIVE):
            self.engine.raise_(inode.file, inode.lease)

    def need_lease(self, event: Any) -> None:
        """Requests are parked for want of a lease."""
        inode = self.table.get(event.ino)
        if inode is None or inode.file is None:
            return
        wanted = EXCLUSIVE if event.write or inode.writers else SHARED
        if inode.negotiating:
            inode.negotiating = wanted if RANK[wanted] > RANK[inode.negotiating] else inode.negotiating
            return
        inode.negotiating = wanted
        self.tasks.spawn(self._negotiate(inode), f"lease-{inode.ino}")

    async def _negotiate(self, inode: Inode) -> None:
        backoff_s = BACKOFF_S_MIN
        try:
            while True:
                mode = inode.negotiating
                try:
                    await self.acquire(inode, mode)
                    if inode.negotiating == mode:
                        return
                except VstorError as exc:
                    if not exc.retryable:
                        log.warning(
                            "no lease, requests fail ino=%s code=%s reason=%s", inode.ino, exc.code.name, exc.message
                        )
                        if inode.file is not None:
                            inode.file.fail(LEASE_INDEX, exc.errno)
                        return
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
        finally:
            inode.negotiating = NONE

    # --- pushes

    def push(self, body: m.PushBody) -> None:
        """One push, in order."""
        if isinstance(body, m.Recall):
            self.recalls += 1
            inode = self.table.need(body.ino)
            if not inode.recalling:
                inode.recall_done = asyncio.Event()
            inode.recalling += 1
            self.tasks.spawn(self._recall(inode, body), f"recall-{body.ino}")
        elif isinstance(body, m.Invalidate):
            self._invalidate(body)
        elif isinstance(body, m.MapChanged):
            changed = self.table.get(body.ino)
            if changed is not None and changed.file is not None:
                changed.file.forget_maps(body.index, body.count)

    async def _recall(self, inode: Inode, recall: m.Recall) -> None:
        try:
            async with inode.recall_lock:
                if recall.want == ATTR:
                    kept = inode.lease
                else:
                    kept = await self.give_up(inode, recall.want)
                await self.release(inode, recall.seq, kept)
        except VstorError as exc:
            if exc.code not in (ErrorCode.NO_SESSION, ErrorCode.SHUTTING_DOWN):
                log.warning("recall not answered ino=%s code=%s reason=%s", inode.ino, exc.code.name, exc.message)
        finally:
            inode.recalling -= 1
            if not inode.recalling and inode.recall_done is not None:
                inode.recall_done.set()

    async def release(self, inode: Inode, seq: int, kept: int) -> None:
        """Say to the MDS what is kept, and size, mtime and written chunks if we were the writer (`inode.pending` has them then)."""
        message = m.LeaseRelease(inode.ino, seq, kept)
        was_writer = inode.file is not None and (inode.ours or inode.pending.any)
        async with inode.commit_lock:
            if was_writer:
                collect(inode)
            with inode.tell() as told:
                if was_writer:
                    message.size, message.mtime_ns = inode.told_size, told.mtime_ns
                    message.written = sorted(told.written)
                try:
                    await self.session.call_bound(message)
                except VstorError as exc:
                    if exc.code == ErrorCode.NO_SESSION:
                        inode.not_told(told, message.size)
                    raise
            inode.size_told = max(inode.size_told, message.size)
            inode.ours = inode.ours and inode.lease == EXCLUSIVE
            if was_writer and inode.file is not None:
                inode.file.committed(0, 0)

    async def give_up(self, inode: Inode, want: int) -> int:
        """Bring the lease down to `want` or less; what is kept."""
        had = inode.lease
        target = want if RANK[want] < RANK[had] else had
        if target == had:
            return had
        if target == SHARED and inode.writers:
            target = CACHE
        if inode.file is not None and had in (SHARED, EXCLUSIVE):
            if target == SHARED:
                collect(inode)
                self.table.lower(inode, SHARED)
                await self.engine.lower(inode.file, SHARED)
                await self._sync(inode)
                self._note_written(inode)
                return SHARED
            await self._drop_data(inode, target)
        else:
            self.table.lower(inode, target)
        if target == NONE:
            if inode.is_dir:
                self.drop_kernel_names()
            await self.kernel.drop_attr(inode.ino, known=inode.nlookup > 0)
        return target

    def _note_written(self, inode: Inode) -> None:
        """We were the writer until a moment ago: our size is the right one, and release() is to tell it."""
        collect(inode)
        if inode.attr is not None:
            inode.attr.size = inode.file.size
        inode.pending.grown = True

    async def _drop_data(self, inode: Inode, target: int) -> None:
        file, had = inode.file, inode.lease
        for attempt in range(DROP_ROUNDS_MAX):
            file.take_touched()
            if inode.pages:
                await self.kernel.drop_pages(inode.ino)
            if inode.lease != had:  # the session was lost meanwhile
                break
            self.table.lower(inode, target)
            await self.engine.lower(file, target)
            late = file.take_touched()
            if late is not None or attempt + 1 == DROP_ROUNDS_MAX:
                break
            inode.lease = had
            self.install(inode)
        else:
            late = None
        if inode.pages:
            await self._drop_late_pages(inode.ino, [(0, 0)] if late is None else late)
        if had == EXCLUSIVE:
            await self._sync(inode)
            self._note_written(inode)
        file.forget_maps(0, MAPS_ALL)

    async def _sync(self, inode: Inode) -> None:
        """Nothing unsynced is left behind. What is lost already is said by the next fsync."""
        if not inode.file.unsynced():
            return
        try:
            await self.engine.io(inode.file, cl.IO_SYNC, 0, 0, None)
        except OSError as exc:
            log.error("acknowledged writes are lost, fsync says so ino=%s reason=%s", inode.ino, exc.strerror)
            inode.note_lost()

    async def _drop_late_pages(self, ino: int, ranges: list[tuple[int, int]]) -> None:
        """ranges: (start, end); end 0: to the end of the file."""
        drops = [
            self.tasks.spawn(self.kernel.drop_pages(ino, start, max(0, end - start), late=True), f"drop-{ino}")
            for start, end in merged(ranges)
        ]
        if drops:
            await asyncio.wait(drops, timeout=LATE_PAGES_S_MAX)

    # --- invalidation of attributes and names

    def _invalidate(self, body: m.Invalidate) -> None:
        self.invalidations += 1
        inode = self.table.get(body.ino)
        if inode is not None:
            self.table.invalidate(inode)
            if inode.lease == CACHE and not (inode.is_dir or body.names):
                inode.lease = NONE  # a directory keeps its other names, a file's CACHE ends with the answer
            if inode.handles:
                self.on_changed(inode)
            elif inode.opened:
                self.on_idle_invalid(inode)
        for name in body.names:
            self.table.drop_entry(body.ino, name)
        if any((body.ino, name) in self.kernel_names for name in body.names):
            self.drop_kernel_names()
        self.tasks.spawn(self._invalidated(body), f"invalidate-{body.ino}")

    async def _invalidated(self, body: m.Invalidate) -> None:
        inode = self.table.get(body.ino)
        if inode is not None:
            await self.kernel.drop_attr(body.ino, known=inode.nlookup > 0)
        await self.session.call(m.InvalidateDone(body.seq))

    def name_given(self, parent: int, name: bytes) -> None:
        """The kernel may use the name without asking from now on."""
        if len(self.kernel_names) >= KERNEL_NAMES_MAX:
            self.drop_kernel_names()
        self.kernel_names.add((parent, name))

    def drop_kernel_names(self) -> None:
        """All at once: that is rare, and each is asked for again when it is used."""
        self.kernel_names.clear()
        self.table.kept.new_epoch(self.kernel.names_cached)
        self.kernel.drop_names()

    # --- the session

    def lost(self) -> None:
        """All leases are gone. Requests park; the kernel drops everything we ever told it."""
        for inode in self.table.inodes.values():
            inode.opened = 0
            if inode.file is not None:
                collect(inode)
                if inode.untold_data or inode.file.unsynced():
                    name = self.table.describe(inode.ino)
                    log.error(
                        "what was not synced is lost with the session, fsync says so file=%s ino=%s", name, inode.ino
                    )
                    inode.note_lost()
                inode.pending, inode.telling = type(inode.pending)(), None
                inode.file.set_lease(0, 0)
                inode.file.drop_chunks(0)
        self.table.lose_all()
        self.drop_everything()

    def drop_everything(self) -> None:
        """The kernel's copies may be old: attributes, names, pages."""
        self.drop_kernel_names()
        for inode in list(self.table.inodes.values()):
            if inode.pages:
                self.tasks.spawn(self.kernel.drop_pages(inode.ino, late=True), f"drop-{inode.ino}")
            elif inode.nlookup:
                self.tasks.spawn(self.kernel.drop_attr(inode.ino, known=False), f"drop-attr-{inode.ino}")
