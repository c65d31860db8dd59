"""An in-memory chunk server that speaks the real data-plane protocol, with faults that can be switched on.

DESIGN: asyncio in a thread of its own, no disk. Handshake and tags are done with the C session code (vstor.native.lib) so that both ends of
the protocol are not merely consistent with themselves: the derivations in vstor.proto.tickets check the C side. Replicas are dicts of
blocks. What was written and not synced is kept apart, so that `restart(lose=True)` can lose it as a power cut does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.native import crc32c, ffi, lib
from vstor.proto import tickets
from vstor.proto.wire_gen import (
    BLOCK_BYTES,
    FRAME_STRUCT,
    GRANULE_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    AuthMode,
    ChunkStat,
    Frame,
    FrameFlag,
    FrameType,
    Hello,
    HelloAck,
    Ticket,
    TicketFlag,
    TicketMode,
)

HEADER_BYTES = 64
TAG_BYTES = 16


@dataclass
class Replica:
    """One chunk."""

    version: int
    chunk_bytes: int
    blocks: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    corrupt: set[int] = field(default_factory=set)
    write_seq: int = 0
    granules: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass
class Faults:
    """Switches of a FakeCs. `on_request` sees each request first: a status to answer with, or None."""

    delay_s: float = 0.0
    drop_on: int | None = None  # frame type at which the connection is cut
    silent_on: set[int] = field(default_factory=set)  # frame types never answered
    corrupt_reads: bool = False  # data damaged after its checksum was made
    on_request: Callable[[Frame], int | None] | None = None
    refuse_hello: int = 0
    hold: Callable[[Frame], bool] | None = None  # these requests wait for `release`
    answer_as: dict[int, int] = field(default_factory=dict)  # frame type: another, whose reply is sent instead


def pieces(offset: int, data: bytes | memoryview) -> bytes:
    """CRC table of a range."""
    out, position = [], 0
    while position < len(data):
        step = min(BLOCK_BYTES - (offset + position) % BLOCK_BYTES, len(data) - position)
        out.append(crc32c(data[position : position + step]))
        position += step
    return struct.pack(f"<{len(out)}I", *out)


class _Seal:
    """One direction's frame protection."""

    def __init__(self, key: bytes, hello: Hello, ack: HelloAck, to_server: bool, mode: int) -> None:
        c_hello = ffi.from_buffer("struct vst_hello *", bytearray(hello.pack()))
        c_ack = ffi.from_buffer("struct vst_hello_ack *", bytearray(ack.pack()))
        self._seal = ffi.gc(lib.vst_seal_new(key, c_hello, c_ack, int(to_server), mode), lib.vst_seal_free)
        self.tag_bytes = int(lib.vst_seal_tag_len(self._seal))

    def _call(self, function: Any, header: bytes, table: bytes, data: bytearray, tag: Any) -> int:
        segment = ffi.new("struct vst_seg *")
        c_data = ffi.from_buffer(data)
        segment.base, segment.len = c_data, len(data)
        frame = ffi.from_buffer("struct vst_frame *", bytearray(header))
        return int(function(self._seal, frame, table, segment, 1, tag))

    def seal(self, header: bytes, table: bytes, data: bytearray) -> bytes:
        tag = ffi.new("uint8_t[16]")
        assert self._call(lib.vst_seal_frame, header, table, data, tag) == 0
        return bytes(tag)[: self.tag_bytes]

    def open(self, header: bytes, table: bytes, data: bytearray, tag: bytes) -> bool:
        return self._call(lib.vst_open_frame, header, table, data, tag or bytes(TAG_BYTES)) == 0


class FakeCs:
    """Use as a context manager; thread-safe through `call`."""

    def __init__(self, cs_id: int, ticket_key: bytes, unix: str = "") -> None:
        self.cs_id = cs_id
        self.cs_key = os.urandom(32)
        self.ticket_key = ticket_key
        self.incarnation = 1000 * cs_id + 1
        self.unix = unix
        self.expiry_min_ms = 0  # sessions and tickets that end before are over
        self.chunks: dict[int, Replica] = {}
        self.faults = Faults()
        self.requests: list[tuple[int, int, int]] = []  # type, chunk id, version, in order of arrival
        self.held: list[tuple[_Connection, Frame, bytes, bytearray]] = []
        self.writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- the test's side

    @property
    def address(self) -> str:
        return f"unix:{self.unix}" if self.unix else f"127.0.0.1:{self.port}"

    def key_for(self, session_id: int, expiry_ms: int) -> bytes:
        return tickets.session_key(self.cs_key, session_id, expiry_ms)

    def __enter__(self) -> FakeCs:
        self._thread.start()
        self.call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Any) -> Any:
        """Run in the server's loop and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def stop(self) -> None:
        """As if killed: connections reset, port closed."""
        self.call(self._stop())

    def start(self, *, lose: bool = False) -> None:
        """Start again as a new incarnation; lose: what was not synced is gone."""
        if lose:
            for replica in self.chunks.values():
                replica.blocks = dict(replica.synced)
        self.incarnation += 1
        self.call(self._listen())

    def release(self) -> None:
        """Answer what was held, and hold nothing more."""

        async def answer() -> None:
            self.faults.hold = None
            for connection, frame, table, data in self.held:
                connection._handle(frame, table, data)
            self.held.clear()

        self.call(answer())

    def set_version(self, chunk_id: int, version: int) -> None:
        if chunk_id in self.chunks:
            self.chunks[chunk_id].version = version

    def data(self, chunk_id: int, offset: int, length: int) -> bytes:
        return self._read(self.chunks[chunk_id], offset, length)

    # --- the server

    async def _listen(self) -> None:
        if self.unix:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.unix)
            self._server = await asyncio.start_unix_server(self._serve, self.unix)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.writers):
            writer.transport.abort()
        self.writers.clear()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            await _Connection(self, reader, writer).run()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    # --- chunks

    @staticmethod
    def _read(replica: Replica, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        whole = b"".join(replica.blocks.get(i, bytes(BLOCK_BYTES)) for i in range(first, last + 1))
        start = offset - first * BLOCK_BYTES
        return whole[start : start + length]

    def _write(self, replica: Replica, offset: int, data: bytes | bytearray, *, discard: bool = False) -> None:
        replica.write_seq += 1
        position = 0
        while position < len(data):
            index, start = divmod(offset + position, BLOCK_BYTES)
            step = min(BLOCK_BYTES - start, len(data) - position)
            block = bytearray(replica.blocks.get(index, bytes(BLOCK_BYTES)))
            block[start : start + step] = data[position : position + step]
            if discard and step == BLOCK_BYTES:
                replica.blocks.pop(index, None)
            else:
                replica.blocks[index] = bytes(block)
            replica.corrupt.discard(index)
            replica.granules[(offset + position) // GRANULE_BYTES] = (replica.version, replica.write_seq)
            position += step


class _Connection:
    def __init__(self, cs: FakeCs, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.cs, self.reader, self.writer = cs, reader, writer
        self.handles: dict[int, tuple[int, Ticket]] = {}
        self.rx: _Seal | None = None
        self.tx: _Seal | None = None
        self.session_id = self.expiry_ms = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await self._greet()
        while True:
            frame, table, data = await self._receive()
            self.cs.requests.append((frame.type, frame.chunk_id, frame.chunk_version))
            if self.cs.faults.drop_on == frame.type:
                return
            if frame.type in self.cs.faults.silent_on:
                continue
            if self.cs.faults.hold and self.cs.faults.hold(frame):
                self.cs.held.append((self, frame, table, data))
            elif self.cs.faults.delay_s:
                task = asyncio.create_task(self._later(frame, table, data))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            else:
                self._handle(frame, table, data)
                await self.writer.drain()

    async def _later(self, frame: Frame, table: bytes, data: bytearray) -> None:
        await asyncio.sleep(self.cs.faults.delay_s)
        self._handle(frame, table, data)

    async def _receive(self) -> tuple[Frame, bytes, bytearray]:
        raw = await self.reader.readexactly(HEADER_BYTES)
        header = ffi.from_buffer("struct vst_frame *", bytearray(raw))
        assert lib.vst_frame_check(header, 0) == 0, "bad frame from the client"
        frame = Frame.unpack(raw)
        table = await self.reader.readexactly(frame.table_len)
        tag = await self.reader.readexactly(self.rx.tag_bytes) if self.rx else b""
        data = bytearray(await self.reader.readexactly(frame.data_len))
        if self.rx and self.rx.tag_bytes:
            assert self.rx.open(raw, table, data, tag), "bad tag from the client"
        return frame, table, data

    def _reply(self, frame: Frame, status: int = 0, data: bytes = b"", flags: int = 0, table: bytes = b"") -> None:
        version = frame.chunk_version
        kind = self.cs.faults.answer_as.get(frame.type, frame.type)
        header = Frame(
            magic=MAGIC, hdr_version=PROTOCOL_VERSION, type=kind | 0x80, flags=flags, request_id=frame.request_id,
            handle=frame.handle, status=status, offset=frame.offset, length=frame.length, table_len=len(table),
            data_len=len(data), chunk_version=version, chunk_id=frame.chunk_id,
        ).pack()  # fmt: skip
        header = header[:60] + struct.pack("<I", crc32c(header[:60]))
        body = bytearray(data)
        tag = self.tx.seal(header, table, body) if self.tx and self.tx.tag_bytes else b""
        if self.cs.faults.corrupt_reads and frame.type == FrameType.READ and body:
            body[len(body) // 2] ^= 1
        self.writer.write(header + table + tag + bytes(body))

    async def _greet(self) -> None:
        frame, _, data = await self._receive()
        assert frame.type == FrameType.HELLO
        hello = Hello.unpack(bytes(data))
        self.session_id, self.expiry_ms = hello.session_id, hello.expiry_ms
        key = self.cs.key_for(hello.session_id, hello.expiry_ms)
        if self.cs.faults.refuse_hello:
            self._reply(frame, self.cs.faults.refuse_hello)
            await self.writer.drain()
            raise ConnectionError("refused")
        ack = HelloAck(os.urandom(32), self.cs.incarnation, self.cs.cs_id, hello.auth_mode, bytes(32))
        ack = ack._replace(mac=tickets.hello_ack_mac(key, hello, ack))
        self._reply(frame, data=ack.pack())
        self.rx = _Seal(key, hello, ack, True, hello.auth_mode)
        self.tx = _Seal(key, hello, ack, False, hello.auth_mode)
        frame, _, data = await self._receive()
        assert frame.type == FrameType.PROVE
        if bytes(data) != tickets.prove_mac(key, hello, ack):
            self._reply(frame, ErrorCode.DENIED)
            raise ConnectionError("wrong proof")
        self._reply(frame)
        assert AuthMode(hello.auth_mode) is not None

    # --- requests

    def _handle(self, frame: Frame, table: bytes, data: bytearray) -> None:
        asked = self.cs.faults.on_request
        status = asked(frame) if asked else None
        if status is not None:
            self._reply(frame, status)
            return
        handler = {
            FrameType.OPEN: self._open, FrameType.CLOSE: self._close, FrameType.SYNC: self._sync,
            FrameType.PING: lambda f, _t, d: self._reply(f, data=bytes(d)),
        }.get(FrameType(frame.type))  # fmt: skip
        if handler is not None:
            handler(frame, table, data)
            return
        opened = self.handles.get(frame.handle)
        if opened is None:
            self._reply(frame, ErrorCode.BAD_REQUEST)
            return
        chunk_id, ticket = opened
        replica = self.cs.chunks.get(chunk_id)
        if replica is None:
            self._reply(frame, ErrorCode.NO_CHUNK)
        elif frame.chunk_version != replica.version:
            self._reply(frame, ErrorCode.STALE)
        elif frame.type in (FrameType.WRITE, FrameType.PUNCH) and ticket.mode < TicketMode.WRITE:
            self._reply(frame, ErrorCode.DENIED)
        else:
            self._on_chunk(frame, table, data, replica)

    def _open(self, frame: Frame, _table: bytes, data: bytearray) -> None:
        ticket = Ticket.unpack(bytes(data))
        signed = tickets._mac(self.cs.ticket_key, bytes(data[:48]))[:16]
        replica = self.cs.chunks.get(ticket.chunk_id)
        if ticket.mac != signed or ticket.session_id != self.session_id:
            self._reply(frame, ErrorCode.DENIED)
            return
        if min(ticket.expiry_ms, self.expiry_ms) < self.cs.expiry_min_ms:
            self._reply(frame, ErrorCode.EXPIRED)
            return
        if replica is None and ticket.flags & TicketFlag.CREATE:
            replica = self.cs.chunks[ticket.chunk_id] = Replica(ticket.chunk_version, ticket.chunk_bytes)
        if replica is None:
            self._reply(frame, ErrorCode.NO_CHUNK)
        elif replica.version != ticket.chunk_version:
            self._reply(frame, ErrorCode.STALE)
        else:
            self.handles[frame.handle] = (ticket.chunk_id, ticket)
            self._reply(frame)

    def _close(self, frame: Frame, _table: bytes, _data: bytearray) -> None:
        known = self.handles.pop(frame.handle, None)
        self._reply(frame, 0 if known else ErrorCode.BAD_REQUEST)

    def _sync(self, frame: Frame, _table: bytes, data: bytearray) -> None:
        slots = struct.unpack(f"<{len(data) // 4}I", data)
        if any(slot not in self.handles for slot in slots):
            self._reply(frame, ErrorCode.BAD_REQUEST)
            return
        for slot in slots:
            replica = self.cs.chunks[self.handles[slot][0]]
            replica.synced = dict(replica.blocks)
        self._reply(frame)

    def _on_chunk(self, frame: Frame, table: bytes, data: bytearray, replica: Replica) -> None:
        if frame.type == FrameType.READ:
            self._read(frame, replica)
        elif frame.type == FrameType.WRITE:
            if pieces(frame.offset, bytes(data)) != table:
                self._reply(frame, ErrorCode.CRC_MISMATCH)
                return
            self.cs._write(replica, frame.offset, data)
            if frame.flags & FrameFlag.DURABLE:
                replica.synced = dict(replica.blocks)
            self._reply(frame)
        elif frame.type == FrameType.PUNCH:
            self.cs._write(replica, frame.offset, bytes(frame.length), discard=True)
            self._reply(frame)
        elif frame.type == FrameType.STAT:
            stat = ChunkStat(
                frame.chunk_id, replica.version, replica.chunk_bytes, len(replica.blocks), replica.write_seq,
                self.cs.incarnation, len(replica.corrupt),
            )  # fmt: skip
            self._reply(frame, data=stat.pack())
        elif frame.type == FrameType.HASH:
            self._reply(frame, data=hashlib.sha256(self.cs._read(replica, frame.offset, frame.length)).digest())
        elif frame.type == FrameType.GRANULES:
            count = replica.chunk_bytes // GRANULE_BYTES
            pairs = [replica.granules.get(i, (0, 0)) for i in range(count)]
            self._reply(frame, data=b"".join(struct.pack("<QQ", *pair) for pair in pairs))

    def _read(self, frame: Frame, replica: Replica) -> None:
        blocks = range(frame.offset // BLOCK_BYTES, (frame.offset + frame.length - 1) // BLOCK_BYTES + 1)
        if any(i in replica.corrupt for i in blocks):
            self._reply(frame, ErrorCode.CORRUPT)
        elif not any(i in replica.blocks for i in blocks):
            self._reply(frame, flags=FrameFlag.HOLE)
        else:
            data = self.cs._read(replica, frame.offset, frame.length)
            self._reply(frame, data=data, table=pieces(frame.offset, data))


assert FRAME_STRUCT.size == HEADER_BYTES
