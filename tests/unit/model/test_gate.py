"""What the health gate of the playbooks asks of status."""

from __future__ import annotations

from tests.unit.model.sim import Server, Sim

GB = 1 << 30


def test_room_after_the_loss_of_the_largest_host() -> None:
    sim = Sim({"fs.replicas": "2:1", "mds.alloc.free_space_margin": "0", "mds.alloc.fill_margin": "0"})
    assert sim.core.status(sim.now)["space"]["free_after_largest_host_bytes"] == 0
    servers = [Server(sim, host, space=100 * GB) for host in ("a", "a", "b", "c")]
    for server, used in zip(servers, (60, 30, 20, 40), strict=True):
        server.free = (100 - used) * GB
    sim.step()
    # host a holds 90; b and c have 80 + 60 left
    assert sim.core.status(sim.now)["space"]["free_after_largest_host_bytes"] == 50 * GB
    servers[3].free = 0
    sim.step()
    # host c holds 100; a and b have 40 + 70 + 80
    assert sim.core.status(sim.now)["space"]["free_after_largest_host_bytes"] == 90 * GB
    servers[2].free = 0
    servers[1].free = 0
    sim.step()
    assert sim.core.status(sim.now)["space"]["free_after_largest_host_bytes"] < 0


def test_nothing_wanted_is_no_lack_of_progress() -> None:
    sim = Sim()
    sim.run(60_000)
    assert sim.core.status(sim.now)["replication"]["no_progress_ms"] == 0
    recovery = sim.core.recovery
    step = type("S", (), {"now_ms": sim.now})()
    assert recovery.no_progress_ms(step, True) == 0  # type: ignore[arg-type]
    step.now_ms += 5000
    assert recovery.no_progress_ms(step, True) == 5000  # type: ignore[arg-type]
    recovery.progress.copied_bytes += 1
    assert recovery.no_progress_ms(step, True) == 0  # type: ignore[arg-type]
