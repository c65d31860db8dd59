"""The key schema: first byte kind, second byte shard, then ids big-endian, so that a range of one kind and shard is a bounded span.

Keys of other first bytes belong to the store's shell (leader, sequence) and are ignored by the model.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

CLUSTER, SECRET, COUNTER, CONFIG, EVENTS = b"g", b"z", b"n", b"c", b"v"
INODE, DENTRY, EXTENT, XATTR, ORPHAN, SESSION, CS = b"i", b"d", b"e", b"x", b"o", b"u", b"k"
SHARDED = (INODE, DENTRY, EXTENT, XATTR)  # by inode: many records
SINGLE = (CLUSTER, SECRET, COUNTER, CONFIG, EVENTS, ORPHAN, SESSION, CS)
SHARDS = 256

_ID = struct.Struct(">BQ")
_EXT = struct.Struct(">BQI")


def inode(ino: int) -> bytes:
    """The inode record."""
    return INODE + _ID.pack(ino & 0xFF, ino)


def dentry(parent: int, name: bytes) -> bytes:
    """An entry of a directory; in the shard of the directory."""
    return DENTRY + _ID.pack(parent & 0xFF, parent) + name


def extent(ino: int, number: int) -> bytes:
    """Chunks number*64 ... number*64+63 of a file."""
    return EXTENT + _EXT.pack(ino & 0xFF, ino, number)


def xattr(ino: int, name: bytes) -> bytes:
    """An extended attribute."""
    return XATTR + _ID.pack(ino & 0xFF, ino) + name


def orphan(ino: int) -> bytes:
    """A file without a name."""
    return ORPHAN + _ID.pack(0, ino)


def session(session_id: int) -> bytes:
    """A client's session."""
    return SESSION + _ID.pack(0, session_id)


def cs(cs_id: int) -> bytes:
    """A chunk server."""
    return CS + _ID.pack(0, cs_id)


def events(slot: int) -> bytes:
    """A slot of the ring of events."""
    return EVENTS + _ID.pack(0, slot)


def named(kind: bytes, name: str) -> bytes:
    """A secret, counter or configuration value."""
    return kind + b"\0" + name.encode()


CLUSTER_KEY = named(CLUSTER, "cluster")


def split_id(key: bytes) -> int:
    """The id in an inode, dentry, extent, xattr, orphan, session, CS or event key."""
    return int.from_bytes(key[2:10], "big")


def split_name(key: bytes) -> str:
    """The name in a secret, counter or configuration key."""
    return key[2:].decode()


def load_spans() -> Iterator[tuple[bytes, bytes]]:
    """Half-open key ranges [start, end) that together hold every record of the model, each small enough for one range request."""
    for kind in SINGLE:
        yield kind, bytes([kind[0] + 1])
    for kind in SHARDED:
        for shard in range(SHARDS):
            start = kind + bytes([shard])
            yield start, kind + bytes([shard + 1]) if shard < 255 else bytes([kind[0] + 1])
