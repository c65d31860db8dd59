"""The journal of a chunk server on another disk: made there, moved while it is stopped, and never without what it held."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One CS with its journal in a directory of its own."""
    made = Cluster(tmp_path / "c")
    (tmp_path / "ssd").mkdir()
    (tmp_path / "ssd2").mkdir()
    try:
        made.make_first_mds()
        made.run("set-attr", "-p", "/", "replicas=1:1", "failure-domain=disk")
        made.add_cs("-j", str(tmp_path / "ssd"))
        made.wait_status("the server", lambda s: [c["state"] for c in s["cs"]] == ["active"])
        yield made
    finally:
        made.destroy()


def configure(cluster: Cluster, *options: str, check: bool = True) -> tuple[int, str]:
    done = cluster.run("configure-cs", "-r", str(next(iter(cluster.cs_dirs.values()))), *options, check=check)
    return done.returncode, done.stdout + done.stderr


def test_journal_elsewhere_survives_kills_and_moves(cluster: Cluster, tmp_path: Path) -> None:
    name, repo = next(iter(cluster.cs_dirs.items()))
    ident = json.loads((repo / "cs.json").read_bytes())["cs_id"]
    file = tmp_path / f"ssd/journal-{cluster.name}-{ident}"
    assert file.stat().st_size == 64 << 20
    assert not (repo / "journal").exists()
    assert cluster.status()["cs"][0]["flags"].startswith("J")
    mnt = cluster.mount("a")
    sums = {}

    def write(label: str) -> None:
        """Small durable writes, which stand in the journal only, then kill -9."""
        data = os.urandom(200_000)
        fd = os.open(mnt / label, os.O_CREAT | os.O_WRONLY)
        for at in range(0, len(data), 5000):
            os.pwrite(fd, data[at : at + 5000], at)
        os.fsync(fd)
        sums[label] = hashlib.sha256(data).hexdigest()
        cluster.procs[name].signal(signal.SIGKILL)
        cluster.procs[name].kill()
        os.close(fd)

    def read_all() -> None:
        for label, digest in sums.items():
            assert hashlib.sha256((mnt / label).read_bytes()).hexdigest() == digest, label

    write("first")
    # 1. without the journal it does not start, and says so
    file.rename(tmp_path / "aside")
    cluster.procs[name].start()
    popen = cluster.procs[name].popen
    assert popen is not None
    assert popen.wait(60) != 0
    assert str(file) in cluster.procs[name].tail()
    code, text = configure(cluster, "-d", check=False)
    assert code == 3
    assert f"the journal {file} is missing" in text
    (tmp_path / "aside").rename(file)
    # 2. moved with work in it
    configure(cluster, "-m", str(tmp_path / "ssd2"))
    assert not file.exists()
    cluster.start(name)
    read_all()
    assert configure(cluster, "-d", check=False)[0] == 7, "it runs"
    # 3. back into the repository
    write("second")
    assert "now" in configure(cluster, "-d")[1]
    assert (repo / "journal").stat().st_size == 64 << 20
    assert os.listdir(tmp_path / "ssd2") == []
    cluster.start(name)
    cluster.wait_status("the flag to go", lambda s: not s["cs"][0]["flags"].startswith("J"))
    read_all()
    cluster.procs[name].stop()
    assert "already" in configure(cluster, "-d")[1]
    # 4. refusals change nothing
    (tmp_path / f"ssd/journal-{cluster.name}-{ident}").write_text("somebody else's")
    code, text = configure(cluster, "-a", str(tmp_path / "ssd"), check=False)
    assert (code, "exists already" in text) == (3, True)
    assert configure(cluster, "-a", str(tmp_path / "nowhere"), check=False)[0] == 3
    assert configure(cluster, check=False)[0] == 2
    cluster.start(name)
    read_all()
    cluster.umount("a")
