"""Everything durable, in memory. `apply` is its only writer, on leader and standby, in replay and in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import attrs, keys
from vstor.model.directory import EMPTY, Directory
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
    check_extent,
    decode,
    extent_chunk,
    extent_items,
)


class State:
    """The metadata of a cluster, decoded. Empty when made; then `load` once, then `apply` for each commit.

    Records are shared with whoever reads them and never changed in place. chunk_home, by_cs, writers and the sums follow from
    the records and are kept up here, so that they are right whoever applied.
    """

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.secrets: dict[str, bytes] = {}
        self.counters: dict[str, int] = {}
        self.config: dict[str, str] = {}
        self.events: dict[int, list[Event]] = {}  # by slot
        self.inodes: dict[int, Inode] = {}
        self.dirs: dict[int, Directory] = {}  # only directories that have entries
        self.extents: dict[int, dict[int, bytes]] = {}  # ino -> extent number -> packed chunks
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.orphans: dict[int, Orphan] = {}
        self.sessions: dict[int, Session] = {}
        self.ended: dict[int, Session] = {}  # sessions that are over, with outcomes the client may not know
        self.servers: dict[int, Cs] = {}
        # derived
        self.chunk_home: dict[int, int] = {}  # chunk id -> ino << 32 | index
        self.by_cs: dict[int, set[int]] = {}  # cs id -> chunk ids with a replica there
        self.writers: dict[int, set[int]] = {}  # session id -> inodes it is the writer of
        self.logical_bytes = 0
        self.changed: set[int] | None = None  # chunk ids touched since a Core last looked; None: nobody looks

    def load(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over a snapshot, in any order. Raises VstorError: NEWER_FORMAT, DAMAGED."""
        self.apply(items)

    def apply(self, mutations: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take over the mutations of one or more Outcomes, in commit order. Keys that are not the model's are ignored.

        Raises VstorError: NEWER_FORMAT, DAMAGED (the caller must stop serving: part may be applied).
        """
        for key, value in mutations:
            change = _CHANGES.get(key[:1])
            if change is not None:
                change(self, key, value)

    # --- reading ---------------------------------------------------------------------------------------------

    def directory(self, ino: int) -> Directory:
        """Entries of a directory; EMPTY must not be changed."""
        return self.dirs.get(ino, EMPTY)

    def chunk(self, ino: int, index: int) -> Chunk | None:
        """Chunk `index` of a file, None for a hole."""
        data = self.extents.get(ino, {}).get(index // EXTENT_CHUNKS)
        return None if data is None else extent_chunk(data, index % EXTENT_CHUNKS)

    def chunk_by_id(self, chunk_id: int) -> tuple[int, int, Chunk] | None:
        """(ino, index, chunk) of a chunk in use."""
        home = self.chunk_home.get(chunk_id)
        if home is None:
            return None
        ino, index = home >> 32, home & 0xFFFFFFFF
        chunk = self.chunk(ino, index)
        assert chunk is not None
        assert chunk.id == chunk_id
        return ino, index, chunk

    def chunks(self, ino: int) -> Iterator[tuple[int, Chunk]]:
        """All chunks of a file in order of index."""
        extents = self.extents.get(ino, {})
        for number in sorted(extents):
            for index, chunk in extent_items(extents[number]):
                yield number * EXTENT_CHUNKS + index, chunk

    # --- one method a kind of record ----------------------------------------------------------------------------

    def _cluster(self, key: bytes, value: bytes | None) -> None:
        self.cluster = None if value is None else decode(Cluster, value)

    def _secret(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.secrets.pop(keys.split_name(key), None)
        else:
            self.secrets[keys.split_name(key)] = decode(Blob, value).data

    def _counter(self, key: bytes, value: bytes | None) -> None:
        self.counters[keys.split_name(key)] = 0 if value is None else decode(Counter, value).limit

    def _config(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.config.pop(keys.split_name(key), None)
        else:
            self.config[keys.split_name(key)] = decode(Text, value).value

    def _events(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.events.pop(keys.split_id(key), None)
        else:
            self.events[keys.split_id(key)] = decode(EventSlot, value).events

    def _inode(self, key: bytes, value: bytes | None) -> None:
        ino = keys.split_id(key)
        new = None if value is None else decode(Inode, value)
        old = self.inodes.get(ino)
        if old is not None:
            self.logical_bytes -= attrs.blocks(old) << 9
            if old.writer and (new is None or new.writer != old.writer):
                held = self.writers[old.writer]
                held.discard(ino)
                if not held:
                    del self.writers[old.writer]
        if new is None:
            self.inodes.pop(ino, None)
            return
        self.logical_bytes += attrs.blocks(new) << 9
        if new.writer:
            self.writers.setdefault(new.writer, set()).add(ino)
        self.inodes[ino] = new
        if self.changed is not None and old is not None and old.policy != new.policy:
            self.changed.update(chunk.id for _, chunk in self.chunks(ino))

    def _dentry(self, key: bytes, value: bytes | None) -> None:
        parent, name = keys.split_id(key), key[10:]
        if value is not None:
            self.dirs.setdefault(parent, Directory()).put(name, decode(Dentry, value))
            return
        directory = self.dirs.get(parent)
        if directory is not None:
            directory.remove(name)
            if not directory.entries:
                del self.dirs[parent]

    def _extent(self, key: bytes, value: bytes | None) -> None:
        ino, number = keys.split_id(key), int.from_bytes(key[10:14], "big")
        if value is not None:
            check_extent(value)
        extents = self.extents.setdefault(ino, {})
        old_data = extents.pop(number, None)
        old = {} if old_data is None else dict(extent_items(old_data))
        new = {} if value is None else dict(extent_items(value))
        for index, chunk in old.items():
            if new.get(index) != chunk:
                self._forget_chunk(chunk)
        for index, chunk in new.items():
            if old.get(index) != chunk:
                self._learn_chunk(chunk, ino << 32 | (number * EXTENT_CHUNKS + index))
        if value is not None:
            extents[number] = value
        elif not extents:
            del self.extents[ino]

    def _forget_chunk(self, chunk: Chunk) -> None:
        self.chunk_home.pop(chunk.id, None)
        for cs_id in chunk.replicas:
            self.by_cs[cs_id].discard(chunk.id)
        if self.changed is not None:
            self.changed.add(chunk.id)

    def _learn_chunk(self, chunk: Chunk, home: int) -> None:
        self.chunk_home[chunk.id] = home
        for cs_id in chunk.replicas:
            self.by_cs.setdefault(cs_id, set()).add(chunk.id)
        if self.changed is not None:
            self.changed.add(chunk.id)

    def _xattr(self, key: bytes, value: bytes | None) -> None:
        ino, name = keys.split_id(key), key[10:]
        if value is not None:
            self.xattrs.setdefault(ino, {})[name] = decode(Blob, value).data
            return
        held = self.xattrs.get(ino)
        if held is not None:
            held.pop(name, None)
            if not held:
                del self.xattrs[ino]

    def _orphan(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.orphans.pop(keys.split_id(key), None)
        else:
            self.orphans[keys.split_id(key)] = decode(Orphan, value)

    def _session(self, key: bytes, value: bytes | None) -> None:
        session_id, record = keys.split_id(key), None if value is None else decode(Session, value)
        self.sessions.pop(session_id, None)
        self.ended.pop(session_id, None)
        if record is not None:
            (self.ended if record.ended_ms else self.sessions)[session_id] = record

    def _server(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            raise VstorError(ErrorCode.DAMAGED, "a chunk server record was deleted; ids are never forgotten")
        self.servers[keys.split_id(key)] = decode(Cs, value)


_CHANGES: dict[bytes, Callable[[State, bytes, bytes | None], None]] = {
    keys.CLUSTER: State._cluster,
    keys.SECRET: State._secret,
    keys.COUNTER: State._counter,
    keys.CONFIG: State._config,
    keys.EVENTS: State._events,
    keys.INODE: State._inode,
    keys.DENTRY: State._dentry,
    keys.EXTENT: State._extent,
    keys.XATTR: State._xattr,
    keys.ORPHAN: State._orphan,
    keys.SESSION: State._session,
    keys.CS: State._server,
}
