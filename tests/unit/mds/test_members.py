"""The registry of MDSs."""

from __future__ import annotations

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds.members import MdsRecord, Members, encode, key_of


def record(mds_id: int) -> MdsRecord:
    return MdsRecord(mds_id, f"10.0.0.{mds_id}:2510", "h", "host", f"mds{mds_id}", [f"https://10.0.0.{mds_id}:2512"])


def test_ids_are_never_used_again() -> None:
    members = Members()
    assert members.apply([encode(record(1)), encode(record(2)), (b"i1", b"not ours")])
    assert members.new_id() == 3
    members.apply([members.removed(2)])
    assert [r.mds_id for r in members.active()] == [1]
    assert members.etcd_urls() == ["https://10.0.0.1:2512"]
    assert members.by_address("10.0.0.2:2510") is None
    assert members.new_id() == 3
    for missing in (2, 9):
        with pytest.raises(VstorError) as caught:
            members.removed(missing)
        assert caught.value.code == ErrorCode.NOT_MDS
    assert not members.apply([(b"i1", None)])


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema":1}', b"[]"])
def test_damaged(data: bytes) -> None:
    with pytest.raises(VstorError) as caught:
        Members().apply([(key_of(1), data)])
    assert caught.value.code == ErrorCode.DAMAGED


def test_newer_schema() -> None:
    with pytest.raises(VstorError) as caught:
        Members().apply([(key_of(1), b'{"schema":2}')])
    assert caught.value.code == ErrorCode.NEWER_FORMAT
