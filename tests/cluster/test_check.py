"""vstorctl check on a real cluster: clean when it is well, and each kind of damage planted and found."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from vstor.cs import inventory
from vstor.ctl import check_sources
from vstor.mds import large
from vstor.mds.repo_files import Repository
from vstor.model import check as core
from vstor.model import keys
from vstor.model.records import Chunk, Dentry, Inode, encode, pack_extent
from vstor.model.state import State

from tests.helpers.cluster import Cluster
from tests.helpers.sshd import Sshd

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """3 CSs with some files. Tests leave it running and mended."""
    made = Cluster(tmp_path_factory.mktemp("check"))
    try:
        made.make()
        mnt = made.mount("a")
        (mnt / "dir/sub").mkdir(parents=True)
        for number in range(3):
            (mnt / f"dir/file{number}").write_bytes(os.urandom(3 * MIB))
        (mnt / "dir/link").hardlink_to(mnt / "dir/file0")
        (mnt / "dir/sparse").write_bytes(b"")
        os.truncate(mnt / "dir/sparse", 1 << 40)
        os.sync()
        made.umount("a")
        yield made
    finally:
        made.destroy()


def run_check(cluster: Cluster, *options: str, code: int | None = None) -> dict[str, Any]:
    done = cluster.run("check", "--format", "json", *options, check=False)
    assert done.returncode in (0, 15) if code is None else done.returncode == code, done.stdout + done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def kinds(value: dict[str, Any], *severities: str) -> set[str]:
    return {f["kind"] for f in value["findings"] if f["severity"] in (severities or ("error", "warning"))}


def metadata(cluster: Cluster) -> check_sources.Metadata:
    repository = Repository(cluster.base / "state/mds-1")
    return check_sources.Metadata(repository, repository.load())


class Stopped:
    """Context manager: MDS and CSs stopped in order, etcd runs; on exit all run again."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.names = [name for name in cluster.procs if not name.startswith("etcd")]

    def __enter__(self) -> State:
        for name in self.names:
            self.cluster.procs[name].stop()
        return core.load(metadata(self.cluster).load().items)[0]

    def __exit__(self, *_exc: object) -> None:
        for name in sorted(self.names, reverse=True):  # the MDS first
            self.cluster.start(name, 60)
        count = len(self.cluster.cs_dirs)
        self.cluster.wait_status(
            "all servers", lambda s: sum(c["state"] == "active" and c["inventory_complete"] for c in s["cs"]) == count
        )


def write(cluster: Cluster, *mutations: tuple[bytes, bytes | None]) -> None:
    """Plant records, as a chain of the store's own transactions."""
    store = metadata(cluster)
    store.repair(store.load(), dict(mutations))


def changed(inode: Inode, **values: int) -> tuple[bytes, bytes]:
    fields = {name: getattr(inode, name) for name in inode.__struct_fields__} | values
    return keys.inode(inode.ino), encode(Inode(**fields))


def a_file(state: State, name: bytes = b"file1") -> tuple[Inode, int, Chunk, int]:
    """(inode, index, chunk, inode of its directory)"""
    directory = state.directory(1).entries[b"dir"].ino
    inode = state.inodes[state.directory(directory).entries[name].ino]
    index, chunk = next(iter(state.chunks(inode.ino)))
    return inode, index, chunk, directory


def chunk_file(cluster: Cluster, cs_id: int, chunk_id: int) -> Path:
    name = f"{chunk_id:016x}"
    return cluster.cs_dirs[f"cs-{cs_id}"] / "chunks" / name[-2:] / name


def test_a_healthy_cluster_running_and_stopped(cluster: Cluster) -> None:
    running = run_check(cluster, "--data", code=0)
    assert (running["complete"], running["findings"]) == (True, [])
    assert running["counts"]["inodes"] == 7
    assert running["counts"]["chunks"] * 3 == running["counts"]["replicas"] == 12
    assert running["counts"]["replicas_examined"] == 9, "the first chunk of the sparse file is void, on no server"
    with Stopped(cluster) as state:
        stopped = run_check(cluster, "--data", code=0)
        assert (stopped["findings"], stopped["counts"]) == ([], running["counts"])
        chunk = a_file(state)[2]
        # The disk read by itself gives the digest that the engine gave.
        held = [
            row
            for name, repo in cluster.cs_dirs.items()
            for row in inventory.read_disk(repo, metadata(cluster).config.cluster_id, data=True)["replicas"]
            if row[0] == chunk.id
        ]
        assert len({tuple(row) for row in held}) == 1
    text = cluster.run("check").stdout
    assert text.endswith("on 3 chunk servers: 0 errors, 0 warnings, 0 notes\n")


def test_damaged_records_are_found_and_mended(cluster: Cluster) -> None:
    with Stopped(cluster) as state:
        inode, _, _, directory = a_file(state)
        link = a_file(state, b"file0")[0]
        entries = state.directory(directory).entries
        write(
            cluster,
            changed(link, nlink=7),
            changed(state.inodes[directory], used=99, nlink=9),
            changed(inode, used=44),
            (keys.dentry(directory, b"nowhere"), encode(Dentry(999, 8, 17))),
            (keys.dentry(directory, b"file2"), None),
            (keys.xattr(555, b"user.x"), b"\x01\x91\xc4\x01x"),
            (keys.orphan(inode.ino), b"\x01\x91\x05"),
        )
        value = run_check(cluster, code=15)
        assert kinds(value) == {
            "link-count", "directory-count", "chunk-count", "dangling-name", "lost-file", "xattr-without-inode", "wrong-orphan",
        }  # fmt: skip
        again = run_check(cluster, code=15)
        assert again["findings"] == value["findings"], "a check without --repair changed something"
        assert any("/dir/file0 has 2 names and counts 7" in f["text"] for f in value["findings"])
        for _ in range(4):  # what touches the same record is mended one run after the other
            value = run_check(cluster, "--repair")
        assert kinds(value) == set()
        mended = core.load(metadata(cluster).load().items)[0]
        lost = b".lost-%d" % entries[b"file2"].ino
        assert lost in mended.directory(1).entries
    mnt = cluster.mount("a")
    assert (mnt / lost.decode()).stat().st_size == 3 * MIB
    os.rename(mnt / lost.decode(), mnt / "dir/file2")
    cluster.umount("a")
    assert run_check(cluster, "--data", code=0)["findings"] == []


def test_a_large_change_cut_off_half_way_is_no_damage(cluster: Cluster) -> None:
    """The leader died between the parts of a marked change: the next one finishes it, and so does a repair."""
    with Stopped(cluster) as state:
        inode, _, _, directory = a_file(state)
        link = b"second-name"
        entry = state.directory(directory).entries[b"file1"]
        owner = state.inodes[directory]
        first = [
            (keys.dentry(directory, link), encode(Dentry(inode.ino, entry.type, owner.next_cookie))),
            changed(owner, used=owner.used + 1, next_cookie=owner.next_cookie + 1),
        ]
        write(cluster, *first, (large.key_of(1), msgspec.msgpack.encode([changed(inode, nlink=2)])), (large.MARK, b"2"))
        assert run_check(cluster, code=0)["findings"] == []
        write(cluster, changed(owner, used=owner.used + 7, next_cookie=owner.next_cookie + 1))
        assert kinds(run_check(cluster, "--repair", code=0)) == set()
        items = dict(metadata(cluster).load().items)
        assert not [key for key in items if key.startswith(large.KIND)]
        assert core.load(items.items())[0].inodes[inode.ino].nlink == 2


def test_repair_is_refused_while_an_mds_leads(cluster: Cluster) -> None:
    with Stopped(cluster) as state:
        inode = a_file(state)[0]
        write(cluster, changed(inode, nlink=3))
        cluster.start("mds-1", 60)
        refused = cluster.run("check", "--repair", check=False)
        assert refused.returncode == 6
        assert "stop all MDSs" in refused.stderr
        cluster.procs["mds-1"].stop()
        assert kinds(run_check(cluster, "--repair", code=0)) == set()


def test_damaged_maps_are_found(cluster: Cluster) -> None:
    with Stopped(cluster) as state:
        inode, index, chunk, _ = a_file(state)
        other, other_index, other_chunk, _ = a_file(state, b"file2")
        before = [(keys.extent(ino, 0), state.extents[ino][0]) for ino in (inode.ino, other.ino)]
        extent = dict(state.chunks(inode.ino))
        for damage, expected in (
            (chunk._replace(replicas=(*chunk.replicas[:2], 4000)), {"server-gone"}),
            (chunk._replace(replicas=(chunk.replicas[0],) * 2 + chunk.replicas[2:]), {"server-twice"}),
            (chunk._replace(replicas=()), {"no-replica"}),
            (chunk._replace(version=chunk.version + 3), {"version-below", "no-good-replica"}),
            (chunk._replace(id=1 << 40), {"id-not-given", "replica-missing", "no-good-replica"}),
            (other_chunk, {"chunk-twice"}),
        ):
            write(cluster, (keys.extent(inode.ino, 0), pack_extent({**extent, index: damage})))
            value = run_check(cluster, code=15)
            assert kinds(value) == expected, (damage, value["findings"])
            write(cluster, before[0])
        assert kinds(run_check(cluster, code=0)) == set()
        assert other_index == index


def test_damaged_replicas_are_found(cluster: Cluster) -> None:
    with Stopped(cluster) as state:
        _, _, chunk, _ = a_file(state)
        first, second, third = chunk.replicas
        # 1. a block whose content does not match, 2. a file that is gone, 3. a header that does not match
        with chunk_file(cluster, first, chunk.id).open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            at = next(
                offset for offset in range(MIB, 2 * MIB, 4096) if file.seek(offset) == offset and any(file.read(4096))
            )
            file.seek(at)
            file.write(b"flipped!")
        chunk_file(cluster, second, chunk.id).rename(cluster.base / "aside")
        assert kinds(run_check(cluster, code=15)) == {"replica-missing"}, "content is read only with --data"
        value = run_check(cluster, "--data", code=15)
        assert kinds(value) == {"replica-missing", "bad-blocks"}
        with chunk_file(cluster, third, chunk.id).open("r+b") as file:
            file.seek(40)
            file.write(b"\xff")
        value = run_check(cluster, "--data", code=15)
        assert {"damaged-file", "replica-missing", "bad-blocks", "no-good-replica"} == kinds(value)
        with chunk_file(cluster, third, chunk.id).open("r+b") as file:
            file.seek(0)
            block = bytearray(file.read(4096))
            block[40] = 0
            file.seek(0)
            file.write(block)
    # The running cluster finds out by itself and mends all of it.
    mnt = cluster.mount("a")
    (mnt / "dir/file1").read_bytes()
    cluster.umount("a")
    cluster.wait_status("repair", lambda s: s["chunks"]["healthy"] == s["chunks"]["total"] - s["chunks"]["void"], 120)


def test_a_server_that_was_killed_is_not_judged_by_its_disk(cluster: Cluster) -> None:
    mnt = cluster.mount("a")
    name = next(iter(cluster.cs_dirs))
    (mnt / "late").write_bytes(os.urandom(64 << 10))
    with (mnt / "late").open("rb") as file:
        os.fsync(file.fileno())
    cluster.procs[name].signal(signal.SIGKILL)
    cluster.procs[name].kill()
    value = run_check(cluster)
    assert not kinds(value, "error"), value["findings"]
    cluster.start(name)
    cluster.umount("a")


def test_servers_elsewhere_are_said_and_asked_by_ssh(cluster: Cluster, tmp_path: Path) -> None:
    services = Path(cluster.env["VSTOR_ETC"]) / "clusters" / cluster.name / "services"
    name = next(iter(cluster.cs_dirs))
    entry = services / f"{name}.json"
    far = tmp_path / "far"  # the other host: same machine, configuration of its own
    shutil.copytree(cluster.env["VSTOR_ETC"], far)
    entry.rename(cluster.base / "entry")
    env = {key: value for key, value in cluster.env.items() if key.startswith("VSTOR_")} | {"VSTOR_ETC": str(far)}
    try:
        value = run_check(cluster, code=15)
        with Sshd(tmp_path / "sshd", env) as sshd:
            host = f"root@127.0.0.1:{sshd.port}"
            access = ["--host", host, "--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts)]
            everything = run_check(cluster, "--data", *access, code=0)
            assert everything["complete"]
            assert everything["examined"] == sorted(int(n.removeprefix("cs-")) for n in cluster.cs_dirs)
            sshd.install("vstorctl", "echo no")
            assert "what it sent is no inventory" in cluster.run("check", *access, check=False).stderr
    finally:
        (cluster.base / "entry").rename(entry)
    assert not value["complete"]
    assert list(value["not_examined"]) == [name.removeprefix("cs-")]
    assert "give --host" in value["not_examined"][name.removeprefix("cs-")]
