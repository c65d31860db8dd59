"""One term of leadership: requests into the core, group commit, replies and pushes and orders out.

DESIGN: the core changes memory at once; nothing that rests on it leaves before it is committed. Outcomes form one queue: the committer
takes what has gathered, merges the mutations by key into one transaction, and delivers those outcomes in order when etcd has it.
One transaction is in flight; the next batch gathers meanwhile. With nothing in flight and nothing to commit an outcome is
delivered at once, so reads cost no turn of the loop. Any failed commit and any defect of the core end the term: memory is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds.large import Chain
from vstor.meta.store import (
    COMMIT_BYTES_MAX,
    MUTATIONS_PER_COMMIT_MAX,
    Fenced,
    Leadership,
    Mutation,
    StoreStatus,
)
from vstor.model.core import Core
from vstor.model.outcome import WAKE_ALL, Ctx, Outcome
from vstor.net.rpc_server import Connection
from vstor.proto import messages as m

log = logging.getLogger(__name__)

BATCH_MUTATIONS = 512  # a batch is closed above it: the knee of etcd's throughput
TICK_S = 0.2
PARKED_RETRY_TICKS = 10  # parked requests are looked at again after so many ticks, whatever was woken
PARKED_MAX = 100_000
OUTAGE_MS_MAX = 3000  # without contact to etcd; a longer one starts a new term
QUEUE_MAX = 200_000  # outcomes waiting for a commit
# Requests that make metadata grow; refused while etcd is nearly full. Deleting goes on.
GROWING = (m.Create, m.Link, m.SetXattr, m.CsCreate)


@dataclass(slots=True, eq=False)
class Peer:
    """A connection that has said Hello. ctx is replaced when a session or CS is bound to it."""

    conn: Connection
    ctx: Ctx


@dataclass(slots=True, eq=False)
class _Request:
    peer: Peer
    id: int
    ack: int
    body: m.RequestBody


@dataclass(slots=True, eq=False)
class _Entry:
    """What waits for its turn to be delivered."""

    outcome: Outcome
    request: _Request | None = None
    error: VstorError | None = None
    done: asyncio.Future[None] | None = None


class ClusterClock:
    """Unix ms that never go back within a term and do not follow steps of the wall clock."""

    def __init__(self) -> None:
        self._offset_ms = clock.unix_ms() - clock.boottime_ms()

    def __call__(self) -> int:
        return clock.boottime_ms() + self._offset_ms


class Term:
    """From a won election until `run` raises.

    Concurrency: one event loop; everything but `run` is synchronous.
    """

    def __init__(self, core: Core, leadership: Leadership, seq: int, now_ms: Callable[[], int]) -> None:
        self.core = core
        self.leadership = leadership
        self._chain = Chain(leadership, seq, os.urandom)
        self.now_ms = now_ms
        self.metadata_full = False
        self.store_status: StoreStatus | None = None  # kept by maintenance, for metrics
        self.counters: Counter[str] = Counter()
        self.commit_ms_max = 0.0
        self._queue: deque[_Entry] = deque()
        self._work: deque[_Request] = deque()
        self._parked: dict[Hashable, list[_Request]] = {}
        self._parked_count = 0
        self._sessions: dict[int, Peer] = {}
        self._servers: dict[int, Peer] = {}
        self._in_flight = False  # a commit or a delivery is under way: nothing may overtake it
        self._draining = False
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    @property
    def seq(self) -> int:
        """Number of the last transaction."""
        return self._chain.seq

    @property
    def revision(self) -> int:
        """Of the last transaction."""
        return self._chain.revision

    # --- from the service

    def may_serve(self) -> bool:
        """Nobody else can lead yet, by the local clock."""
        return self._failure is None and clock.boottime_ms() < self.leadership.serving_until_ms()

    def request(self, peer: Peer, request_id: int, ack: int, body: m.RequestBody) -> None:
        """Do a request; the answer goes to the connection when it is due. Raises META_UNAVAILABLE, LIMIT, NO_SPACE."""
        if self._failure is not None:
            raise VstorError(ErrorCode.NOT_LEADER)
        if not self.may_serve():
            raise VstorError(ErrorCode.META_UNAVAILABLE, "the MDS has no contact with etcd and may not serve now")
        if self._parked_count >= PARKED_MAX or len(self._queue) >= QUEUE_MAX:
            raise VstorError(ErrorCode.LIMIT, "the MDS is overloaded")
        if self.metadata_full and isinstance(body, GROWING):
            raise VstorError(
                ErrorCode.NO_SPACE, "the metadata store is nearly full: delete files or raise etcd's quota"
            )
        self._work.append(_Request(peer, request_id, ack, body))
        self._drain()

    def disconnected(self, peer: Peer) -> None:
        """The connection has closed."""
        for key in list(self._parked):
            kept = [r for r in self._parked[key] if r.peer is not peer]
            self._parked_count -= len(self._parked[key]) - len(kept)
            if kept:
                self._parked[key] = kept
            else:
                del self._parked[key]
        if self._failure is not None:
            return
        if peer.ctx.cs_id:
            if self._servers.get(peer.ctx.cs_id) is peer:
                del self._servers[peer.ctx.cs_id]
            self._step(lambda: self.core.cs_disconnected(peer.ctx, self.now_ms()))
        else:
            if self._sessions.get(peer.ctx.session_id) is peer:
                del self._sessions[peer.ctx.session_id]
            self._step(lambda: self.core.session_disconnected(peer.ctx, self.now_ms()))

    def report_event(self, severity: str, message: str) -> None:
        """An event of the shell into the log."""
        self._step(lambda: self.core.report_event(severity, "MDS", message, self.now_ms()))

    def revoke_tickets(self) -> None:
        """No ticket given out so far opens a chunk any more; clients that may, get new ones."""
        self._step(lambda: self.core.revoke_tickets(self.now_ms()))

    async def commit(self, mutations: Iterable[Mutation]) -> None:
        """Records of the shell. Returns when they are durable. Raises NOT_LEADER when the term ended before."""
        if self._failure is not None:
            raise VstorError(ErrorCode.NOT_LEADER)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submit(_Entry(Outcome(mutations=list(mutations)), done=done))
        await done

    # --- the core's side

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        try:
            while self._work and self._failure is None:
                self._handle(self._work.popleft())
        finally:
            self._draining = False

    def _handle(self, request: _Request) -> None:
        try:
            outcome = self.core.handle(request.peer.ctx, request.id, request.ack, request.body, self.now_ms())
        except VstorError as exc:
            self._submit(_Entry(Outcome(), request, exc))
            return
        except Exception as exc:  # noqa: BLE001 - a defect: ends the term, see _fail
            request.peer.conn.fail(request.id, VstorError(ErrorCode.INTERNAL))
            self._fail(exc, f"defect in {type(request.body).__name__}")
            return
        if outcome.park is not None:
            self._parked.setdefault(outcome.park, []).append(request)
            self._parked_count += 1
        self._submit(_Entry(outcome, request))

    def _step(self, action: Callable[[], Outcome]) -> None:
        try:
            outcome = action()
        except Exception as exc:  # noqa: BLE001 - a defect: ends the term
            self._fail(exc, "defect")
            return
        self._submit(_Entry(outcome))
        self._drain()

    def _fail(self, exc: Exception, what: str) -> None:
        """The core may have changed half of something: nothing of this memory may be used any more."""
        log.critical("term ended: %s", what, exc_info=exc)
        self._failure = exc
        self._news.set()

    def _wake(self, keys: set[Hashable]) -> None:
        for key in list(self._parked) if WAKE_ALL in keys else keys:
            requests = self._parked.pop(key, None)
            if requests:
                self._parked_count -= len(requests)
                self._work.extend(requests)

    # --- the queue

    def _submit(self, entry: _Entry) -> None:
        if entry.outcome.wake:
            self._wake(entry.outcome.wake)
        if entry.outcome.mutations or self._in_flight or self._queue:
            self._queue.append(entry)
            self._news.set()
        else:
            self._in_flight = True
            self._deliver(entry)
            self._in_flight = False

    def _take_batch(self) -> tuple[list[_Entry], dict[bytes, bytes | None]]:
        """Entries from the front of the queue and their mutations, the last of a key winning."""
        entries: list[_Entry] = []
        merged: dict[bytes, bytes | None] = {}
        size = 0
        while self._queue and len(merged) < BATCH_MUTATIONS:
            mutations = self._queue[0].outcome.mutations
            more = sum(len(k) + len(v or b"") + 32 for k, v in mutations)
            if merged and (len(merged) + len(mutations) > MUTATIONS_PER_COMMIT_MAX or size + more > COMMIT_BYTES_MAX):
                break
            size += more
            merged.update(mutations)
            entries.append(self._queue.popleft())
        return entries, merged

    async def _commit_batch(self) -> None:
        entries, merged = self._take_batch()
        self._in_flight = True
        started = asyncio.get_running_loop().time()
        await self._chain.commit_all(merged)
        self.counters["commits"] += 1
        self.counters["commit_us"] += round((asyncio.get_running_loop().time() - started) * 1e6)
        self.counters["mutations"] += len(merged)
        self.commit_ms_max = max(self.commit_ms_max, (asyncio.get_running_loop().time() - started) * 1000)
        for entry in entries:  # what these cause queues up behind them
            self._deliver(entry)
        self._in_flight = False

    def _deliver(self, entry: _Entry) -> None:
        outcome, request = entry.outcome, entry.request
        if request is not None:
            self._bind(request.peer, outcome)
            if entry.error is not None:
                request.peer.conn.fail(request.id, entry.error)
            elif outcome.reply is not None:
                request.peer.conn.reply(request.id, outcome.reply)
        for session_id, push in outcome.pushes:
            peer = self._sessions.get(session_id)
            if peer is not None:
                peer.conn.push(push)
        for cs_id, order in outcome.orders:
            peer = self._servers.get(cs_id)
            if peer is not None:
                peer.conn.push(order)
        for session_id in outcome.unbind_session:
            peer = self._sessions.pop(session_id, None)
            if peer is not None:
                peer.conn.close()
        if entry.done is not None and not entry.done.done():
            entry.done.set_result(None)

    def _bind(self, peer: Peer, outcome: Outcome) -> None:
        """Tie the connection to a session or CS; an older connection of it is closed first, so that its end is not mistaken for ours."""
        if peer.conn.closed:
            return
        ctx = peer.ctx
        if outcome.bind_session:
            older = self._sessions.pop(outcome.bind_session, None)
            if older is not None and older is not peer:
                older.conn.close()
            self._sessions[outcome.bind_session] = peer
            peer.ctx = _with(ctx, session_id=outcome.bind_session)
        if outcome.bind_cs:
            older = self._servers.pop(outcome.bind_cs, None)
            if older is not None and older is not peer:
                older.conn.close()
            self._servers[outcome.bind_cs] = peer
            peer.ctx = _with(ctx, cs_id=outcome.bind_cs)

    # --- tasks

    async def run(self) -> None:
        """Commit and tick until the term ends. Raises Fenced, StoreUnavailable, or what the core did wrong."""
        ticker = asyncio.create_task(self._tick_forever(), name="tick")
        try:
            while self._failure is None:
                await self._news.wait()
                self._news.clear()
                while self._queue and self._failure is None:
                    if self._queue[0].outcome.mutations:
                        await self._commit_batch()
                    else:
                        self._in_flight = True
                        self._deliver(self._queue.popleft())
                        self._in_flight = False
            raise self._failure
        finally:
            self._failure = self._failure or Fenced("the term has ended")
            ticker.cancel()
            for entry in self._queue:
                if entry.done is not None and not entry.done.done():
                    entry.done.set_exception(VstorError(ErrorCode.NOT_LEADER))
                    entry.done.exception()
            self._queue.clear()

    async def _tick_forever(self) -> None:
        ticks = 0
        served_ms = clock.boottime_ms()
        while self._failure is None:
            self.leadership.beat()
            if self.leadership.lost():
                self._end("the lease of the leadership has ended")
            elif not self.may_serve() and clock.boottime_ms() - served_ms > OUTAGE_MS_MAX:
                self._end("no contact with etcd: somebody else may lead by now")
            elif self.may_serve():
                if clock.boottime_ms() - served_ms > OUTAGE_MS_MAX:
                    # Sessions could not be renewed meanwhile: a new term gives them time to, this one would end them.
                    self._end("contact with etcd came back after an outage")
                    return
                served_ms = clock.boottime_ms()
                self._step(lambda: self.core.tick(self.now_ms()))
                ticks += 1
                if ticks % PARKED_RETRY_TICKS == 0 and self._parked:
                    self._wake({WAKE_ALL})
                    self._drain()
            await asyncio.sleep(TICK_S)

    def _end(self, why: str) -> None:
        self._failure = Fenced(why)
        self._news.set()

    async def drain(self, deadline_s: float) -> None:
        """Until what was accepted is committed, at most so long."""
        last = self.commit([])
        try:
            async with asyncio.timeout(deadline_s):
                await last
        except (TimeoutError, VstorError):
            log.warning("stopping with uncommitted requests queued=%d", len(self._queue))

    @property
    def sizes(self) -> dict[str, int]:
        """For metrics."""
        return {
            "sessions_connected": len(self._sessions),
            "cs_connected": len(self._servers),
            "parked_requests": self._parked_count,
            "commit_queue": len(self._queue),
        }


def _with(ctx: Ctx, *, session_id: int | None = None, cs_id: int | None = None) -> Ctx:
    return Ctx(
        ctx.conn_id,
        ctx.role,
        ctx.session_id if session_id is None else session_id,
        ctx.cs_id if cs_id is None else cs_id,
        ctx.host_id,
        ctx.hostname,
        ctx.address,
    )
