"""Reads everything against its checksums, over and over, at a set pace.

DESIGN: a pass goes through the chunk ids in ascending order, so that one number says where it stopped; a small state file keeps it
over restarts. A chunk that cannot be scrubbed never ends a pass. Damage comes out of the engine as events, not from here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vstor import paths
from vstor.clock import unix_ms
from vstor.codes_gen import ErrorCode
from vstor.cs.engine import EngineHost
from vstor.cs.rate import RateLimit
from vstor.errors import VstorError

log = logging.getLogger(__name__)

STATE_FILE = "scrub.json"
STATE_BYTES_MAX = 4096
SAVE_EVERY_CHUNKS = 64
LIST_MAX = 256
RATE_OPTION = "cs.scrub.rate"  # MB/s
INTERVAL_OPTION = "cs.scrub.interval"  # ms
RATE_MB_DEFAULT = 20
INTERVAL_MS_DEFAULT = 604_800_000
IDLE_S = 60.0  # how often an idle scrubber looks at its configuration


@dataclass
class ScrubState:
    """Where the scrub stands."""

    after: int = 0  # chunks up to this id are done in the present pass; 0: not begun
    started_ms: int = 0  # of the present or last pass (Unix ms of this host)
    finished_ms: int = 0  # of the last whole pass; 0: never
    chunks: int = 0  # done in the present or last pass
    bad_blocks: int = 0  # found in it


@dataclass(frozen=True)
class ScrubConfig:
    """rate_mb 0: no scrubbing."""

    rate_mb: int = RATE_MB_DEFAULT
    interval_ms: int = INTERVAL_MS_DEFAULT


def parse_config(config: dict[str, str]) -> ScrubConfig:
    """From the cluster configuration; a value that is no number is the default."""

    def number(key: str, default: int) -> int:
        try:
            return max(0, int(config.get(key, default)))
        except ValueError:
            return default

    return ScrubConfig(number(RATE_OPTION, RATE_MB_DEFAULT), number(INTERVAL_OPTION, INTERVAL_MS_DEFAULT))


def wait_ms(state: ScrubState, config: ScrubConfig, now_ms: int) -> int | None:
    """Milliseconds until the next chunk is due: 0 at once (a pass is under way or due), None: scrubbing is off."""
    if config.rate_mb == 0:
        return None
    if state.after:
        return 0
    if not state.finished_ms:
        return 0
    return max(0, state.started_ms + config.interval_ms - now_ms)


def load_state(file: Path) -> ScrubState:
    """A file that is missing or spoiled means a new pass: nothing else depends on it."""
    try:
        with file.open("rb") as opened:
            fields = json.loads(opened.read(STATE_BYTES_MAX))
        return ScrubState(**{name: int(fields[name]) for name in ScrubState.__dataclass_fields__})
    except FileNotFoundError:
        return ScrubState()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("scrub state unreadable, starting a new pass file=%s reason=%s", file, exc)
        return ScrubState()


class Scrubber:
    """The cyclic pass of one CS."""

    def __init__(self, host: EngineHost, repo: Path, now_ms: Callable[[], int] = unix_ms) -> None:
        self._host = host
        self._file = repo / STATE_FILE
        self._now_ms = now_ms
        self._wake = asyncio.Event()
        self.config = ScrubConfig()
        self.state = load_state(self._file)
        self.limit = RateLimit(self.config.rate_mb << 20)
        self.bytes_read = 0

    def configure(self, config: dict[str, str]) -> None:
        """Take over the cluster's configuration."""
        new = parse_config(config)
        if new != self.config:
            self.config = new
            self.limit.rate_bytes_s = new.rate_mb << 20
            self._wake.set()

    async def run_forever(self) -> None:
        """Passes for ever; ends only by cancellation."""
        while True:
            delay_ms = wait_ms(self.state, self.config, self._now_ms())
            if delay_ms == 0:
                await self.run_once()
                continue
            timeout_s = IDLE_S if delay_ms is None else min(IDLE_S, delay_ms / 1000)
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def run_once(self) -> None:
        """One pass, or the rest of one; stops early when scrubbing is switched off."""
        if not self.state.after:
            finished = self.state.finished_ms
            self.state = ScrubState(started_ms=self._now_ms(), finished_ms=finished)
            log.info("scrub begins")
        unsaved = 0
        while wait_ms(self.state, self.config, self._now_ms()) is not None:
            replicas = await self._host.call_scrub(self._host.engine.list, self.state.after, LIST_MAX)
            if not replicas:
                await self._finish()
                return
            for replica in replicas:
                if wait_ms(self.state, self.config, self._now_ms()) is None:
                    break
                if not replica.syncing:
                    await self._scrub_of_pass(replica.chunk_id)
                self.state.after = replica.chunk_id
                self.state.chunks += 1
                unsaved += 1
                if unsaved >= SAVE_EVERY_CHUNKS:
                    await self._save()
                    unsaved = 0
        await self._save()

    async def scrub_chunk(self, chunk_id: int) -> int:
        """Read one chunk against its checksums; the number of bad blocks, also of those known before. Raises the engine's VstorError."""
        bad, n_bytes = await self._host.call_scrub(self._host.engine.scrub, chunk_id)
        self.bytes_read += n_bytes
        self.state.bad_blocks += bad
        await self.limit.take(n_bytes)
        return int(bad)

    async def _scrub_of_pass(self, chunk_id: int) -> None:
        try:
            await self.scrub_chunk(chunk_id)
        except VstorError as exc:
            if exc.code != ErrorCode.NO_CHUNK:  # deleted meanwhile is fine
                log.warning("chunk cannot be scrubbed chunk=%d code=%s", chunk_id, exc.code.name)

    async def _finish(self) -> None:
        self.state.after = 0
        self.state.finished_ms = max(1, self._now_ms())
        await self._save()
        log.info("scrub finished chunks=%d bad_blocks=%d", self.state.chunks, self.state.bad_blocks)

    async def _save(self) -> None:
        data = json.dumps(asdict(self.state)).encode()
        try:
            await self._host.call_scrub(paths.write_atomic, self._file, data)
        except OSError as exc:  # a full or failing disk is reported by the engine; the pass goes on
            log.warning("scrub state not saved reason=%s", exc)
