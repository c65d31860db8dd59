"""Placement: domains, tiers, weights, determinism."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vstor.model.placement import Candidate, domain_of, place, tier_order

candidates = st.lists(
    st.builds(
        Candidate,
        st.integers(1, 10_000),
        st.sampled_from(["h1", "h2", "h3", "h4"]),
        st.sampled_from(["", "a.b.c", "a.b.d", "a.e.c", "z.b.c"]),
        st.integers(0, 3),
        st.floats(0.5, 1e9),
    ),
    max_size=20,
    unique_by=lambda c: c.cs_id,
)


@given(
    candidates, st.integers(1, 15), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2**63), st.integers(0, 2**63)
)
def test_domains_are_distinct_and_as_many_as_there_are(
    held: list[Candidate], count: int, level: int, tier: int, key: int, seed: int
) -> None:
    chosen = place(held, count, level=level, tier=tier, key=key, seed=seed)
    by_id = {c.cs_id: c for c in held}
    domains = [domain_of(n, by_id[n].host_id, by_id[n].location, level) for n in chosen]
    assert len(set(domains)) == len(domains)
    all_domains = {domain_of(c.cs_id, c.host_id, c.location, level) for c in held}
    assert len(chosen) == min(count, len(all_domains))
    assert chosen == place(reversed(held), count, level=level, tier=tier, key=key, seed=seed)


@given(candidates, st.integers(0, 3))
def test_the_wanted_tier_comes_first(held: list[Candidate], tier: int) -> None:
    chosen = place(held, 1, level=0, tier=tier)
    tiers = {c.tier for c in held}
    if held:
        best = next(t for t in tier_order(tier) if t in tiers)
        assert next(c.tier for c in held if c.cs_id == chosen[0]) == best


def test_spill_over_goes_down_then_up() -> None:
    assert tier_order(2) == [2, 1, 0, 3]
    assert tier_order(0) == [0, 1, 2, 3]


def test_taken_domains_are_avoided() -> None:
    held = [Candidate(1, "h1", "", 0, 1.0), Candidate(2, "h1", "", 0, 1.0), Candidate(3, "h2", "", 0, 1.0)]
    assert place(held, 3, level=1, tier=0, taken=["host:h1"]) == [3]
    assert place(held, 3, level=1, tier=0, taken=["host:h1", "host:h2"]) == []


def test_share_follows_weight() -> None:
    held = [Candidate(1, "a", "", 0, 1.0), Candidate(2, "b", "", 0, 3.0)]
    share = Counter(place(held, 1, level=0, tier=0, key=key, seed=7)[0] for key in range(4000))
    assert 0.70 < share[2] / 4000 < 0.80


def test_little_moves_when_a_server_comes() -> None:
    held = [Candidate(n, f"h{n}", "", 0, 1.0) for n in range(1, 11)]
    before = [place(held, 1, level=0, tier=0, key=key)[0] for key in range(2000)]
    after = [place([*held, Candidate(11, "h11", "", 0, 1.0)], 1, level=0, tier=0, key=key)[0] for key in range(2000)]
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    assert all(b == 11 for a, b in zip(before, after, strict=True) if a != b)
    assert moved < 2000 * 0.13


@pytest.mark.parametrize(
    ("level", "same"), [(0, False), (1, False), (2, False), (3, True), (4, True)]
)  # disk, host, rack, row, room
def test_location_parts(level: int, same: bool) -> None:
    a = domain_of(1, "h1", "room1.row1.rack1", level)
    b = domain_of(2, "h2", "room1.row1.rack2", level)
    assert (a == b) is same


def test_racks_of_different_rooms_differ() -> None:
    assert domain_of(1, "h1", "A.1.1", 2) != domain_of(2, "h2", "B.1.1", 2)
