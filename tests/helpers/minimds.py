"""What the client engine needs of Python and of an MDS, in one thread: it answers events, and tests can look at them and interfere.

DESIGN: one file per ino, chunk maps in a dict. `policy` may take an event over (return True) before the usual answer is given.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vstor.native import cl, lib
from vstor.proto.tickets import make_ticket, session_key

SESSION_ID = 77
EXPIRY_MS = 1 << 42
CHUNK_BYTES = 1 << 20


def boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass
class Chunk:
    chunk_id: int
    version: int
    replicas: list[int]
    void: bool = True


@dataclass
class Inode:
    ino: int
    file: cl.File
    chunks: dict[int, Chunk] = field(default_factory=dict)
    committed: list[tuple[int, list[int]]] = field(default_factory=list)


class MiniMds:
    """Context manager around a started client."""

    def __init__(
        self, servers: Sequence[Any], ticket_key: bytes, *, key_id: int = 1, replicas: int = 3, **client: Any
    ) -> None:
        """servers: FakeCs or RealCs. client: arguments of cl.Client."""
        self.servers = {cs.cs_id: cs for cs in servers}
        self.key_id = key_id
        self.expiry_ms = EXPIRY_MS
        self.cs_keys: dict[int, bytes] = {}  # what the MDS takes for a server's key, where that differs from the truth
        self.ticket_key = ticket_key
        self.replicas = replicas
        self.client = cl.Client(**client)
        self.events: list[cl.Event] = []
        self.done: dict[int, int] = {}
        self.buffers: dict[int, Any] = {}
        self.inodes: dict[int, Inode] = {}
        self.policy: Callable[[cl.Event], bool] = lambda event: False
        self.changed = threading.Condition()
        self._next_chunk = 0x100
        self._cookie = 0
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._pump)

    def __enter__(self) -> MiniMds:
        self.client.set_lease_until(boottime_ms() + 3_600_000)
        self.client.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop()
        os.write(self._stop_w, b"x")
        self._thread.join()
        os.close(self._stop_r)
        os.close(self._stop_w)
        self.client.close()

    # --- the test's side

    def new_file(
        self, ino: int = 1, size: int = 0, *, chunk_bytes: int = CHUNK_BYTES, lease: int | None = None
    ) -> cl.File:
        file = self.client.new_file(ino, chunk_bytes, size)
        file.set_lease(lib.VST_LEASE_EXCLUSIVE if lease is None else lease, 0)
        self.inodes[ino] = Inode(ino, file)
        return file

    def cookie(self) -> int:
        self._cookie += 1
        return self._cookie

    def submit(self, file: cl.File, op: int, offset: int, length: int, buf: Any = None, flags: int = 0) -> int:
        cookie = self.cookie()
        self.buffers[cookie] = buf  # the engine only has its address
        assert file.submit(op, offset, length, buf, flags, cookie) == 0
        return cookie

    def result(self, cookie: int, timeout_s: float = 20) -> int:
        with self.changed:
            assert self.changed.wait_for(lambda: cookie in self.done, timeout_s), "no completion"
            return self.done[cookie]

    def wait_event(self, kind: int, timeout_s: float = 20, count: int = 1) -> cl.Event:
        def found() -> list[cl.Event]:
            return [e for e in self.events if e.kind == kind]

        with self.changed:
            assert self.changed.wait_for(lambda: len(found()) >= count, timeout_s), f"no event {kind}"
            return found()[count - 1]

    def count_events(self, kind: int) -> int:
        with self.changed:
            return sum(e.kind == kind for e in self.events)

    # --- answers

    def ticket(self, chunk: Chunk, chunk_bytes: int, *, write: bool = True) -> bytes:
        return make_ticket(
            self.ticket_key, self.key_id, session_id=SESSION_ID, chunk_id=chunk.chunk_id, chunk_version=chunk.version,
            chunk_bytes=chunk_bytes, expiry_ms=self.expiry_ms, write=write, create=chunk.void,
        )  # fmt: skip

    def chunk(self, ino: int, index: int, *, make: bool) -> Chunk | None:
        inode = self.inodes[ino]
        if index not in inode.chunks and make:
            ids = sorted(self.servers)
            first = self._next_chunk % len(ids)
            replicas = [ids[(first + i) % len(ids)] for i in range(min(self.replicas, len(ids)))]
            inode.chunks[index] = Chunk(self._next_chunk, 1, replicas)
            self._next_chunk += 1
        return inode.chunks.get(index)

    def install(self, ino: int, index: int, *, write: bool = True) -> None:
        inode = self.inodes[ino]
        chunk = self.chunk(ino, index, make=write)
        if chunk is None:
            inode.file.set_chunk(index, 0, 0, 0, False, [], b"")
            return
        inode.file.set_chunk(
            index, chunk.chunk_id, chunk.version, int(chunk.void), write, chunk.replicas,
            self.ticket(chunk, inode.file.chunk_bytes, write=write),
        )  # fmt: skip

    def raise_version(self, ino: int, index: int, *, without: set[int] | None = None) -> None:
        """As the MDS: the chunk servers first, then the client may get the map."""
        chunk = self.inodes[ino].chunks[index]
        chunk.version += 1
        chunk.replicas = [i for i in chunk.replicas if i not in (without or set())]
        for cs_id in chunk.replicas:
            self.servers[cs_id].set_version(chunk.chunk_id, chunk.version)

    def give_key(self, cs_id: int) -> None:
        cs = self.servers[cs_id]
        known = self.cs_keys.get(cs_id)
        key = session_key(known, SESSION_ID, self.expiry_ms) if known else cs.key_for(SESSION_ID, self.expiry_ms)
        self.client.set_cs(cs_id, [cs.address], SESSION_ID, self.expiry_ms, key)

    def _commit(self, event: cl.Event) -> None:
        inode = self.inodes[event.ino]
        end, _mtime, indexes = inode.file.take_dirty(1024)
        inode.committed.append((end, indexes))
        for index in indexes:
            inode.chunks[index].void = False
        inode.file.committed(event.cookie, 0)

    def _answer(self, event: cl.Event) -> None:
        if event.kind == lib.VST_EV_NEED_MAP:
            self.install(event.ino, event.index, write=bool(event.write))
        elif event.kind == lib.VST_EV_NEED_CS:
            self.give_key(event.cs_id)
        elif event.kind == lib.VST_EV_REPLICA_FAILED:
            chunk = self.inodes[event.ino].chunks[event.index]
            if chunk.version == event.version:
                self.raise_version(event.ino, event.index, without={event.cs_id})
            self.install(event.ino, event.index)
        elif event.kind == lib.VST_EV_COMMIT:
            self._commit(event)

    def _pump(self) -> None:
        while True:
            ready, _, _ = select.select([self.client.event_fd, self._stop_r], [], [])
            while (event := self.client.next_event()) is not None:
                with self.changed:
                    self.events.append(event)
                    if event.kind == lib.VST_EV_IO_DONE:
                        self.done[event.cookie] = event.result
                    self.changed.notify_all()
                if not self.policy(event):
                    self._answer(event)
            if self._stop_r in ready:
                return
