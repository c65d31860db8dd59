"""Which faults happen when: from a seed, the same every time. Pure.

Each fault begins, lasts and ends; at most `AT_ONCE` at a time, and of chunk servers never so many that a chunk's last replica is in doubt: the
campaign is about what the cluster promises to survive.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

AT_ONCE = 2
QUIET_S = 2.0  # at the begin, so that there is something to lose
KINDS = {  # kind of fault -> (weight, targets)
    "kill": (6, ("cs", "mds", "etcd")),
    "stop": (5, ("cs", "mds", "etcd", "mount")),
    "restart": (3, ("cs", "mds")),
    "cut": (4, ("cs",)),  # nobody reaches it, and no answer of it reaches anybody
    "deaf": (3, ("cs",)),  # one way: what is sent to it is lost
    "corrupt": (3, ("cs",)),
    "full": (1, ("cluster",)),
}


@dataclass(frozen=True)
class Fault:
    """From at_s to until_s, seconds since the begin."""

    at_s: float
    until_s: float
    kind: str
    target: str

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s {self.kind} {self.target} for {self.until_s - self.at_s:.1f} s"


def plan(seed: int, seconds: float, names: list[str], kinds: tuple[str, ...] = tuple(KINDS)) -> list[Fault]:
    """Faults on the processes `names` (cs-1025, mds-1, …), in order of their begin. The damaged chunk server is always the same."""
    rng = random.Random(seed)
    servers = sorted(n for n in names if n.startswith("cs-"))
    victim = rng.choice(servers) if servers else ""
    faults: list[Fault] = []
    at = QUIET_S
    while True:
        at += rng.uniform(0.3, 4.0)
        kind = rng.choices(kinds, weights=[KINDS[k][0] for k in kinds])[0]
        targets = [n for n in sorted(names) if n.split("-")[0] in KINDS[kind][1]]
        target = (
            victim if kind == "corrupt" else "cluster" if kind == "full" else rng.choice(targets) if targets else ""
        )
        until = at + (0.0 if kind == "corrupt" else rng.choice([0.2, 1.0, 3.0, 8.0]) * rng.uniform(0.5, 1.5))
        if until > seconds:
            return faults
        running = [f for f in faults if f.until_s > at]
        if target and len(running) < AT_ONCE and _bearable(running, target):
            faults.append(Fault(at, until, kind, target))


def _bearable(running: list[Fault], target: str) -> bool:
    """Not two faults of one process, nor of two chunk servers at a time, nor of two of those that make the quorum."""
    for group in (("cs",), ("mds", "etcd")):
        if target.split("-")[0] in group and any(f.target.split("-")[0] in group for f in running):
            return False
    return all(f.target != target for f in running)
