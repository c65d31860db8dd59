"""Content of files as the MDS sees it: size, and chunks that go when it shrinks."""

from __future__ import annotations

import stat

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.records import EXTENT_CHUNKS, VOID, Inode, Policy, extent_items, unpack_policy
from vstor.model.step import Parked, Step
from vstor.stamps import later

EXTENTS_PER_STEP = 512  # extent records one commit removes (32768 chunks); more goes in several
INDEX_MAX = 1 << 32


def policy(inode: Inode) -> Policy:
    """How the file's chunks are kept."""
    return unpack_policy(inode.policy)


def need_file(s: Step, ino: int) -> Inode:
    """A regular file, not to be changed. Raises BAD_HANDLE, IS_DIR, INVALID."""
    inode = s.tx.peek(ino)
    if inode is None:
        raise VstorError(ErrorCode.BAD_HANDLE)
    if not stat.S_ISREG(inode.mode):
        raise VstorError(ErrorCode.IS_DIR if stat.S_ISDIR(inode.mode) else ErrorCode.INVALID)
    return inode


def check_size(inode: Inode, size: int) -> None:
    """Raises TOO_BIG."""
    if not 0 <= size < min(1 << 63, policy(inode).chunk_bytes * INDEX_MAX):
        raise VstorError(ErrorCode.TOO_BIG)


def cut(s: Step, ino: int, first: int) -> bool:
    """Remove chunks [first, end) of a file, from the end on. False: a bounded part is done, call again after the commit."""
    numbers = sorted((n for n in s.state.extents.get(ino, ()) if (n + 1) * EXTENT_CHUNKS > first), reverse=True)
    inode = s.tx.inode(ino)
    for number in numbers[:EXTENTS_PER_STEP]:
        for index, chunk in list(extent_items(s.state.extents[ino][number])):
            position = number * EXTENT_CHUNKS + index
            if position >= first:
                s.tx.put_chunk(ino, position, None)
                inode.used -= not chunk.flags & VOID
                s.core.garbage.add(chunk.id, chunk.replicas)
    return len(numbers) <= EXTENTS_PER_STEP


def resize(s: Step, ino: int, size: int) -> None:
    """Set the size; a shrinking file loses its chunks. Raises TOO_BIG; parks (with progress kept) when it is enormous."""
    inode = s.tx.inode(ino)
    check_size(inode, size)
    shift = policy(inode).chunk_shift
    if not cut(s, ino, (size + (1 << shift) - 1) >> shift):
        inode.size = min(inode.size, max(size, _end(s, ino) << shift))
        raise Parked(("tick",), keep=True)
    inode.size = size


def _end(s: Step, ino: int) -> int:
    """Index after the last extent that is left in this step."""
    left = sorted(s.state.extents.get(ino, ()))[:-EXTENTS_PER_STEP]
    return (left[-1] + 1) * EXTENT_CHUNKS if left else 0


def commit_size(s: Step, ino: int, size: int, mtime_ns: int, written: list[int]) -> None:
    """What the writer tells: the size never shrinks by it (that is SetAttr's), chunks written are void no longer.

    mtime_ns: of its last write, by its clock; the inode changed then, and shows so on its mount already. 0: it told that before.
    """
    inode = s.tx.peek(ino)
    assert inode is not None
    check_size(inode, size)
    grown = max(inode.size, size)
    chunks = [(i, c) for i in written if (c := s.tx.chunk(ino, i)) is not None and c.flags & VOID]
    if not chunks and grown == inode.size and mtime_ns in (0, inode.mtime_ns):
        return
    inode = s.tx.inode(ino)
    inode.size = grown
    if mtime_ns > 0:
        inode.mtime_ns = mtime_ns
        inode.ctime_ns = later(mtime_ns, inode.ctime_ns)
    for index, chunk in chunks:
        s.tx.put_chunk(ino, index, chunk._replace(flags=chunk.flags & ~VOID))
        inode.used += 1
        s.core.servers.wrote(chunk)
