"""Clocks of the shells. Pure code gets `now_ms` handed in."""

from __future__ import annotations

import time


def unix_ms() -> int:
    """Wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


def boottime_ms() -> int:
    """CLOCK_BOOTTIME milliseconds: monotonic, goes on during suspend (clock_gettime(2)); for leases."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
