"""The chunk server's C engine (native/src/cs_*.c) as its contract says: replicas on a disk, what a power cut leaves of them, the rules of access.

What is modelled, from native/include/vstor/cs.h, daemons/docs/on_disk_format.md and cs_proto.c: a granule holds one value (the word a client wrote);
orders are durable when they return; a written granule is volatile until a SYNC of its chunk, and a power cut leaves either the durable value or
any later one; requests name a version and are refused with any other (STALE), while a copy is in progress, or after serve_until; the first write
under a ticket with CREATE makes the replica. Granules carry (mod_version, write_seq).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.cs.transfer import SourceState
from vstor.errors import VstorError
from vstor.proto import tickets
from vstor.proto.wire_gen import GRANULE_BYTES, TicketFlag, TicketMode

State = tuple[int, int]  # value, mod_version


@dataclass(slots=True)
class Granule:
    """One granule: what a read gives, and what may be there after a power cut."""

    now: State = (0, 0)
    durable: State = (0, 0)
    between: list[State] = field(default_factory=list)  # written since `durable`, `now` the last
    write_seq: int = 0
    bad: bool = False  # does not match its checksum
    cut: bool = False  # the power went since it was written

    def write(self, value: int, version: int, seq: int) -> None:
        self.now = (value, version)
        self.between.append(self.now)
        self.write_seq = seq
        self.bad = self.cut = False

    def sync(self) -> None:
        self.durable = self.now
        self.between.clear()


@dataclass(slots=True)
class Replica:
    """One replica on the disk."""

    chunk_id: int
    version: int
    chunk_bytes: int
    syncing: bool
    granules: dict[int, Granule] = field(default_factory=dict)

    @property
    def bad_blocks(self) -> int:
        return sum(g.bad for g in self.granules.values())

    def granule(self, index: int) -> Granule:
        return self.granules.setdefault(index, Granule())

    def value(self, index: int) -> int:
        found = self.granules.get(index)
        return found.now[0] if found is not None else 0


class Disk:
    """What outlives the process."""

    def __init__(self) -> None:
        self.replicas: dict[int, Replica] = {}

    def power_cut(self, rng: random.Random) -> None:
        """What was not flushed is there, or an earlier state is."""
        for replica in self.replicas.values():
            for granule in replica.granules.values():
                if granule.between:
                    granule.now = rng.choice([granule.durable, *granule.between])
                    granule.sync()
                granule.cut = True

    def settle(self) -> None:
        """The process was killed, the machine runs on: nothing is lost."""
        for replica in self.replicas.values():
            for granule in replica.granules.values():
                granule.write_seq = 0


class Engine:
    """One life of the engine. `store` methods are those of vstor.cs.engine.Store; `serve` is the data plane."""

    def __init__(self, disk: Disk, incarnation: int) -> None:
        self.disk, self.incarnation = disk, incarnation
        self.seq = 0
        self.serve_until_ms = 0
        self.offset_ms = 0
        self.ticket_keys: dict[int, bytes] = {}
        self.events: list[Any] = []
        self.event_fd = object()
        self.observe: Any = None  # called with (chunk id, granule, value, session) for each write of a client
        self.on_delete: Any = None
        self.on_corrupt: Any = None

    def _find(self, chunk_id: int) -> Replica:
        found = self.disk.replicas.get(chunk_id)
        if found is None:
            raise VstorError(ErrorCode.NO_CHUNK)
        return found

    # --- set up by the service

    def set_cs_key(self, key: bytes) -> None:
        return

    def set_min_auth(self, mode: int) -> None:
        return

    def set_ticket_key(self, key_id: int, key: bytes) -> None:
        self.ticket_keys[key_id] = key

    def forget_ticket_keys(self, below: int) -> None:
        self.ticket_keys = {n: key for n, key in self.ticket_keys.items() if n >= below}

    def set_time(self, offset_ms: int, serve_until_ms: int) -> None:
        self.offset_ms, self.serve_until_ms = offset_ms, serve_until_ms

    def counters(self) -> dict[str, int]:
        names = "bytes_read bytes_written inflight reads writes syncs journal_bytes journal_used read_ns_sum write_ns_sum sync_ns_sum"
        names += " read_ns_max write_ns_max sync_ns_max"
        return dict.fromkeys(names.split(), 0) | {"chunks": len(self.disk.replicas)}

    # --- orders

    def list(self, after: int, count: int) -> list[Replica]:
        return [self.disk.replicas[i] for i in sorted(self.disk.replicas) if i > after][:count]

    def stat(self, chunk_id: int) -> Replica:
        return self._find(chunk_id)

    def set_version(self, chunk_id: int, version: int) -> None:
        replica = self._find(chunk_id)
        if version < replica.version:
            raise VstorError(ErrorCode.STALE)
        replica.version = version

    def create(self, chunk_id: int, chunk_bytes: int, version: int, syncing: bool) -> None:
        if chunk_id in self.disk.replicas:
            raise VstorError(ErrorCode.EXISTS)
        self.disk.replicas[chunk_id] = Replica(chunk_id, version, chunk_bytes, syncing)

    def begin_sync(self, chunk_id: int) -> None:
        self._find(chunk_id).syncing = True

    def finish_sync(self, chunk_id: int, version: int) -> None:
        replica = self._find(chunk_id)
        if version < replica.version:
            raise VstorError(ErrorCode.STALE)
        replica.syncing, replica.version = False, version

    def delete(self, chunk_id: int) -> None:
        if chunk_id in self.disk.replicas and self.on_delete is not None:
            self.on_delete(chunk_id)
        self.disk.replicas.pop(chunk_id, None)

    def write(self, chunk_id: int, version: int, offset: int, data: Any, durable: bool) -> None:
        self.seq += 1
        self._find(chunk_id).granule(offset // GRANULE_BYTES).write(int(data), version, self.seq)

    def punch(self, chunk_id: int, version: int, offset: int, length: int) -> None:
        self.write(chunk_id, version, offset, 0, False)

    def repair(self, chunk_id: int, version: int, offset: int, data: Any) -> int:
        replica = self._find(chunk_id)
        if replica.version != version:
            raise VstorError(ErrorCode.STALE)
        granule = replica.granule(offset // GRANULE_BYTES)
        if not granule.bad:
            return 0
        granule.write(0 if isinstance(data, bytes) else int(data), granule.now[1], granule.write_seq)
        granule.sync()
        return 1

    def hash(self, chunk_id: int, offset: int, length: int) -> bytes:
        value = self.read(chunk_id, offset)
        return hashlib.sha256(str(value or 0).encode()).digest()

    def read(self, chunk_id: int, offset: int) -> int | None:
        """Value of a granule, None for a hole. Raises CORRUPT."""
        granule = self._find(chunk_id).granules.get(offset // GRANULE_BYTES)
        if granule is not None and granule.bad:
            raise VstorError(ErrorCode.CORRUPT)
        return granule.now[0] if granule is not None and granule.now[0] else None

    def granules(self, chunk_id: int, count: int) -> list[tuple[int, int]]:
        replica = self._find(chunk_id)
        empty = Granule()
        found = (replica.granules.get(i, empty) for i in range(count))
        return [(g.now[1], g.write_seq) for g in found]

    def sync(self) -> None:
        for replica in self.disk.replicas.values():
            for granule in replica.granules.values():
                granule.sync()

    def scrub(self, chunk_id: int) -> tuple[int, int]:
        return self._find(chunk_id).bad_blocks, GRANULE_BYTES

    # --- data plane

    def _check(self, session_id: int, ticket_bytes: bytes, *, write: bool) -> tuple[Replica, Any]:
        """The replica a request under this ticket may use. Raises what the engine answers."""
        now_ms = clock.boottime_ms()
        if now_ms >= self.serve_until_ms:
            raise VstorError(ErrorCode.NOT_SERVING)
        ticket = tickets.verify_ticket(self.ticket_keys, ticket_bytes, session_id, now_ms + self.offset_ms)
        if write and ticket.mode != TicketMode.WRITE:
            raise VstorError(ErrorCode.DENIED)
        replica = self.disk.replicas.get(ticket.chunk_id)
        if replica is None:
            if not (write and ticket.flags & TicketFlag.CREATE):
                raise VstorError(ErrorCode.NO_CHUNK)
            replica = Replica(ticket.chunk_id, ticket.chunk_version, ticket.chunk_bytes, False)
            self.disk.replicas[ticket.chunk_id] = replica
        if replica.syncing or replica.version != ticket.chunk_version:
            raise VstorError(ErrorCode.STALE)
        return replica, ticket

    def serve(self, op: str, session_id: int, ticket: bytes, index: int, value: int) -> int:
        """READ gives the value of a granule; WRITE and SYNC give 0. Raises VstorError."""
        replica, _ = self._check(session_id, ticket, write=op != "read")
        if op == "sync":
            for granule in replica.granules.values():
                granule.sync()
            return 0
        if op == "write":
            self.seq += 1
            replica.granule(index).write(value, replica.version, self.seq)
            if self.observe is not None:
                self.observe(replica, index, value, session_id)
            return 0
        try:
            return self.read(replica.chunk_id, index * GRANULE_BYTES) or 0
        except VstorError:
            if self.on_corrupt is not None:
                self.on_corrupt(replica.chunk_id, index)
            raise

    def stat_source(self, session_id: int, ticket: bytes) -> SourceState:
        """STAT over the network."""
        replica, _ = self._check(session_id, ticket, write=False)
        return SourceState(replica.version, replica.chunk_bytes, self.seq, self.incarnation)
