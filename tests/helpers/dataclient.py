"""A small client of the data plane for tests: blocking sockets, requests may be sent ahead of their replies.

DESIGN: frames by wire_gen, protection by the C session code as in fakecs, keys and tickets by vstor.proto.tickets. Nothing is retried and
nothing hidden: a status is returned as it came. `CsServer` runs a CsEngine in this process, with keys and time as an MDS would set them.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from vstor.native import crc32c
from vstor.native.cs import CsEngine
from vstor.proto import tickets
from vstor.proto.wire_gen import (
    FRAME_STRUCT,
    MAGIC,
    PROTOCOL_VERSION,
    AuthMode,
    ChunkStat,
    Frame,
    FrameFlag,
    FrameType,
    Hello,
    HelloAck,
)

from tests.helpers.fakecs import HEADER_BYTES, _Seal, pieces

SESSION = 77
KEY_ID = 3
TIMEOUT_S = 30.0
MIB = 1 << 20
JOURNAL_BYTES = 64 * MIB
CLUSTER_ID = bytes(range(16))
EXPIRY_MS = 1 << 60


@dataclass
class Reply:
    frame: Frame
    data: bytearray
    table: bytes

    @property
    def status(self) -> int:
        return self.frame.status

    @property
    def hole(self) -> bool:
        return bool(self.frame.flags & FrameFlag.HOLE)


def make_frame(**fields: Any) -> bytes:
    """A header with magic and checksum."""
    frame = Frame(magic=MAGIC, hdr_version=PROTOCOL_VERSION, **fields)
    packed = frame.pack()
    return packed[:60] + struct.pack("<I", crc32c(packed[:60]))


class DataClient:
    """One connection. Raises ConnectionError when the server ends it, AssertionError on a wrong frame, tag or checksum."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        cs_id: int,
        cs_key: bytes,
        ticket_key: bytes,
        mode: int = AuthMode.SIGN,
        session_id: int = SESSION,
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address)
        self.cs_id, self.cs_key, self.ticket_key = cs_id, cs_key, ticket_key
        self.mode, self.session_id = mode, session_id
        self.versions: dict[int, tuple[int, int]] = {}  # handle -> chunk id, version
        self._next = 0
        self._seal_out: _Seal | None = None
        self._seal_in: _Seal | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    # --- frames

    def send(self, kind: int, data: bytes | bytearray = b"", table: bytes = b"", **fields: Any) -> int:
        """Send a request; its id."""
        self._next += 1
        payload = bytearray(data)
        header = make_frame(type=kind, request_id=self._next, table_len=len(table), data_len=len(payload), **fields)
        tag = self._seal_out.seal(header, table, payload) if self._seal_out else b""
        self.sock.sendall(b"".join((header, table, tag, payload)))
        return self._next

    def _exactly(self, size: int) -> bytearray:
        out = bytearray(size)
        view, got = memoryview(out), 0
        while got < size:
            n = self.sock.recv_into(view[got:])
            if n == 0:
                raise ConnectionError("the server closed the connection")
            got += n
        return out

    def receive(self) -> Reply:
        """The next reply, whatever it answers."""
        header = bytes(self._exactly(HEADER_BYTES))
        frame = Frame(*FRAME_STRUCT.unpack(header)[: len(Frame._fields)])
        assert frame.magic == MAGIC
        assert struct.unpack_from("<I", header, 60)[0] == crc32c(header[:60])
        table = bytes(self._exactly(frame.table_len))
        tag = bytes(self._exactly(self._seal_in.tag_bytes)) if self._seal_in else b""
        data = self._exactly(frame.data_len)
        if self._seal_in:
            assert self._seal_in.open(header, table, data, tag), "wrong tag"
        return Reply(frame, data, table)

    def call(self, kind: int, data: bytes | bytearray = b"", table: bytes = b"", **fields: Any) -> Reply:
        """Send and wait for the reply, with nothing else outstanding."""
        request_id = self.send(kind, data, table, **fields)
        reply = self.receive()
        assert reply.frame.request_id == request_id
        assert reply.frame.type == kind | 0x80
        return reply

    # --- requests

    def handshake(self, expiry_ms: int = EXPIRY_MS) -> int:
        """HELLO and PROVE; the server's incarnation. Raises AssertionError with the status when refused."""
        hello = Hello(self.session_id, expiry_ms, self.cs_id, self.mode, os.urandom(32))
        reply = self.call(FrameType.HELLO, hello.pack())
        assert reply.status == 0, reply.status
        ack = HelloAck.unpack(bytes(reply.data))
        key = tickets.session_key(self.cs_key, self.session_id, expiry_ms)
        assert tickets.hello_ack_mac(key, hello, ack) == ack.mac
        self._seal_out = _Seal(key, hello, ack, True, self.mode)
        self._seal_in = _Seal(key, hello, ack, False, self.mode)
        assert self.call(FrameType.PROVE, tickets.prove_mac(key, hello, ack)).status == 0
        return ack.incarnation

    def ticket(self, chunk_id: int, version: int, chunk_bytes: int, *, key_id: int = KEY_ID, **fields: Any) -> bytes:
        options = {"write": True, "create": False, "expiry_ms": EXPIRY_MS, "session_id": self.session_id} | fields
        return tickets.make_ticket(
            self.ticket_key, key_id, chunk_id=chunk_id, chunk_version=version, chunk_bytes=chunk_bytes, **options
        )

    def open(self, handle: int, chunk_id: int, version: int, chunk_bytes: int, **fields: Any) -> int:
        """OPEN; the status."""
        self.versions[handle] = (chunk_id, version)
        ticket = self.ticket(chunk_id, version, chunk_bytes, **fields)
        return self.call(FrameType.OPEN, ticket, handle=handle, chunk_id=chunk_id).status

    def fields(self, handle: int, offset: int, length: int) -> dict[str, int]:
        chunk_id, version = self.versions[handle]
        return {"handle": handle, "chunk_id": chunk_id, "chunk_version": version, "offset": offset, "length": length}

    def send_write(self, handle: int, offset: int, data: bytes, durable: bool = False) -> int:
        flags = int(FrameFlag.DURABLE) if durable else 0
        return self.send(
            FrameType.WRITE, data, pieces(offset, data), flags=flags, **self.fields(handle, offset, len(data))
        )

    def write(self, handle: int, offset: int, data: bytes, durable: bool = False) -> int:
        request_id = self.send_write(handle, offset, data, durable)
        reply = self.receive()
        assert reply.frame.request_id == request_id
        return reply.status

    def read(self, handle: int, offset: int, length: int) -> bytes | int:
        """Data (zeros for a hole), its checksums compared; or the status."""
        reply = self.call(FrameType.READ, **self.fields(handle, offset, length))
        if reply.status:
            return reply.status
        if reply.hole:
            return bytes(length)
        assert reply.table == pieces(offset, reply.data)
        return bytes(reply.data)

    def punch(self, handle: int, offset: int, length: int) -> int:
        return self.call(FrameType.PUNCH, **self.fields(handle, offset, length)).status

    def sync(self, *handles: int) -> int:
        return self.call(FrameType.SYNC, struct.pack(f"<{len(handles)}I", *handles)).status

    def hash(self, handle: int, offset: int, length: int) -> bytes:
        return bytes(self.call(FrameType.HASH, **self.fields(handle, offset, length)).data)

    def stat(self, handle: int) -> ChunkStat:
        return ChunkStat.unpack(bytes(self.call(FrameType.STAT, **self.fields(handle, 0, 0)).data))

    def granules(self, handle: int) -> list[tuple[int, int]]:
        data = bytes(self.call(FrameType.GRANULES, **self.fields(handle, 0, 0)).data)
        return list(struct.iter_unpack("<QQ", data))


class CsServer:
    """A chunk server engine in this process, serving. Use as a context manager: leaving it is a clean stop."""

    def __init__(self, directory: str, *, cs_id: int = 5, no_uring: bool = False, incarnation: int = 1, **config: Any):
        self.cs_id = cs_id
        self.cs_key = bytes([cs_id]) * 32
        self.ticket_key = b"t" * 32
        self.engine = CsEngine.open(
            dir=directory,
            journal_bytes=JOURNAL_BYTES,
            cluster_id=CLUSTER_ID,
            cs_id=cs_id,
            incarnation=incarnation,
            no_uring=no_uring,
            **config,
        )
        self.port = self.engine.listen("127.0.0.1")
        self.engine.set_cs_key(self.cs_key)
        self.engine.set_ticket_key(KEY_ID, self.ticket_key)
        self.serve_for(3600)
        self._thread = threading.Thread(target=self.engine.run)

    def serve_for(self, seconds: float) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        self.engine.set_time(0, now + int(seconds * 1000))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.engine.stop()
        self._thread.join()
        self.engine.close()

    def connect(self, mode: int = AuthMode.SIGN, handshake: bool = True, session_id: int = SESSION) -> DataClient:
        client = DataClient(
            ("127.0.0.1", self.port), self.cs_id, self.cs_key, self.ticket_key, mode, session_id=session_id
        )
        if handshake:
            client.handshake()
        return client
