"""The changes of one step, before they are applied: a view of State in which they are already done."""

from __future__ import annotations

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import keys
from vstor.model.records import (
    EXTENT_CHUNKS,
    Blob,
    Chunk,
    Cluster,
    Counter,
    Cs,
    Dentry,
    Event,
    EventSlot,
    Inode,
    Orphan,
    Session,
    Text,
    encode,
    extent_items,
    pack_extent,
)
from vstor.model.state import State

ID_BLOCKS = {"ino": 1024, "chunk": 4096, "session": 64, "cs": 1, "event": 64}  # ids reserved by one counter record
EVENTS_PER_SLOT = 16
EVENT_SLOTS = 256  # so the log keeps 4096 events
EVENT_CHARS_MAX = 1000


class Ids:
    """Numbers never given out twice. A new leader starts at the reserved limit of the one before."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.next = dict(state.counters)

    def take(self, name: str, tx: Tx) -> int:
        """The next id; reserves a block in `tx` when the last is used up."""
        value = self.next[name]
        self.next[name] = value + 1
        if value >= max(self._state.counters[name], tx.counters.get(name, 0)):
            tx.counters[name] = value + ID_BLOCKS[name]
        return value


class Tx:
    """Pending changes by record. Objects it hands out are copies that may be changed until `finish`."""

    def __init__(self, state: State, ids: Ids) -> None:
        self.state = state
        self._ids = ids
        self.counters: dict[str, int] = {}
        self._inodes: dict[int, Inode | None] = {}
        self._sessions: dict[int, Session | None] = {}
        self._servers: dict[int, Cs] = {}
        self._extents: dict[tuple[int, int], dict[int, Chunk]] = {}
        self._dentries: dict[tuple[int, bytes], Dentry | None] = {}
        self._events: dict[int, list[Event]] = {}
        self._raw: dict[bytes, bytes | None] = {}

    def new_id(self, name: str) -> int:
        """A new inode, chunk, session, cs or event number."""
        return self._ids.take(name, self)

    # --- inodes and entries -------------------------------------------------------------------------------------

    def peek(self, ino: int) -> Inode | None:
        """The inode as it will be, not to be changed."""
        return self._inodes[ino] if ino in self._inodes else self.state.inodes.get(ino)

    def inode(self, ino: int) -> Inode:
        """The inode, to be changed. Raises BAD_HANDLE."""
        pending = self._inodes.get(ino)
        if pending is not None:
            return pending
        stored = None if ino in self._inodes else self.state.inodes.get(ino)
        if stored is None:
            raise VstorError(ErrorCode.BAD_HANDLE)
        copy = self._inodes[ino] = msgspec.structs.replace(stored)
        return copy

    def add_inode(self, inode: Inode) -> Inode:
        """A new inode."""
        self._inodes[inode.ino] = inode
        return inode

    def remove_inode(self, ino: int) -> None:
        """The inode with its extended attributes and orphan record; chunks are the caller's."""
        self._inodes[ino] = None
        for name in self.state.xattrs.get(ino, ()):
            self._raw[keys.xattr(ino, name)] = None
        if ino in self.state.orphans:
            self._raw[keys.orphan(ino)] = None

    def entry(self, parent: int, name: bytes) -> Dentry | None:
        """The entry as it will be."""
        if (parent, name) in self._dentries:
            return self._dentries[parent, name]
        return self.state.directory(parent).entries.get(name)

    def put_entry(self, parent: Inode, name: bytes, ino: int, kind: int) -> None:
        """Add or replace an entry, with a new cookie. `parent` comes from `inode`."""
        if self.entry(parent.ino, name) is None:
            parent.used += 1
        self._dentries[parent.ino, name] = Dentry(ino, kind, parent.next_cookie)
        parent.next_cookie += 1

    def remove_entry(self, parent: Inode, name: bytes) -> None:
        """Remove an entry that exists."""
        parent.used -= 1
        self._dentries[parent.ino, name] = None

    def put_orphan(self, ino: int, since_ms: int) -> None:
        """The inode has lost its last name while open."""
        self._raw[keys.orphan(ino)] = encode(Orphan(since_ms))

    def put_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """Set or (None) remove an extended attribute."""
        self._raw[keys.xattr(ino, name)] = None if value is None else encode(Blob(value))

    # --- chunks -------------------------------------------------------------------------------------------------

    def _extent(self, ino: int, number: int) -> dict[int, Chunk]:
        pending = self._extents.get((ino, number))
        if pending is None:
            data = self.state.extents.get(ino, {}).get(number)
            pending = self._extents[ino, number] = {} if data is None else dict(extent_items(data))
        return pending

    def chunk(self, ino: int, index: int) -> Chunk | None:
        """The chunk as it will be."""
        if (ino, index // EXTENT_CHUNKS) in self._extents:
            return self._extents[ino, index // EXTENT_CHUNKS].get(index % EXTENT_CHUNKS)
        return self.state.chunk(ino, index)

    def put_chunk(self, ino: int, index: int, chunk: Chunk | None) -> None:
        """Set or (None) remove a chunk of a file."""
        extent = self._extent(ino, index // EXTENT_CHUNKS)
        if chunk is None:
            extent.pop(index % EXTENT_CHUNKS, None)
        else:
            extent[index % EXTENT_CHUNKS] = chunk

    # --- the rest -------------------------------------------------------------------------------------------------

    def session(self, session_id: int) -> Session:
        """The session record, to be changed. Raises NO_SESSION."""
        pending = self._sessions.get(session_id)
        if pending is not None:
            return pending
        stored = None if session_id in self._sessions else self.state.sessions.get(session_id)
        if stored is None:
            raise VstorError(ErrorCode.NO_SESSION)
        copy = self._sessions[session_id] = msgspec.structs.replace(
            stored, results=dict(stored.results)
        )  # former is replaced as a whole
        return copy

    def put_session(self, session_id: int, record: Session | None) -> None:
        """Add or (None) end a session."""
        self._sessions[session_id] = record

    def server(self, cs_id: int) -> Cs:
        """The record of a chunk server, to be changed. Raises NOT_MDS (no such server)."""
        pending = self._servers.get(cs_id)
        if pending is not None:
            return pending
        stored = self.state.servers.get(cs_id)
        if stored is None:
            raise VstorError(ErrorCode.NOT_MDS, f"no chunk server CS#{cs_id}")
        copy = self._servers[cs_id] = msgspec.structs.replace(stored)
        return copy

    def add_server(self, record: Cs) -> None:
        """A new chunk server."""
        self._servers[record.cs_id] = record

    def put_config(self, name: str, value: str) -> None:
        """Set a configuration value."""
        self._raw[keys.named(keys.CONFIG, name)] = encode(Text(value))

    def put_cluster(self, record: Cluster) -> None:
        """Replace the cluster record."""
        self._raw[keys.CLUSTER_KEY] = encode(record)

    def event(self, severity: str, system: str, message: str, now_ms: int) -> None:
        """A line for the event log. severity: info, warn, err."""
        number = self.new_id("event")
        slot = number // EVENTS_PER_SLOT % EVENT_SLOTS
        held = self._events.get(slot, self.state.events.get(slot, []))
        if held and held[0].id // EVENTS_PER_SLOT != number // EVENTS_PER_SLOT:
            held = []  # the ring came round
        self._events[slot] = [*held, Event(number, now_ms, system, severity, message[:EVENT_CHARS_MAX])]

    def dirty(self) -> bool:
        """Something is to be written."""
        return any((
            self.counters, self._inodes, self._sessions, self._servers, self._extents, self._dentries, self._events, self._raw,
        ))  # fmt: skip

    def finish(self) -> list[tuple[bytes, bytes | None]]:
        """All changes as records; each key once."""
        out: list[tuple[bytes, bytes | None]] = list(self._raw.items())
        out += [(keys.named(keys.COUNTER, n), encode(Counter(v))) for n, v in self.counters.items()]
        out += [(keys.inode(n), None if r is None else encode(r)) for n, r in self._inodes.items()]
        out += [(keys.dentry(*k), None if r is None else encode(r)) for k, r in self._dentries.items()]
        out += [(keys.extent(*k), pack_extent(r) if r else None) for k, r in self._extents.items()]
        out += [(keys.session(n), None if r is None else encode(r)) for n, r in self._sessions.items()]
        out += [(keys.cs(n), encode(r)) for n, r in self._servers.items()]
        out += [(keys.events(n), encode(EventSlot(r))) for n, r in self._events.items()]
        return out
