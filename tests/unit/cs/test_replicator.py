"""Copying orders against engines in memory."""

from __future__ import annotations

from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.cs.replicator import Replicator
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.wire_gen import BLOCK_BYTES, GRANULE_BYTES

from tests.unit.cs.fakes import CHUNK_BYTES, FakeChunk, FakeEngine, FakeHost, FakeSource, granule, source


class World:
    """Chunk 7 on the sources 1 and 2 (equal), and the local engine."""

    def __init__(self) -> None:
        self.here = FakeEngine()
        self.engines = {1: FakeEngine(), 2: FakeEngine()}
        self.failing: dict[int, dict[str, ErrorCode]] = {1: {}, 2: {}}
        self.opened: list[FakeSource] = []
        self.host: Any = FakeHost(self.here)
        self.replicator = Replicator(self.host, self.open)
        for engine in self.engines.values():
            engine.chunks[7] = FakeChunk(7, 5, CHUNK_BYTES)
            for index, fill in enumerate((10, 11, 12)):  # granule 3 is a hole
                engine.write(7, 5, index * GRANULE_BYTES, granule(fill), False)

    def open(self, src: m.Source, chunk_id: int) -> FakeSource:
        reader = FakeSource(src.cs_id, self.engines[src.cs_id], chunk_id)
        reader.failing = self.failing[src.cs_id]
        self.opened.append(reader)
        return reader

    def order(self, **changes: Any) -> m.OrderReplicate:
        fields: dict[str, Any] = {
            "chunk_id": 7,
            "version": 5,
            "chunk_bytes": CHUNK_BYTES,
            "sources": [source(1), source(2)],
            "base_version": 0,
            "since_seq": 0,
            "final": True,
            "rate_bytes_s": 0,
        }
        return m.OrderReplicate(**(fields | changes))

    def equal(self) -> bool:
        return self.here.chunks[7].data == self.engines[1].chunks[7].data


@pytest.fixture
def world() -> World:
    return World()


async def test_fresh_copy_in_two_passes(world: World) -> None:
    first = await world.replicator.replicate(world.order(final=False))
    assert first.value == 3
    assert first.bytes == 3 * GRANULE_BYTES
    assert world.here.chunks[7].syncing
    assert world.here.chunks[7].version == 0
    world.engines[1].write(7, 5, GRANULE_BYTES, granule(99), False)
    world.engines[1].chunks[7].version = 6
    world.here.log.clear()
    await world.replicator.replicate(world.order(version=6, base_version=5, since_seq=first.value))
    assert world.here.written() == [1]
    assert world.equal()
    assert (world.here.chunks[7].version, world.here.chunks[7].syncing) == (6, False)
    assert world.here.log[-2:] == [("sync",), ("finish_sync", 7, 6)]  # durable before it counts


async def test_second_pass_after_the_source_restarted_compares_all(world: World) -> None:
    first = await world.replicator.replicate(world.order(final=False))
    world.engines[1].write(7, 5, 0, granule(50), False)
    world.engines[1].incarnation, world.engines[1].seq = 2, 1
    world.engines[1].chunks[7].granules = {0: (5, 1)}  # smaller numbers than the first pass has seen
    world.here.log.clear()
    await world.replicator.replicate(world.order(base_version=5, since_seq=first.value))
    assert world.here.written() == [0]
    assert world.equal()


async def test_stale_replica_takes_over_only_what_changed(world: World) -> None:
    here = FakeChunk(7, 4, CHUNK_BYTES)
    here.data = {0: granule(10), 1: granule(11), 2: granule(1)}
    world.here.chunks[7] = here
    chunk = world.engines[1].chunks[7]
    chunk.granules = {0: (3, 1), 1: (4, 2), 2: (5, 3)}
    copied = await world.replicator.replicate(world.order(base_version=4))
    assert world.here.written() == [2]
    assert copied.bytes == GRANULE_BYTES
    assert world.replicator.granules_compared == 1
    assert world.equal()


async def test_write_that_reached_only_the_stale_replica_is_undone(world: World) -> None:
    here = FakeChunk(7, 4, CHUNK_BYTES, data={0: granule(10), 1: granule(11), 2: granule(99)}, granules={2: (4, 1)})
    world.here.chunks[7] = here
    world.engines[1].chunks[7].granules = {0: (3, 1), 1: (3, 2), 2: (3, 3)}
    await world.replicator.replicate(world.order(base_version=4))
    assert world.here.written() == [2]
    assert world.equal()


async def test_replica_older_than_the_base_is_not_trusted_beyond_its_version(world: World) -> None:
    world.here.chunks[7] = FakeChunk(7, 2, CHUNK_BYTES)
    world.engines[1].chunks[7].granules = {0: (3, 1), 1: (3, 2), 2: (5, 3)}
    await world.replicator.replicate(world.order(base_version=4))
    assert world.equal()


async def test_order_given_twice_changes_nothing(world: World) -> None:
    await world.replicator.replicate(world.order())
    world.here.log.clear()
    await world.replicator.replicate(world.order())
    assert world.here.log == []


async def test_newer_replica_is_never_replaced(world: World) -> None:
    world.here.chunks[7] = FakeChunk(7, 9, CHUNK_BYTES)
    with pytest.raises(VstorError) as caught:
        await world.replicator.replicate(world.order())
    assert caught.value.code == ErrorCode.STALE
    assert world.here.log == []


async def test_damaged_granule_comes_from_the_next_source(world: World) -> None:
    world.engines[1].chunks[7].bad = {GRANULE_BYTES + 4096}
    await world.replicator.replicate(world.order(final=False))
    assert world.here.chunks[7].data == world.engines[2].chunks[7].data
    # what another source delivered has no place in the first one's sequence: the next pass compares
    await world.replicator.replicate(world.order(base_version=5, since_seq=3))
    assert world.replicator.granules_compared == 4


async def test_different_damage_in_each_source_is_put_together_by_blocks(world: World) -> None:
    world.engines[1].chunks[7].bad = {0}
    world.engines[2].chunks[7].bad = {BLOCK_BYTES}
    await world.replicator.replicate(world.order())
    assert world.equal()


async def test_damage_in_every_source_is_not_copied(world: World) -> None:
    world.engines[1].chunks[7].bad = {0}
    world.engines[2].chunks[7].bad = {0}
    with pytest.raises(VstorError) as caught:
        await world.replicator.replicate(world.order())
    assert caught.value.code == ErrorCode.CORRUPT
    assert 0 not in world.here.chunks[7].data
    assert world.here.chunks[7].syncing


async def test_dead_source_is_passed_over(world: World) -> None:
    world.failing[1]["stat"] = ErrorCode.DISCONNECTED
    await world.replicator.replicate(world.order())
    assert world.equal()


async def test_no_source_answers(world: World) -> None:
    world.failing[1]["read"] = world.failing[2]["stat"] = ErrorCode.TIMED_OUT
    with pytest.raises(VstorError) as caught:
        await world.replicator.replicate(world.order())
    assert caught.value.code == ErrorCode.TIMED_OUT
    assert world.here.chunks[7].syncing


async def test_repair_mends_only_what_is_still_quarantined(world: World) -> None:
    here = FakeChunk(7, 5, CHUNK_BYTES)
    here.data = {0: granule(77)}
    here.bad = {8192}
    world.here.chunks[7] = here
    copied = await world.replicator.repair(m.OrderRepair(7, 5, 8192, [source(1)]))
    assert copied.value == 1
    assert here.data[0][8192 : 8192 + 4096] == granule(10)[:4096]
    assert here.data[0][:8192] == granule(77)[:8192]


async def test_reconcile_copies_what_differs(world: World) -> None:
    here = FakeChunk(7, 5, CHUNK_BYTES)
    here.data = {0: granule(10), 1: granule(1), 2: granule(12), 3: granule(9)}
    world.here.chunks[7] = here
    await world.replicator.reconcile(m.OrderReconcile(7, 6, [source(2)]))
    assert world.here.written() == [1]
    assert world.equal()
    assert here.version == 6


async def test_reconcile_without_a_source_flushes(world: World) -> None:
    world.here.chunks[7] = FakeChunk(7, 5, CHUNK_BYTES, data={0: granule(10)})
    await world.replicator.reconcile(m.OrderReconcile(7, 6, []))
    assert world.here.chunks[7].version == 6
    assert ("sync",) in world.here.log
    assert not world.here.written()


async def test_reconcile_of_a_quarantined_granule_copies_it(world: World) -> None:
    here = FakeChunk(7, 5, CHUNK_BYTES, data=dict(world.engines[1].chunks[7].data), bad={4096})
    world.here.chunks[7] = here
    await world.replicator.reconcile(m.OrderReconcile(7, 5, [source(1)]))
    assert world.here.written() == [0]
    assert not here.bad
