"""Is a history linearizable? The algorithm of Wing and Gong with Lowe's optimisation (states already seen are not searched again).

A history is a list of `Operation`s with the times of call and return; one without a return (math.inf) may take effect at any time after its call, or
after everything else, where nobody sees it. A specification is a step function: (state, action) -> the states that may follow, none when
the action cannot have had that result there. Several states: the search carries the set of them (a subset construction), so an outcome that is
left open costs no extra branches.

J. Wing, C. Gong: Testing and verifying concurrent objects (1993). G. Lowe: Testing for linearizability (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Step = Callable[[Any, Any], Iterable[Hashable]]
STATES_MAX = 2_000_000  # configurations remembered; above it the check gives up


class TooHard(Exception):
    """The search needs more than STATES_MAX configurations: no verdict."""


@dataclass(frozen=True)
class Operation:
    """One operation. `action` is what the step function understands; `who` is for people."""

    call: float
    ret: float
    action: Any
    who: str = ""


@dataclass(frozen=True)
class Verdict:
    """ok, with an order that explains the history; or not, with the longest order found and the operations no order could place next."""

    ok: bool
    order: list[Operation]
    stuck: list[Operation]

    def __bool__(self) -> bool:
        return self.ok

    def explain(self) -> str:
        """For people: what was explained, and what cannot follow it."""
        if self.ok:
            return "linearizable"
        lines = ["explained so far:", *(f"  {_line(op)}" for op in self.order[-12:]), "none of these can be next:"]
        return "\n".join([*lines, *(f"  {_line(op)}" for op in self.stuck)])


def _line(op: Operation) -> str:
    end = "never" if op.ret == math.inf else f"{op.ret:.4f}"
    return f"{op.call:.4f}..{end} {op.who} {op.action}"


class _Event:
    """A call or a return in a doubly linked list."""

    __slots__ = ("index", "match", "next", "prev")

    def __init__(self, index: int) -> None:
        self.index = index
        self.match: _Event | None = None  # of a call: its return
        self.prev: _Event | None = None
        self.next: _Event | None = None


def _build(operations: Sequence[Operation]) -> _Event:
    """The head of the list of events; calls come before returns of the same time."""
    events: list[tuple[float, int, int, _Event]] = []
    for index, op in enumerate(operations):
        if op.ret < op.call:
            raise ValueError(f"returns before it is called: {op}")
        call, ret = _Event(index), _Event(index)
        call.match = ret
        events += [(op.call, 0, index, call), (op.ret, 1, index, ret)]
    events.sort(key=lambda e: e[:3])
    head = last = _Event(-1)
    for *_, event in events:
        last.next, event.prev = event, last
        last = event
    return head


def _lift(call: _Event) -> None:
    """Take a call and its return out of the list."""
    for event in (call, call.match):
        assert event is not None
        assert event.prev is not None
        event.prev.next = event.next
        if event.next is not None:
            event.next.prev = event.prev


def _unlift(call: _Event) -> None:
    for event in (call.match, call):
        assert event is not None
        assert event.prev is not None
        event.prev.next = event
        if event.next is not None:
            event.next.prev = event


def check(operations: Sequence[Operation], initial: Hashable, step: Step) -> Verdict:
    """Search for an order that explains the history. Raises TooHard, ValueError (a return before its call)."""
    head = _build(operations)
    states: frozenset[Hashable] = frozenset([initial])
    done = 0  # bit set of operations placed
    seen = {(done, states)}
    stack: list[tuple[_Event, frozenset[Hashable]]] = []
    best: list[int] = []
    stuck: list[int] = []
    event = head.next
    while head.next is not None:
        assert event is not None
        if event.match is not None:  # a call: may it be next?
            following = frozenset(s for state in states for s in step(state, operations[event.index].action))
            config = (done | 1 << event.index, following)
            if following and config not in seen:
                if len(seen) >= STATES_MAX:
                    raise TooHard(f"{len(operations)} operations")
                seen.add(config)
                stack.append((event, states))
                done, states = config
                _lift(event)
                event = head.next
            else:
                event = event.next
            continue
        # A return: everything that could be before it has been tried.
        if len(stack) >= len(best):
            best = [e.index for e, _ in stack]
            stuck = _concurrent(head, event)
        if not stack:
            return Verdict(False, [operations[i] for i in best], [operations[i] for i in stuck])
        event, states = stack.pop()
        done &= ~(1 << event.index)
        _unlift(event)
        event = event.next
    return Verdict(True, [operations[e.index] for e, _ in stack], [])


def _concurrent(head: _Event, until: _Event) -> list[int]:
    """Calls before the return at which the search was stuck."""
    out, event = [], head.next
    while event is not None and event is not until:
        if event.match is not None:
            out.append(event.index)
        event = event.next
    return out


def register(state: Hashable, action: tuple[str, Any]) -> Iterable[Hashable]:
    """Step function of one register: ("write", v), ("read", v), and ("lose", values): it may have fallen back to one of the values."""
    kind, value = action
    if kind == "write":
        return (value,)
    if kind == "read":
        return (state,) if state == value else ()
    if kind == "lose":
        return (state, *value)
    raise ValueError(f"action {kind}")
