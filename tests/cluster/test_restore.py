"""The drill: metadata are lost and come back from a backup; nothing that chunk servers hold is deleted. One survivor: test_survivor.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster
from tests.helpers.outside import PATIENCE_S, get, names, put, remove, update
from tests.helpers.several import wait_all, wait_restored

pytestmark = pytest.mark.timeout(900)


def chunk_files(cluster: Cluster) -> set[str]:
    return {
        f"{name}/{p.name}"
        for name, repo in cluster.cs_dirs.items()
        for p in (repo / "chunks").rglob("*")
        if p.is_file()
    }


def test_all_mdss_are_lost_and_restored_from_a_backup(own_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_cluster
    mnt = cluster.mounts["a"]
    put(mnt / "before", b"b" * 300_000)
    put(mnt / "changed", b"old" * 100_000)
    put(mnt / "removed", b"r" * 10_000)
    archive = tmp_path / "backup.vstor"
    cluster.run("backup", str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600
    assert cluster.run("backup", str(archive), check=False).returncode != 0  # never overwritten
    assert cluster.status()["cluster"]["last_backup_ms"] > 0
    # Life goes on: changed, removed, new, and a chunk server that the backup does not know.
    update(mnt / "changed", b"new" * 100_000)
    remove(mnt / "removed")
    put(mnt / "after", b"a" * 300_000)
    late = cluster.add_cs()
    for i in range(6):
        put(mnt / f"late{i}", b"l" * 5000)
    held = chunk_files(cluster)

    refused = cluster.run("restore", str(archive), "-a", "127.0.0.9", "-r", str(tmp_path / "x"), check=False)
    assert (refused.returncode, "runs at" in refused.stderr) == (6, True), refused
    assert not (tmp_path / "x").exists()

    cluster.umount("a")
    for name in ("mds-1", "etcd-1"):
        cluster.procs[name].kill()
        del cluster.procs[name]
    shutil.rmtree(cluster.base / "state" / "mds-1")
    for file in (cluster.base / "etc/clusters" / cluster.name / "services").glob("[me]*-1.json"):
        file.unlink()
    damaged = tmp_path / "damaged.vstor"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    repo = cluster.base / "state" / "mds-again"
    where = f"{cluster.address}:{cluster.port}"
    refused = cluster.run("restore", str(damaged), "-a", where, "-r", str(repo), check=False)
    assert (refused.returncode, "damaged" in refused.stderr) == (11, True), refused
    made = cluster.run("restore", str(archive), "-a", where, "-r", str(repo))
    assert "MDS#11" in made.stdout
    assert "nothing was changed" in cluster.run("restore", str(archive), "-a", where, "-r", str(repo)).stdout
    cluster.daemon("etcd-11", "etcd", "-r", str(repo))
    cluster.daemon("mds-11", "mds", "-r", str(repo))
    cluster.start("etcd-11")
    cluster.start("mds-11", PATIENCE_S)
    wait_restored(cluster)
    assert [m["id"] for m in cluster.status()["mds"]] == [11]
    assert late in {f"cs-{c['id']}" for c in cluster.status()["cs"] if c["state"] == "active"}
    mnt = cluster.mount("a")
    assert get(mnt / "before") == b"b" * 300_000
    assert get(mnt / "changed") == b"new" * 100_000
    assert names(mnt) == ["before", "changed", "removed"]
    put(mnt / "afterwards", b"z" * 300_000)
    assert get(mnt / "afterwards") == b"z" * 300_000
    assert any("The restore is complete" in e["message"] for e in cluster.events())
    # Others can join; what the metadata do not know is still on the disks.
    cluster.add_mds()
    wait_all(cluster, 2)
    kept = {n for n in held if n not in chunk_files(cluster)}
    assert not kept, kept
