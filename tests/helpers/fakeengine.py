"""The C client engine in a few lines of Python, for tests without processes: same calls and events, chunks in a dict.

What it keeps true: requests run only under a lease (and before its end), with maps it was given for that access, and park with the same
events as the real engine otherwise; a chunk server refuses versions other than its own.  `Disk` is shared by all engines of a test.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from vstor.client import engine_api as cl

from tests.helpers.fakekept import FakeKept

ANY_INDEX = 0xFFFFFFFF


@dataclass
class Disk:
    """What all chunk servers hold: chunk id -> bytes; versions as told by the MDS."""

    chunks: dict[int, bytearray] = field(default_factory=dict)

    def read(self, chunk_id: int, offset: int, length: int) -> bytes:
        data = self.chunks.get(chunk_id, b"")[offset : offset + length]
        return bytes(data) + bytes(length - len(data))

    def write(self, chunk_id: int, offset: int, data: bytes) -> None:
        chunk = self.chunks.setdefault(chunk_id, bytearray())
        if len(chunk) < offset + len(data):
            chunk.extend(bytes(offset + len(data) - len(chunk)))
        chunk[offset : offset + len(data)] = data


@dataclass
class Event:
    kind: int
    ino: int = 0
    index: int = 0
    chunk_id: int = 0
    version: int = 0
    cs_id: int = 0
    offset: int = 0
    error: int = 0
    write: int = 0
    cookie: int = 0
    result: int = 0


@dataclass
class Map:
    chunk_id: int
    version: int
    flags: int
    for_write: bool
    cs_ids: list[int]


@dataclass
class Io:
    op: int
    offset: int
    length: int
    buf: Any
    flags: int
    cookie: int
    admitted: bool = False  # began under a lease: runs to its end even when the lease is lowered


class FakeFile:
    def __init__(self, engine: FakeNative, ino: int, chunk_bytes: int, size: int) -> None:
        self.engine, self.ino, self.chunk_bytes, self.size = engine, ino, chunk_bytes, size
        self.mode = cl.LEASE_NONE
        self.maps: dict[int, Map] = {}
        self.parked: deque[Io] = deque()
        self.asked: set[tuple[str, int, int]] = set()
        self.end, self.mtime_ns, self.written = 0, 0, set[int]()
        self.uncommitted = False
        self.dirty = False  # written since the last SYNC
        self.lost = False
        self.syncs: list[Io] = []
        self.touched: list[tuple[int, int]] | None = []
        self.closed = False
        self.hold = False  # a test keeps requests under way
        self.drains: list[tuple[int, list[Io]]] = []

    def set_lease(self, mode: int, token: int) -> None:
        lowering, self.mode = mode < self.mode, mode
        if mode == cl.LEASE_NONE and not token:
            for io in self.parked:
                io.admitted = False
        self.asked = {a for a in self.asked if a[0] != "lease"}
        if lowering or token:
            self.drains.append((token, [io for io in self.parked if io.admitted]))
        self.run()

    def set_size(self, size: int) -> None:
        self.size = size

    def set_chunk(
        self, index: int, chunk_id: int, version: int, flags: int, for_write: bool, cs_ids: list[int], ticket: bytes
    ) -> None:
        assert len(ticket) in (0, 64)
        self.maps[index] = Map(chunk_id, version, flags, for_write, list(cs_ids))
        self.asked = {a for a in self.asked if a[:2] != ("map", index)}
        self.run()

    def drop_chunks(self, start: int) -> None:
        self.maps = {i: m for i, m in self.maps.items() if i < start}

    def forget_maps(self, start: int, count: int) -> None:
        self.maps = {i: m for i, m in self.maps.items() if not start <= i < start + count}

    def fail(self, index: int, error: int) -> None:
        parked, self.parked = self.parked, deque()
        for io in parked:
            first, last = io.offset // self.chunk_bytes, max(io.offset, io.offset + io.length - 1) // self.chunk_bytes
            if index == ANY_INDEX or first <= index <= last:
                self.engine.push(Event(cl.EV_IO_DONE, self.ino, cookie=io.cookie, result=-error))
            else:
                self.parked.append(io)
        self.asked.clear()
        self.run()

    def take_dirty(self, limit: int) -> tuple[int, int, list[int]]:
        out = self.end, self.mtime_ns, sorted(self.written)[:limit]
        self.end, self.mtime_ns = 0, 0
        self.written -= set(out[2])
        return out

    def unsynced(self) -> bool:
        return self.dirty

    def note_lost(self) -> None:
        self.lost = True

    def _synced(self, cookie: int, error: int) -> None:
        error = error or (errno.EIO if self.lost else 0)
        self.lost = False
        self.engine.push(Event(cl.EV_IO_DONE, self.ino, cookie=cookie, result=-error))

    def committed(self, cookie: int, error: int) -> None:
        self.uncommitted = self.uncommitted and bool(error)
        for io in [io for io in self.syncs if io.cookie == cookie]:
            self.syncs.remove(io)
            self._synced(cookie, error)

    def take_touched(self) -> list[tuple[int, int]] | None:
        touched, self.touched = self.touched, []
        return touched

    def submit(self, op: int, offset: int, length: int, buf: Any, flags: int, cookie: int) -> int:
        self.parked.append(Io(op, offset, length, buf, flags, cookie))
        self.run()
        return 0

    def close(self) -> None:
        self.closed = True
        self.engine.files.remove(self)

    def run(self) -> None:
        """Do what can be done; ask for what is missing."""
        parked, self.parked = self.parked, deque()
        while parked:
            io = parked.popleft()
            if self.hold or not self._possible(io):
                self.parked.append(io)
            else:
                self._do(io)
        for token, earlier in list(self.drains):
            if not any(io is other for io in earlier for other in self.parked):
                self.drains.remove((token, earlier))
                self.engine.push(Event(cl.EV_DRAINED, self.ino, cookie=token))

    def _ask(self, what: str, index: int, write: bool) -> None:
        if (what, index, write) not in self.asked:
            self.asked.add((what, index, write))
            kind = cl.EV_NEED_LEASE if what == "lease" else cl.EV_NEED_MAP
            self.engine.push(Event(kind, self.ino, index=index, write=int(write)))

    def _possible(self, io: Io) -> bool:
        if io.op in (cl.IO_SYNC, cl.IO_FLUSH):
            return True
        write = io.op != cl.IO_READ
        need = cl.LEASE_EXCLUSIVE if write else cl.LEASE_SHARED
        expired = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 >= self.engine.lease_until
        io.admitted = io.admitted and not expired
        if expired or (not io.admitted and self.mode < need):
            self._ask("lease", 0, write)
            return False
        io.admitted = True
        offset = self.size if io.flags & cl.IO_APPEND else io.offset
        length = min(io.length, max(0, self.size - offset)) if io.op == cl.IO_READ else io.length
        if length == 0:
            return True
        for index in range(offset // self.chunk_bytes, (offset + length - 1) // self.chunk_bytes + 1):
            known = self.maps.get(index)
            hole = known is not None and not known.cs_ids
            if known is None or (io.op == cl.IO_WRITE and (hole or not known.for_write)):
                self._ask("map", index, write)
                return False
        return True

    def _do(self, io: Io) -> None:
        if io.op == cl.IO_FLUSH:  # earlier writes are done: there is no write-behind here
            self.engine.push(Event(cl.EV_IO_DONE, self.ino, cookie=io.cookie, result=0))
            return
        if io.op == cl.IO_SYNC:
            self.dirty = False
            if self.uncommitted:
                self.syncs.append(io)
                self.engine.push(Event(cl.EV_COMMIT, self.ino, cookie=io.cookie))
            else:
                self._synced(io.cookie, 0)
            return
        offset = self.size if io.flags & cl.IO_APPEND else io.offset
        length = min(io.length, max(0, self.size - offset)) if io.op == cl.IO_READ else io.length
        done = 0
        while done < length:
            at = offset + done
            index, inside = divmod(at, self.chunk_bytes)
            count = min(length - done, self.chunk_bytes - inside)
            self._piece(io, self.maps[index], index, inside, done, count)
            done += count
        if io.op == cl.IO_WRITE:
            self.dirty = True
            self.mtime_ns = time.time_ns() + self.engine.skew_ns
            self.end = max(self.end, offset + length)
            if offset + length > self.size:
                self.size, self.uncommitted = offset + length, True
        self.engine.push(Event(cl.EV_IO_DONE, self.ino, cookie=io.cookie, result=length))

    def _piece(self, io: Io, where: Map, index: int, inside: int, done: int, count: int) -> None:
        disk = self.engine.disk
        if io.op == cl.IO_READ:
            data = disk.read(where.chunk_id, inside, count) if where.cs_ids else bytes(count)
            memoryview(io.buf)[done : done + count] = data
        elif io.op == cl.IO_PUNCH:
            if where.cs_ids and where.chunk_id in disk.chunks:
                disk.write(where.chunk_id, inside, bytes(count))
        else:
            disk.write(where.chunk_id, inside, bytes(memoryview(io.buf)[done : done + count]))
            if where.flags & 1:
                where.flags = 0
                self.written.add(index)
                self.uncommitted = True


class FakeNative:
    """Twin of vstor.native.cl.Client."""

    def __init__(self, disk: Disk, auth_mode: int = 1) -> None:
        self.disk, self.auth_mode = disk, auth_mode
        self.files: list[FakeFile] = []
        self.events: deque[Event] = deque()
        self.servers: dict[int, list[str]] = {}
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.lease_until = 0
        self.skew_ns = 0  # of this host's clock
        self.fuse_in: deque[bytes] = deque()
        self.replies: dict[int, tuple[int, bytes]] = {}
        self.notified: list[tuple[int, bytes]] = []
        self.bound: dict[int, tuple[FakeFile, int]] = {}
        self.kept = FakeKept()

    def start(self) -> None:
        return

    def stop(self) -> None:
        for file in self.files:
            file.fail(ANY_INDEX, errno.ESHUTDOWN)

    def close(self) -> None:
        os.close(self.event_fd)

    def push(self, event: Event) -> None:
        self.events.append(event)
        os.eventfd_write(self.event_fd, 1)

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def set_cs(self, cs_id: int, addresses: list[str], session_id: int, expiry_ms: int, key: bytes) -> None:
        assert session_id
        assert len(key) == 32
        self.servers[cs_id] = addresses

    def set_lease_until(self, boottime_ms: int) -> None:
        self.lease_until = boottime_ms
        for file in self.files:
            file.run()

    def new_file(self, ino: int, chunk_bytes: int, size: int) -> FakeFile:
        file = FakeFile(self, ino, chunk_bytes, size)
        self.files.append(file)
        return file

    def counters(self) -> dict[str, int]:
        names = (
            "reads writes syncs bytes_read bytes_written retries replica_failures bad_blocks reconnects parked inflight"
        )
        names += " fuse_requests fuse_slow fuse_kept"
        times = [f"{what}_ns_{how}" for what in ("read", "write", "sync") for how in ("sum", "max")]
        return dict.fromkeys(names.split() + times, 0)

    # --- FUSE: a test is the kernel

    def fuse_take(self) -> bytes | None:
        return self.fuse_in.popleft() if self.fuse_in else None

    def fuse_reply(self, unique: int, error: int, data: bytes) -> int:
        assert unique not in self.replies
        self.replies[unique] = (error, bytes(data))
        return 0

    def fuse_notify(self, code: int, data: bytes) -> int:
        self.notified.append((code, data))
        return 0

    def fuse_bind(self, fh: int, file: FakeFile, flags: int) -> int:
        self.bound[fh] = (file, flags)
        return 0

    def fuse_unbind(self, fh: int) -> int:
        return 0 if self.bound.pop(fh, None) else -errno.ENOENT

    def fuse_put_name(self, parent: int, name: bytes, ino: int) -> int:
        self.kept.names[parent, name] = ino
        return 0

    def fuse_drop_name(self, parent: int, name: bytes) -> bool:
        return self.kept.drop_name((parent, name))

    def fuse_put_attr(self, file: FakeFile | None, ino: int, generation: int, attr: bytes) -> int:
        self.kept.put_attr(file, ino, generation, attr)
        return 0

    def fuse_drop_attr(self, ino: int) -> int:
        return self.kept.drop_attr(ino)

    def fuse_new_epoch(self, give_names: bool) -> None:
        self.kept.new_epoch(give_names)
