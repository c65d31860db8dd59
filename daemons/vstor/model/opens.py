"""Open files: counts for each session, files without a name, OPEN and CLOSE."""

from __future__ import annotations

import stat

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import attrs, files
from vstor.model.leases import Demand, Kind
from vstor.model.step import Parked, Step
from vstor.proto.messages import EXCLUSIVE, NONE, SHARED, Close, Ok, Open, OpenReply

MAPS_IN_OPEN_MAX = 16


class OpenTable:
    """Who has which file open. Leader's memory; SessionResume brings it back after a failover."""

    def __init__(self) -> None:
        self.by_ino: dict[int, dict[int, int]] = {}  # ino -> session -> count
        self.by_session: dict[int, set[int]] = {}

    def add(self, session_id: int, ino: int, count: int = 1) -> None:
        """`count` opens more."""
        counts = self.by_ino.setdefault(ino, {})
        counts[session_id] = counts.get(session_id, 0) + count
        self.by_session.setdefault(session_id, set()).add(ino)

    def remove(self, session_id: int, ino: int, count: int = 1) -> bool:
        """`count` opens less, not below none. True: nobody has it open any more."""
        counts = self.by_ino.get(ino, {})
        if session_id in counts:
            counts[session_id] -= count
            if counts[session_id] <= 0:
                del counts[session_id]
                self.by_session[session_id].discard(ino)
        if not counts:
            self.by_ino.pop(ino, None)
        return not counts

    def end_session(self, session_id: int) -> None:
        """The session has nothing open any more."""
        for ino in list(self.by_session.get(session_id, ())):
            self.remove(session_id, ino, 1 << 62)
        self.by_session.pop(session_id, None)


def open_file(s: Step, ino: int, lease: int, truncate: bool) -> OpenReply:
    """Open a regular file with a lease; waits for conflicting holders."""
    session_id = s.need_session()
    if lease not in (SHARED, EXCLUSIVE):
        raise VstorError(ErrorCode.INVALID, f"open with lease {lease}")
    files.need_file(s, ino)
    lease = EXCLUSIVE if truncate else lease
    take_lease(s, ino, lease)
    inode = s.tx.peek(ino)
    assert inode is not None
    if truncate:  # times change for an empty file, too (open(2))
        files.resize(s, ino, 0)
        inode = s.tx.inode(ino)
        inode.mtime_ns = inode.ctime_ns = s.stamp(inode)
    s.core.opens.add(session_id, ino)
    held = s.core.leases.mode(session_id, ino)
    count = min(MAPS_IN_OPEN_MAX, -(-inode.size >> files.policy(inode).chunk_shift))
    chunks, servers = s.core.maps.offer(s, inode, count, held == EXCLUSIVE)
    return OpenReply(attrs.attr(inode, True), held, files.policy(inode).chunk_bytes, chunks, servers)


def take_lease(s: Step, ino: int, mode: int) -> None:
    """Give the session SHARED or EXCLUSIVE of a file; parks until others have stepped down and the file is not being fenced."""
    leases = s.core.leases
    if ino in s.core.fences.active:
        raise Parked(("fence", ino))
    s.settle([Demand(ino, Kind.ALONE if mode == EXCLUSIVE else Kind.SHARE)])
    if not leases.grant(s.session_id, ino, mode):
        raise VstorError(ErrorCode.LIMIT, "mds.lease.max_per_session reached")
    inode = s.tx.peek(ino)
    if mode == EXCLUSIVE and inode is not None and inode.writer != s.session_id:
        s.tx.inode(ino).writer = s.session_id
        s.core.maps.writing(ino, known=True)


def handle_open(s: Step, body: Open) -> OpenReply:
    """Open an existing file."""
    return open_file(s, body.ino, body.lease, body.truncate)


def handle_close(s: Step, body: Close) -> Ok:
    """One open less; the last one of a file without a name removes it."""
    session_id = s.need_session()
    if s.core.opens.remove(session_id, body.ino) and body.ino in s.state.orphans:
        bury(s, body.ino)
    return Ok()


def bury(s: Step, ino: int, kept_ms: int = 0) -> None:
    """A file without a name: remove it, or keep an orphan record while it is open, unknown to be closed, or too big for one commit.

    kept_ms: it is not removed sooner.
    """
    inode = s.tx.peek(ino)
    if inode is None:
        return
    orphan = s.state.orphans.get(ino)
    since_ms = s.now_ms + kept_ms if orphan is None else orphan.since_ms
    in_use = s.core.opens.by_ino.get(ino) or s.core.sessions.in_grace or since_ms > s.now_ms
    if in_use or (stat.S_ISREG(inode.mode) and not files.cut(s, ino, 0)):
        if orphan is None:
            s.tx.put_orphan(ino, since_ms)
        return
    s.tx.remove_inode(ino)
    s.core.maps.forget(ino)
    s.core.fences.cancel(ino, s.out)
    s.core.locks.drop_inode(ino, s.out)
    for session_id in list(s.core.leases.holders.get(ino, ())):
        if session_id == s.session_id:
            s.core.leases.lower(session_id, ino, NONE, s.out)
    s.core.leases.drop_inode(ino, s.out)
