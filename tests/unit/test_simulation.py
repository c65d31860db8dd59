"""A few simulated histories, so that a change of an interface the simulation stands on is noticed by the unit tests; `make simulate` runs thousands."""

from __future__ import annotations

import logging

import pytest

from tests.simulate.scenario import run_seed


@pytest.mark.parametrize("seed", range(3))
def test_a_history(seed: int) -> None:
    logging.disable(logging.CRITICAL)  # what happens in it would be a thousand lines
    try:
        world, problems = run_seed(seed)
    finally:
        logging.disable(logging.NOTSET)
    assert not problems, f"make simulate SEED={seed} shows it"
    assert world.history.ops


def test_the_same_seed_is_the_same_history() -> None:
    first, second = ([str(op) for op in run_seed(5)[0].history.ops] for _ in range(2))
    assert first == second
