"""Packages of this tree in two versions, a signed repository of them, and a Debian 12 to install them in.

Needs root (overlay, chroot), the wheels of `make wheel`, and the base file system of the lab, which is made on the first run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "0.9.0", "0.9.1~rc1"
DATE = 1_700_000_000
COMMON, MDS, CS, CLIENT = "vstor-common", "vstor-metadata-server", "vstor-chunk-server", "vstor-client"
NAMES = (COMMON, MDS, CS, CLIENT)


def run(*command: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with its output; a failure shows it."""
    env = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if check:
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def build(output: Path, version: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Packages of one version, as `make packages` makes them."""
    command = (sys.executable, ROOT / "packaging/build.py", ROOT / "build/wheelhouse", output, version)
    return run(*command, check=check, SOURCE_DATE_EPOCH=str(DATE))


def make_repo(packages: Path, output: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """A repository, as `make repo` makes it."""
    return run(sys.executable, ROOT / "packaging/repo.py", packages, output, key)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deb/ and rpm/ with both versions."""
    output = tmp_path_factory.mktemp("packages")
    for version in (OLD, NEW):
        build(output, version)
    return output


@pytest.fixture(scope="session")
def repo(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of them; its secret key is beside it as key.asc."""
    place = tmp_path_factory.mktemp("repo")
    make_repo(packages, place / "repo", place / "key.asc")
    return place / "repo"


class Debian:
    """A Debian 12 below `root` without a network, that reads packages from /repository alone."""

    SOURCE = "etc/apt/sources.list.d/vstor.sources"

    def __init__(self, root: Path) -> None:
        self.root = root

    def sh(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell command in there, as root."""
        # With a process name space of its own, so that nothing outlives a test that was cut off.
        return run(
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "chroot",
            self.root,
            "/bin/sh",
            "-c",
            command,
            check=check,
            DEBIAN_FRONTEND="noninteractive",
        )

    def apt(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """apt-get that asks nothing."""
        return self.sh(f"apt-get -q -y --no-install-recommends {' '.join(words)}", check=check)

    def use(self, repo: Path) -> None:
        """Have a copy of this repository, with its key trusted, as the role vstor_repo does."""
        shutil.copytree(repo / "apt", self.root / "repository", dirs_exist_ok=True)
        (self.root / "etc/apt/keyrings").mkdir(exist_ok=True)
        shutil.copy(repo / "vstor.asc", self.root / "etc/apt/keyrings/vstor.asc")
        source = "Types: deb\nURIs: file:/repository\nSuites: stable\nComponents: main\nSigned-By: /etc/apt/keyrings/vstor.asc\n"
        (self.root / self.SOURCE).write_text(source)
        (self.root / "etc/apt/sources.list").write_text("")

    def installed(self) -> dict[str, str]:
        """vstor's packages and their versions."""
        lines = self.sh("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n' 'vstor*'", check=False).stdout
        rows = [line.split() for line in lines.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}

    def files(self, *directories: str) -> set[str]:
        """All files and links below these directories."""
        found = self.sh(f"find {' '.join(directories)} ! -type d", check=False).stdout
        return set(found.splitlines())


@pytest.fixture(scope="session")
def base() -> Path:
    """The file system that the lab's hosts start from, with the Debian packages that ours need."""
    sys.path.insert(0, str(ROOT / "molecule/lab"))
    from vstorlab.base import ensure

    return ensure("prepared")


@pytest.fixture
def debian(base: Path, repo: Path, tmp_path: Path) -> Iterator[Debian]:
    """A fresh one for each test, with the repository set up."""
    upper, work, root = (tmp_path / name for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir()
    run("mount", "-t", "overlay", "-o", f"lowerdir={base},upperdir={upper},workdir={work}", "overlay", root)
    try:
        run("mount", "-t", "proc", "proc", root / "proc")
        run("mount", "--bind", "/dev/null", root / "dev/null")
        system = Debian(root)
        system.use(repo)
        # No test cuts the power: dpkg need not wait for the disk.
        (root / "etc/dpkg/dpkg.cfg.d/unsafe").write_text("force-unsafe-io\n")
        yield system
    finally:
        run("umount", "-R", root)
        shutil.rmtree(tmp_path)
