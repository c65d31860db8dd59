"""Kernel requests on open files and directories: open, create, release, locks, allocation, reading directories."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from dataclasses import dataclass, field

from vstor.client import engine_api as cl
from vstor.client import fuseproto as fp
from vstor.client.inodes import Handle, Inode
from vstor.client.locks import END, UNLCK
from vstor.client.operations import Errno, Operations, entries_with_dots
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m

log = logging.getLogger(__name__)

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # fallocate(2)
DIR_PAGE_ENTRIES = 1024
SEEK_DATA, SEEK_HOLE = 3, 4


@dataclass(slots=True)
class DirHandle:
    """An open directory: the page last read, so that one page of the MDS serves many small reads of the kernel."""

    ino: int
    page: list[m.DirEntry] = field(default_factory=list)
    start: int = -1  # the page holds what follows this cookie
    eof: bool = False
    parent: int = 0


class FileOperations(Operations):
    """The whole table."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.dirs: dict[int, DirHandle] = {}
        self._next_dir = 1
        self.volume.on_posix_lock = self._flush_to_us
        self.volume.leases.on_changed = self.rebind
        self.handlers.update(
            {
                fp.Op.OPEN: self.open,
                fp.Op.CREATE: self.create,
                fp.Op.RELEASE: self.release,
                fp.Op.FLUSH: self.flush,
                fp.Op.FSYNC: self.fsync,
                fp.Op.FSYNCDIR: self.nothing,
                fp.Op.SYNCFS: self.syncfs,
                fp.Op.WRITE: self.write,
                fp.Op.OPENDIR: self.opendir,
                fp.Op.READDIR: self.readdir,
                fp.Op.READDIRPLUS: self.readdirplus,
                fp.Op.RELEASEDIR: self.releasedir,
                fp.Op.GETLK: self.getlk,
                fp.Op.SETLK: self.setlk,
                fp.Op.SETLKW: self.setlkw,
                fp.Op.FALLOCATE: self.fallocate,
                fp.Op.LSEEK: self.lseek,
                fp.Op.IOCTL: self.ioctl,
            }
        )

    # --- open and close

    async def open(self, request: fp.FuseRequest) -> bytes:
        flags, open_flags = fp.OPEN_IN.unpack_from(request.body)
        if open_flags & fp.OPEN_KILL_SUIDGID:
            await self._drop_suid(request.nodeid)
        inode, handle = await self.files.open(request.nodeid, flags)
        return self._opened(inode, handle)

    async def create(self, request: fp.FuseRequest) -> bytes:
        flags, mode, _umask, _ = fp.CREATE_IN.unpack_from(request.body)
        name = fp.cstring(request.body, fp.CREATE_IN.size)
        inode, handle = await self.names.create(request.nodeid, name, mode, request.uid, request.gid, flags)
        return self.entry(request.nodeid, name, inode) + self._opened(inode, handle)

    def _opened(self, inode: Inode, handle: Handle) -> bytes:
        """Bind the handle to the engine and choose how the kernel caches.

        FOPEN_DIRECT_IO handles write past the page cache without the kernel's telling it (older Linux), so they and buffered
        handles exclude each other: O_DIRECT beside buffered handles goes the kernel's slower, coherent way, and a buffered open beside
        direct writers gets no cache. Pages that are there are valid (recalls drop them), so they are kept otherwise.
        O_APPEND goes direct, too: from the page cache a write across a page comes in two requests, and the writes of other clients in between.
        """
        others = [h for h in inode.handles.values() if h is not handle]
        coherent = self.volume.kernel.direct_writes_drop_pages
        if handle.flags & os.O_DIRECT:
            handle.direct = not any(not h.direct for h in others)
        elif handle.appends:
            handle.direct = coherent or not any(not h.direct for h in others)
        else:
            handle.direct = any(h.direct and h.writable and not (coherent and h.appends) for h in others)
        if handle.direct:
            flags = fp.FOPEN_DIRECT_IO | fp.FOPEN_PARALLEL_DIRECT_WRITES
        else:
            inode.pages = True
            flags = fp.FOPEN_KEEP_CACHE
        self._bind(inode, handle)
        return fp.open_out(handle.fh, flags)

    def _bind(self, inode: Inode, handle: Handle) -> None:
        flags = cl.BIND_WRITABLE if handle.writable else 0
        flags |= cl.BIND_APPEND if handle.flags & os.O_APPEND else 0
        flags |= cl.BIND_SYNC if handle.flags & (os.O_SYNC | os.O_DSYNC) else 0
        if inode.attr is None or not inode.attr_valid or inode.attr.mode & (stat.S_ISUID | stat.S_ISGID):
            flags |= cl.BIND_KILL_SUIDGID  # there may be such bits: writes of others than root come to Python
        if self.volume.locks.book.any_posix(inode.ino):
            flags |= cl.BIND_FLUSH
        flags |= cl.BIND_DIRECT if handle.direct else 0
        if flags == handle.bound:
            return
        result = self.volume.engine.native.fuse_bind(handle.fh, inode.file, flags)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        handle.bound = flags

    def _flush_to_us(self, ino: int) -> None:
        """close(2) drops POSIX locks (fcntl(2)): from the first lock on, FLUSH has to come to Python."""
        self.rebind(self.table.need(ino))

    def rebind(self, inode: Inode) -> None:
        for handle in inode.handles.values():
            if handle.bound is not None and inode.file is not None:
                self._bind(inode, handle)

    async def release(self, request: fp.FuseRequest) -> bytes:
        fh, _flags, release_flags, owner = fp.RELEASE_IN.unpack_from(request.body)
        self.volume.engine.native.fuse_unbind(fh)
        if release_flags & fp.RELEASE_FLOCK_UNLOCK:
            await self.volume.locks.drop_owner(request.nodeid, owner, flock=True)
        await self.files.close(fh)
        return b""

    async def flush(self, request: fp.FuseRequest) -> bytes:
        _fh, _, _, owner = fp.FLUSH_IN.unpack_from(request.body)
        await self.volume.locks.drop_owner(request.nodeid, owner, flock=False)
        return b""

    async def fsync(self, request: fp.FuseRequest) -> bytes:
        await self.files.sync(request.nodeid)
        return b""

    async def syncfs(self, _request: fp.FuseRequest) -> bytes:
        for inode in [i for i in self.table.inodes.values() if i.file is not None and i.lease == m.EXCLUSIVE]:
            await self.files.sync(inode.ino)
        return b""

    async def write(self, request: fp.FuseRequest) -> bytes:
        """A write by somebody without CAP_FSETID to a file with suid or sgid bits: they go first."""
        _fh, offset, size, _write_flags, _owner, flags, _ = fp.WRITE_IN.unpack_from(request.body)
        inode = await self._drop_suid(request.nodeid)
        data = bytearray(request.body[fp.WRITE_IN.size : fp.WRITE_IN.size + size])
        durable = cl.IO_DURABLE if flags & (os.O_SYNC | os.O_DSYNC) else 0
        append = cl.IO_APPEND if flags & os.O_APPEND else 0
        written = await self.files.write(inode.ino, offset, data, durable | append)
        return fp.WRITE_OUT.pack(written, 0)

    async def _drop_suid(self, ino: int) -> Inode:
        """Somebody without CAP_FSETID changes the content."""
        inode = await self.names.getattr(ino)
        if inode.attr is not None and inode.attr.mode & (stat.S_ISUID | stat.S_ISGID):
            inode = await self.names.setattr(m.SetAttr(ino, m.DROP_SUID))
        self.rebind(inode)
        return inode

    # --- directories

    async def opendir(self, request: fp.FuseRequest) -> bytes:
        fh = self._next_dir
        self._next_dir += 1
        self.dirs[fh] = DirHandle(request.nodeid)
        return fp.open_out(fh, 0)

    async def releasedir(self, request: fp.FuseRequest) -> bytes:
        self.dirs.pop(fp.RELEASE_IN.unpack_from(request.body)[0], None)
        return b""

    async def readdir(self, request: fp.FuseRequest) -> bytes:
        return await self._read_dir(request, False)

    async def readdirplus(self, request: fp.FuseRequest) -> bytes:
        return await self._read_dir(request, True)

    async def _read_dir(self, request: fp.FuseRequest, plus: bool) -> bytes:
        fh, offset, size, *_ = fp.READ_IN.unpack_from(request.body)
        handle = self.dirs.get(fh)
        if handle is None:
            raise VstorError(ErrorCode.BAD_HANDLE)
        out = bytearray()
        while True:
            remaining = await self._page(handle, offset, plus)
            for entry in entries_with_dots(remaining, handle.ino, handle.parent, offset):
                record = self._record(handle.ino, entry, plus)
                if len(out) + len(record) > size:
                    return bytes(out)
                out += record
                offset = entry.cookie
                if plus and self._with_attr(entry):
                    inode = self.table.need(entry.ino)
                    self.table.looked_up(inode)
                    self.keep(handle.ino, entry.name, inode, record)
            if handle.eof:
                return bytes(out)

    async def _page(self, handle: DirHandle, offset: int, plus: bool) -> list[m.DirEntry]:
        """Entries after offset; a new page when the one at hand has none, or when reading begins again."""
        after = offset if offset > 2 else 0
        if offset > 2 and handle.start >= 0 and after >= handle.start:
            rest = (
                [e for e in handle.page if e.cookie > after] if handle.page and handle.page[-1].cookie > after else []
            )
            if rest or handle.eof:
                return rest
        reply = await self.names.read_dir(handle.ino, after, DIR_PAGE_ENTRIES, plus=plus)
        handle.page, handle.start, handle.eof, handle.parent = reply.entries, after, reply.eof, reply.parent
        return handle.page

    def _record(self, parent: int, entry: m.DirEntry, plus: bool) -> bytes:
        if not plus:
            return fp.dirent(entry.ino, entry.cookie, entry.type, entry.name)
        head = bytes(fp.ENTRY_OUT_BYTES)
        if self._with_attr(entry):
            inode = self.table.need(entry.ino)
            # No validity of the name: the kernel stamps it with the epoch in which it reads this, not with that of its question.
            head = fp.entry_out(self.shown(inode), 0, self.attr_valid_ms(inode))
        return fp.direntplus(head, entry.ino, entry.cookie, entry.type, entry.name)

    def _with_attr(self, entry: m.DirEntry) -> bool:
        """Attributes that are not valid (another client writes the file) could be older than what the kernel has."""
        return entry.attr is not None and self.names.cached(self.table.get(entry.ino))

    # --- locks

    def _lock(self, request: fp.FuseRequest) -> m.LockRange:
        _fh, owner, start, end, type_, pid, flags, _ = fp.LK_IN.unpack_from(request.body)
        return m.LockRange(request.nodeid, owner, type_, start, min(end, END), pid, bool(flags & fp.LK_FLOCK))

    async def getlk(self, request: fp.FuseRequest) -> bytes:
        found = await self.volume.locks.get(self._lock(request))
        return fp.lk_out(found.start, found.end, found.type, found.pid if found.type != UNLCK else 0)

    async def setlk(self, request: fp.FuseRequest) -> bytes:
        await self.volume.locks.set(self._lock(request), wait=False)
        return b""

    async def setlkw(self, request: fp.FuseRequest) -> bytes:
        interrupted = self.interrupts[request.unique] = asyncio.Event()
        try:
            await self.volume.locks.set(self._lock(request), wait=True, interrupted=interrupted)
        except VstorError as exc:
            if interrupted.is_set() and exc.code == ErrorCode.WOULD_BLOCK:
                raise Errno(errno.EINTR) from exc
            raise
        finally:
            del self.interrupts[request.unique]
        return b""

    # --- the rest

    async def fallocate(self, request: fp.FuseRequest) -> bytes:
        """Space is allocated when it is written; so plain allocation only sets the size, which is what can be promised."""
        _fh, offset, length, mode, _ = fp.FALLOCATE_IN.unpack_from(request.body)
        if length <= 0 or offset + length > END:
            raise Errno(errno.EFBIG if length > 0 else errno.EINVAL)
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) or (mode & PUNCH_HOLE and not mode & KEEP_SIZE):
            raise Errno(errno.EOPNOTSUPP)
        if request.uid:  # the kernel does not say who may keep the bits here
            await self._drop_suid(request.nodeid)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            await self.files.punch(request.nodeid, offset, length)
        if not mode & KEEP_SIZE and await self.files.truncate(request.nodeid, offset + length, grow_only=True):
            return b""
        if not mode & (PUNCH_HOLE | ZERO_RANGE):  # as local file systems do
            await self.names.setattr(m.SetAttr(request.nodeid, m.SET_MTIME, mtime_ns=m.TIME_NOW))
        return b""

    async def setattr(self, request: fp.FuseRequest) -> bytes:
        body = await super().setattr(request)
        self.rebind(self.table.need(request.nodeid))
        return body

    async def lseek(self, request: fp.FuseRequest) -> bytes:
        """Of files of several chunks; the engine answers for those of one, which are data as a whole (lseek(2) allows that)."""
        _fh, offset, whence, _ = fp.LSEEK_IN.unpack_from(request.body)
        if whence not in (SEEK_DATA, SEEK_HOLE):
            raise Errno(errno.EINVAL)
        found = await self.files.seek(request.nodeid, offset, data=whence == SEEK_DATA)
        if found is None:
            raise Errno(errno.ENXIO)
        return fp.U64.pack(found)

    async def ioctl(self, _request: fp.FuseRequest) -> bytes:
        raise Errno(errno.ENOTTY)
