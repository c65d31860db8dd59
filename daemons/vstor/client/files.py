"""Open files: open, create, close, truncate, allocate; reads and writes of the library; commits from time to time.

DESIGN: the MDS counts one open for each inode and session, however many handles we have, and the lease stays after the last close until it
is recalled or too many idle files are kept: opening again costs no message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

from vstor.client import engine_api as cl
from vstor.client.datapath import DataPath
from vstor.client.engine import Engine
from vstor.client.inodes import Handle, Inode, InodeTable
from vstor.client.leases import RANK, Leases, collect
from vstor.client.session import Session
from vstor.client.tasks import Tasks
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.messages import CACHE, EXCLUSIVE, NONE, SHARED
from vstor.stamps import later

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 5.0
COMMIT_SOON_S = 0.05  # files that were closed meanwhile are committed together
PRIVILEGES = b"security.capability"
SIZE_MAX = (1 << 63) - 1
TRUNCATE_ATTEMPTS_MAX = 100
CLOSE_TOGETHER = 64
CHUNK_VOID = 1  # ChunkMap.flags
FLUSH_S_MAX = 60.0  # at the end
RELEASE_S_MAX = 5.0


def is_writable(flags: int) -> bool:
    """The access mode of open(2)'s flags allows writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY


class Files:
    """Concurrency: one event loop."""

    def __init__(
        self, table: InodeTable, session: Session, engine: Engine, leases: Leases, data: DataPath, tasks: Tasks
    ) -> None:
        self.table, self.session, self.engine, self.leases, self.data, self.tasks = (
            table,
            session,
            engine,
            leases,
            data,
            tasks,
        )
        self._closed: dict[int, Inode] = {}  # written, to be committed soon
        self._data_expected = True  # the last file that was made and closed had content
        leases.on_idle_invalid = self.let_go_if_deleted

    # --- opening

    async def open(self, ino: int, flags: int) -> tuple[Inode, Handle]:
        """A new handle. O_TRUNC is done by the MDS in the same step. Raises VstorError."""
        inode = self.table.need(ino)
        writable = is_writable(flags)
        handle = self.table.add_handle(
            inode, flags, writable
        )  # counts as a writer from now on, for recalls that come meanwhile
        try:
            await self.ensure_open(inode, EXCLUSIVE if inode.writers else SHARED, bool(flags & os.O_TRUNC))
        except BaseException:
            self.table.remove_handle(handle.fh)
            raise
        return inode, handle

    async def ensure_open(self, inode: Inode, mode: int, truncate: bool) -> None:
        while True:
            if inode.opened and not truncate and self.leases.sufficient(inode, mode):
                return
            await self.leases.recall_finished(inode)
            async with inode.acquire_lock:
                if inode.recalling or (inode.opened and not truncate and self.leases.sufficient(inode, mode)):
                    continue
                if truncate:
                    await self._writes_done(inode)
                    inode.resizing = 0
                try:
                    reply = await self.session.call(m.Open(inode.ino, mode, truncate))
                finally:
                    inode.resizing = None
                self.opened(inode, reply, truncate)
                return

    def opened(self, inode: Inode, reply: m.OpenReply, truncate: bool) -> None:
        """The MDS opened it for us. Same loop step as the reply."""
        inode.opened += 1
        if inode.file is None or inode.chunk_bytes != reply.chunk_bytes:
            inode.chunk_bytes = reply.chunk_bytes
            inode.file = self.engine.native.new_file(inode.ino, reply.chunk_bytes, reply.attr.size)
        if truncate:
            inode.file.drop_chunks(0)
            inode.file.set_size(0)
            inode.pending = type(inode.pending)()
        if inode.recalling:
            # Said before or after the recall? Its answer settles that; requests then ask for the lease again.
            self.table.learn(reply.attr)
            self.table.invalidate(inode)
            self.data.install_servers(reply.servers)
            return
        self.leases.granted(inode, reply.lease, reply.attr)
        self.data.install(inode, reply.chunks, reply.servers, for_write=reply.lease == EXCLUSIVE)

    async def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int) -> tuple[Inode, Handle]:
        """Make and open a regular file; without O_EXCL an existing one is opened."""
        exclusive = bool(flags & os.O_EXCL)
        first_chunk = is_writable(flags) and self._data_expected
        request = m.Create(
            parent,
            name,
            stat.S_IFREG | stat.S_IMODE(mode),
            uid,
            gid,
            exclusive=exclusive,
            open=True,
            first_chunk=first_chunk,
        )
        session, connection = self.session.sessions, self.session.connections
        reply = await self.session.call(request)
        sure = self.session.sessions == session  # else it may be of long ago (model/sessions.py)
        self.table.changed_dir(parent, reply.parent)
        inode = self.table.need(reply.attr.ino)
        handle = self.table.add_handle(inode, flags, is_writable(flags))
        handle.made = reply.created
        self.opened(inode, reply, False)
        if reply.created and inode.attr_valid and self.session.connections == connection:
            inode.xattrs[PRIVILEGES] = None  # the first write asks for it
        self.table.changed_entry(parent, name, inode.ino, sure=sure)
        if flags & os.O_TRUNC and not reply.created:
            await self.truncate(inode.ino, 0)
        return inode, handle

    # --- closing

    async def close(self, fh: int) -> Inode | None:
        """The handle is gone. What was written is committed soon; a deleted file is let go at once."""
        removed = self.table.remove_handle(fh)
        if removed is None:
            return None
        handle, inode = removed
        if handle.writable and inode.file is not None:
            if handle.made:
                self._data_expected = inode.file.size > 0
            self._commit_soon(inode)
        if not inode.handles:
            if not inode.attr_valid or inode.attr is None or inode.attr.nlink == 0:
                self.let_go_if_deleted(inode)
            for old in self.table.idle_surplus():
                self.tasks.spawn(self.let_go(old), f"close-{old.ino}")
        return inode

    def let_go_if_deleted(self, inode: Inode) -> None:
        """The MDS keeps a file without a name as long as we count as having it open."""
        self.tasks.spawn(self._let_go_if_deleted(inode), f"close-{inode.ino}")

    async def _let_go_if_deleted(self, inode: Inode) -> None:
        try:
            reply = await self.session.call(m.GetAttr(inode.ino))
            self.table.learn(reply.attr)
        except VstorError as exc:
            if exc.code != ErrorCode.BAD_HANDLE:
                raise
        else:
            if reply.attr.nlink:
                return
        await self.let_go(inode)

    def _commit_soon(self, inode: Inode) -> None:
        """One transaction for what is closed within a moment: closing promises nothing, fsync does."""
        if not self._closed:
            asyncio.get_running_loop().call_later(COMMIT_SOON_S, self._commit_closed)
        self._closed[inode.ino] = inode

    def _commit_closed(self) -> None:
        closed, self._closed = self._closed, {}
        for inode in closed.values():
            if inode.opened and self.data.uncommitted(inode):
                self.tasks.spawn(self._commit_one(inode), f"commit-{inode.ino}")

    async def _commit_one(self, inode: Inode) -> None:
        if inode.opened and (inode.attr is None or inode.attr.nlink):  # else there is nobody left to tell
            await self.data.commit(inode)

    async def let_go(self, inode: Inode) -> None:
        """Close at the MDS, give the lease back and free the engine's file. Nothing when it was opened again meanwhile."""
        async with inode.acquire_lock:
            if inode.handles or not inode.opened or inode.recalling:
                return
            self.table.idle.pop(inode.ino, None)
            async with inode.recall_lock:
                if inode.lease != NONE and inode.file is not None:
                    deleted = inode.attr is None or inode.attr.nlink == 0
                    kept = await self.leases.give_up(inode, NONE if deleted else CACHE)
                    await self.leases.release(inode, 0, kept)
                if inode.handles:
                    return
                opens, inode.opened = inode.opened, 0
                file, inode.file = inode.file, None
                for _ in range(opens):
                    await self.session.call(m.Close(inode.ino))
            if inode.attr is not None and inode.attr.nlink == 0 and not inode.opened:
                self.table.drop(inode)
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(None, file.close)

    async def unlink(self, inode: Inode, request: m.Unlink) -> m.Ok | None:
        """Remove the last name of a file that only the MDS counts as open here, and close it in the same step. None: nothing was done.

        Raises VstorError; then it is open as before.
        """
        if not self._idle_alone(inode):
            return None
        async with inode.acquire_lock:
            async with inode.recall_lock:
                if inode.lease in (SHARED, EXCLUSIVE):  # what was answered is on the replicas: others may have it open
                    await self.engine.lower(inode.file, NONE)
            if not self._idle_alone(inode):
                self.leases.install(inode)
                return None
            request.closes = inode.opened
            try:
                reply: m.Ok = await self.session.call(request)
            except BaseException:
                self.leases.install(inode)
                raise
            if not reply.closed:
                self.leases.install(inode)
                return reply
            self.table.idle.pop(inode.ino, None)
            self.table.lower(inode, NONE)
            inode.opened, inode.ours = 0, False
            self.tasks.spawn(self._free(inode), f"free-{inode.ino}")
        return reply

    async def _free(self, inode: Inode) -> None:
        """The engine's file of an inode that is closed, after the recalls that still work with it."""
        async with inode.recall_lock:
            if inode.opened or inode.handles:
                return
            file, inode.file, inode.pending = inode.file, None, type(inode.pending)()
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(None, file.close)

    def _idle_alone(self, inode: Inode) -> bool:
        """Open at the MDS without a handle, with one name as far as we know, and the MDS knows all of it."""
        idle = inode.opened > 0 and not inode.handles and not inode.recalling
        return idle and inode.attr is not None and inode.attr.nlink == 1 and not self.data.uncommitted(inode)

    # --- size

    async def truncate(
        self, ino: int, size: int, extra: m.SetAttr | None = None, *, grow_only: bool = False
    ) -> m.Attr | None:
        """Set the size, with other attributes of `extra` in the same step. grow_only: None when it has that size already.

        The tail of the last chunk is punched first: what lies beyond the end must be zeros when the file grows again.
        Durability: committed on return.
        """
        if not 0 <= size <= SIZE_MAX:
            raise VstorError(ErrorCode.TOO_BIG, f"size {size} is out of range")
        inode = self.table.need(ino)
        request = extra or m.SetAttr(ino, 0)
        request.mask |= m.SET_SIZE
        request.size = size
        handle = self.table.add_handle(inode, os.O_WRONLY, True)  # keeps it open, and a writer for recalls
        try:
            for _ in range(TRUNCATE_ATTEMPTS_MAX):
                await self.ensure_open(inode, EXCLUSIVE, False)
                if inode.file is None:  # let go in between
                    continue
                if grow_only and inode.file.size >= size:  # only now it is sure what size it has
                    return None
                await self._writes_done(inode)
                await self._punch_tail(inode, size)
                inode.resizing = size
                try:
                    reply = await self.session.call(request)
                except VstorError as exc:
                    if exc.code not in (ErrorCode.LEASE_CONFLICT, ErrorCode.LEASE_LOST):
                        raise
                    if not inode.recalling:
                        self.leases.not_held(inode)
                    continue
                finally:
                    inode.resizing = None
                self._resized(inode, size, reply.attr, timed=bool(request.mask & m.SET_MTIME))
                return inode.attr or reply.attr
            raise VstorError(ErrorCode.LEASE_CONFLICT, f"inode {ino} is taken away by other clients again and again")
        finally:
            await self.close(handle.fh)

    async def _writes_done(self, inode: Inode) -> None:
        """Writes that were answered already (cl_behind.c) must not arrive in what is made anew after a truncation."""
        if inode.file is not None:
            await self.engine.io(inode.file, cl.IO_FLUSH, 0, 0, None)

    async def _punch_tail(self, inode: Inode, size: int) -> None:
        """Clear what lies behind the new end in its chunk, or, of a file that grows, behind the old end (a writer that died left it)."""
        start, end = sorted((size, inode.file.size))
        end = min(end, -(-start // inode.chunk_bytes) * inode.chunk_bytes)
        if start < end:
            try:
                await self.engine.io(inode.file, cl.IO_PUNCH, start, end - start, None, cl.IO_TAIL)
            except OSError as exc:
                raise VstorError(
                    ErrorCode.IO_ERROR, f"cannot clear the tail of inode {inode.ino}: {exc.strerror}"
                ) from exc

    def _resized(self, inode: Inode, size: int, attr: m.Attr, *, timed: bool) -> None:
        """timed: with a time that the caller chose."""
        collect(inode)
        before = inode.attr.ctime_ns if inode.attr is not None else 0
        first_gone = -(-size // inode.chunk_bytes)
        inode.pending.written = {i for i in inode.pending.written if i < first_gone}
        inode.file.set_size(size)
        inode.file.drop_chunks(first_gone)
        # The MDS set the times, knowing nothing of writes that were not committed: they were before.
        inode.pending.mtime_ns = 0 if timed or attr.ctime_ns > before else later(attr.ctime_ns, before)
        self.table.learn(attr)

    async def punch(self, ino: int, offset: int, length: int) -> None:
        """Make a range of an open file a hole. Raises OSError."""
        if length > 0:  # what lies behind the end is left out by the engine, which knows the size
            await self.engine.io(self.table.need(ino).file, cl.IO_PUNCH, offset, length, None)

    async def seek(self, ino: int, offset: int, *, data: bool) -> int | None:
        """The next data, or the next hole, of an open file at offset or behind it; None when there is none.

        By whole chunks: one that nobody has written is a hole, and what lies behind the end. Raises VstorError.
        """
        inode = self.table.need(ino)
        await self._writes_done(inode)
        index = offset // inode.chunk_bytes
        while True:
            await self.leases.acquire(inode, EXCLUSIVE if inode.writers else SHARED)
            collect(inode)
            size = inode.file.size
            if offset >= size or (data and index * inode.chunk_bytes >= size):
                return None
            if index * inode.chunk_bytes >= size:
                return int(size)
            try:
                reply = await self.session.call(m.GetMap(ino, index, m.MAP_CHUNKS_MAX, False))
            except VstorError as exc:
                if exc.code != ErrorCode.LEASE_LOST:
                    raise
                if not inode.recalling:
                    self.leases.not_held(inode)
                continue
            for chunk in reply.chunks:
                if chunk.index * inode.chunk_bytes < size and self._is_written(inode, chunk) == data:
                    return int(max(offset, chunk.index * inode.chunk_bytes))
            index += len(reply.chunks)

    def _is_written(self, inode: Inode, chunk: m.ChunkMap) -> bool:
        told = inode.telling.written if inode.telling is not None else ()
        return (
            bool(chunk.replicas and not chunk.flags & CHUNK_VOID)
            or chunk.index in inode.pending.written
            or chunk.index in told
        )

    # --- data, for the library

    async def read(self, ino: int, offset: int, buf: Any) -> int:
        """Fill buf; bytes read, short at the end of the file. Raises OSError."""
        return await self.engine.io(self.table.need(ino).file, cl.IO_READ, offset, len(buf), buf)

    async def write(self, ino: int, offset: int, buf: Any, flags: int = 0) -> int:
        """flags: cl.IO_DURABLE, cl.IO_APPEND. Raises OSError."""
        return await self.engine.io(self.table.need(ino).file, cl.IO_WRITE, offset, len(buf), buf, flags)

    async def sync(self, ino: int) -> None:
        """Everything acknowledged before is on stable storage, with size and map (R1). Raises OSError."""
        inode = self.table.need(ino)
        if inode.file is not None:
            await self.engine.io(inode.file, cl.IO_SYNC, 0, 0, None)

    # --- from time to time

    async def commit_forever(self) -> None:
        """Size and mtime of files being written reach the MDS without fsync, too."""
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self.commit_all()

    async def commit_all(self) -> None:
        """One pass over all files we write."""
        for inode in [i for i in self.table.inodes.values() if i.file is not None and RANK[i.lease] >= RANK[EXCLUSIVE]]:
            try:
                await self.data.commit(inode)
            except VstorError as exc:
                log.warning(
                    "commit failed, tried again ino=%s code=%s reason=%s", inode.ino, exc.code.name, exc.message
                )

    async def close_all(self, flush_s: float = FLUSH_S_MAX) -> None:
        """Before the session is closed: everything acknowledged is synced and committed, and the write leases are given back.

        A lease that ended with the session instead would make the MDS compare the replicas of the file.  A cluster that does not
        answer is waited for, flush_s and RELEASE_S_MAX at most: what may be lost then is said in the log, file by file.
        """
        inodes = [i for i in self.table.inodes.values() if i.file is not None and i.lease == EXCLUSIVE]
        for inode in inodes:
            inode.pages = False  # nobody reads the kernel's cache any more
            collect(inode)
        dirty = [i for i in inodes if i.pending.any or i.telling is not None or i.file.unsynced()]
        await self._each(dirty, self._flush_last, flush_s, "not flushed, what was not synced may be lost")
        await self._each(inodes, self._release_last, RELEASE_S_MAX, "write lease not given back")

    async def _each(
        self, inodes: list[Inode], work: Callable[[Inode], Awaitable[None]], limit_s: float, failure: str
    ) -> None:
        left = dict.fromkeys(inodes)

        def complain(inode: Inode, reason: object) -> None:
            log.error("%s file=%s ino=%s reason=%s", failure, self.table.describe(inode.ino), inode.ino, reason)

        async def one(inode: Inode) -> None:
            try:
                await work(inode)
            except (VstorError, OSError) as exc:
                complain(inode, exc)
            del left[inode]

        try:
            async with asyncio.timeout(limit_s):
                for start in range(0, len(inodes), CLOSE_TOGETHER):
                    await asyncio.gather(*map(one, inodes[start : start + CLOSE_TOGETHER]))
        except TimeoutError:
            for inode in left:
                complain(inode, "no answer of the cluster")

    async def _flush_last(self, inode: Inode) -> None:
        if inode.file is None:
            return  # closed since it was listed, and synced by that
        await self.engine.io(inode.file, cl.IO_SYNC, 0, 0, None)
        await self.data.commit(inode)

    async def _release_last(self, inode: Inode) -> None:
        async with inode.recall_lock:
            if inode.lease == EXCLUSIVE:
                await self.leases.release(inode, 0, await self.leases.give_up(inode, NONE))
