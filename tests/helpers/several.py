"""Clusters with several MDSs for tests: who leads, is all there, did one that lost its leadership notice; fio that verifies."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers.cluster import Cluster, wait_for
from tests.helpers.outside import PATIENCE_S, Hangs, give_up


def leader(cluster: Cluster) -> str:
    """Name of the process of the leading MDS."""
    ident = cluster.wait_status("a leader", lambda s: [m["id"] for m in s["mds"] if m["leader"]], PATIENCE_S)[0]
    return f"mds-{ident}"


def wait_successor(cluster: Cluster, former: str) -> str:
    """Name of the leading MDS once it is another one: who is cut off from etcd may serve for the rest of its lease."""
    leading = wait_for(
        f"another leader than {former}", lambda: (name := leader(cluster)) != former and name, PATIENCE_S
    )
    assert isinstance(leading, str)
    return leading


def all_there(status: dict[str, Any]) -> bool:
    """Every MDS is there and in step, every etcd member votes, answers and is in step."""
    return all(m["state"] == "avail" and m["in_step"] and m.get("etcd", {}).get("in_step") for m in status["mds"])


def wait_all(cluster: Cluster, count: int) -> None:
    """Until `count` MDSs are there and in step."""
    cluster.wait_status(
        f"{count} MDSs to be there", lambda s: len(s["mds"]) == count and all_there(s), PATIENCE_S
    )  # fmt: skip


def wait_restored(cluster: Cluster) -> None:
    """Until chunk servers have told what they hold and sessions of before have come back or ended."""
    cluster.wait_status(
        "the end of the restore", lambda s: s["cluster"]["restore"] is None and not s["cluster"]["grace"], PATIENCE_S
    )


def epoch_of(cluster: Cluster, name: str) -> str:
    """Of the last leadership of that MDS, by its own log."""
    return re.findall(r"service: leading epoch=(\d+)", cluster.procs[name].log.read_text(errors="replace"))[-1]


def wait_deposed(cluster: Cluster, name: str, epoch: str) -> None:
    """Until that MDS has found its leadership ended. It may win a later one."""
    log = cluster.procs[name].log
    wait_for(
        f"{name} to end its leadership {epoch}",
        lambda: f"no longer leading epoch={epoch}\n" in log.read_text(errors="replace"),
        PATIENCE_S,
    )


def report(what: str, seconds: float) -> None:
    print(f"stall: {what}: {seconds:.2f} s")


class Fio:
    """fio writing at random into a file and verifying it afterwards; a context manager that leaves no process behind."""

    def __init__(self, mount: Path, output: Path) -> None:
        self._output = output
        with output.open("wb") as out:
            self._proc = subprocess.Popen(
                ["fio", "--name=v", f"--directory={mount}", "--rw=randwrite", "--bs=4k", "--direct=1", "--size=8m",
                 "--ioengine=libaio", "--iodepth=4", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--rate_iops=40",
                 "--randseed=9"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    def __enter__(self) -> Fio:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._proc.poll() is None:
            give_up(self._proc)

    def finish(self, timeout_s: float = 2 * PATIENCE_S) -> None:
        """Wait for it. Raises Hangs; AssertionError when it found an error."""
        try:
            status = self._proc.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Hangs(f"fio hangs; {self._output.read_text()}") from None
        assert status == 0, self._output.read_text()
