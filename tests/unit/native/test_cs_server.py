"""The chunk server engine over its sockets: handshake, tickets, requests, fencing, refusals; on io_uring and on the fallback."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.wire_gen import AuthMode, FrameType, Hello

from tests.helpers.dataclient import KEY_ID, MIB, CsServer, DataClient, make_frame
from tests.helpers.fakecs import pieces

CHUNK = 4 * MIB
BLOCK = 4096


@pytest.fixture(params=[False, True], ids=["uring", "pool"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CsServer]:
    with CsServer(str(tmp_path), no_uring=request.param) as running:
        yield running


@pytest.fixture
def client(server: CsServer) -> Iterator[DataClient]:
    with server.connect() as connected:
        yield connected


@pytest.mark.parametrize("mode", list(AuthMode))
def test_write_and_read_back_in_every_mode(server: CsServer, mode: AuthMode) -> None:
    with server.connect(mode) as client:
        assert client.open(1, 100, 1, CHUNK, create=True) == 0
        assert client.read(1, 0, MIB) == bytes(MIB)
        for offset, size in (
            (0, 4096),
            (5000, 10),
            (MIB - 7, MIB),
            (3 * MIB, 65536),
            (4095, 2),
            (2 * MIB + 1, 200_000),
        ):
            data = os.urandom(size)
            assert client.write(1, offset, data) == 0
            assert client.read(1, offset, size) == data
        assert client.sync(1) == 0


def test_random_requests_equal_a_model(server: CsServer, client: DataClient) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    model = bytearray(CHUNK)
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    for _ in range(250):
        offset = rng.randrange(CHUNK)
        length = min(rng.choice((1, 100, 4096, 8192, 65536, 100_000, MIB)), CHUNK - offset, MIB)
        what = rng.random()
        if what < 0.5:
            data = rng.randbytes(length)
            assert client.write(0, offset, data, durable=rng.random() < 0.1) == 0
            model[offset : offset + length] = data
        elif what < 0.7:
            assert client.punch(0, offset, length) == 0
            model[offset : offset + length] = bytes(length)
        else:
            assert client.read(0, offset, length) == bytes(model[offset : offset + length]), f"seed {seed}"
    for offset in range(0, CHUNK, MIB):
        assert client.hash(0, offset, MIB) == hashlib.sha256(model[offset : offset + MIB]).digest()
    assert server.engine.counters()["corrupt_blocks"] == 0


def test_many_requests_in_flight_are_all_answered(client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    block = os.urandom(BLOCK)
    ids = {client.send_write(0, i * BLOCK, block) for i in range(600)}
    for _ in range(600):
        reply = client.receive()
        assert reply.status == 0
        ids.remove(reply.frame.request_id)
    assert not ids
    assert client.read(0, 0, 600 * BLOCK if 600 * BLOCK <= MIB else MIB) == block * 256


def test_overlapping_writes_of_two_connections_leave_one_of_them(server: CsServer) -> None:
    with server.connect() as first, server.connect() as second:
        assert first.open(0, 9, 1, CHUNK, create=True) == 0
        assert second.open(0, 9, 1, CHUNK, create=True) == 0
        for _ in range(20):
            first.send_write(0, 0, b"a" * 300_000)
            second.send_write(0, 0, b"b" * 300_000)
            assert first.receive().status == second.receive().status == 0
            got = first.read(0, 0, 300_000)
            assert got in (b"a" * 300_000, b"b" * 300_000)


def test_a_peer_that_does_not_read_does_not_stop_the_others(server: CsServer) -> None:
    with server.connect() as slow, server.connect() as other:
        assert other.open(0, 9, 1, CHUNK, create=True) == 0
        assert other.write(0, 0, os.urandom(MIB)) == 0
        assert slow.open(0, 9, 1, CHUNK) == 0
        count = 100  # far more than sockets and the server hold
        for _ in range(count):
            slow.send(FrameType.READ, **slow.fields(0, 0, MIB))
        for i in range(50):
            assert other.write(0, MIB, bytes([i]) * BLOCK) == 0
        for _ in range(count):
            assert slow.receive().status == 0


def test_tickets(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK) == ErrorCode.NO_CHUNK
    server.engine.create(9, CHUNK, 4)
    assert client.open(0, 9, 3, CHUNK) == ErrorCode.STALE
    assert client.open(0, 9, 5, CHUNK) == ErrorCode.STALE
    assert client.open(0, 9, 4, CHUNK, expiry_ms=1) == ErrorCode.EXPIRED
    assert client.open(0, 9, 4, CHUNK, session_id=78) == ErrorCode.DENIED
    assert client.open(0, 9, 4, 2 * CHUNK) == ErrorCode.BAD_REQUEST
    forged = bytearray(client.ticket(9, 4, CHUNK))
    forged[40] ^= 1
    assert client.call(FrameType.OPEN, forged, handle=0).status in (ErrorCode.DENIED, ErrorCode.EXPIRED)
    assert client.open(0, 9, 4, CHUNK, write=False) == 0
    assert client.write(0, 0, b"x" * BLOCK) == ErrorCode.DENIED
    assert client.read(0, 0, BLOCK) == bytes(BLOCK)
    assert client.open(0, 9, 4, CHUNK) == 0
    assert client.write(0, 0, b"x" * BLOCK) == 0
    server.engine.set_ticket_key(KEY_ID, b"u" * 32)
    assert client.open(0, 9, 4, CHUNK) == ErrorCode.DENIED


def test_keys_that_are_forgotten_close_what_was_opened_with_them(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    assert client.write(0, 0, b"x" * BLOCK) == 0
    server.engine.forget_ticket_keys(KEY_ID)
    assert client.read(0, 0, BLOCK) == b"x" * BLOCK
    server.engine.set_ticket_key(KEY_ID + 1, b"u" * 32)
    server.engine.forget_ticket_keys(KEY_ID + 1)
    assert client.read(0, 0, BLOCK) == ErrorCode.EXPIRED
    assert client.write(0, 0, b"y" * BLOCK) == ErrorCode.EXPIRED
    assert client.open(0, 9, 1, CHUNK) == ErrorCode.EXPIRED
    client.ticket_key = b"u" * 32
    assert client.open(0, 9, 1, CHUNK, key_id=KEY_ID + 1) == 0
    assert client.read(0, 0, BLOCK) == b"x" * BLOCK


def test_requests_behind_a_refused_open_get_its_status(client: DataClient) -> None:
    client.versions[7] = (9, 1)
    client.send(FrameType.OPEN, client.ticket(9, 1, CHUNK), handle=7)
    client.send_write(7, 0, b"x" * 10)
    assert client.receive().status == ErrorCode.NO_CHUNK
    assert client.receive().status == ErrorCode.NO_CHUNK


def test_a_new_version_fences_old_handles(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    assert client.write(0, 0, b"x" * BLOCK) == 0
    server.engine.set_version(9, 2)
    assert client.write(0, 0, b"y" * BLOCK) == ErrorCode.STALE
    assert client.read(0, 0, BLOCK) == ErrorCode.STALE
    assert client.sync(0) == ErrorCode.STALE
    assert client.open(0, 9, 2, CHUNK) == 0
    assert client.read(0, 0, BLOCK) == b"x" * BLOCK
    server.engine.delete(9)
    assert client.read(0, 0, BLOCK) == ErrorCode.NO_CHUNK


def test_a_version_ordered_before_the_first_write_fences_too(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    server.engine.set_version(9, 2)
    assert client.write(0, 0, b"x" * BLOCK) == ErrorCode.STALE
    with pytest.raises(VstorError) as caught:
        server.engine.set_version(10, 5)
    assert caught.value.code == ErrorCode.NO_CHUNK
    assert client.open(1, 10, 4, CHUNK, create=True) == ErrorCode.STALE
    assert client.open(1, 10, 5, CHUNK, create=True) == 0


def test_set_version_waits_for_writes_in_flight(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    count = 64
    sent = {client.send_write(0, i * BLOCK, bytes([i]) * BLOCK): i for i in range(count)}
    server.engine.set_version(9, 2)
    replies = [client.receive() for _ in range(count)]  # in any order: refusals overtake writes
    written = [sent[reply.frame.request_id] for reply in replies if reply.status == 0]
    before = server.engine.read(9, 0, MIB)
    assert client.open(0, 9, 2, CHUNK) == 0
    assert client.read(0, 0, MIB) == (before or bytes(MIB))
    for i in written:
        assert before is not None
        assert before[i * BLOCK] == i


def test_the_lease_with_the_mds_ends_service(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    server.serve_for(-1)
    assert client.write(0, 0, b"x" * BLOCK) == ErrorCode.NOT_SERVING
    assert client.read(0, 0, BLOCK) == ErrorCode.NOT_SERVING
    assert client.sync(0) == ErrorCode.NOT_SERVING
    assert client.call(FrameType.PING, b"alive").data == b"alive"
    server.serve_for(60)
    assert client.write(0, 0, b"x" * BLOCK) == 0


def test_a_copy_in_progress_is_not_served(server: CsServer, client: DataClient) -> None:
    server.engine.create(9, CHUNK, 0, syncing=True)
    server.engine.write(9, 5, 0, b"x" * BLOCK)
    assert client.open(0, 9, 0, CHUNK) == ErrorCode.STALE
    server.engine.finish_sync(9, 5)
    assert client.open(0, 9, 5, CHUNK) == 0
    assert client.read(0, 0, BLOCK) == b"x" * BLOCK
    server.engine.begin_sync(9)
    assert client.read(0, 0, BLOCK) == ErrorCode.STALE


def test_stat_granules_and_close(server: CsServer, client: DataClient) -> None:
    assert client.open(3, 9, 6, CHUNK, create=True) == 0
    assert client.write(3, MIB, b"x" * BLOCK) == 0
    assert client.write(3, 3 * MIB - 1, b"xy") == 0
    stat = client.stat(3)
    assert (stat.chunk_version, stat.chunk_bytes, stat.written_blocks, stat.incarnation) == (6, CHUNK, 3, 1)
    assert client.granules(3) == [(0, 0), (6, 1), (6, 2), (6, 2)]
    assert client.call(FrameType.CLOSE, handle=3).status == 0
    assert client.read(3, 0, BLOCK) == ErrorCode.BAD_REQUEST


def test_damaged_data_is_refused_and_ranges_are_checked(server: CsServer, client: DataClient) -> None:
    assert client.open(0, 9, 1, CHUNK, create=True) == 0
    fields = client.fields(0, 0, BLOCK)
    reply = client.call(FrameType.WRITE, b"x" * BLOCK, pieces(0, b"y" * BLOCK), **fields)
    assert reply.status == ErrorCode.CRC_MISMATCH
    assert client.write(0, CHUNK - 10, b"x" * 11) == ErrorCode.BAD_REQUEST
    assert client.read(0, CHUNK, 1) == ErrorCode.BAD_REQUEST
    assert client.punch(0, 1, CHUNK) == ErrorCode.BAD_REQUEST
    assert client.write(0, CHUNK - 10, b"x" * 10) == 0
    assert server.engine.counters()["crc_errors"] == 1


def refused(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b" " * 64,
        bytes(64),
        make_frame(type=FrameType.READ, length=4096),
        make_frame(type=FrameType.HELLO, data_len=57) + bytes(57),
        make_frame(type=99),
    ],
)
def test_garbage_ends_the_connection(server: CsServer, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(junk)
        assert refused(sock)
    assert server.engine.counters()["bad_frames"] == 1


def test_a_wrong_tag_or_proof_ends_the_connection(server: CsServer) -> None:
    with server.connect() as client:
        assert client._seal_out is not None
        client._seal_out.seal(bytes(64), b"", bytearray())  # the counters of both ends now differ
        client.send(FrameType.PING, b"x")
        assert refused(client.sock)
    with server.connect(handshake=False) as client:
        client.cs_key = b"?" * 32
        with pytest.raises(AssertionError):
            client.handshake()
    with server.connect(handshake=False) as client:
        hello = Hello(1, 1 << 60, server.cs_id, AuthMode.CRC, os.urandom(32))
        assert client.call(FrameType.HELLO, hello.pack()).status == 0
        client.send(FrameType.PROVE, bytes(32))
        assert refused(client.sock)


def test_hello_is_checked(server: CsServer) -> None:
    def hello(**fields: int) -> int:
        with server.connect(handshake=False) as client:
            values = {"session_id": 1, "expiry_ms": 1 << 60, "cs_id": server.cs_id, "auth_mode": 1} | fields
            return client.call(FrameType.HELLO, Hello(nonce=bytes(32), **values).pack()).status

    assert hello() == 0
    assert hello(cs_id=server.cs_id + 1) == ErrorCode.DENIED
    assert hello(expiry_ms=1) == ErrorCode.EXPIRED
    assert hello(auth_mode=3) == ErrorCode.BAD_REQUEST
    server.engine.set_min_auth(AuthMode.SECURE)
    assert hello() == ErrorCode.DENIED


def test_frames_cut_anywhere(server: CsServer) -> None:
    """Bytes arrive in any portions."""
    with server.connect() as client:
        assert client.open(0, 9, 1, CHUNK, create=True) == 0
        sent: list[bytes] = []
        real = client.sock

        class Recorder:
            def sendall(self, data: bytes) -> None:
                sent.append(bytes(data))

        client.sock = Recorder()  # type: ignore[assignment]
        for i in range(20):
            client.send_write(0, 5000 * i, bytes([i + 1]) * 5000)
        client.sock = real
        stream = b"".join(sent)
        rng = random.Random(5)
        at = 0
        while at < len(stream):
            step = rng.choice((1, 3, 63, 64, 65, 4096, 9000))
            real.sendall(stream[at : at + step])
            at += step
        assert all(client.receive().status == 0 for _ in range(20))
        assert client.read(0, 0, 100_000) == b"".join(bytes([i + 1]) * 5000 for i in range(20))


def test_stop_answers_what_is_in_flight(tmp_path: Path) -> None:
    server = CsServer(str(tmp_path))
    with server:
        client = server.connect()
        assert client.open(0, 9, 1, CHUNK, create=True) == 0
        assert client.write(0, 0, b"x" * 10_000) == 0
    with CsServer(str(tmp_path)) as again:
        assert again.engine.counters()["replayed_records"] == 0
        assert again.engine.read(9, 0, BLOCK) == b"x" * BLOCK
        with pytest.raises(VstorError) as caught:
            CsServer(str(tmp_path))
        assert caught.value.code == ErrorCode.IN_USE


def test_a_full_disk_refuses_clients_but_not_deletes(tmp_path: Path) -> None:
    with CsServer(str(tmp_path), reserve_bytes=1 << 60) as server, server.connect() as client:
        assert client.open(0, 9, 1, CHUNK, create=True) == 0
        assert client.write(0, 0, b"x" * BLOCK) == ErrorCode.NO_SPACE
        event = server.engine.next_event()
        assert event is not None
        assert event.kind == "NO_SPACE"
        server.engine.create(10, CHUNK, 1)
        server.engine.write(10, 1, 0, b"x" * BLOCK)
        server.engine.delete(10)


def test_damage_on_disk_is_found_quarantined_and_repaired(tmp_path: Path) -> None:
    with CsServer(str(tmp_path)) as server, server.connect() as client:
        assert client.open(0, 9, 1, CHUNK, create=True) == 0
        assert client.write(0, 0, b"x" * 200_000) == 0
    path = tmp_path / "chunks" / "09" / f"{9:016x}"
    table_bytes = (1 + (CHUNK // BLOCK + 767) // 768) * BLOCK
    with path.open("r+b") as file:
        file.seek(table_bytes + 3 * BLOCK + 17)
        file.write(b"?")
        os.fsync(file.fileno())
    with CsServer(str(tmp_path)) as server, server.connect() as client:
        assert client.open(0, 9, 1, CHUNK) == 0
        assert client.read(0, 0, BLOCK) == b"x" * BLOCK
        assert client.read(0, 2 * BLOCK, 2 * BLOCK) == ErrorCode.CORRUPT
        event = server.engine.next_event()
        assert event is not None
        assert (event.kind, event.chunk_id, event.offset) == ("CORRUPT", 9, 3 * BLOCK)
        assert server.engine.stat(9).bad_blocks == 1
        assert client.write(0, 3 * BLOCK + 5, b"y") == ErrorCode.CORRUPT
        with pytest.raises(VstorError):
            server.engine.repair(9, 2, 0, b"x" * 8 * BLOCK)
        assert server.engine.repair(9, 1, 0, b"x" * 8 * BLOCK) == 1
        assert client.read(0, 0, 100_000) == b"x" * 100_000
        assert server.engine.scrub(9)[0] == 0


def test_a_damaged_table_takes_the_replica_out_and_the_server_goes_on(tmp_path: Path) -> None:
    with CsServer(str(tmp_path)) as server:
        for chunk_id in (9, 10, 11):
            server.engine.create(chunk_id, CHUNK, 1)
            server.engine.write(chunk_id, 1, 0, b"x" * BLOCK)
    with CsServer(str(tmp_path)) as server:  # the copies of the last checkpoint would mend what is damaged below
        server.engine.write(11, 1, 0, b"x" * BLOCK)
    for chunk_id, at in ((9, 10), (10, BLOCK + 300)):  # header, first table page
        with (tmp_path / "chunks" / f"{chunk_id:02x}" / f"{chunk_id:016x}").open("r+b") as file:
            file.seek(at)
            file.write(b"??")
            os.fsync(file.fileno())
    with CsServer(str(tmp_path)) as server:
        assert [r.chunk_id for r in server.engine.list()] == [10, 11]
        with pytest.raises(VstorError) as caught:
            server.engine.read(10, 0, BLOCK)
        assert caught.value.code == ErrorCode.CORRUPT
        assert [r.chunk_id for r in server.engine.list()] == [11]
        events = [server.engine.next_event(), server.engine.next_event()]
        assert [(e.kind, e.chunk_id, e.offset) for e in events if e] == [
            ("CORRUPT", 9, (1 << 64) - 1),
            ("CORRUPT", 10, (1 << 64) - 1),
        ]
        assert len(list((tmp_path / "quarantine").iterdir())) == 2
        assert server.engine.read(11, 0, BLOCK) == b"x" * BLOCK


def test_orders_from_many_threads(server: CsServer) -> None:
    failures: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for i in range(10):
                chunk_id = base * 100 + i + 1
                server.engine.create(chunk_id, MIB, 1)
                server.engine.write(chunk_id, 1, 0, bytes([base]) * BLOCK)
                server.engine.set_version(chunk_id, 2)
                server.engine.sync()
                assert server.engine.read(chunk_id, 0, BLOCK) == bytes([base]) * BLOCK
                if i % 2:
                    server.engine.delete(chunk_id)
        except BaseException as exc:  # noqa: BLE001 - shown by the test
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(server.engine.list()) == 20


def test_idle_checkpoint_empties_the_journal(server: CsServer) -> None:
    server.engine.create(9, CHUNK, 1)
    server.engine.write(9, 1, 0, b"x" * BLOCK)
    deadline = time.monotonic() + 60
    while server.engine.counters()["journal_used"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.engine.scrub(9) == (0, BLOCK)
    assert server.engine.read(9, 0, BLOCK) == b"x" * BLOCK


def test_a_scrub_tells_of_damage_that_was_known(server: CsServer, tmp_path: Path) -> None:
    """When it was first found there may have been nothing to repair it from. A row of blocks is told once for each granule."""
    server.engine.create(9, 2 * MIB, 1)
    for block in range(254, 260):
        server.engine.write(9, 1, block * BLOCK, b"x" * BLOCK)
    deadline = time.monotonic() + 60
    while server.engine.counters()["journal_used"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    file = next(p for p in tmp_path.glob("chunks/**/*") if p.is_file())
    data = file.read_bytes()
    at = data.index(b"x" * BLOCK)
    with file.open("r+b") as opened:
        for block in range(1, 4):
            opened.seek(at + block * BLOCK)
            opened.write(b"y")

    def told() -> list[int]:
        events = iter(server.engine.next_event, None)
        return [e.offset // BLOCK for e in events if e.kind == "CORRUPT"]

    assert server.engine.scrub(9)[0] == 3
    assert told() == [255, 256, 257]
    assert server.engine.scrub(9)[0] == 3
    assert told() == [255, 256]
    server.engine.write(9, 1, 255 * BLOCK, b"z" * 3 * BLOCK)
    assert server.engine.scrub(9)[0] == 0
    assert told() == []
