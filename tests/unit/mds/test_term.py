"""Group commit, order of delivery, parking, bindings and the end of a term, with a scripted core and the in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds import large
from vstor.mds import term as term_module
from vstor.mds.term import Peer, Term
from vstor.meta.memory import MemoryStore
from vstor.meta.store import Fenced, StoreUnavailable
from vstor.model.outcome import WAKE_ALL, Ctx, Outcome
from vstor.proto import messages as m

pytestmark = pytest.mark.timeout(30)


class FakeConn:
    """Keeps what was sent, in order, and wakes who waits for more."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self._more = asyncio.Event()

    def reply(self, request_id: int, body: Any) -> None:
        self._add((request_id, body))

    def fail(self, request_id: int, error: VstorError) -> None:
        self._add((request_id, error.code))

    def push(self, body: Any) -> None:
        self._add(body)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._add("closed")
            if self.on_close is not None:
                self.on_close()

    def _add(self, item: Any) -> None:
        self.sent.append(item)
        self._more.set()

    async def wait(self, count: int) -> list[Any]:
        while len(self.sent) < count:
            self._more.clear()
            await self._more.wait()
        return self.sent


class ScriptedCore:
    """`answers[name]` gives the Outcome of Lookup(1, name); LockSet etc. are not needed."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Callable[[Ctx], Outcome]] = {}
        self.handled: list[bytes] = []
        self.gone: list[Ctx] = []
        self.ticks = 0

    def handle(self, ctx: Ctx, request_id: int, ack: int, body: m.Lookup, now_ms: int) -> Outcome:
        self.handled.append(body.name)
        return self.answers[body.name](ctx)

    def tick(self, now_ms: int) -> Outcome:
        self.ticks += 1
        return Outcome()

    def session_disconnected(self, ctx: Ctx, now_ms: int) -> Outcome:
        self.gone.append(ctx)
        return Outcome()

    cs_disconnected = session_disconnected

    def report_event(self, severity: str, system: str, message: str, now_ms: int) -> Outcome:
        return Outcome(mutations=[(b"v", message.encode())])


class World:
    def __init__(self, store: MemoryStore, term: Term, core: ScriptedCore, running: asyncio.Task[None]) -> None:
        self.store, self.term, self.core, self.running = store, term, core, running
        self._conns = 0

    def peer(self) -> tuple[Peer, FakeConn]:
        conn = FakeConn()
        self._conns += 1
        peer = Peer(cast(Any, conn), Ctx(self._conns, "client"))
        conn.on_close = lambda: self.term.disconnected(peer)
        return peer, conn

    def ask(self, peer: Peer, request_id: int, name: bytes) -> None:
        self.term.request(peer, request_id, 0, m.Lookup(1, name))


@asynccontextmanager
async def leading() -> AsyncIterator[World]:
    store, core = MemoryStore(), ScriptedCore()
    leadership = await store.campaign(b"one", 5)
    assert leadership is not None
    term = Term(cast(Any, core), leadership, 0, lambda: 1000)
    running = asyncio.create_task(term.run())
    core.answers = {
        b"read": lambda ctx: Outcome(reply=m.BytesReply(b"read")),
        b"write": lambda ctx: Outcome(mutations=[(b"i1", b"1")], reply=m.Ok()),
    }
    try:
        yield World(store, term, core, running)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_read_is_answered_at_once_and_a_write_after_its_commit() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        world.ask(peer, 1, b"read")
        assert conn.sent == [(1, m.BytesReply(b"read"))]
        world.ask(peer, 2, b"write")
        assert len(conn.sent) == 1
        await conn.wait(2)
        assert world.store.records == {b"i1": b"1"}


async def test_nothing_overtakes_an_uncommitted_write() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        other, other_conn = world.peer()

        def missing(ctx: Ctx) -> Outcome:
            raise VstorError(ErrorCode.NOT_FOUND)

        world.core.answers[b"missing"] = missing
        world.ask(peer, 1, b"write")
        world.ask(other, 1, b"read")
        world.ask(other, 2, b"missing")
        assert (conn.sent, other_conn.sent) == ([], [])
        await other_conn.wait(2)
        assert conn.sent == [(1, m.Ok())]
        assert other_conn.sent == [(1, m.BytesReply(b"read")), (2, ErrorCode.NOT_FOUND)]


async def test_what_gathers_is_committed_together_and_the_last_of_a_key_wins() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        for i in range(50):
            name = b"w%d" % i
            world.core.answers[name] = lambda ctx, i=i: Outcome(
                mutations=[(b"same", b"%d" % i), (b"k%d" % i, b"")], reply=m.Ok()
            )
            world.ask(peer, i, name)
        await conn.wait(50)
        assert [request_id for request_id, _ in conn.sent] == list(range(50))
        assert world.store.commits <= 2
        assert world.store.records[b"same"] == b"49"
        assert len(world.store.records) == 51


async def test_an_outcome_beyond_one_transaction_is_committed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MUTATIONS_PER_COMMIT_MAX", 11)
    async with leading() as world:
        peer, conn = world.peer()
        world.core.answers[b"big"] = lambda ctx: Outcome(mutations=[(b"k%d" % i, b"") for i in range(25)], reply=m.Ok())
        world.ask(peer, 1, b"big")
        await conn.wait(1)
        assert (world.store.commits, len(world.store.records)) == (3 + 1 + 3 + 1, 25)  # aside, mark, apply, unmark


async def test_parked_requests_run_again_when_woken() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        other, _ = world.peer()
        free = False

        def lock(ctx: Ctx) -> Outcome:
            return Outcome(reply=m.Ok()) if free else Outcome(park="lock")

        world.core.answers |= {
            b"lock": lock,
            b"unrelated": lambda ctx: Outcome(wake={"else"}),
            b"unlock": lambda ctx: Outcome(wake={"lock"}),
        }
        world.ask(peer, 1, b"lock")
        world.ask(other, 1, b"unrelated")
        assert conn.sent == []
        free = True
        world.ask(other, 2, b"unlock")
        assert conn.sent == [(1, m.Ok())]
        free = False
        world.ask(peer, 2, b"lock")
        free = True
        world.core.answers[b"all"] = lambda ctx: Outcome(wake={WAKE_ALL})
        world.ask(other, 3, b"all")
        assert conn.sent[1:] == [(2, m.Ok())]


async def test_a_parked_request_of_a_closed_connection_is_dropped() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        world.core.answers[b"lock"] = lambda ctx: Outcome(park="lock")
        world.ask(peer, 1, b"lock")
        conn.close()
        assert world.core.gone == [peer.ctx]
        other, _ = world.peer()
        world.core.answers[b"unlock"] = lambda ctx: Outcome(wake={"lock"}, reply=m.Ok())
        world.ask(other, 1, b"unlock")
        assert world.core.handled == [b"lock", b"unlock"]
        assert world.term.sizes["parked_requests"] == 0


async def test_bindings_pushes_orders_and_their_end() -> None:
    async with leading() as world:
        client, client_conn = world.peer()
        server, server_conn = world.peer()
        order = m.CsOrder(1, 2, m.OrderScrub(3))
        recall = m.Recall(5, 0, 1)
        world.core.answers |= {
            b"open": lambda ctx: Outcome(bind_session=7, reply=m.Ok()),
            b"register": lambda ctx: Outcome(bind_cs=1025, reply=m.Ok()),
            b"act": lambda ctx: Outcome(
                mutations=[(b"i", b"")],
                reply=m.BytesReply(str(ctx.session_id).encode()),
                pushes=[(7, recall), (8, recall)],
                orders=[(1025, order)],
            ),
            b"end": lambda ctx: Outcome(reply=m.Ok(), unbind_session=[7]),
        }
        world.ask(client, 1, b"open")
        world.ask(server, 1, b"register")
        world.ask(client, 2, b"act")
        assert len(client_conn.sent) == len(server_conn.sent) == 1
        await server_conn.wait(2)
        assert client_conn.sent == [(1, m.Ok()), (2, m.BytesReply(b"7")), recall]
        assert server_conn.sent[1:] == [order]
        # the session comes by another connection: the older one is closed, before the reply
        again, again_conn = world.peer()
        world.ask(again, 1, b"open")
        assert client_conn.closed
        assert again_conn.sent == [(1, m.Ok())]
        assert [ctx.conn_id for ctx in world.core.gone] == [client.ctx.conn_id]
        world.ask(again, 2, b"act")
        await again_conn.wait(3)
        assert again_conn.sent[2] == recall
        world.ask(again, 3, b"end")
        assert again_conn.sent[3:] == [(3, m.Ok()), "closed"]


@pytest.mark.parametrize("trouble", ["fenced", "unknown"])
async def test_a_failed_commit_ends_the_term_and_nothing_is_answered(trouble: str) -> None:
    async with leading() as world:
        peer, conn = world.peer()
        if trouble == "fenced":
            await world.store.depose()
        else:
            world.store.lose_replies = 1
        world.ask(peer, 1, b"write")
        with pytest.raises((Fenced, StoreUnavailable)):
            await world.running
        assert conn.sent == []
        with pytest.raises(VstorError) as caught:
            world.ask(peer, 2, b"read")
        assert caught.value.code == ErrorCode.NOT_LEADER


async def test_a_defect_of_the_core_ends_the_term() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        world.core.answers[b"bug"] = lambda ctx: cast(Outcome, {}["x"])
        world.ask(peer, 1, b"bug")
        assert conn.sent == [(1, ErrorCode.INTERNAL)]
        with pytest.raises(KeyError):
            await world.running


async def test_no_reads_without_contact_to_the_store() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        await world.store.set_unavailable(True)
        with pytest.raises(VstorError) as caught:
            world.ask(peer, 1, b"read")
        assert caught.value.code == ErrorCode.META_UNAVAILABLE
        await world.store.set_unavailable(False)
        world.ask(peer, 2, b"read")
        assert conn.sent == [(2, m.BytesReply(b"read"))]


async def test_a_lost_lease_ends_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_module, "TICK_S", 0.01)
    async with leading() as world:
        await world.store.depose()
        with pytest.raises(Fenced):
            await world.running


async def test_an_outage_longer_than_the_bound_ends_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_module, "TICK_S", 0.01)
    monkeypatch.setattr(term_module, "OUTAGE_MS_MAX", 30)
    async with leading() as world:
        await world.store.set_unavailable(True)
        with pytest.raises(Fenced, match="no contact with etcd"):
            await world.running


async def test_growing_requests_are_refused_while_the_store_is_full() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        world.term.metadata_full = True
        with pytest.raises(VstorError) as caught:
            world.term.request(peer, 1, 0, m.Create(1, b"x", 0, 0, 0))
        assert caught.value.code == ErrorCode.NO_SPACE
        world.ask(peer, 2, b"write")
        await conn.wait(1)
        world.term.request(peer, 3, 0, m.Unlink(1, b"write"))  # what makes room is never refused (R11)


async def test_drain_waits_for_what_was_accepted() -> None:
    async with leading() as world:
        peer, conn = world.peer()
        world.ask(peer, 1, b"write")
        await world.term.drain(5)
        assert conn.sent == [(1, m.Ok())]
