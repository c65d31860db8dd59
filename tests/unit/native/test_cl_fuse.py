"""The FUSE side of the client engine on a real mount (needs root and /dev/fuse), in-memory chunk servers behind it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.native import cl, lib
from vstor.proto.wire_gen import FrameType

from tests.helpers.minifuse import FLUSH, GETATTR, LOOKUP, MiniFuse, fio
from tests.helpers.minimds import CHUNK_BYTES, MiniMds
from tests.unit.native.test_cl import cluster, noise, replicas_of

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
NONE, EXCLUSIVE = lib.VST_LEASE_NONE, lib.VST_LEASE_EXCLUSIVE
READ, WRITE, FSYNC, FALLOCATE, LSEEK = 15, 16, 20, 43, 46


@pytest.fixture
def mds() -> Iterator[MiniMds]:
    with cluster() as made:
        yield made


@pytest.fixture
def fuse(mds: MiniMds, tmp_path: Path) -> Iterator[MiniFuse]:
    point = tmp_path / "mnt"
    point.mkdir()
    with MiniFuse(mds, point) as mounted:
        yield mounted


def test_files_read_back_what_was_written(fuse: MiniFuse) -> None:
    data = noise(3 * CHUNK_BYTES + 777)
    path = fuse.point / "a"
    path.write_bytes(data)
    assert path.stat().st_size == len(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert b"".join(iter(lambda: os.read(fd, 300_000), b"")) == data
    finally:
        os.close(fd)
    assert {READ, WRITE, FSYNC} & set(fuse.seen) == set(), "data requests went to Python"
    ino = fuse.names[b"a"]
    for index in range(3):
        assert set(replicas_of(fuse.mds, ino, index, 0, CHUNK_BYTES)) == {data[index * CHUNK_BYTES :][:CHUNK_BYTES]}


def test_random_writes_on_many_handles(fuse: MiniFuse) -> None:
    rng = random.Random(3)
    expected = bytearray(500_000)
    path = fuse.point / "r"
    fds = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for _ in range(4)]
    try:
        os.pwrite(fds[0], bytes(expected), 0)
        for i in range(300):
            offset, length = rng.randrange(490_000), rng.randrange(1, 10_000)
            data = noise(length, i)
            expected[offset : offset + length] = data
            assert os.pwrite(rng.choice(fds), data, offset) == length
            start = rng.randrange(480_000)
            assert os.pread(rng.choice(fds), 20_000, start) == bytes(expected[start : start + 20_000])
    finally:
        for fd in fds:
            os.close(fd)
    assert path.read_bytes() == bytes(expected)


def test_fsync_is_durable_and_committed(fuse: MiniFuse) -> None:
    path = fuse.point / "s"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, noise(10_000))
        ino = fuse.names[b"s"]
        os.close(os.dup(fd))  # waits for the replicas, no more
        chunk = fuse.mds.inodes[ino].chunks[0]
        assert not any(cs.chunks[chunk.chunk_id].synced for cs in fuse.mds.servers.values())
        os.fsync(fd)
        assert all(len(cs.chunks[chunk.chunk_id].synced) == 3 for cs in fuse.mds.servers.values())
        assert fuse.mds.inodes[ino].committed == [(10_000, [0])]
    finally:
        os.close(fd)


def hold_writes(mds: MiniMds) -> None:
    for cs in mds.servers.values():
        cs.faults.hold = lambda frame: frame.type == FrameType.WRITE


def sent(mds: MiniMds) -> int:
    return sum(kind == FrameType.WRITE for kind, _chunk, _version in mds.servers[1].requests)


def test_buffered_writes_are_answered_from_memory_and_gathered(fuse: MiniFuse, mds: MiniMds) -> None:
    path = fuse.point / "g"
    data = noise(64 * 4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, b"x")
        os.fsync(fd)
        before = sent(mds)
        hold_writes(mds)
        for i in range(64):
            assert os.pwrite(fd, data[i * 4096 : (i + 1) * 4096], i * 4096) == 4096
        assert os.fstat(fd).st_size == len(data)
        for cs in mds.servers.values():
            cs.release()
        os.fsync(fd)
        assert sent(mds) - before < 16, "neighbours went out one by one"
    finally:
        os.close(fd)
    assert set(replicas_of(mds, fuse.names[b"g"], 0, 0, len(data))) == {data}
    assert path.read_bytes() == data


def test_fsync_close_and_recall_wait_for_what_was_answered(fuse: MiniFuse, mds: MiniMds) -> None:
    path = fuse.point / "w"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, noise(4096))
    os.fsync(fd)
    file, ino = fuse.files[fuse.names[b"w"]], fuse.names[b"w"]
    other = os.open(fuse.point / "turns", os.O_RDWR | os.O_CREAT, 0o644)
    turns = fuse.files[fuse.names[b"turns"]]

    def recall() -> None:
        file.set_lease(NONE, 77)

    for wait in (lambda: os.fsync(fd), lambda: os.close(os.dup(fd)), recall):
        file.set_lease(EXCLUSIVE, 0)
        hold_writes(mds)
        new = noise(4096, 100 + sent(mds))
        assert os.pwrite(fd, new, 0) == 4096
        assert os.pwrite(fd, new, 4096) == 4096  # gathered
        drained = mds.count_events(lib.VST_EV_DRAINED)
        waiter = threading.Thread(target=wait)
        waiter.start()
        # The engine has had its turns. Of another file: this one's reads wait when its lease has gone already.
        turns.io(lib.VST_IO_READ, 1 << 19, 10, bytearray(10))
        assert mds.count_events(lib.VST_EV_DRAINED) == drained
        assert set(replicas_of(mds, ino, 0, 0, 4096)) != {new}
        for cs in mds.servers.values():
            cs.release()
        waiter.join(20)
        if wait is recall:
            mds.wait_event(lib.VST_EV_DRAINED, count=drained + 1)
        assert set(replicas_of(mds, ino, 0, 0, 8192)) == {new + new}
    file.set_lease(EXCLUSIVE, 0)
    os.close(fd)
    os.close(other)


def test_a_failure_after_the_answer_is_told_once(fuse: MiniFuse, mds: MiniMds) -> None:
    policy = mds.policy

    def cannot(event: cl.Event) -> bool:
        if event.kind != lib.VST_EV_REPLICA_FAILED:
            return policy(event)
        mds.inodes[event.ino].file.fail(event.index, errno.EROFS)
        return True

    path = fuse.point / "e"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, noise(4096))
        os.fsync(fd)
        mds.policy = cannot
        mds.servers[2].faults.on_request = lambda frame: ErrorCode.IO_ERROR if frame.type == FrameType.WRITE else None
        assert os.pwrite(fd, noise(4096, 2), 0) == 4096
        with pytest.raises(OSError, match="Read-only") as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.EROFS
        os.fsync(fd)
        mds.servers[2].faults.on_request = None
        assert os.pwrite(fd, noise(4096, 3), 0) == 4096
        os.fsync(fd)
    finally:
        os.close(fd)
    assert set(replicas_of(mds, fuse.names[b"e"], 0, 0, 4096)) == {noise(4096, 3)}


def test_what_was_answered_under_a_lost_lease_is_not_written_under_the_next(fuse: MiniFuse, mds: MiniMds) -> None:
    """Another client may have written since. The program hears of it at its fsync."""
    path = fuse.point / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, noise(4096))
        os.fsync(fd)
        file, ino = fuse.files[fuse.names[b"f"]], fuse.names[b"f"]
        hold_writes(mds)
        assert os.pwrite(fd, noise(4096, 2), 4096) == 4096  # on its way
        assert os.pwrite(fd, noise(4096, 3), 0) == 4096  # gathered
        file.set_lease(NONE, 0)
        file.set_lease(EXCLUSIVE, 0)
        for cs in mds.servers.values():
            cs.release()
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(fd)
    finally:
        os.close(fd)
    assert set(replicas_of(mds, ino, 0, 0, 4096)) == {noise(4096)}


def test_o_dsync_writes_are_durable(fuse: MiniFuse) -> None:
    fd = os.open(fuse.point / "d", os.O_RDWR | os.O_CREAT | os.O_DSYNC, 0o644)
    try:
        os.write(fd, noise(4096))
        ino = fuse.names[b"d"]
        chunk = fuse.mds.inodes[ino].chunks[0]
        assert all(cs.chunks[chunk.chunk_id].synced for cs in fuse.mds.servers.values())
        assert fuse.mds.inodes[ino].committed[0] == (4096, [0])
    finally:
        os.close(fd)


def test_append_uses_the_engines_size(fuse: MiniFuse) -> None:
    """The kernel's size may be old: what counts is the size when the write runs, and the caller hears of it."""
    path = fuse.point / "l"
    path.write_bytes(b"one\n")
    ino = fuse.names[b"l"]
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        fuse.files[ino].io(lib.VST_IO_WRITE, 4, 4, b"two\n")  # behind the kernel's back
        os.write(fd, b"three\n")
    finally:
        os.close(fd)
    size = fuse.files[ino].size
    buf = bytearray(size)
    fuse.files[ino].io(lib.VST_IO_READ, 0, size, buf)
    assert bytes(buf) == b"one\ntwo\nthree\n"
    event = fuse.mds.wait_event(lib.VST_EV_APPEND_MOVED)
    assert (event.ino, event.offset, event.result) == (ino, 4, 6)


def test_punch_and_seek(fuse: MiniFuse) -> None:
    import ctypes

    path = fuse.point / "p"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, noise(100_000))
        libc = ctypes.CDLL(None, use_errno=True)
        mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
        assert libc.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(50_000)) == 0
        assert os.fstat(fd).st_size == 100_000
        expected = noise(100_000)[:4096] + bytes(50_000) + noise(100_000)[54_096:]
        assert os.pread(fd, 100_000, 0) == expected
        assert os.lseek(fd, 500, os.SEEK_DATA) == 500
        assert os.lseek(fd, 500, os.SEEK_HOLE) == 100_000
        with pytest.raises(OSError) as caught:
            os.lseek(fd, 100_000, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
        assert FALLOCATE not in fuse.seen
        assert LSEEK not in fuse.seen
        assert libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(10)) == -1
        assert FALLOCATE in fuse.seen, "the other modes are Python's"
    finally:
        os.close(fd)


def test_truncate_and_sparse(fuse: MiniFuse) -> None:
    path = fuse.point / "t"
    path.write_bytes(noise(50_000))
    os.truncate(path, 20_001)
    os.truncate(path, 60_000)
    assert path.read_bytes() == noise(50_000)[:20_001] + bytes(39_999)
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_mmap(fuse: MiniFuse) -> None:
    path = fuse.point / "m"
    path.write_bytes(bytes(200_000))
    code = "import mmap,sys; f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0); m[100000:100005]=b'hello'; m.flush()"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    assert path.read_bytes()[99_999:100_006] == b"\0hello\0"


def test_flush_goes_to_python_once_locks_are_held(fuse: MiniFuse, mds: MiniMds) -> None:
    path = fuse.point / "k"
    path.write_bytes(b"x")
    assert FLUSH not in fuse.seen
    fd = os.open(path, os.O_RDWR)
    fh = max(fuse.handles)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mds.client.fuse_bind(fh, fuse.files[fuse.names[b"k"]], 1 | 16)
    os.close(fd)
    assert FLUSH in fuse.seen


def test_names_and_attributes_left_in_the_engine(fuse: MiniFuse, mds: MiniMds) -> None:
    """A real kernel: what is put is answered in C, a write ends it, what is dropped is asked of Python again."""
    path = fuse.point / "kept"
    path.write_bytes(b"x" * 10)
    ino, client = fuse.names[b"kept"], mds.client
    file = fuse.files[ino]
    file.take_dirty(10)

    def put() -> None:
        assert client.fuse_put_attr(file, ino, 0, fuse._attr(ino)) == 0
        assert client.fuse_put_attr(None, 1, 0, fuse._attr(1)) == 0
        assert client.fuse_put_name(1, b"kept", ino) == 0
        assert client.fuse_put_name(1, b"none", 0) == 0

    put()
    fuse.seen.clear()
    for _ in range(5):
        assert path.stat().st_size == 10
        assert not (fuse.point / "none").exists()
    assert not {LOOKUP, GETATTR} & set(fuse.seen)
    with path.open("ab", buffering=0) as f:
        f.write(b"y" * 10)
    assert path.stat().st_size == 20
    assert LOOKUP in fuse.seen
    file.take_dirty(10)
    put()
    fuse.seen.clear()
    assert path.stat().st_size == 20
    assert LOOKUP not in fuse.seen
    assert not client.fuse_drop_name(1, b"kept")
    assert path.stat().st_size == 20
    assert LOOKUP in fuse.seen
    assert client.fuse_drop_attr(ino) >= 6
    assert client.fuse_drop_attr(ino) == 0
    assert client.counters()["fuse_kept"] >= 10


def test_forgets_reach_python_in_batches(fuse: MiniFuse) -> None:
    for i in range(20):
        (fuse.point / f"f{i}").write_bytes(b"x")
    Path("/proc/sys/vm/drop_caches").write_text("2")
    fuse.wait_seen(42)
    assert {ino for ino, count in fuse.forgotten if count >= 1} <= set(fuse.names.values())


def test_touched_ranges_are_reported(fuse: MiniFuse) -> None:
    path = fuse.point / "q"
    path.write_bytes(noise(8192))
    file = fuse.files[fuse.names[b"q"]]
    assert file.take_touched() == [(0, 8192)]
    assert file.take_touched() == []
    for i in range(70):
        with path.open("r+b") as f:
            f.seek(i * 10)
            f.write(b"y")
    assert file.take_touched() is None
    assert file.take_touched() == []


def test_a_dead_server_stalls_only_for_a_moment(fuse: MiniFuse, mds: MiniMds) -> None:
    path = fuse.point / "v"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, noise(10_000))
        os.fsync(fd)
        mds.servers[2].stop()
        os.pwrite(fd, b"zz", 5)
        os.fsync(fd)
        assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 1
    finally:
        os.close(fd)
    assert path.read_bytes()[:8] == noise(10_000)[:5] + b"zz" + noise(10_000)[7:8]


def test_a_blocked_chunk_stalls_only_its_requests(fuse: MiniFuse, mds: MiniMds) -> None:
    """P6: others on the same mount go on while one write waits for a map."""
    stuck = fuse.point / "stuck"
    stuck.write_bytes(noise(100))
    ino = fuse.names[b"stuck"]
    policy = mds.policy
    mds.policy = lambda event: True if event.kind == lib.VST_EV_REPLICA_FAILED and event.ino == ino else policy(event)
    mds.servers[1].faults.on_request = lambda f: (
        8 if f.type == 6 and f.chunk_id == mds.inodes[ino].chunks[0].chunk_id else None
    )
    writer = threading.Thread(target=stuck.write_bytes, args=(noise(100, 2),))
    writer.start()
    mds.wait_event(lib.VST_EV_REPLICA_FAILED)
    (fuse.point / "free").write_bytes(noise(CHUNK_BYTES))
    assert (fuse.point / "free").read_bytes() == noise(CHUNK_BYTES)
    assert stat.S_ISREG((fuse.point / "stuck").stat().st_mode)
    assert writer.is_alive()
    mds.servers[1].faults.on_request = None
    mds.install(ino, 0)
    writer.join(20)
    assert not writer.is_alive()
    assert stuck.read_bytes() == noise(100, 2)


@pytest.mark.parametrize("direct", [False, True])
def test_fio_verifies(mds: MiniMds, tmp_path: Path, direct: bool) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    with MiniFuse(mds, point, open_flags=1 | 64 if direct else 0, bind_flags=32 if direct else 0):
        options = ["--size=6m", "--verify=crc32c", "--ioengine=psync", "--fallocate=none", f"--direct={int(direct)}"]
        fio(point / "f", "--rw=randwrite", "--bs=4k", *options)
        fio(point / "g", "--rw=write", "--bsrange=4k-512k", "--end_fsync=1", *options)
        options[2] = "--ioengine=libaio"
        fio(point / "h", "--rw=randrw", "--bsrange=4k-64k", "--iodepth=16", *options)
