"""Metadata from a backup meet chunk servers that know better."""

from __future__ import annotations

import stat

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import restored
from vstor.model.core import Core
from vstor.model.state import State
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Parked, Server, Sim


class World:
    """Three servers, a client with one written chunk, and a backup taken then."""

    def __init__(self) -> None:
        self.sim = Sim({"fs.replicas": "3:2", "fs.failure_domain": "disk"})
        self.servers = [Server(self.sim, f"h{i}") for i in range(3)]
        self.client = self.sim.client()
        self.ino = self.write_file(self.client, b"old")
        self.chunk = next(iter(self.sim.state.chunk_home))
        self.backup = dict(self.sim.store)

    def write_file(self, client: Client, name: bytes) -> int:
        ino = int(client.call(m.Create(m.ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0, open=True)).attr.ino)
        for chunk in client.call(m.GetMap(ino, 0, 1, True)).chunks:
            for cs_id in chunk.replicas:
                self.sim.servers[cs_id].chunks.setdefault(chunk.chunk_id, [chunk.version, 0])
        client.call(m.Commit(ino, 100, 1, [0]))
        return ino

    def restore(self) -> None:
        """The metadata are those of the backup; no chunk server has come yet."""
        sim = self.sim
        state = State()
        state.load(self.backup.items())
        sim.store = dict(self.backup)
        sim.commit(restored.mutations(state, sim.now))
        sim.parked, sim.clients = [], {}
        sim.state = State()
        sim.state.load(sim.store.items())
        assert sim.state.cluster is not None
        sim.core = Core(sim.state, epoch=5 + sim.state.cluster.epoch_base, seed=3, now_ms=sim.now)
        for server in sim.servers.values():
            server.up = False
            server.orders.clear()
            server.seen.clear()

    @property
    def map(self) -> tuple[int, set[int]]:
        found = self.sim.state.chunk_by_id(self.chunk)
        assert found is not None
        return found[2].version, set(found[2].replicas)


def test_the_newest_complete_replicas_are_the_chunk() -> None:
    w = World()
    one, two, three = w.servers
    w.restore()
    one.chunks[w.chunk][0] += 2  # went on after the backup, without the other two
    two.chunks[w.chunk][0] += 2
    two.chunks[w.chunk][1] = 1  # a copy that was not finished
    one.start()
    two.start()
    waiting = w.sim.send(w.sim.ctx("ctl"), 0, 0, m.ListChunks("", 0, 10))
    assert not isinstance(waiting, Parked), "tools may look"
    w.sim.run(2000)
    assert w.sim.core.restored.active
    newest = one.chunks[w.chunk][0]
    assert w.map[0] < newest, "nothing is decided before all have come"
    three.start()
    w.sim.run(1000)
    assert not w.sim.core.restored.active
    version, replicas = w.map
    assert version > newest
    assert one.cs_id in replicas
    w.sim.run(60_000)
    assert w.map[1] == {s.cs_id for s in w.servers}, "the others were copied again"


def test_nothing_is_served_meanwhile_and_old_sessions_are_over() -> None:
    w = World()
    w.restore()
    client = w.sim.client("c2")
    asked = client.send(m.GetAttr(w.ino))
    assert isinstance(asked, Parked)
    assert not asked.done
    for server in w.servers:
        server.start()
    w.sim.run(1000)
    assert asked.done
    assert asked.error is None
    w.client.connect()
    with pytest.raises(VstorError) as caught:
        w.client.call(m.SessionResume(w.client.session_id, []))
    assert caught.value.code == ErrorCode.NO_SESSION


def test_what_was_made_after_the_backup_is_kept_and_its_numbers_are_not_used_again() -> None:
    w = World()
    ino = w.write_file(w.client, b"new")
    late = Server(w.sim, "late")
    new = next(c for c, home in w.sim.state.chunk_home.items() if home >> 32 == ino)
    holders = [s for s in w.servers if new in s.chunks]
    assert holders
    w.restore()
    for server in (*w.servers, late):
        server.start()
    assert late.cs_id in w.sim.state.servers, "taken in again"
    w.sim.run(120_000)
    assert all(new in server.chunks for server in holders)
    other = w.sim.client("c2")
    again = w.write_file(other, b"again")
    assert again > ino
    assert max(w.sim.state.chunk_home) > new
    assert Server(w.sim, "next").cs_id > late.cs_id
    with pytest.raises(VstorError) as caught:
        w.sim.call(w.sim.ctx("cs"), m.CsRegister(999_999, 1, [], "h", "h", "", 0, "/x", 1, "1", 1, 1, "C"))
    assert caught.value.code == ErrorCode.NOT_MDS


def test_finish_goes_on_without_the_missing() -> None:
    w = World()
    w.restore()
    with pytest.raises(VstorError) as caught:
        w.sim.call(w.sim.ctx("ctl"), m.RestoreFinish())
    assert caught.value.code == ErrorCode.UNSAFE
    w.servers[0].start()
    w.servers[1].start()
    w.sim.call(w.sim.ctx("ctl"), m.RestoreFinish())
    w.sim.run(30_000)
    assert not w.sim.core.restored.active
    version, replicas = w.map
    assert replicas <= {s.cs_id for s in w.servers[:2]}
    w.servers[2].start()  # too late: what it has is old now
    w.sim.run(60_000)
    assert w.map[0] >= version
    with pytest.raises(VstorError) as caught:
        w.sim.call(w.sim.ctx("ctl"), m.RestoreFinish())
    assert caught.value.code == ErrorCode.INVALID


def test_orders_are_above_all_epochs_of_the_time_before() -> None:
    w = World()
    before = w.sim.epoch
    w.restore()
    assert w.sim.core.epoch > before + restored.EPOCH_JUMP - 100
