"""Attributes, names, directories and bounds: single cases."""

from __future__ import annotations

import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.directory import Directory
from vstor.model.records import Dentry
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Sim

REG, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.fixture
def c() -> Client:
    return Sim().client()


def refused(client: Client, body: Any) -> ErrorCode:
    before = dict(client.sim.store)
    with pytest.raises(VstorError) as caught:
        client.call(body)
    assert client.sim.store == before
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", ErrorCode.INVALID),
        (b"a/b", ErrorCode.INVALID),
        (b"a\0", ErrorCode.INVALID),
        (b"n" * 256, ErrorCode.NAME_TOO_LONG),
        (b".", ErrorCode.EXISTS),
        (b"..", ErrorCode.EXISTS),
    ],
)
def test_bad_names(c: Client, name: bytes, code: ErrorCode) -> None:
    assert refused(c, m.Create(1, name, REG, 0, 0)) == code


def test_dot_lookups_for_exports(c: Client) -> None:
    folder = c.call(m.Create(1, b"d", DIR, 0, 0)).attr.ino
    ino = c.call(m.Create(folder, b"f", REG, 0, 0)).attr.ino
    assert c.call(m.Lookup(ino, b".")).attr.ino == ino
    assert c.call(m.Lookup(folder, b"..")).attr.ino == 1
    assert c.call(m.Lookup(1, b"..")).attr.ino == 1
    assert refused(c, m.Lookup(999, b".")) == ErrorCode.BAD_HANDLE


def test_negative_lookup_may_be_cached(c: Client) -> None:
    attr = c.call(m.Lookup(1, b"none")).attr
    assert attr.ino == 0
    assert attr.cacheable


def test_setgid_directories_hand_down_their_group(c: Client) -> None:
    folder = c.call(m.Create(1, b"d", stat.S_IFDIR | 0o2775, 1, 50)).attr.ino
    inner = c.call(m.Create(folder, b"i", DIR, 2, 2)).attr
    file = c.call(m.Create(folder, b"f", REG, 2, 2)).attr
    assert (inner.gid, inner.mode & 0o7777) == (50, 0o2755)
    assert (file.gid, file.mode & 0o7777) == (50, 0o644)


@pytest.mark.parametrize(("mode", "after"), [(0o6755, 0o755), (0o6644, 0o2644), (0o755, 0o755)])
def test_chown_clears_suid(c: Client, mode: int, after: int) -> None:
    ino = c.call(m.Create(1, b"f", stat.S_IFREG | mode, 0, 0)).attr.ino
    assert c.call(m.SetAttr(ino, m.SET_UID, uid=5)).attr.mode & 0o7777 == after
    c.call(m.SetAttr(ino, m.SET_MODE, mode=mode))
    assert c.call(m.SetAttr(ino, m.DROP_SUID)).attr.mode & 0o7777 == after
    both = c.call(m.SetAttr(ino, m.SET_UID | m.SET_MODE, uid=5, mode=mode)).attr
    assert both.mode & 0o7777 == mode  # the kernel says what stays


def test_times(c: Client) -> None:
    ino = c.call(m.Create(1, b"f", REG, 0, 0)).attr.ino
    attr = c.call(m.SetAttr(ino, m.SET_ATIME | m.SET_MTIME, atime_ns=123456789, mtime_ns=m.TIME_NOW)).attr
    assert attr.atime_ns == 123456789
    assert attr.mtime_ns == attr.ctime_ns == c.sim.now * 1_000_000 + 1, (
        "later than its creation in the same millisecond"
    )
    assert (
        c.call(m.SetAttr(ino, m.SET_ATIME | m.SET_MTIME, atime_ns=-1, mtime_ns=-86_400 * 10**9)).attr.mtime_ns
        == -86_400 * 10**9
    )
    assert c.call(m.GetAttr(ino)).attr.atime_ns == -1
    assert refused(c, m.SetAttr(ino, m.SET_ATIME, atime_ns=1 << 63)) == ErrorCode.INVALID


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 59])
def test_sizes_out_of_bounds(c: Client, size: int) -> None:
    ino = c.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    assert refused(c, m.SetAttr(ino, m.SET_SIZE, size=size)) == ErrorCode.TOO_BIG


def test_special_files(c: Client) -> None:
    dev = c.call(m.Create(1, b"dev", stat.S_IFBLK | 0o600, 0, 0, rdev=0x0801)).attr
    assert (dev.rdev, stat.S_IFMT(dev.mode)) == (0x0801, stat.S_IFBLK)
    link = c.call(m.Create(1, b"l", stat.S_IFLNK | 0o777, 0, 0, target=b"/a/b")).attr
    assert link.size == 4
    assert c.call(m.ReadLink(link.ino)).data == b"/a/b"
    assert refused(c, m.ReadLink(dev.ino)) == ErrorCode.INVALID
    assert refused(c, m.Create(1, b"x", stat.S_IFLNK, 0, 0, target=b"t" * 4096)) == ErrorCode.NAME_TOO_LONG
    assert refused(c, m.Create(1, b"x", stat.S_IFLNK, 0, 0)) == ErrorCode.INVALID
    assert refused(c, m.Create(1, b"x", 0o170000, 0, 0)) == ErrorCode.INVALID


def test_create_of_an_existing_file_opens_it(c: Client) -> None:
    first = c.call(m.Create(1, b"f", REG, 0, 0, open=True))
    again = c.call(m.Create(1, b"f", REG, 0, 0, exclusive=False, open=True))
    assert (again.attr.ino, again.created, again.lease) == (first.attr.ino, False, m.EXCLUSIVE)
    c.call(m.Create(1, b"d", DIR, 0, 0))
    assert refused(c, m.Create(1, b"d", REG, 0, 0, exclusive=False)) == ErrorCode.IS_DIR


def test_xattr_bounds(c: Client) -> None:
    ino = c.call(m.Create(1, b"f", REG, 0, 0)).attr.ino
    assert refused(c, m.SetXattr(ino, b"n" * 256, b"", 0)) == ErrorCode.RANGE
    assert refused(c, m.SetXattr(ino, b"", b"", 0)) == ErrorCode.INVALID
    assert refused(c, m.SetXattr(ino, b"user.a", b"v" * 65537, 0)) == ErrorCode.RANGE
    for n in range(16):
        c.call(m.SetXattr(ino, b"user.%d" % n, b"v" * 65536, 0))
    assert refused(c, m.SetXattr(ino, b"user.more", b"v", 0)) == ErrorCode.NO_SPACE
    c.call(m.SetXattr(ino, b"user.3", b"v", 0))
    assert c.call(m.GetXattr(ino, b"user.3")).data == b"v"
    assert len(c.call(m.ListXattr(ino)).names) == 16
    assert refused(c, m.GetXattr(ino, b"none")) == ErrorCode.NO_DATA


def test_requests_need_a_session(c: Client) -> None:
    c.connect()
    assert refused(c, m.Lookup(1, b"a")) == ErrorCode.NO_SESSION


# --- directories ------------------------------------------------------------------------------------------------------


def pages(c: Client, limit: int, between: Any = lambda: None) -> list[bytes]:
    names, cookie, eof = [], 0, False
    while not eof:
        reply = c.call(m.ReadDir(1, cookie, limit))
        names += [entry.name for entry in reply.entries]
        cookie = reply.entries[-1].cookie if reply.entries else cookie
        eof = reply.eof
        between()
    return names


def test_pages_have_each_entry_once_while_others_come_and_go(c: Client) -> None:
    for n in range(100):
        c.call(m.Create(1, b"%d" % n, REG, 0, 0))
        c.acked = c.next_id - 1
    counter = iter(range(1000))

    def between() -> None:
        n = next(counter)
        c.call(m.Unlink(1, b"%d" % (90 + n) if n < 10 else b"new%d" % (n - 10)))
        if n < 12:
            c.call(m.Create(1, b"new%d" % n, REG, 0, 0))
        c.acked = c.next_id - 1

    names = pages(c, 10, between)
    assert len(set(names)) == len(names)
    assert {b"%d" % n for n in range(90)} <= set(names)


def test_readdir_plus_and_parent(c: Client) -> None:
    folder = c.call(m.Create(1, b"d", DIR, 0, 0)).attr.ino
    c.call(m.Create(folder, b"f", REG, 7, 0))
    reply = c.call(m.ReadDir(folder, 0, 10, True))
    assert (reply.parent, reply.eof, reply.entries[0].attr.uid, reply.entries[0].type) == (
        1,
        True,
        7,
        stat.S_IFREG >> 12,
    )
    assert refused(c, m.ReadDir(reply.entries[0].ino, 0, 10)) == ErrorCode.NOT_DIR


def test_a_page_of_a_huge_directory_looks_at_a_page_of_entries() -> None:
    directory = Directory()
    for n in range(200_000):
        directory.put(b"%d" % n, Dentry(n, 8, n + 16))
    next(directory.after(0))  # builds the order
    order = directory._cookies
    directory.put(b"new", Dentry(1, 8, 300_000))
    directory.remove(b"77")
    taken = [name for name, _ in zip_limit(directory.after(150_000), 100)]
    assert len(taken) == 100
    assert directory._cookies is order  # kept up, not built again
    assert [name for name, _ in directory.after(299_999)] == [b"new"]


def zip_limit(items: Any, limit: int) -> list[Any]:
    return [item for item, _ in zip(items, range(limit), strict=False)]


def test_an_enormous_file_is_removed_in_parts(c: Client) -> None:
    """More extents than one commit may hold."""
    from vstor.model import keys
    from vstor.model.files import EXTENTS_PER_STEP
    from vstor.model.records import Chunk, pack_extent

    ino = c.call(m.Create(1, b"big", REG, 0, 0, open=True)).attr.ino
    count = EXTENTS_PER_STEP * 2 + 10
    made = [(keys.extent(ino, n), pack_extent({0: Chunk(10**6 + n, 1, 0, ())})) for n in range(count)]
    c.sim.commit(made)
    c.sim.state.apply(made)
    c.call(m.Commit(ino, count << 32, 1))
    parked = c.send(m.SetAttr(ino, m.SET_SIZE, size=1))
    assert not parked.done
    c.sim.run(1000)
    assert parked.reply.attr.size == 1
    assert list(c.sim.state.extents[ino]) == [0]
    made = made[1:]
    c.sim.commit(made)
    c.sim.state.apply(made)
    c.call(m.Close(ino))
    c.call(m.Unlink(1, b"big"))
    c.sim.run(2000)
    assert ino not in c.sim.state.inodes
    assert not c.sim.state.extents
    assert not c.sim.state.orphans
