"""Times of changes of an inode: each later than all before it, whatever clock it is taken from."""

from __future__ import annotations

SKEW_NS_MAX = 60 * 10**9  # clocks of a cluster differ by less; beyond, a time was set by a clock that was wrong


def later(now_ns: int, ctime_ns: int) -> int:
    """The time of a change made now, of an inode last changed at ctime_ns.

    Clocks of hosts differ, and the MDS's goes in milliseconds: programs that compare times must see the change all the same.
    What a wrong clock left far in the future is not built upon.
    """
    return max(now_ns, ctime_ns + 1) if ctime_ns - now_ns < SKEW_NS_MAX else now_ns
