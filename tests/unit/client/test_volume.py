"""Files and names through Volume: two clients, one MDS state machine."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import Any

import pytest
from vstor.client import files
from vstor.client.volume import Volume
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.outcome import Outcome
from vstor.proto import messages as m
from vstor.proto.messages import CACHE, EXCLUSIVE, NONE, ROOT_INO, SHARED

from tests.unit.client.conftest import World

pytestmark = pytest.mark.asyncio
RW = os.O_RDWR


async def make(volume: Volume, name: bytes, data: bytes = b"", flags: int = RW) -> tuple[int, int]:
    """A new file with content: inode number and handle."""
    inode, handle = await volume.names.create(ROOT_INO, name, 0o644, 0, 0, flags | os.O_CREAT)
    if data:
        assert await volume.files.write(inode.ino, 0, data) == len(data)
    return inode.ino, handle.fh


async def read(volume: Volume, ino: int, offset: int, length: int) -> bytes:
    buf = bytearray(length)
    return bytes(buf[: await volume.files.read(ino, offset, buf)])


async def size(volume: Volume, ino: int) -> int:
    inode = await volume.names.getattr(ino)
    assert inode.attr is not None
    return inode.attr.size


async def test_write_here_read_there_and_back(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"from a")
    found = await b.names.lookup(ROOT_INO, b"f")
    assert found.ino == ino
    await b.files.open(ino, RW)
    assert await read(b, ino, 0, 100) == b"from a"
    assert a.table.need(ino).lease in (NONE, CACHE)
    await b.files.write(ino, 5, b"b, longer")
    assert await read(a, ino, 0, 100) == b"from b, longer"
    assert await size(a, ino) == await size(b, ino) == 14


async def test_size_of_a_file_written_elsewhere_is_told(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"x" * 10)
    assert await size(b, ino) == 10
    await a.files.write(ino, 10, b"y" * 7)
    assert await size(b, ino) == 17
    assert a.table.need(ino).lease == EXCLUSIVE  # asked, not taken away
    assert not b.table.need(ino).attr_valid


async def test_reopening_is_free(world: World) -> None:
    a = await world.client()
    ino, fh = await make(a, b"f", b"data")
    await a.files.close(fh)
    await a.data.commit(a.table.need(ino))
    before = len(world.mds.seen)
    for _ in range(3):
        _, handle = await a.files.open(ino, RW)
        assert await read(a, ino, 0, 4) == b"data"
        await a.files.close(handle.fh)
    asked = [type(b).__name__ for b in world.mds.seen[before:]]
    assert set(asked) <= {"SessionRenew"}


async def test_two_readers_share_and_a_writer_takes_over(world: World) -> None:
    a, b, c = await world.client(), await world.client(), await world.client()
    ino, fh = await make(a, b"f", b"0123456789")
    await a.files.close(fh)
    await b.files.open(ino, os.O_RDONLY)
    await c.files.open(ino, os.O_RDONLY)
    assert await read(b, ino, 2, 3) == await read(c, ino, 2, 3) == b"234"
    assert b.table.need(ino).lease == c.table.need(ino).lease == SHARED
    await a.files.open(ino, RW)
    await a.files.write(ino, 2, b"ABC")
    assert b.table.need(ino).lease == NONE
    assert await read(b, ino, 0, 10) == b"01ABC56789"


async def test_a_writer_never_keeps_shared(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"data")
    await b.files.open(ino, os.O_RDONLY)
    assert await read(b, ino, 0, 4) == b"data"
    assert a.table.need(ino).lease == CACHE
    assert await read(a, ino, 0, 4) == b"data"
    assert a.table.need(ino).lease == EXCLUSIVE


async def test_many_turns_of_two_writers(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"")
    await b.files.open(ino, RW)
    for turn in range(40):
        one, other = (a, b) if turn % 2 else (b, a)
        await one.files.write(ino, 3 * turn, b"%03d" % turn)
        assert await read(other, ino, 3 * turn, 9) == b"%03d" % turn


async def test_two_writers_at_the_same_time_lose_nothing(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"")
    await b.files.open(ino, RW)

    async def append(volume: Volume, mark: bytes) -> None:
        for _ in range(30):
            assert await volume.files.write(ino, 0, mark, 2) == len(mark)

    async with asyncio.timeout(30):
        await asyncio.gather(append(a, b"a"), append(b, b"b"))
    data = await read(a, ino, 0, 1000)
    assert sorted(data) == sorted(b"a" * 30 + b"b" * 30)


async def test_sync_commits_size_and_first_written_chunks_before_it_returns(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"x" * 5000)
    state = world.mds.core.state
    assert state.inodes[ino].size == 0
    await a.files.sync(ino)
    assert (state.inodes[ino].size, state.inodes[ino].used) == (5000, 1)
    before = len(world.mds.seen)
    await a.files.write(ino, 0, b"same size")
    await a.files.sync(ino)
    assert not [b for b in world.mds.seen[before:] if isinstance(b, m.Commit)]  # an mtime alone waits


async def test_truncate_clears_the_tail_and_grows_with_zeros(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"x" * 200_000)
    await a.files.truncate(ino, 5001)
    assert await size(a, ino) == 5001
    await a.files.truncate(ino, 150_000)
    data = await read(a, ino, 0, 200_000)
    assert data == b"x" * 5001 + bytes(144_999)
    await a.files.truncate(ino, 0)
    assert await size(a, ino) == 0
    assert world.mds.core.state.inodes[ino].used == 0
    await a.files.write(ino, 0, b"new")
    assert await read(a, ino, 0, 10) == b"new"


@pytest.mark.parametrize("how", ["truncate", "open"])
async def test_a_commit_beside_a_truncation_does_not_undo_it(world: World, how: str) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"x" * 5000)
    truncation = a.files.truncate(ino, 10) if how == "truncate" else a.files.open(ino, RW | os.O_TRUNC)
    task = asyncio.ensure_future(truncation)
    inode = a.table.need(ino)
    for _ in range(1000):
        if inode.resizing is not None:  # its message is on the way, the answer not here yet
            break
        await asyncio.sleep(0)
    await asyncio.gather(a.data.commit(inode), task)
    expected = 10 if how == "truncate" else 0
    assert world.mds.core.state.inodes[ino].size == await size(a, ino) == expected


async def test_truncate_of_a_file_nobody_has_open(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f", b"x" * 1000)
    await a.files.close(fh)
    await b.files.truncate(ino, 10)
    assert await size(a, ino) == 10


async def test_open_with_truncate(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"old content")
    await b.files.open(ino, RW | os.O_TRUNC)
    assert await size(a, ino) == 0
    await b.files.write(ino, 0, b"new")
    assert await read(a, ino, 0, 100) == b"new"


async def test_create_of_an_existing_file(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"content")
    again, _ = await a.names.create(ROOT_INO, b"f", 0o600, 0, 0, RW)
    assert again.ino == ino
    assert await read(a, ino, 0, 100) == b"content"
    cut, _ = await a.names.create(ROOT_INO, b"f", 0o600, 0, 0, RW | os.O_TRUNC)
    assert (cut.ino, await size(a, ino)) == (ino, 0)
    with pytest.raises(VstorError) as caught:
        await a.names.create(ROOT_INO, b"f", 0o600, 0, 0, RW | os.O_EXCL)
    assert caught.value.errno == errno.EEXIST


async def test_names_are_cached_until_another_client_changes_them(world: World) -> None:
    a, b = await world.client(), await world.client()
    with pytest.raises(VstorError):
        await a.names.lookup(ROOT_INO, b"f")
    before = len(world.mds.seen)
    with pytest.raises(VstorError):
        await a.names.lookup(ROOT_INO, b"f")
    assert len([x for x in world.mds.seen[before:] if isinstance(x, m.Lookup)]) == 0
    ino, _ = await make(b, b"f")
    assert (await a.names.lookup(ROOT_INO, b"f")).ino == ino
    await b.names.rename(ROOT_INO, b"f", ROOT_INO, b"g", 0)
    with pytest.raises(VstorError):
        await a.names.lookup(ROOT_INO, b"f")
    assert (await a.names.lookup(ROOT_INO, b"g")).ino == ino
    await a.names.unlink(ROOT_INO, b"g")
    with pytest.raises(VstorError):
        await b.names.lookup(ROOT_INO, b"g")


async def test_clients_that_create_in_one_directory_do_not_wait_for_each_other(world: World) -> None:
    clients = [await world.client() for _ in range(3)]
    for volume in clients:
        await volume.names.getattr(ROOT_INO)

    async def fill(volume: Volume, mark: int) -> None:
        for i in range(20):
            _, handle = await volume.names.create(ROOT_INO, b"%d-%d" % (mark, i), 0o644, 0, 0, RW)
            await volume.files.close(handle.fh)

    async with asyncio.timeout(30):
        await asyncio.gather(*(fill(volume, i) for i, volume in enumerate(clients)))
    page = await clients[0].names.read_dir(ROOT_INO, 0, 1000, plus=True)
    assert len(page.entries) == 60


async def test_unlinked_but_open_lives_until_the_last_close(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f", b"still here")
    await b.names.unlink(ROOT_INO, b"f")
    assert await read(a, ino, 0, 100) == b"still here"
    assert ino in world.mds.core.state.inodes
    await a.files.close(fh)
    await world.until(lambda: ino not in world.mds.core.state.inodes)
    await world.until(lambda: not a.engine.native.files)


async def test_the_last_name_is_counted_though_the_kernel_moved_it_along(world: World) -> None:
    """After a rename the kernel unlinks, and renames over, the new name without looking it up."""
    a = await world.client()
    ino, _ = await make(a, b"f")
    other, _ = await make(a, b"over")
    await a.names.rename(ROOT_INO, b"f", ROOT_INO, b"g", 0)
    await a.names.rename(ROOT_INO, b"over", ROOT_INO, b"was-over", 0)
    for inode in (ino, other):
        attr = (await a.names.getattr(inode)).attr
        assert attr is not None
        assert attr.nlink == 1
    await a.names.rename(ROOT_INO, b"g", ROOT_INO, b"was-over", 0)  # `other` loses its last name
    await a.names.unlink(ROOT_INO, b"was-over")  # and now `ino` does
    for inode in (ino, other):
        attr = (await a.names.getattr(inode)).attr
        assert attr is not None
        assert attr.nlink == 0


async def test_an_idle_open_file_that_is_unlinked_elsewhere_is_let_go(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f", b"data")
    await a.files.close(fh)
    await b.names.lookup(ROOT_INO, b"f")
    await b.names.unlink(ROOT_INO, b"f")
    await world.until(lambda: ino not in world.mds.core.state.inodes)


def requests(world: World, kind: type) -> list[m.RequestBody]:
    """From now on: what is asked of the MDS of this kind."""
    seen: list[m.RequestBody] = []
    usual = world.mds.core.handle

    def handle(ctx: Any, request_id: int, ack: int, body: Any, now_ms: int) -> Any:
        if isinstance(body, kind):
            seen.append(body)
        return usual(ctx, request_id, ack, body, now_ms)

    world.mds.core.handle = handle  # type: ignore[method-assign]
    return seen


async def test_an_idle_open_file_is_unlinked_in_one_step(world: World) -> None:
    a = await world.client()
    ino, fh = await make(a, b"f", b"data")
    await a.files.close(fh)
    await a.data.commit(a.table.need(ino))
    more = requests(world, m.LeaseRelease | m.Close)  # type: ignore[arg-type]
    await a.names.unlink(ROOT_INO, b"f")
    assert ino not in world.mds.core.state.inodes
    await world.until(lambda: not a.engine.native.files)
    assert more == []
    with pytest.raises(VstorError) as caught:
        await a.files.open(ino, os.O_RDONLY)
    assert caught.value.code == ErrorCode.BAD_HANDLE


async def test_a_file_that_others_have_open_gets_what_was_written_before_its_unlink(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f", b"old")
    await b.files.open(ino, os.O_RDONLY)
    assert await read(b, ino, 0, 10) == b"old"
    await a.files.write(ino, 0, b"newer")
    await a.files.close(fh)
    await a.data.commit(a.table.need(ino))
    await a.names.unlink(ROOT_INO, b"f")
    assert await read(b, ino, 0, 10) == b"newer"
    await world.until(lambda: a.table.need(ino).opened == 0)


async def test_a_recall_beside_an_unlink_is_answered(world: World) -> None:
    """The unlink waits at the MDS behind another client, who waits for our lease."""
    a, b = await world.client(), await world.client()
    for turn in range(10):
        ino, fh = await make(a, b"f%d" % turn, b"data")
        await a.files.close(fh)
        await a.data.commit(a.table.need(ino))
        await b.names.lookup(ROOT_INO, b"f%d" % turn)
        done = await asyncio.gather(
            b.names.link(ino, ROOT_INO, b"g%d" % turn),
            a.names.unlink(ROOT_INO, b"f%d" % turn),
            b.files.open(ino, RW),
            return_exceptions=True,
        )
        assert all(not isinstance(d, BaseException) or isinstance(d, VstorError) for d in done), done
        await world.until(lambda: not any(i.recalling for v in (a, b) for i in v.table.inodes.values()))


async def test_files_closed_together_are_committed_together(world: World) -> None:
    a = await world.client()
    commits = requests(world, m.Commit)
    made = [await make(a, b"f%d" % i, b"x" * i) for i in range(5)]
    for _, fh in made:
        await a.files.close(fh)
    assert commits == []
    await world.until(lambda: len(commits) == 4)
    assert {c.ino: c.size for c in commits} == {ino: i for i, (ino, _) in enumerate(made) if i}  # type: ignore[attr-defined]


async def test_a_chunk_comes_with_a_new_file_when_the_last_one_was_written(world: World) -> None:
    a = await world.client()
    maps = requests(world, m.GetMap)
    for name, data in ((b"1", b"x"), (b"2", b"x"), (b"3", b"")):
        _, fh = await make(a, name, data)
        await a.files.close(fh)
    assert maps == []
    await make(a, b"4", b"x")  # none was expected
    assert len(maps) == 1


async def test_names_in_a_directory_of_ours_are_known_without_asking(world: World) -> None:
    a, b = await world.client(), await world.client()
    folder = (await a.names.make(m.Create(ROOT_INO, b"d", stat.S_IFDIR | 0o755, 0, 0))).ino
    asked = requests(world, m.Lookup)

    async def missing(volume: Volume, name: bytes) -> None:
        with pytest.raises(VstorError) as caught:
            await volume.names.lookup(folder, name)
        assert caught.value.code == ErrorCode.NOT_FOUND

    await missing(a, b"x")
    inode, _ = await a.names.create(folder, b"x", 0o644, 0, 0, RW)
    await a.names.rename(folder, b"x", folder, b"y", 0)
    await missing(a, b"x")
    assert asked == []
    assert (await a.names.lookup(folder, b"y")).ino == inode.ino
    asked.clear()  # for its times
    await b.names.create(folder, b"theirs", 0o644, 0, 0, RW)
    assert (await a.names.lookup(folder, b"theirs")).ino
    await missing(a, b"x")
    await missing(a, b"z")
    assert {body.name for body in asked} == {b"theirs", b"z"}  # no longer complete; what is known of x is  # type: ignore[attr-defined]


async def test_exchanged_names_are_known(world: World) -> None:
    a = await world.client()
    folder = (await a.names.make(m.Create(ROOT_INO, b"d", stat.S_IFDIR | 0o755, 0, 0))).ino
    one, _ = await a.names.create(folder, b"1", 0o644, 0, 0, RW)
    two, _ = await a.names.create(folder, b"2", 0o644, 0, 0, RW)
    await a.names.rename(folder, b"1", folder, b"2", 2)
    assert (await a.names.lookup(folder, b"1")).ino == two.ino
    assert (await a.names.lookup(folder, b"2")).ino == one.ino
    await a.names.link(one.ino, folder, b"3")
    await a.names.rename(folder, b"2", folder, b"3", 0)  # the same file: both stay
    assert (await a.names.lookup(folder, b"2")).ino == (await a.names.lookup(folder, b"3")).ino == one.ino


async def test_set_times_survive_later_commits(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"data")
    await a.names.setattr(m.SetAttr(ino, m.SET_MTIME, mtime_ns=5_000))
    await a.files.commit_all()
    inode = await b.names.getattr(ino)
    assert inode.attr is not None
    assert inode.attr.mtime_ns == 5_000


async def test_extended_attributes(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f")
    await a.names.set_xattr(ino, b"user.k", b"v" * 100, 0)
    assert await b.names.get_xattr(ino, b"user.k") == b"v" * 100
    assert await b.names.list_xattr(ino) == [b"user.k"]
    await b.names.remove_xattr(ino, b"user.k")
    with pytest.raises(VstorError) as caught:
        await a.names.get_xattr(ino, b"user.k")
    assert caught.value.errno == errno.ENODATA


async def test_extended_attributes_are_remembered_with_the_attributes(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, fh = await make(a, b"f")
    await a.files.close(fh)
    await a.files.let_go(a.table.need(ino))
    await b.names.getattr(ino)

    async def asked() -> int:
        before = len(world.mds.seen)
        with pytest.raises(VstorError):
            await b.names.get_xattr(ino, b"user.none")
        return sum(isinstance(x, m.GetXattr) for x in world.mds.seen[before:])

    assert [await asked(), await asked()] == [1, 0]
    await a.names.set_xattr(ino, b"user.none", b"now", 0)
    assert await b.names.get_xattr(ino, b"user.none") == b"now"
    await b.names.getattr(ino)
    assert await b.names.get_xattr(ino, b"user.none") == b"now"
    await b.names.set_xattr(ino, b"user.none", b"own", 0)
    await b.names.getattr(ino)
    assert await b.names.get_xattr(ino, b"user.none") == b"own"


async def test_the_end_does_not_wait_for_ever_for_a_cluster_that_is_down(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"not committed")
    a.table.need(ino).known_as = (ROOT_INO, b"f")
    await make(a, b"clean")
    monkeypatch.setattr(files, "RELEASE_S_MAX", 0.05)
    world.mds.down = True
    world.volumes.remove(a)
    async with asyncio.timeout(20):
        await a.close(flush_s=0.05)
    assert f"may be lost file=f ino={ino}" in caplog.text
    assert caplog.text.count("may be lost") == 1  # nothing is said of files that are as the cluster has them


async def test_a_lost_session_is_replaced_and_files_go_on(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"before")
    await a.files.sync(ino)
    old = a.session.id
    world.mds.end_session(old)
    a.session.rpc.reconnect()
    await world.until(lambda: a.session.sessions == 2)
    await a.files.write(ino, 6, b" and after")
    assert a.session.id != old
    assert a.session.sessions == 2
    assert await read(a, ino, 0, 100) == b"before and after"
    assert ino in world.mds.core.opens.by_session[a.session.id]


async def test_uncommitted_writes_lost_with_a_session_are_said_once(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"never committed")
    world.mds.end_session(a.session.id)
    await a.names.getattr(ROOT_INO)
    a.session.rpc.reconnect()
    await world.until(lambda: a.session.sessions == 2)
    with pytest.raises(OSError, match="Input/output") as caught:
        await a.files.sync(ino)
    assert caught.value.errno == errno.EIO
    await a.files.sync(ino)


async def test_resume_keeps_leases_and_locks(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"data")
    await a.locks.set(m.LockRange(ino, 1, 1, 0, 9, 77), wait=False)
    session = a.session.id
    a.session.rpc.reconnect()
    await a.files.write(ino, 4, b" more")
    await a.names.set_xattr(ino, b"user.x", b"", 0)
    assert (a.session.id, a.session.sessions) == (session, 1)
    assert a.table.need(ino).lease == EXCLUSIVE


async def test_locks_between_clients(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f")
    lock = m.LockRange(ino, 1, 1, 0, 9, 77)
    await a.locks.set(lock, wait=False)
    with pytest.raises(VstorError) as caught:
        await b.locks.set(lock, wait=False)
    assert caught.value.code == ErrorCode.WOULD_BLOCK
    assert (await b.locks.get(lock)).type == 1
    waiting = asyncio.ensure_future(b.locks.set(lock, wait=True, interrupted=asyncio.Event()))
    await world.until(lambda: world.mds.core.locks.waiting)
    await a.locks.drop_owner(ino, 1, flock=False)
    await waiting
    assert b.locks.book.holds(ino, 1, False)


async def test_a_waiting_lock_can_be_interrupted(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f")
    lock = m.LockRange(ino, 1, 1, 0, 9, 77)
    await a.locks.set(lock, wait=False)
    interrupted = asyncio.Event()
    waiting = asyncio.ensure_future(b.locks.set(lock, wait=True, interrupted=interrupted))
    await world.until(lambda: world.mds.core.locks.waiting)
    interrupted.set()
    with pytest.raises(VstorError) as caught:
        await waiting
    assert caught.value.code == ErrorCode.WOULD_BLOCK
    await a.locks.drop_owner(ino, 1, flock=False)
    assert not b.locks.book.count
    await a.locks.set(lock, wait=False)


async def test_unix_addresses_only_on_the_same_host(world: World) -> None:
    a = await world.client()
    access = m.CsAccess(7, ["10.0.0.1:2600", "unix:/run/cs7"], a.session.host_id, 1, bytes(32))
    a.data.install_servers([access])
    assert a.engine.native.servers[7] == ["unix:/run/cs7", "10.0.0.1:2600"]
    access.host_id = "ff" * 8
    a.data.install_servers([access])
    assert a.engine.native.servers[7] == ["10.0.0.1:2600"]


async def test_everything_is_given_back_at_the_end(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"data")
    world.volumes.remove(a)
    await a.close()
    core = world.mds.core
    assert core.state.inodes[ino].size == 4
    assert core.state.inodes[ino].writer == 0
    assert not core.fences.active
    assert not core.state.sessions


async def test_modes_of_new_nodes(world: World) -> None:
    a = await world.client()
    inode = await a.names.make(m.Create(ROOT_INO, b"d", stat.S_IFDIR | 0o750, 5, 6))
    assert inode.attr is not None
    assert (inode.attr.mode, inode.attr.uid, inode.attr.gid) == (stat.S_IFDIR | 0o750, 5, 6)
    link = await a.names.make(m.Create(inode.ino, b"l", stat.S_IFLNK | 0o777, 0, 0, target=b"../x"))
    assert await a.names.read_link(link.ino) == b"../x"
    assert await a.names.parent_of(inode.ino) == ROOT_INO
    for bad in (b"", b".", b"..", b"a/b", b"n" * 256):
        with pytest.raises(VstorError):
            await a.names.make(m.Create(ROOT_INO, bad, stat.S_IFDIR | 0o750, 5, 6))


async def test_a_recall_leaves_nothing_unsynced_behind(world: World) -> None:
    a, b = await world.client(), await world.client()
    ino, _ = await make(a, b"f", b"precious")
    file = a.table.need(ino).file
    assert file.unsynced()
    await b.files.open(ino, os.O_RDONLY)
    assert not file.unsynced(), "others get the file only when it is on stable storage"


async def test_a_recall_does_not_wait_for_a_write_that_the_lease_is_gone_for(world: World) -> None:
    """The write waits for a map, which the MDS gives to holders only, the recall for the write: one of them has to let go."""
    a = await world.client()
    ino, _ = await make(a, b"f", b"x")
    inode = a.table.need(ino)
    world.mds.core.leases.lower(a.session.id, ino, NONE, Outcome())
    writing = asyncio.create_task(a.files.write(ino, 1 << 30, bytearray(b"y")))
    await world.until(lambda: any(isinstance(body, m.GetMap) and body.index for body in world.mds.seen))
    a.leases.push(m.Recall(ino, NONE, 999))
    async with asyncio.timeout(10):
        await writing
        await a.leases.recall_finished(inode)


async def test_a_sync_gets_its_map_also_when_only_a_handle_for_reading_is_left(world: World) -> None:
    """Maps for writing are given to holders of EXCLUSIVE only: with SHARED it would ask for ever."""
    a = await world.client()
    ino, fh = await make(a, b"f", b"x")
    _, reading = await a.files.open(ino, os.O_RDONLY)
    inode = a.table.need(ino)
    a.table.remove_handle(fh)
    assert inode.writers == 0
    world.mds.core.leases.lower(a.session.id, ino, NONE, Outcome())
    async with asyncio.timeout(10):
        await a.data._fetch_map(inode, 0, True)
    assert inode.lease == EXCLUSIVE
    await a.files.close(reading.fh)


async def test_fsync_says_once_what_was_lost_with_the_session(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"precious")
    a.leases.lost()
    with pytest.raises(OSError, match="Input/output error"):
        await a.files.sync(ino)
    await a.files.sync(ino)


async def test_a_hint_that_a_map_changed_keeps_what_is_to_be_committed(world: World) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"precious")
    a.leases.push(m.MapChanged(ino, 0, 1))
    await a.files.sync(ino)
    commits = [body for body in world.mds.seen if isinstance(body, m.Commit) and body.ino == ino]
    assert [body.written for body in commits] == [[0]], "the chunk is void no more"


async def test_a_lost_session_is_no_loss_of_what_was_synced(world: World) -> None:
    """Only the time of the last write was not told: fsync has nothing to complain of, and the file has its size."""
    a = await world.client()
    ino, _ = await make(a, b"f", b"precious")
    await a.files.sync(ino)
    await a.files.write(ino, 0, b"PRECIOUS")
    await a.files.sync(ino)
    assert a.table.need(ino).file.mtime_ns
    world.mds.end_session(a.session.id)
    a.session.rpc.reconnect()
    await world.until(lambda: a.session.sessions == 2)
    await a.files.sync(ino)
    assert await read(a, ino, 0, 100) == b"PRECIOUS"


@pytest.mark.parametrize("what", ["size", "chunk"])
async def test_a_session_lost_under_a_commit_is_said_by_one_fsync(world: World, what: str) -> None:
    a = await world.client()
    ino, _ = await make(a, b"f", b"x" * 5000)
    if what == "size":
        await a.files.sync(ino)
        await a.files.write(ino, 5000, b"more")
    inode = a.table.need(ino)
    world.mds.down = True
    committing = asyncio.ensure_future(a.data.commit(inode))
    for _ in range(10):
        await asyncio.sleep(0)
    inode.file.dirty = False  # synced: only what the commit says is at stake
    world.mds.down = False
    world.mds.end_session(a.session.id)
    a.session.rpc.reconnect()
    with pytest.raises(VstorError):
        await committing
    with pytest.raises(OSError, match="Input/output"):
        await a.files.sync(ino)
    await a.files.sync(ino)


async def test_a_name_that_is_too_long_is_said_so_in_a_directory_whose_names_are_all_known(world: World) -> None:
    a = await world.client()
    new = await a.names.make(m.Create(ROOT_INO, b"d", stat.S_IFDIR | 0o755, 0, 0))
    with pytest.raises(VstorError) as caught:
        await a.names.lookup(new.ino, b"n" * 256)
    assert caught.value.code == ErrorCode.NAME_TOO_LONG
