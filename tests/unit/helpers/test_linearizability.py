"""The checker itself: histories known to be good or bad, and random ones against a search without any optimisation."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tests.helpers.linearizability import Operation, check, register

INF = math.inf


def ops(*rows: tuple[float, float, str, object]) -> list[Operation]:
    return [Operation(call, ret, (kind, value)) for call, ret, kind, value in rows]


GOOD = {
    "nothing": ops(),
    "one after the other": ops((0, 1, "write", 1), (2, 3, "read", 1)),
    "a read beside a write sees the old or the new": ops(
        (0, 10, "write", 1), (1, 2, "read", 0), (3, 4, "read", 1), (11, 12, "read", 1)
    ),
    "writes side by side in either order": ops((0, 10, "write", 1), (0, 10, "write", 2), (11, 12, "read", 1)),
    "a write without an answer is seen much later": ops((0, INF, "write", 1), (5, 6, "read", 0), (7, 8, "read", 1)),
    "a write without an answer is never seen": ops((0, INF, "write", 1), (5, 6, "read", 0), (7, 8, "read", 0)),
    "same instant: call before return": ops((0, 1, "write", 1), (1, 2, "read", 0)),
    "a loss explains the way back": ops(
        (0, 1, "write", 1), (2, 3, "write", 2), (4, 5, "lose", (1,)), (6, 7, "read", 1)
    ),
    "a loss need not lose": ops((0, 1, "write", 1), (2, 3, "lose", (0,)), (4, 5, "read", 1)),
}
BAD = {
    "a stale read": ops((0, 1, "write", 1), (2, 3, "read", 0)),
    "a value nobody wrote": ops((0, 1, "write", 1), (2, 3, "read", 7)),
    "new, then old": ops((0, 10, "write", 1), (1, 2, "read", 1), (3, 4, "read", 0)),
    "two readers disagree on the order": ops(
        (0, 10, "write", 1), (0, 10, "write", 2), (11, 12, "read", 1), (13, 14, "read", 2)
    ),
    "an unanswered write comes and goes": ops((0, INF, "write", 1), (2, 3, "read", 1), (4, 5, "read", 0)),
    "lost before anything could be lost": ops(
        (0, 1, "write", 1), (2, 3, "lose", (0,)), (4, 5, "write", 2), (6, 7, "read", 1)
    ),
    "a value comes back twice": ops(
        (0, 1, "write", 1), (2, 3, "write", 2), (4, 5, "lose", (1,)), (6, 7, "read", 1), (8, 9, "read", 2)
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert check(GOOD[name], 0, register).explain() == "linearizable"


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    verdict = check(BAD[name], 0, register)
    assert not verdict
    assert verdict.stuck, "the message names what cannot be placed"


def test_the_order_explains_the_history() -> None:
    history = GOOD["a read beside a write sees the old or the new"]
    assert [op.action for op in check(history, 0, register).order] == [
        ("read", 0),
        ("write", 1),
        ("read", 1),
        ("read", 1),
    ]


def test_a_return_before_its_call_is_refused() -> None:
    with pytest.raises(ValueError, match="returns before"):
        check(ops((2, 1, "write", 1)), 0, register)


def _by_force(history: list[Operation]) -> bool:
    """Every order in turn."""
    for order in itertools.permutations(history):
        in_time = all(a.call <= b.ret for a, b in itertools.combinations(order, 2))
        states = {0}
        for op in order if in_time else ():
            states = {s for state in states for s in register(state, op.action)}
        if in_time and states:
            return True
    return False


def test_agrees_with_a_search_of_every_order() -> None:
    rng = random.Random(7)
    verdicts = []
    for _ in range(600):
        history = []
        for _ in range(rng.randrange(1, 7)):
            call = rng.randrange(10)
            ret = INF if rng.random() < 0.1 else call + rng.randrange(6)
            kind = rng.choice(["write", "read", "read", "lose"])
            history.append(Operation(call, ret, (kind, (rng.randrange(3),) if kind == "lose" else rng.randrange(3))))
        ok = bool(check(history, 0, register))
        assert ok == _by_force(history), history
        verdicts.append(ok)
    assert 50 < sum(verdicts) < 550, "both kinds were tried"


def test_a_long_history_takes_no_time() -> None:
    rng, now, value, history = random.Random(1), 0.0, 0, []
    for number in range(1, 2001):
        now += 1
        if rng.random() < 0.5:
            value = number
            history.append(Operation(now - rng.random() * 0.5, now + rng.random() * 0.4, ("write", number)))
        else:
            history.append(Operation(now - rng.random() * 0.4, now + rng.random() * 0.4, ("read", value)))
    assert check(history, 0, register)
