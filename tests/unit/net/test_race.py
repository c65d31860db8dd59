"""Overlapping attempts."""

from __future__ import annotations

import asyncio

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net.race import RUNNING_MAX, Race

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(20)]

FOREVER_S = 3600.0


class World:
    """Attempts that hang ("dead"), fail ("no…") or answer; what was begun, ended early and thrown away."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.disposed: list[str] = []

    async def attempt(self, key: str) -> str:
        self.begun.append(key)
        try:
            if key.startswith("dead"):
                await asyncio.sleep(FOREVER_S)
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        if key.startswith("no"):
            raise VstorError(ErrorCode.UNREACHABLE, key)
        return key.upper()

    def race(self, delay_s: float) -> Race[str, str]:
        return Race(self.attempt, self.disposed.append, delay_s)


async def test_a_silent_attempt_does_not_hold_up_the_next() -> None:
    world = World()
    async with world.race(0.01) as race:
        race.add("dead")
        race.add("a")
        assert await race.next() == ("a", "A")
    assert world.cancelled == ["dead"]
    assert world.disposed == []


async def test_the_next_waits_for_its_turn_while_the_first_is_at_work() -> None:
    world = World()
    async with world.race(FOREVER_S) as race:
        race.add("a")
        race.add("b")
        assert await race.next() == ("a", "A")
        assert world.begun == ["a"]


async def test_a_failure_starts_the_next_at_once() -> None:
    world = World()
    async with world.race(FOREVER_S) as race:
        for key in ("no1", "no2", "a"):
            race.add(key)
        outcomes = [await race.next() for _ in range(4)]
    assert outcomes[0] is not None
    assert outcomes[0][0] == "no1"
    assert isinstance(outcomes[0][1], VstorError)
    assert outcomes[2] == ("a", "A")
    assert outcomes[3] is None


async def test_at_once_overtakes_and_nothing_is_tried_twice() -> None:
    world = World()
    async with world.race(FOREVER_S) as race:
        race.add("dead")
        race.add("b")
        race.add("b")
        waiting = asyncio.ensure_future(race.next())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        race.add("b", at_once=True)
        race.add("dead", at_once=True)
        assert await race.next() == ("b", "B")
    assert world.begun == ["dead", "b"]


async def test_results_nobody_took_are_disposed_of() -> None:
    world = World()
    async with world.race(0.0) as race:
        for key in ("a", "b", "c"):
            race.add(key)
        await race.next()
    assert len(world.disposed) == len(world.begun) - 1


async def test_dropped_attempts_end() -> None:
    world = World()
    async with world.race(0.0) as race:
        race.add("dead1")
        race.add("a")
        race.add("dead2")
        assert await race.next() == ("a", "A")
        race.drop(lambda key: key.startswith("dead"))
        assert await race.next() is None
    assert world.cancelled == [key for key in world.begun if key.startswith("dead")]


async def test_no_more_than_the_bound_at_a_time() -> None:
    world = World()
    async with world.race(0.0) as race:
        for i in range(2 * RUNNING_MAX):
            race.add(f"dead{i}")
        waiting = asyncio.ensure_future(race.next())
        for _ in range(1000):  # turns of the loop, many more than it needs
            await asyncio.sleep(0)
        waiting.cancel()
        assert len(world.begun) == RUNNING_MAX
