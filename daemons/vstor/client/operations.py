"""Kernel requests that reach Python: the table opcode -> coroutine, and the operations on names and attributes.

DESIGN: each request is a task.  A handler returns the body of the reply or raises; errors become errno in one place.  What the kernel is
told to be valid is what the table holds under a lease, for the rest of the session's lease: attributes everywhere; names, also those
that do not exist, where the kernel can drop them without a lock (kernel.py); elsewhere it asks for each use and the table answers.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import msgspec

from vstor.client import engine_api as cl
from vstor.client import fuseproto as fp
from vstor.client.inodes import Inode
from vstor.client.leases import collect
from vstor.client.volume import Volume
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.messages import NONE

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[fp.FuseRequest], Awaitable[bytes]]
REQUESTS_PER_TURN = 64
OUTAGE_S = 5.0  # what has an answer without the cluster waits so long for it, and for the end of the session's lease
NO_ACL = (b"system.posix_acl_access", b"system.posix_acl_default")
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")  # xattr(7); "system." are ACLs, which are not kept
SETATTR_MASKS = {
    fp.FATTR_MODE: m.SET_MODE,
    fp.FATTR_UID: m.SET_UID,
    fp.FATTR_GID: m.SET_GID,
    fp.FATTR_SIZE: m.SET_SIZE,
    fp.FATTR_ATIME: m.SET_ATIME,
    fp.FATTR_MTIME: m.SET_MTIME,
    fp.FATTR_CTIME: m.SET_CTIME,
    fp.FATTR_KILL_SUIDGID: m.DROP_SUID,
}


class Errno(Exception):
    """Answer with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def errno_of(exc: BaseException) -> int:
    """The one place where errors become what the kernel hears."""
    if isinstance(exc, Errno):
        return exc.number
    if isinstance(exc, VstorError):
        return exc.errno or errno.EIO
    if isinstance(exc, OSError):
        return exc.errno or errno.EIO
    return errno.EINVAL if isinstance(exc, ValueError | struct.error) else errno.EIO


class Operations:
    """Concurrency: one event loop."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.table, self.names, self.files = volume.table, volume.names, volume.files
        self.handlers: dict[int, Handler] = {
            fp.Op.LOOKUP: self.lookup,
            fp.Op.GETATTR: self.getattr,
            fp.Op.SETATTR: self.setattr,
            fp.Op.READLINK: self.readlink,
            fp.Op.SYMLINK: self.symlink,
            fp.Op.MKNOD: self.mknod,
            fp.Op.MKDIR: self.mkdir,
            fp.Op.UNLINK: self.unlink,
            fp.Op.RMDIR: self.rmdir,
            fp.Op.RENAME: self.rename,
            fp.Op.RENAME2: self.rename2,
            fp.Op.LINK: self.link,
            fp.Op.STATFS: self.statfs,
            fp.Op.SETXATTR: self.setxattr,
            fp.Op.GETXATTR: self.getxattr,
            fp.Op.LISTXATTR: self.listxattr,
            fp.Op.REMOVEXATTR: self.removexattr,
            fp.Op.DESTROY: self.nothing,
        }
        self.requests: dict[int, int] = {}  # by opcode, for metrics
        self.busy_ns: dict[int, int] = {}
        self.errors = 0
        self._space: m.StatFsReply | None = None  # as last told
        self.owner: tuple[int | None, int | None, int | None] = (None, None, None)  # uid, gid, mode shown for the root
        self.interrupts: dict[int, asyncio.Event] = {}  # unique -> of requests that can be interrupted
        volume.engine.on[cl.EV_FUSE] = self._fuse_event

    # --- dispatch

    def _fuse_event(self, _event: object) -> None:
        native = self.volume.engine.native
        for _ in range(REQUESTS_PER_TURN):
            message = native.fuse_take()
            if message is None:
                return
            try:
                self._start(fp.parse(message))
            except ValueError as exc:
                log.error("bad message of the kernel reason=%s", exc)
        asyncio.get_running_loop().call_soon(self._fuse_event, None)

    def _start(self, request: fp.FuseRequest) -> None:
        self.requests[request.opcode] = self.requests.get(request.opcode, 0) + 1
        if request.opcode in (fp.Op.FORGET, fp.Op.BATCH_FORGET):
            self._forget(request)
        elif request.opcode == fp.Op.INTERRUPT:
            waiting = self.interrupts.get(fp.U64.unpack_from(request.body)[0])
            if waiting is not None:
                waiting.set()
        else:
            self.volume.tasks.spawn(self._run(request), f"fuse-{request.opcode}-{request.unique}")

    async def _run(self, request: fp.FuseRequest) -> None:
        start_ns = time.monotonic_ns()
        handler = self.handlers.get(request.opcode, self.unknown)
        error, body = 0, b""
        try:
            body = await handler(request)
        except asyncio.CancelledError:
            self._reply(request, errno.EINTR, b"")
            raise
        except (VstorError, OSError, Errno, ValueError, struct.error) as exc:
            error = errno_of(exc)
            if isinstance(exc, VstorError) and error == errno.EIO:
                log.warning(
                    "EIO op=%s ino=%s code=%s reason=%s", request.opcode, request.nodeid, exc.code.name, exc.message
                )
        except Exception:
            log.exception("request failed op=%s ino=%s", request.opcode, request.nodeid)
            error = errno.EIO
        self._reply(request, error, body)
        self.busy_ns[request.opcode] = self.busy_ns.get(request.opcode, 0) + time.monotonic_ns() - start_ns

    def _reply(self, request: fp.FuseRequest, error: int, body: bytes) -> None:
        self.errors += bool(error)
        result = self.volume.engine.native.fuse_reply(request.unique, error, b"" if error else body)
        if result == -errno.ENOENT:
            return  # interrupted or aborted: the kernel no longer waits
        if result < 0:
            log.error("kernel refused a reply op=%s errno=%s", request.opcode, -result)

    async def unknown(self, _request: fp.FuseRequest) -> bytes:
        raise Errno(errno.ENOSYS)

    async def nothing(self, _request: fp.FuseRequest) -> bytes:
        return b""

    def _forget(self, request: fp.FuseRequest) -> None:
        for ino, count in fp.forgets(request):
            self.table.forget(ino, count)
        for inode in self.table.surplus():
            release = m.LeaseRelease(inode.ino, 0, NONE)
            self.volume.tasks.spawn(self.volume.session.call(release), f"release-{inode.ino}")

    # --- replies

    def attr_valid_ms(self, inode: Inode) -> int:
        """How long the kernel may use the attributes."""
        return self.volume.session.remaining_ms() if inode.attr_valid and inode.lease != NONE else 0

    def entry(self, parent: int, name: bytes, inode: Inode) -> bytes:
        """entry_out; the kernel gets one more reference. Same loop step as the reply of the MDS."""
        self.table.looked_up(inode)
        if name not in (b".", b".."):
            inode.known_as = (parent, name)
        shown = self.shown(inode)
        out = fp.entry_out(shown, self.name_valid_ms(parent, name, inode.ino), self.attr_valid_ms(inode))
        self.keep(parent, name, inode, out)
        self.keep_dir(parent)
        return out

    def keep_dir(self, ino: int) -> None:
        """The kernel asks for the attributes of a directory after each change it makes there: the engine may answer."""
        inode = self.table.get(ino)
        if inode is not None and self.names.cached(inode) and not inode.kept:
            self.table.keep_attr(inode, fp.attr(self.shown(inode)))

    def keep(self, parent: int, name: bytes, inode: Inode, entry_out: bytes) -> None:
        """The engine may answer the same the next time."""
        self.table.keep_attr(inode, entry_out[fp.ENTRY_HEAD.size : fp.ENTRY_OUT_BYTES])
        self.table.keep_name(parent, name, inode.ino)

    def name_valid_ms(self, parent: int, name: bytes, ino: int) -> int:
        """How long the kernel may use the name (ino 0: that it does not exist). It is noted as given."""
        if not self.volume.kernel.names_cached or self.table.entry(parent, name) != ino:
            return 0
        self.volume.leases.name_given(parent, name)
        return self.volume.session.remaining_ms()

    def attributes(self, inode: Inode) -> bytes:
        """attr_out."""
        out = fp.attr_out(self.shown(inode), self.attr_valid_ms(inode))
        self.table.keep_attr(inode, out[fp.ATTR_HEAD.size :])
        return out

    def shown(self, inode: Inode) -> m.Attr:
        """Attributes as this mount shows them now: size and times of a file we write; owner and mode of the root by -u, -g, -m."""
        collect(inode)
        assert inode.attr is not None
        if inode.ino != m.ROOT_INO or self.owner == (None, None, None):
            return inode.attr
        uid, gid, mode = self.owner
        attr = msgspec.structs.replace(inode.attr)
        attr.uid = attr.uid if uid is None else uid
        attr.gid = attr.gid if gid is None else gid
        attr.mode = attr.mode if mode is None else stat.S_IFMT(attr.mode) | mode
        return attr

    # --- names

    async def lookup(self, request: fp.FuseRequest) -> bytes:
        """ "." and ".." are asked for inodes the kernel has forgotten (NFS export)."""
        name = fp.cstring(request.body)
        if name == b".":
            inode = await self.names.getattr(request.nodeid)
        elif name == b"..":
            inode = await self.names.getattr(await self.names.parent_of(request.nodeid))
        else:
            try:
                inode = await self.names.lookup(request.nodeid, name)
            except VstorError as exc:
                if exc.code != ErrorCode.NOT_FOUND:
                    raise
                valid_ms = self.name_valid_ms(request.nodeid, name, 0)
                self.table.keep_name(request.nodeid, name, 0)
                if not valid_ms:
                    raise
                return fp.no_entry_out(valid_ms)
        return self.entry(request.nodeid, name, inode)

    async def getattr(self, request: fp.FuseRequest) -> bytes:
        """While the cluster is down, stat(2) of the mount point answers what was last known: df and the like must not hang."""
        root = self.table.get(m.ROOT_INO)
        if request.nodeid != m.ROOT_INO or root is None or root.attr is None or self.names.cached(root):
            return self.attributes(await self.names.getattr(request.nodeid))
        await self._unless_down(self.names.getattr(m.ROOT_INO))
        return self.attributes(root)

    async def _unless_down(self, asking: Coroutine[Any, Any, T]) -> T | None:
        """Its result, or None when the cluster has been silent for longer than a lease and for OUTAGE_S."""
        task = asyncio.get_running_loop().create_task(asking)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=OUTAGE_S)
                if not task.done() and self.volume.session.remaining_ms() == 0:
                    return None
            return task.result()
        finally:
            task.cancel()

    async def setattr(self, request: fp.FuseRequest) -> bytes:
        (valid, _, _fh, size, _owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, _, uid, gid, _) = (
            fp.SETATTR_IN.unpack_from(request.body)
        )
        mask = 0
        for theirs, ours in SETATTR_MASKS.items():
            mask |= ours if valid & theirs else 0
        inode = self.table.need(request.nodeid)
        if mask:
            change = m.SetAttr(
                request.nodeid, mask, stat.S_IMODE(mode), uid, gid, size,
                m.TIME_NOW if valid & fp.FATTR_ATIME_NOW else _ns(atime, atimensec),
                m.TIME_NOW if valid & fp.FATTR_MTIME_NOW else _ns(mtime, mtimensec),
                _ns(ctime, ctimensec),
            )  # fmt: skip
            inode = await self.names.setattr(change)
        else:
            inode = await self.names.getattr(request.nodeid)
        return self.attributes(inode)

    async def readlink(self, request: fp.FuseRequest) -> bytes:
        return await self.names.read_link(request.nodeid)

    async def symlink(self, request: fp.FuseRequest) -> bytes:
        name, target = fp.two_cstrings(request.body)
        make = m.Create(request.nodeid, name, stat.S_IFLNK | 0o777, request.uid, request.gid, target=target)
        return self.entry(request.nodeid, name, await self.names.make(make))

    async def mknod(self, request: fp.FuseRequest) -> bytes:
        mode, rdev, _umask, _ = fp.MKNOD_IN.unpack_from(request.body)
        name = fp.cstring(request.body, fp.MKNOD_IN.size)
        make = m.Create(request.nodeid, name, mode, request.uid, request.gid, rdev=rdev)
        return self.entry(request.nodeid, name, await self.names.make(make))

    async def mkdir(self, request: fp.FuseRequest) -> bytes:
        mode, _umask = fp.MKDIR_IN.unpack_from(request.body)
        name = fp.cstring(request.body, fp.MKDIR_IN.size)
        make = m.Create(request.nodeid, name, stat.S_IFDIR | stat.S_IMODE(mode), request.uid, request.gid)
        return self.entry(request.nodeid, name, await self.names.make(make))

    async def unlink(self, request: fp.FuseRequest) -> bytes:
        await self.names.unlink(request.nodeid, fp.cstring(request.body))
        self.keep_dir(request.nodeid)
        return b""

    async def rmdir(self, request: fp.FuseRequest) -> bytes:
        await self.names.unlink(request.nodeid, fp.cstring(request.body), directory=True)
        return b""

    async def rename(self, request: fp.FuseRequest) -> bytes:
        (new_parent,) = fp.U64.unpack_from(request.body)
        return await self._rename(request, new_parent, 0, fp.U64.size)

    async def rename2(self, request: fp.FuseRequest) -> bytes:
        new_parent, flags, _ = fp.RENAME2_IN.unpack_from(request.body)
        return await self._rename(request, new_parent, flags, fp.RENAME2_IN.size)

    async def _rename(self, request: fp.FuseRequest, new_parent: int, flags: int, offset: int) -> bytes:
        name, new_name = fp.two_cstrings(request.body, offset)
        await self.names.rename(request.nodeid, name, new_parent, new_name, flags)
        self.keep_dir(request.nodeid)
        return b""

    async def link(self, request: fp.FuseRequest) -> bytes:
        (ino,) = fp.U64.unpack_from(request.body)
        name = fp.cstring(request.body, fp.U64.size)
        return self.entry(request.nodeid, name, await self.names.link(ino, request.nodeid, name))

    async def statfs(self, request: fp.FuseRequest) -> bytes:
        """While the cluster is down: what was last known, else ETIMEDOUT."""
        reply = await self._unless_down(self.names.stat_fs(request.nodeid))
        self._space = reply = reply or self._space
        if reply is None:
            raise Errno(errno.ETIMEDOUT)
        return fp.statfs_out(reply.total_bytes, reply.free_bytes, reply.files, reply.files_free)

    # --- extended attributes

    async def setxattr(self, request: fp.FuseRequest) -> bytes:
        size, flags = fp.SETXATTR_IN_COMPAT.unpack_from(request.body)
        name = _xattr_name(request, fp.SETXATTR_IN_COMPAT.size)
        if name in NO_ACL or not name.startswith(XATTR_NAMESPACES):
            raise Errno(errno.EOPNOTSUPP)
        start = fp.SETXATTR_IN_COMPAT.size + len(name) + 1
        value = bytes(request.body[start : start + size])
        await self.names.set_xattr(request.nodeid, name, value, flags)
        return b""

    async def getxattr(self, request: fp.FuseRequest) -> bytes:
        size, _ = fp.GETXATTR.unpack_from(request.body)
        name = _xattr_name(request, fp.GETXATTR.size)
        if name in NO_ACL:
            raise Errno(errno.EOPNOTSUPP)
        return _sized(await self.names.get_xattr(request.nodeid, name), size)

    async def listxattr(self, request: fp.FuseRequest) -> bytes:
        size, _ = fp.GETXATTR.unpack_from(request.body)
        names = await self.names.list_xattr(request.nodeid)
        return _sized(b"".join(name + b"\0" for name in names), size)

    async def removexattr(self, request: fp.FuseRequest) -> bytes:
        await self.names.remove_xattr(request.nodeid, _xattr_name(request, 0))
        return b""


def _xattr_name(request: fp.FuseRequest, offset: int) -> bytes:
    """A namespace alone is no name."""
    name = fp.cstring(request.body, offset)
    if name in XATTR_NAMESPACES:
        raise Errno(errno.EINVAL)
    return name


def _ns(seconds: int, nanoseconds: int) -> int:
    """Kernel time (two's complement seconds) to ns. 64 bits of ns end in the years 1677 and 2262: beyond, the nearest that can be kept."""
    ns = (seconds - (1 << 64) if seconds >> 63 else seconds) * fp.NSEC + nanoseconds
    return max(m.TIME_NOW + 1, min(ns, (1 << 63) - 1))


def _sized(value: bytes, size: int) -> bytes:
    """xattr(7): size 0 asks how much there is; too small is ERANGE."""
    if size == 0:
        return fp.GETXATTR.pack(len(value), 0)
    if len(value) > size:
        raise Errno(errno.ERANGE)
    return value


def entries_with_dots(page: list[m.DirEntry], ino: int, parent: int, cookie: int) -> Iterator[m.DirEntry]:
    """The page behind "." and ".." (cookies 1 and 2; those of the MDS are larger)."""
    if cookie < 1:
        yield m.DirEntry(b".", ino, stat.S_IFDIR >> 12, 1)
    if cookie < 2:
        yield m.DirEntry(b"..", parent, stat.S_IFDIR >> 12, 2)
    yield from page
