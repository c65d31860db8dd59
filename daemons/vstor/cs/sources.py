"""Reading replicas of other chunk servers through the client engine's raw calls.

DESIGN: one client engine for the whole daemon, made when the first order needs it; sessions and tickets come with each order. Blocks that
arrive were verified by the source and again here (transport checksum), so what is returned is good.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from vstor import native
from vstor.codes_gen import ErrorCode
from vstor.cs.engine import status_error
from vstor.cs.transfer import SourceState
from vstor.errors import VstorError
from vstor.native import ffi, lib
from vstor.proto import messages as m
from vstor.proto.wire_gen import IO_BYTES_MAX, AuthMode, ChunkStat, Ticket

log = logging.getLogger(__name__)

IO_TIMEOUT_MS = 10_000  # a copy is patient: the source may be busy
CONNECT_TIMEOUT_MS = 2_000
GRANULES_MAX = 1024


def usable_addresses(addresses: list[str]) -> list[str]:
    """Those that can work here: a unix socket only where it exists (the source is on this host)."""
    return [a for a in addresses if not a.startswith("unix:") or os.path.exists(a.removeprefix("unix:"))]


class Sources:
    """Makes readers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Any = None
        self._auth_mode = AuthMode.SIGN

    def set_auth_mode(self, mode: int) -> None:
        """Of data sessions; to be called before the first `open`."""
        self._auth_mode = AuthMode(mode)

    def open(self, source: m.Source, chunk_id: int) -> RawReader:
        """A reader of `chunk_id` at `source`; nothing is sent before its first call. Raises BAD_REQUEST for a malformed order."""
        try:
            ticket = Ticket.unpack(source.ticket)
        except ValueError as exc:
            raise VstorError(ErrorCode.BAD_REQUEST, f"ticket for source {source.cs_id}: {exc}") from None
        engine = self._started()
        addresses = " ".join(usable_addresses(source.addresses)).encode()
        result = lib.vst_cl_set_cs(
            engine, source.cs_id, addresses, source.session_id, source.expiry_ms, ffi.from_buffer(source.key)
        )
        native.check(result, f"chunk server {source.cs_id}")
        return RawReader(engine, source, chunk_id, ticket.chunk_version)

    def close(self) -> None:
        """Stop the engine; readers fail with SHUTTING_DOWN."""
        with self._lock:
            if self._engine is not None:
                lib.vst_cl_stop(self._engine)
                lib.vst_cl_free(self._engine)
                self._engine = None

    def _started(self) -> Any:
        with self._lock:
            if self._engine is None:
                config = ffi.new("struct vst_cl_config *")
                config.auth_mode = int(self._auth_mode)
                config.io_timeout_ms, config.connect_timeout_ms = IO_TIMEOUT_MS, CONNECT_TIMEOUT_MS
                engine = lib.vst_cl_new(config)
                if engine == ffi.NULL:
                    raise VstorError(ErrorCode.INTERNAL, "cannot make a client engine: out of memory")
                native.check(lib.vst_cl_start(engine), "starting the client engine")
                self._engine = engine
            return self._engine


class RawReader:
    """One replica at one source."""

    def __init__(self, engine: Any, source: m.Source, chunk_id: int, version: int) -> None:
        self.cs_id = source.cs_id
        self._engine = engine
        self._ticket = ffi.new("uint8_t[]", source.ticket)  # kept alive: the struct below only points to it
        self._raw = ffi.new("struct vst_raw *")
        self._raw.cs_id, self._raw.chunk_id, self._raw.version = source.cs_id, chunk_id, version
        self._raw.ticket = self._ticket
        self._buffer: native.Buffer | None = None

    def stat(self) -> SourceState:
        """Version, size and sequence numbers of the replica."""
        out = ffi.new("uint8_t[48]")
        self._check(lib.vst_raw_stat(self._engine, self._raw, out), "stat")
        found = ChunkStat.unpack(bytes(out))
        return SourceState(found.chunk_version, found.chunk_bytes, found.write_seq, found.incarnation)

    def granules(self, count: int) -> list[tuple[int, int]]:
        """(mod_version, write_seq) of each of the `count` granules."""
        pairs = ffi.new("uint64_t[]", 2 * GRANULES_MAX)
        got = lib.vst_raw_granules(self._engine, self._raw, pairs, GRANULES_MAX)
        if got < 0:
            self._check(got, "granules")
        if got != count:
            raise VstorError(ErrorCode.BAD_REQUEST, f"source {self.cs_id} has {got} granules, not {count}")
        return [(int(pairs[2 * i]), int(pairs[2 * i + 1])) for i in range(count)]

    def hash(self, offset: int, length: int) -> bytes:
        """SHA-256 of the range as read (holes are zeros)."""
        out = ffi.new("uint8_t[32]")
        self._check(lib.vst_raw_hash(self._engine, self._raw, offset, length, out), "hash")
        return bytes(out)

    def read(self, offset: int, length: int) -> memoryview | None:
        """Verified data in aligned memory, valid until the next read; None: a hole."""
        if self._buffer is None:
            self._buffer = native.Buffer(IO_BYTES_MAX)
        hole = ffi.new("int *")
        pointer = self._buffer.part(0, length)
        self._check(lib.vst_raw_read(self._engine, self._raw, offset, length, pointer, hole), "read")
        return None if hole[0] else self._buffer.view[:length]

    def close(self) -> None:
        """Give up the buffer."""
        self._buffer = None  # unmapped when the last view of it is gone

    def _check(self, result: int, what: str) -> None:
        if result > 0:
            raise status_error(result, f"{what} at chunk server {self.cs_id}")
        native.check(result, f"{what} at chunk server {self.cs_id}")
