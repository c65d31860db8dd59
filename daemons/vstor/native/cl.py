"""The client's data engine (native/include/vstor/client.h) for Python: Client, File, RawChunk.

DESIGN: thin. Results that callers decide on (submit, the fuse_ calls) stay as they are, 0 or a negative errno; everything else raises.
Statuses of chunk servers (> 0) become VstorErrors of the same code. Calls that wait for the engine thread (set_size, take_dirty,
take_touched, unsynced, note_lost, committed, fuse_bind) take one turn of its loop; File.close and Client.stop wait for requests, RawChunk and File.io for the
network: not for an event loop's thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.native import check, ffi, lib
from vstor.proto.wire_gen import CHUNK_BYTES_MAX, GRANULE_BYTES, AuthMode, ChunkStat

IO_TIMEOUT_MS = 2_000
CONNECT_TIMEOUT_MS = 2_000
FUSE_MESSAGE_BYTES_MAX = (1 << 20) + 8192
TOUCHED_MAX = 64
CHUNK_INDEX_MAX = 0xFFFFFFFF
GRANULES_MAX = CHUNK_BYTES_MAX // GRANULE_BYTES
STATUS_OFFSET = -1000  # vst_raw_granules: -1000 - status


class Event(NamedTuple):
    """struct vst_cl_event; the meaning of the fields depends on `kind` (client.h)."""

    kind: int
    index: int  # type: ignore[assignment]
    ino: int
    chunk_id: int
    version: int
    cs_id: int
    offset: int
    error: int
    write: int
    cookie: int
    result: int


class Client:
    """One engine with its thread. Thread-safe but for stop and close.

    Args:
        auth_mode: least protection of data connections (AuthMode).
        no_space_fails: a full cluster fails writes with ENOSPC instead of letting them wait (R11).
    Raises: INTERNAL when there is no memory or descriptor for it.
    """

    def __init__(
        self,
        auth_mode: int = AuthMode.SIGN,
        *,
        io_timeout_ms: int = IO_TIMEOUT_MS,
        connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
        no_space_fails: bool = False,
    ) -> None:
        config = ffi.new("struct vst_cl_config *")
        config.auth_mode = int(auth_mode)
        config.io_timeout_ms = io_timeout_ms
        config.connect_timeout_ms = connect_timeout_ms
        config.flags = lib.VST_CL_ENOSPC if no_space_fails else 0
        self._cl = lib.vst_cl_new(config)
        if self._cl == ffi.NULL:
            raise VstorError(ErrorCode.INTERNAL, f"client engine: {os.strerror(ffi.errno)}")
        self._event = ffi.new("struct vst_cl_event *")
        self._message: Any = None
        self._files: set[File] = set()
        self.event_fd: int = lib.vst_cl_event_fd(self._cl)

    @property
    def handle(self) -> Any:
        """vst_cl *. Raises ValueError after close()."""
        if self._cl is None:
            raise ValueError("client engine is closed")
        return self._cl

    def start(self) -> None:
        """Start the engine thread."""
        check(lib.vst_cl_start(self.handle), "starting the client engine")

    def stop(self) -> None:
        """End what is in flight with ESHUTDOWN and join the thread; events can still be taken. Idempotent."""
        if self._cl is not None:
            lib.vst_cl_stop(self._cl)

    def close(self) -> None:
        """Stop and free; files of this engine are gone with it. Idempotent."""
        if self._cl is None:
            return
        lib.vst_cl_stop(self._cl)
        for file in list(self._files):
            file.close()
        lib.vst_cl_free(self._cl)
        self._cl = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- servers, leases, files

    def set_cs(self, cs_id: int, addresses: Iterable[str], session_id: int, expiry_ms: int, key: bytes) -> None:
        """Where a chunk server is ("ip:port", "unix:/path", best first; none: not reachable now) and the session key for it.
        Raises INVALID for an address that cannot be read."""
        if len(key) != 32:
            raise ValueError("a session key is 32 bytes")
        text = " ".join(addresses)
        check(
            lib.vst_cl_set_cs(self.handle, cs_id, text.encode(), session_id, expiry_ms, bytes(key)),
            f"chunk server {cs_id} at {text!r}",
        )

    def set_lease_until(self, boottime_ms: int) -> None:
        """All leases end at this CLOCK_BOOTTIME ms unless moved on."""
        lib.vst_cl_set_lease_until(self.handle, max(0, boottime_ms))

    def new_file(self, ino: int, chunk_bytes: int, size_bytes: int) -> File:
        """A file without lease and maps. Raises INVALID for a chunk size that is none."""
        pointer = lib.vst_file_new(self.handle, ino, chunk_bytes, size_bytes)
        if pointer == ffi.NULL:
            check(-(ffi.errno or errno.ENOMEM), f"file {ino}")
        return File(self, pointer, ino, chunk_bytes)

    # --- events

    def next_event(self) -> Event | None:
        """The next event, or None. When `event_fd` is readable, call until None."""
        e = self._event
        if self._cl is None or not lib.vst_cl_next_event(self._cl, e):
            return None
        return Event(
            e.kind, e.index, e.ino, e.chunk_id, e.version, e.cs_id, e.offset, e.error, e.write, e.cookie, e.result
        )  # fmt: skip

    def counters(self) -> dict[str, int]:
        """struct vst_cl_counters by field name."""
        out = ffi.new("struct vst_cl_counters *")
        lib.vst_cl_get_counters(self.handle, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof("struct vst_cl_counters").fields}

    # --- FUSE

    def fuse_start(self, fd: int, max_write_bytes: int, max_background: int) -> int:
        """Serve this /dev/fuse (already mounted). 0 or -errno. The descriptor stays the caller's, to be closed after close()."""
        config = ffi.new("struct vst_fuse_config *")
        config.max_write, config.max_background = max_write_bytes, max_background
        return int(lib.vst_fuse_start(self.handle, fd, config))

    def fuse_take(self) -> bytes | None:
        """One whole request of the kernel that is Python's to answer, or None."""
        if self._message is None:
            self._message = ffi.new("char[]", FUSE_MESSAGE_BYTES_MAX)
        length = lib.vst_fuse_take(self.handle, self._message, FUSE_MESSAGE_BYTES_MAX)
        return bytes(ffi.buffer(self._message, length)) if length > 0 else None

    def fuse_reply(self, unique: int, error: int, body: bytes = b"") -> int:
        """Answer: 0, or -errno of the kernel (-ENOENT: interrupted, nobody waits)."""
        return int(lib.vst_fuse_reply(self.handle, unique, error, body, len(body)))

    def fuse_notify(self, code: int, body: bytes) -> int:
        """Tell the kernel something (FUSE_NOTIFY_*): 0 or -errno. May block on page locks."""
        return int(lib.vst_fuse_notify(self.handle, code, body, len(body)))

    def fuse_bind(self, fh: int, file: File, flags: int) -> int:
        """Data requests of this handle are the engine's from now on (also to change flags). 0 or -errno."""
        return int(lib.vst_fuse_bind(self.handle, fh, file.handle, flags))

    def fuse_unbind(self, fh: int) -> int:
        """At RELEASE. 0 or -errno."""
        return int(lib.vst_fuse_unbind(self.handle, fh))

    def fuse_put_name(self, parent: int, name: bytes, ino: int) -> int:
        """Answer LOOKUP of this name with this inode (0: it does not exist) until it is dropped. 0 or -errno."""
        return int(lib.vst_fuse_put_name(self.handle, parent, name, len(name), ino))

    def fuse_drop_name(self, parent: int, name: bytes) -> bool:
        """True when the kernel may go on using it."""
        return int(lib.vst_fuse_drop_name(self.handle, parent, name, len(name))) == 1

    def fuse_put_attr(self, file: File | None, ino: int, generation: int, attr: bytes) -> int:
        """Answer GETATTR with this struct fuse_attr until it is dropped or the file is written to. 0 or -errno."""
        pointer = ffi.NULL if file is None else file.handle
        return int(lib.vst_fuse_put_attr(self.handle, pointer, ino, generation, attr, len(attr)))

    def fuse_drop_attr(self, ino: int) -> int:
        """How many references the kernel got by LOOKUPs answered with it."""
        return int(lib.vst_fuse_drop_attr(self.handle, ino))

    def fuse_new_epoch(self, give_names: bool) -> None:
        """Names given so far count as not given; may the kernel use names without asking from now on?"""
        lib.vst_fuse_new_epoch(self.handle, int(give_names))


class File:
    """One inode's data (vst_file). Made by Client.new_file."""

    def __init__(self, client: Client, pointer: Any, ino: int, chunk_bytes: int) -> None:
        self._client = client
        self._file = pointer
        self.ino = ino
        self.chunk_bytes = chunk_bytes
        client._files.add(self)

    @property
    def handle(self) -> Any:
        """vst_file *. Raises ValueError after close()."""
        if self._file is None:
            raise ValueError(f"file {self.ino} is closed")
        return self._file

    def close(self) -> None:
        """Wait for the file's requests and free it: no event names it afterwards. Idempotent."""
        pointer, self._file = self._file, None
        if pointer is not None:
            self._client._files.discard(self)
            lib.vst_file_free(pointer)

    @property
    def size(self) -> int:
        """Bytes, as of the writes completed."""
        return int(lib.vst_file_size(self.handle))

    def set_size(self, size_bytes: int) -> None:
        """Valid for what comes after it."""
        lib.vst_file_set_size(self.handle, size_bytes)

    def set_lease(self, mode: int, token: int) -> None:
        """Grant or take back (LEASE_*); lowering, or a token, raises DRAINED(token) when all earlier requests are done."""
        check(lib.vst_file_set_lease(self.handle, mode, token), "lease")

    def set_chunk(
        self, index: int, chunk_id: int, version: int, flags: int, for_write: bool, replicas: list[int], ticket: bytes
    ) -> None:
        """Install a map; no replicas: a known hole. Raises ValueError for a ticket of the wrong size."""
        if replicas and len(ticket) != 64:
            raise ValueError("a ticket is 64 bytes")
        result = lib.vst_file_set_chunk(
            self.handle, index, chunk_id, version, flags, int(for_write), replicas, len(replicas), ticket or ffi.NULL
        )
        check(result, f"map of chunk {index}")

    def drop_chunks(self, from_index: int) -> None:
        """The chunks from this index on are no part of the file any more: all that is known of them is forgotten. None can be behind CHUNK_INDEX_MAX."""
        if from_index <= CHUNK_INDEX_MAX:
            lib.vst_file_drop_chunks(self.handle, from_index)

    def forget_maps(self, from_index: int, count: int) -> None:
        """The maps of these chunks may be old; what is unsynced or first written stays known."""
        lib.vst_file_forget_maps(self.handle, from_index, count)

    def fail(self, index: int, error: int) -> None:
        """End what is parked on the chunk (0xffffffff: on the lease) with this errno."""
        lib.vst_file_fail(self.handle, index, error)

    def take_dirty(self, max_indexes: int) -> tuple[int, int, list[int]]:
        """(largest end of a write, mtime in ns, indexes of chunks written the first time) since the last call."""
        end, mtime_ns = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        indexes = ffi.new("uint32_t[]", max_indexes)
        count = lib.vst_file_take_dirty(self.handle, end, mtime_ns, indexes, max_indexes)
        return int(end[0]), int(mtime_ns[0]), list(indexes[0:count])

    def unsynced(self) -> bool:
        """Writes were acknowledged that no SYNC has made durable since."""
        return int(lib.vst_file_unsynced(self.handle)) == 1

    def note_lost(self) -> None:
        """Acknowledged writes are gone: every SYNC under way ends with EIO, or the next one does."""
        lib.vst_file_note_lost(self.handle)

    def committed(self, cookie: int, error: int) -> bool:
        """Answer to COMMIT (cookie 0: nobody waits). False: no such request any more."""
        return int(lib.vst_file_committed(self.handle, cookie, error)) == 0

    def take_touched(self) -> list[tuple[int, int]] | None:
        """(offset, end) of what the kernel may have cached since the last call; None: too many to tell."""
        pairs = ffi.new("uint64_t[]", 2 * TOUCHED_MAX)
        count = lib.vst_file_take_touched(self.handle, pairs, TOUCHED_MAX)
        if count < 0:
            return None
        return [(int(pairs[2 * i]), int(pairs[2 * i + 1])) for i in range(count)]

    def submit(self, op: int, offset: int, length: int, buf: Any, flags: int, cookie: int) -> int:
        """Start I/O: 0 or -errno. IO_DONE brings the result; the caller keeps `buf` (bytes-like, or None) alive until then."""
        return int(lib.vst_file_submit(self.handle, op, offset, length, self._pointer(op, length, buf), flags, cookie))

    def io(self, op: int, offset: int, length: int, buf: Any = None, flags: int = 0) -> int:
        """The same, blocking. Bytes. Raises OSError."""
        result = int(lib.vst_file_io(self.handle, op, offset, length, self._pointer(op, length, buf), flags))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    @staticmethod
    def _pointer(op: int, length: int, buf: Any) -> Any:
        if buf is None or op not in (lib.VST_IO_READ, lib.VST_IO_WRITE):
            return ffi.NULL
        pointer = ffi.from_buffer(buf, require_writable=op == lib.VST_IO_READ)
        if len(pointer) < length:
            raise ValueError(f"buffer of {len(pointer)} bytes for {length}")
        return ffi.cast("void *", pointer)


class RawChunk:
    """One replica at one chunk server, without a file: for recovery and tools. All calls block; failures are VstorErrors."""

    def __init__(self, client: Client, cs_id: int, chunk_id: int, version: int, ticket: bytes) -> None:
        if len(ticket) != 64:
            raise ValueError("a ticket is 64 bytes")
        self._client = client
        self._ticket = ffi.new("uint8_t[]", ticket)  # the struct only points to it
        self._raw = ffi.new("struct vst_raw *")
        self._raw.cs_id, self._raw.chunk_id, self._raw.version = cs_id, chunk_id, version
        self._raw.ticket = self._ticket

    def read_into(self, offset: int, buf: Any) -> bool:
        """Fill a writable buffer (at most io_bytes_max), checksums verified. True: the range is a hole (zeros)."""
        hole = ffi.new("int *")
        # Released before an exception's traceback can keep it: a memoryview that is collected while exported crashes CPython 3.11.
        with ffi.from_buffer(buf, require_writable=True) as target:
            result = lib.vst_raw_read(self._client.handle, self._raw, offset, len(target), target, hole)
        self._check(result, "read")
        return bool(hole[0])

    def hash(self, offset: int, length: int) -> bytes:
        """SHA-256 of the range as read."""
        out = ffi.new("uint8_t[32]")
        self._check(lib.vst_raw_hash(self._client.handle, self._raw, offset, length, out), "hash")
        return bytes(out)

    def granules(self) -> list[tuple[int, int]]:
        """(mod_version, write_seq) of each granule."""
        pairs = ffi.new("uint64_t[]", 2 * GRANULES_MAX)
        count = lib.vst_raw_granules(self._client.handle, self._raw, pairs, GRANULES_MAX)
        if count < 0:
            self._check(STATUS_OFFSET - count if count < STATUS_OFFSET else count, "granules")
        return [(int(pairs[2 * i]), int(pairs[2 * i + 1])) for i in range(count)]

    def stat(self) -> ChunkStat:
        """State of the replica."""
        out = ffi.new("uint8_t[48]")
        self._check(lib.vst_raw_stat(self._client.handle, self._raw, out), "stat")
        return ChunkStat.unpack(bytes(out))

    def sync(self) -> None:
        """What the replica has acknowledged is on stable storage on return. Needs a ticket for WRITE."""
        self._check(lib.vst_raw_sync(self._client.handle, self._raw), "sync")

    def _check(self, result: int, what: str) -> None:
        where = f"{what} of chunk {self._raw.chunk_id:#x} at chunk server {self._raw.cs_id}"
        if result > 0:
            raise VstorError(ErrorCode(result), where)
        check(result, where)
