"""States of all chunks, counted as they change, and what has to be done about them.

A chunk is (FEATURES' words): void, never written; offline, no replica answers; blocked, fewer than the minimum answer, and pending when a
client waits for it; urgent, exactly the minimum; degraded, more than that but fewer than normal; overcommitted, more than normal;
else healthy. Only replicas on active servers in normal administration count, for reading those being released or failed do too.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING

from vstor.model.chunkservers import INACTIVE
from vstor.model.records import VOID, Chunk, Policy, unpack_policy
from vstor.model.step import Step

if TYPE_CHECKING:
    from vstor.model.core import Core

STATES = ("healthy", "degraded", "urgent", "blocked", "pending", "offline", "overcommitted", "void")
SHORT_STATES = ("degraded", "urgent", "blocked", "pending", "offline")  # fewer replicas than the file's policy says
PRIORITY = {"pending": 0, "blocked": 1, "urgent": 2, "degraded": 3}
BACKLOG_PER_TICK = 4000  # chunks looked at again after a server changed, about 20 ms


class Tracker:
    """Chunk states of the leader. A chunk that is not in `states` is healthy."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.states: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.unique: set[int] = set()  # chunks with one replica left of several wanted
        self.standby: set[int] = set()  # chunks with a replica on an inactive server
        self.awaited: dict[int, int] = {}  # chunk id -> when a client last waited for it
        self.surplus: dict[int, None] = {}  # chunks with more replicas than they need, in order
        self._queue: list[tuple[int, int, int]] = []  # (priority, number, chunk id)
        self._queued: dict[int, int] = {}  # chunk id -> priority
        self._number = 0
        self._backlog: deque[int] = deque(core.state.chunk_home)
        self._in_backlog: set[int] = set(self._backlog)  # each chunk once

    # --- input --------------------------------------------------------------------------------------------------

    def server_changed(self, cs_id: int) -> None:
        """Look at all chunks of the server again, in the background."""
        for chunk_id in self._core.state.by_cs.get(cs_id, ()):
            self.again(chunk_id)

    def wanted(self, s: Step, chunk_id: int) -> None:
        """A client waits for the chunk: to the top of the queue."""
        self.awaited[chunk_id] = s.now_ms
        self._look(chunk_id)

    def look(self, chunk_ids: set[int]) -> None:
        """Chunks whose map changed."""
        for chunk_id in chunk_ids:
            self._look(chunk_id)

    def tick(self, now_ms: int) -> None:
        """A bounded part of the backlog."""
        for chunk_id in [c for c, since in self.awaited.items() if now_ms - since > 30_000]:
            del self.awaited[chunk_id]
            self.again(chunk_id)
        for _ in range(min(BACKLOG_PER_TICK, len(self._backlog))):
            chunk_id = self._backlog.popleft()
            self._in_backlog.discard(chunk_id)
            self._look(chunk_id)

    def settled(self) -> bool:
        """Every chunk has been looked at since the servers last changed."""
        return not self._backlog

    # --- judgement ------------------------------------------------------------------------------------------------

    def _look(self, chunk_id: int) -> None:
        found = self._core.state.chunk_by_id(chunk_id)
        if found is None:
            self._set(chunk_id, None)
            self.awaited.pop(chunk_id, None)
            self.unique.discard(chunk_id)
            self.standby.discard(chunk_id)
            self.surplus.pop(chunk_id, None)
            self._queued.pop(chunk_id, None)
            self._core.balance.forget(chunk_id)
            return
        ino, _, chunk = found
        inode = self._core.state.inodes.get(ino)
        if inode is None:
            return
        policy = unpack_policy(inode.policy)
        state, missing, surplus = self.judge(chunk, policy)
        self._set(chunk_id, state)
        self._core.balance.look(chunk, policy, state)
        if missing:
            self._enqueue(chunk_id, PRIORITY.get(state, 4))
        else:
            self._queued.pop(chunk_id, None)
        if surplus:
            self.surplus[chunk_id] = None
        else:
            self.surplus.pop(chunk_id, None)

    def judge(self, chunk: Chunk, policy: Policy) -> tuple[str, bool, bool]:
        """(state, wants another replica, has replicas it does not need)."""
        servers, admin = self._core.servers, self._core.admin_of
        active = [r for r in chunk.replicas if servers.is_active(r)]
        good = [r for r in active if admin(r) in ("normal", "maintenance")]
        silent = [
            r for r in chunk.replicas
            if servers.live[r].activity == INACTIVE and admin(r) in ("normal", "maintenance")
        ]  # fmt: skip
        one = len(active) == 1 and policy.normal > 1 and not chunk.flags & VOID
        (self.unique.add if one else self.unique.discard)(chunk.id)
        (self.standby.add if silent else self.standby.discard)(chunk.id)
        if not active:
            return "offline", False, False
        known = [r for r in good if servers.is_known_good(r)]
        idle = len(chunk.replicas) - len(silent) > policy.normal
        surplus = idle and len(known) >= policy.normal
        if chunk.flags & VOID:
            # A version above 1: a raise was under way when the leader before fell; recovery finishes it.
            blocked = len(active) < policy.minimum and chunk.id in self.awaited
            return ("pending" if blocked else "void"), blocked or chunk.version > 1, False
        if len(active) < policy.minimum:
            state = "pending" if chunk.id in self.awaited else "blocked"
            return state, len(good) + (0 if state == "pending" else len(silent)) < policy.normal, False
        missing = len(good) + len(silent) < policy.normal
        if len(good) < policy.normal:
            return ("degraded" if len(good) > policy.minimum else "urgent"), missing, surplus
        return ("overcommitted" if len(good) > policy.normal else "healthy"), False, surplus

    def _set(self, chunk_id: int, state: str | None) -> None:
        old = self.states.pop(chunk_id, None)
        if old is not None:
            self.counts[old] -= 1
        if state is not None and state != "healthy":
            self.states[chunk_id] = state
            self.counts[state] += 1

    def state_of(self, chunk_id: int) -> str:
        """State of a chunk that exists."""
        return self.states.get(chunk_id, "healthy")

    def healthy(self) -> int:
        """Chunks in no other state."""
        return len(self._core.state.chunk_home) - len(self.states)

    # --- the queue of recovery ------------------------------------------------------------------------------------

    def _enqueue(self, chunk_id: int, priority: int) -> None:
        if self._queued.get(chunk_id, 9) <= priority:
            return
        self._queued[chunk_id] = priority
        self._number += 1
        heapq.heappush(self._queue, (priority, self._number, chunk_id))

    def take(self) -> int | None:
        """The most endangered chunk that wants a replica."""
        while self._queue:
            priority, _, chunk_id = heapq.heappop(self._queue)
            if self._queued.get(chunk_id) == priority:
                del self._queued[chunk_id]
                return chunk_id
        return None

    def again(self, chunk_id: int) -> None:
        """Look at the chunk again later (its server changed, its copy failed or found no place)."""
        if chunk_id not in self._in_backlog:
            self._in_backlog.add(chunk_id)
            self._backlog.append(chunk_id)

    def queued(self) -> int:
        """Chunks that wait for a copy."""
        return len(self._queued)
