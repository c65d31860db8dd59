"""Slow disks: who is ill, that it must last, that a loaded cluster is not ill, what follows."""

from __future__ import annotations

import pytest
from vstor.model.slow import suspects
from vstor.proto import messages as m

from tests.unit.model.sim import Server
from tests.unit.model.test_data import World


@pytest.mark.parametrize(
    ("averages", "ill", "want"),
    [
        ({1: 900, 2: 10, 3: 12}, set(), {1}),
        ({1: 150, 2: 10, 3: 12}, set(), set()),  # not slow by itself
        ({1: 900, 2: 400, 3: 500}, set(), set()),  # everybody is busy
        ({1: 900, 2: 10}, set(), set()),  # nobody to compare with
        ({1: 120, 2: 10, 3: 12}, {1}, {1}),  # not well enough yet
        ({1: 90, 2: 10, 3: 12}, {1}, set()),
    ],
)
def test_slow_in_comparison(averages: dict[int, float], ill: set[int], want: set[int]) -> None:
    assert suspects(averages, 200, ill) == want


class Disks(World):
    """Four servers, one of which may be slow."""

    def __init__(self) -> None:
        super().__init__(replicas="2:1", servers=4)
        self.close()
        self.latency = {server.cs_id: 5.0 for server in self.servers}
        for server in self.servers:
            self._tell(server)

    def _tell(self, server: Server) -> None:
        def heartbeat() -> None:
            self.sim.call(server.ctx, m.CsHeartbeat(
                server.cs_id, server.space, server.free, len(server.chunks), "C", self.latency[server.cs_id], 0, 0, 0, 0,
            ))  # fmt: skip

        server.heartbeat = heartbeat  # type: ignore[method-assign]

    def shown(self, server: Server) -> str:
        return next(str(c["state"]) for c in self.status()["cs"] if c["id"] == server.cs_id)


def test_ill_when_it_lasts_and_well_again() -> None:
    w = Disks()
    slow = w.servers[1]
    w.latency[slow.cs_id] = 800
    w.sim.run(20_000)
    assert w.shown(slow) == "active"
    w.sim.run(30_000)
    assert w.shown(slow) == "ill"
    assert len([e for e in w.events() if "is ill" in e]) == 1
    w.client.call(m.LeaseAcquire(w.ino, m.EXCLUSIVE))
    for index in range(1, 40):
        assert slow.cs_id not in w.client.call(m.GetMap(w.ino, index, 1, True)).chunks[0].replicas
    w.latency[slow.cs_id] = 0  # nobody asks it
    w.sim.run(5 * 60_000)
    assert w.shown(slow) == "ill"
    w.latency[slow.cs_id] = 5
    w.sim.run(60_000)
    assert w.shown(slow) == "active"


def test_never_more_than_a_quarter_and_off_when_told() -> None:
    w = Disks()
    w.config("mds.wd.ill_latency", "0")
    w.latency[w.servers[0].cs_id] = 800
    w.sim.run(60_000)
    assert w.shown(w.servers[0]) == "active"
    w.config("mds.wd.ill_latency", "200")
    w.sim.run(60_000)
    w.latency[w.servers[1].cs_id] = 5000
    w.sim.run(60_000)
    assert sorted(w.shown(s) for s in w.servers) == ["active", "active", "active", "ill"]
