"""The C engine as the rest of the daemon sees it: an interface, and the host that runs it.

DESIGN: engine calls block, so they run in a pool of POOL_THREADS threads; the event loop only waits. Tests give the same
interface a dictionary (tests/unit/cs/fakes.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)

POOL_THREADS = 6  # orders; the scrubber has one of its own
EVENTS_PER_TURN_MAX = 256
T = TypeVar("T")


class Replica(Protocol):
    """One replica as listed (struct vst_cs_chunk)."""

    @property
    def chunk_id(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...
    @property
    def bad_blocks(self) -> int: ...
    @property
    def syncing(self) -> bool: ...


class Store(Protocol):
    """Orders and local access: cs.h function by function. All block; a status that is not 0 is raised as VstorError."""

    def list(self, after: int, count: int) -> list[Any]: ...
    def stat(self, chunk_id: int) -> Any: ...
    def set_version(self, chunk_id: int, version: int) -> None: ...
    def create(self, chunk_id: int, chunk_bytes: int, version: int, syncing: bool) -> None: ...
    def begin_sync(self, chunk_id: int) -> None: ...
    def finish_sync(self, chunk_id: int, version: int) -> None: ...
    def delete(self, chunk_id: int) -> None: ...
    def write(self, chunk_id: int, version: int, offset: int, data: Any, durable: bool) -> None: ...
    def punch(self, chunk_id: int, version: int, offset: int, length: int) -> None: ...
    def repair(self, chunk_id: int, version: int, offset: int, data: Any) -> int: ...
    def hash(self, chunk_id: int, offset: int, length: int) -> bytes: ...
    def granules(self, chunk_id: int, count: int) -> Any: ...
    def sync(self) -> None: ...
    def scrub(self, chunk_id: int) -> tuple[int, int]: ...


class EngineHost:
    """Runs the engine's loop in a thread and hands its events to the event loop.

    Args:
        engine: vstor.native.cs.CsEngine, opened and listening.
        on_event: called on the event loop for each event; must not block.
    """

    def __init__(self, engine: Any, on_event: Callable[[Any], None]) -> None:
        self.engine = engine
        self._on_event = on_event
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="cs-order")
        self._scrub_pool = ThreadPoolExecutor(1, thread_name_prefix="cs-scrub")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="cs-engine")

    def start(self) -> None:
        """Begin to serve. To be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        self._loop.add_reader(self.engine.event_fd, self.drain_events)
        self._thread.start()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self.engine.run()
        except Exception as exc:  # noqa: BLE001 - handed to wait_stopped, whatever it is
            error = exc
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._finished, error)

    def _finished(self, error: Exception | None) -> None:
        assert self._stopped is not None
        if self._stopped.done():
            return
        if error is None:
            self._stopped.set_result(None)
        else:
            self._stopped.set_exception(error)

    async def wait_stopped(self) -> None:
        """Until the engine's loop has ended. Raises what it ended with."""
        assert self._stopped is not None
        await asyncio.shield(self._stopped)

    def drain_events(self) -> None:
        """Hand on what waits, at most EVENTS_PER_TURN_MAX (the descriptor stays readable while there is more)."""
        for _ in range(EVENTS_PER_TURN_MAX):
            event = self.engine.next_event()
            if event is None:
                return
            self._on_event(event)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """A blocking call in the pool."""
        return await self._in(self._pool, function, *args)

    async def call_scrub(self, function: Callable[..., T], *args: Any) -> T:
        """As `call`, on the scrubber's own thread, so that a long scrub never delays an order."""
        return await self._in(self._scrub_pool, function, *args)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        """A cancelled caller goes on only when the call has ended: a write may not land after what follows it."""
        future = asyncio.get_running_loop().run_in_executor(pool, function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # taken: nobody else will
            raise

    async def stop(self) -> None:
        """Stop serving: answers sent, journal checkpointed, files synced. Raises what the engine ended with."""
        if self._loop is not None and self._thread.is_alive():
            self.engine.stop()
        if self._loop is not None:
            try:
                await self.wait_stopped()
            finally:
                self._loop.remove_reader(self.engine.event_fd)
                await self._loop.run_in_executor(None, self._thread.join)
        for pool in (self._pool, self._scrub_pool):
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
        self.engine.close()
