"""Build the collection vstor.storage with the roles and playbooks of this tree in it: `make collection`.

Usage: collection.py OUTPUT

DESIGN: the tree keeps roles/ and playbooks/ at its top, where an operator looks, and the plugins in collections/; a collection wants all below
one directory. So they are copied together here, unchanged but for two things: the version, and names of playbooks, which in a collection are
identifiers (replace-disk.yml becomes replace_disk.yml). Short names of roles resolve inside the collection that a playbook belongs to.
The result is OUTPUT/vstor-storage-VERSION.tar.gz, and the tree it was made from OUTPUT/ansible_collections/vstor/storage.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ansible.release import __version__ as ansible_version

from build import ROOT, tree_version

PLACE = Path("ansible_collections/vstor/storage")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def assemble(target: Path, version: str) -> None:
    """The source tree of the collection in `target`."""
    shutil.copytree(ROOT / "collections" / PLACE, target, ignore=IGNORED)
    for name in ("roles", "playbooks"):
        shutil.copytree(ROOT / name, target / name, ignore=IGNORED)
    shutil.copy(ROOT / "LICENSE", target)
    galaxy = target / "galaxy.yml"
    text, count = re.subn(r"^version: .*$", f"version: {version}", galaxy.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{galaxy}: no version in it")
    galaxy.write_text(text)
    rename_playbooks(target / "playbooks")
    # The one thing that ansible-test asks of modules and that does not apply here: this project's licence is Apache-2.0.
    modules = sorted(module.name for module in (target / "plugins/modules").glob("*.py"))
    ignored = target / "tests/sanity" / f"ignore-{'.'.join(ansible_version.split('.')[:2])}.txt"
    ignored.parent.mkdir(parents=True)
    ignored.write_text("".join(f"plugins/modules/{name} validate-modules:missing-gplv3-license\n" for name in modules))


def rename_playbooks(directory: Path) -> None:
    """Make identifiers of the names of playbooks, also where one imports another."""
    for playbook in sorted(directory.glob("*.yml")):
        text = re.sub(
            r"(import_playbook: +)(\S+)\.yml", lambda m: f"{m[1]}{m[2].replace('-', '_')}.yml", playbook.read_text()
        )
        playbook.write_text(text)
        playbook.rename(playbook.with_name(playbook.name.replace("-", "_")))


def main(arguments: list[str]) -> None:
    """Build into OUTPUT."""
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    output = Path(arguments[0])
    version = tree_version()
    shutil.rmtree(output, ignore_errors=True)
    assemble(output / PLACE, version)
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # Ansible refuses the C locale
    environment.pop("ANSIBLE_CONFIG", None)
    command = [galaxy, "collection", "build", PLACE]
    done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"collection: ansible-galaxy failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(sys.argv[1:])
