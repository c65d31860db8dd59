"""A shell in miniature around the core: store, parked requests, clients that answer pushes, chunk servers that obey orders. No I/O, no time but `now`."""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.bootstrap import initial_mutations
from vstor.model.core import Core
from vstor.model.outcome import Ctx, Outcome
from vstor.model.state import State
from vstor.proto import messages as m

CLUSTER_ID = "0123456789abcdef" * 2
SECRETS = {"data_key": bytes(range(32)), "verifier": b"v"}


class Parked:
    """What `Sim.send` returns for a request that waits; `reply` or `error` appear later."""

    def __init__(self, ctx: Ctx, request_id: int, ack: int, body: Any, key: Any) -> None:
        self.ctx, self.request_id, self.ack, self.body, self.key = ctx, request_id, ack, body, key
        self.reply: Any = None
        self.error: VstorError | None = None

    @property
    def done(self) -> bool:
        return self.reply is not None or self.error is not None


class Client:
    """A session. answer=False: pushes are kept in `pushes` for the test to answer."""

    def __init__(self, sim: Sim, host: str) -> None:
        self.sim, self.host = sim, host
        self.answer = True
        self.pushes: list[Any] = []
        self.next_id = 1
        self.acked = 0
        self.sizes: dict[int, int] = {}  # what the client, as the writer, knows of sizes
        self.modes: dict[int, int] = {}  # what it believes to hold (SHARED, EXCLUSIVE)
        sim.all_clients.append(self)
        self.connect()
        reply = self.call(m.SessionOpen("/mnt", 1, host, host))
        self.session_id = reply.session_id

    def connect(self) -> None:
        self.sim.conn += 1
        self.ctx = Ctx(self.sim.conn, "client", 0, 0, self.host, self.host)

    def send(self, body: Any, request_id: int | None = None) -> Any:
        """The reply, or a Parked. Raises VstorError."""
        if request_id is None:
            request_id = self.next_id
            self.next_id += 1
        return self.sim.send(self.ctx, request_id, self.acked, body)

    def call(self, body: Any) -> Any:
        """The reply; the request must not be left waiting."""
        result = self.send(body)
        if isinstance(result, Parked):
            assert result.done, f"{body} waits for {result.key}"
            if result.error is not None:
                raise result.error
            result = result.reply
        if isinstance(result, m.OpenReply):
            self.modes[result.attr.ino] = result.lease
        elif isinstance(result, m.LeaseReply):
            self.modes[result.attr.ino] = result.mode
        return result

    def push(self, body: Any) -> None:
        if not self.answer:
            self.pushes.append(body)
        else:
            self.react(body)

    def react(self, body: Any) -> None:
        if isinstance(body, m.Invalidate):
            self.send(m.InvalidateDone(body.seq))
        elif isinstance(body, m.Recall):
            held = self.modes.get(body.ino, m.NONE)
            keep = held if body.want == m.ATTR else min(body.want, held) if body.want != m.CACHE else m.NONE
            size = self.sizes.get(body.ino, -1) if held == m.EXCLUSIVE else -1
            if body.want != m.ATTR:
                self.modes[body.ino] = keep
            self.send(m.LeaseRelease(body.ino, body.seq, keep, size))


class Server:
    """A chunk server. obey=False: orders are kept in `orders`."""

    def __init__(self, sim: Sim, host: str, *, tier: int = 0, space: int = 1 << 40, location: str = "") -> None:
        self.sim, self.host, self.tier, self.space, self.location = sim, host, tier, space, location
        self.free = space
        self.chunks: dict[int, list[int]] = {}  # id -> [version, flags]
        self.orders: deque[m.CsOrder] = deque()
        self.obey = True
        self.up = False
        self.incarnation = 0
        self.fail: dict[type, int] = {}  # order type -> status
        self.seen: list[Any] = []
        ctx = sim.ctx("ctl")
        self.cs_id = sim.call(ctx, m.CsCreate(host, host, tier, f"/disk{sim.conn}")).cs_id
        self.start()

    def start(self, restart: bool = True) -> None:
        self.incarnation += restart
        self.up = True
        self.ctx = Ctx(self.sim.next_conn(), "cs", 0, self.cs_id, self.host, self.host)
        self.sim.servers[self.cs_id] = self
        self.sim.call(self.ctx, m.CsRegister(
            self.cs_id, self.incarnation, [f"10.0.0.1:{self.cs_id}", f"unix:/run/{self.cs_id}"], self.host, self.host, self.location,
            self.tier, "/disk", 7, "1", self.space, self.free, "C",
        ))  # fmt: skip
        self.inventory()

    def restart(self) -> None:
        """The process dies and comes back at once."""
        self.kill()
        self.start()

    def inventory(self) -> None:
        packed = b"".join(struct.pack("<QII", c, v, f) for c, (v, f) in self.chunks.items())
        self.sim.call(self.ctx, m.CsInventory(self.cs_id, packed, True))

    def kill(self) -> None:
        """The process dies; its connection breaks."""
        self.up = False
        self.orders.clear()
        self.sim.deliver(self.sim.core.cs_disconnected(self.ctx, self.sim.now))

    def heartbeat(self) -> None:
        try:
            self.sim.call(
                self.ctx, m.CsHeartbeat(self.cs_id, self.space, self.free, len(self.chunks), "C", 0, 0, 0, 0, 0)
            )
        except VstorError as exc:
            if exc.code != ErrorCode.NO_SESSION:
                raise
            self.start(restart=False)

    def order(self, order: m.CsOrder) -> None:
        if not self.up:
            return
        if self.obey:
            self.do(order)
        else:
            self.orders.append(order)

    def do(self, envelope: m.CsOrder) -> None:
        order = envelope.order
        self.seen.append(order)
        status, value = self.fail.get(type(order), 0), 0
        if not status:
            status, value = self.execute(order)
        self.sim.call(self.ctx, m.CsOrderDone(envelope.order_id, status, "", value, 1000))

    def execute(self, order: Any) -> tuple[int, int]:
        if isinstance(order, m.OrderSetVersion):
            if order.chunk_id not in self.chunks:
                if not order.create_bytes:
                    return ErrorCode.NO_CHUNK, 0
                self.chunks[order.chunk_id] = [order.version, 0]
            if order.version < self.chunks[order.chunk_id][0]:
                return ErrorCode.STALE, 0
            self.chunks[order.chunk_id][0] = order.version
        elif isinstance(order, m.OrderDelete):
            for chunk_id in order.chunk_ids:
                self.chunks.pop(chunk_id, None)
        elif isinstance(order, m.OrderReplicate):
            source = self.sim.servers[order.sources[0].cs_id]
            if not source.up or source.chunks.get(order.chunk_id, [0])[0] != order.version:
                return ErrorCode.STALE, 0
            self.chunks[order.chunk_id] = [order.version, 0 if order.final else 1]
            return 0, 5
        return 0, 0


class Sim:
    """A cluster with a leader."""

    def __init__(self, config: dict[str, str] | None = None) -> None:
        self.now = 1_000_000
        self.conn = 0
        self.store: dict[bytes, bytes] = {}
        self.clients: dict[int, Client] = {}
        self.all_clients: list[Client] = []
        self.servers: dict[int, Server] = {}
        self.parked: list[Parked] = []
        self._queue: deque[Outcome] = deque()
        self._busy = False
        self.commit(initial_mutations("test", CLUSTER_ID, config or {}, SECRETS, self.now))
        self.epoch = 10
        self.state = State()
        self.state.load(self.store.items())
        self.core = Core(self.state, epoch=self.epoch, seed=1, now_ms=self.now)

    def next_conn(self) -> int:
        self.conn += 1
        return self.conn

    def ctx(self, role: str) -> Ctx:
        return Ctx(self.next_conn(), role)

    def client(self, host: str = "c1") -> Client:
        return Client(self, host)

    def commit(self, mutations: list[tuple[bytes, bytes | None]]) -> None:
        assert len({key for key, _ in mutations}) == len(mutations), "a key twice in one Outcome"
        for key, value in mutations:
            if value is None:
                self.store.pop(key, None)
            else:
                self.store[key] = value

    def send(self, ctx: Ctx, request_id: int, ack: int, body: Any) -> Any:
        outcome = self.core.handle(ctx, request_id, ack, body, self.now)
        if outcome.bind_session:
            for client in [c for c in self.all_clients if c.ctx.conn_id == ctx.conn_id]:
                client.ctx = Ctx(ctx.conn_id, "client", outcome.bind_session, 0, client.host, client.host)
                self.clients[outcome.bind_session] = client
        parked = None
        if outcome.park is not None:
            parked = Parked(ctx, request_id, ack, body, outcome.park)
            self.parked.append(parked)
        self.deliver(outcome)
        return parked or outcome.reply

    def call(self, ctx: Ctx, body: Any) -> Any:
        result = self.send(ctx, 0, 0, body)
        if isinstance(result, Parked):
            assert result.done, f"{body} waits for {result.key}"
            if result.error:
                raise result.error
            return result.reply
        return result

    def deliver(self, outcome: Outcome) -> None:
        """Commit, then send; never from within another delivery, so that order is kept."""
        self.commit(outcome.mutations)
        self._queue.append(outcome)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._send_out(self._queue.popleft())
        finally:
            self._busy = False

    def _send_out(self, outcome: Outcome) -> None:
        for session_id in outcome.unbind_session:
            self.clients.pop(session_id, None)
        for session_id, push in outcome.pushes:
            if session_id in self.clients:
                self.clients[session_id].push(push)
        for cs_id, order in outcome.orders:
            self.servers[cs_id].order(order)
        for parked in [p for p in self.parked if p.key in outcome.wake]:
            if parked in self.parked:
                self.rerun(parked)

    def rerun(self, parked: Parked) -> None:
        try:
            outcome = self.core.handle(parked.ctx, parked.request_id, parked.ack, parked.body, self.now)
        except VstorError as exc:
            parked.error = exc
            self.parked.remove(parked)
            return
        if outcome.park is not None:
            parked.key = outcome.park
        else:
            parked.reply = outcome.reply
            self.parked.remove(parked)
        self.commit(outcome.mutations)
        self._queue.append(outcome)

    def step(self, ms: int = 200, *, renew: bool = True) -> None:
        """Time passes; servers that are up send heartbeats and clients renew."""
        self.now += ms
        for server in list(self.servers.values()):
            if server.up:
                server.heartbeat()
        if renew:
            for client in list(self.clients.values()):
                client.send(m.SessionRenew(client.session_id))
        self.deliver(self.core.tick(self.now))

    def run(self, ms: int, *, renew: bool = True) -> None:
        """Time passes in steps of 200 ms."""
        for _ in range(ms // 200):
            self.step(renew=renew)

    def drop_connection(self, client: Client) -> None:
        """The client's connection breaks; its parked requests are forgotten by the shell."""
        self.parked = [p for p in self.parked if p.ctx.conn_id != client.ctx.conn_id]
        self.deliver(self.core.session_disconnected(client.ctx, self.now))
        client.connect()

    def failover(self) -> None:
        """The leader is gone; a standby that followed the commits takes over. Nobody has reconnected yet."""
        self.parked, self.clients = [], {}
        self._queue.clear()
        self.epoch += 10
        self.state = State()
        self.state.load(self.store.items())
        self.core = Core(self.state, epoch=self.epoch, seed=2, now_ms=self.now)
        for server in self.servers.values():
            server.orders.clear()
