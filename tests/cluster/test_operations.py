"""docs/operations.md: what it tells an operator to do, done on a real cluster on which that has happened.

The commands are those of the page. Daemons belong to the test, so `service start` and `service stop` are done by it (the how-to's test runs these).
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import ROOT, Cluster, wait_for

pytestmark = pytest.mark.timeout(400)
PAGE = (ROOT / "docs/operations.md").read_text()


def section(title: str) -> list[str]:
    """Commands of vstorctl on a cluster in the section "… title"."""
    found = re.search(rf"^## … {re.escape(title)}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    text = "".join(re.findall(r"^```sh\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL))
    prefix = "vstorctl -c test_cluster "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


class Operator:
    """Runs the commands of a section; `places` are the words that stand for something."""

    def __init__(self, cluster: Cluster, **places: str) -> None:
        self.cluster, self.places = cluster, places
        self.said: dict[str, str] = {}

    def do(self, commands: list[str]) -> None:
        for command in commands:
            words = [self.places.get(word, word) for word in command.split()]
            if words[:2] in (["service", "stop"], ["service", "start"]):
                self.service(words[1], words[2])
            else:
                self.said[command] = self.cluster.run(*words, timeout_s=180).stdout

    def service(self, action: str, what: str) -> None:
        name = f"cs-{what}"
        if action == "stop":
            self.cluster.procs[name].stop()
            return
        if what == "cs":
            repo = Path(self.places["/disks/new/cs"])
            name = f"cs-{json.loads((repo / 'cs.json').read_bytes())['cs_id']}"
            self.cluster.cs_dirs[name] = repo
            self.cluster.daemon(name, "cs", "-r", str(repo))
        self.cluster.start(name)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """4 CSs, replicas 3:2, a mount with a file."""
    made = Cluster(tmp_path_factory.mktemp("operations"))
    try:
        made.make(4)
        mnt = made.mount("a")
        for number in range(4):
            (mnt / f"file{number}").write_bytes(os.urandom(1 << 20))
        os.rename(mnt / "file0", mnt / "file")
        yield made
    finally:
        made.destroy()


def healthy(cluster: Cluster) -> None:
    cluster.wait_status(
        "health",
        lambda s: (
            s["chunks"]["healthy"] == s["chunks"]["total"] - s["chunks"]["void"] and not s["replication"]["queued"]
        ),
        120,
    )


def test_everything_is_well(cluster: Cluster) -> None:
    healthy(cluster)
    operator = Operator(cluster)
    operator.do(section("everything is well, once a day"))
    assert operator.said["status"].startswith("Cluster 'test': healthy")
    assert len(operator.said["list-chunks"].splitlines()) == 1, operator.said["list-chunks"]
    assert "0 errors, 0 warnings" in operator.said["check"]


def test_a_disk_has_failed(cluster: Cluster, tmp_path: Path) -> None:
    name = next(iter(cluster.cs_dirs))
    ident = name.removeprefix("cs-")
    cluster.procs[name].signal(signal.SIGKILL)
    cluster.procs[name].kill()
    repo = cluster.cs_dirs.pop(name)
    operator = Operator(cluster, CSID=ident, **{"/disks/new/cs": str(tmp_path / "new")})
    operator.do(section("a disk has failed"))
    assert "done" in operator.said["rm-cs --wait CSID"]
    del cluster.procs[name]
    assert repo.exists(), "data of an old server are never deleted"
    states = {c["id"]: c["state"] for c in cluster.status()["cs"]}
    assert states[int(ident)] == "dropped"
    healthy(cluster)
    assert list(states.values()).count("active") == 4


def test_a_host_goes_down_for_a_short_time(cluster: Cluster) -> None:
    name = next(iter(cluster.cs_dirs))
    operator = Operator(cluster, CSID=name.removeprefix("cs-"))
    on, off = section("a host goes down for a short time")
    operator.do([on])
    cluster.procs[name].stop()
    cluster.wait_status("its absence", lambda s: any(c["state"] == "maintenance" for c in s["cs"]))
    cluster.start(name)
    operator.do([off])
    cluster.wait_status("all of them", lambda s: sum(c["state"] == "active" for c in s["cs"]) == 4)


def test_the_cluster_is_full(cluster: Cluster) -> None:
    operator = Operator(cluster)
    operator.do(section("the cluster is full"))
    assert operator.said["get-config mds.alloc.fill_margin"] == "mds.alloc.fill_margin=5\n"
    assert cluster.run("get-config", "mds.alloc.fill_margin").stdout == "mds.alloc.fill_margin=5\n"


def test_data_are_damaged(cluster: Cluster) -> None:
    healthy(cluster)
    operator = Operator(cluster)
    operator.do(section("data are damaged, or somebody says so"))
    assert "/file" in operator.said["file-info -p /file"]
    assert "0 errors" in operator.said["check --data"]


def test_a_client_is_gone(cluster: Cluster) -> None:
    point = cluster.mounts["a"]
    with (point / "file").open("r+b") as file:
        file.write(b"held")
        file.flush()
        operator = Operator(cluster)
        wait_for("the lease", lambda: "exclusive" in cluster.run("get-leases").stdout)
        operator.do(section("a client is gone and its files cannot be opened"))
    assert (point / "file").read_bytes()[:4] == b"held"


def test_the_ssd_with_journals_wears_out(cluster: Cluster, tmp_path: Path) -> None:
    name, repo = next(iter(cluster.cs_dirs.items()))
    (tmp_path / "ssd").mkdir()
    places = {"/disks/sdb/cs": str(repo), "/ssd-new": str(tmp_path / "ssd")}
    Operator(cluster, CSID=name.removeprefix("cs-"), **places).do(section("the SSD with journals wears out"))
    assert len(list((tmp_path / "ssd").iterdir())) == 1
    cluster.wait_status("all of them", lambda s: sum(c["state"] == "active" for c in s["cs"]) == 4)
    healthy(cluster)
