"""Where replicas go: a pure function of the chunk servers, the policy and a seed.

DESIGN: weighted rendezvous hashing. Each candidate gets -weight / ln(u) with u from a hash of (seed, key, server), and the best scores of
distinct failure domains win: proportional to weight, deterministic, and hardly anything moves when a server comes or goes.
Tiers: the wanted one first, then lower numbers down to 0, then higher ones (FEATURES B8).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from vstor.model.records import DOMAINS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk server that may take a new replica."""

    cs_id: int
    host_id: str
    location: str  # room.row.rack, parts may be missing
    tier: int
    weight: float  # > 0: free space over load


def domain_of(cs_id: int, host_id: str, location: str, level: int) -> str:
    """The failure domain of a server. level: index into DOMAINS. A host without a location is a rack, row and room of its own."""
    name = DOMAINS[level]
    if name == "disk":
        return f"cs:{cs_id}"
    if name == "host":
        return f"host:{host_id}"
    parts = location.split(".") if location else []
    count = {"room": 1, "row": 2, "rack": 3}[name]
    if len(parts) < count:
        return f"host:{host_id}"
    return f"{name}:" + ".".join(parts[:count])


def tier_order(wanted: int) -> list[int]:
    """Tiers to try, best first."""
    return [wanted, *range(wanted - 1, -1, -1), *range(wanted + 1, 4)]


def score(candidate: Candidate, key: int, seed: int) -> float:
    """Larger is better."""
    data = seed.to_bytes(8, "little") + key.to_bytes(8, "little") + candidate.cs_id.to_bytes(4, "little")
    u = (int.from_bytes(blake2b(data, digest_size=7).digest(), "little") + 1) / ((1 << 56) + 1)
    return -candidate.weight / math.log(u) if u < 1 else math.inf


def place(
    candidates: Iterable[Candidate],
    count: int,
    *,
    level: int,
    tier: int,
    taken: Iterable[str] = (),
    key: int = 0,
    seed: int = 0,
) -> list[int]:
    """Up to `count` servers in distinct failure domains, none in `taken`; fewer when there are not enough.

    Args: level: index into DOMAINS. taken: domains that hold a replica already. key: the chunk's id, spreads chunks.
    """
    used = set(taken)
    by_tier: dict[int, list[tuple[float, Candidate]]] = {}
    for candidate in candidates:
        by_tier.setdefault(candidate.tier, []).append((score(candidate, key, seed), candidate))
    chosen: list[int] = []
    for number in tier_order(tier):
        ranked = sorted(by_tier.get(number, ()), key=lambda pair: (-pair[0], pair[1].cs_id))
        for _, candidate in ranked:
            if len(chosen) == count:
                return chosen
            domain = domain_of(candidate.cs_id, candidate.host_id, candidate.location, level)
            if domain not in used:
                used.add(domain)
                chosen.append(candidate.cs_id)
    return chosen
