"""Sizes and durations as people write and read them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPE]?)(i?B?)", re.IGNORECASE)
_POWERS = " KMGTPE"


def parse_size(text: str) -> int:
    """Bytes of `text` such as 512, 64M, 1.5GiB (powers of 1024). Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a size: {text!r} (examples: 512M, 1.5G)")
    return int(float(match[1]) * 1024 ** _POWERS.index(match[2].upper() or " "))


def format_size(n_bytes: float) -> str:
    """Short form with a unit, powers of 1024: 0B, 1.5MB, 20GB."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if abs(value) < 1024 or unit == "PB":
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.3g}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """Short form: 42s, 5m 3s, 2h 10m, 3d 4h."""
    total = int(seconds)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {secs}s" if minutes else f"{secs}s"
