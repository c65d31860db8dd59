"""The collection, installed into an empty environment: its playbooks run without the tree."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, run

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory with the collection in it and an inventory, away from the tree."""
    place = tmp_path_factory.mktemp("home")
    run(sys.executable, ROOT / "packaging/collection.py", place / "built")
    (archive,) = (place / "built").glob("vstor-storage-*.tar.gz")
    ansible(place, "ansible-galaxy", "collection", "install", "--offline", archive)
    shutil.copytree(ROOT / "docs/inventory/production", place / "inventory")
    return place


def ansible(home: Path, program: str, *arguments: str | Path) -> str:
    """A program of Ansible with nothing configured, started in the home directory."""
    quoted = " ".join(f"'{word}'" for word in (BIN / program, *arguments))
    command = f"cd '{home}' && unset ANSIBLE_CONFIG ANSIBLE_ROLES_PATH ANSIBLE_COLLECTIONS_PATH && exec {quoted}"
    return run("sh", "-c", command, HOME=str(home), PATH=f"{BIN}:/usr/bin:/bin").stdout


def test_every_playbook_is_there_and_complete(home: Path) -> None:
    names = {file.stem.replace("-", "_") for file in (ROOT / "playbooks").glob("*.yml")}
    assert "site" in names
    verbs = [f"vstor.storage.{name}" for name in sorted(names)]
    # Roles, modules and included files are looked up; none may come from elsewhere.
    out = ansible(home, "ansible-playbook", "-i", "inventory", "--syntax-check", *verbs)
    found = re.findall(r"^playbook: (.*)$", out, flags=re.MULTILINE)
    assert len(found) == len(names)
    assert all(path.startswith(f"{home}/.ansible/collections/") for path in found)
    tasks = ansible(home, "ansible-playbook", "-i", "inventory", "--list-tasks", "vstor.storage.site")
    assert "vstor.storage.vstor_common : " in tasks
    assert "vstor.storage.vstor_repo : " in tasks


def test_documents_and_version(home: Path) -> None:
    installed = home / ".ansible/collections/ansible_collections/vstor/storage"
    version = re.search(r'__version__ = "(.*)"', (ROOT / "daemons/vstor/__init__.py").read_text())
    assert version is not None
    assert f'"version": "{version[1]}"' in (installed / "MANIFEST.json").read_text()
    for role in (ROOT / "roles").iterdir():
        assert (installed / "roles" / role.name / "README.md").read_text() == (role / "README.md").read_text()
    assert (installed / "LICENSE").exists()
    assert "vstor.storage.vstor_cs" in ansible(home, "ansible-doc", "-l", "vstor.storage")
    text = ansible(home, "ansible-doc", "-t", "role", "vstor.storage.vstor_repo")
    assert "vstor_repo_key" in text
