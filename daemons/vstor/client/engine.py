"""asyncio's side of the C engine: events come in, completions become futures.

DESIGN: the engine never calls Python.  Its eventfd is watched by the loop; each turn takes at most EVENTS_PER_TURN events so that a
flood cannot starve renewals.  What an event asks for is done by the handler registered for its kind (datapath.py, leases.py,
operations.py), which must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable
from typing import Any

from vstor.client import engine_api as cl
from vstor.proto.messages import CACHE, EXCLUSIVE, NONE, SHARED

log = logging.getLogger(__name__)

EVENTS_PER_TURN = 256
ENGINE_MODE = {NONE: cl.LEASE_NONE, CACHE: cl.LEASE_NONE, SHARED: cl.LEASE_SHARED, EXCLUSIVE: cl.LEASE_EXCLUSIVE}


class Engine:
    """One engine in one event loop.

    Attributes:
        native: vstor.native.cl.Client (or a test's twin of it), from `start` on.
        on: handler for each event kind.
    """

    def __init__(self, make_native: Callable[[int], Any]) -> None:
        """make_native(auth mode of data connections)."""
        self.native: Any = None
        self._make_native = make_native
        self.on: dict[int, Callable[[Any], None]] = {
            cl.EV_IO_DONE: self._io_done,
            cl.EV_DRAINED: self._drained,
        }
        self._loop = asyncio.get_running_loop()
        self._cookie = 1
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._buffers: dict[int, Any] = {}  # in use by the engine, whoever still waits
        self._again = False

    def start(self, auth_mode: int, lease_until_ms: int) -> None:
        self.native = self._make_native(auth_mode)
        self.native.set_lease_until(lease_until_ms)
        self.native.start()
        self._loop.add_reader(self.native.event_fd, self._drain)

    async def close(self) -> None:
        """Stop the engine; what waits on it gets ESHUTDOWN."""
        if self.native is None:
            return
        self._loop.remove_reader(self.native.event_fd)
        await self._loop.run_in_executor(None, self.native.stop)
        self._take_events(1 << 30)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN)))
        self._waiting.clear()
        await self._loop.run_in_executor(None, self.native.close)

    async def io(self, file: Any, op: int, offset: int, length: int, buf: Any, flags: int = 0) -> int:
        """Submit and wait: bytes. Raises OSError. The buffer is kept alive until the engine is done with it, also when cancelled."""
        cookie, future = self._new_future()
        result = file.submit(op, offset, length, buf, flags, cookie)
        if result < 0:
            del self._waiting[cookie]
            raise OSError(-result, os.strerror(-result))
        self._buffers[cookie] = buf
        done = await asyncio.shield(future)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return done

    async def lower(self, file: Any, mode: int) -> None:
        """Take the lease down to `mode`; returns when no earlier request runs under the old one."""
        cookie, future = self._new_future()
        file.set_lease(ENGINE_MODE[mode], cookie)
        await asyncio.shield(future)

    def raise_(self, file: Any, mode: int) -> None:
        """Grant `mode`."""
        file.set_lease(ENGINE_MODE[mode], 0)

    def _new_future(self) -> tuple[int, asyncio.Future[int]]:
        cookie = self._cookie
        self._cookie += 1
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[cookie] = future
        return cookie, future

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.native.event_fd, 8)
        if self._take_events(EVENTS_PER_TURN) and not self._again:
            self._again = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._again = False
        self._drain()

    def _take_events(self, count: int) -> bool:
        """True when there may be more."""
        for _ in range(count):
            event = self.native.next_event()
            if event is None:
                return False
            handler = self.on.get(event.kind)
            if handler is None:
                log.error("engine event without a handler kind=%s", event.kind)
                continue
            try:
                handler(event)
            except Exception:  # one bad event must not stop the others; the loop reports it
                log.exception("engine event failed kind=%s ino=%s", event.kind, event.ino)
        return True

    def _io_done(self, event: Any) -> None:
        self._finish(event.cookie, event.result)

    def _drained(self, event: Any) -> None:
        self._finish(event.cookie, 0)

    def _finish(self, cookie: int, result: int) -> None:
        self._buffers.pop(cookie, None)
        future = self._waiting.pop(cookie, None)
        if future is not None and not future.done():
            future.set_result(result)
