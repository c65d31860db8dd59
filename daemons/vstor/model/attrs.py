"""Attributes of inodes as clients see them, and the rules of mode bits."""

from __future__ import annotations

import stat

from vstor.model.records import Inode, unpack_policy
from vstor.proto.messages import Attr

SIZE_MAX = (1 << 63) - 1


def blocks(inode: Inode) -> int:
    """512-byte blocks, an estimate: whole chunks that were written, no more than the size."""
    if not stat.S_ISREG(inode.mode):
        return 0
    return (min(inode.size, inode.used << unpack_policy(inode.policy).chunk_shift) + 511) >> 9


def size(inode: Inode) -> int:
    """st_size: bytes of a file or symlink, entries of a directory."""
    return inode.used if stat.S_ISDIR(inode.mode) else inode.size


def attr(inode: Inode, cacheable: bool) -> Attr:
    """The reply form."""
    return Attr(
        ino=inode.ino,
        generation=inode.generation,
        mode=inode.mode,
        nlink=inode.nlink,
        uid=inode.uid,
        gid=inode.gid,
        rdev=inode.rdev,
        size=size(inode),
        blocks=blocks(inode),
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
        cacheable=cacheable,
    )


def no_entry() -> Attr:
    """ino 0: a negative lookup that may be cached."""
    return Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def without_suid(mode: int) -> int:
    """Mode after chown, or after somebody without CAP_FSETID changed the content: set-user-id goes, set-group-id too where the group
    may execute. Not of directories. The kernel leaves it to us (FUSE_HANDLE_KILLPRIV_V2).
    """
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
