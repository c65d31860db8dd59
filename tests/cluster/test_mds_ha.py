"""Several metadata servers, long (make test-ha): joining and leaving under load, hosts lost one after the other, quorum lost and back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster, wait_for
from tests.helpers.outside import PATIENCE_S, Loader
from tests.helpers.several import Fio, leader, report, wait_all, wait_successor

pytestmark = pytest.mark.timeout(1200)


def test_hosts_die_and_return_under_load(three: tuple[Cluster, Loader], tmp_path: Path) -> None:
    cluster, load = three
    with Fio(cluster.mounts["a"], tmp_path / "fio.out") as fio:
        # 1. a host dies: the leading MDS and its etcd member
        lost = leader(cluster)
        at = time.monotonic()
        for name in (lost, f"etcd-{lost[4:]}"):
            cluster.procs[name].kill()
        wait_successor(cluster, lost)
        load.wait_rounds(3)
        report("host of the leading MDS lost", load.stall_s(at))
        cluster.start(f"etcd-{lost[4:]}")
        cluster.start(lost, PATIENCE_S)
        wait_all(cluster, 3)

        # 2. all at once, restarted
        at = time.monotonic()
        names = [name for name in cluster.procs if name.startswith(("mds-", "etcd-"))]
        for name in names:
            cluster.procs[name].kill()
        for name in names:
            if name.startswith("etcd-"):
                cluster.start(name)
        for name in names:
            if name.startswith("mds-"):
                cluster.start(name, PATIENCE_S)
        load.wait_rounds(3)
        report("all MDSs restarted (with their restart)", load.stall_s(at))
        fio.finish()
    load.stop()
    assert all(item["state"] == "active" for item in cluster.status()["cs"])


def test_members_leave_safely_under_load(three: tuple[Cluster, Loader]) -> None:
    cluster, load = three
    lead = leader(cluster)
    refused = cluster.run("rm-mds", lead[4:], check=False)
    assert (refused.returncode, "leads now" in refused.stderr) == (6, True), refused
    standbys = sorted(name for name in cluster.procs if name.startswith("mds-") and name != lead)
    gone, stays = standbys
    cluster.procs[f"etcd-{stays[4:]}"].kill()
    refused = cluster.run("rm-mds", gone[4:], check=False)
    assert refused.returncode == 6
    assert "remaining etcd members answer" in refused.stderr
    load.wait_rounds(3)
    cluster.start(f"etcd-{stays[4:]}")

    wait_all(cluster, 3)
    said: list[str] = []

    def removed() -> bool:
        done = cluster.run("rm-mds", gone[4:], check=False, timeout_s=PATIENCE_S)
        said.append(done.stderr)
        return done.returncode == 0

    wait_for(f"the removal to be safe {said}", removed, PATIENCE_S)  # etcd wants all members connected for some seconds
    load.wait_rounds(3)
    # It says so and does not come back; its etcd member neither.
    assert cluster.procs[gone].popen is not None
    assert cluster.procs[gone].popen.wait(PATIENCE_S) != 0
    assert "was removed from the cluster" in cluster.procs[gone].tail()
    cluster.procs[f"etcd-{gone[4:]}"].stop()
    assert sorted(f"mds-{item['id']}" for item in cluster.status()["mds"]) == sorted([lead, stays])
    for name in (gone, f"etcd-{gone[4:]}"):
        del cluster.procs[name]
    # A new one gets a new id; the pair survives the loss of none, so the third is what makes it three again.
    ident = cluster.add_mds("127.0.0.8")
    assert ident == "mds-4"
    wait_all(cluster, 3)
    cluster.procs[lead].kill()
    load.wait_rounds(3)
    wait_successor(cluster, lead)
    load.stop()


def test_five_survive_two_and_wait_for_the_third(three: tuple[Cluster, Loader]) -> None:
    cluster, load = three
    for _ in range(2):
        cluster.add_mds()
    wait_all(cluster, 5)
    load.wait_rounds(3)
    at = time.monotonic()
    for _ in range(2):
        lost = leader(cluster)
        for name in (lost, f"etcd-{lost[4:]}"):
            cluster.procs[name].kill()
    load.wait_rounds(5)
    report("two leaders of five lost one after the other", load.stall_s(at))
    lost = leader(cluster)
    for name in (lost, f"etcd-{lost[4:]}"):
        cluster.procs[name].kill()
    assert cluster.run("status", "--format", "json", check=False, timeout_s=120).returncode != 0
    before = load.done
    wait_for("a round that waits for the quorum", lambda: load.done == before and load.stall_s(time.monotonic()) > 5)
    assert not load.problems
    cluster.start(f"etcd-{lost[4:]}")
    cluster.start(lost, PATIENCE_S)
    load.wait_rounds(5)
    assert load.done > before
    load.stop()
