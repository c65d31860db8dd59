"""The leading MDS loses its network: to everybody, or only to etcd."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_mds_ha import Loader, all_there, leader, report
from tests.helpers.cluster import Cluster
from tests.helpers.island import Island

pytestmark = pytest.mark.timeout(300)
ISLAND_PORT = 2510


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Cluster, Loader, Island]]:
    """Two MDSs, three CSs and a mount here, a third MDS on an island; it leads."""
    island = Island()
    cluster = Cluster(tmp_path, address=island.outside)
    load: Loader | None = None
    try:
        cluster.make()
        cluster.mount("a")
        cluster.add_mds(island.outside)
        far = cluster.add_mds(island.inside, port=ISLAND_PORT, prefix=island.prefix)
        cluster.wait_status("all MDSs to be there", all_there)
        load = Loader(cluster.mounts["a"] / "load")
        while (lead := leader(cluster)) != far:
            cluster.procs[lead].stop()
            cluster.start(lead, 60)
        cluster.wait_status("all MDSs to be there", all_there)
        load.wait_rounds(3)
        yield cluster, load, island
        load.stop()
    finally:
        if load is not None:
            load.end()
        for proc in cluster.procs.values():
            proc.signal(signal.SIGCONT)
        cluster.destroy()
        island.destroy()


def test_leader_cut_off_from_all(world: tuple[Cluster, Loader, Island]) -> None:
    cluster, load, island = world
    far = leader(cluster)
    at = time.monotonic()
    island.cut()
    load.wait_rounds(3)
    report("host of the leading MDS cut off", load.stall_s(at))
    new = leader(cluster)
    assert new != far
    island.heal()
    cluster.wait_status("the cut off MDS to follow", all_there)
    assert leader(cluster) == new
    load.wait_rounds(3)


def test_leader_cut_off_from_etcd_only(world: tuple[Cluster, Loader, Island]) -> None:
    cluster, load, island = world
    far = leader(cluster)
    ports = [ISLAND_PORT, ISLAND_PORT + 2]
    for name in ("mds-1", "mds-2"):
        base = next(int(m["address"].rpartition(":")[2]) for m in cluster.status()["mds"] if f"mds-{m['id']}" == name)
        ports += [base, base + 2]
    at = time.monotonic()
    island.cut(ports)  # clients still reach it
    load.wait_rounds(3)
    report("leading MDS cut off from etcd", load.stall_s(at))
    assert leader(cluster) != far
    island.heal()
    cluster.wait_status("the cut off MDS to follow", all_there)
    load.wait_rounds(3)
