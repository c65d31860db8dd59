"""Orders of the MDS: a table from order type to coroutine, and the runner around it.

DESIGN: quick orders (versions, deletion) run at once; copying orders wait for one of COPIES_MAX places and are one at a time for a
chunk. A later order for a chunk ends a copy of it that is still running: the MDS has decided anew. Orders of an older leader
(smaller epoch) are refused, an order that is already running is not started twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.cs.engine import EngineHost
from vstor.cs.replicator import Copied, Replicator
from vstor.errors import VstorError
from vstor.proto import messages as m

log = logging.getLogger(__name__)

ORDERS_MAX = 4096  # running and waiting; above it an order is answered BUSY
COPIES_MAX = 2

Report = Callable[[m.CsOrderDone], Awaitable[None]]
Scrub = Callable[[int], Awaitable[int]]


@dataclass
class _Running:
    order: m.CsOrder
    task: asyncio.Task[None]
    superseded_by: int = 0


class OrderRunner:
    """Executes orders and reports each result once.

    Args:
        report: sends CsOrderDone; retries by itself.
        scrub: reads a chunk against its checksums; the number of bad blocks.
    Concurrency: one event loop.
    """

    def __init__(self, host: EngineHost, replicator: Replicator, scrub: Scrub, report: Report) -> None:
        self._host = host
        self._replicator = replicator
        self._scrub = scrub
        self._report = report
        self._running: dict[tuple[int, int], _Running] = {}  # (epoch, order id)
        self._copying: dict[int, _Running] = {}  # chunk id -> its copy
        self._places = asyncio.Semaphore(COPIES_MAX)
        self._chunk_locks: dict[int, asyncio.Lock] = {}
        self.epoch = 0
        self.done = 0
        self.failed = 0
        self.table: dict[type, Callable[[Any], Awaitable[Copied]]] = {
            m.OrderSetVersion: self._set_version,
            m.OrderDelete: self._delete,
            m.OrderReplicate: replicator.replicate,
            m.OrderRepair: replicator.repair,
            m.OrderReconcile: replicator.reconcile,
            m.OrderScrub: self._scrub_chunk,
        }

    @property
    def running(self) -> int:
        """Orders not finished."""
        return len(self._running)

    def set_epoch(self, epoch: int) -> None:
        """Epoch of the leader registered with; it never falls."""
        self.epoch = max(self.epoch, epoch)

    def submit(self, order: m.CsOrder) -> None:
        """Start an order. Must not block: called for a push."""
        key = (order.epoch, order.order_id)
        if key in self._running:
            return
        refusal: VstorError | None = None
        if order.epoch < self.epoch:
            refusal = VstorError(ErrorCode.NOT_LEADER, f"order of epoch {order.epoch}, the leader's is {self.epoch}")
        elif len(self._running) >= ORDERS_MAX:
            refusal = VstorError(ErrorCode.BUSY, f"{ORDERS_MAX} orders are waiting here")
        self.set_epoch(order.epoch)
        task = asyncio.get_running_loop().create_task(self._run(order, refusal), name=f"order-{order.order_id}")
        self._running[key] = _Running(order, task)

    async def stop(self) -> None:
        """Cancel everything; nothing is reported any more (the MDS sees the connection end)."""
        tasks = [r.task for r in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- running

    async def _run(self, order: m.CsOrder, refusal: VstorError | None) -> None:
        key = (order.epoch, order.order_id)
        running = self._running[key]
        name = type(order.order).__name__
        try:
            if refusal:
                raise refusal
            copied = await self._execute(running)
            result = m.CsOrderDone(order.order_id, 0, "", copied.value, copied.bytes)
            self.done += 1
            log.info("order done order=%d kind=%s bytes=%d", order.order_id, name, copied.bytes)
        except asyncio.CancelledError:
            if not running.superseded_by:
                raise
            text = f"ended by order {running.superseded_by}"
            result = m.CsOrderDone(order.order_id, ErrorCode.BUSY, text)
        except VstorError as exc:
            result = m.CsOrderDone(order.order_id, exc.code, exc.message)
            self.failed += 1
            log.warning("order failed order=%d kind=%s code=%s reason=%s", order.order_id, name, exc.code.name, exc)
        except Exception as exc:  # a defect in one order must not end the daemon, and the MDS must hear of it
            result = m.CsOrderDone(order.order_id, ErrorCode.INTERNAL, f"{type(exc).__name__}: {exc}")
            self.failed += 1
            log.exception("order failed order=%d kind=%s", order.order_id, name)
        finally:
            del self._running[key]
        await self._send(result)

    async def _send(self, result: m.CsOrderDone) -> None:
        try:
            await self._report(result)
        except VstorError as exc:  # the next leader asks for what it needs after registration
            log.warning("order result not delivered order=%d code=%s", result.order_id, exc.code.name)

    async def _execute(self, running: _Running) -> Copied:
        order = running.order.order
        handler = self.table[type(order)]
        for chunk_id in self._ends_copies_of(order):
            self._supersede(chunk_id, running.order.order_id)
        if not isinstance(order, m.OrderReplicate | m.OrderRepair | m.OrderReconcile):
            return await handler(order)
        self._copying[order.chunk_id] = running
        lock = self._chunk_locks.setdefault(order.chunk_id, asyncio.Lock())
        try:
            async with lock, self._places:
                return await handler(order)
        finally:
            if self._copying.get(order.chunk_id) is running:
                del self._copying[order.chunk_id]
                self._chunk_locks.pop(order.chunk_id, None)

    def _ends_copies_of(self, order: m.Order) -> list[int]:
        if isinstance(order, m.OrderDelete):
            return order.chunk_ids
        if isinstance(order, m.OrderReplicate | m.OrderReconcile):
            return [order.chunk_id]
        return []

    def _supersede(self, chunk_id: int, order_id: int) -> None:
        old = self._copying.get(chunk_id)
        if old is not None and not old.superseded_by:
            old.superseded_by = order_id
            old.task.cancel()

    # --- the quick orders

    async def _set_version(self, order: m.OrderSetVersion) -> Copied:
        engine = self._host.engine
        try:
            await self._host.call(engine.set_version, order.chunk_id, order.version)
            return Copied()
        except VstorError as exc:
            if exc.code != ErrorCode.NO_CHUNK or not order.create_bytes:
                raise
        try:
            await self._host.call(engine.create, order.chunk_id, order.create_bytes, order.version, False)
        except VstorError as late:
            if late.code != ErrorCode.EXISTS:
                raise
            # A client's first write was faster.
            await self._host.call(engine.set_version, order.chunk_id, order.version)
        return Copied()

    async def _delete(self, order: m.OrderDelete) -> Copied:
        for chunk_id in order.chunk_ids:
            lock = self._chunk_locks.get(chunk_id)
            if lock is not None:  # a copy that is being ended: its last write must not come after
                async with lock:
                    await self._delete_one(chunk_id)
            else:
                await self._delete_one(chunk_id)
        return Copied()

    async def _delete_one(self, chunk_id: int) -> None:
        self._replicator.forget(chunk_id)
        await self._host.call(self._host.engine.delete, chunk_id)

    async def _scrub_chunk(self, order: m.OrderScrub) -> Copied:
        return Copied(value=await self._scrub(order.chunk_id))
