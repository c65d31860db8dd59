"""Tables and small formats of the text output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


def table(header: Sequence[str], rows: Iterable[Sequence[object]], left: Iterable[int] = (), gap: str = " ") -> str:
    """Columns as wide as their widest cell, right-aligned but for the indexes in `left`; the last one is never padded."""
    cells = [[str(c) for c in header], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    left_set = set(left)
    lines = []
    for row in cells:
        parts = [
            cell.ljust(width) if i in left_set else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(parts).rstrip())
    return "\n".join(lines)


def percent(part: float, whole: float) -> str:
    """0%, 12%, 100%; 0% of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else "0%"


def when(unix_ms: int) -> str:
    """Moment in UTC, to the second."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
