"""A bound on bytes per second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

BURST_S = 0.25  # work done in one go at most, in seconds of the rate


class RateLimit:
    """Delays the caller so that at most `rate_bytes_s` pass on average; 0: no limit.

    Concurrency: one event loop; callers wait in turn.
    """

    def __init__(
        self,
        rate_bytes_s: int,
        now: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._now = now
        self._sleep = sleep
        self._free_at_s = 0.0  # time at which all that passed is paid for

    async def take(self, n_bytes: int) -> None:
        """Wait until `n_bytes` may have passed."""
        if self.rate_bytes_s <= 0:
            return
        now = self._now() if self._now else asyncio.get_running_loop().time()
        self._free_at_s = max(self._free_at_s, now) + n_bytes / self.rate_bytes_s
        delay_s = self._free_at_s - now - BURST_S
        if delay_s > 0:
            await self._sleep(delay_s)
