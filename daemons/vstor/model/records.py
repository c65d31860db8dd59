"""What stands in the store, one Struct for each kind of record, and the packed extents of chunk maps.

DESIGN: a record is one schema byte, then msgpack of an array-form Struct: new fields go to the end with a default, so that an older
program's records stay readable; a change that an older program must not read raises the number, and reading a newer number is refused.
Structs are gc=False: a million of them cost the collector nothing (research: 1.2 ms against 191 ms a pass).
They are never changed in place once `State` holds them, only replaced.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

SCHEMA = 1
EXTENT_CHUNKS = 64  # chunks in one extent record
VOID = 1  # Chunk.flags: allocated, never reported written

T = TypeVar("T", bound="Record")
_pack = msgspec.msgpack.Encoder().encode


class Record(msgspec.Struct, array_like=True, gc=False):
    """Base of all records."""


class Inode(Record):
    """A file, directory or special file. Times in ns since the epoch."""

    ino: int
    generation: int
    mode: int  # with type bits
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    policy: int  # Policy.pack()
    rdev: int = 0
    parent: int = 0  # directories: the ino of ".."
    writer: int = (
        0  # session that holds EXCLUSIVE: after a failover its chunks need reconciliation unless it comes back
    )
    used: int = 0  # files: chunks that are not void; directories: entries
    next_cookie: int = 0  # directories: cookie of the next entry
    target: bytes = b""  # symlinks


class Dentry(Record):
    """An entry of a directory. cookie grows with each entry made and is never reused in the directory."""

    ino: int
    type: int  # S_IFMT >> 12
    cookie: int


class Orphan(Record):
    """A file without a name, kept while it is open (or while a new leader does not know yet whether it is).

    since_ms: when it lost its name; of a replaced one, until when it is kept in any case.
    """

    since_ms: int


class Session(Record):
    """A client's session. results: request id -> encoded reply of changes the client has not acknowledged yet.

    ended_ms: it is over; the record is kept for what the client's next session takes over as `former` (sessions.py).
    """

    session_id: int
    name: str
    pid: int
    host_id: str
    hostname: str
    opened_ms: int
    results: dict[int, bytes] = {}
    ended_ms: int = 0
    former: dict[int, bytes] = {}


class Cs(Record):
    """A chunk server, as known also when it is away. admin: normal, releasing, failed, maintenance, dropped."""

    cs_id: int
    host_id: str
    hostname: str
    tier: int
    path: str
    created_ms: int
    admin: str = "normal"
    location: str = ""
    addresses: list[str] = []
    incarnation: int = 0
    down_ms: int = 0  # since when it does not answer; 0: it does
    space_bytes: int = 0  # as last registered, for figures while it is away
    version: str = ""


class Cluster(Record):
    """The cluster itself. Ticket keys are derived from the data key and their number."""

    name: str
    cluster_id: str
    created_ms: int
    ticket_key_id: int = 1
    ticket_key_ms: int = 0  # when this key became the newest
    epoch_base: int = (
        0  # added to the create revision of the leader key: a restored etcd counts from lower revisions again
    )
    restored_ms: int = 0  # when a restore began that is not reconciled yet (restored.py); 0: none
    unknown_from: int = 0  # chunk ids from here ...
    unknown_to: int = 0  # ... to below here may be of chunks made after the backup
    backup_ms: int = 0  # when the last backup was taken


class Blob(Record):
    """A secret or another opaque value."""

    data: bytes


class Text(Record):
    """A value of the cluster configuration."""

    value: str


class Counter(Record):
    """Ids below `limit` may have been given out; a leader reserves them in blocks."""

    limit: int


class Event(Record):
    """A line of the event log. severity: info, warn, err."""

    id: int
    time_ms: int
    system: str
    severity: str
    message: str


class EventSlot(Record):
    """Some consecutive events; slots are used in turn, so the log is bounded without deletions."""

    events: list[Event]


def encode(record: Record) -> bytes:
    """Bytes of a record, with its schema number."""
    return b"\x01" + _pack(record)


@functools.cache
def _decoder(kind: type[Record]) -> msgspec.msgpack.Decoder[Record]:
    return msgspec.msgpack.Decoder(kind)


def decode(kind: type[T], data: bytes) -> T:
    """The record in `data`. Raises VstorError: NEWER_FORMAT, DAMAGED."""
    check_schema(data)
    try:
        return _decoder(kind).decode(memoryview(data)[1:])  # type: ignore[return-value]
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise VstorError(ErrorCode.DAMAGED, f"metadata record {kind.__name__} is damaged: {exc}") from exc


def check_schema(data: bytes) -> None:
    """Refuse what a newer program wrote."""
    if not data:
        raise VstorError(ErrorCode.DAMAGED, "empty metadata record")
    if data[0] != SCHEMA:
        code = ErrorCode.NEWER_FORMAT if data[0] > SCHEMA else ErrorCode.DAMAGED
        raise VstorError(code, f"metadata record of schema {data[0]}, this program knows {SCHEMA}")


DOMAINS = ("disk", "host", "rack", "row", "room")


class Policy(NamedTuple):
    """How a file's chunks are kept; directories hold what new children get."""

    normal: int  # replicas wanted, 1..15
    minimum: int  # replicas below which writes wait, 1..normal
    domain: int  # index into DOMAINS
    tier: int  # 0..3
    chunk_shift: int  # log2 of the chunk's bytes
    ssd_cache: int = 1

    def pack(self) -> int:
        """One integer for the inode record."""
        return (
            self.normal | self.minimum << 4 | self.domain << 8 | self.tier << 11 | self.chunk_shift << 13
        ) | self.ssd_cache << 19

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk."""
        return 1 << self.chunk_shift


@functools.lru_cache(maxsize=1024)
def unpack_policy(packed: int) -> Policy:
    """The inverse of Policy.pack."""
    return Policy(packed & 15, packed >> 4 & 15, packed >> 8 & 7, packed >> 11 & 3, packed >> 13 & 63, packed >> 19 & 1)


class Chunk(NamedTuple):
    """A chunk of a file: its number, version and the chunk servers that hold the valid replicas."""

    id: int
    version: int
    flags: int
    replicas: tuple[int, ...]


_HEADER = struct.Struct("<BBHQ")  # schema, replica slots, chunks present, bitmap of present indexes
_FIXED = struct.Struct("<QIB")


@functools.cache
def _entry(slots: int) -> struct.Struct:
    return struct.Struct(f"<QIB{slots}I")  # 25 bytes at 3 replicas


def pack_extent(chunks: dict[int, Chunk]) -> bytes:
    """Pack chunks by index within the extent (0..63). Slots without a replica are 0; CS ids start above 0."""
    slots = max((len(c.replicas) for c in chunks.values()), default=0)
    entry, bitmap, parts = _entry(slots), 0, []
    for index in sorted(chunks):
        chunk = chunks[index]
        bitmap |= 1 << index
        pad = (0,) * (slots - len(chunk.replicas))
        parts.append(entry.pack(chunk.id, chunk.version, chunk.flags, *chunk.replicas, *pad))
    return _HEADER.pack(SCHEMA, slots, len(chunks), bitmap) + b"".join(parts)


def check_extent(data: bytes) -> None:
    """Refuse a record whose header does not fit its length. Raises VstorError."""
    check_schema(data)
    if len(data) < _HEADER.size:
        raise VstorError(ErrorCode.DAMAGED, "extent record is too short")
    _, slots, count, bitmap = _HEADER.unpack_from(data)
    if bitmap.bit_count() != count or len(data) != _HEADER.size + count * _entry(slots).size:
        raise VstorError(ErrorCode.DAMAGED, "extent record does not fit its header")


def _chunk(entry: struct.Struct, data: bytes, offset: int) -> Chunk:
    values = entry.unpack_from(data, offset)
    return Chunk(values[0], values[1], values[2], tuple(r for r in values[3:] if r))


def extent_chunk(data: bytes, index: int) -> Chunk | None:
    """One chunk of a packed extent, without unpacking the others."""
    _, slots, _, bitmap = _HEADER.unpack_from(data)
    if not bitmap >> index & 1:
        return None
    entry = _entry(slots)
    return _chunk(entry, data, _HEADER.size + entry.size * (bitmap & ((1 << index) - 1)).bit_count())


def extent_items(data: bytes) -> Iterable[tuple[int, Chunk]]:
    """All chunks of a packed extent as (index within the extent, chunk)."""
    _, slots, _, bitmap = _HEADER.unpack_from(data)
    entry, offset = _entry(slots), _HEADER.size
    for index in range(EXTENT_CHUNKS):
        if bitmap >> index & 1:
            yield index, _chunk(entry, data, offset)
            offset += entry.size
