"""One of three MDSs is left and goes on alone, long (make test-ha)."""

from __future__ import annotations

import pytest

from tests.helpers.cluster import Cluster, wait_for
from tests.helpers.outside import PATIENCE_S, get, put
from tests.helpers.several import wait_all, wait_restored

pytestmark = pytest.mark.timeout(900)


def test_one_survivor_goes_on_alone(own_cluster: Cluster) -> None:
    cluster = own_cluster
    mnt = cluster.mounts["a"]
    for _ in range(2):
        cluster.add_mds()
    wait_all(cluster, 3)
    put(mnt / "file", b"f" * 300_000)
    wait_for("everything applied", lambda: all(m["etcd"]["behind"] == 0 for m in cluster.status()["mds"]))
    cluster.umount("a")
    for number in (1, 2):
        for kind in ("mds", "etcd"):
            cluster.procs.pop(f"{kind}-{number}").kill()
    repo = cluster.base / "state" / "mds-3"
    refused = cluster.run("restore", "--survivor", "-r", str(repo), check=False)
    assert (refused.returncode, "stop its services" in refused.stderr) == (7, True), refused
    for kind in ("mds", "etcd"):
        cluster.procs[f"{kind}-3"].stop()
    cluster.run("restore", "--survivor", "-r", str(repo))
    cluster.start("etcd-3")
    cluster.start("mds-3", PATIENCE_S)
    wait_restored(cluster)
    assert [m["id"] for m in cluster.status()["mds"]] == [3]
    mnt = cluster.mount("a")
    assert get(mnt / "file") == b"f" * 300_000
    cluster.procs["mds-3"].kill()
    cluster.procs["etcd-3"].kill()
    cluster.start("etcd-3")
    cluster.start("mds-3", PATIENCE_S)
    put(mnt / "again", b"g")
    cluster.add_mds("127.0.0.7")
    wait_all(cluster, 2)
