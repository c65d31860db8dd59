"""Attempts that overlap: the next one starts when the last one has failed, or has been silent for a moment (RFC 8305 section 5).

So a dead first address costs ATTEMPT_DELAY_S and not the time until the kernel gives up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from vstor.errors import VstorError

ATTEMPT_DELAY_S = 0.25  # "Connection Attempt Delay" of RFC 8305
RUNNING_MAX = 16

K = TypeVar("K")
R = TypeVar("R")


class Race(Generic[K, R]):
    """Attempts in the order of `add`, their outcomes in the order in which they come.

    Args:
        attempt: one attempt; raises VstorError when it fails.
        dispose: gets a result that nobody took, e.g. a connection to be closed.
    Concurrency: one event loop, one caller of `next`. Used as a context manager, which ends what still runs.
    """

    def __init__(
        self,
        attempt: Callable[[K], Awaitable[R]],
        dispose: Callable[[R], None],
        delay_s: float = ATTEMPT_DELAY_S,
    ) -> None:
        self._attempt, self._dispose, self._delay_s = attempt, dispose, delay_s
        self._queue: list[K] = []
        self._known: set[K] = set()
        self._running: dict[asyncio.Task[R], K] = {}
        self._dropped: list[asyncio.Task[R]] = []
        self._start_s = 0.0  # when the next one may start

    def add(self, key: K, *, at_once: bool = False) -> None:
        """Try `key` too, unless it has been already; with `at_once` before all others and without a delay."""
        if at_once and key in self._queue:
            self._queue.remove(key)
            self._known.discard(key)
        if key in self._known:
            return
        self._known.add(key)
        if at_once:
            self._queue.insert(0, key)
            self._start_s = 0.0
        else:
            self._queue.append(key)

    def drop(self, unwanted: Callable[[K], bool]) -> None:
        """Forget attempts, also those that run."""
        self._queue = [key for key in self._queue if not unwanted(key)]
        for task, key in list(self._running.items()):
            if unwanted(key):
                del self._running[task]
                task.cancel()
                self._dropped.append(task)

    async def next(self) -> tuple[K, R | VstorError] | None:
        """The next outcome, None when all attempts have ended."""
        loop = asyncio.get_running_loop()
        while self._queue or self._running:
            due = not self._running or (len(self._running) < RUNNING_MAX and loop.time() >= self._start_s)
            if self._queue and due:
                key = self._queue.pop(0)
                self._running[asyncio.ensure_future(self._attempt(key))] = key
                self._start_s = loop.time() + self._delay_s
            full = not self._queue or len(self._running) >= RUNNING_MAX
            timeout_s = None if full else max(self._start_s - loop.time(), 0)
            done, _ = await asyncio.wait(self._running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                task = done.pop()
                key = self._running.pop(task)
                try:
                    return key, task.result()
                except VstorError as exc:
                    self._start_s = 0.0
                    return key, exc
        return None

    async def __aenter__(self) -> Race[K, R]:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        tasks, self._running, self._dropped = [*self._running, *self._dropped], {}, []
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                self._dispose(outcome)
