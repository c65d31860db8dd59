"""vstor-csd before it serves: one line and the right exit code for what it cannot work with; what it would use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vstor import paths
from vstor.cs import main as program
from vstor.cs import repository
from vstor.cs.repository import CsIdentity

IDENTITY = CsIdentity("c1", "ab" * 16, 1025, 1, "127.0.0.1:3100")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ETC", "RUN", "LOG", "STATE"):
        monkeypatch.setenv(f"VSTOR_{name}", str(tmp_path / name))
    (tmp_path / "cs").mkdir()
    repository.write_identity(tmp_path / "cs", IDENTITY)
    return tmp_path / "cs"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    status = program.main(list(argv))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vstor-csd: ")]
    assert len(lines) == 1
    return status, lines[0]


def test_no_certificate(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = run(capsys, "-r", str(repo))
    assert status == 4
    assert "auth-node" in line


def test_no_directory(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = run(capsys, "-r", str(repo / "gone"))
    assert status == 3
    assert "mounted" in line


def test_truncated_identity(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repo / "cs.json"
    file.write_bytes(file.read_bytes()[:50])
    status, line = run(capsys, "-r", str(repo))
    assert status == 11
    assert str(file) in line


def test_unknown_user(repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(program, "raise_limits", lambda: None)
    status, line = run(capsys, "-r", str(repo), "-u", "nobody-of-that-name")
    assert status == 2
    assert "nobody-of-that-name" in line


def test_log_that_cannot_be_written(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = run(capsys, "-r", str(repo), "-l", str(repo / "cs.json" / "log"))
    assert status == 2


def test_show_config(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["-r", str(repo), "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["cs_id"] == 1025
    assert shown["address"] == "127.0.0.1:3100"
    assert shown["socket"].endswith("cs-c1-1025.sock")


async def test_address_towards_the_mds(repo: Path) -> None:
    bs_list = paths.cluster_dir("c1") / "bs.list"
    bs_list.parent.mkdir(parents=True)
    bs_list.write_text("127.0.0.5:2510\n")
    assert await program.address_towards_mds("c1") == "127.0.0.1"
