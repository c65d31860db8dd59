"""What an operator fears: killed servers, lost power, damaged disks, wrong passwords."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import signal
import subprocess
from pathlib import Path

from tests.helpers.cluster import Cluster, wait_for


def degraded(status: dict) -> bool:  # type: ignore[type-arg]
    return status["chunks"]["degraded"] + status["chunks"]["urgent"] > 0


def healthy(status: dict) -> bool:  # type: ignore[type-arg]
    chunks = status["chunks"]
    return chunks["healthy"] > 0 and not any(
        chunks[k] for k in ("degraded", "urgent", "blocked", "offline", "replicating")
    )


def test_kill_a_chunk_server_while_fio_verifies(own_cluster: Cluster) -> None:
    mnt = own_cluster.mounts["a"]
    fio = subprocess.Popen(
        ["fio", "--name=v", f"--directory={mnt}", "--rw=randwrite", "--bs=4k", "--direct=1", "--size=64m", "--io_size=64m", "--ioengine=libaio", "--iodepth=8",
         "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--rate_iops=1500", "--randseed=9"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    victim = next(n for n in own_cluster.procs if n.startswith("cs-"))
    wait_for("data to arrive", lambda: own_cluster.status()["space"]["logical_used_bytes"] > 0)
    own_cluster.procs[victim].kill()
    status = own_cluster.wait_status("degraded chunks", degraded)
    assert status
    out, _ = fio.communicate(timeout=240)
    assert fio.returncode == 0, out + own_cluster.tails()
    status = own_cluster.status()
    assert {c["state"] for c in status["cs"] if str(c["id"]) == victim[3:]} <= {"inactive", "offline"}
    assert sum(c["state"] == "active" for c in status["cs"]) == 2
    own_cluster.start(victim)
    own_cluster.wait_status("everything healthy again", healthy, 120)
    before = hashlib.sha256((mnt / "v.0.0").read_bytes()).hexdigest()
    # The returned replica alone must give the same bytes.
    own_cluster.umount("a")
    others = [n for n in own_cluster.procs if n.startswith("cs-") and n != victim]
    for name in others:
        own_cluster.procs[name].signal(signal.SIGSTOP)
    try:
        mnt = own_cluster.mount("a")
        assert hashlib.sha256((mnt / "v.0.0").read_bytes()).hexdigest() == before
    finally:
        for name in others:
            own_cluster.procs[name].signal(signal.SIGCONT)


def test_fsynced_data_survive_kill_of_everything(own_cluster: Cluster) -> None:
    mnt = own_cluster.mounts["a"]
    rng = random.Random(11)
    sums = {}
    for i in range(20):
        data = rng.randbytes(rng.choice([100, 5000, 70_000, 1_500_000]))
        with (mnt / f"f{i}").open("wb", buffering=0) as f:
            f.write(data)
            os.fsync(f.fileno())
        sums[f"f{i}"] = data
    fd = os.open(mnt / "over", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(300_000))
    for i in range(40):
        os.pwrite(fd, bytes([i + 1]) * 5000, i * 7001)
    os.fsync(fd)
    own_cluster.kill_all()
    with contextlib.suppress(OSError):  # its file system is gone
        os.close(fd)
    own_cluster.start_all()
    mnt = own_cluster.mount("a")
    for name, data in sums.items():
        assert (mnt / name).read_bytes() == data, name
    expected = bytearray(300_000)
    for i in range(40):
        expected[i * 7001 : i * 7001 + 5000] = bytes([i + 1]) * 5000
    assert (mnt / "over").read_bytes() == bytes(expected)
    (mnt / "f0").write_bytes(b"writable again")
    assert (mnt / "f0").read_bytes() == b"writable again"


def test_kill_the_metadata_server_under_load(own_cluster: Cluster) -> None:
    mnt = own_cluster.mounts["a"]
    for i in range(20):
        (mnt / f"before{i}").write_bytes(b"b" * 5000)
    own_cluster.procs["mds-1"].kill()
    own_cluster.start("mds-1")
    for i in range(20):
        (mnt / f"after{i}").write_bytes(b"a" * 5000)
        assert (mnt / f"before{i}").read_bytes() == b"b" * 5000
    assert len(os.listdir(mnt)) == 40


def test_flipped_bytes_are_never_returned_and_get_repaired(own_cluster: Cluster) -> None:
    mnt = own_cluster.mounts["a"]
    data = random.Random(5).randbytes(2_000_000)
    with (mnt / "f").open("wb", buffering=0) as f:
        f.write(data)
        os.fsync(f.fileno())
    own_cluster.umount("a")
    victim, repo = next(iter(own_cluster.cs_dirs.items()))
    own_cluster.procs[victim].stop()  # checkpoints: the data are in the chunk file
    files = [p for p in (repo / "chunks").rglob("*") if p.is_file()]
    assert files
    marker = data[1_000_000:1_000_064]
    hits = 0
    for file in files:
        content = file.read_bytes()
        at = content.find(marker)
        if at >= 0:
            hits += 1
            with file.open("r+b") as raw:
                raw.seek(at + 10)
                raw.write(bytes(b ^ 0xFF for b in content[at + 10 : at + 20]))
    assert hits == 1
    own_cluster.start(victim)
    own_cluster.wait_status("all active", lambda s: all(c["state"] == "active" for c in s["cs"]))
    mnt = own_cluster.mount("a")
    assert (mnt / "f").read_bytes() == data
    block = 1_000_000 // 4096 * 4096
    buf = mmap.mmap(-1, 4096)
    fd = os.open(mnt / "f", os.O_RDONLY | os.O_DIRECT)
    for _ in range(12):  # replicas take turns, so each serves it
        os.preadv(fd, [buf], block)
        assert buf[:] == data[block : block + 4096]
    os.close(fd)
    wait_for("the event", lambda: any("damaged" in e["message"] for e in own_cluster.events()), 60)
    own_cluster.wait_status("healthy", healthy, 60)

    def repaired() -> bool:
        own_cluster.procs[victim].stop()
        found = any(marker in file.read_bytes() for file in files if file.exists()) or any(
            marker in p.read_bytes() for p in (repo / "chunks").rglob("*") if p.is_file()
        )
        own_cluster.start(victim)
        return found

    wait_for("the replica to be repaired on disk", repaired, 60)


def test_wrong_password_and_no_certificate(own_cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    bs = tmp_path / "other/etc/clusters/test/bs.list"
    bs.parent.mkdir(parents=True)
    bs.write_text(f"{own_cluster.address}:{own_cluster.port}\n")
    done = other.run("status", check=False)
    assert done.returncode == 4, done
    assert "auth-node" in done.stderr
    assert "Traceback" not in done.stderr
    done = other.run("auth-node", "-P", stdin="wrong\n", check=False)
    assert done.returncode == 4
    assert "Authentication failure due to wrong credentials" in done.stderr
    done = other.run("auth-node", "-P", stdin="correct horse battery staple\n")
    assert other.run("status", "--format", "json").returncode == 0


def test_garbage_on_every_port_is_survived(own_cluster: Cluster) -> None:
    import socket

    targets = [
        (own_cluster.address, own_cluster.port + 1),
        (own_cluster.address, own_cluster.port),
        (own_cluster.address, own_cluster.port + 2),
    ]
    for cs in own_cluster.status()["cs"]:
        host, port = cs["address"].rsplit(":", 1)
        targets.append((host, int(port)))
    rng = random.Random(3)
    for target in targets:
        for size in (1, 63, 64, 5000, 200_000):
            with socket.create_connection(target, timeout=5) as sock:
                try:
                    sock.sendall(rng.randbytes(size))
                except OSError:
                    continue
    assert all(p.running for p in own_cluster.procs.values())
    mnt = own_cluster.mounts["a"]
    (mnt / "x").write_bytes(b"fine")
    assert (mnt / "x").read_bytes() == b"fine"
    assert all(c["state"] == "active" for c in own_cluster.status()["cs"])
