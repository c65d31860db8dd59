"""Fixtures of the tests of native code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.clworld import cluster
from tests.helpers.minimds import MiniMds


@pytest.fixture
def mds() -> Iterator[MiniMds]:
    with cluster() as made:
        yield made
