"""The client engine against the real chunk server engine: what the in-memory server promises must hold for the real one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vstor.native import cl, lib
from vstor.proto.wire_gen import AuthMode

from tests.helpers.dataclient import KEY_ID
from tests.helpers.minifuse import MiniFuse, fio
from tests.helpers.minimds import CHUNK_BYTES, MiniMds
from tests.helpers.realcs import RealCs
from tests.unit.native.test_cl import APPEND, DURABLE, PUNCH, READ, SYNC, WRITE, noise, read, replicas_of


@contextlib.contextmanager
def real_cluster(directory: Path, count: int = 3, **options: Any) -> Iterator[MiniMds]:
    with contextlib.ExitStack() as stack:
        servers = []
        for i in range(count):
            (directory / f"cs{i}").mkdir()
            servers.append(stack.enter_context(RealCs(str(directory / f"cs{i}"), i + 1)))
        yield stack.enter_context(MiniMds(servers, b"t" * 32, key_id=KEY_ID, io_timeout_ms=5000, **options))


@pytest.fixture
def mds(tmp_path: Path) -> Iterator[MiniMds]:
    with real_cluster(tmp_path) as made:
        yield made


def restart(mds: MiniMds, cs_id: int) -> None:
    mds.servers[cs_id].stop()
    mds.servers[cs_id].start()
    mds.give_key(cs_id)


def stay(mds: MiniMds) -> None:
    """From now on failed replicas stay in the map: they are tried again at the same version."""

    def policy(event: cl.Event) -> bool:
        if event.kind != lib.VST_EV_REPLICA_FAILED:
            return False
        mds.install(event.ino, event.index)
        return True

    mds.policy = policy


@pytest.mark.parametrize("mode", list(AuthMode))
def test_write_read_punch_sync(tmp_path: Path, mode: AuthMode) -> None:
    with real_cluster(tmp_path, auth_mode=mode) as mds:
        file = mds.new_file()
        length = 2 * CHUNK_BYTES + 12_345
        data = bytearray(noise(length))
        assert file.io(WRITE, 77, length, data) == length
        assert read(file, 0, length + 1000) == bytes(77) + bytes(data)
        assert file.io(WRITE, 0, 5, b"abcde", APPEND) == 5
        file.io(SYNC, 0, 0)
        file.io(PUNCH, 10_077, 100_000)
        data[10_000:110_000] = bytes(100_000)
        assert read(file, 0, length + 1000) == bytes(77) + bytes(data) + b"abcde"
        for index in range(3):
            assert len(set(replicas_of(mds, 1, index, 0, CHUNK_BYTES))) == 1


def test_a_restart_loses_nothing_that_was_synced(mds: MiniMds) -> None:
    stay(mds)
    file = mds.new_file()
    file.io(WRITE, 0, 300_000, noise(300_000))
    file.io(SYNC, 0, 0)
    file.io(WRITE, 300_000, 4096, noise(4096, 2), DURABLE)
    for cs_id in (1, 2, 3):
        restart(mds, cs_id)
    assert read(file, 0, 400_000) == noise(300_000) + noise(4096, 2)


def test_a_replica_that_restarts_with_unsynced_data_leaves_the_map(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 300_000, noise(300_000))
    restart(mds, 2)
    file.io(SYNC, 0, 0)
    assert mds.wait_event(lib.VST_EV_REPLICA_FAILED).cs_id == 2
    assert read(file, 0, 300_000) == noise(300_000)


def test_a_stale_version_is_refused_and_fetched_again(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 10_000, noise(10_000))
    mds.raise_version(1, 0)
    assert file.io(WRITE, 5000, 3, b"new") == 3
    mds.raise_version(1, 0)
    assert read(file, 4998, 7) == noise(10_000)[4998:5000] + b"new" + noise(10_000)[5003:5005]
    assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 0


def test_raw_copy_of_a_replica(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 500_000, noise(500_000))
    chunk = mds.inodes[1].chunks[0]
    raw = cl.RawChunk(mds.client, 2, chunk.chunk_id, 1, mds.ticket(chunk, CHUNK_BYTES))
    buf = bytearray(CHUNK_BYTES)
    assert not raw.read_into(0, buf)
    assert bytes(buf[:500_000]) == noise(500_000)
    assert raw.stat().written_blocks >= 500_000 // 4096
    assert len(raw.granules()) == 1
    assert raw.granules()[0][0] == 1
    raw.sync()


@pytest.mark.parametrize("seed", [11, 12])
def test_random_requests_with_restarts(mds: MiniMds, seed: int) -> None:
    rng = random.Random(seed)
    stay(mds)
    size = 3 * CHUNK_BYTES
    file = mds.new_file(size=size)
    expected = bytearray(size)
    for step in range(30):
        batch = []
        for i in range(rng.randrange(1, 20)):
            offset = rng.randrange(size - 1)
            length = min(rng.choice((1, 100, 4096, 50_000, 400_000)), size - offset)
            what = rng.random()
            if what < 0.5:
                data = noise(length, seed * 10_000 + step * 100 + i)
                expected[offset : offset + length] = data
                flags = DURABLE if rng.random() < 0.2 else 0
                batch.append((mds.submit(file, WRITE, offset, length, data, flags), length, data, b""))
            elif what < 0.6:
                expected[offset : offset + length] = bytes(length)
                batch.append((mds.submit(file, PUNCH, offset, length), 0, b"", b""))
            else:
                buf = bytearray(length)
                want = bytes(expected[offset : offset + length])
                batch.append((mds.submit(file, READ, offset, length, buf), length, buf, want))
        if step % 10 == 5:
            restart(mds, rng.randrange(3) + 1)
        for cookie, result, buf, want in batch:
            assert mds.result(cookie, 60) == result, f"seed {seed} step {step}"
            assert not want or bytes(buf) == want, f"seed {seed} step {step}"
    assert read(file, 0, size) == bytes(expected)
    for index in mds.inodes[1].chunks:
        assert set(replicas_of(mds, 1, index, 0, CHUNK_BYTES)) == {bytes(expected[index * CHUNK_BYTES :][:CHUNK_BYTES])}


def test_fio_verifies_on_a_mount(mds: MiniMds, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    with MiniFuse(mds, point, open_flags=1 | 64, bind_flags=32):
        options = [
            "--size=8m",
            "--verify=crc32c",
            "--fallocate=none",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=16",
        ]
        fio(point / "a", "--rw=randwrite", "--bs=4k", "--fsync=64", *options)
        fio(point / "b", "--rw=write", "--bs=1m", "--end_fsync=1", *options)
