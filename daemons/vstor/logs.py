"""Logging: one line an event, fixed words first, key=value fields last."""

from __future__ import annotations

import logging
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, daemon: str) -> None:
        super().__init__(
            f"%(asctime)s.%(msecs)03dZ %(levelname)s {daemon}[%(process)d] %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\\n") if not record.exc_info else super().format(record)


class RateLimit(logging.Filter):
    """Passes at most one record of the same template each `interval_s`; the next one says how many were left out."""

    TEMPLATES_MAX = 1000

    def __init__(self, interval_s: float = 1.0, burst: int = 20) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._burst = burst
        self._seen: dict[tuple[str, object], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, record.msg)
        start, passed, dropped = self._seen.get(key, (record.created, 0, 0))
        if record.created - start >= self._interval_s:
            if dropped:
                record.msg = f"{record.msg} repeated={dropped}"
            start, passed, dropped = record.created, 0, 0
        if passed >= self._burst:
            self._seen[key] = (start, passed, dropped + 1)
            return False
        if len(self._seen) >= self.TEMPLATES_MAX:
            self._seen.clear()
        self._seen[key] = (start, passed + 1, dropped)
        return True


def setup_logging(daemon: str, level: str = "info", file: str | Path | None = None) -> None:
    """Log of this process: to `file` (re-opened when rotated away), else to standard error."""
    handler: logging.Handler
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(file)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(daemon))
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
