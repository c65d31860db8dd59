"""The leading MDS of three is cut off from etcd, killed, frozen; an etcd member is lost with its disk and replaced; all under load.

One cluster for all tests of the module: each begins with all MDSs there and leaves it so. More of the kind, and longer: make test-ha.
"""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from tests.cluster.conftest import ISLAND_PORT
from tests.helpers.cluster import Cluster, wait_for
from tests.helpers.island import Island
from tests.helpers.outside import PATIENCE_S, Loader
from tests.helpers.several import epoch_of, leader, report, wait_all, wait_deposed, wait_successor

pytestmark = pytest.mark.timeout(900)
World = tuple[Cluster, Loader, Island]


def test_leader_cut_off_from_etcd_only(archipelago: World) -> None:
    """Clients still reach it, but it may not serve."""
    cluster, load, island = archipelago
    far = leader(cluster)
    assert far == "mds-1"
    epoch = epoch_of(cluster, far)
    ports = [ISLAND_PORT, ISLAND_PORT + 2]
    for member in cluster.status()["mds"]:
        base = int(member["address"].rpartition(":")[2])
        ports += [base, base + 2]
    at = time.monotonic()
    with island.cut_off(ports):
        wait_successor(cluster, far)
        load.wait_rounds(3)
        report("leading MDS cut off from etcd", load.stall_s(at))
    wait_deposed(cluster, far, epoch)
    wait_all(cluster, 3)
    load.wait_rounds(3)


def test_leader_killed(archipelago: World) -> None:
    cluster, load, _ = archipelago
    first = leader(cluster)
    at = time.monotonic()
    cluster.procs[first].kill()
    wait_successor(cluster, first)
    load.wait_rounds(3)
    report("leading MDS killed", load.stall_s(at))
    cluster.start(first, PATIENCE_S)
    wait_all(cluster, 3)


def test_leader_frozen_finds_itself_fenced(archipelago: World) -> None:
    """It stands still for longer than its lease and goes on in the middle of what it did."""
    cluster, load, _ = archipelago
    frozen = leader(cluster)
    epoch = epoch_of(cluster, frozen)
    at = time.monotonic()
    cluster.procs[frozen].signal(signal.SIGSTOP)
    wait_successor(cluster, frozen)
    load.wait_rounds(3)
    report("leading MDS frozen", load.stall_s(at))
    cluster.procs[frozen].signal(signal.SIGCONT)
    wait_deposed(cluster, frozen, epoch)
    wait_all(cluster, 3)
    load.wait_rounds(3)


def test_lost_etcd_member_is_replaced(archipelago: World) -> None:
    """The host of a standby is gone for good, with its disk."""
    cluster, load, island = archipelago
    lead = leader(cluster)
    gone = next(name for name in ("mds-2", "mds-3") if name != lead)
    for name in (gone, f"etcd-{gone[4:]}"):
        cluster.procs.pop(name).kill()
    shutil.rmtree(cluster.base / "state" / gone)
    load.wait_rounds(3)
    said: list[str] = []

    def removed() -> bool:
        done = cluster.run("rm-mds", gone[4:], check=False, timeout_s=PATIENCE_S)
        said.append(done.stderr)
        return done.returncode == 0

    wait_for(f"the removal to be safe {said}", removed, PATIENCE_S)  # etcd wants the others connected for some seconds
    wait_all(cluster, 2)
    new = cluster.add_mds(island.outside)
    assert new not in ("mds-1", "mds-2", "mds-3")  # ids are never used again
    wait_all(cluster, 3)
    load.wait_rounds(3)
    cluster.procs[leader(cluster)].kill()  # the new member counts
    load.wait_rounds(3)
