"""The client engine against in-memory chunk servers: the real protocol over loopback, faults switched on by the test."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.native import cl, lib
from vstor.proto.wire_gen import AuthMode, Frame, FrameType

from tests.helpers.clworld import (
    APPEND,
    DURABLE,
    KEY,
    PUNCH,
    READ,
    SYNC,
    TAIL,
    WRITE,
    cluster,
    noise,
    read,
    replicas_of,
    synced,
    wait_parked,
)
from tests.helpers.fakecs import FakeCs
from tests.helpers.minimds import CHUNK_BYTES, EXPIRY_MS, SESSION_ID, MiniMds

# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AuthMode.CRC, AuthMode.SIGN, AuthMode.SECURE])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4096), (5, 11), (4090, 70_000), (CHUNK_BYTES - 100, 3 * CHUNK_BYTES + 7)]
)
def test_write_then_read(mode: AuthMode, offset: int, length: int) -> None:
    with cluster(auth_mode=mode) as mds:
        file = mds.new_file()
        data = noise(length)
        assert file.io(WRITE, offset, length, data) == length
        assert file.size == offset + length
        assert read(file, 0, offset + length + 100) == bytes(offset) + data
        for index, chunk in mds.inodes[1].chunks.items():
            copies = {mds.servers[i].data(chunk.chunk_id, 0, CHUNK_BYTES) for i in chunk.replicas}
            assert len(copies) == 1, f"replicas of chunk {index} differ"
            assert len(chunk.replicas) == 3


def test_unix_socket_is_preferred(tmp_path: Path) -> None:
    with FakeCs(1, KEY, unix=str(tmp_path / "cs1")) as near, FakeCs(2, KEY) as far, MiniMds([near, far], KEY) as mds:
        file = mds.new_file()
        file.io(WRITE, 0, 8192, noise(8192))
        for _ in range(6):
            assert read(file, 0, 4096) == noise(8192)[:4096]
        assert [r for r in far.requests if r[0] == FrameType.READ] == []


def test_holes_are_zeros(mds: MiniMds) -> None:
    file = mds.new_file(size=3 * CHUNK_BYTES)
    assert read(file, 0, 3 * CHUNK_BYTES) == bytes(3 * CHUNK_BYTES)
    file.io(WRITE, CHUNK_BYTES + 8192, 3, b"abc")
    assert read(file, CHUNK_BYTES + 4096, 8192) == bytes(4096) + b"abc" + bytes(4093)
    assert list(mds.inodes[1].chunks) == [1], "reading made chunks"


def test_read_stops_at_the_size(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 100, noise(100))
    assert read(file, 50, 1000) == noise(100)[50:]
    assert read(file, 100, 10) == b""
    file.set_size(20)
    assert read(file, 0, 100) == noise(100)[:20]


def test_append_goes_to_the_end(mds: MiniMds) -> None:
    file = mds.new_file()
    parts = [noise(3000, i) for i in range(20)]
    cookies = [mds.submit(file, WRITE, 0, 3000, part, APPEND) for part in parts]
    assert [mds.result(c) for c in cookies] == [3000] * 20
    assert read(file, 0, 100_000) == b"".join(parts)


def test_punch(mds: MiniMds) -> None:
    file = mds.new_file(size=4 * CHUNK_BYTES)
    file.io(WRITE, 0, CHUNK_BYTES + 5000, noise(CHUNK_BYTES + 5000))
    file.io(PUNCH, 10_000, 4 * CHUNK_BYTES)
    expected = noise(CHUNK_BYTES + 5000)[:10_000] + bytes(4 * CHUNK_BYTES - 10_000)
    assert read(file, 0, 4 * CHUNK_BYTES) == expected
    assert sorted(mds.inodes[1].chunks) == [0, 1], "punching a hole made a chunk"


def test_what_a_dead_writer_left_behind_the_end_is_zeros(mds: MiniMds) -> None:
    """It wrote behind the size that the MDS knows, in the last chunk; a write further on, or a size further on, must not show that."""
    left = mds.new_file()
    left.io(WRITE, 0, 3 * 4096, noise(3 * 4096))
    chunks = mds.inodes[1].chunks
    file = mds.new_file(2, size=100)
    mds.inodes[2].chunks.update(chunks)
    cookies = [mds.submit(file, WRITE, 5000, 10, b"x" * 10), mds.submit(file, WRITE, 200, 10, b"y" * 10)]
    assert [mds.result(c) for c in cookies] == [10, 10]
    expected = bytearray(5010)
    expected[:100], expected[200:210], expected[5000:] = noise(3 * 4096)[:100], b"y" * 10, b"x" * 10
    assert read(file, 0, 6000) == bytes(expected)
    file.io(PUNCH, 5010, 12_000, None, TAIL)  # as before a truncation to more
    file.set_size(3 * 4096)
    assert read(file, 0, 3 * 4096) == bytes(expected) + bytes(3 * 4096 - 5010)


def test_overlapping_writes_keep_their_order(mds: MiniMds) -> None:
    """Many at once; the file must look as if they had run one after the other."""
    file = mds.new_file()
    rng = random.Random(7)
    expected = bytearray(200_000)
    writes = []
    for i in range(200):
        offset, length = rng.randrange(150_000), rng.randrange(1, 50_000)
        data = noise(length, i)
        expected[offset : offset + length] = data
        writes.append((data, mds.submit(file, WRITE, offset, length, data)))
    for data, cookie in writes:
        assert mds.result(cookie) == len(data)
    size = file.size
    assert read(file, 0, size) == bytes(expected[:size])
    assert len(set(replicas_of(mds, 1, 0, 0, 200_000))) == 1


def test_a_read_waits_for_an_earlier_write_below_it(mds: MiniMds) -> None:
    for cs in mds.servers.values():
        cs.faults.delay_s = 0.05
    file = mds.new_file(size=CHUNK_BYTES)
    data, buf = noise(8192), bytearray(8192)
    write, got = mds.submit(file, WRITE, 4096, 8192, data), mds.submit(file, READ, 4096, 8192, buf)
    assert mds.result(got) == 8192
    assert bytes(buf) == data
    assert mds.result(write) == 8192


# --- reading with faults ---------------------------------------------------------------------------------


def test_a_corrupt_block_is_read_elsewhere_and_reported(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 40_960, noise(40_960))
    chunk = mds.inodes[1].chunks[0]
    for cs_id in chunk.replicas[:2]:
        mds.servers[cs_id].chunks[chunk.chunk_id].corrupt.add(3)
    for _ in range(3):
        assert read(file, 0, 40_960) == noise(40_960)
    event = mds.wait_event(lib.VST_EV_BAD_BLOCK)
    assert event.cs_id in chunk.replicas[:2]
    assert (event.chunk_id, event.version, event.error) == (chunk.chunk_id, 1, ErrorCode.CORRUPT)


def test_reads_keep_away_from_a_slow_disk(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 40_960, noise(40_960))
    slow = mds.servers[mds.inodes[1].chunks[0].replicas[0]]
    asked: list[int] = []
    slow.faults.on_request = lambda frame: asked.append(frame.type)
    for _ in range(9):
        read(file, 0, 4096)
    assert len(asked) == 3, "equal ones take turns"
    slow.faults.delay_s = 0.3
    for _ in range(60):
        assert read(file, 4096, 4096) == noise(40_960)[4096:8192]
    assert len(asked) <= 6


def test_corrupt_everywhere_is_an_error(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 8192, noise(8192))
    chunk = mds.inodes[1].chunks[0]
    for cs in mds.servers.values():
        cs.chunks[chunk.chunk_id].corrupt.add(1)
    with pytest.raises(OSError, match="Input/output") as caught:
        read(file, 4096, 4096)
    assert caught.value.errno == errno.EIO
    assert read(file, 0, 4096) == noise(8192)[:4096]


@pytest.mark.parametrize("mode", [AuthMode.CRC, AuthMode.SIGN])
def test_data_damaged_on_the_way_is_never_returned(mode: AuthMode) -> None:
    with cluster(auth_mode=mode) as mds:
        file = mds.new_file()
        file.io(WRITE, 0, 200_000, noise(200_000))
        mds.servers[1].faults.corrupt_reads = mds.servers[2].faults.corrupt_reads = True
        for offset in (0, 4096, 100_000):
            assert read(file, offset, 5000) == noise(200_000)[offset : offset + 5000]
        assert read(file, 0, 200_000) == noise(200_000)


def test_a_reply_to_another_kind_of_request_is_no_answer(mds: MiniMds) -> None:
    """Right request id, right tag, status 0: and still not what was asked."""
    file = mds.new_file()
    file.io(WRITE, 0, 8192, noise(8192))
    liar = mds.servers[mds.inodes[1].chunks[0].replicas[0]]
    liar.faults.answer_as = {FrameType.WRITE: FrameType.PUNCH, FrameType.READ: FrameType.PUNCH}
    assert file.io(WRITE, 0, 4096, noise(4096, 3)) == 4096
    assert mds.wait_event(lib.VST_EV_REPLICA_FAILED).cs_id == liar.cs_id
    assert read(file, 0, 8192) == noise(4096, 3) + noise(8192)[4096:]


def test_reads_go_on_while_servers_die_and_wait_when_none_is_left(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 100_000, noise(100_000))
    mds.servers[1].stop()
    mds.servers[2].stop()
    assert read(file, 0, 100_000) == noise(100_000)
    mds.servers[3].stop()
    buf = bytearray(100_000)
    cookie = mds.submit(file, READ, 0, 100_000, buf)
    mds.wait_event(lib.VST_EV_NEED_MAP, count=2)
    assert cookie not in mds.done
    mds.servers[2].start()
    assert mds.result(cookie) == 100_000
    assert bytes(buf) == noise(100_000)


def test_a_silent_server_is_left(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    for cs_id in (1, 2):
        mds.servers[cs_id].faults.silent_on = {FrameType.READ}
    for _ in range(3):
        assert read(file, 0, 4096) == noise(4096)


def test_a_stale_map_is_fetched_again(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    mds.raise_version(1, 0)
    before = mds.count_events(lib.VST_EV_NEED_MAP)
    assert read(file, 0, 4096) == noise(4096)
    assert mds.count_events(lib.VST_EV_NEED_MAP) == before + 1
    mds.raise_version(1, 0)
    assert file.io(WRITE, 100, 3, b"xyz") == 3
    assert read(file, 98, 7) == noise(4096)[98:100] + b"xyz" + noise(4096)[103:105]


def test_no_map_at_all_ends_with_the_errno_of_fail(mds: MiniMds) -> None:
    def policy(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_NEED_MAP:
            mds.inodes[event.ino].file.fail(event.index, errno.EIO)
            return True
        return False

    mds.policy = policy
    file = mds.new_file(size=CHUNK_BYTES)
    with pytest.raises(OSError, match="Input/output"):
        read(file, 0, 10)
    with pytest.raises(OSError, match="Input/output"):
        file.io(WRITE, 0, 10, b"0123456789")


# --- writing with faults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "drop", "silent", "error"])
def test_a_write_survives_a_failing_replica(mds: MiniMds, how: str) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    victim = mds.servers[mds.inodes[1].chunks[0].replicas[1]]
    if how == "stop":
        victim.stop()
    elif how == "drop":
        victim.faults.drop_on = FrameType.WRITE
    elif how == "silent":
        victim.faults.silent_on = {FrameType.WRITE}
    else:
        victim.faults.on_request = lambda f: ErrorCode.IO_ERROR if f.type == FrameType.WRITE else None
    data = noise(50_000, 2)
    cookies = [mds.submit(file, WRITE, i * 10_000, 10_000, data[i * 10_000 : (i + 1) * 10_000]) for i in range(5)]
    assert [mds.result(c) for c in cookies] == [10_000] * 5
    assert read(file, 0, 50_000) == data
    event = mds.wait_event(lib.VST_EV_REPLICA_FAILED)
    assert (event.cs_id, event.version, event.index) == (victim.cs_id, 1, 0)
    assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 1, "reported once"
    assert victim.cs_id not in mds.inodes[1].chunks[0].replicas
    assert set(replicas_of(mds, 1, 0, 0, 50_000)) == {data}


def test_writes_wait_for_a_newer_map(mds: MiniMds) -> None:
    held: list[cl.Event] = []

    def policy(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_REPLICA_FAILED:
            held.append(event)
            return True
        return False

    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    mds.policy = policy
    victim = mds.servers[2]
    victim.stop()
    cookie = mds.submit(file, WRITE, 0, 4096, noise(4096, 5))
    mds.wait_event(lib.VST_EV_REPLICA_FAILED)
    wait_parked(mds, 1)  # the others have answered
    writes = sum(r[0] == FrameType.WRITE for cs in mds.servers.values() for r in cs.requests)
    later = mds.submit(file, WRITE, 8192, 10, noise(10))
    wait_parked(mds, 2)
    assert sum(r[0] == FrameType.WRITE for cs in mds.servers.values() for r in cs.requests) == writes
    assert read(file, 4096, 10) == b""
    assert not {cookie, later} & set(mds.done)
    victim.start()
    mds.install(1, 0)  # the same version again: try once more
    assert mds.result(cookie) == 4096
    assert mds.result(later) == 10
    assert set(replicas_of(mds, 1, 0, 0, 4096)) == {noise(4096, 5)}


def test_a_replica_that_cannot_be_replaced_fails_what_needs_it(mds: MiniMds) -> None:
    """Every part of a request ends, also one whose failure comes after the answer; and the next request is answered again."""
    file = mds.new_file(chunk_bytes=4 * CHUNK_BYTES)
    file.io(WRITE, 0, 4096, noise(4096))

    def policy(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_REPLICA_FAILED:
            file.fail(event.index, errno.EROFS)
        return event.kind == lib.VST_EV_REPLICA_FAILED

    mds.policy = policy
    broken, slow = mds.servers[2], mds.servers[1]
    slow.faults.delay_s = 0.02  # answers when the failure is known
    border = 1 << 20  # of two parts
    broken.faults.hold = lambda frame: frame.type == FrameType.WRITE and frame.offset == border
    broken.faults.on_request = lambda frame: ErrorCode.IO_ERROR if frame.type == FrameType.WRITE else None
    cookie = mds.submit(file, WRITE, border - 4096, 8192, noise(8192))
    mds.wait_event(lib.VST_EV_REPLICA_FAILED)
    for _ in range(2):
        file.set_size(file.size)  # the answer is in
    broken.release()
    assert mds.result(cookie) == -errno.EROFS
    for _ in range(3):
        assert mds.result(mds.submit(file, WRITE, 0, 4096, noise(4096))) == -errno.EROFS


def test_a_full_server_makes_writers_wait(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    full = mds.servers[1]
    seen = threading.Event()

    def no_space(frame: Frame) -> int | None:
        if frame.type != FrameType.WRITE:
            return None
        seen.set()
        return ErrorCode.NO_SPACE

    full.faults.on_request = no_space
    cookie = mds.submit(file, WRITE, 0, 4096, noise(4096, 9))
    assert seen.wait(10)
    assert cookie not in mds.done
    full.faults.on_request = None
    assert mds.result(cookie) == 4096
    assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 0


def test_a_full_server_fails_writers_when_asked_to() -> None:
    with cluster(no_space_fails=True) as mds:
        file = mds.new_file()
        mds.servers[3].faults.on_request = lambda f: ErrorCode.NO_SPACE if f.type == FrameType.WRITE else None
        with pytest.raises(OSError, match="No space"):
            file.io(WRITE, 0, 10, b"0123456789")
        assert file.size == 0
        mds.servers[3].faults.on_request = None
        assert file.io(WRITE, 0, 3, b"abc", APPEND) == 3
        assert file.size == 3, "a failed write left a gap for the next append"


def test_damage_on_the_way_to_the_server_is_sent_again(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    bad = iter([ErrorCode.CRC_MISMATCH] * 2)
    mds.servers[2].faults.on_request = lambda f: next(bad, None) if f.type == FrameType.WRITE else None
    assert file.io(WRITE, 0, 4096, noise(4096, 3)) == 4096
    assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 0
    assert set(replicas_of(mds, 1, 0, 0, 4096)) == {noise(4096, 3)}


# --- sync ------------------------------------------------------------------------------------------------


def test_sync_reaches_every_replica_once(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 3 * CHUNK_BYTES, noise(3 * CHUNK_BYTES))
    assert all(not blocks for index in range(3) for blocks in synced(mds, 1, index))
    file.io(SYNC, 0, 0)
    assert all(len(blocks) == CHUNK_BYTES // 4096 for index in range(3) for blocks in synced(mds, 1, index))
    frames = [r for cs in mds.servers.values() for r in cs.requests if r[0] == FrameType.SYNC]
    assert len(frames) == 3, "one frame for each chunk server"
    file.io(SYNC, 0, 0)
    assert len([r for cs in mds.servers.values() for r in cs.requests if r[0] == FrameType.SYNC]) == 3, (
        "nothing was dirty"
    )


def test_durable_writes_need_no_sync(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096), DURABLE)
    assert all(blocks for blocks in synced(mds, 1, 0))
    file.io(SYNC, 0, 0)
    assert not [r for cs in mds.servers.values() for r in cs.requests if r[0] == FrameType.SYNC]


def test_sync_and_durable_writes_wait_for_the_commit(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 5000, noise(5000))
    file.io(SYNC, 0, 0)
    assert mds.inodes[1].committed == [(5000, [0])]
    file.io(WRITE, 0, 100, noise(100))
    file.io(SYNC, 0, 0)
    assert len(mds.inodes[1].committed) == 1, "an mtime alone raises no COMMIT"
    file.io(WRITE, 5000, 10, noise(10), DURABLE)
    assert mds.inodes[1].committed[1] == (5010, [])


def test_a_failed_commit_fails_the_sync(mds: MiniMds) -> None:
    def policy(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_COMMIT:
            assert mds.inodes[1].file.committed(event.cookie, errno.EDQUOT)
            return True
        return False

    file = mds.new_file()
    mds.policy = policy
    file.io(WRITE, 0, 10, noise(10))
    with pytest.raises(OSError, match="quota"):
        file.io(SYNC, 0, 0)
    mds.policy = lambda event: False
    file.io(SYNC, 0, 0)
    assert mds.inodes[1].committed == [(10, [0])]


def test_a_restarted_replica_is_reported_by_sync(mds: MiniMds) -> None:
    """B15: it acknowledged, lost it in a restart, and another replica still has it."""
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    mds.servers[2].stop()
    mds.servers[2].start(lose=True)
    file.io(SYNC, 0, 0)
    event = mds.wait_event(lib.VST_EV_REPLICA_FAILED)
    assert event.cs_id == 2
    assert 2 not in mds.inodes[1].chunks[0].replicas
    assert all(blocks for blocks in synced(mds, 1, 0))


def test_data_lost_on_all_replicas_fails_the_sync_once() -> None:
    with cluster(1) as mds:
        file = mds.new_file()
        file.io(WRITE, 0, 4096, noise(4096))
        mds.policy = lambda event: event.kind == lib.VST_EV_REPLICA_FAILED and (mds.install(1, 0), True)[1]
        mds.servers[1].stop()
        mds.servers[1].start(lose=True)
        with pytest.raises(OSError, match="Input/output"):
            file.io(SYNC, 0, 0)
        file.io(SYNC, 0, 0)
        file.io(WRITE, 0, 4096, noise(4096, 2))
        file.io(SYNC, 0, 0)
        assert all(blocks for blocks in synced(mds, 1, 0))


def test_sync_waits_for_writes_before_it(mds: MiniMds) -> None:
    file = mds.new_file()
    for cs in mds.servers.values():
        cs.faults.delay_s = 0.03
    cookies = [mds.submit(file, WRITE, i * 4096, 4096, noise(4096, i)) for i in range(8)]
    sync = mds.submit(file, SYNC, 0, 0)
    assert mds.result(sync) == 0
    assert all(mds.result(c) == 4096 for c in cookies)
    assert all(len(blocks) == 8 for blocks in synced(mds, 1, 0))


# --- raw -------------------------------------------------------------------------------------------------


def test_raw_calls(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 8192, 100_000, noise(100_000))
    chunk = mds.inodes[1].chunks[0]
    mds.give_key(1)
    raw = cl.RawChunk(mds.client, 1, chunk.chunk_id, chunk.version, mds.ticket(chunk, CHUNK_BYTES))
    buf = bytearray(100_000)
    assert raw.read_into(8192, buf) is False
    assert bytes(buf) == noise(100_000)
    assert raw.read_into(0, memoryview(buf)[:4096]) is True
    assert bytes(buf[:4096]) == bytes(4096)
    stat = raw.stat()
    assert (stat.chunk_id, stat.chunk_version, stat.written_blocks) == (chunk.chunk_id, 1, 25)
    assert raw.granules() == [(1, 1)]
    import hashlib

    assert raw.hash(8192, 100_000) == hashlib.sha256(noise(100_000)).digest()
    raw.sync()
    assert mds.servers[1].chunks[chunk.chunk_id].synced


def test_raw_failures_are_vstor_errors(mds: MiniMds) -> None:
    chunk = mds.chunk(mds.new_file() and 1, 0, make=True)
    assert chunk is not None
    chunk.void = False
    raw = cl.RawChunk(mds.client, 1, chunk.chunk_id, 1, mds.ticket(chunk, CHUNK_BYTES))
    with pytest.raises(VstorError) as caught:
        raw.stat()
    assert caught.value.code == ErrorCode.NO_CHUNK
    with pytest.raises(VstorError) as caught:
        raw.granules()
    assert caught.value.code == ErrorCode.NO_CHUNK
    mds.servers[1].stop()
    with pytest.raises(VstorError) as caught:
        raw.stat()
    assert caught.value.code == ErrorCode.DISCONNECTED


def test_a_new_session_replaces_the_connection(mds: MiniMds) -> None:
    """Tickets name their session: those of a new one are refused on a connection of the old one."""
    chunk = mds.chunk(mds.new_file() and 1, 0, make=True)
    assert chunk is not None
    mds.give_key(1)
    cl.RawChunk(mds.client, 1, chunk.chunk_id, 1, mds.ticket(chunk, CHUNK_BYTES)).stat()
    server = mds.servers[1]
    mds.client.set_cs(1, [server.address], SESSION_ID + 1, EXPIRY_MS, server.key_for(SESSION_ID + 1, EXPIRY_MS))
    from vstor.proto.tickets import make_ticket

    ticket = make_ticket(
        KEY, 1, session_id=SESSION_ID + 1, chunk_id=chunk.chunk_id, chunk_version=1, chunk_bytes=CHUNK_BYTES,
        expiry_ms=EXPIRY_MS, write=False,
    )  # fmt: skip
    assert cl.RawChunk(mds.client, 1, chunk.chunk_id, 1, ticket).stat().chunk_id == chunk.chunk_id


# --- everything at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_faults_never_change_what_is_read(seed: int) -> None:
    """Writes, reads and syncs while servers restart and connections drop: the file is what was written."""
    rng = random.Random(seed)
    with cluster(3) as mds:
        mds.policy = lambda event: event.kind == lib.VST_EV_REPLICA_FAILED and (mds.install(1, event.index), True)[1]
        file = mds.new_file()
        size = 3 * CHUNK_BYTES
        expected = bytearray(size)
        file.io(WRITE, size - 1, 1, b"\0")
        for step in range(60):
            cs = mds.servers[rng.randrange(3) + 1]
            fault = rng.randrange(6)
            if fault == 0:
                cs.stop()
                cs.start()
            elif fault == 1:
                cs.faults.drop_on = rng.choice([FrameType.READ, FrameType.WRITE, FrameType.OPEN])
            batch = []
            for i in range(rng.randrange(1, 12)):
                offset, length = rng.randrange(size - 1), rng.randrange(1, 300_000)
                length = min(length, size - offset)
                if rng.random() < 0.5:
                    data = noise(length, seed * 100_000 + step * 100 + i)
                    expected[offset : offset + length] = data
                    batch.append((mds.submit(file, WRITE, offset, length, data), length, data, b""))
                else:
                    buf = bytearray(length)
                    want = bytes(expected[offset : offset + length])
                    batch.append((mds.submit(file, READ, offset, length, buf), length, buf, want))
            cs.faults.drop_on = None
            for cookie, length, buf, want in batch:
                assert mds.result(cookie) == length, f"seed {seed} step {step}"
                if want:
                    assert bytes(buf) == want, f"seed {seed} step {step}"
        assert read(file, 0, size) == bytes(expected)
        for index in range(3):
            assert set(replicas_of(mds, 1, index, 0, CHUNK_BYTES)) == {
                bytes(expected[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
            }
