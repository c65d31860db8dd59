"""Chunk servers that are ill: they answer, but far more slowly than the others.

DESIGN: told from the latencies in their heartbeats, relative to the median of the others, so that a loaded cluster is not called ill, and only when it lasts.
An ill server is the last to get new replicas and the last to be copied from; clients measure by themselves and read elsewhere. Nothing is moved off
it: whether the disk is to be replaced is for the operator. Never more than a quarter of the servers.
"""

from __future__ import annotations

from statistics import median

from vstor.model.chunkservers import ACTIVE
from vstor.model.step import Step

OTHERS_MIN = 2  # servers to compare with
TIMES = 5  # slower than the median of the others
CHANGE_MS = 30_000  # it must last so long to count, either way
IDLE_MS = 600_000  # a disk nobody asked for so long is given another chance; until then no news is no good news
WEIGHT = 0.3  # of a new heartbeat in the average


def suspects(averages: dict[int, float], floor_ms: float, ill: set[int]) -> set[int]:
    """Servers that are slow now. An ill one stays so until it is below half of what makes one ill."""
    out = set()
    for cs_id, value in averages.items():
        others = [v for n, v in averages.items() if n != cs_id and n not in ill]
        if len(others) >= OTHERS_MIN:
            bound = max(floor_ms, TIMES * median(others))
            if value >= (bound / 2 if cs_id in ill else bound):
                out.add(cs_id)
    return out


class Slow:
    """Who is ill. Memory only."""

    def __init__(self) -> None:
        self.ill: set[int] = set()
        self._average: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # last heartbeat with a latency, taken into the average
        self._since: dict[int, int] = {}  # a change that does not count yet

    def tick(self, s: Step) -> None:
        """Look at the heartbeats that came."""
        floor_ms = s.core.config.int("mds.wd.ill_latency")
        active = {n: live for n, live in s.core.servers.live.items() if live.activity == ACTIVE and live.conn_id}
        for cs_id in [n for n in self._average if n not in active]:
            self._forget(cs_id)
        for cs_id, live in active.items():
            if live.io_lat_avg_ms > 0 and self._seen.get(cs_id) != live.last_ms:
                self._seen[cs_id] = live.last_ms
                before = self._average.setdefault(cs_id, live.io_lat_avg_ms)
                self._average[cs_id] = before + WEIGHT * (live.io_lat_avg_ms - before)
            elif s.now_ms - self._seen.get(cs_id, s.now_ms) > IDLE_MS:
                self._average[cs_id] = 0.0
        slow = suspects(self._average, floor_ms, self.ill) if floor_ms else set()
        for cs_id in active:
            if (cs_id in slow) == (cs_id in self.ill):
                self._since.pop(cs_id, None)
            elif s.now_ms - self._since.setdefault(cs_id, s.now_ms) >= CHANGE_MS:
                self._change(s, cs_id, bool(cs_id in slow), len(active))

    def _forget(self, cs_id: int) -> None:
        self.ill.discard(cs_id)
        for table in (self._average, self._seen, self._since):
            table.pop(cs_id, None)

    def _change(self, s: Step, cs_id: int, slow: bool, active: int) -> None:
        host = s.state.servers[cs_id].hostname
        if not slow:
            self.ill.discard(cs_id)
            s.event("info", f"CS#{cs_id} ({host}) is well again", "CS")
        elif len(self.ill) < max(1, active // 4):
            self.ill.add(cs_id)
            s.event(
                "warn",
                f"CS#{cs_id} ({host}) is ill: its disk takes {self._average[cs_id]:.0f} ms on average, far more than the others",
                "CS",
            )
        self._since.pop(cs_id, None)
