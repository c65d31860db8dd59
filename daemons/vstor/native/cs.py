"""The chunk server's data engine: cs.h as a class.

DESIGN: thin. Each method is one C function (GIL released, thread-safe, blocking until the engine thread has done it); a status > 0 or
a negative errno is raised as VstorError. `run` is called on a thread of its own.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.native import ALIGN_BYTES, Buffer, check, ffi, lib

ERROR_BYTES = 512
OPEN_ERRORS = {
    "EUCLEAN": ErrorCode.DAMAGED,
    "EPROTO": ErrorCode.NEWER_FORMAT,
    "EBUSY": ErrorCode.IN_USE,
    "EINVAL": ErrorCode.WRONG_CLUSTER,
    "ENOSPC": ErrorCode.NO_SPACE,
    "EACCES": ErrorCode.DENIED,
    "EPERM": ErrorCode.DENIED,
    "ENOENT": ErrorCode.NOT_FOUND,
}


class Replica(NamedTuple):
    """struct vst_cs_chunk."""

    chunk_id: int
    version: int
    chunk_bytes: int
    written_blocks: int
    bad_blocks: int
    syncing: bool


class Event(NamedTuple):
    """struct vst_cs_event. kind: CORRUPT, IO_ERROR, NO_SPACE, JOURNAL_ERROR, FATAL."""

    kind: str
    error: int
    chunk_id: int
    offset: int
    repeats: int


def _event_names() -> dict[int, str]:
    prefix = "VST_CS_EV_"
    return {getattr(lib, name): name.removeprefix(prefix) for name in dir(lib) if name.startswith(prefix)}


def _replica(c: Any) -> Replica:
    return Replica(c.chunk_id, c.version, c.chunk_bytes, c.written_blocks, c.bad_blocks, bool(c.flags & 1))


class CsEngine:
    """One open chunk store and its server. Made by `open`."""

    def __init__(self, handle: Any) -> None:
        self._cs = handle
        self._events = _event_names()
        self._event = ffi.new("struct vst_cs_event *")
        self._counter_names = [name for name, _ in ffi.typeof("struct vst_cs_counters").fields]

    @classmethod
    def open(
        cls,
        *,
        dir: str,
        journal: str | None,
        journal_bytes: int,
        cluster_id: bytes,
        cs_id: int,
        incarnation: int,
        reserve_bytes: int,
        min_auth_mode: int = 0,
        no_uring: bool = False,
    ) -> CsEngine:
        """Open, making what is missing in a fresh directory, and replay the journal.

        Raises: DAMAGED, NEWER_FORMAT, IN_USE (locked), WRONG_CLUSTER, NO_SPACE, DENIED, IO_ERROR, naming the file.
        """
        config = ffi.new("struct vst_cs_config *")
        keep = [ffi.new("char[]", dir.encode())]
        config.dir = keep[0]
        if journal:
            keep.append(ffi.new("char[]", journal.encode()))
            config.journal = keep[1]
        config.journal_bytes, config.cs_id, config.incarnation = journal_bytes, cs_id, incarnation
        config.reserve_bytes, config.min_auth_mode = reserve_bytes, min_auth_mode
        config.cluster_id = list(cluster_id)
        config.flags = lib.VST_CS_NO_URING if no_uring else 0
        out, error = ffi.new("vst_cs **"), ffi.new(f"char[{ERROR_BYTES}]")
        result = lib.vst_cs_open(config, out, error, ERROR_BYTES)
        if result < 0:
            code = OPEN_ERRORS.get(errno.errorcode.get(-result, ""), ErrorCode.IO_ERROR)
            raise VstorError(code, ffi.string(error).decode(errors="replace") or f"cannot open {dir}")
        return cls(out[0])

    # --- the server

    def listen(self, address: str, port: int) -> int:
        """Listen on "IPv4", "IPv6" or "unix:/path"; the port bound. Raises IN_USE, CONFIG."""
        bound = ffi.new("uint16_t *", port)
        shown = address if address.startswith("unix:") else f"{address} port {port}"
        check(lib.vst_cs_listen(self._cs, address.encode(), bound), f"cannot listen on {shown}")
        return int(bound[0])

    def run(self) -> None:
        """The event loop; returns after stop(). Raises what ended it otherwise."""
        check(lib.vst_cs_run(self._cs), "data engine")

    def stop(self) -> None:
        """End run(), from any thread."""
        lib.vst_cs_stop(self._cs)

    def close(self) -> None:
        """Free everything. Nothing may be called afterwards."""
        if self._cs is not None:
            lib.vst_cs_close(self._cs)
            self._cs = None

    @property
    def event_fd(self) -> int:
        """Readable while events wait."""
        return int(lib.vst_cs_event_fd(self._cs))

    def next_event(self) -> Event | None:
        """The next event, None when there is none. Never blocks."""
        e = self._event
        if not lib.vst_cs_next_event(self._cs, e):
            return None
        return Event(self._events.get(e.kind, str(e.kind)), e.error, e.chunk_id, e.offset, e.count)

    def counters(self) -> dict[str, int]:
        """struct vst_cs_counters; reading resets the *_max."""
        out = ffi.new("struct vst_cs_counters *")
        lib.vst_cs_get_counters(self._cs, out)
        return {name: int(getattr(out, name)) for name in self._counter_names}

    # --- keys and time

    def set_cs_key(self, key: bytes) -> None:
        check(lib.vst_cs_set_cs_key(self._cs, _key(key)), "set the key of the chunk server")

    def set_ticket_key(self, key_id: int, key: bytes) -> None:
        check(lib.vst_cs_set_ticket_key(self._cs, key_id, _key(key)), "set a ticket key")

    def set_min_auth(self, mode: int) -> None:
        check(lib.vst_cs_set_min_auth(self._cs, mode), "set the authentication mode")

    def set_time(self, offset_ms: int, serve_until_boottime_ms: int) -> None:
        check(lib.vst_cs_set_time(self._cs, offset_ms, serve_until_boottime_ms), "set the time")

    # --- orders

    def set_version(self, chunk_id: int, version: int) -> None:
        self._status(lib.vst_cs_set_version(self._cs, chunk_id, version), "set version", chunk_id)

    def create(self, chunk_id: int, chunk_bytes: int, version: int, syncing: bool) -> None:
        self._status(lib.vst_cs_create(self._cs, chunk_id, chunk_bytes, version, int(syncing)), "create", chunk_id)

    def begin_sync(self, chunk_id: int) -> None:
        self._status(lib.vst_cs_begin_sync(self._cs, chunk_id), "begin sync", chunk_id)

    def finish_sync(self, chunk_id: int, version: int) -> None:
        self._status(lib.vst_cs_finish_sync(self._cs, chunk_id, version), "finish sync", chunk_id)

    def delete(self, chunk_id: int) -> None:
        self._status(lib.vst_cs_delete(self._cs, chunk_id), "delete", chunk_id)

    # --- local access

    def read(self, chunk_id: int, offset: int, length: int, buffer: Any) -> bool:
        """Read into aligned memory (Buffer.part or pointer); True: a hole."""
        hole = ffi.new("int *")
        self._status(lib.vst_cs_read(self._cs, chunk_id, offset, length, buffer, hole), "read", chunk_id)
        return bool(hole[0])

    def write(self, chunk_id: int, version: int, offset: int, data: Any, durable: bool) -> None:
        """Write `data` (page-aligned memory; other memory is copied first)."""
        pointer, keep = _aligned(data)
        status = lib.vst_cs_write(
            self._cs, chunk_id, version, offset, len(data), pointer, lib.VST_CS_WRITE_DURABLE if durable else 0
        )
        del keep
        self._status(status, "write", chunk_id)

    def repair(self, chunk_id: int, version: int, offset: int, data: Any) -> int:
        """Write only the blocks that are still quarantined (a client may have overwritten others meanwhile); how many."""
        before = self.stat(chunk_id).bad_blocks
        flags = lib.VST_CS_WRITE_ONLY_BAD | lib.VST_CS_WRITE_DURABLE
        pointer, keep = _aligned(data)
        status = lib.vst_cs_write(self._cs, chunk_id, version, offset, len(data), pointer, flags)
        del keep
        self._status(status, "repair", chunk_id)
        return max(0, before - self.stat(chunk_id).bad_blocks)

    def punch(self, chunk_id: int, version: int, offset: int, length: int) -> None:
        self._status(lib.vst_cs_punch(self._cs, chunk_id, version, offset, length), "punch", chunk_id)

    def hash(self, chunk_id: int, offset: int, length: int) -> bytes:
        """SHA-256 of the range as read (holes are zeros)."""
        out = ffi.new("uint8_t[32]")
        self._status(lib.vst_cs_hash(self._cs, chunk_id, offset, length, out), "hash", chunk_id)
        return bytes(out)

    def granules(self, chunk_id: int, count: int) -> list[tuple[int, int]]:
        """(mod_version, write_seq) of each granule."""
        pairs = ffi.new("uint64_t[]", 2 * count)
        got = lib.vst_cs_granules(self._cs, chunk_id, pairs, count)
        if got < 0:
            self._status(-got, "granules", chunk_id)
        return [(int(pairs[2 * i]), int(pairs[2 * i + 1])) for i in range(min(got, count))]

    def stat(self, chunk_id: int) -> Replica:
        out = ffi.new("struct vst_cs_chunk *")
        self._status(lib.vst_cs_stat(self._cs, chunk_id, out), "stat", chunk_id)
        return _replica(out)

    def list(self, after: int, count: int) -> list[Replica]:
        """Replicas with an id above `after`, ascending, at most `count`."""
        out = ffi.new("struct vst_cs_chunk[]", count)
        got = check(lib.vst_cs_list(self._cs, after, out, count), "list chunks")
        return [_replica(out[i]) for i in range(got)]

    def sync(self) -> None:
        """Everything on stable storage."""
        self._status(lib.vst_cs_sync(self._cs), "sync", 0)

    def scrub(self, chunk_id: int) -> tuple[int, int]:
        """Read the chunk from the disk against its checksums: (bad blocks, bytes read)."""
        n_bytes = ffi.new("uint64_t *")
        got = lib.vst_cs_scrub(self._cs, chunk_id, n_bytes)
        if got < 0:
            self._status(-got, "scrub", chunk_id)
        return int(got), int(n_bytes[0])

    def _status(self, status: int, what: str, chunk_id: int) -> None:
        if status > 0:
            error = VstorError(ErrorCode(status))
            raise VstorError(error.code, f"{what} of chunk {chunk_id}: {error.message}")
        check(status, f"{what} of chunk {chunk_id}")


def _key(key: bytes) -> bytes:
    if len(key) != 32:
        raise ValueError(f"a key is 32 bytes, not {len(key)}")
    return key


def _aligned(data: Any) -> tuple[Any, Any]:
    """(pointer, what keeps it alive) to page-aligned memory with the bytes of `data`."""
    view = memoryview(data)
    if not view.readonly:
        pointer = ffi.from_buffer(view)
        if int(ffi.cast("uintptr_t", pointer)) % ALIGN_BYTES == 0:
            return pointer, pointer
    buffer = Buffer((view.nbytes + ALIGN_BYTES - 1) // ALIGN_BYTES * ALIGN_BYTES)
    buffer.view[: view.nbytes] = view
    return buffer.pointer, buffer
