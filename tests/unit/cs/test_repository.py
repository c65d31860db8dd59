"""make-cs and the identity file: success, repetition, and every refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from vstor import services
from vstor.codes_gen import ErrorCode
from vstor.cs import repository
from vstor.cs.repository import CsIdentity
from vstor.errors import VstorError
from vstor.net.identity import Identity
from vstor.proto import messages as m

CLUSTER_ID = "ab" * 16


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[m.RequestBody]:
    """An MDS that gives out the ids 1025, 1026, …, and a node that is authenticated."""
    made: list[m.RequestBody] = []
    node = Identity("c1", CLUSTER_ID, "00" * 8, tmp_path, tmp_path, tmp_path)

    def call(cluster: str, body: m.RequestBody, **_: object) -> m.ReplyBody:
        made.append(body)
        return m.CsCreated(1024 + len(made), CLUSTER_ID)

    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(repository, "call_sync", call)
    monkeypatch.setattr(repository, "load_identity", lambda cluster: node)
    return made


def make(repo: Path, **changes: object) -> int:
    options: dict[str, object] = {"address": None, "tier": 0, "journal": None, "journal_mb": None}
    return repository.create("c1", repo, **(options | changes))  # type: ignore[arg-type]


def refusal(code: ErrorCode, repo: Path, **changes: object) -> str:
    with pytest.raises(VstorError) as caught:
        make(repo, **changes)
    assert caught.value.code is code, caught.value
    return caught.value.message


def test_new_directory(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    repo = tmp_path / "a" / "cs1"
    assert make(repo, address="127.0.0.2:3000", tier=2, journal_mb=128) == 1025
    identity, _ = repository.load(repo)
    assert identity == CsIdentity("c1", CLUSTER_ID, 1025, 2, "127.0.0.2:3000", "", 128)
    assert identity.host_and_port() == ("127.0.0.2", 3000)
    assert [s.name for s in services.list_services("c1")] == ["cs-c1-1025"]


def test_again_is_the_same_cs(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    make(tmp_path / "cs1")
    before = (tmp_path / "cs1" / "cs.json").read_bytes()
    assert make(tmp_path / "cs1") == 1025
    assert (tmp_path / "cs1" / "cs.json").read_bytes() == before
    assert len(calls) == 1
    make(tmp_path / "cs1", address="127.0.0.9", tier=3)
    assert repository.read_identity(tmp_path / "cs1").address == "127.0.0.9"
    assert repository.read_identity(tmp_path / "cs1").tier == 3


def test_lost_and_found_and_leavings_of_make_cs_are_fine(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".cs.json.77.tmp").write_bytes(b"half")
    (tmp_path / "etc").mkdir()
    with pytest.raises(VstorError, match="etc"):
        make(tmp_path)
    (tmp_path / "etc").rmdir()
    repository.require_empty(tmp_path)


def test_journal_directory_and_file(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    (tmp_path / "ssd").mkdir()
    make(tmp_path / "cs1", journal=tmp_path / "ssd")
    assert repository.read_identity(tmp_path / "cs1").journal == str(tmp_path / "ssd" / "journal-c1-1025")


def test_foreign_data_is_refused_and_untouched(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    repo = tmp_path / "home"
    repo.mkdir()
    (repo / "letter.txt").write_text("dear")
    message = refusal(ErrorCode.FOREIGN_DATA, repo)
    assert "letter.txt" in message
    assert "empty it" in message
    assert [p.name for p in repo.iterdir()] == ["letter.txt"]
    assert calls == []


def test_chunks_without_identity_are_refused(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    (tmp_path / "cs1" / "chunks").mkdir(parents=True)
    assert "restore" in refusal(ErrorCode.DAMAGED, tmp_path / "cs1")
    with pytest.raises(VstorError, match="restore") as caught:
        repository.read_identity(tmp_path / "cs1")
    assert caught.value.code is ErrorCode.DAMAGED


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (CsIdentity("other", CLUSTER_ID, 5), "cluster other"),
        (CsIdentity("c1", "cd" * 16, 5), "cdcd"),
    ],
)
def test_directory_of_another_cluster(
    tmp_path: Path, calls: list[m.RequestBody], identity: CsIdentity, words: str
) -> None:
    repository.write_identity(tmp_path, identity)
    assert words in refusal(ErrorCode.WRONG_CLUSTER, tmp_path)
    with pytest.raises(VstorError) as caught:
        repository.load(tmp_path)
    assert caught.value.code is ErrorCode.WRONG_CLUSTER


def test_every_damage_of_the_identity_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "cs.json"
    good = repository.encode_identity(CsIdentity("c1", CLUSTER_ID, 1025))
    assert repository.decode_identity(good, file).cs_id == 1025
    for end in range(0, len(good) - 1, 7):
        with pytest.raises(VstorError) as caught:
            repository.decode_identity(good[:end], file)
        assert caught.value.code is ErrorCode.DAMAGED
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        if bad[position : position + 1].isspace() and good[position : position + 1].isspace():
            continue
        with pytest.raises(VstorError, match=re.escape(str(file))) as caught:
            repository.decode_identity(bytes(bad), file)
        assert caught.value.code in (ErrorCode.DAMAGED, ErrorCode.NEWER_FORMAT)


def test_newer_format(tmp_path: Path) -> None:
    (tmp_path / "cs.json").write_text(json.dumps({"format": 2, "future": True}))
    with pytest.raises(VstorError, match="install a newer vstor") as caught:
        repository.read_identity(tmp_path)
    assert caught.value.code is ErrorCode.NEWER_FORMAT


@pytest.mark.parametrize("data", ["[]", "{}", '{"format": "1"}', '{"format": 1}', "\x00" * 100])
def test_not_an_identity(tmp_path: Path, data: str) -> None:
    (tmp_path / "cs.json").write_text(data)
    with pytest.raises(VstorError) as caught:
        repository.read_identity(tmp_path)
    assert caught.value.code is ErrorCode.DAMAGED


def test_missing_directory_and_empty_directory(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "gone", "mounted"), (tmp_path, "make-cs")):
        with pytest.raises(VstorError, match=words) as caught:
            repository.read_identity(path)
        assert caught.value.code is ErrorCode.NOT_FOUND


def test_not_a_directory(tmp_path: Path, calls: list[m.RequestBody]) -> None:
    (tmp_path / "file").write_text("x")
    refusal(ErrorCode.NOT_DIR, tmp_path / "file")


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": 4},
        {"tier": -1},
        {"address": "host.example"},
        {"address": "127.0.0.1:x"},
        {"address": "127.0.0.1:70000"},
        {"address": "300.1.1.1"},
        {"journal_mb": 100},
        {"journal_mb": -64},
    ],
)
def test_bad_options_make_nothing(tmp_path: Path, calls: list[m.RequestBody], changes: dict[str, object]) -> None:
    refusal(ErrorCode.CONFIG, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()
    assert calls == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", ("127.0.0.1", 0)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("::1", ("::1", 0)),
        ("[::1]:81", ("::1", 81)),
    ],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert repository.parse_listen_address(text) == address
