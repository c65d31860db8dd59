"""An engine in memory, a host that calls it on the spot, and sources made of other engines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.cs.transfer import SourceState
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.wire_gen import BLOCK_BYTES, GRANULE_BYTES

CHUNK_BYTES = 4 * GRANULE_BYTES


@dataclass
class FakeChunk:
    chunk_id: int
    version: int
    chunk_bytes: int
    syncing: bool = False
    data: dict[int, bytes] = field(default_factory=dict)  # granule -> bytes
    granules: dict[int, tuple[int, int]] = field(default_factory=dict)  # granule -> (mod_version, write_seq)
    bad: set[int] = field(default_factory=set)  # offsets of quarantined blocks

    @property
    def bad_blocks(self) -> int:
        return len(self.bad)


class FakeEngine:
    """Store of the interface in vstor.cs.engine; also what a source reads from."""

    def __init__(self) -> None:
        self.chunks: dict[int, FakeChunk] = {}
        self.seq = 0
        self.incarnation = 1
        self.log: list[tuple[Any, ...]] = []

    def chunk(self, chunk_id: int) -> FakeChunk:
        if chunk_id not in self.chunks:
            raise VstorError(ErrorCode.NO_CHUNK)
        return self.chunks[chunk_id]

    def list(self, after: int, count: int) -> list[FakeChunk]:
        return [self.chunks[i] for i in sorted(self.chunks) if i > after][:count]

    def stat(self, chunk_id: int) -> FakeChunk:
        return self.chunk(chunk_id)

    def set_version(self, chunk_id: int, version: int) -> None:
        self.log.append(("set_version", chunk_id, version))
        self.chunk(chunk_id).version = version

    def create(self, chunk_id: int, chunk_bytes: int, version: int, syncing: bool) -> None:
        if chunk_id in self.chunks:
            raise VstorError(ErrorCode.EXISTS)
        self.log.append(("create", chunk_id, version, syncing))
        self.chunks[chunk_id] = FakeChunk(chunk_id, version, chunk_bytes, syncing)

    def begin_sync(self, chunk_id: int) -> None:
        self.chunk(chunk_id).syncing = True

    def finish_sync(self, chunk_id: int, version: int) -> None:
        self.log.append(("finish_sync", chunk_id, version))
        chunk = self.chunk(chunk_id)
        chunk.syncing, chunk.version = False, version

    def delete(self, chunk_id: int) -> None:
        self.log.append(("delete", chunk_id))
        self.chunks.pop(chunk_id, None)

    def write(self, chunk_id: int, version: int, offset: int, data: Any, durable: bool) -> None:
        chunk = self.chunk(chunk_id)
        self.seq += 1
        self.log.append(("write", chunk_id, offset))
        chunk.data[offset // GRANULE_BYTES] = bytes(data)
        chunk.granules[offset // GRANULE_BYTES] = (version, self.seq)
        chunk.bad = {b for b in chunk.bad if not offset <= b < offset + len(data)}

    def punch(self, chunk_id: int, version: int, offset: int, length: int) -> None:
        self.chunk(chunk_id).data.pop(offset // GRANULE_BYTES, None)

    def repair(self, chunk_id: int, version: int, offset: int, data: Any) -> int:
        chunk = self.chunk(chunk_id)
        if chunk.version != version:
            raise VstorError(ErrorCode.STALE)
        mended = {b for b in chunk.bad if offset <= b < offset + len(data)}
        current = bytearray(chunk.data.get(offset // GRANULE_BYTES, bytes(GRANULE_BYTES)))
        for block in mended:
            start = block - offset
            current[start : start + BLOCK_BYTES] = bytes(data[start : start + BLOCK_BYTES])
        chunk.data[offset // GRANULE_BYTES] = bytes(current)
        chunk.bad -= mended
        return len(mended)

    def hash(self, chunk_id: int, offset: int, length: int) -> bytes:
        data = self.read(chunk_id, offset, length)
        return hashlib.sha256(bytes(length) if data is None else data).digest()

    def read(self, chunk_id: int, offset: int, length: int) -> bytes | None:
        chunk = self.chunk(chunk_id)
        if any(offset <= b < offset + length for b in chunk.bad):
            raise VstorError(ErrorCode.CORRUPT)
        whole = chunk.data.get(offset // GRANULE_BYTES)
        start = offset % GRANULE_BYTES
        return None if whole is None else whole[start : start + length]

    def granules(self, chunk_id: int, count: int) -> list[tuple[int, int]]:
        return [self.chunk(chunk_id).granules.get(i, (0, 0)) for i in range(count)]

    def sync(self) -> None:
        self.log.append(("sync",))

    def scrub(self, chunk_id: int) -> tuple[int, int]:
        chunk = self.chunk(chunk_id)
        self.log.append(("scrub", chunk_id))
        return len(chunk.bad), len(chunk.data) * GRANULE_BYTES

    def written(self) -> list[int]:
        """Granules written, in order."""
        return [entry[2] // GRANULE_BYTES for entry in self.log if entry[0] == "write"]


class FakeHost:
    """EngineHost without threads."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.before_call: Callable[[str], None] = lambda name: None

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self.before_call(function.__name__)
        return function(*args)

    call_scrub = call


class FakeSource:
    """SourceReader on another FakeEngine. `failing`: method name -> error."""

    def __init__(self, cs_id: int, engine: FakeEngine, chunk_id: int) -> None:
        self.cs_id = cs_id
        self.engine = engine
        self.chunk_id = chunk_id
        self.failing: dict[str, ErrorCode] = {}
        self.reads = 0

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise VstorError(self.failing[name])

    def stat(self) -> SourceState:
        self._fail("stat")
        chunk = self.engine.chunk(self.chunk_id)
        return SourceState(chunk.version, chunk.chunk_bytes, self.engine.seq, self.engine.incarnation)

    def granules(self, count: int) -> list[tuple[int, int]]:
        return self.engine.granules(self.chunk_id, count)

    def hash(self, offset: int, length: int) -> bytes:
        self._fail("hash")
        return self.engine.hash(self.chunk_id, offset, length)

    def read(self, offset: int, length: int) -> bytes | None:
        self._fail("read")
        self.reads += 1
        return self.engine.read(self.chunk_id, offset, length)

    def close(self) -> None:
        pass


def source(cs_id: int) -> m.Source:
    return m.Source(cs_id, [f"127.0.0.1:{cs_id}"], 1, 2, bytes(32), bytes(64))


def granule(fill: int) -> bytes:
    return bytes([fill]) * GRANULE_BYTES
