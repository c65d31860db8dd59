"""A small cluster identity in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from vstor.net import identity, pki

from tests.unit.net.net_helpers import CLUSTER, CLUSTER_ID, Pki


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "etc"))
    return tmp_path / "etc"


@pytest.fixture
def make_pki(tmp_path: Path, etc: Path) -> Callable[[str], Pki]:
    def make(name: str = "pki") -> Pki:
        directory = tmp_path / name
        directory.mkdir()
        return Pki(directory, *pki.make_ca(CLUSTER, CLUSTER_ID))

    return make


@pytest.fixture
def node(make_pki: Callable[[str], Pki], etc: Path) -> Pki:
    """This node authenticated in CLUSTER."""
    made = make_pki("pki")
    cert, key, ca = made.write("node", pki.ROLE_NODE)
    for source, target in zip((ca, cert, key), identity.identity_files(CLUSTER), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return made
