"""Client sessions: opening, renewal, resumption after a failover, and what their end means.

DESIGN: a change whose answer was lost is repeated by the client with the same request id, also after its session has ended for want of
renewals.  So a session that expires leaves the outcomes that were not acknowledged (State.ended), and the next session of that client takes
them over for changes of names (dispatch.NAMES): one that was done is not refused because it was done.  Changes of files are not among them: what
the client makes of their answers holds only while it has the lease under which it asked; they are done again, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import leaseops, opens
from vstor.model.config import AUTH_MODES
from vstor.model.leases import RANK
from vstor.model.records import Session
from vstor.model.step import Step
from vstor.proto.messages import (
    EXCLUSIVE,
    Ok,
    Recall,
    Renewed,
    SessionClose,
    SessionOpen,
    SessionRenew,
    SessionReply,
    SessionResume,
)

ORPHANS_PER_TICK = 256
NAME_CHARS_MAX = 4096
ENDED_MAX = 10_000  # sessions that left outcomes behind
ENDED_MS_MAX = 24 * 3_600_000  # a client cut off for longer may be told that what it did exists already


@dataclass(slots=True)
class Live:
    """A session as the leader sees it."""

    last_ms: int  # last renewal
    conn_id: int = 0
    resumed: bool = False  # it was opened under this leader, or has told what it holds
    kicked: bool = False  # renewals are refused, so that it ends


class Sessions:
    """All sessions of the leader."""

    def __init__(self, records: dict[int, Session], now_ms: int) -> None:
        self.live = {session_id: Live(now_ms) for session_id in records}
        self._missing = len(self.live)  # not resumed yet

    @property
    def in_grace(self) -> bool:
        """Some session of the time before this leader has neither come back nor ended."""
        return self._missing > 0

    def add(self, session_id: int, conn_id: int, now_ms: int) -> None:
        """A session was opened."""
        self.live[session_id] = Live(now_ms, conn_id, resumed=True)

    def resume(self, s: Step, session_id: int) -> None:
        """A session has told what it holds."""
        if not self.live[session_id].resumed:
            self.live[session_id].resumed = True
            self._one_less(s)

    def remove(self, s: Step, session_id: int) -> None:
        """A session ended."""
        live = self.live.pop(session_id, None)
        if live is not None and not live.resumed:
            self._one_less(s)

    def _one_less(self, s: Step) -> None:
        self._missing -= 1
        if not self._missing:
            s.out.wake.add(("grace",))


def _reply(s: Step, session_id: int) -> SessionReply:
    config = s.core.config
    s.out.bind_session = session_id
    values = {n: v for n, v in config.all().items() if n.startswith(("data.", "freespace.", "mds.ticket.ttl"))}
    return SessionReply(
        session_id,
        config.int("mds.lease.ttl"),
        config.int("mds.lease.margin"),
        s.now_ms,
        AUTH_MODES[config.text("data.auth_mode")],
        values,
    )


def session_open(s: Step, body: SessionOpen) -> SessionReply:
    """A new session."""
    if len(s.state.sessions) >= s.core.config.int("mds.session.max"):
        raise VstorError(ErrorCode.LIMIT, "mds.session.max is reached")
    session_id = s.tx.new_id("session")
    record = Session(
        session_id, body.name[:NAME_CHARS_MAX], body.pid, s.ctx.host_id or body.host_id, body.hostname, s.now_ms
    )
    former = s.state.ended.get(body.former)
    if former is not None and (former.host_id, former.pid) == (record.host_id, record.pid):
        record.former = {**former.former, **former.results}  # the former record stays: this reply may be lost, too
    s.tx.put_session(session_id, record)
    s.core.sessions.add(session_id, s.ctx.conn_id, s.now_ms)
    return _reply(s, session_id)


def session_renew(s: Step, body: SessionRenew) -> Renewed:
    """The client lives."""
    live = s.core.sessions.live.get(body.session_id)
    if live is None or live.kicked or body.session_id != s.session_id:
        raise VstorError(ErrorCode.NO_SESSION)
    live.last_ms = s.now_ms
    return Renewed(s.now_ms)


def session_resume(s: Step, body: SessionResume) -> SessionReply:
    """The client is back on another connection, perhaps at another leader. What it thinks it holds and does not is recalled."""
    record = s.state.sessions.get(body.session_id)
    live = s.core.sessions.live.get(body.session_id)
    if record is None or live is None or live.kicked:
        raise VstorError(ErrorCode.NO_SESSION)
    if s.ctx.host_id and record.host_id != s.ctx.host_id:
        raise VstorError(ErrorCode.DENIED, "the session belongs to another host")
    if not live.resumed:
        _take_back(s, body)
    live.last_ms = s.now_ms
    live.conn_id = s.ctx.conn_id
    s.core.sessions.resume(s, body.session_id)
    for ino, mode in body.leases:
        held = s.core.leases.mode(body.session_id, ino)
        if RANK.get(mode, 0) > RANK[held]:
            s.out.pushes.append((body.session_id, Recall(ino, held, s.core.leases.new_seq())))
    s.out.pushes += [(body.session_id, push) for push in s.core.leases.unanswered(body.session_id)]
    return _reply(s, body.session_id)


def _take_back(s: Step, body: SessionResume) -> None:
    """After a failover. During grace nobody was granted anything that conflicts, so only the persistent writer decides."""
    session_id = body.session_id
    for ino, mode in body.leases:
        inode = s.state.inodes.get(ino)
        if inode is None or inode.writer not in (0, session_id) or mode not in RANK:
            continue
        if mode != EXCLUSIVE:
            s.core.leases.grant(session_id, ino, mode)
    for ino in s.state.writers.get(session_id, ()):
        s.core.leases.grant(session_id, ino, EXCLUSIVE)  # also when not claimed: its release may be under way
    for ino, count in body.opens:
        if ino in s.state.inodes and count > 0:
            s.core.opens.add(session_id, ino, count)
    for lock in body.locks:
        if lock.ino in s.state.inodes and s.core.locks.conflict(session_id, lock) is None:
            s.core.locks.set(session_id, lock, s.out)


def session_close(s: Step, body: SessionClose) -> Ok:
    """The client is done."""
    if body.session_id != s.session_id or s.session_id not in s.state.sessions:
        raise VstorError(ErrorCode.NO_SESSION)
    end(s, s.session_id)
    return Ok()


def end(s: Step, session_id: int, *, expired: bool = False) -> None:
    """End a session: leases (files it was writing are fenced), locks, opens. expired: its client may come back and ask again."""
    core = s.core
    record = s.state.sessions[session_id]
    core.sessions.remove(s, session_id)
    for ino in set(s.state.writers.get(session_id, ())) | set(core.leases.held.get(session_id, ())):
        leaseops.drop_writer(s, session_id, ino)
    core.leases.end_session(session_id, s.out)
    core.locks.end_session(session_id, s.out)
    opened = list(core.opens.by_session.get(session_id, ()))
    core.opens.end_session(session_id)
    left = None
    if expired and (record.results or record.former):
        left = msgspec.structs.replace(record, ended_ms=s.now_ms)
    s.tx.put_session(session_id, left)
    s.out.unbind_session.append(session_id)
    core.memo.pop(session_id, None)
    for ino in opened[:ORPHANS_PER_TICK]:
        if ino in s.state.orphans:
            opens.bury(s, ino)


def tick(s: Step) -> None:
    """Sessions that were not renewed end; those that ignore recalls are refused renewal; files without a name and a user go."""
    ttl_ms = s.core.config.int("mds.lease.ttl")
    for asked in s.core.leases.overdue(s.now_ms - s.core.config.int("mds.lease.recall_tout")):
        if _cannot_flush(s, asked.ino):
            asked.since_ms = s.now_ms  # its time begins when it can
        else:
            kick(s, asked.session_id, "does not answer recalls")
    for session_id, live in list(s.core.sessions.live.items()):
        if s.now_ms - live.last_ms >= ttl_ms:
            record = s.state.sessions.get(session_id)
            name = f"{record.name} on {record.hostname}" if record else str(session_id)
            s.event("warn", f"The session of client {name} expired")
            end(s, session_id, expired=True)
            return  # one a tick keeps the commit small; the next tick comes soon
    oldest = next(iter(s.state.ended.values()), None)
    if oldest is not None and (len(s.state.ended) > ENDED_MAX or s.now_ms - oldest.ended_ms >= ENDED_MS_MAX):
        s.tx.put_session(oldest.session_id, None)
    if s.core.sessions.in_grace:
        return
    orphans = s.state.orphans.items()
    idle = (ino for ino, orphan in orphans if orphan.since_ms <= s.now_ms and not s.core.opens.by_ino.get(ino))
    for _, ino in zip(range(ORPHANS_PER_TICK), list(idle), strict=False):
        opens.bury(s, ino)
        if ino in s.state.extents:
            return  # an enormous one: a bounded part in each commit


def _cannot_flush(s: Step, ino: int) -> bool:
    """Chunks of the file do not take writes now, so its writer cannot give it back: it waits (R7) and so does who recalled it."""
    chunks = (s.state.chunk(ino, index) for index in s.core.maps.open_indexes(s, ino))
    return any(c is not None and s.core.tracker.state_of(c.id) in ("blocked", "pending", "offline") for c in chunks)


def kick(s: Step, session_id: int, why: str) -> None:
    """Refuse renewals: the session ends when its ttl is over, which the client observes too. Never at once: it may still be serving reads."""
    live = s.core.sessions.live.get(session_id)
    if live is not None and not live.kicked:
        live.kicked = True
        s.event("warn", f"Client session {session_id} {why}: it ends")
