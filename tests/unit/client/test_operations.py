"""Kernel messages in, replies out: the test is the kernel, the engine is fake, the MDS is the real state machine."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import Any

import pytest
from vstor.client import engine_api as api
from vstor.client import fuseproto as fp
from vstor.client import operations
from vstor.client.fileops import FileOperations
from vstor.client.kernel import FuseKernel
from vstor.client.volume import Volume
from vstor.proto import messages as m

from tests.unit.client.conftest import World

pytestmark = pytest.mark.asyncio
FUSE_ENTRY = fp.ENTRY_OUT_BYTES
ANY_ERROR = -1


class Kernel:
    """One mount."""

    def __init__(self, world: World, volume: Volume) -> None:
        self.world, self.volume = world, volume
        self.operations = FileOperations(volume)
        self.unique = 0

    @property
    def native(self) -> Any:
        return self.volume.engine.native

    def send(self, op: int, nodeid: int, body: bytes, *, uid: int = 1000) -> int:
        self.unique += 2
        answered = self.native.kept.answer(op, nodeid, body, self.native.lease_until)
        if answered is not None:
            self.native.replies[self.unique] = answered
            return self.unique
        header = fp.IN_HEADER.pack(fp.IN_HEADER.size + len(body), op, self.unique, nodeid, uid, 1001, 77, 0, 0)
        self.native.fuse_in.append(header + body)
        self.native.push(self.event(api.EV_FUSE))
        return self.unique

    @staticmethod
    def event(kind: int) -> Any:
        from tests.helpers.fakeengine import Event

        return Event(kind)

    async def call(self, op: int, nodeid: int, body: bytes = b"", *, error: int = 0, uid: int = 1000) -> bytes:
        unique = self.send(op, nodeid, body, uid=uid)
        await self.world.until(lambda: unique in self.native.replies)
        got, data = self.native.replies.pop(unique)
        assert error in (got, ANY_ERROR), os.strerror(got)
        return bytes(data)

    async def lookup(self, parent: int, name: bytes, error: int = 0) -> int:
        raw = await self.call(fp.Op.LOOKUP, parent, name + b"\0", error=error)
        return 0 if error else int(fp.ENTRY_HEAD.unpack_from(raw)[0])

    async def create(self, parent: int, name: bytes, flags: int = os.O_RDWR) -> tuple[int, int, int]:
        """nodeid, fh, open flags."""
        body = fp.CREATE_IN.pack(flags, stat.S_IFREG | 0o644, 0o022, 0) + name + b"\0"
        raw = await self.call(fp.Op.CREATE, parent, body)
        fh, open_flags, _ = fp.OPEN_OUT.unpack_from(raw, FUSE_ENTRY)
        return fp.ENTRY_HEAD.unpack_from(raw)[0], fh, open_flags

    async def getattr(self, nodeid: int) -> tuple[int, tuple[int, ...]]:
        """Validity in seconds, and the fields of fuse_attr."""
        raw = await self.call(fp.Op.GETATTR, nodeid, fp.GETATTR_IN.pack(0, 0, 0))
        return fp.ATTR_HEAD.unpack_from(raw)[0], fp.ATTR.unpack_from(raw, fp.ATTR_HEAD.size)

    async def list(self, nodeid: int, *, plus: bool = False, size: int = 4096) -> list[tuple[bytes, int, int]]:
        """(name, ino, nodeid of the attributes)."""
        fh = fp.OPEN_OUT.unpack(await self.call(fp.Op.OPENDIR, nodeid, fp.OPEN_IN.pack(0, 0)))[0]
        found, offset = [], 0
        while raw := await self.call(
            fp.Op.READDIRPLUS if plus else fp.Op.READDIR, nodeid, fp.READ_IN.pack(fh, offset, size, 0, 0, 0, 0)
        ):
            assert len(raw) <= size
            at = 0
            while at < len(raw):
                known = fp.ENTRY_HEAD.unpack_from(raw, at)[0] if plus else 0
                at += FUSE_ENTRY if plus else 0
                ino, offset, length, _ = fp.DIRENT.unpack_from(raw, at)
                name = raw[at + fp.DIRENT.size :][:length]
                at += fp.DIRENT.size + length + (-(fp.DIRENT.size + length) % 8)
                found.append((name, ino, known))
        await self.call(fp.Op.RELEASEDIR, nodeid, fp.RELEASE_IN.pack(fh, 0, 0, 0))
        return found


async def mount(world: World) -> Kernel:
    volume = await world.client(lambda engine: FuseKernel(lambda code, body: engine.native.fuse_notify(code, body)))
    return Kernel(world, volume)


async def mkdir(kernel: Kernel, parent: int, name: bytes) -> int:
    raw = await kernel.call(fp.Op.MKDIR, parent, fp.MKDIR_IN.pack(0o755, 0) + name + b"\0")
    return int(fp.ENTRY_HEAD.unpack_from(raw)[0])


async def test_lookup_validity_and_references(world: World) -> None:
    k = await mount(world)
    ino, _, _ = await k.create(1, b"f")
    for _ in range(3):
        raw = await k.call(fp.Op.LOOKUP, 1, b"f\0")
        nodeid, generation, entry_s, attr_s, *_ = fp.ENTRY_HEAD.unpack_from(raw)
        assert (nodeid, generation, entry_s) == (ino, 1, 0)  # this kernel cannot drop names
        assert attr_s > 0
    k.send(fp.Op.FORGET, ino, fp.U64.pack(1))  # create, a LOOKUP of Python's and two of the engine's were four
    await world.until(lambda: k.volume.table.need(ino).nlookup == 3)
    k.send(fp.Op.FORGET, ino, fp.U64.pack(3))
    await world.until(lambda: k.volume.table.need(ino).nlookup == 0)
    assert ino not in k.native.kept.attrs
    await k.lookup(1, b"missing", error=errno.ENOENT)
    await k.lookup(1, b"n" * 256, error=errno.ENAMETOOLONG)


async def test_names_are_given_where_the_kernel_can_drop_them(world: World) -> None:
    a, b = await mount(world), await mount(world)
    a.native.fuse_notify = lambda _code, _body: -errno.EINVAL
    a.volume.kernel.probe()
    assert not a.volume.kernel.names_cached
    b.volume.kernel.probe()
    assert b.volume.kernel.names_cached
    raw = await b.call(fp.Op.LOOKUP, 1, b"f\0")
    nodeid, _, entry_s, *_ = fp.ENTRY_HEAD.unpack_from(raw)
    assert nodeid == 0
    assert entry_s > 0
    b.native.notified.clear()
    ino, _, _ = await a.create(1, b"f")
    assert b.native.notified[0] == (fp.Notify.INC_EPOCH, b"")
    raw = await b.call(fp.Op.LOOKUP, 1, b"f\0")
    assert fp.ENTRY_HEAD.unpack_from(raw)[0] == ino
    assert fp.ENTRY_HEAD.unpack_from(raw)[2] > 0
    b.native.notified.clear()
    await a.create(1, b"other")
    assert fp.Notify.INC_EPOCH not in [code for code, _ in b.native.notified]  # nothing the kernel knows
    await a.call(fp.Op.UNLINK, 1, b"f\0")
    assert fp.Notify.INC_EPOCH in [code for code, _ in b.native.notified]


async def test_lookup_of_dot_and_dotdot_of_a_forgotten_inode(world: World) -> None:
    k = await mount(world)
    ino = await mkdir(k, 1, b"d")
    inner, fh, _ = await k.create(ino, b"f")
    await k.call(fp.Op.RELEASE, inner, fp.RELEASE_IN.pack(fh, 0, 0, 0))
    assert await k.lookup(inner, b".") == inner
    assert await k.lookup(ino, b"..") == 1
    assert await k.lookup(1, b"..") == 1


async def test_setattr(world: World) -> None:
    k = await mount(world)
    ino, fh, _ = await k.create(1, b"f")

    async def setattr(valid: int, **fields: int) -> tuple[int, ...]:
        values = [
            valid,
            0,
            fh,
            fields.get("size", 0),
            0,
            0,
            fields.get("mtime", 0),
            0,
            0,
            fields.get("mtimensec", 0),
            0,
        ]
        body = fp.SETATTR_IN.pack(*values, fields.get("mode", 0), 0, fields.get("uid", 0), fields.get("gid", 0), 0)
        raw = await k.call(fp.Op.SETATTR, ino, body)
        return fp.ATTR.unpack_from(raw, fp.ATTR_HEAD.size)

    assert (await setattr(fp.FATTR_MODE, mode=0o4755))[9] == stat.S_IFREG | 0o4755
    owned = await setattr(fp.FATTR_UID | fp.FATTR_GID, uid=7, gid=8)
    assert owned[11:13] == (7, 8)
    assert owned[9] == stat.S_IFREG | 0o755  # chown kills suid
    timed = await setattr(fp.FATTR_MTIME, mtime=5, mtimensec=500)
    assert (timed[4], timed[7]) == (5, 500)
    early = await setattr(fp.FATTR_MTIME, mtime=2**64 - 5, mtimensec=500)
    assert (early[4], early[7]) == (2**64 - 5, 500)
    assert (await setattr(fp.FATTR_SIZE, size=12_345))[1] == 12_345
    assert (await setattr(fp.FATTR_FH))[1] == 12_345  # nothing to set


async def test_create_write_read_through_the_bound_file(world: World) -> None:
    k = await mount(world)
    ino, fh, flags = await k.create(1, b"f", os.O_RDWR | os.O_APPEND | os.O_SYNC)
    assert flags == fp.FOPEN_DIRECT_IO | fp.FOPEN_PARALLEL_DIRECT_WRITES
    file, bound = k.native.bound[fh]
    assert bound == api.BIND_WRITABLE | api.BIND_APPEND | api.BIND_SYNC | api.BIND_DIRECT
    assert file.ino == ino
    await k.volume.files.write(ino, 0, b"content")
    valid_s, attr = await k.getattr(ino)
    assert attr[1] == 7
    assert valid_s > 0
    await k.call(fp.Op.FSYNC, ino, fp.FSYNC_IN.pack(fh, 0, 0))
    assert world.mds.core.state.inodes[ino].size == 7
    await k.call(fp.Op.RELEASE, ino, fp.RELEASE_IN.pack(fh, 0, 0, 0))
    assert not k.native.bound


@pytest.mark.parametrize("recent", [False, True])
async def test_appends_go_direct_beside_cached_handles_where_the_kernel_keeps_its_cache_right(
    world: World, recent: bool
) -> None:
    k = await mount(world)
    k.volume.kernel.direct_writes_drop_pages = recent
    ino, _, cached = await k.create(1, b"f")
    assert cached == fp.FOPEN_KEEP_CACHE

    async def open_flags(flags: int) -> int:
        raw = await k.call(fp.Op.OPEN, ino, fp.OPEN_IN.pack(flags, 0))
        return fp.OPEN_OUT.unpack(raw)[1]

    direct = fp.FOPEN_DIRECT_IO | fp.FOPEN_PARALLEL_DIRECT_WRITES
    assert await open_flags(os.O_WRONLY | os.O_APPEND) == (direct if recent else cached)
    assert await open_flags(os.O_RDONLY) == cached
    assert await open_flags(os.O_RDONLY | os.O_APPEND) == cached


async def test_every_reply_has_the_size_as_of_the_last_write(world: World) -> None:
    k = await mount(world)
    ino, _, _ = await k.create(1, b"f")
    for size, ask in ((3, fp.Op.LOOKUP), (6, fp.Op.READDIRPLUS), (9, fp.Op.GETATTR)):
        await k.volume.files.write(ino, size - 3, b"xyz")
        if ask == fp.Op.LOOKUP:
            raw = await k.call(fp.Op.LOOKUP, 1, b"f\0")
            assert fp.ATTR.unpack_from(raw, fp.ENTRY_HEAD.size)[1] == size
        elif ask == fp.Op.GETATTR:
            assert (await k.getattr(ino))[1][1] == size
        else:
            fh = fp.OPEN_OUT.unpack(await k.call(fp.Op.OPENDIR, 1, fp.OPEN_IN.pack(0, 0)))[0]
            raw = await k.call(ask, 1, fp.READ_IN.pack(fh, 2, 4096, 0, 0, 0, 0))
            assert fp.ATTR.unpack_from(raw, fp.ENTRY_HEAD.size)[1] == size


async def test_direct_and_buffered_handles_exclude_each_other(world: World) -> None:
    k = await mount(world)
    ino, fh, flags = await k.create(1, b"f", os.O_RDWR | os.O_DIRECT)
    direct = fp.FOPEN_DIRECT_IO | fp.FOPEN_PARALLEL_DIRECT_WRITES
    assert flags == direct
    assert k.native.bound[fh][1] & api.BIND_DIRECT

    async def open_(flags: int) -> tuple[int, int]:
        raw = await k.call(fp.Op.OPEN, ino, fp.OPEN_IN.pack(flags, 0))
        return fp.OPEN_OUT.unpack(raw)[:2]

    second, flags = await open_(os.O_RDONLY)
    assert flags == direct  # no cache beside a direct writer
    await k.call(fp.Op.RELEASE, ino, fp.RELEASE_IN.pack(fh, 0, 0, 0))
    await k.call(fp.Op.RELEASE, ino, fp.RELEASE_IN.pack(second, 0, 0, 0))
    _, flags = await open_(os.O_RDONLY)
    assert flags == fp.FOPEN_KEEP_CACHE
    _, flags = await open_(os.O_RDWR | os.O_DIRECT)
    assert flags == fp.FOPEN_KEEP_CACHE  # O_DIRECT the kernel's way, which keeps the buffered handle right


async def test_bits_set_while_a_file_is_open_are_seen_by_its_writers(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, fh, _ = await a.create(1, b"f")
    assert not a.native.bound[fh][1] & api.BIND_KILL_SUIDGID
    chmod = fp.SETATTR_IN.pack(fp.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o4777, 0, 0, 0, 0)
    await a.call(fp.Op.SETATTR, ino, chmod)
    assert a.native.bound[fh][1] & api.BIND_KILL_SUIDGID
    size = fp.SETATTR_IN.pack(fp.FATTR_SIZE | fp.FATTR_KILL_SUIDGID, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    await a.call(fp.Op.SETATTR, ino, size)
    assert (await a.getattr(ino))[1][9] & 0o7777 == 0o777
    assert not a.native.bound[fh][1] & api.BIND_KILL_SUIDGID
    await b.call(fp.Op.LOOKUP, 1, b"f\0")
    await b.call(fp.Op.SETATTR, ino, chmod)  # by another client
    assert a.native.bound[fh][1] & api.BIND_KILL_SUIDGID
    opened = fp.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, fp.OPEN_KILL_SUIDGID)
    await b.call(fp.Op.OPEN, ino, opened)
    assert (await b.getattr(ino))[1][9] & 0o7777 == 0o777


async def test_pages_are_dropped_before_the_lease_goes(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, _, _ = await a.create(1, b"f")
    await a.volume.files.write(ino, 0, b"x" * 100)
    file = a.volume.table.need(ino).file
    modes: list[int] = []

    def notify(code: int, body: bytes) -> int:
        modes.append(file.mode)
        a.native.notified.append((code, body))
        return 0

    a.native.fuse_notify = notify
    await b.lookup(1, b"f")
    await b.call(fp.Op.OPEN, ino, fp.OPEN_IN.pack(os.O_RDWR, 0))
    assert (fp.Notify.INVAL_INODE, fp.inval_inode(ino, 0, 0)) in a.native.notified
    assert modes[0] == api.LEASE_EXCLUSIVE
    assert file.mode == api.LEASE_NONE


async def test_pages_filled_while_a_recall_runs_are_dropped_too(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, _, _ = await a.create(1, b"f")
    await a.volume.files.write(ino, 0, b"x" * 100)
    file = a.volume.table.need(ino).file

    def notify(code: int, body: bytes) -> int:
        if not a.native.notified:
            file.touched = [(4096, 8192)]  # a read that was answered after the pages were dropped
        a.native.notified.append((code, body))
        return 0

    a.native.fuse_notify = notify
    await b.lookup(1, b"f")
    await b.call(fp.Op.OPEN, ino, fp.OPEN_IN.pack(os.O_RDWR, 0))
    assert (fp.Notify.INVAL_INODE, fp.inval_inode(ino, 4096, 4096)) in a.native.notified


async def test_readdir_in_small_pieces(world: World) -> None:
    k = await mount(world)
    names = {b"name-%03d" % i for i in range(100)}
    for name in names:
        _, fh, _ = await k.create(1, name)
        await k.call(fp.Op.RELEASE, 1, fp.RELEASE_IN.pack(fh, 0, 0, 0))
    found = await k.list(1, size=300)
    assert [f[0] for f in found[:2]] == [b".", b".."]
    assert {f[0] for f in found[2:]} == names
    assert len(found) == 102
    before = {ino: k.volume.table.need(ino).nlookup for _, ino, _ in found[2:]}
    plus = await k.list(1, plus=True, size=1000)
    assert {f[0] for f in plus[2:]} == names
    assert all(known == ino for _, ino, known in plus[2:])
    assert all(known == 0 for _, _, known in plus[:2])
    assert all(k.volume.table.need(ino).nlookup == count + 1 for ino, count in before.items())


async def test_xattr_sizes(world: World) -> None:
    k = await mount(world)
    ino, _, _ = await k.create(1, b"f")
    await k.call(fp.Op.SETXATTR, ino, fp.SETXATTR_IN_COMPAT.pack(5, 0) + b"user.k\0" + b"value")

    async def get(size: int, error: int = 0) -> bytes:
        return await k.call(fp.Op.GETXATTR, ino, fp.GETXATTR.pack(size, 0) + b"user.k\0", error=error)

    assert fp.GETXATTR.unpack(await get(0))[0] == 5
    assert await get(5) == b"value"
    await get(4, errno.ERANGE)
    assert fp.GETXATTR.unpack(await k.call(fp.Op.LISTXATTR, ino, fp.GETXATTR.pack(0, 0)))[0] == 7
    assert await k.call(fp.Op.LISTXATTR, ino, fp.GETXATTR.pack(100, 0)) == b"user.k\0"
    await k.call(fp.Op.REMOVEXATTR, ino, b"user.k\0")
    await get(0, errno.ENODATA)
    for op, head in (
        (fp.Op.SETXATTR, fp.SETXATTR_IN_COMPAT.pack(0, 0)),
        (fp.Op.GETXATTR, fp.GETXATTR.pack(0, 0)),
        (fp.Op.REMOVEXATTR, b""),
    ):
        await k.call(op, ino, head + b"user.\0", error=errno.EINVAL)  # a namespace is no name
    acl = fp.GETXATTR.pack(0, 0) + b"system.posix_acl_access\0"
    await k.call(fp.Op.GETXATTR, ino, acl, error=errno.EOPNOTSUPP)


def lock_body(owner: int, type_: int, flock: bool = False) -> bytes:
    return fp.LK_IN.pack(0, owner, 0, (1 << 63) - 1, type_, 99, int(flock), 0)


async def test_posix_locks_and_their_end_at_close(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, fh, _ = await a.create(1, b"f")
    assert not a.native.bound[fh][1] & api.BIND_FLUSH
    await a.call(fp.Op.SETLK, ino, lock_body(1, 1))
    assert a.native.bound[fh][1] & api.BIND_FLUSH
    await b.lookup(1, b"f")
    await b.call(fp.Op.SETLK, ino, lock_body(1, 1), error=errno.EAGAIN)
    conflict = fp.LK_OUT.unpack(await b.call(fp.Op.GETLK, ino, lock_body(1, 0)))
    assert conflict == (0, (1 << 63) - 1, 1, 99)
    await a.call(fp.Op.FLUSH, ino, fp.FLUSH_IN.pack(fh, 0, 0, 1))
    await b.call(fp.Op.SETLK, ino, lock_body(1, 1))


async def test_flock_ends_at_release(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, fh, _ = await a.create(1, b"f")
    await a.call(fp.Op.SETLK, ino, lock_body(5, 1, flock=True))
    await b.lookup(1, b"f")
    await b.call(fp.Op.SETLK, ino, lock_body(5, 1, flock=True), error=errno.EAGAIN)
    await a.call(fp.Op.RELEASE, ino, fp.RELEASE_IN.pack(fh, 0, fp.RELEASE_FLOCK_UNLOCK, 5))
    await b.call(fp.Op.SETLK, ino, lock_body(5, 1, flock=True))


async def test_interrupt_ends_a_waiting_lock(world: World) -> None:
    a, b = await mount(world), await mount(world)
    ino, _, _ = await a.create(1, b"f")
    await a.call(fp.Op.SETLK, ino, lock_body(1, 1))
    await b.lookup(1, b"f")
    unique = b.send(fp.Op.SETLKW, ino, lock_body(1, 1))
    await world.until(lambda: world.mds.core.locks.waiting)
    b.send(fp.Op.INTERRUPT, 0, fp.U64.pack(unique))
    await world.until(lambda: unique in b.native.replies)
    assert b.native.replies[unique][0] == errno.EINTR


@pytest.mark.parametrize(
    ("mode", "error"),
    [(8, errno.EOPNOTSUPP), (0x20, errno.EOPNOTSUPP), (2, errno.EOPNOTSUPP), (0x40, errno.EOPNOTSUPP)],
)
async def test_fallocate_modes_that_are_not_there(world: World, mode: int, error: int) -> None:
    k = await mount(world)
    ino, fh, _ = await k.create(1, b"f")
    await k.call(fp.Op.FALLOCATE, ino, fp.FALLOCATE_IN.pack(fh, 0, 100, mode, 0), error=error)


async def test_fallocate(world: World) -> None:
    k = await mount(world)
    ino, fh, _ = await k.create(1, b"f")
    await k.volume.files.write(ino, 0, b"x" * 10_000)

    async def allocate(offset: int, length: int, mode: int) -> int:
        await k.call(fp.Op.FALLOCATE, ino, fp.FALLOCATE_IN.pack(fh, offset, length, mode, 0))
        return (await k.getattr(ino))[1][1]

    assert await allocate(0, 20_000, 0) == 20_000
    assert await allocate(0, 30_000, 1) == 20_000
    assert await allocate(1_000, 500, 3) == 20_000
    assert await allocate(2_000, 40_000, 16) == 42_000
    buf = bytearray(3_000)
    await k.volume.files.read(ino, 0, buf)
    assert buf == b"x" * 1_000 + bytes(500) + b"x" * 500 + bytes(1_000)


async def test_a_write_without_fsetid_kills_suid(world: World) -> None:
    k = await mount(world)
    ino, _fh, _ = await k.create(1, b"f")
    body = fp.SETATTR_IN.pack(fp.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o6755, 0, 0, 0, 0)
    await k.call(fp.Op.SETATTR, ino, body)
    second = fp.OPEN_OUT.unpack(await k.call(fp.Op.OPEN, ino, fp.OPEN_IN.pack(os.O_RDWR, 0)))[0]
    assert k.native.bound[second][1] & api.BIND_KILL_SUIDGID
    head = fp.WRITE_IN.pack(second, 3, 4, fp.WRITE_KILL_SUIDGID, 0, os.O_RDWR, 0)
    assert fp.WRITE_OUT.unpack(await k.call(fp.Op.WRITE, ino, head + b"data"))[0] == 4
    _, attr = await k.getattr(ino)
    assert (stat.S_IMODE(attr[9]), attr[1]) == (0o755, 7)
    assert not k.native.bound[second][1] & api.BIND_KILL_SUIDGID


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (fp.Op.IOCTL, errno.ENOTTY),
        (fp.Op.POLL, errno.ENOSYS),
        (fp.Op.COPY_FILE_RANGE, errno.ENOSYS),
        (9999, errno.ENOSYS),
    ],
)
async def test_what_is_not_there(world: World, op: int, error: int) -> None:
    k = await mount(world)
    await k.call(op, 1, bytes(64), error=error)


async def test_malformed_bodies_are_refused(world: World) -> None:
    k = await mount(world)
    await k.call(fp.Op.LOOKUP, 1, b"no end", error=errno.EINVAL)
    for op in (fp.Op.SETATTR, fp.Op.RENAME2, fp.Op.SETLK, fp.Op.MKNOD, fp.Op.READDIR):
        await k.call(op, 1, b"\0", error=errno.EINVAL)


async def test_chosen_owner_of_the_root(world: World) -> None:
    k = await mount(world)
    k.operations.owner = (7, None, 0o700)
    _, attr = await k.getattr(1)
    assert (attr[9], attr[11], attr[12]) == (stat.S_IFDIR | 0o700, 7, 0)


async def test_statfs(world: World) -> None:
    k = await mount(world)
    fields = fp.STATFS_OUT.unpack(await k.call(fp.Op.STATFS, 1))
    assert fields[0] >= fields[1] > 0
    assert fields[6] == m.NAME_BYTES_MAX


async def test_the_mount_point_and_its_space_are_known_while_the_cluster_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "OUTAGE_S", 0.05)
    k, never = await mount(world), await mount(world)
    attr, space = (await k.getattr(1))[1], await k.call(fp.Op.STATFS, 1)
    world.mds.down = True
    for volume in (k.volume, never.volume):
        monkeypatch.setattr(volume.session, "remaining_ms", lambda: 0)
        volume.valid_until(0)
    assert await k.getattr(1) == (0, attr)  # and the kernel may not keep it
    assert await k.call(fp.Op.STATFS, 1) == space
    await never.call(fp.Op.STATFS, 1, error=errno.ETIMEDOUT)
    world.mds.down = False


async def test_while_the_lease_lasts_the_mount_point_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "OUTAGE_S", 0.001)
    k = await mount(world)
    await k.getattr(1)
    k.volume.table.invalidate(k.volume.table.need(1))
    world.mds.down = True
    asking = asyncio.ensure_future(k.getattr(1))
    await asyncio.sleep(0.1)
    assert not asking.done()
    asking.cancel()
    world.mds.down = False


async def test_a_file_is_described_by_its_last_name(world: World) -> None:
    k = await mount(world)
    directory = await mkdir(k, 1, b"d")
    ino, _, _ = await k.create(directory, b"old")
    body = fp.U64.pack(1) + b"old\0new\0"
    await k.call(fp.Op.RENAME, directory, body)
    assert k.volume.table.describe(directory) == "d"
    assert k.volume.table.describe(ino) == "new"
    assert k.volume.table.describe(12345) == "<inode 12345>"


async def test_metrics_render(world: World) -> None:
    from vstor.client import metrics

    k = await mount(world)
    await k.getattr(1)
    text = metrics.render(k.operations)
    assert 'vstor_client_operations_total{op="getattr"} 1' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
