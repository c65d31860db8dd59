"""Who may cache, read or write an inode, and who waits for whom.

DESIGN: a session holds at most one mode of an inode, ranked NONE < CACHE < SHARED < EXCLUSIVE. A request names its demands: which
holders must step down (RECALL), forget attributes or entries (INVALIDATE) or tell their size (TELL), or that it merely wants to read
after what is under way (ENTER). When a demand is not met, the holders are asked and the request waits, changing nothing.
Fairness without deadlock: each waiting request has a ticket in order of arrival, and a request waits behind every earlier
one of another session on the same inode if either of the two excludes the other. Only smaller tickets are waited for, so the smallest never is.
While a change waits on an inode nobody gets a new lease of it, so an invalidation that was answered stays true until the change is made.

Invariants (tests/unit/model/test_leases.py): one EXCLUSIVE at most, and nobody else has SHARED or CACHE beside it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from vstor.model.outcome import Outcome
from vstor.proto.messages import ATTR, CACHE, EXCLUSIVE, NONE, SHARED, Invalidate, Recall

RANK = {NONE: 0, CACHE: 1, SHARED: 2, EXCLUSIVE: 3}


class Kind(Enum):
    """What a demand wants of other sessions."""

    ENTER = "enter"  # nothing, only its turn
    TELL = "tell"  # the EXCLUSIVE holder tells size and mtime and keeps the lease
    SHARE = "share"  # no EXCLUSIVE
    ALONE = "alone"  # no lease at all
    INVALIDATE = "invalidate"  # attributes (and entries `names`) forgotten


_EXCLUDING = {Kind.ALONE, Kind.INVALIDATE}  # nobody else gets a lease while such a demand waits


@dataclass(slots=True)
class Demand:
    """One inode a request needs in some way."""

    ino: int
    kind: Kind
    names: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Asked:
    """A push to a session that was not answered yet."""

    seq: int
    session_id: int
    ino: int
    cid: Hashable  # the waiting request
    kind: Kind
    push: Recall | Invalidate
    since_ms: int


@dataclass(slots=True)
class Waiter:
    """A request that waits."""

    cid: Hashable
    session_id: int
    ticket: int
    since_ms: int
    inodes: dict[int, bool] = field(default_factory=dict)  # ino -> excludes others
    asked: dict[tuple[int, int, Kind], int] = field(default_factory=dict)  # (session, ino, kind) -> seq
    answered: set[tuple[int, int, Kind]] = field(default_factory=set)


class LeaseTable:
    """Holders, waiters and outstanding pushes of all inodes. Lives in the leader's memory; sessions give it back after a failover."""

    def __init__(self, max_per_session: int) -> None:
        self.max_per_session = max_per_session
        self.holders: dict[int, dict[int, int]] = {}  # ino -> session -> mode
        self.held: dict[int, set[int]] = {}  # session -> inodes
        self.asked: dict[int, Asked] = {}  # seq -> push
        self._waiters: dict[Hashable, Waiter] = {}
        self._queues: dict[int, dict[Hashable, None]] = {}  # ino -> waiting cids
        self._next_seq = 1
        self._next_ticket = 1

    # --- reading ------------------------------------------------------------------------------------------------

    def mode(self, session_id: int, ino: int) -> int:
        """What the session holds."""
        return self.holders.get(ino, {}).get(session_id, NONE)

    def writer(self, ino: int) -> int:
        """The session that holds EXCLUSIVE, or 0."""
        return next((s for s, mode in self.holders.get(ino, {}).items() if mode == EXCLUSIVE), 0)

    def may_cache(self, session_id: int, ino: int) -> bool:
        """Nobody else writes the inode or waits to change it, so that its attributes may be cached."""
        if self.writer(ino) not in (0, session_id):
            return False
        queue = self._queues.get(ino)
        return queue is None or not any(self._bars(cid, ino, session_id) for cid in queue)

    def _bars(self, cid: Hashable, ino: int, session_id: int) -> bool:
        waiter = self._waiters[cid]
        return waiter.inodes[ino] and waiter.session_id != session_id

    # --- changing -----------------------------------------------------------------------------------------------

    def grant(self, session_id: int, ino: int, mode: int) -> bool:
        """Raise a session's mode (never lowers it). False: over the bound of the session. The caller has settled the demands."""
        holders = self.holders.get(ino, {})
        if RANK[mode] <= RANK[holders.get(session_id, NONE)]:
            return True
        held = self.held.setdefault(session_id, set())
        if len(held) >= self.max_per_session and ino not in held:
            return False
        held.add(ino)
        self.holders.setdefault(ino, {})[session_id] = mode
        return True

    def lower(self, session_id: int, ino: int, mode: int, out: Outcome) -> None:
        """Lower a session's mode (never raises it) and wake who waits for the inode."""
        holders = self.holders.get(ino)
        if holders is None or RANK[mode] >= RANK[holders.get(session_id, NONE)]:
            return
        if mode == NONE:
            del holders[session_id]
            if not holders:
                del self.holders[ino]
            self.held[session_id].discard(ino)
        else:
            holders[session_id] = mode
        self._wake(ino, out)

    def _wake(self, ino: int, out: Outcome) -> None:
        out.wake.update(("wait", cid) for cid in self._queues.get(ino, ()))

    def end_session(self, session_id: int, out: Outcome) -> None:
        """Take everything from a session and forget what was asked of it."""
        for ino in list(self.held.get(session_id, ())):
            self.lower(session_id, ino, NONE, out)
        self.held.pop(session_id, None)
        for seq in [seq for seq, asked in self.asked.items() if asked.session_id == session_id]:
            self.answer(seq, session_id, out)
        for waiter in [w for w in self._waiters.values() if w.session_id == session_id]:
            self.forget(waiter.cid, out)

    # --- waiting ------------------------------------------------------------------------------------------------

    def settle(
        self, cid: Hashable, session_id: int, demands: list[Demand], now_ms: int, out: Outcome
    ) -> Hashable | None:
        """Are all demands met? None: yes, go on (and the request waits no more). Else the key to park on; holders were asked.

        session_id 0: a request without a session (administration).
        """
        waiter = self._waiters.get(cid)
        blocked = self._is_behind(waiter, session_id, demands)
        missing = [] if blocked else self._missing(waiter, session_id, demands)
        if not blocked and not missing:
            if waiter is not None:
                self.forget(cid, out)
            return None
        if waiter is None:
            waiter = self._waiters[cid] = Waiter(cid, session_id, self._next_ticket, now_ms)
            self._next_ticket += 1
        for demand in demands:
            excludes = demand.kind in _EXCLUDING or waiter.inodes.get(demand.ino, False)
            waiter.inodes[demand.ino] = excludes
            self._queues.setdefault(demand.ino, {})[cid] = None
        for holder, mode, demand in missing:
            self._ask(waiter, holder, mode, demand, now_ms, out)
        return ("wait", cid)

    def _is_behind(self, waiter: Waiter | None, session_id: int, demands: list[Demand]) -> bool:
        for demand in demands:
            excludes = demand.kind in _EXCLUDING
            for cid in self._queues.get(demand.ino, ()):
                other = self._waiters[cid]
                if waiter is not None and other.ticket >= waiter.ticket:
                    continue
                if other.session_id == session_id and session_id:
                    continue
                if excludes or other.inodes[demand.ino]:
                    return True
        return False

    def _missing(self, waiter: Waiter | None, session_id: int, demands: list[Demand]) -> list[tuple[int, int, Demand]]:
        """(holder, its mode, demand) of what others still have to do."""
        answered = waiter.answered if waiter is not None else ()
        out = []
        for demand in demands:
            for holder, mode in self.holders.get(demand.ino, {}).items():
                if (
                    holder != session_id
                    and _objects(mode, demand.kind)
                    and (holder, demand.ino, demand.kind) not in answered
                ):
                    out.append((holder, mode, demand))
        return out

    def _ask(self, waiter: Waiter, holder: int, mode: int, demand: Demand, now_ms: int, out: Outcome) -> None:
        key = (holder, demand.ino, demand.kind)
        if waiter.asked.get(key) in self.asked:
            return
        seq = self._next_seq
        self._next_seq += 1
        push: Recall | Invalidate
        if demand.kind is Kind.INVALIDATE or (demand.kind is Kind.ALONE and mode == CACHE):
            push = Invalidate(demand.ino, list(demand.names), seq)
        else:
            push = Recall(demand.ino, {Kind.TELL: ATTR, Kind.SHARE: SHARED, Kind.ALONE: NONE}[demand.kind], seq)
        waiter.asked[key] = seq
        self.asked[seq] = Asked(seq, holder, demand.ino, waiter.cid, demand.kind, push, now_ms)
        out.pushes.append((holder, push))

    def answer(self, seq: int, session_id: int, out: Outcome, *, entries: bool = False) -> None:
        """The session did what the push asked. entries: the inode is a directory, whose other entries stay cached."""
        asked = self.asked.get(seq)
        if asked is None or asked.session_id != session_id:
            return
        del self.asked[seq]
        if isinstance(asked.push, Invalidate) and not entries and self.mode(session_id, asked.ino) == CACHE:
            self.lower(session_id, asked.ino, NONE, out)
        waiter = self._waiters.get(asked.cid)
        if waiter is not None:
            if asked.kind in (Kind.TELL, Kind.INVALIDATE):
                waiter.answered.add((session_id, asked.ino, asked.kind))
            out.wake.add(("wait", asked.cid))

    def forget(self, cid: Hashable, out: Outcome) -> None:
        """The request waits no more (done, failed or its connection closed); who waited behind it is woken."""
        waiter = self._waiters.pop(cid, None)
        if waiter is None:
            return
        for seq in waiter.asked.values():
            asked = self.asked.get(seq)
            if asked is not None and asked.cid == cid and asked.kind is Kind.TELL:
                del self.asked[seq]  # nobody wants the answer; recalls stay, they lower a mode
        for ino in waiter.inodes:
            queue = self._queues[ino]
            del queue[cid]
            if not queue:
                del self._queues[ino]
            self._wake(ino, out)

    def new_seq(self) -> int:
        """A number for a push nobody waits for; its answer is ignored."""
        self._next_seq += 1
        return self._next_seq - 1

    def drop_inode(self, ino: int, out: Outcome) -> None:
        """The inode is gone: all leases of it end; the holders are told, nobody waits for their answer."""
        for session_id in list(self.holders.get(ino, ())):
            out.pushes.append((session_id, Recall(ino, NONE, self.new_seq())))
            self.lower(session_id, ino, NONE, out)

    def forget_connection(self, owner: int, out: Outcome) -> None:
        """Requests of a closed connection wait no more. owner: the first part of their cids."""
        for cid in [cid for cid in self._waiters if isinstance(cid, tuple) and cid[0] == owner]:
            self.forget(cid, out)

    def waiting(self, cid: Hashable) -> bool:
        """The request is in the queues."""
        return cid in self._waiters

    def unanswered(self, session_id: int) -> list[Recall | Invalidate]:
        """Pushes to repeat on a session's new connection."""
        return [asked.push for asked in self.asked.values() if asked.session_id == session_id]

    def overdue(self, since_ms: int) -> list[Asked]:
        """Pushes unanswered from before since_ms."""
        return [asked for asked in self.asked.values() if asked.since_ms < since_ms]


def _objects(mode: int, kind: Kind) -> bool:
    """A holder of `mode` stands against a demand of this kind."""
    if kind is Kind.ENTER:
        return False
    if kind in (Kind.TELL, Kind.SHARE):
        return mode == EXCLUSIVE
    return mode != NONE
