"""What make-mds, make-cs and auth-node leave to the daemons' user, and what stays root's."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from vstor import paths
from vstor.ctl import ownership

USER = pwd.struct_passwd(("vstor", "x", 4321, 4322, "", "/", "/bin/false"))


@pytest.fixture
def chowned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int, int, bool]]:
    """Calls of chown(2), which this test may not be allowed."""
    calls: list[tuple[Path, int, int, bool]] = []
    monkeypatch.setattr(ownership, "daemon_user", lambda: USER)
    monkeypatch.setattr(
        ownership.os, "chown", lambda p, uid, gid, follow_symlinks: calls.append((Path(p), uid, gid, follow_symlinks))
    )
    return calls


def test_only_the_key_and_the_repository(chowned: list[tuple[Path, int, int, bool]], tmp_path: Path) -> None:
    directory = paths.cluster_dir("c")
    (directory / "services").mkdir(parents=True)
    for name in ("node.key", "node.crt", "ca.crt", "bs.list", "services/cs-1.json"):
        (directory / name).write_text("")
    repo = tmp_path / "repo"
    (repo / "chunks").mkdir(parents=True)
    (repo / "cs.json").write_text("")
    (repo / "link").symlink_to("/etc/passwd")
    ownership.give_to_daemons(repo, "c")
    expected = {directory / "node.key", repo, repo / "chunks", repo / "cs.json", repo / "link"}
    assert {call[0] for call in chowned} == expected
    assert {call[1:] for call in chowned} == {(4321, 4322, False)}


def test_a_shared_journal_directory_is_not_taken(chowned: list[tuple[Path, int, int, bool]], tmp_path: Path) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    empty.mkdir()
    used.mkdir()
    (used / "of somebody").write_text("")
    assert ownership.let_daemons_make_files(empty)
    assert not ownership.let_daemons_make_files(used)
    assert [call[0] for call in chowned] == [empty]


@pytest.mark.parametrize(("uid", "name"), [(1000, "vstor"), (0, "root"), (0, "no-such-user")])
def test_nobody_to_become(uid: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("VSTOR_USER", name)
    assert ownership.daemon_user() is None
