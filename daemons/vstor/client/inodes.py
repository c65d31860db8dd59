"""What this client knows of inodes, names and leases. Pure bookkeeping: no I/O, no clock.

DESIGN: the table holds what the MDS said in the order it said it.  A reply is entered, and answered to the kernel, in the same step of
the event loop in which it arrives, and pushes are handled in their order after earlier replies (see session.py), so "valid" here is
exactly "the MDS will tell us before this changes".  Whoever builds an answer asks the table, not the reply.
The node id for the kernel is the inode number.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vstor.client.kept import Kept
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.messages import CACHE, EXCLUSIVE, NONE, ROOT_INO, SHARED, Attr

ENTRIES_MAX = 200_000  # names remembered, positive and negative
IDLE_FILES_MAX = 4096  # files kept open at the MDS and leased without a handle
DEPTH_SHOWN_MAX = 100  # directories of a path in a message
IDLE_ATTRS_MAX = 100_000  # inodes remembered that the kernel has forgotten


@dataclass(slots=True)
class Pending:
    """What Commit has to tell the MDS."""

    mtime_ns: int = 0
    written: set[int] = field(default_factory=set)
    grown: bool = False

    @property
    def any(self) -> bool:
        return bool(self.mtime_ns or self.written or self.grown)

    def merge(self, earlier: Pending) -> None:
        """What was to be told before is still to be told."""
        self.mtime_ns = self.mtime_ns or earlier.mtime_ns
        self.written |= earlier.written
        self.grown |= earlier.grown


@dataclass(slots=True)
class Handle:
    """One open file description of the kernel, or a File of the library."""

    fh: int
    ino: int
    flags: int  # of open(2)
    writable: bool
    direct: bool = False  # past the kernel's page cache
    made: bool = False  # the file was made with it
    bound: int | None = None  # flags with which the engine knows it; None: it does not

    @property
    def appends(self) -> bool:
        return self.writable and bool(self.flags & os.O_APPEND)


@dataclass(slots=True, eq=False)
class Inode:
    """One inode.

    lease: the mode the MDS gave us and has not recalled (CACHE: attributes, and names of a directory).
    file: the engine's object, made at the first open, kept while `opened`.
    ours: size and times are what this client says: it has EXCLUSIVE, or had it and the MDS has not heard the last of it yet.
    size_told: the size that the MDS is known to know.
    telling: what a Commit or LeaseRelease under way says; no reply that comes before its answer knows of it.
    tenure: counts what the MDS granted. Maps belong to one: the MDS keeps track of the chunks it gave maps of under the present grant only.
    opened: how many opens of ours the MDS counts; more than one only when Create met an existing file.
    known_as: directory and name by which it was last looked up, for people; it may be another by now.
    """

    ino: int
    attr: Attr | None = None
    attr_valid: bool = False
    kept: bool = False  # the engine answers with its attributes, and gives references that are not in nlookup yet
    nlookup: int = 0
    lease: int = NONE
    file: Any = None
    chunk_bytes: int = 0
    tenure: int = 0
    opened: int = 0
    handles: dict[int, Handle] = field(default_factory=dict)
    ours: bool = False
    size_told: int = 0
    pending: Pending = field(default_factory=Pending)
    telling: Pending | None = None
    recalling: int = 0  # recalls being worked on; nothing is acquired meanwhile
    recall_done: asyncio.Event | None = None
    acquire_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    recall_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    commit_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    xattrs: dict[bytes, bytes | None] = field(default_factory=dict)  # as valid as the attributes; None: there is none
    pages: bool = False  # the kernel may hold pages of it
    complete: bool = False  # a directory all of whose names are known: what is not among them does not exist
    resizing: int | None = None  # the size that is being set: after it the size of before would count as growth
    negotiating: int = NONE  # the mode a task acquires for parked requests
    known_as: tuple[int, bytes] | None = None

    @contextlib.contextmanager
    def tell(self) -> Iterator[Pending]:
        """What is pending, for a message to the MDS that is answered within. Under commit_lock.

        When that fails it is pending again, unless the session was lost, and with it what the message spoke of.
        """
        told, self.pending = self.pending, Pending()
        self.telling = told
        try:
            yield told
        except BaseException as exc:
            lost = isinstance(exc, VstorError) and exc.code == ErrorCode.NO_SESSION
            if self.telling is told and not lost:
                self.pending.merge(told)
            raise
        finally:
            if self.telling is told:
                self.telling = None

    @property
    def untold_data(self) -> bool:
        """Data is gone if the session is: behind the size that the MDS knows, or in chunks void to it. Not: what is being told (`not_told`)."""
        grown = self.telling is None and self.file is not None and self.file.size > self.size_told
        return self.ours and (grown or bool(self.pending.written))

    def not_told(self, told: Pending, size: int) -> None:
        """The session was lost, maybe before the MDS had heard this."""
        if told.written or size > self.size_told:
            self.note_lost()
            self.size_told = max(self.size_told, size)

    @property
    def untold_mtime_ns(self) -> int:
        """Time of the last write that replies of the MDS do not know yet; 0: they know all."""
        return self.pending.mtime_ns or (self.telling.mtime_ns if self.telling is not None else 0)

    def note_lost(self) -> None:
        """Acknowledged writes may be gone: every fsync under way says so, or the next one."""
        if self.file is not None:
            self.file.note_lost()

    @property
    def told_size(self) -> int:
        """The size that Commit and LeaseRelease may tell now."""
        size: int = self.file.size
        return size if self.resizing is None else min(size, self.resizing)

    @property
    def writers(self) -> int:
        return sum(h.writable for h in self.handles.values())

    @property
    def is_dir(self) -> bool:
        return self.attr is not None and stat.S_ISDIR(self.attr.mode)


class InodeTable:
    """All inodes of a mount or library instance. kept: the part of it that the engine answers with."""

    def __init__(self, kept: Kept | None = None) -> None:
        self.kept = kept or Kept()
        self.inodes: dict[int, Inode] = {}
        self.handles: dict[int, Handle] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # opened, without handles, oldest first
        self.forgotten: OrderedDict[int, None] = OrderedDict()  # known, without nlookup and not opened
        self._entries: OrderedDict[tuple[int, bytes], int] = OrderedDict()
        self._names: dict[int, set[bytes]] = {}  # of a directory
        self._next_fh = 1

    # --- inodes

    def describe(self, ino: int) -> str:
        """A path below the mount point, as last known, for people; what is not known of it is a number to be found with find -inum."""
        parts: list[str] = []
        at = ino
        while at != ROOT_INO and len(parts) < DEPTH_SHOWN_MAX:
            inode = self.inodes.get(at)
            if inode is None or inode.known_as is None:
                parts.append(f"<inode {at}>")
                break
            at, name = inode.known_as
            parts.append(name.decode(errors="backslashreplace"))
        return "/".join(reversed(parts)) or "."

    def get(self, ino: int) -> Inode | None:
        return self.inodes.get(ino)

    def need(self, ino: int) -> Inode:
        """The record, made when missing."""
        inode = self.inodes.get(ino)
        if inode is None:
            inode = self.inodes[ino] = Inode(ino)
        return inode

    def learn(self, attr: Attr) -> Inode:
        """Enter attributes that just came from the MDS. Those of a file we write are ours: size and newer mtime stay."""
        inode = self.need(attr.ino)
        self._unkeep(inode)
        attr = msgspec.structs.replace(attr)
        inode.size_told = attr.size
        if not inode.attr_valid:
            inode.xattrs.clear()
        inode.attr = attr
        inode.attr_valid = attr.cacheable
        if inode.lease == NONE and attr.cacheable:
            inode.lease = CACHE
        if inode.ours and inode.file is not None:
            attr.size = inode.file.size
            if inode.untold_mtime_ns:
                attr.mtime_ns = inode.untold_mtime_ns
                attr.ctime_ns = max(attr.ctime_ns, attr.mtime_ns)
            inode.attr_valid = inode.attr_valid or inode.lease == EXCLUSIVE
        self._note_idle(inode)
        return inode

    def invalidate(self, inode: Inode) -> None:
        """Its attributes may be old from now on."""
        inode.attr_valid = False
        self._unkeep(inode)

    def changed_dir(self, ino: int, attr: Attr | None) -> None:
        """We changed a directory; attr: what the MDS says of it now, None: that is to be asked for."""
        if attr is not None:
            self.learn(attr)
        elif (inode := self.inodes.get(ino)) is not None:
            self.invalidate(inode)

    def keep_attr(self, inode: Inode, attr: bytes) -> None:
        """The engine may answer with this struct fuse_attr as long as the attributes here stay as they are."""
        if inode.attr is not None and inode.attr_valid and inode.lease != NONE:
            inode.kept = self.kept.put_attr(inode.file, inode.ino, inode.attr.generation, attr) or inode.kept

    def keep_name(self, parent: int, name: bytes, ino: int) -> None:
        """The engine may answer with this name as long as it is known here. ino 0: that there is none."""
        if self._entries.get((parent, name)) == ino:
            self.kept.put_name(parent, name, ino)

    def _unkeep(self, inode: Inode) -> None:
        if inode.kept:
            inode.kept = False
            inode.nlookup += self.kept.drop_attr(inode.ino)

    def looked_up(self, inode: Inode) -> None:
        """The kernel holds one reference more."""
        inode.nlookup += 1
        self.forgotten.pop(inode.ino, None)

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped references."""
        inode = self.inodes.get(ino)
        if inode is None:
            return
        self._unkeep(inode)
        inode.nlookup = max(0, inode.nlookup - count)
        self._note_idle(inode)

    def _note_idle(self, inode: Inode) -> None:
        if inode.nlookup == 0 and not inode.opened and not inode.handles and inode.ino != ROOT_INO:
            self.forgotten[inode.ino] = None
            self.forgotten.move_to_end(inode.ino)

    def surplus(self) -> list[Inode]:
        """Forgotten inodes above the bound, oldest first, already removed here; their leases are to be given back."""
        gone = []
        while len(self.forgotten) > IDLE_ATTRS_MAX:
            ino, _ = self.forgotten.popitem(last=False)
            inode = self.inodes[ino]
            self._unkeep(inode)
            if inode.nlookup or inode.opened or inode.handles or inode.recalling:
                continue
            del self.inodes[ino]
            self.drop_names(ino)
            if inode.lease != NONE:
                gone.append(inode)
        return gone

    def drop(self, inode: Inode) -> None:
        """Forget an inode that has no handles, e.g. one that was deleted."""
        self.forgotten.pop(inode.ino, None)
        self.idle.pop(inode.ino, None)
        self.drop_names(inode.ino)
        self._unkeep(inode)
        if not inode.nlookup and self.inodes.get(inode.ino) is inode:
            del self.inodes[inode.ino]

    def leased(self) -> list[tuple[int, int]]:
        """(ino, mode) of everything held, for SessionResume."""
        return [(i.ino, i.lease) for i in self.inodes.values() if i.lease != NONE]

    def lower(self, inode: Inode, mode: int) -> None:
        """The lease is at most `mode` from now on. NONE ends the validity of attributes and names."""
        rank = {NONE: 0, CACHE: 1, SHARED: 2, EXCLUSIVE: 3}
        if rank[mode] < rank[inode.lease]:
            inode.lease = mode
        if mode == NONE:
            self.invalidate(inode)
            self.drop_names(inode.ino)

    def lose_all(self) -> None:
        """The session ended: nothing is valid."""
        for inode in self.inodes.values():
            inode.lease, inode.ours = NONE, False
            self.invalidate(inode)
            inode.complete = False
        for parent in list(self._names):
            self.drop_names(parent)

    # --- names

    def entry(self, parent: int, name: bytes) -> int | None:
        """ino, 0 for "known not to exist", None for unknown."""
        ino = self._entries.get((parent, name))
        if ino is not None:
            self._entries.move_to_end((parent, name))
            return ino
        directory = self.inodes.get(parent)
        return 0 if directory is not None and directory.complete else None

    def add_entry(self, parent: int, name: bytes, ino: int, *, granted: bool = False) -> None:
        """The MDS said so; ino 0: there is no such name. Kept while a lease of the directory makes it say when that changes.

        granted: the same reply gave us CACHE of the directory.
        """
        directory = self.need(parent)
        if granted and directory.lease == NONE:
            directory.lease = CACHE
        if directory.lease == NONE:
            self.drop_entry(parent, name)
            return
        if self._entries.get((parent, name), ino) != ino:
            self.kept.drop_name(parent, name)
        self._entries[parent, name] = ino
        self._entries.move_to_end((parent, name))
        self._names.setdefault(parent, set()).add(name)
        if len(self._entries) > ENTRIES_MAX:
            (old_parent, old_name), _ = self._entries.popitem(last=False)
            self.kept.drop_name(old_parent, old_name)
            self._discard(old_parent, old_name)
            self.need(old_parent).complete = False

    def changed_entry(self, parent: int, name: bytes, ino: int, *, sure: bool) -> None:
        """After a change of ours. sure: in the session that is open now; else the answer may be older than what is known, and nothing is known."""
        if sure:
            self.add_entry(parent, name, ino)
        else:
            self.drop_entry(parent, name)

    def drop_entry(self, parent: int, name: bytes) -> None:
        """Nothing is known of the name."""
        directory = self.inodes.get(parent)
        if directory is not None:
            directory.complete = False
        if self._entries.pop((parent, name), None) is not None:
            self.kept.drop_name(parent, name)
            self._discard(parent, name)

    def drop_names(self, parent: int) -> None:
        directory = self.inodes.get(parent)
        if directory is not None:
            directory.complete = False
        for name in self._names.pop(parent, ()):
            self.kept.drop_name(parent, name)
            self._entries.pop((parent, name), None)

    def _discard(self, parent: int, name: bytes) -> None:
        names = self._names.get(parent)
        if names is not None:
            names.discard(name)
            if not names:
                del self._names[parent]

    # --- handles

    def add_handle(self, inode: Inode, flags: int, writable: bool) -> Handle:
        handle = Handle(self._next_fh, inode.ino, flags, writable)
        self._next_fh += 1
        inode.handles[handle.fh] = self.handles[handle.fh] = handle
        self.idle.pop(inode.ino, None)
        self.forgotten.pop(inode.ino, None)
        return handle

    def remove_handle(self, fh: int) -> tuple[Handle, Inode] | None:
        """None for a handle that is not there."""
        handle = self.handles.pop(fh, None)
        if handle is None:
            return None
        inode = self.need(handle.ino)
        inode.handles.pop(fh, None)
        if not inode.handles and inode.opened:
            self.idle[inode.ino] = None
            self.idle.move_to_end(inode.ino)
        self._note_idle(inode)
        return handle, inode

    def idle_surplus(self) -> list[Inode]:
        """Files that nobody has open here, oldest first, once there are too many: several, so that they are given back together."""
        if len(self.idle) <= IDLE_FILES_MAX:
            return []
        oldest = itertools.islice(self.idle, len(self.idle) - IDLE_FILES_MAX * 31 // 32)
        return [self.inodes[ino] for ino in oldest if ino in self.inodes]
