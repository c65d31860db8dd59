"""A full cluster on real mounts: writers wait or hear ENOSPC, as their mount was told to; names change, deletion makes room (R7, R11)."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster, umount, wait_for

DISK_MB = 192
PIECE = 1 << 20


@pytest.fixture
def small_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Each chunk server on a small file system of its own."""
    cluster = Cluster(tmp_path)
    disks = [tmp_path / "state" / f"cs{number}" for number in (1, 2, 3)]
    try:
        for disk in disks:
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", disk], check=True)
        yield cluster.make()
    finally:
        try:
            cluster.destroy()
        finally:
            for disk in disks:
                umount(disk)


def until_full(path: Path) -> int:
    """Write until ENOSPC; the bytes that had room. A buffered write is answered from memory: the fsync tells."""
    written, number = 0, 0
    with path.open("wb", buffering=0) as f:
        while not number:
            assert written < DISK_MB * PIECE, "it never becomes full"
            try:
                piece = f.write(os.urandom(PIECE))
                os.fsync(f.fileno())
                written += piece
            except OSError as exc:
                number = exc.errno or -1
    assert number == errno.ENOSPC
    return written


def test_full_and_emptied(small_cluster: Cluster) -> None:
    waiting, failing = small_cluster.mount("a"), small_cluster.mount("b", "-o", "nospace=error")
    assert until_full(failing / "fill") > DISK_MB * PIECE // 4
    small_cluster.wait_status("the figures to say so", lambda s: s["space"]["allocatable_bytes"] == 0)
    assert os.statvfs(waiting).f_bavail == 0
    with pytest.raises(OSError, match="No space left"):  # without an fsync close tells
        (failing / "closed").write_bytes(b"c" * PIECE)

    ended = threading.Event()

    def write() -> None:
        with (waiting / "waits").open("wb", buffering=0) as f:
            for _ in range(8):
                f.write(b"w" * PIECE)
            os.fsync(f.fileno())
        ended.set()

    threading.Thread(target=write, daemon=True).start()
    wait_for("the file to be made", (waiting / "waits").exists)
    assert until_full(failing / "more") == 0  # by now the other one is waiting as well
    assert not ended.is_set()
    (waiting / "dir").mkdir()
    (waiting / "name").touch()
    os.rename(waiting / "name", waiting / "dir/name")
    (failing / "fill").unlink()
    assert ended.wait(90), small_cluster.tails()
    assert (waiting / "waits").read_bytes() == b"w" * (8 * PIECE)


def test_below_the_minimum_writers_wait(own_cluster: Cluster) -> None:
    """replicas=3:2: with one chunk server left nothing is acknowledged; with two it goes on."""
    path = own_cluster.mounts["a"] / "f"
    subprocess.run(["dd", f"of={path}", "conv=fsync"], input=b"before", check=True, capture_output=True)
    servers = [name for name in own_cluster.procs if name.startswith("cs-")]
    for name in servers[:2]:
        own_cluster.procs[name].kill()
    own_cluster.wait_status("two servers to be missed", lambda s: sum(c["state"] == "active" for c in s["cs"]) == 1)
    # A process of its own: closing an inherited descriptor would wait for the write as well.
    writer = subprocess.Popen(["dd", f"of={path}", "conv=fsync,notrunc"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write(b"after!")
    writer.stdin.close()
    own_cluster.wait_status("the chunk to wait", lambda s: s["chunks"]["blocked"] + s["chunks"]["pending"] == 1)
    assert writer.poll() is None
    own_cluster.start(servers[0])
    assert writer.wait(90) == 0, own_cluster.tails()
    assert path.read_bytes() == b"after!"
