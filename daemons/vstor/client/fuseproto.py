"""The kernel's FUSE messages as Python sees them: parse requests, build replies.

DESIGN: pure functions over `struct`; no I/O.  Numbers and layouts are those of <linux/fuse.h> 7.38 (native byte order of a
64-bit little-endian machine, which is all vstor runs on); tests/unit/client/test_fuseproto.py compares sizes and offsets with the
header.  Only what reaches Python is here: READ, WRITE and friends are answered by the C engine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from vstor.proto.messages import Attr

MINOR = 38
NSEC = 1_000_000_000


class Op(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Notify(IntEnum):
    """enum fuse_notify_code."""

    INVAL_INODE = 2
    INC_EPOCH = 8  # from Linux 6.16 on


# fuse_setattr_in.valid
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1, 2, 4, 8
FATTR_ATIME, FATTR_MTIME, FATTR_FH, FATTR_ATIME_NOW, FATTR_MTIME_NOW = 16, 32, 64, 128, 256
FATTR_LOCKOWNER, FATTR_CTIME, FATTR_KILL_SUIDGID = 512, 1024, 2048
# fuse_open_out.open_flags
FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PARALLEL_DIRECT_WRITES = 1, 2, 32, 64
# fuse_open_in.open_flags
OPEN_KILL_SUIDGID = 1
# others
RELEASE_FLOCK_UNLOCK = 2
LK_FLOCK = 1
WRITE_CACHE, WRITE_KILL_SUIDGID = 1, 4
GETATTR_FH = 1
FSYNC_FDATASYNC = 1

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
ENTRY_HEAD = struct.Struct("<4Q2I")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ATTR_HEAD = struct.Struct("<QII")
OPEN_OUT = struct.Struct("<QII")
SETATTR_IN = struct.Struct("<II6Q8I")
STATFS_OUT = struct.Struct("<5Q4I6I")
DIRENT = struct.Struct("<QQII")
LK_IN = struct.Struct("<QQQQIIII")
LK_OUT = struct.Struct("<QQII")
WRITE_IN = struct.Struct("<QQIIQII")
READ_IN = WRITE_IN
FALLOCATE_IN = struct.Struct("<QQQII")
LSEEK_IN = struct.Struct("<QQII")
RELEASE_IN = struct.Struct("<QIIQ")
FLUSH_IN = struct.Struct("<QIIQ")
FSYNC_IN = struct.Struct("<QII")
GETATTR_IN = struct.Struct("<IIQ")
CREATE_IN = struct.Struct("<IIII")
OPEN_IN = struct.Struct("<II")
MKNOD_IN = struct.Struct("<IIII")
MKDIR_IN = struct.Struct("<II")
RENAME2_IN = struct.Struct("<QII")
GETXATTR = struct.Struct("<II")
SETXATTR_IN_COMPAT = struct.Struct("<II")  # without FUSE_SETXATTR_EXT
U64 = struct.Struct("<Q")
INVAL_INODE_OUT = struct.Struct("<Qqq")
FORGET_ONE = struct.Struct("<QQ")
WRITE_OUT = struct.Struct("<II")

ENTRY_OUT_BYTES = ENTRY_HEAD.size + ATTR.size


@dataclass(slots=True)
class FuseRequest:
    """One kernel request. `body` is what follows fuse_in_header."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: memoryview


def parse(message: bytes | bytearray | memoryview) -> FuseRequest:
    """Cut a kernel message. Raises ValueError when its length is not the one in its header."""
    view = memoryview(message)
    if len(view) < IN_HEADER.size:
        raise ValueError(f"FUSE message of {len(view)} bytes")
    length, opcode, unique, nodeid, uid, gid, pid, ext8, _ = IN_HEADER.unpack_from(view)
    if length != len(view):
        raise ValueError(f"FUSE message of {len(view)} bytes says {length}")
    return FuseRequest(opcode, unique, nodeid, uid, gid, pid, view[IN_HEADER.size : length - 8 * ext8])


def cstring(body: memoryview, offset: int = 0) -> bytes:
    """The zero-terminated name that starts at offset."""
    raw = bytes(body[offset:])
    end = raw.find(b"\0")
    if end < 0:
        raise ValueError("name without its end")
    return raw[:end]


def two_cstrings(body: memoryview, offset: int = 0) -> tuple[bytes, bytes]:
    """Two names one after the other (RENAME, SYMLINK)."""
    first = cstring(body, offset)
    return first, cstring(body, offset + len(first) + 1)


def forgets(request: FuseRequest) -> list[tuple[int, int]]:
    """(nodeid, nlookup) of FORGET or BATCH_FORGET."""
    if request.opcode == Op.FORGET:
        return [(request.nodeid, U64.unpack_from(request.body)[0])]
    (count, _) = GETXATTR.unpack_from(request.body)
    return list(FORGET_ONE.iter_unpack(request.body[8 : 8 + 16 * count]))


def split_ns(ns: int) -> tuple[int, int]:
    """Seconds (as the kernel's u64) and nanoseconds; times before 1970 wrap as the kernel expects."""
    seconds, rest = divmod(ns, NSEC)
    return seconds & 0xFFFFFFFFFFFFFFFF, rest


def attr(a: Attr, blksize: int = 4096) -> bytes:
    """struct fuse_attr. blksize: what st_blksize shall be."""
    (asec, ansec), (msec, mnsec), (csec, cnsec) = split_ns(a.atime_ns), split_ns(a.mtime_ns), split_ns(a.ctime_ns)
    return ATTR.pack(
        a.ino, a.size, a.blocks, asec, msec, csec, ansec, mnsec, cnsec,
        a.mode, a.nlink, a.uid, a.gid, a.rdev, blksize, 0,
    )  # fmt: skip


def entry_out(a: Attr, entry_valid_ms: int, attr_valid_ms: int) -> bytes:
    """struct fuse_entry_out for an entry that exists."""
    es, em = divmod(max(0, entry_valid_ms), 1000)
    as_, am = divmod(max(0, attr_valid_ms), 1000)
    return ENTRY_HEAD.pack(a.ino, a.generation, es, as_, em * 1_000_000, am * 1_000_000) + attr(a)


def no_entry_out(entry_valid_ms: int) -> bytes:
    """struct fuse_entry_out for a name that does not exist, to be remembered."""
    s, ms = divmod(max(0, entry_valid_ms), 1000)
    return ENTRY_HEAD.pack(0, 0, s, 0, ms * 1_000_000, 0) + bytes(ATTR.size)


def attr_out(a: Attr, attr_valid_ms: int) -> bytes:
    """struct fuse_attr_out."""
    s, m = divmod(max(0, attr_valid_ms), 1000)
    return ATTR_HEAD.pack(s, m * 1_000_000, 0) + attr(a)


def open_out(fh: int, flags: int) -> bytes:
    """struct fuse_open_out."""
    return OPEN_OUT.pack(fh, flags, 0)


def statfs_out(
    total_bytes: int, free_bytes: int, files: int, files_free: int, block_bytes: int = 4096, name_max: int = 255
) -> bytes:
    """struct fuse_statfs_out, in blocks of block_bytes."""
    free = free_bytes // block_bytes
    return STATFS_OUT.pack(
        total_bytes // block_bytes,
        free,
        free,
        files,
        files_free,
        block_bytes,
        name_max,
        block_bytes,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )


def lk_out(start: int, end: int, type_: int, pid: int) -> bytes:
    """struct fuse_lk_out. type is fcntl's F_RDLCK, F_WRLCK, F_UNLCK; end inclusive."""
    return LK_OUT.pack(start, end, type_, pid)


def _padded(name: bytes) -> bytes:
    return name + bytes(-(DIRENT.size + len(name)) % 8)


def dirent(ino: int, cookie: int, type_: int, name: bytes) -> bytes:
    """struct fuse_dirent with name and padding. cookie: where reading goes on after this entry; type: S_IFMT >> 12."""
    return DIRENT.pack(ino, cookie, len(name), type_) + _padded(name)


def direntplus(entry: bytes, ino: int, cookie: int, type_: int, name: bytes) -> bytes:
    """struct fuse_direntplus; entry is from entry_out, or zeros when the kernel shall look the name up itself."""
    return entry + DIRENT.pack(ino, cookie, len(name), type_) + _padded(name)


def inval_inode(ino: int, offset: int, length: int) -> bytes:
    """Body of NOTIFY_INVAL_INODE. offset < 0: attributes only; length <= 0: to the end."""
    return INVAL_INODE_OUT.pack(ino, offset, length)
