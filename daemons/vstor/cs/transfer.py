"""Fetching one chunk's granules from several sources into the local replica.

DESIGN: a granule comes whole from the first source that can deliver it; if none can (each has another bad block in it), block by
block. A source answers only with data that passed its checksums, so that damage is never copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vstor.codes_gen import ErrorCode
from vstor.cs.choice import Action
from vstor.cs.engine import EngineHost
from vstor.cs.rate import RateLimit
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.wire_gen import BLOCK_BYTES, GRANULE_BYTES

log = logging.getLogger(__name__)

UNREADABLE = frozenset({ErrorCode.CORRUPT, ErrorCode.CRC_MISMATCH, ErrorCode.IO_ERROR})  # another source may do better


@dataclass(frozen=True)
class SourceState:
    """STAT of the source."""

    version: int
    chunk_bytes: int
    write_seq: int
    incarnation: int


class SourceReader(Protocol):
    """One replica at another chunk server. All block; failures are VstorErrors."""

    cs_id: int

    def stat(self) -> SourceState: ...
    def granules(self, count: int) -> list[tuple[int, int]]: ...
    def hash(self, offset: int, length: int) -> bytes: ...
    def read(self, offset: int, length: int) -> memoryview | bytes | None:
        """Data, valid until the next read of this reader; None: a hole."""
        ...

    def close(self) -> None: ...


OpenSource = Callable[[m.Source, int], SourceReader]  # source, chunk id


class Transfer:
    """One pass of an order over one chunk.

    Args:
        first: the source the pass relies on. others: tried for granules that `first` cannot deliver.
    """

    def __init__(
        self,
        host: EngineHost,
        open_source: OpenSource,
        chunk_id: int,
        version: int,
        first: SourceReader,
        others: list[m.Source],
        rate_bytes_s: int = 0,
    ) -> None:
        self._host = host
        self._open_source = open_source
        self._chunk_id = chunk_id
        self._version = version
        self._readers = [first]
        self._others = list(others)
        self._limit = RateLimit(rate_bytes_s)
        self.bytes_written = 0
        self.compared = 0
        self.mixed = False  # something came from another source than `first`

    @property
    def _store(self) -> Any:
        return self._host.engine

    async def granule(self, index: int, action: Action) -> None:
        """Take over one granule. Raises the source's error when no source has it, or the local engine's."""
        offset = index * GRANULE_BYTES
        if action is Action.SKIP or (action is Action.COMPARE and await self._same(offset)):
            return
        await self._limit.take(GRANULE_BYTES)
        data = await self.fetch(offset)
        if data is None:
            await self._host.call(self._store.punch, self._chunk_id, self._version, offset, GRANULE_BYTES)
            return
        await self._host.call(self._store.write, self._chunk_id, self._version, offset, data, False)
        self.bytes_written += GRANULE_BYTES

    async def fetch(self, offset: int) -> memoryview | bytes | bytearray | None:
        """A whole granule, verified; None: a hole."""
        try:
            return await self._from_any(offset, GRANULE_BYTES)
        except VstorError as exc:
            if exc.code not in UNREADABLE or len(self._readers) == 1:
                raise
        whole = bytearray(GRANULE_BYTES)
        for start in range(0, GRANULE_BYTES, BLOCK_BYTES):
            block = await self._from_any(offset + start, BLOCK_BYTES)
            if block is not None:
                whole[start : start + BLOCK_BYTES] = block
        return whole

    def close(self) -> None:
        """Close what this transfer opened; `first` is the caller's."""
        for reader in self._readers[1:]:
            reader.close()

    async def _from_any(self, offset: int, length: int) -> memoryview | bytes | None:
        position = 0
        while True:
            reader = self._reader(position)
            self.mixed |= position > 0
            try:
                return await self._host.call(reader.read, offset, length)
            except VstorError as exc:
                # A source opened here for help may fail in any way; the first one only by what another may do better.
                if position == 0 and exc.code not in UNREADABLE:
                    raise
                log.warning(
                    "source unreadable chunk=%d offset=%d source=%d code=%s",
                    self._chunk_id, offset, reader.cs_id, exc.code.name,
                )  # fmt: skip
                position += 1
                if position == len(self._readers) and not self._others:
                    raise VstorError(
                        ErrorCode.CORRUPT, f"no source can deliver chunk {self._chunk_id} at {offset}"
                    ) from exc

    def _reader(self, position: int) -> SourceReader:
        if position == len(self._readers):
            self._readers.append(self._open_source(self._others.pop(0), self._chunk_id))
        return self._readers[position]

    async def _same(self, offset: int) -> bool:
        """Compare SHA-256 with the first source. A granule that cannot be read on either side is not the same."""
        self.compared += 1
        try:
            theirs = await self._host.call(self._readers[0].hash, offset, GRANULE_BYTES)
            mine = await self._host.call(self._store.hash, self._chunk_id, offset, GRANULE_BYTES)
        except VstorError as exc:
            if exc.code in UNREADABLE:
                return False
            raise
        return bool(theirs == mine)
