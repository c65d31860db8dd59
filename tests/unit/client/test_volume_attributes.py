"""Sizes and times through Volume: what a mount changed shows, whatever is on its way to the MDS or back."""

from __future__ import annotations

import asyncio
import os

import pytest
from vstor.client.volume import Volume
from vstor.proto import messages as m
from vstor.proto.messages import EXCLUSIVE, ROOT_INO

from tests.unit.client.conftest import World
from tests.unit.client.test_volume import make, read, size

pytestmark = pytest.mark.asyncio


async def times(volume: Volume, ino: int) -> tuple[int, int]:
    attr = (await volume.names.getattr(ino)).attr
    assert attr is not None
    return attr.mtime_ns, attr.ctime_ns


async def test_an_answer_from_before_a_commit_does_not_take_the_times_of_the_write_back(world: World) -> None:
    """A directory is read while the commit of a write is on its way: what it says of the file is older than the write."""
    a = await world.client()
    ino, fh = await make(a, b"f")
    before = await times(a, ino)
    await a.files.write(ino, 0, b"12345")
    inode = a.table.need(ino)
    reading = asyncio.ensure_future(a.names.read_dir(ROOT_INO, 0, 100, plus=True))
    for _ in range(1000):
        if isinstance(world.mds.seen[-1], m.ReadDir):  # the MDS has answered, the answer is not here yet
            break
        await asyncio.sleep(0)
    committing = asyncio.ensure_future(a.data.commit(inode))
    await asyncio.sleep(0)
    assert not inode.pending.any
    await reading
    after = await times(a, ino)
    await committing
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert await times(a, ino) == after
    await a.files.close(fh)
    await a.files.let_go(inode)
    assert await times(a, ino) == after, "the MDS knows them too"


@pytest.mark.parametrize("skew_ns", [-3_000_000_000, 0, 3_000_000_000])
async def test_each_change_shows_though_clocks_differ(world: World, skew_ns: int) -> None:
    """The clock of a writer is behind that of the MDS or before it; changes follow each other within a millisecond."""
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f")
    a.engine.native.skew_ns = skew_ns
    last = await times(a, ino)

    async def write() -> None:
        await a.files.write(ino, 0, b"x")

    changes = (
        write,
        lambda: a.names.setattr(m.SetAttr(ino, m.SET_MODE, mode=0o600)),
        write,
        write,
        lambda: a.files.truncate(ino, 3),
        lambda: a.files.truncate(ino, 5),
        write,
        lambda: b.names.setattr(m.SetAttr(ino, m.SET_UID, uid=7)),
        write,
        lambda: b.files.truncate(ino, 1),
        write,
    )
    for number, change in enumerate(changes):
        await change()
        now = await times(a, ino)
        assert now[1] > last[1], f"ctime after change {number}"
        mode_only = number in (1, 7)
        assert (now[0] == last[0]) if mode_only else (now[0] > last[0]), f"mtime after change {number}"
        last = now
    assert await times(b, ino) == last
    await a.files.close(fh)


async def test_a_write_after_utimens_ends_the_time_that_was_set(world: World) -> None:
    """As the local file system: the time of a write is now, also when a later one was set before."""
    a = await world.client()
    ino, _ = await make(a, b"f", b"data")
    await a.names.setattr(m.SetAttr(ino, m.SET_MTIME, mtime_ns=1 << 62))
    assert (await times(a, ino))[0] == 1 << 62
    await a.files.write(ino, 0, b"more")
    assert (await times(a, ino))[0] < 1 << 62
    await a.data.commit(a.table.need(ino))
    assert (await times(a, ino))[0] == world.mds.core.state.inodes[ino].mtime_ns < 1 << 62


async def test_what_a_clock_left_far_in_the_future_is_not_built_upon(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"data")
    far_ns = 3_600 * 10**9
    a.engine.native.skew_ns = far_ns
    await a.files.write(ino, 0, b"more")
    wrong = await times(a, ino)
    await a.data.commit(a.table.need(ino))
    await a.names.setattr(m.SetAttr(ino, m.SET_MODE, mode=0o600))
    assert (await times(a, ino))[1] < wrong[1] - far_ns // 2


async def test_size_is_told_while_the_lease_is_given_back(world: World) -> None:
    """Between lowering the lease and the MDS's having heard the size, attributes are asked for: the size is ours still."""
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"0123456789")
    inode = a.table.need(ino)
    inode.file.hold = True
    reading = asyncio.ensure_future(read(a, ino, 0, 10))  # under way: the lease cannot be given back before it ends
    taking = asyncio.ensure_future(b.files.open(ino, os.O_RDONLY))
    await world.until(lambda: inode.lease != EXCLUSIVE)
    assert await size(a, ino) == 10
    inode.file.hold = False
    inode.file.run()
    await asyncio.gather(reading, taking)
    assert await size(a, ino) == await size(b, ino) == 10
