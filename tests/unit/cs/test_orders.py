"""The order table and the runner: epochs, duplicates, superseding, refusals, reports."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest
from vstor.codes_gen import ErrorCode
from vstor.cs import orders as orders_module
from vstor.cs.orders import OrderRunner
from vstor.cs.replicator import Copied
from vstor.errors import VstorError
from vstor.proto import messages as m

from tests.unit.cs.fakes import CHUNK_BYTES, FakeChunk, FakeEngine, FakeHost, source


class FakeReplicator:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.forgotten: list[int] = []

    async def replicate(self, order: m.OrderReplicate) -> Copied:
        self.started.append(order.chunk_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(order.chunk_id)
            raise
        return Copied(bytes=5, value=9)

    async def repair(self, order: m.OrderRepair) -> Copied:
        raise VstorError(ErrorCode.CORRUPT, "nothing good")

    async def reconcile(self, order: m.OrderReconcile) -> Copied:
        raise ZeroDivisionError("defect")

    def forget(self, chunk_id: int) -> None:
        self.forgotten.append(chunk_id)


class World:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.engine.chunks[7] = FakeChunk(7, 5, CHUNK_BYTES)
        self.replicator = FakeReplicator()
        self.reports: asyncio.Queue[m.CsOrderDone] = asyncio.Queue()
        host: Any = FakeHost(self.engine)
        replicator: Any = self.replicator
        self.runner = OrderRunner(host, replicator, self.scrub, self.reports.put)

    async def scrub(self, chunk_id: int) -> int:
        return 3

    async def result(self, order: m.Order, order_id: int = 1, epoch: int = 4) -> m.CsOrderDone:
        self.runner.submit(m.CsOrder(order_id, epoch, order))
        async with asyncio.timeout(5):
            return await self.reports.get()


@pytest.fixture
async def world() -> World:
    return World()


def replicate(chunk_id: int = 7) -> m.OrderReplicate:
    return m.OrderReplicate(chunk_id, 5, CHUNK_BYTES, [source(1)], 0, 0, True, 0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_every_order_type_is_in_the_table(world: World) -> None:
    assert set(world.runner.table) == set(get_args(m.Order))


async def test_set_version_delete_and_scrub(world: World) -> None:
    assert (await world.result(m.OrderSetVersion(7, 6))).status == 0
    assert world.engine.chunks[7].version == 6
    assert (await world.result(m.OrderScrub(7))).value == 3
    assert (await world.result(m.OrderDelete([7, 8]))).status == 0
    assert world.engine.chunks == {}
    assert world.replicator.forgotten == [7, 8]
    assert world.runner.running == 0


async def test_failures_are_reported_with_their_code(world: World) -> None:
    done = await world.result(m.OrderSetVersion(99, 6))
    assert done.status == ErrorCode.NO_CHUNK
    done = await world.result(m.OrderRepair(7, 5, 0, []))
    assert (done.status, done.message) == (ErrorCode.CORRUPT, "nothing good")
    done = await world.result(m.OrderReconcile(7, 5, []))
    assert done.status == ErrorCode.INTERNAL
    assert "ZeroDivisionError" in done.message


async def test_a_version_for_a_chunk_never_written_makes_it(world: World) -> None:
    assert (await world.result(m.OrderSetVersion(99, 6, 1 << 20))).status == 0
    made = world.engine.chunks[99]
    assert (made.version, made.syncing) == (6, False)
    assert (await world.result(m.OrderSetVersion(99, 7, 1 << 20))).status == 0
    assert made.version == 7


async def test_older_epoch_is_refused(world: World) -> None:
    world.runner.set_epoch(5)
    done = await world.result(m.OrderSetVersion(7, 6), epoch=4)
    assert done.status == ErrorCode.NOT_LEADER
    assert world.engine.chunks[7].version == 5
    done = await world.result(m.OrderSetVersion(7, 6), epoch=6)
    assert done.status == 0
    assert world.runner.epoch == 6


async def test_same_order_twice_runs_once(world: World) -> None:
    for _ in range(2):
        world.runner.submit(m.CsOrder(1, 4, replicate()))
    await settle()
    assert world.replicator.started == [7]
    world.replicator.gate.set()
    done = await world.reports.get()
    assert (done.order_id, done.bytes, done.value) == (1, 5, 9)
    await settle()
    assert world.reports.empty()


@pytest.mark.parametrize("later", [m.OrderDelete([7]), replicate()])
async def test_later_order_ends_a_copy(world: World, later: m.Order) -> None:
    world.runner.submit(m.CsOrder(1, 4, replicate()))
    await settle()
    world.runner.submit(m.CsOrder(2, 4, later))
    done = await world.reports.get()
    assert (done.order_id, done.status) == (1, ErrorCode.BUSY)
    assert "2" in done.message
    world.replicator.gate.set()
    done = await world.reports.get()
    assert (done.order_id, done.status) == (2, 0)
    assert world.runner.running == 0


async def test_versions_do_not_wait_for_copies(world: World) -> None:
    world.runner.submit(m.CsOrder(1, 4, replicate()))
    await settle()
    assert (await world.result(m.OrderSetVersion(7, 6), order_id=2)).order_id == 2
    assert world.replicator.cancelled == []
    await world.runner.stop()


async def test_copies_have_a_bound(world: World) -> None:
    for chunk_id in range(5):
        world.runner.submit(m.CsOrder(chunk_id + 1, 4, replicate(chunk_id)))
    await settle()
    assert len(world.replicator.started) == orders_module.COPIES_MAX
    world.replicator.gate.set()
    for _ in range(5):
        await world.reports.get()
    assert sorted(world.replicator.started) == [0, 1, 2, 3, 4]


async def test_orders_have_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders_module, "ORDERS_MAX", 1)
    world.runner.submit(m.CsOrder(1, 4, replicate()))
    done = await world.result(m.OrderScrub(7), order_id=2)
    assert (done.order_id, done.status) == (2, ErrorCode.BUSY)
    await world.runner.stop()


async def test_stop_reports_nothing(world: World) -> None:
    world.runner.submit(m.CsOrder(1, 4, replicate()))
    await settle()
    await world.runner.stop()
    assert world.replicator.cancelled == [7]
    assert world.reports.empty()
