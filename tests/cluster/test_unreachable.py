"""A mount whose cluster is gone: what waits, what answers, and that it ends when it is told to, saying what is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import outside
from tests.helpers.cluster import Cluster, is_mounted, wait_for
from tests.helpers.outside import PATIENCE_S

pytestmark = pytest.mark.timeout(600)
Lost = tuple[Cluster, Path, list[str]]


@pytest.fixture
def lost(own_cluster: Cluster) -> Iterator[Lost]:
    """A cluster all of which is killed under a mount with a file that is open and not synced; what `space` said before."""
    own_cluster.run("set-config", "mds.lease.ttl=2000", "mds.lease.margin=500")
    point = own_cluster.mount("b", "-o", "stop_timeout=2")
    outside.put(point / "synced", b"synced")
    holder = outside.start("hold", point / "left behind", subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"written\n"
        space = outside.space(point)
        for name, proc in own_cluster.procs.items():
            if not name.startswith("mount"):
                proc.kill()
        yield own_cluster, point, space
    finally:
        if holder.poll() is None:
            outside.give_up(holder)
        holder.communicate()


def ended(cluster: Cluster) -> str:
    """The log of the mount, which must end now."""
    proc = cluster.procs["mount-b"]
    wait_for("the mount to end", lambda: not proc.running, PATIENCE_S)
    assert proc.popen is not None
    assert proc.popen.returncode == 0, proc.tail()
    return proc.log.read_text()


def test_stopped_while_a_program_waits_for_data(lost: Lost) -> None:
    cluster, point, space = lost
    waiting = [outside.start("get", point / "synced") for _ in range(3)]
    try:
        assert outside.space(point) == space  # df and the like are told what was last known
        df = subprocess.run(["df", point], capture_output=True, text=True, timeout=PATIENCE_S)
        assert (df.returncode, df.stderr) == (0, "")
        busy = subprocess.run(["umount", point], capture_output=True, text=True, timeout=PATIENCE_S)
        assert "busy" in busy.stderr
        assert [proc.poll() for proc in waiting] == [None] * 3  # an outage is no error
        cluster.procs["mount-b"].stop()
        assert "may be lost file=left behind" in ended(cluster)
        for proc in waiting:
            proc.communicate(timeout=PATIENCE_S)
            assert proc.returncode == 1
        assert not is_mounted(point)
    finally:
        for proc in waiting:
            if proc.poll() is None:
                outside.give_up(proc)


def test_unmounted_by_force(lost: Lost) -> None:
    cluster, point, _ = lost
    waiting = outside.start("get", point / "synced")
    try:
        subprocess.run(["umount", "-f", "-l", point], check=True, timeout=PATIENCE_S)
        waiting.communicate(timeout=PATIENCE_S)
        assert waiting.returncode == 1
        assert not is_mounted(point)
        assert "may be lost file=left behind" in ended(cluster)
    finally:
        if waiting.poll() is None:
            outside.give_up(waiting)
