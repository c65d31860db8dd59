"""Copies from other chunk servers: new replicas, resynchronisation of stale ones, repair, reconciliation.

DESIGN: reads go through the client engine (data sessions and tickets that the order brings), writes into the local engine.
Decisions are in choice.py, the fetching in transfer.py. Nothing is served from a replica that is being filled until finish_sync.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.cs.choice import (
    Action,
    LastPass,
    Local,
    Start,
    choose_granules,
    choose_start,
    usable_base,
    usable_pass,
)
from vstor.cs.engine import EngineHost
from vstor.cs.transfer import OpenSource, SourceReader, Transfer
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.wire_gen import BLOCK_BYTES, GRANULE_BYTES

log = logging.getLogger(__name__)

PASSES_MAX = 4096  # unfinished copies remembered between their passes
LOCAL_ERRORS = frozenset({ErrorCode.NO_SPACE, ErrorCode.SHUTTING_DOWN})  # no other source would help


@dataclass
class Copied:
    """What an order did. value: OrderReplicate: write_seq of the source that the pass has seen; OrderRepair: blocks mended."""

    bytes: int = 0
    value: int = 0


class Replicator:
    """Executes the copying orders, one coroutine each. At most one at a time for a chunk (the caller sees to it)."""

    def __init__(self, host: EngineHost, open_source: OpenSource) -> None:
        self._host = host
        self._open_source = open_source
        self._passes: dict[int, LastPass] = {}
        self.bytes_copied = 0
        self.granules_compared = 0

    async def replicate(self, order: m.OrderReplicate) -> Copied:
        """One pass; see OrderReplicate. Durability: what was copied is on stable storage on return.

        Raises: STALE when a newer replica is here; else the error of the last source tried, or of the local engine.
        """
        local = await self._local(order.chunk_id)
        last = self._passes.get(order.chunk_id)
        start = choose_start(local, order.version, order.base_version, order.since_seq, last)
        if start is Start.DONE:
            return Copied()
        if start is Start.REFUSE:
            raise VstorError(ErrorCode.STALE, f"a newer replica of chunk {order.chunk_id} is here")
        base = usable_base(start, local, order.base_version)
        await self._prepare(order, start)

        async def one_pass(reader: SourceReader) -> Copied:
            return await self._one_pass(order, start, base, reader)

        copied = await self._with_any_source(order.chunk_id, order.sources, one_pass)
        await self._host.call(self._store.sync)
        if order.final:
            await self._host.call(self._store.finish_sync, order.chunk_id, order.version)
            self._passes.pop(order.chunk_id, None)
        return copied

    async def repair(self, order: m.OrderRepair) -> Copied:
        """Rewrite the quarantined blocks of the granule at order.offset. Blocks a client has overwritten since are left alone."""
        offset = order.offset - order.offset % GRANULE_BYTES

        async def mend(reader: SourceReader) -> Copied:
            others = [s for s in order.sources if s.cs_id != reader.cs_id]
            transfer = self._transfer(order.chunk_id, order.version, reader, others)
            try:
                data = await transfer.fetch(offset)
                good = bytes(GRANULE_BYTES) if data is None else data
                mended = await self._host.call(self._store.repair, order.chunk_id, order.version, offset, good)
            finally:
                transfer.close()
            return Copied(bytes=mended * BLOCK_BYTES, value=mended)

        return await self._with_any_source(order.chunk_id, order.sources, mend)

    async def reconcile(self, order: m.OrderReconcile) -> Copied:
        """Make this replica equal to the source, if one is given; nobody writes meanwhile (the MDS holds the leases back).

        Durability: all of the replica is on stable storage on return.
        """

        async def level(reader: SourceReader) -> Copied:
            state = await self._host.call(reader.stat)
            transfer = self._transfer(order.chunk_id, order.version, reader, [])
            try:
                for index in range(state.chunk_bytes // GRANULE_BYTES):
                    await transfer.granule(index, Action.COMPARE)
            finally:
                transfer.close()
                self.granules_compared += transfer.compared
            return Copied(bytes=transfer.bytes_written)

        copied = await self._with_any_source(order.chunk_id, order.sources, level) if order.sources else Copied()
        await self._host.call(self._store.set_version, order.chunk_id, order.version)
        await self._host.call(self._store.sync)
        return copied

    def forget(self, chunk_id: int) -> None:
        """The chunk is deleted here."""
        self._passes.pop(chunk_id, None)

    # --- steps

    @property
    def _store(self) -> Any:
        return self._host.engine

    def _transfer(
        self, chunk_id: int, version: int, reader: SourceReader, others: list[m.Source], rate_bytes_s: int = 0
    ) -> Transfer:
        return Transfer(self._host, self._open_source, chunk_id, version, reader, others, rate_bytes_s)

    async def _local(self, chunk_id: int) -> Local | None:
        try:
            found = await self._host.call(self._store.stat, chunk_id)
        except VstorError as exc:
            if exc.code == ErrorCode.NO_CHUNK:
                return None
            raise
        return Local(found.version, found.syncing)

    async def _prepare(self, order: m.OrderReplicate, start: Start) -> None:
        if start is Start.REUSE:
            await self._host.call(self._store.begin_sync, order.chunk_id)
        if start is Start.EMPTY:
            await self._host.call(self._store.delete, order.chunk_id)
        if start in (Start.EMPTY, Start.FRESH):
            self._passes.pop(order.chunk_id, None)
            # Version 0 until it is complete, so that it is never taken for a stale but whole replica.
            await self._host.call(self._store.create, order.chunk_id, order.chunk_bytes, 0, True)

    async def _with_any_source(
        self, chunk_id: int, sources: list[m.Source], work: Callable[[SourceReader], Awaitable[Copied]]
    ) -> Copied:
        """`work` with the first source that can do it."""
        error = VstorError(ErrorCode.NO_CHUNK, f"no source given for chunk {chunk_id}")
        for source in sources:
            reader = self._open_source(source, chunk_id)
            try:
                copied = await work(reader)
            except VstorError as exc:
                if exc.code in LOCAL_ERRORS:
                    raise
                log.warning("source failed chunk=%d source=%d code=%s", chunk_id, source.cs_id, exc.code.name)
                error = exc
            else:
                self.bytes_copied += copied.bytes
                return copied
            finally:
                reader.close()
        raise error

    async def _one_pass(self, order: m.OrderReplicate, start: Start, base: int, reader: SourceReader) -> Copied:
        # 1. What the source has seen before the first granule is read: later changes carry larger numbers.
        state = await self._host.call(reader.stat)
        if state.chunk_bytes != order.chunk_bytes:
            raise VstorError(ErrorCode.BAD_REQUEST, f"source {reader.cs_id} has another chunk size")
        count = order.chunk_bytes // GRANULE_BYTES
        granules = await self._host.call(reader.granules, count)
        here = await self._host.call(self._store.granules, order.chunk_id, count)
        last = self._passes.pop(order.chunk_id, None)
        last = usable_pass(last, order.base_version, order.since_seq, reader.cs_id, state.incarnation)
        actions = choose_granules(granules, here, start, base, last)
        # 2. Copy.
        others = [s for s in order.sources if s.cs_id != reader.cs_id]
        transfer = self._transfer(order.chunk_id, order.version, reader, others, order.rate_bytes_s)
        try:
            for index, action in enumerate(actions):
                await transfer.granule(index, action)
        finally:
            transfer.close()
            self.granules_compared += transfer.compared
        # 3. Sequence numbers of one source say nothing about what another one delivered.
        if not order.final and not transfer.mixed and len(self._passes) < PASSES_MAX:
            self._passes[order.chunk_id] = LastPass(order.version, reader.cs_id, state.incarnation, state.write_seq)
        return Copied(bytes=transfer.bytes_written, value=state.write_seq)
