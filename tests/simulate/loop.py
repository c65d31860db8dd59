"""Virtual time: an asyncio event loop whose clock jumps to the next timer, and processes that can be stopped and killed inside it.

DESIGN: the product's own coroutines run in it unchanged. Each handle belongs to the simulated process whose context created it; handles of a
killed process are dropped, so that no `finally` of it runs (kill -9), those of a stopped one are kept until it goes on (SIGSTOP). Nothing here
reads the machine's clock, so a seed gives the same history on every run.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable
from typing import Any

PROC: contextvars.ContextVar[Proc | None] = contextvars.ContextVar("proc", default=None)
STEPS_MAX = 2_000_000  # of one history: above it something spins


class Spinning(Exception):
    """The history does not get on: too many steps."""


class Host:
    """A machine: its clock runs `rate` times as fast as true time. Network reachability is asked for by host name."""

    def __init__(self, name: str, rate: float, offset_ms: int) -> None:
        self.name, self.rate, self.offset_ms = name, rate, offset_ms

    def boottime_ms(self, now_s: float) -> int:
        return self.offset_ms + int(now_s * 1000 * self.rate)


class Proc:
    """One life of one process."""

    def __init__(self, loop: SimLoop, host: Host, name: str) -> None:
        self.loop, self.host, self.name = loop, host, name
        self.alive = True
        self.paused = False
        self.stash: list[asyncio.Handle] = []
        self.on_death: list[Callable[[bool], None]] = []  # called with: the kernel of the host is still there to say so
        self.context = contextvars.copy_context()
        self.context.run(PROC.set, self)

    def spawn(self, coro: Any, name: str = "") -> asyncio.Task[Any]:
        """Run a coroutine as this process."""
        return self.context.copy().run(lambda: self.loop.create_task(coro, name=name))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function as this process, now."""
        return self.context.copy().run(function, *args)

    def kill(self, *, power: bool = False) -> None:
        """kill -9, or power: nobody is told of broken connections."""
        if self.alive:
            self.alive = False
            self.stash.clear()
            for tell in self.on_death:
                tell(not power)

    def stop(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def go_on(self) -> None:
        """SIGCONT: what came meanwhile is done, in order."""
        if self.paused:
            self.paused = False
            stash, self.stash = self.stash, []
            self.loop.take_back(stash)


class SimLoop(asyncio.BaseEventLoop):
    """Concurrency: none; everything happens in one thread, in an order given by the seed."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.now_s = 0.0
        self.steps = 0
        self.tasks: list[
            asyncio.Task[Any]
        ] = []  # kept, so that no garbage collection ends one at a time of its own choice
        self.defects: list[BaseException] = []  # exceptions nobody handled
        self._readers: dict[int, asyncio.Handle] = {}
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note)
        self.set_debug(False)

    def _make_task(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        return task

    def _note(self, loop: Any, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        if exc is not None:
            self.defects.append(exc)

    def time(self) -> float:
        return self.now_s

    def take_back(self, handles: list[asyncio.Handle]) -> None:
        """Handles of a process that was stopped."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Spinning("nothing is left to happen")
            self.now_s = max(self.now_s, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            self._run(ready.popleft())
        self._timer_cancelled_count = 0

    def _run(self, handle: Any) -> None:
        if handle._cancelled:
            return
        proc = handle._context.get(PROC)
        if proc is not None:
            if not proc.alive:
                return
            if proc.paused:
                proc.stash.append(handle)
                return
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Spinning(f"more than {STEPS_MAX} steps")
        handle._run()

    # --- what a selector loop has besides

    def _process_events(self, event_list: Any) -> None:
        return

    def _write_to_self(self) -> None:
        return

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self._readers[id(fd)] = asyncio.Handle(callback, args, self, contextvars.copy_context())

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(id(fd), None) is not None

    def readable(self, fd: Any) -> None:
        """The simulated descriptor has something to read."""
        handle = self._readers.get(id(fd))
        if handle is not None:
            self._ready.append(handle)  # type: ignore[attr-defined]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """A thread of a pool: a little later, and the answer a little later again."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as exc:  # noqa: BLE001 - handed to the caller as a pool does
                self.call_later(self.rng.random() * 0.001, _settle, future, None, exc)
            else:
                self.call_later(self.rng.random() * 0.001, _settle, future, result, None)

        self.call_later(self.rng.random() ** 4 * 0.02, work)
        return future

    def finish(self) -> None:
        """End of the history: forget every task."""
        for task in self.tasks:
            if not task.done():
                coro: Any = task.get_coro()
                try:
                    coro.close()
                except (
                    RuntimeError,
                    asyncio.CancelledError,
                ):  # it waits while it is being closed: of no interest any more
                    continue
        self.tasks.clear()
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()


def _settle(future: asyncio.Future[Any], result: Any, exc: BaseException | None) -> None:
    if future.done():
        return
    if exc is not None:
        future.set_exception(exc)
    else:
        future.set_result(result)
