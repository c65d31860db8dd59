"""The check of roles finds what it should; the tree passes it."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load(name: str) -> ModuleType:
    """A program of .make/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".make" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


role_docs = load("role_docs")
wheelhouse_id = load("wheelhouse_id")
SPEC = "argument_specs:\n  main:\n    description: [d]\n    short_description: s\n    options:\n      r_a: {description: a, type: int, default: 1}\n"


@pytest.fixture
def role(tmp_path: Path) -> Path:
    """A role that agrees with itself."""
    path = tmp_path / "r"
    for folder in ("meta", "defaults", "tasks"):
        (path / folder).mkdir(parents=True)
    (path / "meta/argument_specs.yml").write_text(SPEC)
    (path / "defaults/main.yml").write_text("r_a: 1\n")
    (path / "tasks/main.yml").write_text("- name: x\n  tags: [r_run]\n")
    return path


def test_role_that_agrees(role: Path) -> None:
    assert role_docs.problems_of(role) == []
    text = role_docs.readme(role)
    assert "| `r_a` | int | `1` | a |" in text
    assert "`r_run`" in text


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("defaults/main.yml", "r_a: 2\n", "has the default 2"),
        ("defaults/main.yml", "{}\n", "only in meta/argument_specs.yml"),
        ("defaults/main.yml", "r_a: 1\nr_b: 1\n", "only in defaults/main.yml"),
        ("meta/argument_specs.yml", SPEC.replace("description: a, ", ""), "has no description"),
        ("meta/argument_specs.yml", "argument_specs: {}\n", "no entry point main"),
    ],
)
def test_role_that_does_not(role: Path, file: str, text: str, word: str) -> None:
    (role / file).write_text(text)
    assert any(word in line for line in role_docs.problems_of(role))


def test_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert role_docs.main(["--check"]) == 0, capsys.readouterr().err


def wheel(directory: Path, year: int, data: str) -> str:
    """Id of a wheelhouse with one wheel."""
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / "a-1-py3-none-any.whl", "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.py", (year, 1, 1, 0, 0, 0)), data)
    found: str = wheelhouse_id.wheelhouse_id(directory)
    return found


def test_id_is_of_contents_not_of_times(tmp_path: Path) -> None:
    assert wheel(tmp_path, 2001, "x") == wheel(tmp_path, 2002, "x")
    assert wheel(tmp_path, 2001, "x") != wheel(tmp_path, 2001, "y")


def test_empty_wheelhouse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no wheel"):
        wheelhouse_id.wheelhouse_id(tmp_path)
