"""What all control messages have in common: the base of bodies, bounds, and pieces that several subjects use."""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 16 << 20  # one envelope; READDIR and inventories are paged below it
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 65536
MAP_CHUNKS_MAX = 256  # chunks in one GetMap
DIR_ENTRIES_MAX = 4096  # entries in one ReadDir reply
ROOT_INO = 1

# Lease modes (also vst_file_set_lease): CACHE lets a client cache attributes (and a directory's entries).
NONE, SHARED, EXCLUSIVE, CACHE = 0, 1, 2, 3


class Body(msgspec.Struct, array_like=True, gc=False):
    """Base of every body."""


class Attr(Body):
    """Attributes of an inode. Times in ns since the epoch; size in bytes; mode holds the type bits too."""

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int  # of 512 bytes, an estimate
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    cacheable: bool = True  # False: another client writes it now, do not cache


class ChunkMap(Body):
    """One chunk of a file. `replicas` empty: a hole (reads are zeros)."""

    index: int
    chunk_id: int
    version: int
    flags: int  # 1: void, never reported written (the ticket carries CREATE)
    replicas: list[int]
    ticket: bytes = b""


class CsAccess(Body):
    """How a session reaches a chunk server."""

    cs_id: int
    addresses: list[str]  # "ip:port", "unix:/path" (only for the same host_id)
    host_id: str
    expiry_ms: int
    key: bytes
