"""Two mounts of one cluster used at the same time: nothing old is seen, nothing is lost, nobody waits for ever."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vstor.client.main import Config

from tests.helpers.cluster import Cluster

THREADS_S_MAX = 60.0


@pytest.fixture
def shared_cluster(cluster_of_either_kind: Cluster) -> Cluster:
    """Every test here for both kinds of kernels."""
    return cluster_of_either_kind


def both(cluster: Cluster, mnt: Path) -> tuple[Path, Path]:
    return mnt, cluster.mounts["b"] / mnt.relative_to(cluster.mounts["a"])


def at_once(*works: Callable[[], None]) -> None:
    """Run together; a thread that does not end fails the test."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - said by the assertion below
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREADS_S_MAX)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    assert not failures, failures


def test_files_made_in_one_directory_by_both(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)

    def make(where: Path, mark: str) -> Callable[[], None]:
        return lambda: [(where / f"{mark}-{i}").write_text(mark) for i in range(60)] and None

    at_once(make(a, "a"), make(b, "b"), make(a, "c"), make(b, "d"))
    names = {f"{mark}-{i}" for mark in "abcd" for i in range(60)}
    assert set(os.listdir(a)) == set(os.listdir(b)) == names


def test_directories_renamed_by_both(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    (a / "d1").mkdir()
    (a / "d1" / "inside").write_text("kept")

    def move(where: Path) -> Callable[[], None]:
        def run() -> None:
            for i in range(60):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(where / f"d{1 + i % 2}", where / f"d{2 - i % 2}")

        return run

    at_once(move(a), move(b))
    (name,) = os.listdir(a)
    assert os.listdir(b) == [name]
    assert (a / name / "inside").read_text() == (b / name / "inside").read_text() == "kept"


def test_a_file_replaced_by_both_is_always_whole(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    (a / "cfg").write_text("v" * 100)
    stop = threading.Event()

    def replace(where: Path, mark: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(30):
                (where / f".tmp-{mark}").write_text(mark * 100)
                os.rename(where / f".tmp-{mark}", where / "cfg")
            stop.set()

        return run

    def read(where: Path) -> Callable[[], None]:
        def run() -> None:
            while not stop.is_set():
                text = (where / "cfg").read_text()
                assert len(text) == 100
                assert len(set(text)) == 1

        return run

    at_once(replace(a, "p"), replace(b, "q"), read(a), read(b))


def test_one_block_written_by_both_without_pause(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    (a / "block").write_bytes(bytes(4096))
    end = time.monotonic() + 3
    counts = [0, 0]

    def write(where: Path, k: int) -> Callable[[], None]:
        def run() -> None:
            # One page of memory: the kernel sends a write in two when it finds a page of the source not in memory half way.
            with (where / "block").open("r+b", buffering=0) as f, mmap.mmap(-1, 4096) as buf:
                buf[:] = bytes([65 + k]) * 4096
                while time.monotonic() < end:
                    os.pwrite(f.fileno(), buf, 0)
                    counts[k] += 1

        return run

    def read(where: Path) -> Callable[[], None]:
        def run() -> None:
            fd = os.open(
                where / "block", os.O_RDONLY | os.O_DIRECT
            )  # reads of cached pages may meet a write half way, as everywhere
            with mmap.mmap(-1, 4096) as buf:
                while time.monotonic() < end:
                    assert os.preadv(fd, [buf], 0) == 4096
                    assert len(set(buf[:])) == 1
            os.close(fd)

        return run

    at_once(write(a, 0), write(b, 1), read(a), read(b))
    assert min(counts) > 0


def test_a_counter_under_a_lock(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    code = """
import fcntl, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
for _ in range(40):
    fcntl.lockf(f, fcntl.LOCK_EX)
    value = int(os.pread(f, 20, 0))
    os.pwrite(f, b"%d" % (value + 1), 0)
    fcntl.lockf(f, fcntl.LOCK_UN)
"""
    (a / "counter").write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", code, str(p / "counter")]) for p in (a, b, a, b)]
    assert [worker.wait(THREADS_S_MAX) for worker in workers] == [0] * 4
    assert (a / "counter").read_text() == (b / "counter").read_text() == "160"


def test_a_log_is_followed_on_both(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    with (a / "log").open("ab", buffering=0) as log, (a / "log").open("rb") as near, (b / "log").open("rb") as far:
        expected = b""
        for i in range(60):
            line = b"line %06d\n" % i
            log.write(line)
            expected += line
            assert os.pread(near.fileno(), 1 << 20, 0) == expected
            if i % 3 == 0:
                assert os.pread(far.fileno(), 1 << 20, 0) == expected


def test_a_mapping_sees_what_the_other_writes(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = both(shared_cluster, mnt)
    with (a / "map").open("w+b") as f:
        f.truncate(1 << 20)
        with mmap.mmap(f.fileno(), 1 << 20) as mapped:
            for i in range(20):
                at = i * 50_001
                mapped[at : at + 8] = b"%08d" % i
                mapped.flush()
                with (b / "map").open("r+b", buffering=0) as other:
                    assert os.pread(other.fileno(), 8, at) == b"%08d" % i
                    os.pwrite(other.fileno(), b"theirs", at + 100)
                assert mapped[at + 100 : at + 106] == b"theirs"


def test_direct_writes_beside_buffered_reads(mnt: Path) -> None:
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    buf = mmap.mmap(-1, 65_536)
    for i in range(40):
        if i == 20:
            held = (mnt / "f").open("rb", buffering=0)
        buf[:] = bytes([i]) * 65_536
        at = i % 4 * 65_536
        assert os.pwrite(fd, buf, at) == 65_536
        with (mnt / "f").open("rb", buffering=0) as f:
            assert os.pread(f.fileno(), 65_536, at) == buf[:]
        if i >= 20:
            assert os.pread(held.fileno(), 65_536, at) == buf[:]
    held.close()
    os.close(fd)


def test_chunks_given_ahead_but_never_written_are_zeros(shared_cluster: Cluster, mnt: Path) -> None:
    """The writer gets maps of chunks in advance; after its lease went and came back it must not wait for replicas nobody made."""
    a, b = both(shared_cluster, mnt)
    chunk = 64 << 20
    with (a / "f").open("w+b", buffering=0) as fa:
        os.pwrite(fa.fileno(), b"1", chunk)  # gives chunk 2 as well
        os.truncate(a / "f", 4 * chunk)
        assert (b / "f").stat().st_size == 4 * chunk
        with (b / "f").open("rb", buffering=0) as fb:
            assert os.pread(fb.fileno(), 1, chunk) == b"1"
        os.pwrite(fa.fileno(), b"0", 0)
        got: list[bytes] = []
        at_once(lambda: got.append(os.pread(fa.fileno(), 4096, 2 * chunk)))
        assert got == [bytes(4096)]


def test_fallocate_knows_the_size_of_now(shared_cluster: Cluster, mnt: Path) -> None:
    """The other mount changed it: space is added behind the new end, and nothing that is there is cut off."""
    a, b = both(shared_cluster, mnt)
    (a / "f").write_bytes(b"x" * 1000)
    with (a / "f").open("r+b", buffering=0) as fa, (b / "f").open("r+b", buffering=0) as fb:
        os.ftruncate(fb.fileno(), 100)
        os.posix_fallocate(fa.fileno(), 0, 500)
        assert (os.fstat(fa.fileno()).st_size, os.fstat(fb.fileno()).st_size) == (500, 500)
        os.pwrite(fb.fileno(), b"y" * 10, 5000)
        os.posix_fallocate(fa.fileno(), 0, 2000)
        assert os.fstat(fa.fileno()).st_size == 5010
        assert os.pread(fa.fileno(), 10, 5000) == b"y" * 10


def records(data: bytes, *, growing: bool = False) -> list[tuple[int, int]]:
    """(writer, number) of each record of a log: header "wNN nnnn len\n", then that many times the writer's byte.

    growing: the last one may be there in part, as readers of a log that grows see it on any file system.
    """
    found, at = [], 0
    while at < len(data):
        if growing and len(data) - at < 16:
            break
        head = data[at : at + 16]
        writer, number, length = int(head[1:3]), int(head[4:8]), int(head[9:15])
        body = data[at + 16 : at + 16 + length]
        full = len(body) if growing else length
        assert body == bytes([writer]) * full, f"record at {at}: {len(body)} bytes of {length}, {set(body)}"
        found.append((writer, number))
        at += 16 + length
    return found


def test_appends_of_both_are_whole(shared_cluster: Cluster, mnt: Path) -> None:
    """Records of any size up to several pages, by two writers on each mount."""
    a, b = both(shared_cluster, mnt)
    (a / "log").touch()
    with (
        (a / "log").open("rb", buffering=0) as early,
        (b / "log").open("rb", buffering=0),
    ):  # cached handles that were there before
        done = threading.Event()

        def append(where: Path, writer: int) -> Callable[[], None]:
            def run() -> None:
                fd = os.open(where / "log", os.O_WRONLY | os.O_APPEND)
                for number in range(40):
                    length = (writer * 7919 + number * 1361) % 20_000
                    record = b"w%02d %04d %06d\n" % (writer, number, length) + bytes([writer]) * length
                    assert os.write(fd, record) == len(record)
                os.close(fd)
                finished.append(writer)
                if len(finished) == 4:
                    done.set()

            return run

        def follow(where: Path) -> Callable[[], None]:
            def run() -> None:
                while not done.is_set():
                    records((where / "log").read_bytes(), growing=True)

            return run

        finished: list[int] = []
        at_once(append(a, 1), append(b, 2), append(a, 3), append(b, 4), follow(a), follow(b))
        expected = sorted((writer, number) for writer in range(1, 5) for number in range(40))
        for data in ((a / "log").read_bytes(), (b / "log").read_bytes(), os.pread(early.fileno(), 1 << 24, 0)):
            got = records(data)
            assert sorted(got) == expected
            assert all([n for w, n in got if w == writer] == list(range(40)) for writer in range(1, 5))


def asked_of_python(cluster: Cluster, point: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Requests of the kernel that this mount's engine could not answer alone."""
    monkeypatch.setenv("VSTOR_RUN", str(cluster.base / "run"))
    path = Config(cluster.name, str(point), 0, None, True, 1, (None, None, None), True, None, "").metrics_socket
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    found = re.search(r"^vstor_client_fuse_slow_requests_total (\d+)$", text, re.MULTILINE)
    assert found, text
    return int(found[1])


def test_what_is_known_is_answered_without_python(
    shared_cluster: Cluster, mnt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = both(shared_cluster, mnt)
    for i in range(50):
        (a / f"f{i}").write_bytes(b"x" * i)
        (b / f"f{i}").read_bytes()  # while the writer's lease is not recalled, attributes are asked of it each time

    def look(expected: set[int]) -> None:
        for i in range(50):
            assert (b / f"f{i}").exists() == (i in expected)
            assert not (b / f"g{i}").exists()
            if i in expected:
                assert (b / f"f{i}").stat().st_size == i

    everything = set(range(50))
    look(everything)
    before = asked_of_python(shared_cluster, shared_cluster.mounts["b"], monkeypatch)
    for _ in range(10):
        look(everything)
    assert asked_of_python(shared_cluster, shared_cluster.mounts["b"], monkeypatch) - before < 50
    (a / "f7").unlink()
    look(everything - {7})


def test_each_change_of_names_and_attributes_is_seen_at_once(shared_cluster: Cluster, mnt: Path) -> None:
    """Random changes through both mounts in turn; after each, both show what a model says."""
    rng = random.Random(11)
    mounts = both(shared_cluster, mnt)
    names = [f"n{i}" for i in range(5)]
    files: dict[int, list[int]] = {}  # mode, size, links
    known: dict[str, int] = {}  # name -> key of files

    def change(where: Path, key: int) -> None:
        name, other = rng.sample(names, 2)
        kind = rng.randrange(7)
        if kind <= 1 and name not in known:
            fd = os.open(where / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(fd, b"x" * kind)
            os.close(fd)
            known[name], files[key] = key, [0o600, kind, 1]
        elif name not in known:
            return
        elif kind == 2:
            os.unlink(where / name)
            files[known.pop(name)][2] -= 1
        elif kind == 3:
            os.rename(where / name, where / other)
            if known.get(other) != known[name]:  # two names of one file: nothing is done
                if other in known:
                    files[known[other]][2] -= 1
                known[other] = known.pop(name)
        elif kind == 4 and other not in known:
            os.link(where / name, where / other)
            known[other] = known[name]
            files[known[name]][2] += 1
        elif kind == 5:
            files[known[name]][0] = mode = 0o400 | rng.randrange(0o200)
            os.chmod(where / name, mode)
        elif kind == 6:
            files[known[name]][1] = size = rng.randrange(5000)
            if rng.randrange(2):
                os.truncate(where / name, size)
            else:
                (where / name).write_bytes(b"y" * size)

    for step in range(400):
        change(mounts[rng.randrange(2)], step)
        for where in mounts if rng.randrange(2) else mounts[::-1]:
            for name in names:
                try:
                    found = os.stat(where / name)
                except FileNotFoundError:
                    assert name not in known, (step, name, where)
                else:
                    assert name in known, (step, name, where)
                    assert [found.st_mode & 0o7777, found.st_size, found.st_nlink] == files[known[name]], (step, name)
            if step % 20 == 0:
                assert set(os.listdir(where)) == set(known)
