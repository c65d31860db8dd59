"""The scrubber's pass, its memory and its schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vstor.cs.scrubber import (
    INTERVAL_OPTION,
    RATE_OPTION,
    STATE_FILE,
    Scrubber,
    ScrubConfig,
    ScrubState,
    load_state,
    parse_config,
    wait_ms,
)
from vstor.model.config import Config, check
from vstor.proto.wire_gen import GRANULE_BYTES

from tests.unit.cs.fakes import CHUNK_BYTES, FakeChunk, FakeEngine, FakeHost, granule


def make(tmp_path: Path) -> tuple[FakeEngine, Scrubber, Any]:
    engine = FakeEngine()
    for chunk_id in (3, 5, 9):
        engine.chunks[chunk_id] = FakeChunk(chunk_id, 1, CHUNK_BYTES, data={0: granule(1)})
    host: Any = FakeHost(engine)
    return engine, Scrubber(host, tmp_path, lambda: 1000), host


async def test_pass_reads_every_chunk_once_and_counts(tmp_path: Path) -> None:
    engine, scrubber, _ = make(tmp_path)
    engine.chunks[5].bad = {0, 4096}
    engine.chunks[9].syncing = True
    await scrubber.run_once()
    assert [entry[1] for entry in engine.log if entry[0] == "scrub"] == [3, 5]
    assert scrubber.state == ScrubState(after=0, started_ms=1000, finished_ms=1000, chunks=3, bad_blocks=2)
    assert scrubber.bytes_read == 2 * GRANULE_BYTES
    assert load_state(tmp_path / STATE_FILE) == scrubber.state


async def test_pass_goes_on_where_it_stopped(tmp_path: Path) -> None:
    engine, scrubber, _ = make(tmp_path)
    scrubber.state = ScrubState(after=3, started_ms=500, chunks=1)
    await scrubber.run_once()
    assert [entry[1] for entry in engine.log if entry[0] == "scrub"] == [5, 9]
    assert scrubber.state.started_ms == 500


async def test_chunk_deleted_meanwhile_does_not_end_the_pass(tmp_path: Path) -> None:
    engine, scrubber, host = make(tmp_path)

    def remove(name: str) -> None:
        if name == "scrub":
            engine.chunks.pop(5, None)

    host.before_call = remove
    await scrubber.run_once()
    assert scrubber.state.finished_ms == 1000
    assert scrubber.state.chunks == 3


async def test_switching_off_ends_the_pass_and_keeps_the_place(tmp_path: Path) -> None:
    _, scrubber, host = make(tmp_path)

    def switch_off(name: str) -> None:
        if name == "scrub":
            scrubber.configure({RATE_OPTION: "0"})

    host.before_call = switch_off
    await scrubber.run_once()
    assert scrubber.state.after == 3
    assert load_state(tmp_path / STATE_FILE).after == 3


def test_schedule() -> None:
    config = ScrubConfig(rate_mb=10, interval_ms=7_200_000)
    assert wait_ms(ScrubState(), config, 0) == 0
    assert wait_ms(ScrubState(after=4, started_ms=1, finished_ms=9), config, 10) == 0
    done = ScrubState(started_ms=1000, finished_ms=2000)
    assert wait_ms(done, config, 3000) == 7_200_000 - 2000
    assert wait_ms(done, config, 1000 + 7_200_000) == 0
    assert wait_ms(done, ScrubConfig(rate_mb=0), 3000) is None


def test_configuration() -> None:
    assert parse_config({}) == ScrubConfig()
    assert parse_config({RATE_OPTION: "5", INTERVAL_OPTION: "60000"}) == ScrubConfig(5, 60_000)
    assert parse_config({RATE_OPTION: "fast"}) == ScrubConfig()


def test_the_options_are_those_an_operator_can_set() -> None:
    assert parse_config(Config({}).all()) == ScrubConfig()  # the same defaults in both places
    stored = {name: check(name, value) for name, value in ((RATE_OPTION, "7"), (INTERVAL_OPTION, "90000"))}
    assert parse_config(Config(stored).all()) == ScrubConfig(7, 90_000)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"after": "x"}', b'{"after": 1}'])
def test_spoiled_state_starts_a_new_pass(tmp_path: Path, data: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(data)
    assert load_state(tmp_path / STATE_FILE) == ScrubState()
