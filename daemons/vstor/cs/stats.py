"""What a heartbeat and the metrics endpoint say: pure functions over counters, and the one figure that comes from the kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Error letters (FEATURES.md B23): they follow the letters of what is in use.
LETTER_IO_ERROR, LETTER_CHECKSUM, LETTER_JOURNAL, LETTER_TIMEOUT = "H", "h", "S", "T"
NS_PER_MS = 1e6


ERRORS_WINDOW_MS = 600_000
IO_ERRORS_TOLERATED = 1  # in the window: one more is a failing disk
LETTERS = "HhSsRT"


@dataclass
class Health:
    """Error letters. A checksum letter is shown for ERRORS_WINDOW_MS after the last damage; I/O errors count as a failing disk when
    they repeat within it (a single one may be a bad sector that a rewrite mends); a failing disk stays one until the restart."""

    _lasting: set[str] = field(default_factory=set)
    _damage_ms: int = -ERRORS_WINDOW_MS
    _io_errors_ms: list[int] = field(default_factory=list)  # of the window, IO_ERRORS_TOLERATED + 1 at most

    def note(self, letter: str, now_ms: int) -> None:
        """Something happened that has this letter; now_ms: any monotonic clock."""
        if letter == LETTER_CHECKSUM:
            self._damage_ms = now_ms
        elif letter == LETTER_IO_ERROR:
            self._io_errors_ms = [t for t in self._io_errors_ms if now_ms - t < ERRORS_WINDOW_MS] + [now_ms]
            if len(self._io_errors_ms) > IO_ERRORS_TOLERATED:
                self._lasting.add(letter)
                del self._io_errors_ms[:-1]
        else:
            self._lasting.add(letter)

    def letters(self, now_ms: int) -> set[str]:
        """What to show now."""
        damaged = {LETTER_CHECKSUM} if now_ms - self._damage_ms < ERRORS_WINDOW_MS else set()
        return self._lasting | damaged


class DiskBusy:
    """How much of the time a disk had I/O in flight, as iostat's %util (Documentation/admin-guide/iostats.rst, field 10 of a device's stat)."""

    def __init__(self, path: Path) -> None:
        device = path.stat().st_dev
        self._file = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        self._before: tuple[float, int] | None = None  # (monotonic seconds, busy ms)

    def sample(self, now_s: float) -> float:
        """Percent since the last sample; below 0 at the first, and where the file system is on no block device of its own. Blocks."""
        try:
            busy_ms = int(self._file.read_text().split()[9])
        except (OSError, ValueError, IndexError):
            return -1.0
        before, self._before = self._before, (now_s, busy_ms)
        return -1.0 if before is None else busy_percent(busy_ms - before[1], now_s - before[0])


def busy_percent(busy_ms: int, elapsed_s: float) -> float:
    """0 to 100; below 0 without a time."""
    return round(min(100.0, max(0.0, busy_ms / (10 * elapsed_s))), 1) if elapsed_s > 0 else -1.0


def flags(journal_apart: bool, direct: bool, journal_clean: bool, letters: set[str]) -> str:
    """J journal on a device of its own, C checksums, D direct I/O, c the journal was clean at start, then error letters."""
    base = ("J" if journal_apart else "") + "C" + ("D" if direct else "") + ("c" if journal_clean else "")
    return base + "".join(letter for letter in LETTERS if letter in letters)


def latency_ms(now: Mapping[str, int], before: Mapping[str, int]) -> tuple[float, float]:
    """(average, maximum) latency of reads, writes and syncs since `before`. The maxima are of the last reading anyway."""
    operations = sum(now[k] - before.get(k, 0) for k in ("reads", "writes", "syncs"))
    total_ns = sum(now[k] - before.get(k, 0) for k in ("read_ns_sum", "write_ns_sum", "sync_ns_sum"))
    worst_ns = max(now[k] for k in ("read_ns_max", "write_ns_max", "sync_ns_max"))
    average_ms = total_ns / operations / NS_PER_MS if operations > 0 else 0.0
    return round(average_ms, 3), round(worst_ns / NS_PER_MS, 3)


def journal_full_percent(counters: Mapping[str, int]) -> float:
    """Part of the journal that waits to be applied."""
    size = counters["journal_bytes"]
    return round(100 * counters["journal_used"] / size, 1) if size else 0.0


GAUGES = frozenset({"connections", "journal_bytes", "journal_used", "inflight", "chunks", "written_blocks"})
SKIPPED = frozenset({"read_ns_max", "write_ns_max", "sync_ns_max"})  # reset by reading them: the heartbeat does


def render_metrics(labels: Mapping[str, str], counters: Mapping[str, int], extra: Mapping[str, float]) -> str:
    """Prometheus text format 0.0.4. `extra`: further gauges (full names without the prefix)."""
    label = ",".join(f'{key}="{_escape(value)}"' for key, value in sorted(labels.items()))
    lines = []
    for name, value in counters.items():
        if name in SKIPPED:
            continue
        if name.endswith("_ns_sum"):
            full, shown, kind = (
                f"vstor_cs_{name.removesuffix('_ns_sum')}_seconds_total",
                f"{value / 1e9:.6f}",
                "counter",
            )
        else:
            kind = "gauge" if name in GAUGES else "counter"
            full, shown = f"vstor_cs_{name}" + ("" if kind == "gauge" else "_total"), str(value)
        lines += [f"# TYPE {full} {kind}", f"{full}{{{label}}} {shown}"]
    for name, number in extra.items():
        lines += [f"# TYPE vstor_cs_{name} gauge", f"vstor_cs_{name}{{{label}}} {number:g}"]
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
