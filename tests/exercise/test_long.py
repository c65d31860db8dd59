"""File system exercisers on mounts of a cluster, long runs: make exercise. Those in the tree, and those of Debian.

VSTOR_EXERCISE=N makes them N times as long (default 1: about a quarter of an hour on quiet cores).
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
SCALE = float(os.environ.get("VSTOR_EXERCISE", "1"))
SEED = int(os.environ.get("VSTOR_EXERCISE_SEED", "1000"))
# What tar takes there and back: programs, many small files, symbolic and hard links. All of /usr: VSTOR_EXERCISE_TAR=/usr
TAR = os.environ.get("VSTOR_EXERCISE_TAR", "/usr/lib/python3 /usr/lib/python3.11 /usr/share/zoneinfo /usr/sbin").split()
# Those stressors of the class "filesystem" that change files and names; none that syncs the whole machine, needs a device
# or fails on local file systems, too (io-uring).
STRESSORS = (
    "access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock fpunch fsize fstat getdent hdd iomix "
    "lease link locka lockf lockofd mknod open rename seek symlink touch utime verity xattr"
)


def run(argv: list[str], cwd: Path = ROOT, timeout_s: float = 3000) -> str:
    """Its output. A failure shows it."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def both(cluster: Cluster, mnt: Path) -> list[str]:
    return [str(mnt), str(cluster.mounts["b"] / mnt.relative_to(cluster.mounts["a"]))]


@pytest.mark.parametrize("mounts", [1, 2])
@pytest.mark.parametrize("number", range(3))
def test_one_file(shared_cluster: Cluster, mnt: Path, mounts: int, number: int) -> None:
    paths = [f"{d}/f" for d in both(shared_cluster, mnt)[:mounts]]
    run([sys.executable, "-m", "tests.exercise.fsx", str(SEED + number), str(int(5000 * SCALE)), *paths])


@pytest.mark.parametrize("number", range(3))
def test_names(shared_cluster: Cluster, mnt: Path, tmp_path: Path, number: int) -> None:
    argv = [str(SEED + number), str(int(1000 * SCALE)), "3", str(tmp_path), *both(shared_cluster, mnt)]
    run([sys.executable, "-m", "tests.exercise.names", *argv])


def tree(top: Path) -> Iterator[tuple[str, Any]]:
    """(path, what must be as it was) of all below; hard links by their first name."""
    first: dict[int, str] = {}
    for where, dirs, files in os.walk(top):
        dirs.sort()
        for name in sorted(dirs + files):
            path = Path(where, name)
            st, rel = path.lstat(), str(path.relative_to(top))
            size = st.st_size if not stat.S_ISDIR(st.st_mode) else None
            link = os.readlink(path) if stat.S_ISLNK(st.st_mode) else None
            mtime = st.st_mtime_ns
            yield (
                rel,
                (
                    oct(st.st_mode),
                    st.st_uid,
                    st.st_gid,
                    size,
                    mtime,
                    st.st_rdev,
                    link,
                    first.setdefault(st.st_ino, rel),
                ),
            )


def copy_by_tar(source: Path, target: Path) -> None:
    """As it is: owners, times with nanoseconds (a format that has them), links, holes, extended attributes."""
    target.mkdir()
    out = [
        "tar",
        "--format=posix",
        "--pax-option=delete=atime,delete=ctime",
        "--sparse",
        "--xattrs",
        "-C",
        str(source),
        "-cf",
        "-",
        ".",
    ]
    into = ["tar", "--xattrs", "--same-owner", "-C", str(target), "-xpf", "-"]
    with subprocess.Popen(out, stdout=subprocess.PIPE) as writer:
        done = subprocess.run(into, stdin=writer.stdout, capture_output=True, text=True, timeout=3000)
    assert (writer.returncode, done.returncode, done.stderr) == (0, 0, "")


@pytest.mark.parametrize("source", TAR)
def test_tar_there_and_back(shared_cluster: Cluster, mnt: Path, tmp_path: Path, source: str) -> None:
    here, there = map(Path, both(shared_cluster, mnt))
    copy_by_tar(Path(source), here / "t")
    assert dict(tree(there / "t")) == dict(tree(Path(source)))
    run(["diff", "-r", "--no-dereference", "-q", source, str(there / "t")])
    copy_by_tar(there / "t", tmp_path / "t")
    assert dict(tree(tmp_path / "t")) == dict(tree(Path(source)))
    run(["diff", "-r", "--no-dereference", "-q", source, str(tmp_path / "t")])
    shutil.rmtree(here / "t")
    assert not list(there.iterdir())


@pytest.mark.parametrize("stressor", STRESSORS.split())
def test_stress_ng(mnt: Path, stressor: str) -> None:
    argv = [
        "stress-ng",
        f"--{stressor}",
        "2",
        "--timeout",
        f"{max(1, int(3 * SCALE))}s",
        "--temp-path",
        str(mnt),
        "--verify",
        "--oomable",
    ]
    more = {
        "hdd": ["--hdd-bytes", "64m"],
        "copy-file": ["--copy-file-bytes", "128m"],
        "iomix": ["--iomix-bytes", "64m"],
    }
    out = run([*argv, *more.get(stressor, [])], mnt)
    assert "fail:" not in out, out


def test_dbench(mnt: Path) -> None:
    out = run(["dbench", "-D", str(mnt), "-t", str(int(30 * SCALE)), "4"], mnt)
    assert "Throughput" in out


def test_bonnie(mnt: Path) -> None:
    run(["bonnie++", "-d", str(mnt), "-s", "256", "-r", "64", "-n", "4:8192:64:8", "-f", "-u", "root", "-q"], mnt)


@pytest.mark.parametrize(
    "way", ["--direct=1 --ioengine=libaio --iodepth=16", "--direct=0 --ioengine=psync", "--direct=0 --ioengine=mmap"]
)
@pytest.mark.parametrize("pattern", ["randwrite", "write", "randrw"])
def test_fio_verify(mnt: Path, way: str, pattern: str) -> None:
    size = f"{int(64 * max(1.0, SCALE))}m"
    argv = f"fio --name=v --size={size} --bsrange=4k-64k --rw={pattern} --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 {way}".split()
    run([*argv, f"--filename={mnt}/f"], mnt)


def test_pgbench(mnt: Path) -> None:
    """A database on the mount: its own benchmark, a clean shutdown, and its own check of all pages."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    data, socket_dir = mnt / "pg", mnt
    shutil.chown(mnt, "postgres", "postgres")
    for directory in mnt.parents:  # pytest's are closed to others
        directory.chmod(directory.stat().st_mode | 0o011)

    def pg(program: str, *args: str) -> str:
        return run(["runuser", "-u", "postgres", "--", str(binaries / program), *args], Path("/"))

    where = ["-h", str(socket_dir), "-U", "postgres"]
    pg("initdb", "-D", str(data), "--data-checksums", "-A", "trust", "-U", "postgres")
    pg(
        "pg_ctl",
        "-D",
        str(data),
        "-w",
        "-l",
        str(mnt / "log"),
        "-o",
        f"-k {socket_dir} -c listen_addresses=''",
        "start",
    )
    try:
        pg("pgbench", *where, "-i", "-s", "5", "postgres")
        out = pg("pgbench", *where, "-c", "4", "-T", str(int(20 * SCALE)), "postgres")
        assert "number of failed transactions: 0" in out, out
        pg("psql", *where, "-c", "vacuum full analyze", "postgres")
        sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)"
        assert pg("psql", *where, "-Atc", sums, "postgres").strip() == "t"
    finally:
        pg("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")
    out = pg("pg_checksums", "--check", "-D", str(data))
    assert "Bad checksums:  0" in out, out
