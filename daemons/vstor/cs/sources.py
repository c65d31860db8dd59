"""Reading replicas of other chunk servers through the client engine.

DESIGN: one client engine for the whole daemon, made when the first order needs it; sessions and tickets come with each order. What
arrives was verified by the source and again here (transport checksum), so what is returned is good.
"""

from __future__ import annotations

import os
import threading

from vstor.codes_gen import ErrorCode
from vstor.cs.transfer import SourceState
from vstor.errors import VstorError
from vstor.native import Buffer
from vstor.native.cl import Client, RawChunk
from vstor.proto import messages as m
from vstor.proto.wire_gen import IO_BYTES_MAX, AuthMode, Ticket

IO_TIMEOUT_MS = 10_000  # a copy is patient: the source may be busy
CONNECT_TIMEOUT_MS = 2_000


def usable_addresses(addresses: list[str]) -> list[str]:
    """Those that can work here: a unix socket only where it exists (the source is on this host)."""
    return [a for a in addresses if not a.startswith("unix:") or os.path.exists(a.removeprefix("unix:"))]


class Sources:
    """Makes readers. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Client | None = None
        self.auth_mode: int = AuthMode.SIGN  # of data sessions; taken when the first reader is opened

    def open(self, source: m.Source, chunk_id: int) -> RawReader:
        """A reader of `chunk_id` at `source`; nothing is sent before its first call. Raises BAD_REQUEST for a malformed order."""
        try:
            ticket = Ticket.unpack(source.ticket)
            client = self._started()
            addresses = usable_addresses(source.addresses)
            client.set_cs(source.cs_id, addresses, source.session_id, source.expiry_ms, source.key)
            return RawReader(
                source.cs_id, RawChunk(client, source.cs_id, chunk_id, ticket.chunk_version, source.ticket)
            )
        except ValueError as exc:
            raise VstorError(ErrorCode.BAD_REQUEST, f"source {source.cs_id}: {exc}") from None

    def stop(self) -> None:
        """What is under way fails with SHUTTING_DOWN."""
        with self._lock:
            if self._client is not None:
                self._client.stop()

    def close(self) -> None:
        """Free the engine; nothing may be under way any more."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _started(self) -> Client:
        with self._lock:
            if self._client is None:
                client = Client(self.auth_mode, io_timeout_ms=IO_TIMEOUT_MS, connect_timeout_ms=CONNECT_TIMEOUT_MS)
                client.start()
                self._client = client
            while self._client.next_event() is not None:
                pass  # what they ask for (fresh keys, addresses) comes with the next order
            return self._client


class RawReader:
    """One replica at one source."""

    def __init__(self, cs_id: int, chunk: RawChunk) -> None:
        self.cs_id = cs_id
        self._chunk = chunk
        self._buffer: Buffer | None = None

    def stat(self) -> SourceState:
        """Version, size and sequence numbers of the replica."""
        found = self._chunk.stat()
        return SourceState(found.chunk_version, found.chunk_bytes, found.write_seq, found.incarnation)

    def granules(self, count: int) -> list[tuple[int, int]]:
        """(mod_version, write_seq) of each of the `count` granules."""
        found = self._chunk.granules()
        if len(found) != count:
            raise VstorError(ErrorCode.BAD_REQUEST, f"source {self.cs_id} has {len(found)} granules, not {count}")
        return found

    def hash(self, offset: int, length: int) -> bytes:
        """SHA-256 of the range as read (holes are zeros)."""
        return self._chunk.hash(offset, length)

    def read(self, offset: int, length: int) -> memoryview | None:
        """Verified data in aligned memory, valid until the next read; None: a hole."""
        if self._buffer is None:
            self._buffer = Buffer(IO_BYTES_MAX)
        view = self._buffer.view[:length]
        return None if self._chunk.read_into(offset, view) else view

    def close(self) -> None:
        """Give up the buffer: unmapped when the last view of it is gone."""
        self._buffer = None
