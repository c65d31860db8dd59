"""The leading MDS loses its network, long (make test-ha); cut off from etcd only: test_mds_failover.py."""

from __future__ import annotations

import time

import pytest

from tests.helpers.cluster import Cluster
from tests.helpers.island import Island
from tests.helpers.outside import Loader
from tests.helpers.several import epoch_of, leader, report, wait_all, wait_deposed, wait_successor

pytestmark = pytest.mark.timeout(900)


def test_leader_cut_off_from_all(archipelago: tuple[Cluster, Loader, Island]) -> None:
    cluster, load, island = archipelago
    far = leader(cluster)
    assert far == "mds-1"
    epoch = epoch_of(cluster, far)
    at = time.monotonic()
    with island.cut_off():
        load.wait_rounds(3)
        report("host of the leading MDS cut off", load.stall_s(at))
        wait_successor(cluster, far)
    wait_deposed(cluster, far, epoch)
    wait_all(cluster, 3)
    load.wait_rounds(3)
