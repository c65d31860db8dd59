"""vstor-csd as a process: serving, orders, restarts, damage, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from vstor.clock import boottime_ms, unix_ms
from vstor.codes_gen import ErrorCode
from vstor.cs import repository
from vstor.errors import VstorError
from vstor.native.cl import Client, File, RawChunk
from vstor.proto import messages as m
from vstor.proto.tickets import session_key

from tests.component.csd_world import CHUNK_BYTES, SESSION, Csd, Mds, world

CHUNK = 0xABC123
WRITE, READ, SYNC = 2, 1, 3
EXCLUSIVE = 2
COMMIT = 10
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ETC", "RUN", "LOG", "STATE"):
        monkeypatch.setenv(f"VSTOR_{name}", str(tmp_path / name))


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Mds, list[Csd]]]:
    async with world(tmp_path, 2) as (mds, daemons):
        yield mds, daemons


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as made:
        made.start()
        made.set_lease_until(boottime_ms() + 600_000)
        yield made


def reach(client: Client, mds: Mds, cs_id: int) -> None:
    expiry_ms = unix_ms() + 600_000
    key = session_key(mds.cs_keys[cs_id], SESSION, expiry_ms)
    client.set_cs(cs_id, mds.registered[cs_id].addresses, SESSION, expiry_ms, key)


async def write(client: Client, mds: Mds, cs_ids: list[int], data: bytes, offset: int = 0, version: int = 1) -> None:
    """Write and sync through the client engine, making the chunk where it is not there."""
    for cs_id in cs_ids:
        reach(client, mds, cs_id)
    file = client.new_file(1, CHUNK_BYTES, CHUNK_BYTES)
    file.set_lease(EXCLUSIVE, 0)
    file.set_chunk(0, CHUNK, version, 1, True, cs_ids, mds.ticket(CHUNK, version, write=True, create=True))
    assert await asyncio.to_thread(file.io, WRITE, offset, len(data), bytearray(data)) == len(data)
    assert await committing(client, file, asyncio.to_thread(file.io, SYNC, 0, 0)) == 0
    await asyncio.to_thread(file.close)


async def committing(client: Client, file: File, work: Coroutine[Any, Any, int]) -> int:
    """Await `work`, saying yes to every COMMIT that it waits for."""
    loop = asyncio.get_running_loop()

    def answer() -> None:
        while (event := client.next_event()) is not None:
            if event.kind == COMMIT:
                file.take_dirty(16)
                file.committed(event.cookie, 0)

    loop.add_reader(client.event_fd, answer)
    try:
        return await work
    finally:
        loop.remove_reader(client.event_fd)


async def read(client: Client, mds: Mds, cs_id: int, offset: int, length: int, version: int = 1) -> bytes:
    reach(client, mds, cs_id)
    raw = RawChunk(client, cs_id, CHUNK, version, mds.ticket(CHUNK, version))
    buffer = bytearray(length)
    await asyncio.to_thread(raw.read_into, offset, buffer)
    return bytes(buffer)


def inventory(mds: Mds, cs_id: int) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<QII", mds.inventories[cs_id]))


def blocks(seed: int, count: int) -> bytes:
    return b"".join(hashlib.shake_128(f"{seed} {i}".encode()).digest(4096) for i in range(count))


async def test_data_survives_kill_and_restart(two: tuple[Mds, list[Csd]], client: Client) -> None:
    mds, daemons = two
    for daemon in daemons:
        await daemon.start()
    ids = [d.cs_id for d in daemons]
    small, large = blocks(1, 3), blocks(2, 256)
    await write(client, mds, ids, large, 1 << 20)
    await write(client, mds, ids, small[:5000], 100)
    heartbeat = await mds.heartbeat_where(ids[0], lambda h: h.replicas == 1)
    assert heartbeat.free_bytes > 0
    await daemons[0].end(signal.SIGKILL)
    assert await daemons[1].end() == 0
    for daemon in daemons:
        await daemon.start()
        assert inventory(mds, daemon.cs_id) == [(CHUNK, 1, 0)]
        assert await read(client, mds, daemon.cs_id, 100, 5000) == small[:5000]
        assert await read(client, mds, daemon.cs_id, 1 << 20, 1 << 20) == large


async def test_orders(two: tuple[Mds, list[Csd]], client: Client) -> None:
    mds, (first, second) = two
    await first.start()
    await second.start()
    a, b = first.cs_id, second.cs_id
    data = blocks(3, 300)
    await write(client, mds, [a], data)
    # 1. a copy in two passes, a write in between
    source = [mds.source(a, CHUNK, 1)]
    done = await mds.order(b, m.OrderReplicate(CHUNK, 1, CHUNK_BYTES, source, 0, 0, False, 0))
    assert (done.status, done.bytes) == (0, 2 << 20), done
    with pytest.raises(VstorError):
        await read(client, mds, b, 0, 4096)  # not served before it is complete
    newer = blocks(4, 1)
    await write(client, mds, [a], newer, 4096)
    assert (await mds.order(a, m.OrderSetVersion(CHUNK, 2))).status == 0
    source = [mds.source(a, CHUNK, 2)]
    done = await mds.order(b, m.OrderReplicate(CHUNK, 2, CHUNK_BYTES, source, 0, done.value, True, 0))
    assert (done.status, done.bytes) == (0, 1 << 20), done
    assert await read(client, mds, b, 0, 16384, 2) == data[:4096] + newer + data[8192:16384]
    # 2. versions: the old one is refused, an old leader too
    with pytest.raises(VstorError) as caught:
        await read(client, mds, b, 0, 4096, 1)
    assert caught.value.code is ErrorCode.STALE
    assert (await mds.order(b, m.OrderSetVersion(CHUNK, 3), epoch=mds.epoch - 1)).status == ErrorCode.NOT_LEADER
    # 3. a stale replica catches up, taking only what changed
    assert (await mds.order(a, m.OrderSetVersion(CHUNK, 3))).status == 0
    await write(client, mds, [a], blocks(5, 2), 1 << 20, version=3)
    source = [mds.source(a, CHUNK, 3)]
    done = await mds.order(b, m.OrderReplicate(CHUNK, 3, CHUNK_BYTES, source, 2, 0, True, 0))
    assert (done.status, done.bytes) == (0, 1 << 20), done
    assert await read(client, mds, b, 1 << 20, 8192, 3) == blocks(5, 2)
    # 4. reconcile, delete
    done = await mds.order(b, m.OrderReconcile(CHUNK, 3, source))
    assert (done.status, done.bytes) == (0, 0), done
    assert (await mds.order(b, m.OrderDelete([CHUNK, 77]))).status == 0
    assert (await mds.order(b, m.OrderSetVersion(CHUNK, 4))).status == ErrorCode.NO_CHUNK


async def test_damage_is_found_reported_and_repaired(two: tuple[Mds, list[Csd]], client: Client) -> None:
    mds, (first, second) = two
    await first.start()
    await second.start()
    data = blocks(6, 64)
    await write(client, mds, [first.cs_id, second.cs_id], data)
    assert await first.end() == 0  # everything is in its chunk file now
    file = first.chunk_file(CHUNK)
    content = bytearray(file.read_bytes())
    place = content.index(data[5 * 4096 : 6 * 4096])
    with file.open("r+b") as opened:
        opened.seek(place + 77)
        opened.write(bytes([content[place + 77] ^ 0x10]))
        os.fsync(opened.fileno())
    await first.start()
    done = await mds.order(first.cs_id, m.OrderScrub(CHUNK))
    assert (done.status, done.value) == (0, 1), done
    report = await asyncio.wait_for(mds.reports.get(), 10)
    assert (report.kind, report.cs_id, report.chunk_id, report.offset) == ("corrupt", first.cs_id, CHUNK, 5 * 4096)
    heartbeat = await mds.heartbeat_where(first.cs_id, lambda h: "h" in h.flags)
    assert "C" in heartbeat.flags
    with pytest.raises(VstorError) as caught:
        await read(client, mds, first.cs_id, 5 * 4096, 4096)
    assert caught.value.code is ErrorCode.CORRUPT
    source = [mds.source(second.cs_id, CHUNK, 1)]
    done = await mds.order(first.cs_id, m.OrderRepair(CHUNK, 1, 5 * 4096, source))
    assert (done.status, done.value) == (0, 1), done
    assert await read(client, mds, first.cs_id, 0, len(data)) == data
    done = await mds.order(first.cs_id, m.OrderScrub(CHUNK))
    assert (done.status, done.value) == (0, 0), done


async def test_out_of_touch_with_the_mds_it_stops_serving(two: tuple[Mds, list[Csd]], client: Client) -> None:
    mds, (first, _) = two
    mds.lease_ms = 1500
    await first.start()
    await write(client, mds, [first.cs_id], blocks(7, 1))
    assert first.process is not None
    silent = asyncio.get_running_loop().create_future()
    answer = mds.request

    def deaf(conn: object, request: m.Request) -> m.ReplyBody | None:
        if not silent.done():
            silent.set_result(None)
        return None

    mds.request = deaf  # type: ignore[method-assign,assignment]
    await silent
    refused: VstorError | None = None
    async with asyncio.timeout(20):
        while refused is None:
            try:
                await read(client, mds, first.cs_id, 0, 4096)
                await asyncio.sleep(0.05)
            except VstorError as exc:
                refused = exc
    assert refused.code is ErrorCode.NOT_SERVING
    mds.complete[first.cs_id] = asyncio.Event()
    mds.request = answer  # type: ignore[method-assign]
    await asyncio.wait_for(mds.complete[first.cs_id].wait(), 20)
    assert await read(client, mds, first.cs_id, 0, 4096) == blocks(7, 1)


async def test_new_ticket_keys_end_what_is_open(two: tuple[Mds, list[Csd]], client: Client) -> None:
    """As after the revocation of a node: who may, gets new tickets."""
    mds, (first, _) = two
    await first.start()
    await write(client, mds, [first.cs_id], blocks(7, 1))
    raw = RawChunk(client, first.cs_id, CHUNK, 1, mds.ticket(CHUNK, 1))
    await asyncio.to_thread(raw.read_into, 0, bytearray(4096))
    mds.key_id, mds.ticket_key = mds.key_id + 2, secrets.token_bytes(32)
    for _ in range(3):  # one may be under way, the next one's answer has the keys, who sends another has taken them
        last = mds.heartbeats[first.cs_id]
        await mds.heartbeat_where(first.cs_id, lambda beat, last=last: beat is not last)
    with pytest.raises(VstorError) as caught:
        await asyncio.to_thread(raw.read_into, 0, bytearray(4096))
    assert caught.value.code is ErrorCode.EXPIRED
    assert await read(client, mds, first.cs_id, 0, 4096) == blocks(7, 1)


async def test_garbage_on_the_data_port(two: tuple[Mds, list[Csd]], client: Client) -> None:
    mds, (first, _) = two
    await first.start()
    await write(client, mds, [first.cs_id], blocks(8, 1))
    host, port = mds.registered[first.cs_id].addresses[-1].rsplit(":", 1)
    for junk in (b"GET / HTTP/1.0\r\n\r\n", bytes(64), b"VST1" + b"\xff" * 4096):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(junk + bytes(64))
            with pytest.raises((ConnectionError, AssertionError)):
                assert sock.recv(1) != b""
    assert await read(client, mds, first.cs_id, 0, 4096) == blocks(8, 1)


async def test_refusals(two: tuple[Mds, list[Csd]]) -> None:
    _, (first, second) = two
    await first.start()
    # 1. the directory is in use
    twin = Csd(first.mds, first.repo, first.cs_id)
    await twin.spawn()
    status, err = await twin.wait()
    assert status == 7, err
    assert len(err.strip().splitlines()) == 1, err
    # 2. the port is in use
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        identity = repository.read_identity(second.repo)
        repository.write_identity(
            second.repo,
            repository.CsIdentity(identity.cluster, identity.cluster_id, identity.cs_id, address=f"127.0.0.1:{port}"),
        )
        await second.spawn()
        status, err = await second.wait()
    assert status == 7, err
    assert str(port) in err
    assert len(err.strip().splitlines()) == 1, err
