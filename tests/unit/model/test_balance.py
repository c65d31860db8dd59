"""Balancing: an empty disk fills, tiers and failure domains are put right, one move at a time and never before what is urgent."""

from __future__ import annotations

import pytest
from vstor.model.balance import Seat, pairs, relieves
from vstor.proto import messages as m

from tests.unit.model.sim import Server
from tests.unit.model.test_data import MINUTES, World

CHUNK = 64 << 20
DISK = 4 << 30


def seat(cs_id: int, used: int, space: int = 100, tier: int = 0) -> Seat:
    return Seat(cs_id, tier, space, used)


@pytest.mark.parametrize(
    ("source", "target", "size", "want"),
    [
        (seat(1, 80), seat(2, 10), 5, True),
        (seat(1, 18), seat(2, 10), 1, False),  # not worth it
        (seat(1, 30), seat(2, 10), 15, False),  # the target would be the fuller one
        (seat(1, 300, 1000), seat(2, 10), 15, True),  # parts of the space count
    ],
)
def test_a_move_makes_more_equal(source: Seat, target: Seat, size: int, want: bool) -> None:
    assert relieves(source, target, size, 10) is want


def test_each_tier_by_itself_emptiest_first() -> None:
    found = pairs([seat(1, 90), seat(2, 50), seat(3, 10), seat(4, 0, tier=1), seat(5, 95, tier=1)], 1, 10)
    assert [(a.cs_id, b.cs_id) for a, b in found] == [(1, 3), (1, 2), (5, 4)]
    assert pairs([], 1, 10) == []


class Full(World):
    """Disks of 4 GiB whose free space follows what is on them."""

    def __init__(self, replicas: str = "2:1", servers: int = 2, chunks: int = 24) -> None:
        super().__init__(replicas=replicas, servers=servers)
        for server in self.servers:
            server.space = DISK
        for index in range(1, chunks):
            self.write(index)
        self.close()

    def add(self, host: str, **options: int) -> Server:
        server = Server(self.sim, host, space=DISK, **options)  # type: ignore[arg-type]
        self.servers.append(server)
        return server

    def run(self, minutes: int) -> None:
        for _ in range(minutes * 60):
            for server in self.servers:
                server.free = server.space - len(server.chunks) * CHUNK
            self.sim.run(1000)

    def held(self) -> list[int]:
        return [len(self.sim.state.by_cs.get(s.cs_id, ())) for s in self.servers]


def test_an_empty_server_takes_its_share_and_then_it_is_quiet() -> None:
    w = Full()
    assert w.held() == [24, 24]
    w.add("h9")
    w.run(5)
    assert sum(w.held()) == 48
    assert max(w.held()) - min(w.held()) <= 8, w.held()
    assert w.status()["chunks"]["healthy"] == 24
    moved = w.status()["replication"]["moved_chunks"]
    assert moved >= 10
    w.run(5)
    assert w.status()["replication"]["moved_chunks"] == moved, "nothing goes to and fro"
    assert [len(s.chunks) for s in w.servers] == w.held()
    assert not any("Replication started" in e for e in w.events())


def test_it_is_off_when_told_and_waits_for_what_is_urgent() -> None:
    w = Full(replicas="3:1", servers=3)
    w.config("mds.balance.max_total", "0")
    w.add("h8")
    w.run(2)
    assert w.held()[3] == 0
    w.servers[0].kill()  # inactive: it may come back, nothing is copied or moved
    w.config("mds.balance.max_total", "4")
    w.run(2)
    assert w.held()[3] == 0


def test_a_chunk_that_is_written_stays() -> None:
    w = Full(chunks=4)
    w.config("mds.balance.spread", "1")
    w.client.call(m.LeaseAcquire(w.ino, m.EXCLUSIVE))
    for index in range(4):
        w.client.call(m.GetMap(w.ino, index, 1, True))
    w.add("h9")
    w.run(2)
    assert w.held() == [4, 4, 0]


def test_replicas_come_back_to_the_tier_of_the_file() -> None:
    w = Full(chunks=3)
    fast = [w.add("h0", tier=2), w.add("h1", tier=2)]
    w.sim.call(w.sim.ctx("ctl"), m.SetPathAttr("/f", False, {"tier": "2"}))
    w.run(3)
    assert w.held() == [0, 0, 3, 3]
    assert all(len(s.chunks) == 3 for s in fast)
    assert w.status()["chunks"]["healthy"] == 3


def test_two_replicas_in_one_rack_part_when_another_rack_is_there() -> None:
    w = Full(chunks=3)
    w.sim.call(w.sim.ctx("ctl"), m.SetPathAttr("/f", False, {"failure-domain": "rack"}))
    for server in w.servers:
        server.location = "a.1.1"
        server.restart()
    w.run(1)
    other = w.add("h9", location="a.1.2")
    w.run(3)
    w.sim.run(15 * MINUTES)
    assert len(w.sim.state.by_cs.get(other.cs_id, ())) == 3
    assert w.status()["chunks"]["healthy"] == 3
