"""The MDS: the product's core and term (vstor.model, vstor.mds.term) under a small shell in place of vstor.mds.service.

What is modelled: election and taking over (daemons/docs/mds.md, "Lives and terms"), Hello, and the end of connections with the term. A new
leader loads the records as committed, which is what a standby that followed the watch has.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any, cast

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds.term import ClusterClock, Peer, Term
from vstor.meta.store import Fenced, StoreUnavailable
from vstor.model.core import Core
from vstor.model.outcome import Ctx
from vstor.model.state import State
from vstor.proto import messages as m

from tests.simulate.etcd import Etcd, SimLeadership
from tests.simulate.loop import Proc
from tests.simulate.net import End, Link, Net

MDS_TTL_S = 2.0


class ServerConn:
    """vstor.net.rpc_server.Connection, as the term uses it."""

    def __init__(self, mds: Mds, end: End) -> None:
        self.mds, self.end = mds, end
        self.peer: Peer | None = None
        self.receive: Any = None  # of the client's side
        end.on_close = self._closed

    @property
    def closed(self) -> bool:
        return not self.end.open

    def _send(self, envelope: Any) -> None:
        data = m.encode(envelope)
        receive = self.receive
        self.end.send(lambda: receive(m.decode(data)))

    def reply(self, request_id: int, body: Any) -> None:
        self._send(m.Reply(request_id, body))

    def fail(self, request_id: int, error: VstorError) -> None:
        self._send(m.Failure(request_id, error.code, error.message))

    def push(self, body: Any) -> None:
        self._send(m.Push(body))

    def close(self) -> None:
        if self.end.open:
            self.end.close()
            self._closed()

    def _closed(self) -> None:
        self.mds.conns.discard(self)
        if self.peer is not None and self.mds.term is not None:
            self.mds.term.disconnected(self.peer)

    def request(self, data: bytes) -> None:
        """A frame arrives."""
        request = cast(m.Request, m.decode(data))
        try:
            reply = self.mds.request(self, request)
        except VstorError as exc:
            self.fail(request.id, exc)
        else:
            if reply is not None:
                self.reply(request.id, reply)


class Mds:
    """One life of one MDS process."""

    def __init__(
        self, proc: Proc, net: Net, etcd: Etcd, address: str, addresses: list[str], rng: random.Random
    ) -> None:
        self.proc, self.net, self.etcd, self.rng = proc, net, etcd, rng
        self.address, self.addresses = address, addresses
        self.term: Term | None = None
        self.conns: dict[ServerConn, None] | Any = _OrderedSet()
        self.core: Core | None = None
        self.fatal: BaseException | None = None
        self.on_lead: Any = None
        self._next_conn = 1
        proc.spawn(self._run(), "mds")

    def accept(self, link: Link) -> ServerConn:
        """A client connects; its frames go to `request` of what is returned."""
        conn = ServerConn(self, link.ends[1])
        self.conns.add(conn)
        return conn

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable, Fenced):
                leadership = await self.etcd.campaign(self.proc, self.address, MDS_TTL_S)
                if leadership is not None:
                    await self._lead(leadership)
            await asyncio.sleep(0.2 + self.rng.random() * 0.3)

    async def _lead(self, leadership: SimLeadership) -> None:
        beating = asyncio.create_task(self._beat(leadership))
        try:
            seq, records = await self.etcd.load(self.proc, leadership.epoch)
        finally:
            beating.cancel()
        state = State()
        state.load(records)
        now_ms = ClusterClock()
        core = Core(state, epoch=leadership.epoch, seed=self.rng.getrandbits(63), now_ms=now_ms())
        self.core = core
        self.term = Term(core, leadership, seq, now_ms)
        if self.on_lead is not None:
            self.on_lead(self)
        try:
            await self.term.run()
        except (Fenced, StoreUnavailable):
            return
        except Exception as exc:
            self.fatal = exc  # a defect of the core: the history has failed
            raise
        finally:
            self.term = None
            await leadership.resign()
            for conn in list(self.conns):
                conn.close()

    async def _beat(self, leadership: SimLeadership) -> None:
        while True:
            leadership.beat()
            await asyncio.sleep(0.2)

    def request(self, conn: ServerConn, request: m.Request) -> m.ReplyBody | None:
        """As vstor.mds.service."""
        body = request.body
        if isinstance(body, m.Hello):
            return self._hello(conn, body)
        if conn.peer is None:
            raise VstorError(ErrorCode.BAD_REQUEST, "Hello comes first")
        if self.term is None:
            raise VstorError(ErrorCode.NOT_LEADER)
        self.term.request(conn.peer, request.id, request.ack, body)
        return None

    def _hello(self, conn: ServerConn, body: m.Hello) -> m.HelloReply:
        if conn.peer is None:
            ctx = Ctx(self._next_conn, body.role, host_id=body.host_id, hostname=body.hostname)
            self._next_conn += 1
            conn.peer = Peer(cast(Any, conn), ctx)
        term = self.term
        leader, epoch = self.address, 0
        if term is None:  # a standby says what the watch told it
            name, etcd = self.proc.host.name, self.etcd
            known = self.net.passes(name, "etcd") and self.net.passes("etcd", name)
            leader, epoch = (etcd.leader_value, etcd.epoch) if known else ("", 0)
        return m.HelloReply(
            body.cluster, body.cluster_id, 1, term is not None, leader,
            term.leadership.epoch if term is not None else epoch, term.now_ms() if term is not None else 0, self.addresses,
        )  # fmt: skip


class _OrderedSet(dict[Any, None]):
    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)
