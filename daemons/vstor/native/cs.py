"""The chunk server's data engine (native/include/vstor/cs.h) for Python: CsEngine.

DESIGN: thin, one method for one C call. A status > 0 becomes the VstorError of the same code, a negative errno one with the reason.
Every call but next_event, counters and stop waits for the engine thread: not for an event loop's thread. run() is the engine
thread: the caller gives it one. cffi releases the GIL around each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Self

from vstor.codes_gen import ERRORS, ErrorCode
from vstor.errors import VstorError
from vstor.native import check, ffi, lib
from vstor.proto.wire_gen import ChunkFlag

WHOLE_REPLICA = (1 << 64) - 1  # offset of a CORRUPT event: the replica is quarantined as a whole
LIST_MAX = 65536
STATUS_OFFSET = -1000  # granules and scrub: -1000 - status
ERROR_BYTES = 1024


class EventKind(StrEnum):
    """enum vst_cs_event_kind."""

    CORRUPT = "CORRUPT"
    IO_ERROR = "IO_ERROR"
    NO_SPACE = "NO_SPACE"
    JOURNAL_ERROR = "JOURNAL_ERROR"
    FATAL = "FATAL"


_KINDS = {int(getattr(lib, f"VST_CS_EV_{kind.name}")): kind for kind in EventKind}


class Event(NamedTuple):
    """struct vst_cs_event. error: positive errno or 0; count: how often the same came in a row."""

    kind: str
    error: int
    chunk_id: int
    offset: int
    count: int  # type: ignore[assignment]


class Replica(NamedTuple):
    """struct vst_cs_chunk."""

    chunk_id: int
    version: int
    chunk_bytes: int
    written_blocks: int
    bad_blocks: int
    flags: int

    @property
    def syncing(self) -> bool:
        """A copy in progress, not served."""
        return bool(self.flags & ChunkFlag.SYNCING)


def _replica(raw: Any) -> Replica:
    return Replica(raw.chunk_id, raw.version, raw.chunk_bytes, raw.written_blocks, raw.bad_blocks, raw.flags)


def _status(result: int, what: str) -> None:
    """0 is fine, > 0 a status, < 0 an errno."""
    if result > 0:
        code = ErrorCode(result)
        raise VstorError(code, f"{what}: {ERRORS[code].text}")
    check(result, what)


def _count(result: int, what: str) -> int:
    if result <= STATUS_OFFSET:
        _status(STATUS_OFFSET - result, what)
    return check(result, what)


class CsEngine:
    """One chunk server's store and server loop. Thread-safe but for run (one caller) and close (no other call under way)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def open(
        cls,
        *,
        dir: str,
        journal_bytes: int,
        cluster_id: bytes,
        cs_id: int,
        incarnation: int,
        journal: str | None = None,
        reserve_bytes: int = 0,
        min_auth_mode: int = 0,
        no_uring: bool = False,
    ) -> Self:
        """Open the store: made when the directory is fresh, else checked, and the journal replayed (up to seconds).

        Args:
            journal: path of the journal file, None for dir/journal. journal_bytes: multiple of 64 MiB, used when it is made.
            incarnation: a new number for each start.
            reserve_bytes: free space below which clients' writes get NO_SPACE.
        Raises: IN_USE (another process), DAMAGED, NEWER_FORMAT, INVALID (another cluster), NO_SPACE, IO_ERROR,
            CONFIG (a device with sectors above 4096 bytes), naming the file.
        """
        if len(cluster_id) != 16:
            raise ValueError(f"cluster_id is 16 bytes, not {len(cluster_id)}")
        directory = ffi.new("char[]", dir.encode())
        journal_path = ffi.NULL if journal is None else ffi.new("char[]", journal.encode())
        config = ffi.new("struct vst_cs_config *")
        config.dir, config.journal, config.journal_bytes = directory, journal_path, journal_bytes
        config.cluster_id = cluster_id
        config.cs_id, config.incarnation, config.reserve_bytes = cs_id, incarnation, reserve_bytes
        config.min_auth_mode = min_auth_mode
        config.flags = lib.VST_CS_NO_URING if no_uring else 0
        out = ffi.new("vst_cs **")
        message = ffi.new("char[]", ERROR_BYTES)
        result = lib.vst_cs_open(config, out, message, ERROR_BYTES)
        if result < 0:
            try:
                check(result, dir)
            except VstorError as exc:
                text = ffi.string(message).decode(errors="replace")
                raise VstorError(exc.code, text or exc.message) from None
        return cls(out[0])

    @property
    def _cs(self) -> Any:
        if self._handle is None:
            raise ValueError("the engine is closed")
        return self._handle

    @property
    def direct(self) -> bool:
        """Files are opened with O_DIRECT."""
        return bool(lib.vst_cs_direct(self._cs))

    def listen(self, address: str, port: int = 0) -> int:
        """Listen on an IPv4 or IPv6 address, or on "unix:/path". Returns the port bound. Raises IN_USE, CONFIG, INVALID."""
        wanted = ffi.new("uint16_t *", port)
        check(lib.vst_cs_listen(self._cs, address.encode(), wanted), f"listen on {address} port {port}")
        return int(wanted[0])

    def run(self) -> None:
        """The loop: returns after stop(), when answers are out, the journal is checkpointed and files are synced."""
        check(lib.vst_cs_run(self._cs), "chunk server engine")

    def stop(self) -> None:
        """End run(). From any thread or a signal handler."""
        lib.vst_cs_stop(self._cs)

    def close(self) -> None:
        """Free everything (after run() has returned); again is fine."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.vst_cs_close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- events and counters

    @property
    def event_fd(self) -> int:
        """Readable while events wait."""
        return int(lib.vst_cs_event_fd(self._cs))

    def next_event(self) -> Event | None:
        """The oldest event, or None. Does not block."""
        raw = ffi.new("struct vst_cs_event *")
        if not lib.vst_cs_next_event(self._cs, raw):
            return None
        return Event(_KINDS[raw.kind].value, raw.error, raw.chunk_id, raw.offset, raw.count)

    def counters(self) -> dict[str, int]:
        """struct vst_cs_counters by name. The *_max are since the last call."""
        raw = ffi.new("struct vst_cs_counters *")
        lib.vst_cs_get_counters(self._cs, raw)
        return {name: int(getattr(raw, name)) for name, _ in ffi.typeof("struct vst_cs_counters").fields}

    # --- keys and time

    def set_cs_key(self, key: bytes) -> None:
        """32 bytes: session keys of clients are derived from it."""
        check(lib.vst_cs_set_cs_key(self._cs, _key(key)), "set_cs_key")

    def set_ticket_key(self, key_id: int, key: bytes) -> None:
        """Tickets made with this key are accepted; the four keys set last are kept."""
        check(lib.vst_cs_set_ticket_key(self._cs, key_id, _key(key)), "set_ticket_key")

    def forget_ticket_keys(self, below: int) -> None:
        """Keys with smaller ids are not accepted any more, and what was opened with them is closed (its requests get EXPIRED)."""
        check(lib.vst_cs_forget_ticket_keys(self._cs, below), "forget_ticket_keys")

    def set_min_auth(self, mode: int) -> None:
        """Weakest AuthMode accepted from new connections."""
        check(lib.vst_cs_set_min_auth(self._cs, mode), "set_min_auth")

    def set_time(self, offset_ms: int, serve_until_boottime_ms: int) -> None:
        """Cluster time is CLOCK_BOOTTIME + offset_ms; requests are served until CLOCK_BOOTTIME reaches serve_until."""
        check(lib.vst_cs_set_time(self._cs, offset_ms, serve_until_boottime_ms), "set_time")

    # --- orders: durable on return

    def set_version(self, chunk_id: int, version: int) -> None:
        """Raise the version, after requests in flight. Raises NO_CHUNK, STALE (would go down), IO_ERROR."""
        _status(lib.vst_cs_set_version(self._cs, chunk_id, version), f"set version of chunk {chunk_id}")

    def create(self, chunk_id: int, chunk_bytes: int, version: int, syncing: bool = False) -> None:
        """An empty replica. Raises EXISTS, NO_SPACE, BAD_REQUEST (size), IO_ERROR."""
        _status(lib.vst_cs_create(self._cs, chunk_id, chunk_bytes, version, syncing), f"create chunk {chunk_id}")

    def begin_sync(self, chunk_id: int) -> None:
        """Mark a stale replica as a copy in progress: not served until finish_sync. Raises NO_CHUNK, IO_ERROR."""
        _status(lib.vst_cs_begin_sync(self._cs, chunk_id), f"begin sync of chunk {chunk_id}")

    def finish_sync(self, chunk_id: int, version: int) -> None:
        """The copy is complete, at this version. Raises NO_CHUNK, STALE, IO_ERROR."""
        _status(lib.vst_cs_finish_sync(self._cs, chunk_id, version), f"finish sync of chunk {chunk_id}")

    def delete(self, chunk_id: int) -> None:
        """Idempotent. Raises IO_ERROR."""
        _status(lib.vst_cs_delete(self._cs, chunk_id), f"delete chunk {chunk_id}")

    # --- local access

    def read(self, chunk_id: int, offset: int, length: int) -> bytes | None:
        """Whole blocks, verified; None: nothing is written there. Raises NO_CHUNK, CORRUPT, IO_ERROR, BAD_REQUEST."""
        data = ffi.new("char[]", max(length, 1))
        hole = ffi.new("int *")
        _status(lib.vst_cs_read(self._cs, chunk_id, offset, length, data, hole), f"read chunk {chunk_id} at {offset}")
        return None if hole[0] else bytes(ffi.buffer(data, length))

    def write(
        self, chunk_id: int, version: int, offset: int, data: bytes | bytearray | memoryview, durable: bool = False
    ) -> None:
        """Whole blocks; mod_version of the granules becomes `version`. Raises NO_CHUNK, BUSY, NO_SPACE, IO_ERROR, BAD_REQUEST."""
        with ffi.from_buffer(data) as raw:
            result = lib.vst_cs_write(self._cs, chunk_id, version, offset, len(raw), raw, durable)
        _status(result, f"write chunk {chunk_id} at {offset}")

    def repair(self, chunk_id: int, version: int, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write good data to the blocks of the range that are still quarantined, durably. Returns how many there were.

        Raises: STALE (the replica has another version), NO_CHUNK, BUSY, IO_ERROR, BAD_REQUEST.
        """
        mended = ffi.new("uint32_t *")
        with ffi.from_buffer(data) as raw:
            result = lib.vst_cs_repair(self._cs, chunk_id, version, offset, len(raw), raw, mended)
        _status(result, f"repair chunk {chunk_id} at {offset}")
        return int(mended[0])

    def punch(self, chunk_id: int, version: int, offset: int, length: int) -> None:
        """Any range reads as zeros afterwards. Raises NO_CHUNK, BUSY, CORRUPT (a quarantined edge block), IO_ERROR."""
        _status(lib.vst_cs_punch(self._cs, chunk_id, version, offset, length), f"punch chunk {chunk_id} at {offset}")

    def hash(self, chunk_id: int, offset: int, length: int) -> bytes:
        """SHA-256 of a range of at most IO_BYTES_MAX (holes are zeros). Raises as read."""
        out = ffi.new("uint8_t[32]")
        _status(lib.vst_cs_hash(self._cs, chunk_id, offset, length, out), f"hash chunk {chunk_id} at {offset}")
        return bytes(out)

    def granules(self, chunk_id: int, count: int) -> Sequence[tuple[int, int]]:
        """(mod_version, write_seq of this incarnation) of the first `count` granules. Raises NO_CHUNK, CORRUPT, IO_ERROR."""
        pairs = ffi.new("uint64_t[]", 2 * count)
        n = _count(lib.vst_cs_granules(self._cs, chunk_id, pairs, count), f"granules of chunk {chunk_id}")
        return [(pairs[2 * i], pairs[2 * i + 1]) for i in range(n)]

    def stat(self, chunk_id: int) -> Replica:
        """Raises NO_CHUNK."""
        out = ffi.new("struct vst_cs_chunk *")
        _status(lib.vst_cs_stat(self._cs, chunk_id, out), f"chunk {chunk_id}")
        return _replica(out)

    def list(self, after: int = 0, count: int = LIST_MAX) -> Sequence[Replica]:
        """Replicas with chunk_id > after, ascending."""
        out = ffi.new("struct vst_cs_chunk[]", count)
        n = check(lib.vst_cs_list(self._cs, after, out, count), "list chunks")
        return [_replica(out[i]) for i in range(n)]

    def sync(self) -> None:
        """Everything acknowledged before is on stable storage. Raises IO_ERROR."""
        _status(lib.vst_cs_sync(self._cs), "sync")

    def scrub(self, chunk_id: int) -> tuple[int, int]:
        """Check every block from the disk itself. Returns (bad blocks, bytes read). Raises NO_CHUNK, CORRUPT, IO_ERROR."""
        n_bytes = ffi.new("uint64_t *")
        bad = _count(lib.vst_cs_scrub(self._cs, chunk_id, n_bytes), f"scrub chunk {chunk_id}")
        return bad, int(n_bytes[0])


def _key(key: bytes) -> bytes:
    if len(key) != 32:
        raise ValueError(f"a key is 32 bytes, not {len(key)}")
    return key
