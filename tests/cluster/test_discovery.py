"""A real cluster found without bs.list: by DNS records and by mDNS announcements, by every program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster, umount
from tests.helpers.dnsserver import DnsServer

LIBRARY = "import sys; from vstor.client import Client\nwith Client(sys.argv[1]) as c: print(c.listdir('/'))"


@pytest.fixture
def node(shared_cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """Environment of a node of the shared cluster that has its certificate and no bs.list."""
    etc = tmp_path / "etc"
    shutil.copytree(shared_cluster.env["VSTOR_ETC"], etc)
    (etc / "clusters" / shared_cluster.name / "bs.list").unlink()
    env = dict(shared_cluster.env, VSTOR_ETC=str(etc))
    for name in ("RUN", "LOG", "STATE"):
        env[f"VSTOR_{name}"] = str(tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    return env


def run(env: dict[str, str], module: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *args], env=env, input=stdin, capture_output=True, text=True, timeout=60
    )


def check_everything(cluster: Cluster, env: dict[str, str], point: Path, source: str) -> None:
    """status, discover, and a mount that reads what another one wrote."""
    done = run(env, "vstor.ctl.main", "-c", cluster.name, "status", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cluster"]["name"] == cluster.name
    found = json.loads(run(env, "vstor.ctl.main", "discover", "--format", "json").stdout)
    servers = next(item for item in found if item["cluster"] == cluster.name)["mds"]
    assert {"address": f"127.0.0.1:{cluster.port}", "answers": True, "sources": [source]} in servers
    (cluster.mounts["a"] / f"by-{source}").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, cluster.name], env=env, capture_output=True, text=True, timeout=60
    )
    assert f"by-{source}" in done.stdout, done.stderr
    point.mkdir()
    done = run(env, "vstor.client.main", "-c", cluster.name, str(point))
    assert done.returncode == 0, done.stderr
    try:
        assert (point / f"by-{source}").read_text() == "x"
    finally:
        subprocess.run(["umount", point], check=True, timeout=60)
        umount(point)


def test_dns_alone(shared_cluster: Cluster, node: dict[str, str], tmp_path: Path) -> None:
    done = run(node, "vstor.ctl.main", "-c", shared_cluster.name, "--timeout", "3", "status")
    assert done.returncode == 10
    assert "no MDS known" in done.stderr
    zone = f"$TTL 60\nvstor_clusters TXT {shared_cluster.name}\n_vstor._tcp.{shared_cluster.name} SRV 0 0 {shared_cluster.port} m\nm A 127.0.0.1\n"
    with DnsServer(zone) as dns:
        Path(node["VSTOR_ETC"], "discovery.toml").write_text(
            f'[dns]\ndomains = ["vstor.test"]\nnameservers = ["{dns.address}"]\n'
        )
        check_everything(shared_cluster, node, tmp_path / "mnt", "dns")
        # A chunk server finds its cluster, and its own address, the same way.
        repo = tmp_path / "cs"
        done = run(node, "vstor.ctl.main", "-c", shared_cluster.name, "make-cs", "-r", str(repo), "-s", "64")
        assert done.returncode == 0, done.stderr
        ident = json.loads((repo / "cs.json").read_bytes())["cs_id"]
        daemon = subprocess.Popen([sys.executable, "-m", "vstor.cs.main", "-r", str(repo)], env=node)
        try:
            shared_cluster.wait_status(
                "the new chunk server", lambda s: any(c["id"] == ident and c["state"] == "active" for c in s["cs"])
            )
        finally:
            daemon.terminate()
            assert daemon.wait(30) == 0
            shared_cluster.run("rm-cs", "--force", "--accept-loss", str(ident))


def test_mdns_alone(shared_cluster: Cluster, node: dict[str, str], tmp_path: Path) -> None:
    settings = 'sources = ["mdns"]\n[mdns]\ninterfaces = ["127.0.0.1"]\nannounce = {announce}\n'
    theirs, ours = Path(shared_cluster.env["VSTOR_ETC"]), Path(node["VSTOR_ETC"])
    (ours / "discovery.toml").write_text(settings.format(announce="false"))
    assert shared_cluster.name not in run(node, "vstor.ctl.main", "discover").stdout, "the MDS announced itself unasked"
    (theirs / "discovery.toml").write_text(settings.format(announce="true"))
    try:
        shared_cluster.procs["mds-1"].stop()
        shared_cluster.start("mds-1", 60)
    finally:
        os.unlink(theirs / "discovery.toml")
    check_everything(shared_cluster, node, tmp_path / "mnt", "mdns")
