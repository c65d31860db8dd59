"""The state machine of the leading MDS: requests in, Outcomes out. Pure: no I/O, no clock, no randomness but the seed."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import csops, removal, sessions, status
from vstor.model.balance import Balance
from vstor.model.chunkservers import Servers
from vstor.model.config import Config
from vstor.model.damage import Damage
from vstor.model.dispatch import GRACE_FREE, HANDLERS, MEMO, NAMES, PERSIST, ROLES
from vstor.model.fences import Fences
from vstor.model.files import policy
from vstor.model.garbage import Garbage
from vstor.model.leases import LeaseTable
from vstor.model.locks import LockTable
from vstor.model.maps import Maps
from vstor.model.opens import OpenTable
from vstor.model.orders import OrderBook
from vstor.model.outcome import Ctx, Outcome
from vstor.model.recovery import Recovery
from vstor.model.repairs import Repairs
from vstor.model.restored import Restored
from vstor.model.secrets import Keyring
from vstor.model.sessions import Sessions
from vstor.model.slow import Slow
from vstor.model.state import State
from vstor.model.step import Parked, Step
from vstor.model.tracker import Tracker
from vstor.model.tx import Ids
from vstor.model.versions import Versions
from vstor.proto.messages import Create, EntryReply, Ok, Open, OpenReply, ReplyBody, RequestBody

RESULTS_MAX = 256  # outcomes kept for a session that does not acknowledge; above it changes are refused until it does
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ReplyBody).decode
_INTERNAL = Ctx(conn_id=0, role="mds")


class Core:
    """What the leader decides. One instance for each term of leadership; the State outlives it on standbys.

    Requests the shell answers itself and never passes here: Hello, Auth*, MdsJoin, RemoveMds, MdsReport (quorum is etcd's).
    """

    def __init__(self, state: State, *, epoch: int, seed: int, now_ms: int) -> None:
        """Take over `state`, complete up to this leader's term. Starts the grace period if sessions exist.

        Args: epoch: create revision of the leader key, goes into every order. seed: of placement. now_ms: cluster clock, Unix ms.
        """
        if state.cluster is None:
            raise VstorError(ErrorCode.DAMAGED, "the metadata store holds no cluster")
        self.state = state
        self.epoch = epoch
        self.seed = seed & (1 << 64) - 1
        self.started_ms = now_ms
        self.config = Config(state.config)
        self.ids = Ids(state)
        self.keyring = Keyring(state.secrets["data_key"])
        self.sessions = Sessions(state.sessions, now_ms)
        self.leases = LeaseTable(self.config.int("mds.lease.max_per_session"))
        self.locks = LockTable()
        self.opens = OpenTable()
        self.memo: dict[int, dict[int, ReplyBody]] = {}  # session -> request id -> reply of Open and Close
        self.servers = Servers(state.servers, now_ms, self.config.int("mds.wd.offline_tout"))
        self.orders = OrderBook(epoch, lambda: self.config.int("mds.order.tout"))
        self.versions = Versions()
        self.maps = Maps()
        self.fences = Fences()
        self.garbage = Garbage()
        self.recovery = Recovery()
        self.repairs = Repairs()
        self.damage = Damage()
        self.balance = Balance(state.servers)
        self.slow = Slow()
        self.restored = Restored(state)
        self.lost: deque[tuple[int, int]] = deque()  # (chunk id, cs id): a replica in the map that is not there
        self.lower: deque[tuple[int, int]] = deque()  # ... that missed an OrderSetVersion
        self.higher: deque[tuple[int, int, int]] = deque()  # ... and its version, above the map's
        self.gone: set[tuple[int, int]] = set()  # (chunk id, cs id): the server says it lacks the only replica
        self.tracker = Tracker(self)
        self.fill_level = 0  # percent last reported
        self._carry = Outcome()
        state.changed = set()
        for inos in list(state.writers.values()):
            for ino in inos:
                self.maps.writing(ino, known=False)
        if not self.restored.active:  # a raise now could make a stale replica look like the newest
            self.fence_abandoned(Step(self, _INTERNAL, 0, now_ms))

    def fence_abandoned(self, step: Step) -> None:
        """Writers without a session: the leader before did not finish fencing, or the metadata were restored."""
        for session_id, inos in list(self.state.writers.items()):
            if session_id not in self.state.sessions:
                for ino in inos:
                    self.fences.start(step, ino)

    # --- small questions of the parts ---------------------------------------------------------------------------

    def admin_of(self, cs_id: int) -> str:
        """Administrative state of a chunk server."""
        record = self.state.servers.get(cs_id)
        return record.admin if record is not None else "dropped"

    def chunk_bytes(self, s: Step, ino: int) -> int:
        """Chunk size of a file that exists."""
        inode = s.tx.peek(ino)
        assert inode is not None
        return policy(inode).chunk_bytes

    # --- requests -----------------------------------------------------------------------------------------------

    def handle(self, ctx: Ctx, request_id: int, ack: int, body: RequestBody, now_ms: int) -> Outcome:
        """Do one request. Raises VstorError(code, message); then nothing was changed and there is nothing to send but the Failure."""
        kind = type(body)
        handler = HANDLERS.get(kind)
        if handler is None:
            raise VstorError(ErrorCode.UNSUPPORTED, f"request {kind.__name__}")
        if ctx.role not in ROLES.get(kind, (ctx.role,)):
            raise VstorError(ErrorCode.DENIED, f"{kind.__name__} is not for role {ctx.role}")
        s = Step(self, ctx, request_id, now_ms)
        try:
            if (self.sessions.in_grace or self.restored.active) and kind not in GRACE_FREE:
                raise Parked(("grace",))
            kept = self._repeated(s, ack, body)
            s.out.reply = kept if kept is not None else handler(s, body)
            self._remember(s, body)
        except Parked as parked:
            if not parked.keep:
                s.tx = s.new_tx()
            s.out.park = parked.key
        except VstorError:
            self.leases.forget(s.cid, self._carry)
            self.locks.forget(s.cid)
            self._keep_for_later(s.out)
            raise
        return self._finish(s)

    def _repeated(self, s: Step, ack: int, body: RequestBody) -> ReplyBody | None:
        """The reply of an earlier run of this request. Prunes what the client has acknowledged."""
        if not s.session_id or (type(body) not in PERSIST and type(body) not in MEMO):
            return None
        memo = self.memo.get(s.session_id)
        if memo:
            for request_id in [n for n in memo if n <= ack]:
                del memo[request_id]
        record = s.state.sessions.get(s.session_id)
        if record is None:
            return None
        if memo and s.request_id in memo:
            return memo[s.request_id]
        if any(n <= ack for n in record.results):
            pruned = {n: r for n, r in record.results.items() if n > ack}
            if type(body) in PERSIST and s.request_id not in pruned and len(pruned) >= RESULTS_MAX:
                raise VstorError(ErrorCode.LIMIT, "too many changes whose outcome the client has not acknowledged")
        elif type(body) in PERSIST and s.request_id not in record.results and len(record.results) >= RESULTS_MAX:
            raise VstorError(ErrorCode.LIMIT, "too many changes whose outcome the client has not acknowledged")
        s.ack = ack
        stored = record.results.get(s.request_id)
        if stored is None and type(body) in NAMES:
            stored = record.former.get(s.request_id)
        return None if stored is None else self._revive(s, body, _decode(stored))

    def _revive(self, s: Step, body: RequestBody, reply: ReplyBody) -> ReplyBody:
        """A stored reply, given again perhaps by another leader: what it granted in memory is granted again."""
        if isinstance(reply, OpenReply) and isinstance(body, Create | Open):
            ino = reply.attr.ino
            if ino not in self.opens.by_session.get(s.session_id, ()) and ino in self.state.inodes:
                self.opens.add(s.session_id, ino)
            reply.lease = self.leases.mode(s.session_id, ino)
        if isinstance(reply, EntryReply | OpenReply):
            cacheable = self.leases.mode(s.session_id, reply.attr.ino) != 0
            reply.attr.cacheable = cacheable and self.leases.may_cache(s.session_id, reply.attr.ino)
        return reply

    def _remember(self, s: Step, body: RequestBody) -> None:
        """Keep the outcome of a change in the session record, in the same commit."""
        if not s.session_id or s.out.reply is None:
            return
        if type(body) in MEMO:
            self.memo.setdefault(s.session_id, {})[s.request_id] = s.out.reply
        if type(body) not in PERSIST or not s.tx.dirty() or s.session_id not in s.state.sessions:
            return
        reply = s.out.reply
        if isinstance(reply, OpenReply):
            reply = msgspec.structs.replace(reply, chunks=[], servers=[], parent=None)
        elif isinstance(reply, EntryReply | Ok):
            reply = msgspec.structs.replace(reply, parent=None)
        record = s.tx.session(s.session_id)
        record.results = {n: r for n, r in record.results.items() if n > s.ack}
        record.former = {n: r for n, r in record.former.items() if n > s.ack}
        record.results[s.request_id] = _encode(reply)

    def _keep_for_later(self, out: Outcome) -> None:
        """Wakes and pushes of a step that failed go out with the next one."""
        self._carry.wake |= out.wake
        self._carry.pushes += out.pushes

    def _finish(self, s: Step) -> Outcome:
        """Apply the changes of a step to memory and complete its Outcome."""
        out = s.out
        if s.tx.dirty():
            out.mutations = s.tx.finish()
            self.state.apply(out.mutations)
        changed = self.state.changed
        if changed:
            self.state.changed = set()
            self.tracker.look(changed)
        if self._carry.wake or self._carry.pushes:
            out.wake |= self._carry.wake
            out.pushes = self._carry.pushes + out.pushes
            self._carry = Outcome()
        return out

    # --- time and connections -----------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> Outcome:
        """Time passes: expiry of sessions, states of CSs, recovery, retries of orders. Called about every 200 ms."""
        s = Step(self, _INTERNAL, 0, now_ms)
        s.out.wake.add(("tick",))
        self.leases.max_per_session = self.config.int("mds.lease.max_per_session")
        sessions.tick(s)
        csops.tick(s)
        self.orders.tick(s, self.servers.is_connected)
        self.versions.tick(s)
        if self.restored.active:
            self.restored.tick(s)
            return self._finish(s)
        self.fences.tick(s)
        self.tracker.tick(now_ms)
        self.slow.tick(s)
        self.damage.tick(s)
        self.recovery.tick(s)
        self.balance.tick(s)
        self.garbage.tick(s)
        self.keyring.rotate(s)
        removal.tick(s)
        status.tick(s)
        return self._finish(s)

    def session_disconnected(self, ctx: Ctx, now_ms: int) -> Outcome:
        """A connection of a client (or of a tool) closed: its parked requests are forgotten; the session itself lives on until its ttl."""
        s = Step(self, ctx, 0, now_ms)
        live = self.sessions.live.get(ctx.session_id)
        if live is None or live.conn_id == ctx.conn_id:  # otherwise it has a newer connection, whose requests these are
            self.leases.forget_connection(ctx.session_id or -ctx.conn_id, s.out)
            self.locks.forget_session(ctx.session_id)
        return self._finish(s)

    def cs_disconnected(self, ctx: Ctx, now_ms: int) -> Outcome:
        """The connection of a chunk server closed. Ignored when a newer connection has been bound."""
        s = Step(self, ctx, 0, now_ms)
        csops.disconnected(s, ctx.cs_id)
        return self._finish(s)

    def report_event(self, severity: str, system: str, message: str, now_ms: int) -> Outcome:
        """Put an event of the shell (election, etcd, backup) into the log. severity: info, warn, err."""
        s = Step(self, _INTERNAL, 0, now_ms)
        s.event(severity, message, system)
        return self._finish(s)

    def revoke_tickets(self, now_ms: int) -> Outcome:
        """New ticket keys in the place of all that are valid; chunk servers learn them with their next heartbeat."""
        s = Step(self, _INTERNAL, 0, now_ms)
        self.keyring.replace_all(s)
        return self._finish(s)

    def status(self, now_ms: int) -> dict[str, Any]:
        """The status object of GetStatus; the shell adds `mds`. handle(GetStatus) gives the same with mds=[]."""
        return status.build(Step(self, _INTERNAL, 0, now_ms))
