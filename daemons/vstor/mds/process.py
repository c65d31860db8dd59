"""This process as seen from outside, and the endpoint list kept in mds.json."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import time
from pathlib import Path

from vstor.mds.repo_files import MdsConfig, Repository

log = logging.getLogger(__name__)


class Usage:
    """CPU since the last sample, resident memory, uptime."""

    def __init__(self) -> None:
        self._started = self._sampled = time.monotonic()
        self._cpu_s = self._used()
        self._percent = 0.0

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def sample(self) -> tuple[float, int]:
        """(CPU percent of one core over the last second or more, resident bytes)."""
        now = time.monotonic()
        if now - self._sampled >= 1.0:
            used = self._used()
            self._percent = round(100 * (used - self._cpu_s) / (now - self._sampled), 1)
            self._sampled, self._cpu_s = now, used
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return self._percent, pages * os.sysconf("SC_PAGE_SIZE")

    def uptime_s(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._started, 1)


def with_etcd_urls(repository: Repository, config: MdsConfig, urls: list[str]) -> MdsConfig:
    """Remember the present etcd endpoints for the next start. A disk that cannot take it is no reason to stop: the old ones still work."""
    changed = dataclasses.replace(config, etcd_urls=urls)
    try:
        repository.save(changed)
    except OSError as exc:
        log.warning("cannot store the etcd endpoints reason=%s", exc)
    return changed
