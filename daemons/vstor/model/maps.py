"""Chunk maps for clients: where the replicas are, tickets, allocation, replicas that failed a write."""

from __future__ import annotations

from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import files, versions
from vstor.model.chunkservers import DROPPED
from vstor.model.placement import place
from vstor.model.records import DOMAINS, VOID, Chunk, Inode
from vstor.model.step import Parked, Step
from vstor.proto.messages import (
    EXCLUSIVE,
    MAP_CHUNKS_MAX,
    SHARED,
    BadBlock,
    ChunkMap,
    CsAccess,
    CsAccessReply,
    GetCsAccess,
    GetMap,
    MapReply,
    Ok,
    ReplicaFailed,
)

CS_ACCESS_MAX = 1024
RETRY_LAST_MS = 1000  # a failed replica that is the only one is tried again after this


@dataclass(slots=True)
class Writing:
    """Chunks of a file that a session may be writing. known=False: tickets were given by an earlier leader, so any chunk may be."""

    known: bool
    indexes: set[int] = field(default_factory=set)


class Maps:
    """What is open for writing. Leader's memory."""

    def __init__(self) -> None:
        self._writing: dict[int, Writing] = {}
        self._retried: dict[int, int] = {}  # chunk id -> when a sole replica was last given a new version

    def writing(self, ino: int, *, known: bool) -> None:
        """EXCLUSIVE of the file is held from now on (known=False: since before this leader)."""
        self._writing[ino] = Writing(known)

    def stop_writing(self, ino: int) -> None:
        """EXCLUSIVE was given back properly."""
        self._writing.pop(ino, None)

    def forget(self, ino: int) -> None:
        """The file is gone."""
        self._writing.pop(ino, None)

    def is_open(self, ino: int, index: int) -> bool:
        """A session may be writing the chunk."""
        state = self._writing.get(ino)
        return state is not None and (not state.known or index in state.indexes)

    def open_indexes(self, s: Step, ino: int) -> list[int]:
        """Chunks of the file that may be written right now."""
        state = self._writing.get(ino)
        if state is not None and state.known:
            return sorted(state.indexes)
        return [index for index, _ in s.state.chunks(ino)]

    def open_on(self, s: Step, cs_id: int) -> list[int]:
        """Ids of chunks with a replica on the server that may be written right now."""
        out = []
        for ino, state in self._writing.items():
            chunks = s.state.chunks(ino) if not state.known else ((i, s.state.chunk(ino, i)) for i in state.indexes)
            out += [chunk.id for _, chunk in chunks if chunk is not None and cs_id in chunk.replicas]
        return out

    # --- replies ------------------------------------------------------------------------------------------------

    def describe(self, s: Step, inode: Inode, index: int, chunk: Chunk | None, write: bool) -> ChunkMap:
        """The reply form. A void chunk is a hole to everybody but the writer."""
        exclusive = s.core.leases.mode(s.session_id, inode.ino) == EXCLUSIVE
        if chunk is None or (chunk.flags & VOID and not exclusive):
            return ChunkMap(index, 0, 0, 0, [])
        active = [r for r in chunk.replicas if s.core.servers.is_active(r)]
        void = bool(chunk.flags & VOID)
        ticket = s.core.keyring.ticket(
            s, s.session_id, chunk, files.policy(inode).chunk_bytes, write=write, create=write and void
        )
        return ChunkMap(index, chunk.id, chunk.version, chunk.flags & VOID, active or list(chunk.replicas), ticket)

    def offer(self, s: Step, inode: Inode, count: int, write: bool) -> tuple[list[ChunkMap], list[CsAccess]]:
        """Maps of the first chunks as far as they are ready, for OpenReply."""
        out = []
        for index in range(count):
            chunk = s.tx.chunk(inode.ino, index)
            if write and (chunk is None or not self._ready(s, inode, chunk)):
                continue
            if write:
                self.mark(s, inode.ino, index, chunk)
            out.append(self.describe(s, inode, index, chunk, write))
        return out, self.servers_of(s, out)

    def first(self, s: Step, inode: Inode) -> tuple[list[ChunkMap], list[CsAccess]]:
        """A chunk for a new file that is about to be written. Nothing when there is none to be had: the first write asks, and waits or fails."""
        try:
            chunk = self.writable(s, inode, 0)
        except (VstorError, Parked):
            return [], []
        maps = [self.describe(s, inode, 0, chunk, True)]
        return maps, self.servers_of(s, maps)

    def servers_of(self, s: Step, chunks: list[ChunkMap]) -> list[CsAccess]:
        """Access to every server the maps name."""
        return s.core.keyring.access(s, s.session_id, {r for chunk in chunks for r in chunk.replicas})

    def check_not_lost(self, s: Step, chunk: Chunk | None) -> None:
        """Raises CHUNK_LOST: no server that is left has, or will have when it is back, a replica of data that was written."""
        if chunk is None or chunk.flags & VOID:
            return
        if all(s.core.admin_of(r) == DROPPED or (chunk.id, r) in s.core.gone for r in chunk.replicas):
            raise VstorError(ErrorCode.CHUNK_LOST, f"chunk {chunk.id}: no replica is left")

    # --- writing ------------------------------------------------------------------------------------------------

    def _ready(self, s: Step, inode: Inode, chunk: Chunk) -> bool:
        active = sum(s.core.servers.is_active(r) for r in chunk.replicas)
        settled = not s.core.versions.unsettled(chunk.id)
        return settled and active == len(chunk.replicas) and active >= files.policy(inode).minimum

    def mark(self, s: Step, ino: int, index: int, chunk: Chunk | None) -> None:
        """A write ticket for the chunk goes out."""
        self._writing.setdefault(ino, Writing(known=True)).indexes.add(index)
        if chunk is not None:
            s.core.recovery.opened_for_write(chunk.id)

    def writable(self, s: Step, inode: Inode, index: int) -> Chunk:
        """The chunk, made ready for writing: allocated, all its replicas alive. Parks while it is not."""
        chunk = s.tx.chunk(inode.ino, index)
        if chunk is not None and self._never_used(s, inode, index, chunk):
            s.core.garbage.add(chunk.id, chunk.replicas)  # take another, on servers that live
            chunk = None
        if chunk is None:
            chunk = self._allocate(s, inode, index)
        elif not self._ready(s, inode, chunk):
            self._make_ready(s, inode, chunk)
        self.mark(s, inode.ino, index, chunk)
        return chunk

    def _never_used(self, s: Step, inode: Inode, index: int, chunk: Chunk) -> bool:
        """A void chunk nobody may have written, not all of whose replicas are ready."""
        idle = chunk.flags & VOID and not s.core.versions.unsettled(chunk.id) and not self.is_open(inode.ino, index)
        return bool(idle) and not self._ready(s, inode, chunk)

    def _make_ready(self, s: Step, inode: Inode, chunk: Chunk) -> None:
        """Take dead replicas out, or wait for live ones. Always parks."""
        if s.core.versions.unsettled(chunk.id):
            raise Parked(("ver", chunk.id))
        gone = {r for r in chunk.replicas if not s.core.servers.is_active(r)}
        if gone and len(chunk.replicas) - len(gone) >= files.policy(inode).minimum:
            versions.drop_replica(s, chunk.id, gone)
            raise Parked(("ver", chunk.id), keep=True)
        s.core.tracker.wanted(s, chunk.id)
        raise Parked(("map", chunk.id), keep=True)

    def _allocate(self, s: Step, inode: Inode, index: int) -> Chunk:
        policy = files.policy(inode)
        chunk_id = s.tx.new_id("chunk")
        s.core.servers.check_room(s)
        chosen = place(
            s.core.servers.candidates(s), policy.normal,
            level=policy.domain, tier=policy.tier, key=chunk_id, seed=s.core.seed,
        )  # fmt: skip
        if len(chosen) < policy.normal:
            s.core.servers.too_few(s, policy.normal, policy.tier, DOMAINS[policy.domain], len(chosen))
        if len(chosen) < policy.minimum:
            if s.core.servers.all_full(s):
                raise VstorError(ErrorCode.NO_SPACE, "every chunk server is full")
            raise VstorError(
                ErrorCode.NO_SERVERS,
                f"{len(chosen)} of {policy.minimum} failure domains ({DOMAINS[policy.domain]}) can take a replica",
            )
        chunk = Chunk(chunk_id, 1, VOID, tuple(chosen))
        s.tx.put_chunk(inode.ino, index, chunk)
        for cs_id in chosen:
            s.core.servers.note_allocation(cs_id)
        return chunk

    # --- a replica that failed a write -----------------------------------------------------------------------------

    def replica_failed(self, s: Step, inode: Inode, body: ReplicaFailed) -> Chunk:
        """The chunk at a newer version, without the replica where it is not the last. Parks until the map may be used."""
        chunk = s.tx.chunk(inode.ino, body.index)
        if chunk is None or chunk.id != body.chunk_id:
            raise VstorError(ErrorCode.STALE)
        self.check_not_lost(s, chunk)
        if s.core.versions.unsettled(chunk.id):
            raise Parked(("ver", chunk.id))
        if chunk.version > body.version:
            if not self._ready(s, inode, chunk):
                self._make_ready(s, inode, chunk)
            return chunk
        if body.cs_id not in chunk.replicas:
            return chunk
        if versions.drop_replica(s, chunk.id, {body.cs_id}):
            s.event(
                "warn",
                f"CS#{body.cs_id} failed a write (error {body.status}): chunk {chunk.id} goes on without it",
                "CS",
            )
            raise Parked(("ver", chunk.id), keep=True)
        self._retry_last(s, inode, body, chunk)
        raise Parked(("ver", chunk.id), keep=True)

    def _retry_last(self, s: Step, inode: Inode, body: ReplicaFailed, chunk: Chunk) -> None:
        """The only replica there is failed: never dropped; a new version lets the client try it again, but not in a tight loop."""
        if body.status == ErrorCode.NO_SPACE:
            raise VstorError(ErrorCode.NO_SPACE)
        if not s.core.servers.is_active(body.cs_id):
            s.core.tracker.wanted(s, chunk.id)
            raise Parked(("map", chunk.id))
        if s.now_ms - self._retried.get(chunk.id, 0) < RETRY_LAST_MS:
            raise Parked(("tick",))
        if len(self._retried) > 10_000:
            self._retried.clear()
        self._retried[chunk.id] = s.now_ms
        s.core.versions.start(s, inode.ino, body.index, chunk)


def get_map(s: Step, body: GetMap) -> MapReply:
    """Maps of some chunks, fewer than asked when the later ones have to wait."""
    session_id = s.need_session()
    inode = files.need_file(s, body.ino)
    mode = s.core.leases.mode(session_id, body.ino)
    if mode != EXCLUSIVE and (body.write or mode != SHARED):
        raise VstorError(ErrorCode.LEASE_LOST)
    if not 0 <= body.index < files.INDEX_MAX or not 1 <= body.count <= MAP_CHUNKS_MAX:
        raise VstorError(ErrorCode.INVALID, f"chunks {body.index}+{body.count}")
    chunks: list[ChunkMap] = []
    maps = s.core.maps
    for index in range(body.index, min(body.index + body.count, files.INDEX_MAX)):
        try:
            maps.check_not_lost(s, s.tx.chunk(inode.ino, index))
            chunk = maps.writable(s, inode, index) if body.write else s.tx.chunk(inode.ino, index)
        except (VstorError, Parked):
            if not chunks:
                raise
            break
        chunks.append(maps.describe(s, inode, index, chunk, body.write))
    return MapReply(chunks, maps.servers_of(s, chunks))


def handle_replica_failed(s: Step, body: ReplicaFailed) -> MapReply:
    """A write could not reach a replica."""
    session_id = s.need_session()
    inode = files.need_file(s, body.ino)
    if s.core.leases.mode(session_id, body.ino) != EXCLUSIVE:
        raise VstorError(ErrorCode.LEASE_LOST)
    maps = s.core.maps
    chunk = maps.replica_failed(s, inode, body)
    maps.mark(s, inode.ino, body.index, chunk)
    chunks = [maps.describe(s, inode, body.index, chunk, True)]
    return MapReply(chunks, maps.servers_of(s, chunks))


def bad_block(s: Step, body: BadBlock) -> Ok:
    """A client met damaged data: repair it from another replica."""
    s.need_session()
    s.core.repairs.report(s, body.cs_id, body.chunk_id, body.offset, "a client")
    return Ok()


def get_cs_access(s: Step, body: GetCsAccess) -> CsAccessReply:
    """Addresses and fresh session keys of chunk servers."""
    s.need_session()
    if len(body.cs_ids) > CS_ACCESS_MAX:
        raise VstorError(ErrorCode.TOO_LARGE)
    return CsAccessReply(s.core.keyring.access(s, s.session_id, set(body.cs_ids)))
