"""Start of a copy and choice of granules, case by case."""

from __future__ import annotations

import pytest
from vstor.cs.choice import (
    Action,
    LastPass,
    Local,
    Start,
    choose_granules,
    choose_start,
    usable_base,
    usable_pass,
)

SKIP, COMPARE, COPY = Action.SKIP, Action.COMPARE, Action.COPY


@pytest.mark.parametrize(
    ("local", "version", "base", "since", "start"),
    [
        (None, 5, 0, 0, Start.FRESH),
        (None, 5, 3, 9, Start.FRESH),
        (Local(5, False), 5, 3, 0, Start.DONE),
        (Local(6, False), 5, 3, 0, Start.REFUSE),
        (Local(3, False), 5, 3, 0, Start.REUSE),
        (Local(3, False), 5, 0, 0, Start.EMPTY),
        (Local(3, True), 5, 3, 0, Start.REUSE),  # a resync that was cut off: still complete at its version
        (Local(0, True), 5, 3, 0, Start.EMPTY),  # a copy that was cut off: complete at nothing
        (Local(0, True), 5, 0, 7, Start.CONTINUE),
        (Local(3, True), 5, 3, 7, Start.CONTINUE),
        (Local(3, False), 5, 3, 7, Start.REUSE),  # the first pass is unknown here
    ],
)
def test_start(local: Local | None, version: int, base: int, since: int, start: Start) -> None:
    assert choose_start(local, version, base, since) is start


def test_base_is_never_above_what_is_here() -> None:
    assert usable_base(Start.REUSE, Local(3, False), 4) == 3
    assert usable_base(Start.REUSE, Local(4, False), 3) == 3
    assert usable_base(Start.EMPTY, Local(4, False), 3) == 0
    assert usable_base(Start.FRESH, None, 3) == 0


def test_granules_of_a_fresh_copy_are_all_copied() -> None:
    assert choose_granules([(0, 0), (5, 1)], [(0, 0)] * 9, Start.FRESH, 0, None) == [COPY, COPY]


def test_granules_of_a_stale_replica() -> None:
    source = [(2, 0), (3, 1), (4, 2), (0, 0), (2, 0), (2, 0)]
    here = [(2, 0), (2, 0), (2, 0), (0, 0), (3, 0), (4, 0)]  # the last two: a write that came only here
    assert choose_granules(source, here, Start.REUSE, 3, None) == [SKIP, COMPARE, COPY, SKIP, COMPARE, COMPARE]


def test_granules_of_a_next_pass_follow_the_sequence() -> None:
    source = [(5, 9), (5, 10), (5, 11)]
    assert choose_granules(source, source, Start.CONTINUE, 0, LastPass(5, 1, 9, 10)) == [SKIP, SKIP, COPY]


def test_next_pass_from_an_unknown_source_compares_everything() -> None:
    assert choose_granules([(5, 1), (5, 2)], [(0, 0), (0, 0)], Start.CONTINUE, 0, None) == [COMPARE, COMPARE]


def test_next_pass_is_known_by_version_and_sequence() -> None:
    last = LastPass(5, 1, 9, 0)  # nothing had been written at the source since it started
    assert choose_start(Local(0, True), 6, 5, 0, last) is Start.CONTINUE
    assert choose_start(Local(0, True), 6, 4, 0, last) is Start.EMPTY
    assert choose_start(Local(0, True), 6, 0, 0, last) is Start.EMPTY


def test_sequence_means_nothing_after_a_restart_or_elsewhere() -> None:
    last = LastPass(5, 1, 9, 10)
    assert usable_pass(last, 5, 10, 1, 9) is last
    assert usable_pass(last, 5, 10, 1, 8) is None
    assert usable_pass(last, 5, 10, 2, 9) is None
    assert usable_pass(last, 5, 11, 1, 9) is None
    assert usable_pass(last, 4, 10, 1, 9) is None
    assert usable_pass(None, 5, 10, 1, 9) is None
