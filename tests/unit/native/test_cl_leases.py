"""The client engine: what leases and sessions let it do, and what happens to requests when they end."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.native import cl, lib
from vstor.proto.wire_gen import FrameType

from tests.helpers.clworld import (
    APPEND,
    DURABLE,
    EXCLUSIVE,
    NONE,
    READ,
    SHARED,
    SYNC,
    WRITE,
    cluster,
    noise,
    read,
    synced,
    wait_parked,
)
from tests.helpers.minimds import CHUNK_BYTES, EXPIRY_MS, MiniMds, boottime_ms

# --- leases ----------------------------------------------------------------------------------------------


def test_requests_wait_for_the_lease_they_need(mds: MiniMds) -> None:
    file = mds.new_file(size=4096, lease=NONE)
    reading = mds.submit(file, READ, 0, 10, bytearray(10))
    event = mds.wait_event(lib.VST_EV_NEED_LEASE)
    assert (event.ino, event.write) == (1, 0)
    writing = mds.submit(file, WRITE, 0, 3, b"abc")
    assert mds.wait_event(lib.VST_EV_NEED_LEASE, count=2).write == 1
    file.set_lease(SHARED, 0)
    assert mds.result(reading) == 10
    assert writing not in mds.done
    file.set_lease(EXCLUSIVE, 0)
    assert mds.result(writing) == 3


def test_a_lease_that_cannot_be_had_fails_what_waits(mds: MiniMds) -> None:
    file = mds.new_file(size=4096, lease=NONE)
    cookie = mds.submit(file, READ, 0, 10, bytearray(10))
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    file.fail(0xFFFFFFFF, errno.EACCES)
    assert mds.result(cookie) == -errno.EACCES


def test_lowering_drains_what_runs(mds: MiniMds) -> None:
    file = mds.new_file()
    for cs in mds.servers.values():
        cs.faults.delay_s = 0.05
    cookie = mds.submit(file, WRITE, 0, 4096, noise(4096))
    file.set_lease(NONE, 42)
    assert mds.wait_event(lib.VST_EV_DRAINED).cookie == 42
    assert mds.done[cookie] == 4096, "drained before the write was done"
    file.set_lease(NONE, 43)
    assert mds.wait_event(lib.VST_EV_DRAINED, count=2).cookie == 43
    file.io(SYNC, 0, 0)  # needs none
    assert all(blocks for blocks in synced(mds, 1, 0))


@pytest.mark.parametrize("flags", [0, DURABLE])
def test_a_write_that_ends_after_the_lease_was_lost(flags: int) -> None:
    """Its chunk may be made equal to another replica, or be replaced: a sync under the next lease would prove nothing."""
    with cluster(io_timeout_ms=20_000) as mds:
        file = mds.new_file()
        file.io(WRITE, 0, 4096, noise(4096))
        file.io(SYNC, 0, 0)
        arrived = threading.Semaphore(0)
        before = [len(cs.requests) for cs in mds.servers.values()]

        def hold(frame: Any) -> bool:
            if frame.type == FrameType.WRITE:
                arrived.release()
            return frame.type == FrameType.WRITE  # type: ignore[no-any-return]

        for cs in mds.servers.values():
            cs.faults.hold = hold
        cookie = mds.submit(file, WRITE, 4096, 4096, noise(4096, 2), flags)
        for _ in mds.servers:
            assert arrived.acquire(timeout=20)
        file.set_lease(NONE, 0)
        file.drop_chunks(0)
        file.set_lease(EXCLUSIVE, 0)
        for cs in mds.servers.values():
            cs.release()
        if flags & DURABLE:
            mds.wait_event(lib.VST_EV_NEED_LEASE)
            file.set_lease(EXCLUSIVE, 0)
        assert mds.result(cookie) == 4096
        sent = [
            sum(kind == FrameType.WRITE for kind, _chunk, _version in cs.requests[n:])
            for cs, n in zip(mds.servers.values(), before, strict=True)
        ]
        if flags & DURABLE:
            assert sent == [2, 2, 2], "it was not promised yet: once more, under the next lease"
        else:
            assert sent == [1, 1, 1], "what others have written since is not undone"
            with pytest.raises(OSError, match="Input/output"):
                file.io(SYNC, 0, 0)
        file.io(SYNC, 0, 0)


def test_a_gap_is_not_cleared_where_others_have_written_since(mds: MiniMds) -> None:
    """A write far behind the end waits for its gap to be cleared; under the next lease the end is elsewhere."""
    file = mds.new_file()
    file.io(WRITE, 0, 8192, noise(8192))
    file.io(SYNC, 0, 0)
    file.set_size(10)  # what comes behind is yet to be written by another client
    file.forget_maps(0, 0xFFFFFFFF)
    asked = threading.Event()

    def no_map(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_NEED_MAP and event.index == 0:
            asked.set()
            return True
        return False

    mds.policy = no_map
    cookie = mds.submit(file, WRITE, 2 * CHUNK_BYTES, 4096, noise(4096, 2))
    assert asked.wait(20)
    file.set_lease(NONE, 0)
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    file.set_size(8192)
    file.set_lease(EXCLUSIVE, 0)
    mds.policy = lambda event: False
    mds.install(1, 0)
    mds.wait_event(lib.VST_EV_NEED_LEASE, count=2)  # the write itself
    file.set_lease(EXCLUSIVE, 0)
    assert mds.result(cookie) == 4096
    assert read(file, 0, 8192) == noise(8192)
    assert read(file, 8192, 100) == bytes(100)


@pytest.mark.parametrize("grown", [False, True])
def test_an_append_whose_place_another_client_has_taken_fails(mds: MiniMds, grown: bool) -> None:
    """Its place was chosen under a lease that was lost: under the next one another client's data may be there."""
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    file.io(SYNC, 0, 0)
    file.forget_maps(0, 0xFFFFFFFF)
    asked = threading.Event()

    def no_map(event: cl.Event) -> bool:
        asked.set()
        return event.kind == lib.VST_EV_NEED_MAP

    mds.policy = no_map
    cookie = mds.submit(file, WRITE, 0, 100, noise(100, 2), APPEND)
    assert asked.wait(20)
    file.set_lease(NONE, 0)
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    file.set_size(4096 + 50 * grown)
    file.set_lease(EXCLUSIVE, 0)
    mds.policy = lambda event: False
    mds.install(1, 0)
    assert mds.result(cookie) == (-errno.EIO if grown else 100)


def test_drained_comes_after_every_answer(mds: MiniMds) -> None:
    """A recall goes on at DRAINED: who is told of a write only after that would see another client's data as older than its own."""
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    for cs in mds.servers.values():
        cs.faults.delay_s = 0.02
    cookies = {mds.submit(file, WRITE, i * 4096, 4096, noise(4096, i)) for i in range(8)}
    file.set_lease(NONE, 42)
    mds.wait_event(lib.VST_EV_DRAINED)
    assert all(mds.result(cookie) == 4096 for cookie in cookies)
    order = [e.kind for e in mds.events if e.kind == lib.VST_EV_DRAINED or e.cookie in cookies]
    assert order == [lib.VST_EV_IO_DONE] * 8 + [lib.VST_EV_DRAINED]


def test_nothing_starts_after_the_session_has_ended(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 4096, noise(4096))
    mds.client.set_lease_until(boottime_ms() - 1)
    sent = sum(len(cs.requests) for cs in mds.servers.values())
    buf = bytearray(4096)
    cookie = mds.submit(file, READ, 0, 4096, buf)
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    assert sum(len(cs.requests) for cs in mds.servers.values()) == sent
    assert cookie not in mds.done
    mds.client.set_lease_until(boottime_ms() + 60_000)
    assert mds.result(cookie) == 4096
    assert bytes(buf) == noise(4096)


def test_holes_are_forgotten_with_the_lease(mds: MiniMds) -> None:
    """Another client may write where a hole was."""
    file = mds.new_file(size=CHUNK_BYTES)
    assert read(file, 0, 10) == bytes(10)
    file.set_lease(NONE, 1)
    mds.wait_event(lib.VST_EV_DRAINED)
    other = mds.chunk(1, 0, make=True)
    assert other is not None
    file.set_lease(SHARED, 0)
    before = mds.count_events(lib.VST_EV_NEED_MAP)
    assert read(file, 0, 10) == bytes(10)
    assert mds.count_events(lib.VST_EV_NEED_MAP) == before + 1


# --- sessions --------------------------------------------------------------------------------------------


def test_a_refused_key_is_asked_for_again(mds: MiniMds) -> None:
    file = mds.new_file()
    mds.servers[1].faults.refuse_hello = ErrorCode.EXPIRED

    def policy(event: cl.Event) -> bool:
        if event.kind == lib.VST_EV_NEED_CS and event.cs_id == 1 and mds.count_events(lib.VST_EV_NEED_CS) > 3:
            mds.servers[1].faults.refuse_hello = 0
        return False

    mds.policy = policy
    assert file.io(WRITE, 0, 10, noise(10)) == 10
    assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 0, "a key is not the server's fault"


def test_a_server_that_does_not_know_the_key_is_not_trusted(mds: MiniMds) -> None:
    """Its HELLO_ACK cannot be right: no data goes to it."""
    impostor = mds.servers[1]
    real = mds.cs_keys[1] = impostor.cs_key  # what the MDS knows, also when it is asked again
    mds.give_key(1)
    impostor.cs_key = os.urandom(32)
    file = mds.new_file()
    cookie = mds.submit(file, WRITE, 0, 10, noise(10))
    mds.wait_event(lib.VST_EV_NEED_CS, count=3)
    assert not [r for r in impostor.requests if r[0] != FrameType.HELLO]
    impostor.cs_key = real
    assert mds.result(cookie) == 10


def test_sessions_are_renewed_without_disturbing_what_runs() -> None:
    """After an hour new chunks can no longer be opened under the old key; writes to open ones must not be taken for failed."""
    with cluster(io_timeout_ms=20_000) as mds:
        file = mds.new_file()
        file.io(WRITE, 0, 4096, noise(4096))
        first = mds.inodes[1].chunks[0].chunk_id
        mds.expiry_ms = EXPIRY_MS + 1
        for cs in mds.servers.values():
            cs.expiry_min_ms = EXPIRY_MS + 1
            cs.faults.hold = lambda frame: frame.type == FrameType.WRITE and frame.chunk_id == first
        cookies = [mds.submit(file, WRITE, i * 4096, 4096, noise(4096, i)) for i in range(100)]
        other = mds.submit(file, WRITE, CHUNK_BYTES, 4096, noise(4096))  # its OPENs are refused, and new keys fetched
        mds.wait_event(lib.VST_EV_NEED_CS, count=6)
        for _ in range(3):  # the keys are in, and the engine had its turns with them
            file.set_size(file.size)
        assert not set(cookies) & set(mds.done)
        for cs in mds.servers.values():
            cs.release()
        assert [mds.result(c) for c in [*cookies, other]] == [4096] * 101
        for cs in mds.servers.values():
            sent = sum((kind, chunk) == (FrameType.WRITE, first) for kind, chunk, _version in cs.requests)
            assert sent == 101, "what ran when the key was renewed was cut off and sent again"
        cookies += [mds.submit(file, WRITE, i * 4096, 4096, noise(4096, i)) for i in range(100, 200)]
        assert all(mds.result(c) == 4096 for c in cookies)
        assert mds.count_events(lib.VST_EV_REPLICA_FAILED) == 0
        assert mds.client.counters()["reconnects"] == 0
        assert read(file, 0, CHUNK_BYTES)[: 200 * 4096] == b"".join(noise(4096, i) for i in range(200))


def test_counters_show_what_waits(mds: MiniMds) -> None:
    file = mds.new_file(size=4096, lease=NONE)
    cookies = [mds.submit(file, READ, 0, 10, bytearray(10)) for _ in range(3)]
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    wait_parked(mds, 3)
    assert mds.client.counters()["inflight"] == 3
    file.set_lease(SHARED, 0)
    assert [mds.result(c) for c in cookies] == [10, 10, 10]
    wait_parked(mds, 0)
    assert mds.client.counters()["reads"] == 3


def test_stop_ends_everything(mds: MiniMds) -> None:
    file = mds.new_file()
    file.io(WRITE, 0, 10, noise(10))
    for cs in mds.servers.values():
        cs.faults.silent_on = {FrameType.READ, FrameType.WRITE}
    other = mds.new_file(2, lease=NONE)
    cookies = [
        mds.submit(file, READ, 0, 10, bytearray(10)),
        mds.submit(file, WRITE, 0, 10, noise(10)),
        mds.submit(other, WRITE, 0, 10, noise(10)),
    ]
    mds.wait_event(lib.VST_EV_NEED_LEASE)
    mds.client.stop()
    assert [mds.result(c) for c in cookies] == [-errno.ESHUTDOWN] * 3
    assert file.submit(READ, 0, 10, bytearray(10), 0, 99) == -errno.ESHUTDOWN
