"""POSIX and flock locks: held by the MDS for the session, remembered here so that they can be resumed and dropped at close.

DESIGN: `LockBook` is pure.  A lock that waits is one RPC which the MDS answers when it is granted; an interrupted system call sends
LockCancel, and the RPC's own answer then says which of the two came first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vstor.client.session import Session
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.messages import LockCancel, LockGet, LockRange, LockSet

log = logging.getLogger(__name__)

RDLCK, WRLCK, UNLCK = 0, 1, 2  # fcntl.F_RDLCK and so on
END = (1 << 63) - 1
LOCKS_MAX = 65536  # of one mount; above it ENOLCK


class LockBook:
    """Locks held, merged and split as fcntl(2) says."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int, bool], list[LockRange]] = {}  # (ino, owner, flock) -> disjoint, ascending
        self.count = 0

    def set(self, lock: LockRange) -> None:
        """Enter a granted lock, or an unlock."""
        key = (lock.ino, lock.owner, lock.flock)
        kept: list[LockRange] = []
        for old in self._held.pop(key, []):
            self.count -= 1
            if old.start < lock.start:
                kept.append(_cut(old, old.start, min(old.end, lock.start - 1)))
            if old.end > lock.end:
                kept.append(_cut(old, max(old.start, lock.end + 1), old.end))
        if lock.type != UNLCK:
            kept.append(lock)
        kept = _merged(sorted(kept, key=lambda k: k.start))
        if kept:
            self._held[key] = kept
            self.count += len(kept)

    def holds(self, ino: int, owner: int, flock: bool) -> bool:
        return (ino, owner, flock) in self._held

    def any_posix(self, ino: int) -> bool:
        return any(key[0] == ino and not key[2] for key in self._held)

    def all(self) -> list[LockRange]:
        return [lock for locks in self._held.values() for lock in locks]

    def clear(self) -> None:
        self._held.clear()
        self.count = 0


def _cut(lock: LockRange, start: int, end: int) -> LockRange:
    return LockRange(lock.ino, lock.owner, lock.type, start, end, lock.pid, lock.flock)


def _merged(locks: list[LockRange]) -> list[LockRange]:
    out: list[LockRange] = []
    for lock in locks:
        if out and out[-1].type == lock.type and out[-1].end + 1 >= lock.start:
            out[-1] = _cut(out[-1], out[-1].start, max(out[-1].end, lock.end))
        else:
            out.append(lock)
    return out


class Locks:
    """Concurrency: one event loop."""

    def __init__(self, session: Session, on_posix: Callable[[int], None]) -> None:
        """on_posix(ino): an inode got its first POSIX lock (from now on FLUSH has to reach us)."""
        self.session, self.book, self._on_posix = session, LockBook(), on_posix

    async def get(self, lock: LockRange) -> LockRange:
        """The conflicting lock, or one of type UNLCK."""
        reply = await self.session.call(LockGet(lock))
        return reply.lock  # type: ignore[no-any-return]

    async def set(self, lock: LockRange, *, wait: bool, interrupted: asyncio.Event | None = None) -> None:
        """Lock or unlock.

        Args: interrupted: set when the waiting system call got a signal; the wait is cancelled then, unless the grant was faster.
        Raises: WOULD_BLOCK when held by another and not waiting, or when interrupted; DEADLOCK; LIMIT.
        """
        if lock.type != UNLCK and self.book.count >= LOCKS_MAX:
            raise VstorError(ErrorCode.LIMIT, f"more than {LOCKS_MAX} locks on this mount")
        if lock.type == UNLCK and not self.book.holds(lock.ino, lock.owner, lock.flock):
            return
        if wait and interrupted is not None:
            await self._wait(lock, interrupted)
        else:
            await self.session.call(LockSet(lock, wait))
        self.book.set(lock)
        if lock.type != UNLCK and not lock.flock:
            self._on_posix(lock.ino)

    async def _wait(self, lock: LockRange, interrupted: asyncio.Event) -> None:
        ids: list[int] = []
        call = asyncio.ensure_future(self.session.call(LockSet(lock, True), on_id=ids.append))
        signalled = asyncio.ensure_future(interrupted.wait())
        try:
            await asyncio.wait({call, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done() and ids:
                await self.session.call(LockCancel(ids[-1]))
            await call
        finally:
            signalled.cancel()

    async def drop_owner(self, ino: int, owner: int, *, flock: bool) -> None:
        """All locks of an owner on a file, at close."""
        if self.book.holds(ino, owner, flock):
            await self.set(LockRange(ino, owner, UNLCK, 0, END, 0, flock), wait=False)
