"""The table: what is valid when, references, handles, idle files."""

from __future__ import annotations

import os
import stat

import pytest
from vstor.client import inodes
from vstor.client.inodes import InodeTable
from vstor.proto.messages import CACHE, EXCLUSIVE, NONE, SHARED, Attr


def attr(
    ino: int, *, mode: int = stat.S_IFREG | 0o644, size: int = 0, cacheable: bool = True, mtime_ns: int = 1
) -> Attr:
    return Attr(ino, 1, mode, 1, 0, 0, 0, size, 0, 1, mtime_ns, 1, cacheable)


class FakeFile:
    def __init__(self, size: int) -> None:
        self.size = size


def test_attributes_are_valid_while_the_mds_says_so() -> None:
    table = InodeTable()
    inode = table.learn(attr(5))
    assert inode.attr_valid
    assert inode.lease == CACHE
    table.lower(inode, NONE)
    assert not inode.attr_valid
    assert inode.lease == NONE
    assert not table.learn(attr(5, cacheable=False)).attr_valid
    assert inode.lease == NONE


def test_size_and_newer_mtime_of_a_file_we_write_are_ours() -> None:
    table = InodeTable()
    inode = table.learn(attr(5))
    inode.lease, inode.file, inode.ours = EXCLUSIVE, FakeFile(123), True
    inode.pending.mtime_ns = 50
    table.learn(attr(5, size=7, mtime_ns=9, cacheable=False))
    assert inode.attr is not None
    assert (inode.attr.size, inode.attr.mtime_ns, inode.attr_valid) == (123, 50, True)


def test_lower_never_raises() -> None:
    table = InodeTable()
    inode = table.need(3)
    inode.lease = CACHE
    table.lower(inode, EXCLUSIVE)
    table.lower(inode, SHARED)
    assert inode.lease == CACHE


def test_names_need_a_lease_of_the_directory() -> None:
    table = InodeTable()
    table.add_entry(1, b"a", 5)
    assert table.entry(1, b"a") is None
    table.add_entry(1, b"a", 5, granted=True)
    table.add_entry(1, b"gone", 0)
    assert table.entry(1, b"a") == 5
    assert table.entry(1, b"gone") == 0
    assert table.entry(1, b"other") is None
    table.drop_entry(1, b"a")
    assert table.entry(1, b"a") is None
    table.lower(table.need(1), NONE)
    assert table.entry(1, b"gone") is None


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "ENTRIES_MAX", 3)
    table = InodeTable()
    table.add_entry(1, b"0", 10, granted=True)
    for i in range(1, 4):
        table.entry(1, b"0")  # used, so kept
        table.add_entry(1, str(i).encode(), 10 + i)
    assert table.entry(1, b"1") is None
    assert table.entry(1, b"0") == 10
    table.drop_names(1)
    assert table.entry(1, b"3") is None


def test_forgotten_inodes_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "IDLE_ATTRS_MAX", 2)
    table = InodeTable()
    for ino in (10, 11, 12, 13):
        table.looked_up(table.learn(attr(ino)))
    table.looked_up(table.need(13))
    for ino in (10, 11, 12):
        table.forget(ino, 1)
    table.forget(13, 1)  # one of two references
    gone = table.surplus()
    assert [inode.ino for inode in gone] == [10]
    assert table.get(10) is None
    assert table.get(13) is not None
    table.looked_up(table.need(11))  # used again: not forgotten
    table.forget(13, 5)
    assert table.surplus() == []
    assert table.get(99) is None
    table.forget(99, 1)


def test_handles_and_idle_files() -> None:
    table = InodeTable()
    inode = table.learn(attr(5))
    inode.opened = 1
    reader = table.add_handle(inode, os.O_RDONLY, False)
    writer = table.add_handle(inode, os.O_RDWR, True)
    assert inode.writers == 1
    table.remove_handle(writer.fh)
    assert list(table.idle) == []
    assert table.remove_handle(reader.fh) == (reader, inode)
    assert list(table.idle) == [5]
    assert table.remove_handle(reader.fh) is None
    table.add_handle(inode, os.O_RDONLY, False)
    assert list(table.idle) == []


def test_idle_files_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "IDLE_FILES_MAX", 1)
    table = InodeTable()
    for ino in (5, 6, 7):
        inode = table.learn(attr(ino))
        inode.opened = 1
        table.remove_handle(table.add_handle(inode, os.O_RDONLY, False).fh)
    assert [inode.ino for inode in table.idle_surplus()] == [5, 6, 7]
    monkeypatch.setattr(inodes, "IDLE_FILES_MAX", 3)
    assert table.idle_surplus() == []


def test_a_lost_session_leaves_nothing_valid() -> None:
    table = InodeTable()
    inode = table.learn(attr(5))
    inode.lease = SHARED
    table.add_entry(1, b"a", 5, granted=True)
    assert table.leased() == [(5, SHARED), (1, CACHE)]
    table.lose_all()
    assert table.leased() == []
    assert not inode.attr_valid
    assert table.entry(1, b"a") is None
