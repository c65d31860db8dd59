"""The client's C engine (native/src/cl_*.c) as daemons/docs/client_engine.md says, with the calls and events of vstor.native.cl.

A request concerns one granule, so it has one part. Modelled: admission under a lease, order among requests of the same granule, sending to all
replicas of the map, the table "what an answer leads to", dropping connections that do not move, fsync and servers that restarted (B15), commits,
clearing what lies between the end and a write behind it.
Not modelled: FUSE, checksums on the wire, appends.
"""

from __future__ import annotations

import errno
import os
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from vstor import clock
from vstor.client import engine_api as cl
from vstor.codes_gen import ErrorCode
from vstor.proto.wire_gen import GRANULE_BYTES

from tests.helpers.fakeengine import Event, Map
from tests.simulate.csconn import CsConn
from tests.simulate.loop import PROC
from tests.simulate.net import Directory, Net

RETRY_MIN_S, RETRY_MAX_S = 0.01, 1.0
ANY_INDEX = 0xFFFFFFFF
WORD = 8  # bytes of a value
STALE = (ErrorCode.STALE, ErrorCode.DENIED, ErrorCode.EXPIRED)
AGAIN = (ErrorCode.BUSY, ErrorCode.SHUTTING_DOWN)


@dataclass(eq=False, slots=True)
class Request:
    """One request of a caller."""

    op: int
    granule: int
    buf: Any
    cookie: int
    epoch: int = -1  # of the lease it was admitted under; -1: not counted for drains
    running: bool = False
    attempts: int = 0
    not_before_s: float = 0.0
    asked_map: bool = False
    asked: Map | None = None  # READ: the map of this pass over its replicas, and what they said
    tried: set[int] = field(default_factory=set)
    corrupt: set[int] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)
    stale: bool = False
    todo: list[int] = field(default_factory=list)  # SYNC: indexes of chunks
    seq: int = 0
    error: int = 0
    losses_told: int = 0
    gap: list[Request] = field(default_factory=list)  # WRITE: what clears the bytes between the end and it
    write: Request | None = None  # PUNCH of a gap: the write that waits for it
    since: int = 0  # PUNCH of a gap: epoch of the lease under which it was between the end and the write
    nothing: bool = False  # PUNCH of a gap: others have moved the end behind it

    def new_pass(self, known: Map) -> None:
        """No replica has been asked yet."""
        self.asked = known
        self.tried, self.corrupt, self.absent, self.stale = set(), set(), set(), False

    @property
    def writes(self) -> bool:
        return self.op in (cl.IO_WRITE, cl.IO_PUNCH)


@dataclass(eq=False, slots=True)
class Chunk:
    """What the engine knows of a chunk of a file."""

    map: Map | None = None
    ticket: bytes = b""
    hole: bool = False
    failed_version: int = 0
    told: set[tuple[int, int, int]] = field(default_factory=set)  # REPLICA_FAILED said for (chunk, version, server)
    asked: int = 0  # 1 as a reader, 2 as a writer
    unsynced: dict[int, int] = field(default_factory=dict)  # cs id -> incarnation
    dirty: bool = False
    ack_seq: int = 0
    first_of: int = 0  # chunk id reported as first written


class File:
    """vst_file."""

    def __init__(self, native: Native, ino: int, chunk_bytes: int, size: int) -> None:
        self.native, self.ino, self.chunk_bytes, self.size = native, ino, chunk_bytes, size
        self.mode = cl.LEASE_NONE
        self.epoch = self.revoked = 0
        self.drains: list[tuple[int, int]] = []  # (epoch, token)
        self.chunks: dict[int, Chunk] = {}
        self.requests: list[Request] = []
        self.commits: dict[int, tuple[Request, int]] = {}
        self.asked_lease = 0
        self.dirty_end = self.mtime_ns = 0
        self.first: list[int] = []
        self.meta_seq = self.taken_seq = self.committed_seq = self.ack_seq = 0
        self.closed = False
        self.losses = self.losses_told = 0
        self.append_end, self.tail_end = size, self._border(size)

    def _border(self, size: int) -> int:
        return -(-size // self.chunk_bytes) * self.chunk_bytes

    # --- calls

    def set_lease(self, mode: int, token: int) -> None:
        lowering, self.mode = mode < self.mode, mode
        if lowering or token:
            self.epoch += 1
            self.drains.append((self.epoch, token))
        if mode == cl.LEASE_NONE and not token:
            self.epoch += 1
            self.revoked = self.epoch
            for chunk in self.chunks.values():
                chunk.map, chunk.hole = None, False
        if not lowering:
            self.asked_lease = 0
        self.pump()

    def set_size(self, size: int) -> None:
        self.size = size
        self.dirty_end = min(self.dirty_end, size)
        running = [r.granule * GRANULE_BYTES + WORD for r in self.requests if r.op == cl.IO_WRITE and r.epoch >= 0]
        self.append_end, self.tail_end = max([size, *running]), self._border(size)

    def set_chunk(
        self, index: int, chunk_id: int, version: int, flags: int, for_write: bool, cs_ids: list[int], ticket: bytes
    ) -> None:
        chunk = self.chunks.setdefault(index, Chunk())
        chunk.asked = 0
        overtaken = cs_ids and chunk.map is not None and chunk.map.chunk_id == chunk_id and version < chunk.map.version
        if not overtaken:
            chunk.map = Map(chunk_id, version, flags, for_write, list(cs_ids)) if cs_ids else None
            chunk.ticket = ticket
            chunk.hole = not cs_ids
            chunk.failed_version = 0
            chunk.told.clear()
            if cs_ids:
                chunk.unsynced = {n: i for n, i in chunk.unsynced.items() if n in cs_ids}
                if chunk.first_of != chunk_id:
                    chunk.first_of = 0
        self.pump()

    def drop_chunks(self, start: int) -> None:
        for index in [i for i in self.chunks if i >= start]:
            self.chunks[index] = Chunk(asked=self.chunks[index].asked)
            if index in self.first:
                self.first.remove(index)
        self.pump()

    def forget_maps(self, start: int, count: int) -> None:
        for index, chunk in self.chunks.items():
            if start <= index < start + count:
                chunk.map, chunk.hole = None, False
        self.pump()

    def fail(self, index: int, error: int) -> None:
        if index == ANY_INDEX:
            self.asked_lease = 0
        elif index in self.chunks:
            self.chunks[index].asked = 0
        for request in list(self.requests):
            if request.running or request not in self.requests:
                continue
            on_lease = request.epoch < 0 and request.op != cl.IO_SYNC
            if (index == ANY_INDEX and on_lease) or (
                index != ANY_INDEX and not on_lease and self._index(request) == index
            ):
                self._end(request, error)
        self.pump()

    def take_dirty(self, limit: int) -> tuple[int, int, list[int]]:
        out = self.dirty_end, self.mtime_ns, self.first[:limit]
        self.dirty_end = 0
        del self.first[: len(out[2])]
        if not self.first:
            self.taken_seq, self.mtime_ns = self.meta_seq, 0
        return out

    def unsynced(self) -> bool:
        return any(chunk.dirty for chunk in self.chunks.values())

    def note_lost(self) -> None:
        self.losses += 1
        self.native.lost(self)

    def committed(self, cookie: int, error: int) -> None:
        if not cookie:
            if not error:
                self.committed_seq = max(self.committed_seq, self.taken_seq)
            return
        request, seq = self.commits.pop(cookie, (None, 0))
        if request is not None:
            if not error:
                self.committed_seq = max(self.committed_seq, seq)
            request.error = request.error or error
            self._tell_loss(request)
            self._deliver(request, -request.error)

    def take_touched(self) -> list[tuple[int, int]]:
        return []

    def submit(self, op: int, offset: int, length: int, buf: Any, flags: int, cookie: int) -> int:
        if op == cl.IO_FLUSH:  # nothing is answered before it is done here (no write-behind): nothing to wait for
            self.native.push(Event(cl.EV_IO_DONE, self.ino, cookie=cookie, result=0))
            return 0
        self.requests.append(Request(op, offset // GRANULE_BYTES, buf, cookie, losses_told=self.losses_told))
        self.pump()
        return 0

    def close(self) -> None:
        self.closed = True
        if self in self.native.files:
            self.native.files.remove(self)

    def describe(self) -> list[str]:
        """For people who look for a hang."""
        out = [
            f"engine: ino={self.ino} mode={self.mode} epoch={self.epoch} drains={self.drains} asked_lease={self.asked_lease} size={self.size}"
        ]
        out += [f"  request {r}" for r in self.requests]
        return out + [f"  chunk {i}: {c}" for i, c in self.chunks.items()]

    # --- the way of a request

    def _index(self, request: Request) -> int:
        if request.op == cl.IO_SYNC:
            return request.todo[0] if request.todo else -1
        return request.granule * GRANULE_BYTES // self.chunk_bytes

    def pump(self) -> None:
        """Let every request get as far as it can."""
        for request in list(self.requests):
            if not request.running and request in self.requests:
                self._try(request)
        self._drain()

    def _drain(self) -> None:
        for epoch, token in list(self.drains):
            if not any(0 <= r.epoch < epoch for r in self.requests):
                self.drains.remove((epoch, token))
                if self.mode == cl.LEASE_NONE:
                    parked = {self._index(r) for r in self.requests}
                    for index, chunk in self.chunks.items():
                        if not chunk.dirty and index not in parked:
                            chunk.map, chunk.hole = None, False
                self.native.push(Event(cl.EV_DRAINED, self.ino, cookie=token))

    def _allowed(self, request: Request) -> bool:
        if request.op == cl.IO_SYNC:
            request.epoch = max(request.epoch, self.epoch) if request.epoch < 0 else request.epoch
            return True
        need = cl.LEASE_EXCLUSIVE if request.writes else cl.LEASE_SHARED
        valid = self.native.lease_valid()
        if request.epoch >= self.revoked and valid:
            return True  # admitted: it finishes although the lease was lowered
        if self.mode < need or not valid:
            request.epoch = -1
            wish = 1 + request.writes
            if self.asked_lease < wish:
                self.asked_lease = wish
                self.native.push(Event(cl.EV_NEED_LEASE, self.ino, write=int(request.writes)))
            return False
        request.epoch = self.epoch
        if request.write is not None and request.since < self.revoked:
            request.nothing = self.size > request.granule * GRANULE_BYTES
        if request.op == cl.IO_WRITE:
            self._clear_gap(request)
        return True

    def _clear_gap(self, write: Request) -> None:
        """What a writer that died had put behind the end in the last chunk must not show when the end moves."""
        offset = write.granule * GRANULE_BYTES
        if offset > self.append_end and self.append_end < self.tail_end:
            first, end = -(-self.append_end // GRANULE_BYTES), min(offset, self.tail_end)
            for granule in range(first, end // GRANULE_BYTES):
                punch = Request(cl.IO_PUNCH, granule, bytes(WORD), 0, epoch=self.epoch, write=write, since=self.epoch)
                write.gap.append(punch)
                self.requests.insert(self.requests.index(write), punch)
            self.native.net.loop.call_soon(self.pump)
        self.append_end = max(self.append_end, offset + WORD)

    def _behind(self, request: Request) -> bool:
        """An earlier request that excludes it is not done. A request that waits for a lease has no place yet."""
        if any(punch in self.requests for punch in request.gap):
            return True
        for other in self.requests:
            if other is request:
                return False
            if other.epoch < 0:
                continue
            if request.op == cl.IO_SYNC and other.writes:
                return True
            same = other.granule == request.granule and other.op != cl.IO_SYNC and request.op != cl.IO_SYNC
            if same and (other.writes or request.writes):
                return True
        return False

    def _try(self, request: Request) -> None:
        if not self._allowed(request) or self._behind(request):
            return
        if request.op == cl.IO_SYNC:
            self._sync(request)
            return
        if request.op == cl.IO_READ and request.granule * GRANULE_BYTES >= self.size:
            self._done(request)
            return
        chunk = self.chunks.setdefault(self._index(request), Chunk())
        if request.op == cl.IO_READ:
            self._read(request, chunk)
        elif request.op == cl.IO_PUNCH and (chunk.hole or request.nothing):
            self._done(request)
        elif request.op == cl.IO_PUNCH and chunk.map is None:
            self.need_map(self._index(request), False)
        elif self._write_map(request, chunk):
            self._write(request, chunk)

    def need_map(self, index: int, write: bool) -> None:
        chunk = self.chunks[index]
        if chunk.asked < 1 + write:
            chunk.asked = 1 + write
            self.native.push(Event(cl.EV_NEED_MAP, self.ino, index=index, write=int(write)))

    def _later(self, request: Request) -> bool:
        """Waiting for its next attempt."""
        return self.native.net.loop.now_s < request.not_before_s

    def _attempt(self, request: Request, *, timer: bool) -> None:
        request.attempts += 1
        delay_s = min(RETRY_MIN_S * 2 ** min(request.attempts, 7), RETRY_MAX_S)
        if timer or request.attempts > 2:
            request.not_before_s = self.native.net.loop.now_s + delay_s
            self.native.net.loop.call_later(delay_s + 1e-6, self.pump)

    # --- reading

    def _read(self, request: Request, chunk: Chunk) -> None:
        if self._later(request):
            return
        if chunk.hole:
            self._done(request)
            return
        known = chunk.map
        if known is None:
            self.need_map(self._index(request), False)
            return
        if known is not request.asked:
            request.new_pass(known)
        order = [n for n in known.cs_ids if n not in request.tried]
        self.native.rng.shuffle(order)
        usable = [n for n in order if not self.native.server(n).in_backoff]
        if not usable:
            self._read_failed(request, chunk, known)
            return
        request.running = True
        cs_id = usable[0]
        inside = request.granule % (self.chunk_bytes // GRANULE_BYTES)

        def done(status: int, value: int, incarnation: int) -> None:
            request.running = False
            if status == 0:
                if self.native.lease_valid():
                    request.buf[:] = value.to_bytes(WORD, "little")
                    self._done(request)
                else:
                    self.pump()
                return
            request.tried.add(cs_id)
            if status == ErrorCode.CORRUPT:
                request.corrupt.add(cs_id)
                self.native.push(Event(
                    cl.EV_BAD_BLOCK, self.ino, self._index(request), known.chunk_id, known.version, cs_id,
                    offset=inside * GRANULE_BYTES,
                ))  # fmt: skip
            elif status in STALE or status == ErrorCode.NO_CHUNK:
                request.stale = True
                if status == ErrorCode.NO_CHUNK:
                    request.absent.add(cs_id)
            self.pump()

        self.native.server(cs_id).ask("read", chunk.ticket, inside, 0, done)

    def _read_failed(self, request: Request, chunk: Chunk, known: Map) -> None:
        if request.corrupt >= set(known.cs_ids):
            self._end(request, errno.EIO)
            return
        if request.absent >= set(known.cs_ids) and known.flags & 1 and chunk.first_of != known.chunk_id:
            self._done(request)  # given to us for writing, but nobody ever wrote it
            return
        self.need_map(self._index(request), False)
        if request.stale and chunk.map is known:
            chunk.map = None
        self._attempt(request, timer=not request.stale)
        request.new_pass(known)

    # --- writing

    def _write_map(self, request: Request, chunk: Chunk, index: int | None = None) -> bool:
        index = self._index(request) if index is None else index
        if self._later(request):
            return False
        if chunk.map is None or not chunk.map.for_write:
            self.need_map(index, True)
            return False
        return chunk.map.version > chunk.failed_version

    def _to_all(self, request: Request, chunk: Chunk, op: str, value: int, finish: Any) -> None:
        """Ask every replica of the map; finish(map, replies) when all have answered."""
        known = chunk.map
        assert known is not None
        request.running = True
        replies: dict[int, tuple[int, int]] = {}
        inside = request.granule % (self.chunk_bytes // GRANULE_BYTES)

        def answered(cs_id: int, status: int, incarnation: int) -> None:
            replies[cs_id] = (status, incarnation)
            if len(replies) == len(known.cs_ids):
                request.running = False
                finish(known, replies)
                self.pump()

        for cs_id in list(known.cs_ids):
            server = self.native.server(cs_id)
            if server.in_backoff and not request.attempts:
                self.native.net.loop.call_soon(answered, cs_id, int(ErrorCode.DISCONNECTED), 0)
            else:
                server.ask(op, chunk.ticket, inside, value, lambda s, v, i, n=cs_id: answered(n, s, i))

    def _replica_failed(self, index: int, chunk: Chunk, known: Map, cs_id: int, status: int) -> None:
        if chunk.map is not known:
            return
        chunk.failed_version = known.version
        key = (known.chunk_id, known.version, cs_id)
        if key not in chunk.told:
            chunk.told.add(key)
            self.native.push(Event(
                cl.EV_REPLICA_FAILED, self.ino, index, known.chunk_id, known.version, cs_id, error=status
            ))  # fmt: skip

    def _sort(self, index: int, chunk: Chunk, known: Map, replies: dict[int, tuple[int, int]]) -> tuple[bool, bool]:
        """(stale, bad) of the answers; failed replicas are reported."""
        stale = bad = False
        for cs_id, (status, _) in replies.items():
            if status in STALE:
                stale = True
            elif status and status not in AGAIN:
                bad = True
                self._replica_failed(index, chunk, known, cs_id, status)
        return stale, bad

    def _again(self, request: Request, chunk: Chunk, known: Map, index: int, *, stale: bool, bad: bool) -> None:
        if stale:
            if chunk.map is known:
                self.need_map(index, True)
                chunk.map = None
            self._attempt(request, timer=False)
        else:
            self._attempt(request, timer=not bad)

    def _write(self, request: Request, chunk: Chunk) -> None:
        index = self._index(request)
        value = int.from_bytes(bytes(request.buf), "little") if request.op == cl.IO_WRITE else 0
        revoked = self.revoked

        def finish(known: Map, replies: dict[int, tuple[int, int]]) -> None:
            if all(status == 0 for status, _ in replies.values()) and revoked != self.revoked:
                self.note_lost()  # the lease was lost meanwhile: no sync would prove anything
                self._done(request)
                return
            if all(status == 0 for status, _ in replies.values()):
                self.ack_seq += 1
                chunk.ack_seq, chunk.dirty = self.ack_seq, True
                for cs_id, (_, incarnation) in replies.items():
                    chunk.unsynced.setdefault(cs_id, incarnation)
                if known.flags & 1 and chunk.first_of != known.chunk_id:
                    chunk.first_of = known.chunk_id
                    self.first.append(index)
                    self.meta_seq += 1
                self.native.acked(self, known, request.granule, value)
                self._done(request)
                return
            stale, bad = self._sort(index, chunk, known, replies)
            self._again(request, chunk, known, index, stale=stale, bad=bad)

        self._to_all(request, chunk, "write", value, finish)

    # --- syncing

    def _sync(self, request: Request) -> None:
        if not request.seq:
            request.seq = self.ack_seq + 1
            request.todo = [i for i, c in self.chunks.items() if c.dirty]
        while request.todo and not self.chunks[request.todo[0]].dirty:
            request.todo.pop(0)
        if request.error or not request.todo:
            self._done(request)
            return
        index = request.todo[0]
        chunk = self.chunks[index]
        if not self._write_map(request, chunk, index):
            return

        def finish(known: Map, replies: dict[int, tuple[int, int]]) -> None:
            changed = [
                n for n, (status, i) in replies.items() if status == 0 and chunk.unsynced.get(n, i) != i
            ]  # fmt: skip
            if not changed and all(status == 0 for status, _ in replies.values()):
                if chunk.ack_seq < request.seq:
                    chunk.dirty = False
                    chunk.unsynced.clear()
                request.todo.pop(0)
                request.attempts = 0
                return
            stale, bad = self._sort(index, chunk, known, replies)
            again = any(status in AGAIN for status, _ in replies.values())
            if changed and not (stale or bad or again):
                if not any(n in chunk.unsynced for n in replies if n not in changed):
                    chunk.dirty = False
                    chunk.unsynced.clear()
                    request.error = errno.EIO
                    return
                for cs_id in changed:
                    self._replica_failed(index, chunk, known, cs_id, int(ErrorCode.DISCONNECTED))
            self._again(request, chunk, known, index, stale=stale, bad=bad)

        self._to_all(request, chunk, "sync", 0, finish)

    # --- ends

    def _done(self, request: Request) -> None:
        self._tell_loss(request)
        if request.error:
            self._end(request, request.error)
            return
        if request.write is not None:
            self.requests.remove(request)
            self.pump()
            return
        if request.writes:
            end = request.granule * GRANULE_BYTES + WORD
            self.mtime_ns = 1 + int(self.native.net.loop.now_s * 1e9)
            if end > self.size:
                self.size = end
                self.meta_seq += 1
            self.dirty_end = max(self.dirty_end, end)
        self.requests.remove(request)
        if request.op == cl.IO_SYNC and self.meta_seq != self.committed_seq:
            cookie = self.native.next_commit
            self.native.next_commit += 1
            self.commits[cookie] = (request, self.meta_seq)
            self.native.push(Event(cl.EV_COMMIT, self.ino, cookie=cookie))
        else:
            self._deliver(request, 0 if request.op == cl.IO_SYNC else WORD)
        self.pump()

    def _tell_loss(self, request: Request) -> None:
        """Every SYNC under way when writes were lost says so, or the next one."""
        if request.op == cl.IO_SYNC:
            if self.losses != request.losses_told and not request.error:
                request.error = errno.EIO
            if request.error:
                self.losses_told = self.losses

    def _end(self, request: Request, error: int) -> None:
        self.requests.remove(request)
        if request.write is not None:
            request = request.write
            self.requests.remove(request)
        self._deliver(request, -error)
        self.pump()

    def _deliver(self, request: Request, result: int) -> None:
        self.native.push(Event(cl.EV_IO_DONE, self.ino, cookie=request.cookie, result=result))


class Native:
    """vstor.native.cl.Client."""

    def __init__(self, net: Net, directory: Directory, rng: random.Random, acked: Any, lost: Any) -> None:
        proc = PROC.get()
        assert proc is not None
        self.net, self.directory, self.rng, self.acked, self.lost, self.proc = net, directory, rng, acked, lost, proc
        self.files: list[File] = []
        self.events: deque[Event] = deque()
        self.servers: dict[int, CsConn] = {}
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.lease_until = 0
        self.next_commit = 1

    def lease_valid(self) -> bool:
        return clock.boottime_ms() < self.lease_until

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
        self.net.loop.readable(self.event_fd)

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def server(self, cs_id: int) -> CsConn:
        if cs_id not in self.servers:
            self.servers[cs_id] = CsConn(self, cs_id)
        return self.servers[cs_id]

    def set_cs(self, cs_id: int, addresses: list[str], session_id: int, expiry_ms: int, key: bytes) -> None:
        server = self.server(cs_id)
        server.addresses, server.session_id = addresses, session_id

    def set_lease_until(self, boottime_ms: int) -> None:
        self.lease_until = boottime_ms
        for file in self.files:
            file.asked_lease = 0
            file.pump()

    def new_file(self, ino: int, chunk_bytes: int, size: int) -> File:
        file = File(self, ino, chunk_bytes, size)
        self.files.append(file)
        return file

    def counters(self) -> dict[str, int]:
        return {}
