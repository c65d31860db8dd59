"""vstor-mount as a command: in the background, refused, killed, without a cluster; and the library beside it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster, is_mounted, umount, wait_for


@pytest.fixture
def point(shared_cluster: Cluster, tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def mount(cluster: Cluster, *args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vstor.client.main", "-c", cluster.name, *map(str, args)]
    return subprocess.run(argv, env={**cluster.env, **(env or {})}, capture_output=True, text=True, timeout=60)


def ready_pid(cluster: Cluster, point: Path) -> int:
    files = [p for p in (cluster.base / "run").glob("mount-*.ready") if point.parent.name in p.name]
    assert len(files) == 1
    return int(files[0].read_text())


def test_background_mount_works_when_the_command_returns(shared_cluster: Cluster, point: Path) -> None:
    done = mount(shared_cluster, point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.path.ismount(point)
    (point / "from-background").write_text("x")
    assert (shared_cluster.mounts["a"] / "from-background").read_text() == "x"
    busy = mount(shared_cluster, point)
    assert busy.returncode == 7
    assert "already mounted" in busy.stderr
    pid = ready_pid(shared_cluster, point)
    subprocess.run(["umount", point], check=True)
    wait_for("the process to end", lambda: not Path(f"/proc/{pid}").exists())


def test_a_killed_mount_makes_room_for_the_next(shared_cluster: Cluster, point: Path) -> None:
    assert mount(shared_cluster, point).returncode == 0
    pid = ready_pid(shared_cluster, point)
    os.kill(pid, 9)
    wait_for("the process to end", lambda: not Path(f"/proc/{pid}").exists())
    try:
        again = mount(shared_cluster, point)
        assert again.returncode == 0, again.stderr
        assert set(os.listdir(point)) == set(os.listdir(shared_cluster.mounts["a"]))
        subprocess.run(["umount", point], check=True)
    finally:
        umount(point)


def test_an_old_mount_that_ends_leaves_the_new_one_alone(shared_cluster: Cluster, point: Path) -> None:
    """umount -l of a busy file system, a new mount at its place, then the old process ends."""
    assert mount(shared_cluster, point).returncode == 0
    old = ready_pid(shared_cluster, point)
    held = os.open(point / "held", os.O_CREAT | os.O_WRONLY)
    try:
        subprocess.run(["umount", "-l", point], check=True)
        assert mount(shared_cluster, point).returncode == 0
        new = ready_pid(shared_cluster, point)
        os.write(held, b"written by the detached mount")
        os.kill(old, 15)
        wait_for("the old process to end", lambda: not Path(f"/proc/{old}").exists(), 90)
        assert (point / "held").read_bytes() == b"written by the detached mount"
        assert ready_pid(shared_cluster, point) == new
        (point / "held").unlink()
        subprocess.run(["umount", point], check=True)
        wait_for("the process to end", lambda: not Path(f"/proc/{new}").exists())
    finally:
        with pytest.raises(OSError, match="not connected"):
            os.close(held)
        umount(point)


def test_options(shared_cluster: Cluster, point: Path) -> None:
    done = mount(shared_cluster, "-o", "ro,noatime", "-u", "12", "-g", "34", "-m", "0750", point)
    assert done.returncode == 0, done.stderr
    try:
        assert (point.stat().st_uid, point.stat().st_gid, point.stat().st_mode & 0o7777) == (12, 34, 0o750)
        with pytest.raises(OSError, match="Read-only"):
            (point / "x").write_text("x")
        assert any(f" {point} fuse.vstor ro," in line for line in Path("/proc/mounts").read_text().splitlines())
    finally:
        subprocess.run(["umount", point], check=True)


def test_a_cluster_that_does_not_answer(shared_cluster: Cluster, point: Path, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    subprocess.run(["cp", "-r", shared_cluster.env["VSTOR_ETC"], etc], check=True)
    (etc / "clusters" / shared_cluster.name / "bs.list").write_text("127.0.0.1:9\n")
    done = mount(shared_cluster, "-o", "timeout=1", point, env={"VSTOR_ETC": str(etc)})
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1
    assert "UNREACHABLE" in done.stderr
    assert not os.path.ismount(point)


def test_the_library_sees_what_mounts_see(shared_cluster: Cluster, mnt: Path) -> None:
    code = """
import sys
from vstor.client import Client
with Client("test") as c, c.open(sys.argv[1] + "/f", "x+b") as f:
    f.pwrite(b"from the library", 5_000_000)
    f.sync()
    with open(sys.argv[2] + "/f", "r+b", buffering=0) as other:
        other.seek(5_000_000)
        assert other.read() == b"from the library"
        other.seek(0)
        other.write(b"from a mount")
    assert f.pread(12, 0) == b"from a mount"
    assert f.size == 5_000_016
    c.rename(sys.argv[1] + "/f", sys.argv[1] + "/g")
"""
    argv = [sys.executable, "-c", code, f"/{mnt.name}", str(mnt)]
    done = subprocess.run(argv, env=shared_cluster.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert os.listdir(mnt) == ["g"]


def test_the_others_go_on_after_a_mount_is_killed_while_it_writes(own_cluster: Cluster) -> None:
    """kill -9 of a client: its lease ends, what it flushed is there, what it wrote behind the size it told is never seen (R1, R2)."""
    own_cluster.run("set-config", "mds.lease.ttl=2000", "mds.lease.margin=500")
    a, b = own_cluster.mounts["a"], own_cluster.mount("b")
    with (a / "f").open("wb", buffering=0) as f:
        f.write(b"flushed" * 100)
        os.fsync(f.fileno())
        f.write(b"not flushed" * 10_000)
        own_cluster.procs["mount-a"].kill()
        with pytest.raises(OSError, match="not connected"):
            os.fstat(f.fileno())
        with contextlib.suppress(OSError):
            f.close()
    with (b / "f").open("r+b", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        assert size >= 700
        os.pwrite(f.fileno(), b"end", 1_000_000)
        data = (b / "f").read_bytes()
    assert data[:700] == b"flushed" * 100
    assert data[size:] == bytes(1_000_000 - size) + b"end"
    del own_cluster.procs["mount-a"], own_cluster.mounts["a"]
    assert own_cluster.mount("a").joinpath("f").read_bytes() == data  # over the dead mount


def test_a_copy_in_another_namespace_does_not_keep_a_mount_from_ending(shared_cluster: Cluster, point: Path) -> None:
    """A container made while the mount was there has a copy: the kernel does not let go when the mount itself is gone."""
    assert mount(shared_cluster, point).returncode == 0
    pid = ready_pid(shared_cluster, point)
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec sleep 1000"]
    container = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert container.stdout is not None
    try:
        assert container.stdout.readline() == b"there\n"
        os.kill(pid, 15)
        wait_for("the process to end", lambda: not Path(f"/proc/{pid}").exists(), 120)
        assert not is_mounted(point)
    finally:
        container.kill()
        container.communicate()
