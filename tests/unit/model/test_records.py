"""Encodings: round trips, sizes, refusal of what is newer or damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import records as r
from vstor.model.state import State

U32 = st.integers(1, 2**32 - 1)
chunks = st.builds(
    r.Chunk,
    st.integers(1, 2**64 - 1),
    U32,
    st.integers(0, 255),
    st.lists(U32, max_size=15, unique=True).map(tuple),
)


@given(st.dictionaries(st.integers(0, 63), chunks, max_size=64))
def test_extent_round_trip(held: dict[int, r.Chunk]) -> None:
    data = r.pack_extent(held)
    r.check_extent(data)
    assert dict(r.extent_items(data)) == held
    for index in range(64):
        assert r.extent_chunk(data, index) == held.get(index)


def test_a_chunk_takes_25_bytes_at_three_replicas() -> None:
    one = r.pack_extent({0: r.Chunk(1, 1, 0, (1, 2, 3))})
    two = r.pack_extent({0: r.Chunk(1, 1, 0, (1, 2, 3)), 9: r.Chunk(2, 1, 0, (1, 2))})
    assert len(two) - len(one) == 25


@given(
    st.builds(
        r.Policy,
        st.integers(1, 15),
        st.integers(1, 15),
        st.integers(0, 4),
        st.integers(0, 3),
        st.integers(20, 30),
        st.integers(0, 1),
    )
)
def test_policy_round_trip(policy: r.Policy) -> None:
    assert r.unpack_policy(policy.pack()) == policy


RECORDS = [
    r.Inode(2**64 - 1, 1, 0o100644, 1, 0, 0, 2**63 - 1, -1, 2**62, 3, 5, writer=2**64 - 1, target=b"\xff"),
    r.Dentry(7, 8, 2**64 - 1),
    r.Orphan(5),
    r.Session(1, "/mnt", 2, "h", "host", 3, {4: b"x", 5: b""}),
    r.Cs(1025, "h", "host", 0, "/d", 5, addresses=["1.2.3.4:5"]),
    r.Cluster("c", "id", 1),
    r.Blob(b"\0\1"),
    r.Text("v"),
    r.Counter(2**63),
    r.EventSlot([r.Event(1, 2, "MDS", "info", "text")]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_round_trip(record: r.Record) -> None:
    assert r.decode(type(record), r.encode(record)) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_newer_schema_is_refused(record: r.Record) -> None:
    data = bytes([r.SCHEMA + 1]) + r.encode(record)[1:]
    with pytest.raises(VstorError) as caught:
        r.decode(type(record), data)
    assert caught.value.code == ErrorCode.NEWER_FORMAT


def test_newer_extent_is_refused_by_the_state() -> None:
    from vstor.model import keys

    data = r.pack_extent({0: r.Chunk(1, 1, 0, (1,))})
    with pytest.raises(VstorError) as caught:
        State().apply([(keys.extent(2, 0), b"\x02" + data[1:])])
    assert caught.value.code == ErrorCode.NEWER_FORMAT


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x00\x90", b"\x01\xc1", b"\x01\x93\x01"])
def test_damage_is_refused(data: bytes) -> None:
    with pytest.raises(VstorError) as caught:
        r.decode(r.Inode, data)
    assert caught.value.code == ErrorCode.DAMAGED


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_cut_extent_is_refused(cut: int) -> None:
    data = r.pack_extent({0: r.Chunk(1, 1, 0, (1,)), 5: r.Chunk(2, 1, 0, (1,))})
    with pytest.raises(VstorError):
        r.check_extent(data[:-cut])


def test_older_records_without_new_fields_are_read() -> None:
    import msgspec

    fields = [9, 1, 0o40755, 2, 0, 0, 0, 1, 2, 3, 77]
    assert r.decode(r.Inode, b"\x01" + msgspec.msgpack.encode(fields)).used == 0
