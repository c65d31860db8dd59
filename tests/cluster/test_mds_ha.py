"""Several metadata servers: joining and leaving under load, leaders that die, freeze or lose their network, quorum lost and back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import Cluster, wait_for

pytestmark = pytest.mark.timeout(600)


class Loader:
    """Works on a mount without pause and checks what it reads: makes, writes, syncs, renames, lists and removes files.

    Attributes:
        problems: every error and every wrong byte; must stay empty.
        done: finished rounds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self.done = 0
        self._slowest: list[tuple[float, float]] = []  # (begin, seconds) of each round
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader")
        directory.mkdir()
        self._thread.start()

    def _run(self) -> None:
        rng = random.Random(7)
        while not self._stop.is_set():
            self._began = time.monotonic()
            try:
                self._round(rng)
            except (OSError, AssertionError) as exc:
                self.problems.append(f"round {self.done}: {exc!r}")
            self._slowest.append((self._began, time.monotonic() - self._began))
            self.done += 1

    def _round(self, rng: random.Random) -> None:
        data = rng.randbytes(rng.choice([10, 5000, 100_000]))
        name, other = self.directory / f"f{self.done}", self.directory / f"g{self.done}"
        with name.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        name.rename(other)
        assert other.read_bytes() == data, "read other bytes than were written"
        assert other.name in os.listdir(self.directory)
        assert not name.exists()
        if self.done % 3:
            other.unlink()

    def stall_s(self, since: float) -> float:
        """The longest round that ended after `since`, the one under way included."""
        return max([s for begin, s in self._slowest if begin + s > since] + [time.monotonic() - self._began])

    def wait_rounds(self, more: int, timeout_s: float = 60) -> None:
        goal = self.done + more
        wait_for(f"{more} more rounds; {self.problems}", lambda: self.done >= goal or self.problems, timeout_s)
        assert not self.problems, self.problems

    def end(self) -> None:
        """Whatever it found."""
        self._stop.set()
        self._thread.join(60)

    def stop(self) -> None:
        self.end()
        assert not self._thread.is_alive(), "the loader hangs"
        assert not self.problems, self.problems


def leader(cluster: Cluster) -> str:
    """Name of the process of the leading MDS."""
    ident = cluster.wait_status("a leader", lambda s: [m["id"] for m in s["mds"] if m["leader"]])[0]
    return f"mds-{ident}"


def all_there(status: dict[str, Any]) -> bool:
    """Every MDS is there and in step, every etcd member votes, answers and is in step."""
    return all(m["state"] == "avail" and m["in_step"] and m.get("etcd", {}).get("in_step") for m in status["mds"])


def report(what: str, seconds: float) -> None:
    print(f"stall: {what}: {seconds:.2f} s")


@pytest.fixture
def three(own_cluster: Cluster) -> Iterator[tuple[Cluster, Loader]]:
    """own_cluster with a loader and, added under it, two more MDSs."""
    load = Loader(own_cluster.mounts["a"] / "load")
    try:
        for _ in range(2):
            own_cluster.add_mds()
        own_cluster.wait_status("all MDSs to be there", all_there)
        load.wait_rounds(3)
        yield own_cluster, load
    finally:
        for proc in own_cluster.procs.values():
            proc.signal(signal.SIGCONT)
        load.end()


def test_leaders_die_freeze_and_return_under_load(three: tuple[Cluster, Loader]) -> None:
    cluster, load = three
    mnt = cluster.mounts["a"]
    fio = subprocess.Popen(
        ["fio", "--name=v", f"--directory={mnt}", "--rw=randwrite", "--bs=4k", "--direct=1", "--size=8m", "--ioengine=libaio", "--iodepth=4",
         "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--rate_iops=40", "--randseed=9", "--time_based=0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    # 1. kill -9 of the leading MDS
    first = leader(cluster)
    at = time.monotonic()
    cluster.procs[first].kill()
    second = leader(cluster)
    assert second != first
    load.wait_rounds(3)
    report("leading MDS killed", load.stall_s(at))
    cluster.start(first, 60)
    cluster.wait_status("the killed MDS to be back", all_there)

    # 2. a host dies: the leading MDS and its etcd member
    at = time.monotonic()
    for name in (second, f"etcd-{second[4:]}"):
        cluster.procs[name].kill()
    third = leader(cluster)
    assert third != second
    load.wait_rounds(3)
    report("host of the leading MDS lost", load.stall_s(at))
    cluster.start(f"etcd-{second[4:]}")
    cluster.start(second, 60)
    cluster.wait_status("the lost host to be back", all_there)

    # 3. the leading MDS stands still for longer than its lease, then goes on: it must find itself fenced
    at = time.monotonic()
    cluster.procs[third].signal(signal.SIGSTOP)
    fourth = leader(cluster)
    assert fourth != third
    load.wait_rounds(3)
    report("leading MDS frozen", load.stall_s(at))
    epochs = cluster.procs[third].tail(400).count("service: leading epoch=")
    cluster.procs[third].signal(signal.SIGCONT)
    cluster.wait_status("the thawed MDS to follow", all_there)
    assert leader(cluster) == fourth
    assert cluster.procs[third].tail(400).count("service: leading epoch=") == epochs
    load.wait_rounds(3)

    # 4. all at once, restarted
    at = time.monotonic()
    names = [name for name in cluster.procs if name.startswith(("mds-", "etcd-"))]
    for name in names:
        cluster.procs[name].kill()
    for name in names:
        if name.startswith("etcd-"):
            cluster.start(name)
    for name in names:
        if name.startswith("mds-"):
            cluster.start(name, 60)
    load.wait_rounds(3)
    report("all MDSs restarted (with their restart)", load.stall_s(at))
    out, _ = fio.communicate(timeout=300)
    assert fio.returncode == 0, out + cluster.tails()
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

    cluster.wait_status("the member to be back", all_there)
    said: list[str] = []

    def removed() -> bool:
        done = cluster.run("rm-mds", gone[4:], check=False, timeout_s=100)
        said.append(done.stderr)
        return done.returncode == 0

    wait_for(f"the removal to be safe {said}", removed, 60)  # etcd wants all members connected for some seconds
    load.wait_rounds(3)
    # It says so and does not come back; its etcd member neither.
    assert cluster.procs[gone].popen is not None
    assert cluster.procs[gone].popen.wait(60) != 0
    assert "was removed from the cluster" in cluster.procs[gone].tail()
    cluster.procs[f"etcd-{gone[4:]}"].stop()
    assert sorted(f"mds-{item['id']}" for item in cluster.status()["mds"]) == sorted([lead, stays])
    for name in (gone, f"etcd-{gone[4:]}"):
        del cluster.procs[name]
    # A new one gets a new id; the pair survives the loss of none, so the third is what makes it three again.
    ident = cluster.add_mds("127.0.0.8")
    assert ident == "mds-4"
    cluster.wait_status("all MDSs to be there", all_there)
    cluster.procs[lead].kill()
    load.wait_rounds(3)
    assert leader(cluster) != lead
    load.stop()


def test_five_survive_two_and_wait_for_the_third(three: tuple[Cluster, Loader]) -> None:
    cluster, load = three
    for _ in range(2):
        cluster.add_mds()
    cluster.wait_status("all five MDSs to be there", lambda s: len(s["mds"]) == 5 and all_there(s))
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
    assert load.stall_s(time.monotonic()) > 5
    assert not load.problems
    cluster.start(f"etcd-{lost[4:]}")
    cluster.start(lost, 60)
    load.wait_rounds(5)
    assert load.done > before
    load.stop()
