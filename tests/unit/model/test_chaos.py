"""Data safety under random failures: whatever happens to chunk servers, clients and leaders, no acknowledged write is lost or hidden.

Chunk servers hold, for each replica, the set of writes they took. A write is acknowledged when every replica of the client's map took it at
its version. In the end everything is repaired and every replica in a map must hold every acknowledged write, and all must be equal.
"""

from __future__ import annotations

import random
import stat
from collections import deque
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.check import Held, Inventory, check
from vstor.proto import messages as m

from tests.unit.model.sim import Parked, Server, Sim

CS_LEASE_MS = 6000  # mds.cs.lease
REG = stat.S_IFREG | 0o644


class Disk(Server):
    """A chunk server with content. Orders wait until `work`."""

    def __init__(self, sim: Sim, host: str) -> None:
        self.data: dict[int, set[int]] = {}
        self.cut = False  # the MDS does not hear of it, clients do
        self.heard_ms = 0  # its last heartbeat that was answered
        super().__init__(sim, host)
        self.obey = False

    def inventory(self) -> None:
        super().inventory()
        self.heard_ms = self.sim.now
        self.orders = deque(
            o for o in self.orders if o.epoch >= self.sim.epoch
        )  # orders of a connection before may still be at work

    def heartbeat(self) -> None:
        if not self.cut:
            super().heartbeat()
            self.heard_ms = self.sim.now

    def lose_connection(self) -> None:
        self.cut = True
        self.sim.deliver(self.sim.core.cs_disconnected(self.ctx, self.sim.now))

    def order(self, order: m.CsOrder) -> None:
        if not self.cut:
            super().order(order)

    def do(self, envelope: m.CsOrder) -> None:
        if self.cut:
            self.execute(envelope.order)  # done, but nobody hears of it
        else:
            super().do(envelope)

    def execute(self, order: Any) -> tuple[int, int]:
        if isinstance(order, m.OrderDelete):
            for chunk_id in order.chunk_ids:
                self.data.pop(chunk_id, None)
        if isinstance(order, m.OrderSetVersion) and order.create_bytes:
            self.data.setdefault(order.chunk_id, set())
        if isinstance(order, m.OrderReplicate):
            return self.replicate(order)
        if isinstance(order, m.OrderReconcile) and order.sources:
            source = self.sim.servers[order.sources[0].cs_id]
            if not source.up or source.chunks.get(order.chunk_id, [0])[0] != order.version:
                return ErrorCode.STALE, 0
            if self.chunks.get(order.chunk_id, [0])[0] != order.version:
                return ErrorCode.STALE, 0
            self.data[order.chunk_id] = set(source.data[order.chunk_id])
            return 0, 0
        return super().execute(order)

    def replicate(self, order: m.OrderReplicate) -> tuple[int, int]:
        held = self.chunks.get(order.chunk_id)
        if held is not None and not held[1]:
            if held[0] == order.version:
                return 0, 0  # takes it for done, as the real one does
            if held[0] > order.version:
                return ErrorCode.STALE, 0
        source = self.sim.servers[order.sources[0].cs_id]
        if not source.up or source.chunks.get(order.chunk_id, [0, 1]) != [order.version, 0]:
            return ErrorCode.STALE, 0
        self.chunks[order.chunk_id] = [order.version, 0 if order.final else 1]
        self.data[order.chunk_id] = set(source.data[order.chunk_id])
        return 0, 1

    def work(self, limit: int = 1 << 30) -> None:
        while self.up and self.orders and limit:
            self.do(self.orders.popleft())
            limit -= 1

    def write(self, chunk: m.ChunkMap, number: int) -> int:
        if not self.up or self.sim.now - self.heard_ms > CS_LEASE_MS:
            return ErrorCode.NOT_SERVING
        if chunk.chunk_id not in self.chunks:
            if not chunk.flags & 1:
                return ErrorCode.NO_CHUNK
            self.chunks[chunk.chunk_id] = [chunk.version, 0]
            self.data[chunk.chunk_id] = set()
        version, syncing = self.chunks[chunk.chunk_id]
        if version != chunk.version or syncing:
            return ErrorCode.STALE
        self.data[chunk.chunk_id].add(number)
        return 0


class Writer:
    """A client that writes one file and keeps a write until it is acknowledged."""

    def __init__(self, sim: Sim, rng: random.Random, name: bytes) -> None:
        self.sim, self.rng, self.name = sim, rng, name
        self.client = sim.client(name.decode())
        self.ino = self.client.call(m.Create(1, name, REG, 0, 0, open=True)).attr.ino
        self.maps: dict[int, m.ChunkMap] = {}
        self.waiting: Parked | None = None
        self.pending: dict[int, int] = {}  # index -> write not acknowledged yet
        self.fresh: dict[int, set[int]] = {}  # acknowledged, not flushed (committed) yet
        self.safe: dict[int, set[int]] = {}  # flushed
        self.alive = True

    def forget(self) -> None:
        """The map is old: lease or leader changed."""
        self.maps.clear()
        self.waiting = None

    def ask(self, body: Any) -> None:
        try:
            got = self.client.send(body)
        except VstorError as exc:
            if exc.code not in (ErrorCode.NO_SERVERS, ErrorCode.LEASE_LOST, ErrorCode.STALE, ErrorCode.NO_SESSION):
                raise
            self.alive = self.alive and exc.code not in (ErrorCode.NO_SESSION, ErrorCode.LEASE_LOST)
            return
        if isinstance(got, Parked):
            self.waiting = got
        else:
            self.learn(got)

    def learn(self, reply: m.MapReply) -> None:
        for chunk in reply.chunks:
            self.maps[chunk.index] = chunk

    def poll(self) -> bool:
        """Not waiting any more."""
        if self.waiting is None:
            return True
        if not self.waiting.done:
            return False
        got, self.waiting = self.waiting, None
        if got.reply is not None:
            self.learn(got.reply)
        return True

    def step(self, number: int) -> None:
        if not self.alive or not self.poll():
            return
        index = self.rng.randrange(3)
        if index not in self.maps:
            self.ask(m.GetMap(self.ino, index, 1, True))
            return
        self.pending.setdefault(index, number)
        self.attempt(index)

    def attempt(self, index: int) -> None:
        chunk = self.maps[index]
        order = list(chunk.replicas)
        self.rng.shuffle(order)
        failed = None
        for cs_id in order:
            status = self.sim.servers[cs_id].write(chunk, self.pending[index])
            if status and failed is None:
                failed = (cs_id, status)
        if failed is None:
            self.fresh.setdefault(index, set()).add(self.pending.pop(index))
        elif failed[1] == ErrorCode.STALE:
            del self.maps[index]
        else:
            self.ask(m.ReplicaFailed(self.ino, index, chunk.chunk_id, chunk.version, *failed))

    def flush(self) -> None:
        if not self.alive or self.waiting is not None:
            return
        try:
            self.client.call(m.Commit(self.ino, 3 << 26, 1, sorted(self.fresh)))
        except VstorError as exc:
            if exc.code not in (ErrorCode.NO_SESSION, ErrorCode.LEASE_LOST):
                raise
            self.alive = False
            return
        for index, numbers in self.fresh.items():
            self.safe.setdefault(index, set()).update(numbers)
        self.fresh.clear()

    def must_hold(self, index: int) -> set[int]:
        kept = set(self.safe.get(index, ()))
        return kept | self.fresh.get(index, set()) if self.alive else kept


class Chaos:
    def __init__(self, seed: int, replicas: str) -> None:
        self.rng = random.Random(seed)
        self.sim = Sim(
            {
                "fs.replicas": replicas,
                "fs.failure_domain": "disk",
                "mds.wd.offline_tout": "10000",
                "mds.wd.max_offline_cs_hosts": "0",
            }
        )
        self.disks = [Disk(self.sim, f"h{n}") for n in range(5)]
        self.writers = [Writer(self.sim, self.rng, b"w%d" % n) for n in range(2)]
        self.number = 0
        self.settle(2000)

    def settle(self, ms: int) -> None:
        for _ in range(ms // 200):
            for disk in self.disks:
                disk.work()
            self.tick()

    def tick(self) -> None:
        self.sim.now += 200
        for disk in self.disks:
            if disk.up:
                disk.heartbeat()
        for writer in self.writers:
            if writer.alive:
                try:
                    writer.client.send(m.SessionRenew(writer.client.session_id))
                except VstorError:
                    writer.alive = False
        self.sim.deliver(self.sim.core.tick(self.sim.now))

    def step(self) -> None:
        roll = self.rng.random()
        writer = self.rng.choice(self.writers)
        disk = self.rng.choice(self.disks)
        if roll < 0.45:
            self.number += 1
            writer.step(self.number)
        elif roll < 0.70:
            disk.work(1)
        elif roll < 0.85:
            self.tick()
        elif roll < 0.92:
            writer.flush()
        elif roll < 0.95:
            if disk.up and not disk.cut and sum(d.up and not d.cut for d in self.disks) > 3:
                disk.kill()
        elif roll < 0.975:
            if not disk.up:
                disk.start()
        elif roll < 0.98:
            if disk.cut:
                disk.cut = False
                disk.start(restart=False)
            elif disk.up and sum(d.up and not d.cut for d in self.disks) > 3:
                disk.lose_connection()
        elif roll < 0.985:
            self.failover()
        elif roll < 0.99 and len(self.writers) < 6 and not self.sim.core.sessions.in_grace:
            writer.alive = False  # crashes; its session will expire
            self.writers.append(Writer(self.sim, self.rng, b"x%d" % len(self.writers)))
        self.check_leases()

    def failover(self) -> None:
        self.sim.failover()
        for disk in self.disks:
            if disk.up and not disk.cut:
                disk.start(restart=False)
        for writer in self.writers:
            if writer.alive:
                writer.forget()
                self.resume(writer)

    def resume(self, writer: Writer) -> None:
        writer.client.connect()
        try:
            writer.client.call(
                m.SessionResume(writer.client.session_id, [(writer.ino, m.EXCLUSIVE)], opens=[(writer.ino, 1)])
            )
        except VstorError:
            writer.alive = False

    def check_leases(self) -> None:
        for holders in self.sim.core.leases.holders.values():
            modes = list(holders.values())
            assert modes.count(m.EXCLUSIVE) <= 1
            if m.EXCLUSIVE in modes:
                assert len(modes) == 1 or m.SHARED not in modes

    def finish(self) -> None:
        for disk in self.disks:
            if not disk.up or disk.cut:
                disk.cut = False
                disk.start()
        self.settle(60_000)
        for disk in self.disks:
            disk.start(restart=False)  # an inventory: what nobody else knows of any more
        self.settle(60_000)

    def check(self) -> None:
        sim = self.sim
        assert not sim.core.fences.active
        assert not sim.core.versions.raising
        assert not sim.core.versions.busy
        assert not sim.core.recovery.jobs
        status = sim.core.status(sim.now)
        assert status["chunks"]["healthy"] + status["chunks"]["void"] == status["chunks"]["total"], status["chunks"]
        assert status["chunks"]["stale"] == 0
        assert status["chunks"]["deleting"] == 0
        self.check_content()
        # The checker of vstorctl finds nothing; and it does not look at the world through the core's eyes.
        held = {
            disk.cs_id: Inventory({n: Held(version, bool(syncing)) for n, (version, syncing) in disk.chunks.items()})
            for disk in self.disks
        }
        assert [f.text for f in check(sim.state, held)] == []
        for disk in self.disks:  # nothing is left that belongs to no map
            for chunk_id in disk.chunks:
                found = sim.state.chunk_by_id(chunk_id)
                assert found is not None
                assert disk.cs_id in found[2].replicas

    def check_content(self) -> None:
        for writer in self.writers:
            for index, chunk in self.sim.state.chunks(writer.ino):
                must = writer.must_hold(index)
                if chunk.flags & 1:
                    assert not writer.safe.get(index), "flushed data in a void chunk"
                    if not writer.alive or not must:
                        continue
                copies = []
                for cs_id in chunk.replicas:
                    disk = self.sim.servers[cs_id]
                    assert disk.chunks.get(chunk.id) == [chunk.version, 0], (chunk, cs_id)
                    copies.append(disk.data[chunk.id])
                for copy in copies:
                    assert must <= copy, f"chunk {chunk.id} lost writes {must - copy}"
                if not writer.alive:
                    assert all(copy == copies[0] for copy in copies), "replicas differ"
            for index, numbers in writer.safe.items():
                assert not numbers or self.sim.state.chunk(writer.ino, index) is not None


@pytest.mark.parametrize("replicas", ["3:2", "2:1", "3:1"])
@pytest.mark.parametrize("seed", range(12))
def test_no_acknowledged_write_is_lost(seed: int, replicas: str) -> None:
    chaos = Chaos(seed, replicas)
    for _ in range(400):
        chaos.step()
    chaos.finish()
    chaos.check()
