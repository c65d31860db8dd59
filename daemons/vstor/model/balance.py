"""Moving replicas that are well but in the wrong place: on a disk fuller than others, on another tier than wanted, two in one failure domain.

DESIGN: a move is a copy to the better server, made by recovery like any other; the chunk then has a replica more than it needs, and the one
that was to be relieved is the one that goes (R6 as ever). It waits for everything else: nothing moves while a chunk lacks a replica, a server
is being waited for or the mass-failure guard is on. Few at a time, never of a chunk that is being written, and only where it leaves the source
no emptier than the target, so that nothing goes to and fro.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from vstor.model import versions
from vstor.model.chunkservers import INACTIVE, Live
from vstor.model.files import policy
from vstor.model.placement import domain_of, tier_order
from vstor.model.records import VOID, Chunk, Cs, Inode, Policy
from vstor.model.step import Step

INTERVAL_MS = 1_000
SCAN = 256  # chunks of a full server looked at in one interval
NO_PLACES_MAX = 100_000
NO_PLACE_MS = 600_000  # a misplaced chunk without a better place is looked at again after this


@dataclass(frozen=True, slots=True)
class Seat:
    """A server that may give and take."""

    cs_id: int
    tier: int
    space: int
    used: int

    def full(self, change: int = 0) -> float:
        """Part of the space in use, after so many bytes more."""
        return (self.used + change) / max(1, self.space)


def relieves(source: Seat, target: Seat, size: int, spread_percent: int) -> bool:
    """Moving `size` bytes makes the two more equal, and they are unequal enough to bother."""
    apart = source.full() - target.full() > spread_percent / 100
    return apart and source.full(-size) >= target.full(size)


def pairs(seats: list[Seat], size: int, spread_percent: int) -> list[tuple[Seat, Seat]]:
    """(source, target) of each tier that is out of balance: its fullest server and those that may relieve it, emptiest first."""
    out = []
    for tier in sorted({seat.tier for seat in seats}):
        group = sorted((seat for seat in seats if seat.tier == tier), key=lambda seat: (seat.full(), seat.cs_id))
        source = group[-1]
        out += [(source, target) for target in group[:-1] if relieves(source, target, size, spread_percent)]
    return out


class Balance:
    """Moves under way and what stands in the wrong place."""

    def __init__(self, servers: dict[int, Cs]) -> None:
        self._servers = servers
        self.misplaced: dict[int, None] = {}  # chunks the tracker found on a wrong tier or twice in a failure domain
        self.leaving: dict[int, int] = {}  # chunk id -> the server its move relieves
        self.moved_chunks = 0
        self._next_ms = 0
        self._rounds = 0
        self._not_before: dict[int, int] = {}  # misplaced chunk without a better place -> when to look again

    def look(self, chunk: Chunk, policy: Policy, state: str) -> None:
        """The tracker has judged the chunk: remember it if a replica is on another tier than wanted, or twice in a failure domain."""
        self.misplaced.pop(chunk.id, None)
        if state == "healthy":
            records = [self._servers[r] for r in chunk.replicas]
            domains = {domain_of(r.cs_id, r.host_id, r.location, policy.domain) for r in records}
            if len(domains) < len(records) or any(r.tier != policy.tier for r in records):
                self.misplaced[chunk.id] = None

    def forget(self, chunk_id: int) -> None:
        """The chunk is gone."""
        self.misplaced.pop(chunk_id, None)

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, s: Step) -> None:
        """Begin moves."""
        limit = s.core.config.int("mds.balance.max_total")
        if s.now_ms < self._next_ms or not limit:
            return
        self._next_ms = s.now_ms + INTERVAL_MS
        self._rounds += 1
        for chunk_id in [n for n in self.leaving if n not in s.core.recovery.jobs and not self._surplus(s, n)]:
            del self.leaving[chunk_id]
        if len(self.leaving) >= limit or not self._quiet(s):
            return
        seats = [self._seat(s, record, live) for record, live in s.core.servers.usable(s)]
        self._mend(s, seats, limit)
        for source, target in pairs(seats, self._chunk_bytes(s), s.core.config.int("mds.balance.spread")):
            if len(self.leaving) >= limit:
                return
            if not s.core.recovery.load(source.cs_id) and not s.core.recovery.load(target.cs_id):
                self._relieve(s, source, target)

    @staticmethod
    def _quiet(s: Step) -> bool:
        """Nothing needs a copy for its safety."""
        tracker, recovery = s.core.tracker, s.core.recovery
        safe = all(job.chunk_id in s.core.balance.leaving for job in recovery.jobs.values())
        waited = any(
            live.activity == INACTIVE and s.state.by_cs.get(live.cs_id) for live in s.core.servers.live.values()
        )
        return safe and not waited and not tracker.queued() and tracker.settled() and not s.core.sessions.in_grace

    @staticmethod
    def _surplus(s: Step, chunk_id: int) -> bool:
        """It has the new replica, and still the old one."""
        found = versions.locate(s, chunk_id)
        return found is not None and s.core.balance.leaving[chunk_id] in found[2].replicas and (
            s.core.tracker.state_of(chunk_id) == "overcommitted"
        )  # fmt: skip

    def _seat(self, s: Step, record: Cs, live: Live) -> Seat:
        coming = live.allocated * self._chunk_bytes(s)
        return Seat(record.cs_id, record.tier, live.space_bytes, live.space_bytes - live.free_bytes + coming)

    @staticmethod
    def _chunk_bytes(s: Step) -> int:
        return s.core.config.int("fs.chunk_size")

    # --- one move -------------------------------------------------------------------------------------------------

    def _relieve(self, s: Step, source: Seat, target: Seat) -> None:
        """Move one chunk of the full server, if among some of them is one that may go there."""
        held = s.state.by_cs.get(source.cs_id, set())
        start = self._rounds * SCAN % max(1, len(held))
        for chunk_id in islice(held, start, start + SCAN):
            found = self._movable(s, chunk_id)
            if found is None:
                continue
            inode, index, chunk = found
            if self._fits(s, inode, chunk, source.cs_id, target.cs_id):
                self._move(s, inode, index, chunk, source.cs_id, target.cs_id)
                return

    def _mend(self, s: Step, seats: list[Seat], limit: int) -> None:
        """Move what stands in the wrong place to where it should be, if that has room."""
        for chunk_id in list(islice(self.misplaced, SCAN)):
            if len(self.leaving) >= limit:
                return
            del self.misplaced[chunk_id]
            found = self._movable(s, chunk_id)
            if found is None or s.now_ms < self._not_before.get(chunk_id, 0):
                self.misplaced[chunk_id] = None  # at the end: later
                continue
            inode, index, chunk = found
            where = self._better(s, inode, chunk, seats)
            free = [pair for pair in where if not s.core.recovery.load(pair[1])]
            if free:
                self._move(s, inode, index, chunk, *free[0])
                continue
            self.misplaced[chunk_id] = None
            if not where:
                if len(self._not_before) > NO_PLACES_MAX:
                    self._not_before.clear()
                self._not_before[chunk_id] = s.now_ms + NO_PLACE_MS

    def _better(self, s: Step, inode: Inode, chunk: Chunk, seats: list[Seat]) -> list[tuple[int, int]]:
        """(replica, server) that make it better, best first: to a better tier, or out of a shared failure domain on the same tier."""
        rule = policy(inode)
        order = {tier: n for n, tier in enumerate(tier_order(rule.tier))}
        domains = [s.core.servers.domain(s, r, rule.domain) for r in chunk.replicas]
        out = []
        for position, leaving in enumerate(chunk.replicas):
            shared = domains.count(domains[position]) > 1
            now = order[s.state.servers[leaving].tier]
            for seat in seats:
                tier = order[seat.tier]
                if (tier < now or (shared and tier == now)) and self._fits(s, inode, chunk, leaving, seat.cs_id):
                    out.append((tier - now, seat.full(), leaving, seat.cs_id))
        return [(leaving, target) for _, _, leaving, target in sorted(out)]

    def _movable(self, s: Step, chunk_id: int) -> tuple[Inode, int, Chunk] | None:
        """A chunk that is healthy, at rest and known to be whole."""
        found = versions.locate(s, chunk_id)
        inode = s.tx.peek(found[0]) if found is not None else None
        if found is None or inode is None or found[2].flags & VOID or chunk_id in self.leaving:
            return None
        busy = (
            chunk_id in s.core.recovery.jobs or s.core.versions.unsettled(chunk_id) or s.core.maps.is_open(*found[:2])
        )
        whole = all(s.core.servers.is_known_good(r) and s.core.admin_of(r) == "normal" for r in found[2].replicas)
        well = s.core.tracker.state_of(chunk_id) == "healthy" and chunk_id not in s.core.damage.chunks
        return (inode, found[1], found[2]) if well and whole and not busy else None

    @staticmethod
    def _fits(s: Step, inode: Inode, chunk: Chunk, leaving: int, target: int) -> bool:
        """The target may hold a replica when `leaving` has none any more."""
        level = policy(inode).domain
        others = {s.core.servers.domain(s, r, level) for r in chunk.replicas if r != leaving}
        if target in chunk.replicas or s.core.servers.domain(s, target, level) in others:
            return False
        return not s.core.garbage.holds(chunk.id, target) and target not in s.core.recovery.stale.get(chunk.id, {})

    def _move(self, s: Step, inode: Inode, index: int, chunk: Chunk, leaving: int, target: int) -> None:
        self.leaving[chunk.id] = leaving
        s.core.servers.note_allocation(target)
        s.core.recovery.move(s, inode.ino, index, chunk, target)
