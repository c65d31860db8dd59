"""Disks in daily life: they fill up, move to another host, and are copied no faster than they are told."""

from __future__ import annotations

from vstor.proto import messages as m

from tests.unit.model.test_data import MINUTES, World

MB = 1 << 20


def test_filling_up_is_told_from_80_percent_on_and_its_end() -> None:
    w = World()

    def fill(percent: int) -> list[str]:
        before = len(w.events())
        for server in w.servers:
            server.free = server.space * (100 - percent) // 100
        w.sim.run(2000)
        return [e for e in w.events()[before:] if "filled up" in e]

    assert fill(79) == []
    assert fill(81) == ["The cluster is filled up to 81%"]
    assert fill(85) == []
    assert fill(96) == ["The cluster is filled up to 96%"]
    assert fill(94) == [], "not up and down at the border"
    assert fill(92) == ["The cluster is filled up to 92%"]
    assert fill(50) == ["The cluster is filled up to 50%"]
    events = w.sim.state.events.values()
    told = {e.message: e.severity for slot in events for e in slot if "filled up" in e.message}
    assert [told[f"The cluster is filled up to {n}%"] for n in (81, 96, 50)] == ["warn", "err", "info"]


def test_a_disk_in_another_host_is_the_same_server_and_nothing_is_copied() -> None:
    w = World()
    w.close()
    moved = w.server()
    moved.kill()
    w.sim.run(1 * MINUTES)
    moved.host = "elsewhere"
    moved.start()
    w.sim.run(1 * MINUTES)
    assert moved.cs_id in w.chunk().replicas
    assert w.state() == "healthy"
    assert w.status()["replication"]["copied_chunks"] == 0
    assert next(c["host"] for c in w.status()["cs"] if c["id"] == moved.cs_id) == "elsewhere"
    assert any(e.endswith("to elsewhere") and "has moved from" in e for e in w.events())


def test_a_disk_moved_beside_another_replica_gives_its_replica_to_another_host() -> None:
    w = World()
    w.close()
    first, second = w.server(0), w.server(1)
    first.kill()
    first.host = second.host
    first.start()
    w.sim.run(2 * MINUTES)
    hosts = {w.sim.servers[r].host for r in w.chunk().replicas}
    assert len(hosts) == len(w.chunk().replicas) == 3


def test_the_pace_of_copies_follows_the_configuration_at_once() -> None:
    w = World(replicas="3:1", servers=4)
    for index in range(1, 12):
        w.write(index)
    w.close()
    w.config("mds.repl.rate", "7")
    w.config("mds.repl.max_per_cs", "1")
    w.config("mds.wd.offline_tout", "1000")
    for server in w.servers:
        server.obey = False
    w.servers[0].kill()
    w.sim.run(12_000)
    jobs = w.sim.core.recovery.jobs
    assert len(jobs) == 1
    rates = [o.order.rate_bytes_s for s in w.servers for o in s.orders if isinstance(o.order, m.OrderReplicate)]
    assert set(rates) == {7 * MB}
    w.config("mds.repl.max_per_cs", "3")
    w.config("mds.repl.rate", "0")
    w.sim.run(1000)
    assert len(jobs) > 1, "raising it speeds up what is queued"
    rates = [o.order.rate_bytes_s for s in w.servers for o in s.orders if isinstance(o.order, m.OrderReplicate)]
    assert set(rates) == {7 * MB, 0}
