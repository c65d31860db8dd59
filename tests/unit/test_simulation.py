"""A few simulated histories, so that a change of an interface the simulation stands on is noticed by the unit tests; `make simulate` runs thousands."""

from __future__ import annotations

import logging
import random

import pytest

from tests.simulate.loop import Host, Proc, SimLoop
from tests.simulate.net import Link, Net
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


def test_a_connection_keeps_the_order_of_its_messages() -> None:
    """Also when a slow one lets the next ones catch up with it, and when a path was blocked while more were under way."""
    for seed in range(20):
        loop = SimLoop(random.Random(seed))
        net = Net(loop, random.Random(seed))
        a, b = (Proc(loop, Host(name, 1.0, 0), name) for name in ("a", "b"))
        link = Link(net, a, b)
        arrived: list[int] = []

        def send(first: int, link: Link = link, arrived: list[int] = arrived) -> None:
            for number in range(first, first + 40):
                link.ends[0].send(lambda number=number: arrived.append(number))  # type: ignore[misc]

        loop.call_at(0.0, send, 0)
        loop.call_at(0.002, net.blocked.add, ("a", "b"))
        loop.call_at(0.2, net.unblock, {("a", "b")})
        loop.call_at(0.2, send, 40)
        loop.call_at(3.0, loop.stop)
        loop.run_forever()
        loop.finish()
        assert arrived == list(range(80))
