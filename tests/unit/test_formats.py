"""Data as format 1 wrote it (tests/golden/formats/1) is read for ever; what a newer program wrote is refused with a clear line.

The files are never made anew: a change of format gets a directory of its own beside this one, and this test goes on reading both.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.cs.repository import CsIdentity, decode_identity
from vstor.errors import VstorError
from vstor.mds.members import Members
from vstor.model.directory import Directory
from vstor.model.files import policy
from vstor.model.state import State
from vstor.native.cs import CsEngine
from vstor.net.identity import read_bs_list

GOLDEN = Path(__file__).parents[1] / "golden" / "formats" / "1"
CLUSTER_ID = "0123456789abcdef" * 2
CS_ID = 1025
REGISTRY = b"m"  # keys of the MDSs; their records are JSON


def metadata() -> list[tuple[bytes, bytes]]:
    rows = (line.split() for line in (GOLDEN / "metadata.hex").read_text().splitlines())
    return [(bytes.fromhex(key), bytes.fromhex(value)) for key, value in rows]


def names(directory: Directory) -> dict[bytes, int]:
    return {name: entry.ino for name, entry in directory.entries.items()}


def test_metadata() -> None:
    state, members = State(), Members()
    state.load(metadata())
    members.apply(metadata())
    assert state.cluster is not None
    assert state.cluster.cluster_id == CLUSTER_ID
    assert state.config["cs.scrub.rate"] == "7"
    root = names(state.directory(1))
    assert set(root) == {b"dir", b"link"}
    ino = names(state.directory(root[b"dir"]))[b"file"]
    inode = state.inodes[ino]
    assert (inode.size, inode.uid, inode.gid, inode.mode & 0o777) == (5000, 1000, 1001, 0o640)
    assert (policy(inode).normal, policy(inode).minimum) == (2, 1)
    [(index, chunk)] = state.chunks(ino)
    assert (index, chunk.version, chunk.flags, sorted(chunk.replicas)) == (0, 1, 0, [1025, 1026])
    assert state.xattrs[ino] == {b"user.a": b"value"}
    assert len(state.orphans) == 1, "a file that was open when it lost its name"
    assert len(state.sessions) == 1
    assert sorted(state.servers) == [1025, 1026]
    assert [(r.mds_id, r.address) for r in members.records.values()] == [(1, "10.0.0.1:2510")]


@pytest.mark.parametrize("key", sorted({key[:1] for key, _ in metadata()} - {REGISTRY}))
def test_a_newer_record_is_refused(key: bytes) -> None:
    newer = [(k, bytes([v[0] + 1]) + v[1:]) for k, v in metadata() if k[:1] == key]
    with pytest.raises(VstorError, match="schema") as caught:
        State().load(newer)
    assert caught.value.code == ErrorCode.NEWER_FORMAT


def test_a_newer_record_of_an_mds_is_refused() -> None:
    [(key, value)] = [(k, v) for k, v in metadata() if k[:1] == REGISTRY]
    with pytest.raises(VstorError, match="newer version") as caught:
        Members().apply([(key, json.dumps(json.loads(value) | {"schema": 2}).encode())])
    assert caught.value.code == ErrorCode.NEWER_FORMAT


def test_identity_of_a_chunk_server() -> None:
    data = (GOLDEN / "cs.json").read_bytes()
    assert decode_identity(data, Path("cs.json")) == CsIdentity("golden", CLUSTER_ID, CS_ID, 2, "10.0.0.1:3000", "", 64)
    with pytest.raises(VstorError, match="install a newer vstor") as caught:
        decode_identity(json.dumps(json.loads(data) | {"format": 2}).encode(), Path("cs.json"))
    assert caught.value.code == ErrorCode.NEWER_FORMAT


def test_bs_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path))
    (tmp_path / "clusters" / "golden").mkdir(parents=True)
    (tmp_path / "clusters" / "golden" / "bs.list").write_bytes((GOLDEN / "bs.list").read_bytes())
    assert read_bs_list("golden") == ["10.0.0.1:2510", "10.0.0.2:2520", "[fd00::3]:2510"]


def open_store(repo: Path) -> CsEngine:
    return CsEngine.open(
        dir=str(repo), journal_bytes=64 << 20, cluster_id=bytes.fromhex(CLUSTER_ID), cs_id=CS_ID, incarnation=9
    )


def unpacked(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / "cs-repository.tar.xz") as tar:
        tar.extractall(tmp_path)
    return tmp_path / "repo"


def test_repository_of_a_chunk_server(tmp_path: Path) -> None:
    store = open_store(unpacked(tmp_path))
    try:
        found = store.stat(7)
        assert (found.version, found.chunk_bytes, found.syncing) == (3, 1 << 20, False)
        assert store.read(7, 8192, 8192) == b"in place".ljust(4096, b".") * 2
        assert store.read(7, 0, 4096) == b"in the journal".ljust(4096, b"."), "replayed"
        assert store.read(7, 4096, 4096) in (None, bytes(4096)), "a hole"
    finally:
        store.close()
