"""POSIX and flock locks, per inode. Leader's memory; SessionResume gives them back after a failover."""

from __future__ import annotations

from collections.abc import Hashable

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.outcome import Outcome
from vstor.model.step import Parked, Step
from vstor.proto.messages import LockCancel, LockGet, LockRange, LockReply, LockSet, Ok

READ, WRITE, UNLOCK = 0, 1, 2
END = (1 << 63) - 1
LOCKS_PER_INODE_MAX = 65_536

Owner = tuple[int, int, bool]  # session, owner, flock


class LockTable:
    """Locks by inode, and who waits for whom."""

    def __init__(self) -> None:
        self.by_ino: dict[int, list[tuple[int, LockRange]]] = {}  # (session, lock)
        self.waiting: dict[Hashable, tuple[Owner, LockRange]] = {}  # cid -> who waits for what
        self.cancelled: set[Hashable] = set()

    def conflict(self, session_id: int, want: LockRange) -> tuple[int, LockRange] | None:
        """A lock of another owner that stands against `want`."""
        for holder, lock in self.by_ino.get(want.ino, ()):
            if lock.flock != want.flock or (holder == session_id and lock.owner == want.owner):
                continue
            if lock.start <= want.end and want.start <= lock.end and WRITE in (lock.type, want.type):
                return holder, lock
        return None

    def set(self, session_id: int, want: LockRange, out: Outcome) -> None:
        """Lock or unlock a range: earlier locks of the owner are cut and equal neighbours merged. The caller has checked conflicts."""
        kept: list[tuple[int, LockRange]] = []
        start, end = want.start, want.end
        for holder, lock in self.by_ino.get(want.ino, []):
            mine = holder == session_id and lock.owner == want.owner and lock.flock == want.flock
            if not mine or lock.start > end + 1 or lock.end < start - 1:
                kept.append((holder, lock))
            elif lock.type == want.type:
                start, end = min(start, lock.start), max(end, lock.end)
            else:
                kept += [(holder, part) for part in _cut(lock, want)]
        if want.type != UNLOCK:
            kept.append((session_id, LockRange(want.ino, want.owner, want.type, start, end, want.pid, want.flock)))
        if len(kept) > LOCKS_PER_INODE_MAX:
            raise VstorError(ErrorCode.LIMIT, "too many locks on one file")
        self._store(want.ino, kept, out)

    def _store(self, ino: int, locks: list[tuple[int, LockRange]], out: Outcome) -> None:
        if locks:
            self.by_ino[ino] = locks
        else:
            self.by_ino.pop(ino, None)
        out.wake.add(("lock", ino))

    def deadlock(self, me: Owner, holder: Owner) -> bool:
        """`holder` waits, directly or through others, for `me` (POSIX locks only, as Linux does)."""
        seen: set[Owner] = set()
        todo = [holder]
        while todo:
            owner = todo.pop()
            if owner == me:
                return True
            if owner in seen:
                continue
            seen.add(owner)
            for waiter, want in self.waiting.values():
                if waiter == owner:
                    against = self.conflict(owner[0], want)
                    if against is not None:
                        todo.append((against[0], against[1].owner, against[1].flock))
        return False

    def end_session(self, session_id: int, out: Outcome) -> None:
        """Release everything of a session and forget its waits."""
        for ino, locks in list(self.by_ino.items()):
            if any(holder == session_id for holder, _ in locks):
                self._store(ino, [pair for pair in locks if pair[0] != session_id], out)
        self.forget_session(session_id)

    def forget_session(self, session_id: int) -> None:
        """The connection of a session closed: its waits are asked for again on the next one."""
        for cid in [cid for cid, (owner, _) in self.waiting.items() if owner[0] == session_id]:
            self.forget(cid)

    def drop_inode(self, ino: int, out: Outcome) -> None:
        """The file is gone."""
        if ino in self.by_ino:
            self._store(ino, [], out)

    def forget(self, cid: Hashable) -> None:
        """The request waits no more."""
        self.waiting.pop(cid, None)
        self.cancelled.discard(cid)


def _cut(lock: LockRange, hole: LockRange) -> list[LockRange]:
    """What is left of `lock` outside of `hole`."""
    parts = []
    if lock.start < hole.start:
        parts.append(
            LockRange(lock.ino, lock.owner, lock.type, lock.start, min(lock.end, hole.start - 1), lock.pid, lock.flock)
        )
    if lock.end > hole.end:
        parts.append(
            LockRange(lock.ino, lock.owner, lock.type, max(lock.start, hole.end + 1), lock.end, lock.pid, lock.flock)
        )
    return parts


def _check(s: Step, lock: LockRange) -> int:
    session_id = s.need_session()
    if lock.ino not in s.state.inodes:
        raise VstorError(ErrorCode.BAD_HANDLE)
    if lock.type not in (READ, WRITE, UNLOCK) or not 0 <= lock.start <= lock.end <= END:
        raise VstorError(ErrorCode.INVALID, "bad lock")
    return session_id


def get(s: Step, body: LockGet) -> LockReply:
    """The lock that would stand in the way, or type 2."""
    found = s.core.locks.conflict(_check(s, body.lock), body.lock)
    if found is not None:
        return LockReply(found[1])
    lock = body.lock
    return LockReply(LockRange(lock.ino, lock.owner, UNLOCK, lock.start, lock.end, lock.pid, lock.flock))


def set_lock(s: Step, body: LockSet) -> Ok:
    """Lock, unlock, or wait. WOULD_BLOCK also answers a wait that was cancelled."""
    lock, table = body.lock, s.core.locks
    session_id = _check(s, lock)
    cancelled = s.cid in table.cancelled
    table.forget(s.cid)
    found = None if lock.type == UNLOCK else table.conflict(session_id, lock)
    if found is None:
        table.set(session_id, lock, s.out)
        return Ok()
    if not body.wait or cancelled:
        raise VstorError(ErrorCode.WOULD_BLOCK)
    me: Owner = (session_id, lock.owner, lock.flock)
    if not lock.flock and table.deadlock(me, (found[0], found[1].owner, False)):
        raise VstorError(ErrorCode.DEADLOCK)
    table.waiting[s.cid] = (me, lock)
    raise Parked(("lock", lock.ino))


def cancel(s: Step, body: LockCancel) -> Ok:
    """The waiting LockSet ends with WOULD_BLOCK; nothing happens when it does not wait (any more)."""
    cid = (s.need_session(), body.request_id)
    waiting = s.core.locks.waiting.get(cid)
    if waiting is not None:
        s.core.locks.cancelled.add(cid)
        s.out.wake.add(("lock", waiting[1].ino))
    return Ok()
