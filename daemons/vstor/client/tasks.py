"""Background tasks of the client: kept alive, counted, their errors logged, all cancelled at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from vstor.errors import VstorError

log = logging.getLogger(__name__)


class Tasks:
    """Concurrency: one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run in the background; an error ends only this task and is logged."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        exc = task.exception()
        if isinstance(exc, VstorError):
            log.warning("background work failed task=%s reason=%s", task.get_name(), exc.message)
        elif exc is not None:
            log.error("background work failed task=%s", task.get_name(), exc_info=exc)

    async def close(self) -> None:
        """Cancel what is left."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
