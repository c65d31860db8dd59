"""The rpm packages, put by rpm itself into a root of their own with all their scripts: installed, upgraded, removed.

What they depend on are packages of other distributions, which a Debian does not know; so --nodeps, and the dependencies are compared in
test_contents.py. The files and libraries that they name are those of the Debian here, which has the Python and the C library they ask for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.conftest import CLIENT, COMMON, CS, MDS, NAMES, NEW, OLD, Debian, run
from tests.packaging.test_install import NOTES, check_data, programs_run, put_data


class Rpm:
    """rpm of this machine, at work in a root; its scripts run in there, without a network."""

    def __init__(self, debian: Debian, yum: Path) -> None:
        self.debian, self.yum = debian, yum

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        """Run rpm; its output and its complaints."""
        command = ("unshare", "--net", "--pid", "--fork", "--kill-child", "rpm", "--root", self.debian.root, *words)
        done = run(*command, check=check)
        return done.stdout + done.stderr

    def files(self, version: str, *names: str) -> list[Path]:
        """Packages in the repository."""
        return [self.yum / f"{name}-{version}-1.x86_64.rpm" for name in names]

    def installed(self) -> dict[str, str]:
        """vstor's packages and their versions."""
        rows = self("-qa", "--qf", "%{NAME} %{VERSION}\n", "vstor*").split()
        return dict(zip(rows[::2], rows[1::2], strict=True))


@pytest.fixture
def rpm(debian: Debian, repo: Path) -> Rpm:
    """With a database that trusts the repository's key and takes nothing that is not signed."""
    tool = Rpm(debian, repo / "yum")
    tool("--initdb")
    tool("--import", repo / "vstor.asc")
    return tool


def required(*words: str) -> tuple[str, ...]:
    """Options of an installation that checks signatures."""
    return ("--nodeps", "--define", "_pkgverify_level all", *words)


def test_install_upgrade_remove(rpm: Rpm) -> None:
    debian = rpm.debian
    rpm(*required("-i"), *rpm.files(OLD, COMMON, CLIENT))
    assert rpm.installed() == {COMMON: OLD, CLIENT: OLD}
    programs_run(debian, "vstorctl", "vstor-mount", version=OLD)
    assert debian.sh("stat -c '%U %a' /var/lib/vstor /etc/vstor").stdout.splitlines() == ["vstor 755", "root 755"]
    assert not any((debian.root / "opt/vstor/bin" / name).exists() for name in ("vstor-csd", "vstor-mdsd"))

    rpm(*required("-i"), *rpm.files(OLD, CS, MDS))
    programs_run(debian, "vstor-csd", "vstor-mdsd", "vstor-etcd", version=OLD)
    assert not any((debian.root / "run/vstor" / note).exists() for note in NOTES)
    assert rpm("-V", "--nodeps", *NAMES) == ""
    put_data(debian)

    rpm(*required("-U"), *rpm.files(NEW, *NAMES))
    assert rpm.installed() == dict.fromkeys(NAMES, NEW)
    programs_run(debian, "vstor-csd", "vstor-mdsd", version=NEW)
    assert all((debian.root / "run/vstor" / note).exists() for note in NOTES)
    assert [f for f in debian.files("/opt/vstor") if OLD in f] == []
    assert rpm("-V", "--nodeps", *NAMES) == ""
    check_data(debian)

    # A removal stops the services of the package first; here none is of this node.
    service = debian.root / "etc/vstor/clusters/c/services/cs-1.json"
    text = service.read_text()
    service.unlink()
    rpm("-e", *NAMES)
    service.write_text(text)
    assert rpm.installed() == {}
    assert not (debian.root / "opt/vstor").exists()
    check_data(debian)


def test_a_package_that_was_changed_is_refused(rpm: Rpm, tmp_path: Path) -> None:
    changed = tmp_path / "changed.rpm"
    data = bytearray(rpm.files(NEW, COMMON)[0].read_bytes())
    data[-1000] ^= 1
    changed.write_bytes(data)
    said = rpm(*required("-i"), changed, check=False)
    assert "does not verify" in said
    assert rpm.installed() == {}


def test_a_key_that_nobody_trusts_is_refused(debian: Debian, repo: Path) -> None:
    tool = Rpm(debian, repo / "yum")
    tool("--initdb")
    said = tool(*required("-i"), *tool.files(NEW, COMMON), check=False)
    assert "does not verify" in said
    assert "NOKEY" in said
    assert tool.installed() == {}
    assert not (debian.root / "opt/vstor").exists()
