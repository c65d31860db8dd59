"""Names, addresses, bs.list and identity files."""

from __future__ import annotations

from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import identity

from tests.unit.net.net_helpers import CLUSTER, CLUSTER_ID, Pki


@pytest.mark.parametrize("name", ["a", "A-z_09", "x" * 63])
def test_cluster_name(name: str) -> None:
    assert identity.check_cluster_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "ä", "x" * 64, "a\n"])
def test_bad_cluster_name(name: str) -> None:
    with pytest.raises(VstorError) as caught:
        identity.check_cluster_name(name)
    assert caught.value.code == ErrorCode.CONFIG


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", 2510)),
        ("10.0.0.1:4110", ("10.0.0.1", 4110)),
        ("[::1]", ("::1", 2510)),
        ("[::1]:99", ("::1", 99)),
        ("fe80::1", ("fe80::1", 2510)),
    ],
)
def test_address(text: str, expected: tuple[str, int]) -> None:
    assert identity.parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "1.2.3",
        "1.2.3.4:",
        "1.2.3.4:x",
        "1.2.3.4:0",
        "1.2.3.4:65535",
        "[::1]x",
        "1.2.3.4:-1",
    ],
)
def test_bad_address(text: str) -> None:
    with pytest.raises(VstorError) as caught:
        identity.parse_address(text)
    assert caught.value.code == ErrorCode.CONFIG


def test_bs_list(etc: Path) -> None:
    assert identity.read_bs_list(CLUSTER) == []
    path = identity.bs_list_path(CLUSTER)
    path.parent.mkdir(parents=True)
    path.write_text("# MDSs\n10.0.0.1\n\n[::1]:99 # second\n10.0.0.1:2510")
    assert identity.read_bs_list(CLUSTER) == ["10.0.0.1:2510", "[::1]:99"]
    assert identity.add_to_bs_list(CLUSTER, ["10.0.0.1", "10.0.0.2:7"])
    assert not identity.add_to_bs_list(CLUSTER, ["10.0.0.2:7"])
    assert path.read_text().startswith("# MDSs\n")
    assert identity.read_bs_list(CLUSTER) == ["10.0.0.1:2510", "[::1]:99", "10.0.0.2:7"]
    path.write_text("10.0.0.1\nnonsense\n")
    with pytest.raises(VstorError, match="line 2"):
        identity.read_bs_list(CLUSTER)


def test_host_id_is_made_once(etc: Path) -> None:
    first = identity.host_id()
    assert len(first) == 16
    assert identity.host_id() == first
    (etc / "host_id").write_text("nonsense")
    with pytest.raises(VstorError) as caught:
        identity.host_id()
    assert caught.value.code == ErrorCode.DAMAGED


def test_identity(node: Pki) -> None:
    who = identity.load_identity(CLUSTER)
    assert (who.cluster, who.cluster_id) == (CLUSTER, CLUSTER_ID)


def test_not_authenticated(etc: Path) -> None:
    with pytest.raises(VstorError, match="run: vstorctl -c unit auth-node") as caught:
        identity.load_identity(CLUSTER)
    assert caught.value.code == ErrorCode.DENIED


def test_ca_of_another_name(node: Pki, etc: Path) -> None:
    (etc / "clusters" / CLUSTER).rename(etc / "clusters" / "other")
    with pytest.raises(VstorError) as caught:
        identity.load_identity("other")
    assert caught.value.code == ErrorCode.WRONG_CLUSTER


def test_damaged_ca(node: Pki, etc: Path) -> None:
    (etc / "clusters" / CLUSTER / "ca.crt").write_text("spoiled")
    with pytest.raises(VstorError) as caught:
        identity.load_identity(CLUSTER)
    assert caught.value.code == ErrorCode.DAMAGED
