"""Names and attributes that the engine answers: there when they can be, and gone before they are old."""

from __future__ import annotations

import errno
import random
import stat

import pytest
from vstor.client import engine_api as api
from vstor.client import fuseproto as fp
from vstor.client import inodes
from vstor.proto import messages as m

from tests.unit.client.conftest import World
from tests.unit.client.test_operations import ANY_ERROR, Kernel, mkdir, mount

pytestmark = pytest.mark.asyncio
NAMES = [b"a", b"b", b"c"]


async def mount_old(world: World) -> Kernel:
    """A kernel that asks for each name."""
    kernel = await mount(world)
    kernel.native.fuse_notify = lambda _code, _body: -errno.EINVAL
    kernel.volume.kernel.probe()
    kernel.volume.leases.drop_kernel_names()
    return kernel


async def mount_new(world: World) -> Kernel:
    """A kernel that keeps names."""
    kernel = await mount(world)
    kernel.volume.kernel.probe()
    kernel.volume.leases.drop_kernel_names()
    return kernel


def asked(kernel: Kernel) -> int:
    """Questions that came to Python."""
    return sum(kernel.operations.requests.get(op, 0) for op in (fp.Op.LOOKUP, fp.Op.GETATTR))


async def test_what_was_asked_once_is_answered_by_the_engine(world: World) -> None:
    k = await mount_old(world)
    ino = await mkdir(k, 1, b"d")
    await k.lookup(1, b"d")
    await k.getattr(ino)
    await k.lookup(1, b"none", errno.ENOENT)
    before = asked(k)
    for _ in range(3):
        assert await k.lookup(1, b"d") == ino
        assert (await k.getattr(ino))[1][0] == ino
        await k.lookup(1, b"none", errno.ENOENT)
    assert asked(k) == before


async def test_what_readdirplus_told_is_answered_by_the_engine(world: World) -> None:
    one, other = await mount_old(world), await mount_old(world)
    made = {name: await mkdir(one, 1, name) for name in NAMES}
    await other.list(1, plus=True)
    for name, ino in made.items():
        assert await other.lookup(1, name) == ino
        await other.getattr(ino)
    assert asked(other) == 0


async def test_directories_we_changed_are_not_asked_for(world: World) -> None:
    k = await mount_old(world)
    top = await mkdir(k, 1, b"top")
    await k.getattr(top)
    before = asked(k)
    times = []
    for name in NAMES:
        await k.create(top, name)
        times.append((await k.getattr(top))[1][4:8:3])
    await k.call(fp.Op.RENAME, top, fp.U64.pack(top) + b"a\0d\0")
    times.append((await k.getattr(top))[1][4:8:3])
    await k.call(fp.Op.UNLINK, top, b"d\0")
    times.append((await k.getattr(top))[1][4:8:3])
    assert asked(k) == before
    assert times == sorted(times)
    assert times[0] < times[-1]
    other = await mkdir(k, 1, b"other")
    empty = (await k.getattr(other))[1]
    await k.call(fp.Op.RENAME, top, fp.U64.pack(other) + b"b\0b\0")
    moved = (await k.getattr(other))[1]
    assert moved[4:8:3] > empty[4:8:3]


async def test_nothing_is_answered_when_the_leases_have_ended(world: World) -> None:
    k = await mount_old(world)
    await mkdir(k, 1, b"d")
    answered = k.native.kept.answered
    k.native.set_lease_until(0)
    await k.lookup(1, b"d")
    assert k.native.kept.answered == answered


async def test_a_session_lost_takes_everything_along(world: World) -> None:
    k = await mount_old(world)
    ino = await mkdir(k, 1, b"d")
    await k.lookup(1, b"none", errno.ENOENT)
    await k.lookup(1, b"d")
    assert k.native.kept.names
    k.volume.lost()
    assert not k.native.kept.names
    assert not k.native.kept.attrs
    assert k.volume.table.need(ino).nlookup == 2


async def test_a_write_ends_what_the_engine_says_of_its_file(world: World) -> None:
    k = await mount_old(world)
    ino, fh, _ = await k.create(1, b"f")
    await k.getattr(ino)
    file = k.native.bound[fh][0]
    for turn in range(1, 4):
        assert (await k.getattr(ino))[1][1] == (turn - 1) * 100
        data = bytearray(100)
        await k.volume.engine.io(file, api.IO_WRITE, 0, 100, data, api.IO_APPEND)
        assert (await k.getattr(ino))[1][1] == turn * 100
        await k.lookup(1, b"f")
        before = asked(k)
        assert (await k.getattr(ino))[1][1] == turn * 100
        assert asked(k) == before


async def test_a_name_that_the_engine_gave_is_taken_back_from_the_kernel(world: World) -> None:
    one, other = await mount_old(world), await mount_new(world)
    ino = await mkdir(one, 1, b"d")
    await other.lookup(1, b"d")
    other.volume.leases.drop_kernel_names()  # as for another name
    before = asked(other)
    raw = await other.call(fp.Op.LOOKUP, 1, b"d\0")
    assert fp.ENTRY_HEAD.unpack_from(raw)[2] > 0, "the kernel may keep it"
    assert asked(other) == before
    other.native.notified.clear()
    await one.call(fp.Op.RMDIR, 1, b"d\0")
    assert (fp.Notify.INC_EPOCH, b"") in other.native.notified
    assert ino not in other.native.kept.attrs


async def test_names_beyond_the_bound_are_dropped_everywhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "ENTRIES_MAX", 3)
    k = await mount_new(world)
    for name in (b"a", b"b", b"c", b"d", b"e"):
        await k.lookup(1, name)
    assert len(k.native.kept.names) == 3
    assert (1, b"a") in k.volume.leases.kernel_names


@pytest.mark.parametrize("seed", range(6))
async def test_two_mounts_change_everything_and_see_the_same(world: World, seed: int) -> None:
    """After each change both kernels' questions are answered as the MDS would."""
    rng = random.Random(seed)
    mounts = [await mount_old(world), await mount_new(world) if seed % 2 else await mount_old(world)]
    witness = await world.client()
    top = await mkdir(mounts[0], 1, b"top")

    async def change(k: Kernel) -> None:
        name, other = rng.choice(NAMES), rng.choice(NAMES)
        kind = rng.randrange(6)
        ino = (await witness.session.call(m.Lookup(top, name))).attr.ino
        if kind == 0 and not ino:
            await k.call(fp.Op.MKNOD, top, fp.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0) + name + b"\0")
        elif kind == 1 and not ino:
            inner, fh, _ = await k.create(top, name)
            await k.call(fp.Op.RELEASE, inner, fp.RELEASE_IN.pack(fh, 0, 0, 0))
        elif kind == 2 and ino:
            await k.call(fp.Op.UNLINK, top, name + b"\0")
        elif kind == 3 and ino:
            await k.call(fp.Op.RENAME, top, fp.U64.pack(top) + name + b"\0" + other + b"\0")
        elif kind == 4 and ino:
            values = [fp.FATTR_MODE, *[0] * 10, rng.randrange(0o777), 0, 0, 0, 0]
            await k.call(fp.Op.SETATTR, await k.lookup(top, name), fp.SETATTR_IN.pack(*values))
        elif kind == 5 and ino and not (await witness.session.call(m.Lookup(top, other))).attr.ino:
            await k.call(fp.Op.LINK, top, fp.U64.pack(await k.lookup(top, name)) + other + b"\0")

    async def check(k: Kernel) -> None:
        folder = (await witness.session.call(m.GetAttr(top))).attr
        shown_folder = (await k.getattr(top))[1]
        assert (shown_folder[10], shown_folder[4] * fp.NSEC + shown_folder[7]) == (folder.nlink, folder.mtime_ns)
        for name in NAMES:
            attr = (await witness.session.call(m.Lookup(top, name))).attr
            raw = await k.call(fp.Op.LOOKUP, top, name + b"\0", error=ANY_ERROR)
            shown = fp.ENTRY_HEAD.unpack_from(raw)[0] if raw else 0
            assert shown == attr.ino, name
            if shown:
                fields = fp.ATTR.unpack_from(raw, fp.ENTRY_HEAD.size)
                assert (fields[9], fields[10]) == (attr.mode, attr.nlink), name
                assert (await k.getattr(shown))[1][9:11] == (attr.mode, attr.nlink)

    for _ in range(60):
        await change(rng.choice(mounts))
        for k in mounts:
            await check(k)
    assert all(k.native.kept.answered > 100 for k in mounts)
