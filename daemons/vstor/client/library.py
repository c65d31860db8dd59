"""The client as a Python library: the same engine and metadata path as the mount, without FUSE. For gateways and tests.

    with Client("mycluster") as c:
        c.mkdir("/images")
        with c.open("/images/disk", "x+b") as f:
            f.pwrite(b"data", 1 << 20)
            f.sync()

DESIGN: blocking calls over an event loop in a thread of its own.  Paths are absolute in the cluster, str or bytes; symbolic links are
followed as the kernel would, except in the last part of `lstat`, `unlink`, `rename`, `readlink`.  Nothing is cached here: the library sees
the leases of the table, no kernel does.  Errors: OSError with the errno a mount would give; VstorError when the client cannot start.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from vstor.client import engine_api as cl
from vstor.client.inodes import Handle, Inode
from vstor.client.volume import Volume, open_volume
from vstor.errors import VstorError
from vstor.proto import messages as m

T = TypeVar("T")
PathLike = str | bytes
SYMLINKS_MAX = 40  # path_resolution(7)
CONNECT_S = 20.0
MODES = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+b": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "x+b": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND,
}


def _parts(path: PathLike) -> list[bytes]:
    raw = os.fsencode(path)
    if not raw.startswith(b"/"):
        raise OSError(errno.EINVAL, "paths are absolute within the cluster", path)
    return [part for part in raw.split(b"/") if part not in (b"", b".")]


class Client:
    """A session with a cluster. Thread-safe: every call is done in the loop's thread."""

    def __init__(
        self,
        cluster: str,
        *,
        name: str = "library",
        timeout_s: float | None = CONNECT_S,
        wait_for_space: bool = True,
        make_volume: Callable[[], Volume] | None = None,
    ) -> None:
        """Connect. make_volume: for tests. Raises VstorError: no certificate, cluster unreachable."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"vstor-{cluster}", daemon=True)
        self._thread.start()
        self._open = True

        async def start() -> Volume:
            volume = make_volume() if make_volume else open_volume(cluster, name, wait_for_space=wait_for_space)
            try:
                await volume.start(timeout_s)
            except BaseException:
                await volume.close()
                raise
            return volume

        try:
            self.volume = self._run(start())
        except BaseException:
            self._stop_loop()
            raise

    def close(self) -> None:
        """Flush, give all leases back, end the session. Open files become useless."""
        if self._open:
            self._open = False
            try:
                self._run(self.volume.close())
            finally:
                self._stop_loop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coro: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result()

    def call(self, coro: Coroutine[Any, Any, T], path: PathLike | None = None) -> T:
        """Run in the loop; errors as OSError with the path."""
        try:
            return self._run(coro)
        except VstorError as exc:
            raise OSError(exc.errno or errno.EIO, exc.message, path) from exc
        except OSError as exc:
            if path is not None and exc.filename is None:
                raise OSError(exc.errno, exc.strerror, path) from exc
            raise

    # --- paths

    async def _walk(self, path: PathLike, *, follow: bool = True, depth: int = 0) -> Inode:
        names = self.volume.names
        chain = [await names.getattr(m.ROOT_INO)]
        todo = _parts(path)
        while todo:
            name = todo.pop(0)
            if name == b"..":
                chain = chain[:-1] or chain
                continue
            inode = await names.lookup(chain[-1].ino, name)
            if inode.attr is not None and stat.S_ISLNK(inode.attr.mode) and (todo or follow):
                depth += 1
                if depth > SYMLINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = await names.read_link(inode.ino)
                if target.startswith(b"/"):
                    chain = chain[:1]
                todo = [part for part in target.split(b"/") if part not in (b"", b".")] + todo
            else:
                chain.append(inode)
        return chain[-1]

    async def _parent(self, path: PathLike) -> tuple[int, bytes]:
        parts = _parts(path)
        if not parts:
            raise OSError(errno.EBUSY, "this is the root directory")
        return (await self._walk(b"/" + b"/".join(parts[:-1]))).ino, parts[-1]

    # --- names

    def stat(self, path: PathLike) -> m.Attr:
        """Attributes, symbolic links followed."""
        return self.call(self._stat(path, True), path)

    def lstat(self, path: PathLike) -> m.Attr:
        """Attributes of the name itself."""
        return self.call(self._stat(path, False), path)

    async def _stat(self, path: PathLike, follow: bool) -> m.Attr:
        inode = await self.volume.names.getattr((await self._walk(path, follow=follow)).ino)
        assert inode.attr is not None
        return msgspec.structs.replace(inode.attr)

    def exists(self, path: PathLike) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def mkdir(self, path: PathLike, mode: int = 0o755) -> None:
        self.call(self._make(path, stat.S_IFDIR | mode), path)

    def symlink(self, target: PathLike, path: PathLike) -> None:
        self.call(self._make(path, stat.S_IFLNK | 0o777, os.fsencode(target)), path)

    async def _make(self, path: PathLike, mode: int, target: bytes = b"") -> None:
        parent, name = await self._parent(path)
        await self.volume.names.make(m.Create(parent, name, mode, os.geteuid(), os.getegid(), target=target))

    def readlink(self, path: PathLike) -> bytes:
        async def read() -> bytes:
            return await self.volume.names.read_link((await self._walk(path, follow=False)).ino)

        return self.call(read(), path)

    def unlink(self, path: PathLike) -> None:
        self.call(self._remove(path, False), path)

    def rmdir(self, path: PathLike) -> None:
        self.call(self._remove(path, True), path)

    async def _remove(self, path: PathLike, directory: bool) -> None:
        parent, name = await self._parent(path)
        await self.volume.names.unlink(parent, name, directory=directory)

    def rename(self, old: PathLike, new: PathLike, flags: int = 0) -> None:
        """flags: 1 NOREPLACE, 2 EXCHANGE."""

        async def rename() -> None:
            (parent, name), (new_parent, new_name) = await self._parent(old), await self._parent(new)
            await self.volume.names.rename(parent, name, new_parent, new_name, flags)

        self.call(rename(), old)

    def link(self, old: PathLike, new: PathLike) -> None:
        async def link() -> None:
            ino = (await self._walk(old, follow=False)).ino
            parent, name = await self._parent(new)
            await self.volume.names.link(ino, parent, name)

        self.call(link(), new)

    def listdir(self, path: PathLike = "/") -> list[bytes]:
        """Names, without "." and ".."."""
        return [entry.name for entry in self.scandir(path)]

    def scandir(self, path: PathLike = "/") -> Iterator[m.DirEntry]:
        """Entries, page by page."""
        ino = self.call(self._walk(path), path).ino
        cookie, eof = 0, False
        while not eof:
            reply = self.call(self.volume.names.read_dir(ino, cookie, m.DIR_ENTRIES_MAX, plus=False), path)
            yield from reply.entries
            eof = reply.eof or not reply.entries
            cookie = reply.entries[-1].cookie if reply.entries else cookie

    def setattr(self, path: PathLike, **changes: int) -> m.Attr:
        """mode, uid, gid, size, atime_ns, mtime_ns."""
        mask = sum(getattr(m, f"SET_{key.removesuffix('_ns').upper()}") for key in changes)

        async def change() -> m.Attr:
            inode = await self._walk(path)
            changed = await self.volume.names.setattr(m.SetAttr(inode.ino, mask, **changes))
            assert changed.attr is not None
            return msgspec.structs.replace(changed.attr)

        return self.call(change(), path)

    def truncate(self, path: PathLike, size: int) -> None:
        self.setattr(path, size=size)

    def getxattr(self, path: PathLike, name: bytes) -> bytes:
        return self.call(self._xattr(path, lambda ino: self.volume.names.get_xattr(ino, name)), path)

    def setxattr(self, path: PathLike, name: bytes, value: bytes, flags: int = 0) -> None:
        self.call(self._xattr(path, lambda ino: self.volume.names.set_xattr(ino, name, value, flags)), path)

    def listxattr(self, path: PathLike) -> list[bytes]:
        return self.call(self._xattr(path, self.volume.names.list_xattr), path)

    def removexattr(self, path: PathLike, name: bytes) -> None:
        self.call(self._xattr(path, lambda ino: self.volume.names.remove_xattr(ino, name)), path)

    async def _xattr(self, path: PathLike, what: Callable[[int], Coroutine[Any, Any, T]]) -> T:
        return await what((await self._walk(path)).ino)

    def statfs(self) -> m.StatFsReply:
        return self.call(self.volume.names.stat_fs())

    # --- files

    def open(self, path: PathLike, mode: str | int = "rb", perm: int = 0o644) -> File:
        """mode: one of MODES (files are bytes), or flags of open(2); O_SYNC and O_APPEND are honoured. Raises ValueError."""
        if isinstance(mode, str) and mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        flags = MODES[mode] if isinstance(mode, str) else mode
        inode, handle = self.call(self._open_file(path, flags, perm), path)
        return File(self, inode, handle)

    async def _open_file(self, path: PathLike, flags: int, perm: int) -> tuple[Inode, Handle]:
        names, files = self.volume.names, self.volume.files
        if flags & os.O_CREAT:
            parent, name = await self._parent(path)
            try:
                found = None if flags & os.O_EXCL else await self._walk(path)
            except VstorError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                found = None
            if found is None:
                return await names.create(parent, name, perm, os.geteuid(), os.getegid(), flags)
        else:
            found = await self._walk(path)
        if found.is_dir:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return await files.open(found.ino, flags)


class File:
    """An open file. Positions are given with each call; there is no file position."""

    def __init__(self, client: Client, inode: Inode, handle: Handle) -> None:
        self._client, self._inode, self._handle = client, inode, handle
        self.closed = False

    @property
    def ino(self) -> int:
        return self._inode.ino

    @property
    def size(self) -> int:
        """Bytes now, also when another client writes."""

        async def ask() -> int:
            inode = await self._client.volume.names.getattr(self._inode.ino)
            assert inode.attr is not None
            return inode.attr.size

        return self._client.call(ask())

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        buf = bytearray(length)
        done = self.pread_into(buf, offset)
        return bytes(memoryview(buf)[:done])

    def pread_into(self, buf: bytearray | memoryview, offset: int) -> int:
        """Fill buf; the count. The buffer is not to be touched meanwhile."""
        return self._client.call(self._client.volume.files.read(self._inode.ino, offset, buf)) if len(buf) else 0

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """All of data, on all replicas on return; on stable storage only with O_SYNC or after sync()."""
        self._need_writable()
        flags = cl.IO_DURABLE if self._handle.flags & (os.O_SYNC | os.O_DSYNC) else 0
        if not len(data):
            return 0
        if self._handle.flags & os.O_APPEND:
            flags |= cl.IO_APPEND
        return self._client.call(self._client.volume.files.write(self._inode.ino, offset, data, flags))

    def append(self, data: bytes | bytearray | memoryview) -> int:
        """At the end, whatever it is when the write is done."""
        self._need_writable()
        return (
            self._client.call(self._client.volume.files.write(self._inode.ino, 0, data, cl.IO_APPEND))
            if len(data)
            else 0
        )

    def sync(self) -> None:
        """As fsync(2): R1."""
        self._client.call(self._client.volume.files.sync(self._inode.ino))

    def truncate(self, size: int) -> None:
        self._need_writable()
        self._client.call(self._client.volume.files.truncate(self._inode.ino, size))

    def punch(self, offset: int, length: int) -> None:
        """The range reads as zeros and its space is given back."""
        self._need_writable()
        self._client.call(self._client.volume.files.punch(self._inode.ino, offset, length))

    def _need_writable(self) -> None:
        if not self._handle.writable:
            raise OSError(errno.EBADF, "file not open for writing")

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._client.call(self._client.volume.files.close(self._handle.fh))

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()
