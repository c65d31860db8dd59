"""Damaged blocks: repaired from another replica; on the only one in the map told once, not copied in vain, stale replicas kept."""

from __future__ import annotations

from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.proto import messages as m

from tests.unit.model.sim import Server
from tests.unit.model.test_data import MINUTES, World


@pytest.mark.parametrize("opened", [True, False])
def test_a_damaged_block_is_repaired_from_another_replica(opened: bool) -> None:
    w = World()
    if not opened:
        w.close()
    server = w.server()
    w.client.call(m.BadBlock(w.chunk().id, 1, server.cs_id, 5 << 20))
    order = next(o for o in server.seen if isinstance(o, m.OrderRepair))
    assert order.offset == 5 << 20
    assert {s.cs_id for s in order.sources} == set(w.chunk().replicas) - {server.cs_id}
    assert order.version == w.chunk().version == (2 if opened else 1)  # writers are stopped by a version
    assert w.status()["chunks"]["corrupt_repaired"] == 1
    assert not w.sim.core.versions.busy


def test_a_repair_that_fails_replaces_the_replica() -> None:
    w = World()
    w.close()
    server = w.server()
    server.fail[m.OrderRepair] = ErrorCode.IO_ERROR
    w.sim.call(server.ctx, m.CsReport(server.cs_id, "corrupt", w.chunk().id, 0, 0, ""))
    assert server.cs_id not in w.chunk().replicas
    w.sim.run(5000)
    assert w.state() == "healthy"


def test_damage_of_the_only_replica_is_told() -> None:
    w = World(replicas="1:1")
    w.client.call(m.BadBlock(w.chunk().id, 1, w.server().cs_id, 0))
    w.sim.run(1000)
    assert any("no other replica to repair it from" in e for e in w.events())


# --- the only replica ---------------------------------------------------------------------------------------------------


class Damaged(World):
    """Two replicas wanted, two servers; the second was away while the file was written on, and the first has a damaged block."""

    def __init__(self) -> None:
        super().__init__(replicas="2:1", servers=2)
        self.good, self.back = self.servers
        self.back.kill()
        self.sim.run(10_000)
        self.client.call(m.GetMap(self.ino, 0, 1, True))  # without it: the version is raised
        self.sim.run(1000)
        self.close()
        assert self.chunk().replicas == (self.good.cs_id,)
        self.bad = True
        self.looks = 0
        for server in self.servers:
            self._wrap(server)

    def _wrap(self, server: Server) -> None:
        execute = server.execute

        def damaged(order: Any) -> tuple[int, int]:
            if isinstance(order, m.OrderScrub):
                self.looks += 1
                return 0, int(self.bad)
            if isinstance(order, m.OrderReplicate) and self.bad:
                return ErrorCode.CORRUPT, 0
            return execute(order)

        server.execute = damaged  # type: ignore[method-assign]


def copies(server: Server) -> list[m.OrderReplicate]:
    return [o for o in server.seen if isinstance(o, m.OrderReplicate)]


def test_no_copy_is_tried_again_while_the_block_is_damaged() -> None:
    w = Damaged()
    w.back.start()
    w.sim.run(10_000)
    assert len(copies(w.back)) == 1
    version = w.chunk().version
    w.sim.run(120 * MINUTES)
    assert len(copies(w.back)) == 1
    assert w.chunk().version == version, "a version was raised for nothing"
    assert 5 <= w.looks <= 10, "seldom, and ever more seldom"
    assert w.back.chunks[w.chunk().id][0] < version, "the stale replica may hold the block: it is kept"


def test_it_is_told_once_and_the_status_names_the_file() -> None:
    w = Damaged()
    w.back.start()
    w.sim.run(60 * MINUTES)
    told = [e for e in w.events() if "damaged block" in e]
    assert told == [f"CS#{w.good.cs_id}: chunk {w.chunk().id} of /f has a damaged block and no other replica to repair it from: "
                    "bring back a server that has one, or restore the file from a backup"]  # fmt: skip
    assert w.status()["chunks"]["damaged"] == 1
    assert [(d["path"], d["cs_id"]) for d in w.status()["damage"]] == [("/f", w.good.cs_id)]


def test_recovery_goes_on_when_the_block_was_written_anew() -> None:
    w = Damaged()
    w.back.start()
    w.sim.run(10 * MINUTES)
    w.bad = False
    w.sim.run(60 * MINUTES)
    assert w.state() == "healthy"
    assert copies(w.back)[-1].base_version == copies(w.back)[0].base_version > 0, "only what changed is copied"
    assert w.status()["damage"] == []
    assert (w.status()["replication"]["resynced_chunks"], w.status()["replication"]["resynced_bytes"]) == (1, 2000)
    assert any("has no damaged block any more" in e for e in w.events())


def test_a_reported_block_of_a_sole_replica_is_watched_and_repaired_when_another_is_back() -> None:
    w = World(replicas="2:1", servers=2)
    w.close()
    first, second = w.server(0), w.server(1)
    second.kill()
    w.sim.run(10_000)
    w.sim.call(first.ctx, m.CsReport(first.cs_id, "corrupt", w.chunk().id, 8192, 0, ""))
    w.sim.run(1000)
    assert w.status()["chunks"]["damaged"] == 1
    assert second.cs_id in w.chunk().replicas
    second.start()
    w.sim.run(2000)
    assert any(isinstance(o, m.OrderScrub) for o in first.seen), (
        "looked at at once: what it reports is repaired from the other"
    )


def test_other_failures_are_tried_again_ever_more_slowly() -> None:
    w = World(servers=4)
    w.close()
    spare = next(s for s in w.servers if s.cs_id not in w.chunk().replicas)
    spare.fail[m.OrderReplicate] = ErrorCode.IO_ERROR
    w.server().kill()
    w.sim.run(15 * MINUTES)
    assert 5 <= len(copies(spare)) <= 12
    assert w.chunk().version == copies(spare)[0].version
    spare.fail.clear()
    w.sim.run(3 * MINUTES)
    assert w.state() == "healthy"
