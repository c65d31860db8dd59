"""What the engine asks for: chunk maps, access to chunk servers, new maps after failures, commits.

DESIGN: one task for each thing asked; each retries as long as the error is retryable (R10: an outage freezes, it does not fail), and only
the requests parked on that chunk wait (P6).  What is final ends them with vst_file_fail.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

from vstor.client import engine_api as cl
from vstor.client.engine import Engine
from vstor.client.inodes import Inode, InodeTable
from vstor.client.leases import Leases, collect
from vstor.client.session import Session
from vstor.client.tasks import Tasks
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.messages import EXCLUSIVE

log = logging.getLogger(__name__)

READ_AHEAD_CHUNKS = 16  # maps fetched at once for reading
WRITE_AHEAD_CHUNKS = 2  # allocated at once, from the second chunk on
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 2.0
BAD_BLOCKS_IN_FLIGHT_MAX = 64


class DataPath:
    """Handlers of engine events that need the MDS. Concurrency: one event loop."""

    def __init__(
        self,
        table: InodeTable,
        session: Session,
        engine: Engine,
        leases: Leases,
        tasks: Tasks,
        *,
        wait_for_space: bool = True,
    ) -> None:
        """wait_for_space: a full cluster makes writers wait; else they get ENOSPC (R11)."""
        self.table, self.session, self.engine, self.leases, self.tasks = table, session, engine, leases, tasks
        self.wait_for_space = wait_for_space
        self._bad_blocks = 0
        self._asked_cs: set[int] = set()
        self.replica_failures = 0
        self.bad_blocks = 0
        engine.on[cl.EV_NEED_MAP] = self._need_map
        engine.on[cl.EV_NEED_LEASE] = leases.need_lease
        engine.on[cl.EV_NEED_CS] = self._need_cs
        engine.on[cl.EV_REPLICA_FAILED] = self._replica_failed
        engine.on[cl.EV_BAD_BLOCK] = self._bad_block
        engine.on[cl.EV_COMMIT] = self._commit_wanted
        engine.on[cl.EV_APPEND_MOVED] = self._append_moved

    # --- maps

    def install(self, inode: Inode, chunks: list[m.ChunkMap], servers: list[m.CsAccess], *, for_write: bool) -> None:
        """Give maps and server access to the engine."""
        self.install_servers(servers)
        if inode.file is None:
            return
        for chunk in chunks:
            inode.file.set_chunk(
                chunk.index, chunk.chunk_id, chunk.version, chunk.flags, for_write, chunk.replicas, chunk.ticket
            )  # fmt: skip

    def install_servers(self, servers: list[m.CsAccess]) -> None:
        """A unix address is good on the chunk server's own host only, and the best there."""
        for server in servers:
            local = server.host_id == self.session.host_id
            unix = [a for a in server.addresses if a.startswith("unix:")] if local else []
            addresses = unix + [a for a in server.addresses if not a.startswith("unix:")]
            self.engine.native.set_cs(server.cs_id, addresses, self.session.id, server.expiry_ms, server.key)

    def _need_map(self, event: Any) -> None:
        inode = self.table.get(event.ino)
        if inode is not None and inode.file is not None:
            self.tasks.spawn(self._fetch_map(inode, event.index, bool(event.write)), f"map-{inode.ino}-{event.index}")

    async def _fetch_map(self, inode: Inode, index: int, write: bool) -> None:
        count = self._window(inode, index, write)

        async def fetch() -> bool:
            tenure = inode.tenure
            reply = await self.session.call(m.GetMap(inode.ino, index, count, write))
            if inode.tenure == tenure:
                self.install(inode, reply.chunks, reply.servers, for_write=write)
            return inode.tenure == tenure

        await self._until_done(inode, index, fetch, "map", write=write)

    def _window(self, inode: Inode, index: int, write: bool) -> int:
        chunks = -(-inode.file.size // inode.chunk_bytes) if inode.chunk_bytes else 0
        if write:
            return 1 if index == 0 else WRITE_AHEAD_CHUNKS
        return max(1, min(READ_AHEAD_CHUNKS, chunks - index))

    async def _until_done(self, inode: Inode, index: int, work: Any, what: str, *, write: bool) -> None:
        """Retry while that can help, and when `work` says False (asked under an earlier grant); end what is parked on the chunk when it cannot."""
        backoff_s = BACKOFF_S_MIN
        while True:
            try:
                if await work():
                    return
                continue
            except VstorError as exc:
                if inode.file is None:
                    return
                if exc.code in (ErrorCode.LEASE_LOST, ErrorCode.LEASE_CONFLICT):
                    # The MDS no longer counts us as the holder: what is under way parks on the lease (a recall may be waiting for it to end),
                    # we get the lease again, and ask again under it.  A sync waits for the map only, so nobody else asks for the lease.
                    self.leases.not_held(inode)
                    if not inode.recalling:
                        await self._acquire_again(inode, write)
                        continue
                elif not exc.retryable or (exc.code == ErrorCode.NO_SPACE and not self.wait_for_space):
                    log.warning(
                        "%s failed ino=%s chunk=%s code=%s reason=%s",
                        what,
                        inode.ino,
                        index,
                        exc.code.name,
                        exc.message,
                    )
                    inode.file.fail(index, exc.errno)
                    return
                else:
                    log.info(
                        "%s waits ino=%s chunk=%s code=%s reason=%s", what, inode.ino, index, exc.code.name, exc.message
                    )
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    async def _acquire_again(self, inode: Inode, write: bool) -> None:
        """write: also without a writable handle left, for a sync of what was written through one."""
        try:
            await self.leases.acquire(inode, EXCLUSIVE if write or inode.writers else m.SHARED)
        except VstorError as exc:
            if not exc.retryable:
                raise
            await asyncio.sleep(BACKOFF_S_MIN)

    def _replica_failed(self, event: Any) -> None:
        self.replica_failures += 1
        inode = self.table.get(event.ino)
        if inode is None or inode.file is None:
            return
        log.warning(
            "replica does not take a write ino=%s index=%s chunk=%x version=%s cs=%s error=%s",
            event.ino, event.index, event.chunk_id, event.version, event.cs_id, event.error,
        )  # fmt: skip
        report = m.ReplicaFailed(event.ino, event.index, event.chunk_id, event.version, event.cs_id, event.error)

        async def tell() -> bool:
            tenure = inode.tenure
            try:
                reply = await self.session.call(report)
            except VstorError as exc:
                if exc.code != ErrorCode.STALE:
                    raise
                reply = await self.session.call(m.GetMap(event.ino, event.index, 1, True))  # it is another chunk by now
            if inode.tenure == tenure:
                self.install(inode, reply.chunks, reply.servers, for_write=True)
            return inode.tenure == tenure

        self.tasks.spawn(
            self._until_done(inode, event.index, tell, "new map", write=True), f"failed-{event.ino}-{event.index}"
        )

    # --- servers

    def _need_cs(self, event: Any) -> None:
        if event.cs_id not in self._asked_cs:
            self._asked_cs.add(event.cs_id)
            self.tasks.spawn(self._fetch_cs(event.cs_id), f"cs-{event.cs_id}")

    async def _fetch_cs(self, cs_id: int) -> None:
        backoff_s = BACKOFF_S_MIN
        try:
            while True:
                try:
                    reply = await self.session.call(m.GetCsAccess([cs_id]))
                    self.install_servers(reply.servers)
                    if reply.servers:
                        return
                except VstorError as exc:
                    log.info("no access to a chunk server cs=%s code=%s reason=%s", cs_id, exc.code.name, exc.message)
                    if not exc.retryable:
                        return
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
        finally:
            self._asked_cs.discard(cs_id)

    def _bad_block(self, event: Any) -> None:
        self.bad_blocks += 1
        log.warning(
            "damaged block, read elsewhere ino=%s chunk=%x cs=%s offset=%s",
            event.ino,
            event.chunk_id,
            event.cs_id,
            event.offset,
        )
        if self._bad_blocks < BAD_BLOCKS_IN_FLIGHT_MAX:  # the scrubber finds what is not reported
            self._bad_blocks += 1
            report = m.BadBlock(event.chunk_id, event.version, event.cs_id, event.offset)
            self.tasks.spawn(self._report_bad(report), f"bad-{event.chunk_id:x}")

    async def _report_bad(self, report: m.BadBlock) -> None:
        try:
            await self.session.call(report)
        finally:
            self._bad_blocks -= 1

    # --- commits

    def _commit_wanted(self, event: Any) -> None:
        inode = self.table.get(event.ino)
        if inode is not None and inode.file is not None:
            self.tasks.spawn(self._commit_for(inode, event.cookie), f"commit-{inode.ino}")

    async def _commit_for(self, inode: Inode, cookie: int) -> None:
        """A sync waits in the engine: commit, then let it finish."""
        error = 0
        try:
            await self.commit(inode)
        except VstorError as exc:
            log.error("commit failed, fsync says so ino=%s code=%s reason=%s", inode.ino, exc.code.name, exc.message)
            error = exc.errno or errno.EIO
        if inode.file is not None:
            inode.file.committed(cookie, error)

    def uncommitted(self, inode: Inode) -> bool:
        """There is something to tell the MDS."""
        collect(inode)
        return inode.pending.any or inode.telling is not None

    async def commit(self, inode: Inode) -> None:
        """Size, mtime and first-written chunks of a file we write are committed at the MDS on return. Raises VstorError."""
        async with inode.commit_lock:
            collect(inode)
            if not inode.pending.any or inode.file is None or inode.attr is None:
                return
            session = self.session.sessions
            try:
                with inode.tell() as told:
                    message = m.Commit(inode.ino, inode.told_size, told.mtime_ns, sorted(told.written))
                    await self.session.call_bound(message)
                inode.size_told = max(inode.size_told, message.size)
            except BaseException as exc:
                if self.session.sessions != session or (
                    isinstance(exc, VstorError) and exc.code == ErrorCode.NO_SESSION
                ):
                    inode.not_told(told, message.size)
                raise
            inode.file.committed(0, 0)

    def _append_moved(self, event: Any) -> None:
        """The kernel cached an append at the place it believed in; the data is elsewhere."""
        self.tasks.spawn(
            self.leases.kernel.drop_pages(event.ino, event.offset, max(1, event.result), late=True), f"drop-{event.ino}"
        )
