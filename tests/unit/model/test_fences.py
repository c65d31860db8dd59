"""A file whose writer vanished: rounds of orders that make its replicas equal, while versions move on for other reasons."""

from __future__ import annotations

import stat

import pytest
from vstor.codes_gen import ErrorCode
from vstor.model.fences import RETRY_MS
from vstor.model.records import Chunk
from vstor.proto import messages as m

from tests.unit.model.sim import Server, Sim

REG = stat.S_IFREG | 0o644


class World:
    """A file with one chunk on three servers that leave their orders lying; its writer is dead."""

    def __init__(self) -> None:
        self.sim = Sim({"fs.replicas": "3:1", "mds.order.tout": "30000"})
        servers = [Server(self.sim, f"h{n}") for n in range(3)]
        client = self.sim.client("c")
        self.ino = client.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
        (chunk,) = client.call(m.GetMap(self.ino, 0, 1, True)).chunks
        for server in servers:
            server.chunks[chunk.chunk_id] = [chunk.version, 0]
            server.obey = False
        client.call(m.Commit(self.ino, 100, 1, [0]))
        self.sim.clients.clear()
        while self.chunk().version == 1:
            self.sim.step(renew=False)
        self.servers = [self.sim.servers[n] for n in self.chunk().replicas]

    def chunk(self) -> Chunk:
        chunk = self.sim.state.chunk(self.ino, 0)
        assert chunk is not None
        return chunk

    @property
    def writer(self) -> int:
        return self.sim.state.inodes[self.ino].writer

    def do(self, kind: type, *servers: Server) -> None:
        """Orders of this kind are carried out."""
        for server in servers:
            for order in [o for o in server.orders if isinstance(o.order, kind)]:
                server.orders.remove(order)
                server.do(order)

    def answer(self, server: Server, status: int) -> None:
        """The orders to reconcile that the server has fail."""
        server.fail[m.OrderReconcile] = status
        self.do(m.OrderReconcile, server)
        del server.fail[m.OrderReconcile]

    def reconciling(self, server: Server) -> list[int]:
        """Versions of the orders to reconcile that the server has not answered, each once."""
        orders = {o.order_id: o.order for o in server.orders}
        return [o.version for o in orders.values() if isinstance(o, m.OrderReconcile)]


@pytest.fixture
def w() -> World:
    return World()


def test_a_late_answer_starts_no_second_round(w: World) -> None:
    """A server that is asked twice ends the first order: that was taken for a failure, and a good replica left the map."""
    _source, slow, quick = w.servers
    w.do(m.OrderSetVersion, *w.servers)
    w.answer(quick, ErrorCode.CORRUPT)
    assert set(w.chunk().replicas) == {slow.cs_id, quick.cs_id}
    w.do(m.OrderSetVersion, slow, quick)
    late = [o for o in slow.orders if isinstance(o.order, m.OrderReconcile) and o.order.version == 2]
    for order in late:
        slow.orders.remove(order)
        w.sim.call(slow.ctx, m.CsOrderDone(order.order_id, ErrorCode.CORRUPT, "", 0, 0))
    w.sim.run(RETRY_MS + 400, renew=False)
    assert [w.reconciling(s) for s in (slow, quick)] == [[3], [3]]
    w.do(m.OrderReconcile, slow, quick)
    w.sim.step(renew=False)
    assert set(w.chunk().replicas) == {slow.cs_id, quick.cs_id}
    assert w.writer == 0


def test_every_replica_gets_an_order_of_the_new_round(w: World) -> None:
    """It ends what they still do for the old one, which may copy from a replica that has left the map."""
    _source, other, third = w.servers
    w.do(m.OrderSetVersion, *w.servers)
    w.answer(third, ErrorCode.CORRUPT)
    w.do(m.OrderSetVersion, other, third)
    assert [w.reconciling(s)[-1] for s in (other, third)] == [3, 3]


def test_a_raise_for_another_reason_that_takes_long_is_waited_for(w: World) -> None:
    """Nobody tells the fence when it is over: it looks again, and again."""
    w.do(m.OrderSetVersion, *w.servers)
    lost, *others = w.servers
    w.sim.call(lost.ctx, m.CsReport(lost.cs_id, "lost", w.chunk().id, 0, 0, ""))
    w.sim.step(renew=False)
    assert w.chunk().version == 3
    w.answer(others[0], ErrorCode.TIMED_OUT)
    w.sim.run(2 * RETRY_MS, renew=False)
    w.do(m.OrderSetVersion, *others)
    w.sim.run(2 * RETRY_MS, renew=False)
    w.do(m.OrderReconcile, *others)
    w.sim.step(renew=False)
    assert set(w.chunk().replicas) == {s.cs_id for s in others}
    assert w.writer == 0
