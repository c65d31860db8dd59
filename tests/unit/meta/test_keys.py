"""The key schema: spans hold every record, ids and names come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vstor.meta import keys as store_keys
from vstor.model import keys
from vstor.model.state import State

U64 = st.integers(0, 2**64 - 1)
NAME = st.binary(min_size=1, max_size=255)


def spans_with(key: bytes) -> int:
    return sum(start <= key < end for start, end in keys.load_spans())


@given(U64, NAME, st.integers(0, 2**32 - 1))
def test_every_key_is_in_one_span(number: int, name: bytes, extent: int) -> None:
    made = [
        keys.inode(number), keys.dentry(number, name), keys.extent(number, extent), keys.xattr(number, name), keys.orphan(number),
        keys.session(number), keys.cs(number), keys.events(number), keys.CLUSTER_KEY, keys.named(keys.SECRET, "data_key"),
        keys.named(keys.COUNTER, "ino"), keys.named(keys.CONFIG, "mds.wd.offline_tout"),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    for key in made:
        assert spans_with(key) == 1
    assert all(keys.split_id(key) == number for key in made[:8])
    assert keys.dentry(number, name)[10:] == name


@pytest.mark.parametrize("key", [store_keys.LEADER_KEY, store_keys.SEQ_KEY])
def test_keys_of_the_store_are_not_the_models(key: bytes) -> None:
    assert spans_with(key) == 0
    State().apply([(key, b"anything")])  # ignored
