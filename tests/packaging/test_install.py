"""The packages on a Debian 12 without a network: installed from the signed repository, upgraded, removed; and tampered ones refused."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.conftest import CLIENT, COMMON, CS, MDS, NEW, OLD, Debian, make_repo, run

NOTES = ("restart-mds", "restart-cs", "restart-mount")
# What must survive everything: a node's identity, a registered service, data, logs.
KEPT = {
    "etc/vstor/clusters/c/node.key": "secret",
    "etc/vstor/clusters/c/services/cs-1.json": '{"schema": 1}',
    "var/lib/vstor/cs/1/chunk": "data",
    "var/log/vstor/csd.log": "log",
}


def put_data(debian: Debian) -> None:
    for name, text in KEPT.items():
        path = debian.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def check_data(debian: Debian) -> None:
    for name, text in KEPT.items():
        assert (debian.root / name).read_text() == text


def programs_run(debian: Debian, *programs: str, version: str) -> None:
    for program in programs:
        done = debian.sh(f"{program} --help")
        assert done.stdout.startswith(f"usage: {program}"), done.stderr
    assert debian.sh("vstorctl --version").stdout.split() == ["vstorctl", version]


def test_a_client_host(debian: Debian) -> None:
    debian.apt("update")
    debian.apt("install", f"{CLIENT}={OLD}", f"{COMMON}={OLD}")
    assert debian.installed() == {CLIENT: OLD, COMMON: OLD}
    programs_run(debian, "vstorctl", "vstor-mount", version=OLD)
    assert debian.sh("getent passwd vstor").stdout.split(":")[5:] == ["/var/lib/vstor", "/usr/sbin/nologin\n"]
    assert debian.sh("stat -c '%U %a' /var/lib/vstor /var/log/vstor /run/vstor /etc/vstor").stdout.splitlines() == [
        "vstor 755", "vstor 755", "vstor 755", "root 755",
    ]  # fmt: skip
    installed = debian.files(
        "/usr/lib/systemd/system", "/etc/systemd/system", "/usr/bin", "/opt/vstor/bin", "/etc/init.d"
    )
    assert {f for f in installed if "vstor" in f and re.search("csd|mdsd|etcd", f)} == set()
    assert not (debian.root / "run/vstor/restart-mount").exists()
    # mount(8) finds the helper by the name of the type.
    done = debian.sh("mount -t fuse.vstor nonsense /mnt", check=False)
    assert done.stderr == "mount.fuse.vstor: 'nonsense' is no cluster — write vstor://CLUSTER\n"
    # What is not here is named.
    done = debian.sh("vstorctl -c c make-cs -r /srv/cs", check=False)
    assert done.stderr == f"vstorctl: {CS} is not installed on this node — install that package\n"
    assert debian.sh("/opt/vstor/bin/python -c 'import vstor.client.library'").returncode == 0


def test_server_hosts(debian: Debian) -> None:
    debian.apt("update")
    debian.apt("install", f"{CS}={OLD}", f"{COMMON}={OLD}")
    programs_run(debian, "vstor-csd", version=OLD)
    assert "mdsd" not in " ".join(debian.files("/usr/bin", "/usr/lib/systemd/system"))
    debian.apt("install", f"{MDS}={OLD}")
    programs_run(debian, "vstor-mdsd", "vstor-etcd", version=OLD)
    assert debian.sh("which etcd").stdout == "/usr/bin/etcd\n"
    for unit in ("vstor-csd@", "vstor-mdsd@", "vstor-etcd@"):
        text = (debian.root / f"usr/lib/systemd/system/{unit}.service").read_text()
        assert "ExecStart=/opt/vstor/bin/vstorctl service exec " in text
        done = debian.sh(f"systemd-analyze verify --man=no '{unit}c.1.service'", check=False)
        assert "vstor" not in done.stderr, done.stderr
    # Nothing is enabled, started or asked to restart by a first installation.
    assert debian.files("/etc/systemd/system/multi-user.target.wants/vstor*") == set()
    assert not any((debian.root / "run/vstor" / note).exists() for note in NOTES)


def test_upgrade_remove_purge(debian: Debian) -> None:
    everything = (COMMON, MDS, CS, CLIENT)
    debian.apt("update")
    before = debian.files("/usr", "/opt", "/etc")
    debian.apt("install", *(f"{name}={OLD}" for name in everything))
    put_data(debian)
    (debian.root / "etc/init.d/vstor-csd").open("a").write("# of the operator\n")

    debian.apt("install", "-o", "Dpkg::Options::=--force-confold", *(f"{name}={NEW}" for name in everything))
    assert debian.installed() == dict.fromkeys(everything, NEW)
    programs_run(debian, "vstor-csd", "vstor-mdsd", version=NEW)
    check_data(debian)
    assert (debian.root / "etc/init.d/vstor-csd").read_text().endswith("# of the operator\n")
    # The roles restart what runs, host by host; the package only leaves notes.
    for note in NOTES:
        assert (debian.root / "run/vstor" / note).exists()
    stale = [f for f in debian.files("/opt/vstor") if OLD in f]
    assert stale == []

    # A removal stops the services of the package first; here none is of this node.
    (debian.root / "etc/vstor/clusters/c/services/cs-1.json").rename(debian.root / "kept.json")
    debian.apt("remove", CS)
    (debian.root / "kept.json").rename(debian.root / "etc/vstor/clusters/c/services/cs-1.json")
    check_data(debian)
    assert not (debian.root / "opt/vstor/bin/vstor-csd").exists()
    assert (debian.root / "etc/init.d/vstor-csd").exists()
    (debian.root / "etc/vstor/clusters/c/services/cs-1.json").unlink()
    debian.apt("purge", *everything)
    (debian.root / "etc/vstor/clusters/c/services/cs-1.json").write_text(
        KEPT["etc/vstor/clusters/c/services/cs-1.json"]
    )
    check_data(debian)
    assert debian.installed() == {}
    assert not (debian.root / "opt/vstor").exists()
    left = debian.files("/usr", "/opt", "/etc") - before
    assert {f for f in left if "vstor" in f} == {f"/{name}" for name in KEPT if name.startswith("etc/")}
    assert debian.sh("getent passwd vstor").returncode == 0


def test_a_removal_that_cannot_stop_its_services_is_refused(debian: Debian) -> None:
    debian.apt("update")
    debian.apt("install", f"{CS}={OLD}", f"{COMMON}={OLD}")
    # vstorctl cannot read what is registered: it does not know what runs.
    services = debian.root / "etc/vstor/clusters/c/services"
    services.mkdir(parents=True)
    (services / "cs-1.json").write_text("{broken")
    done = debian.apt("remove", CS, check=False)
    assert done.returncode != 0
    assert "vstorctl: " in done.stderr
    programs_run(debian, "vstor-csd", version=OLD)


def _flip_deb(repository: Path) -> None:
    deb = next((repository / "pool").glob(f"{COMMON}_{NEW}*"))
    data = bytearray(deb.read_bytes())
    data[len(data) // 2] ^= 1
    deb.write_bytes(data)


def _replace_deb(repository: Path) -> None:
    """Another package under the name, with an index that fits it, and a Release of before."""
    deb = next((repository / "pool").glob(f"{COMMON}_{NEW}*"))
    old = hashlib.sha256(deb.read_bytes()).hexdigest()
    deb.write_bytes(deb.read_bytes() + b"\n")
    index = repository / "dists/stable/main/binary-amd64/Packages"
    text = index.read_text().replace(old, hashlib.sha256(deb.read_bytes()).hexdigest())
    index.write_text(text)
    (index.parent / "Packages.gz").write_bytes(gzip.compress(text.encode()))


def _edit_release(repository: Path) -> None:
    for name in ("Release", "InRelease"):
        file = repository / "dists/stable" / name
        file.write_text(file.read_text().replace("Label: vstor", "Label: other"))


def _unsigned(repository: Path) -> None:
    for name in ("InRelease", "Release.gpg"):
        (repository / "dists/stable" / name).unlink()


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_flip_deb, ["Hash Sum mismatch"]),
        (_replace_deb, ["Hash Sum mismatch", "File has unexpected size", "unexpected size"]),
        (_edit_release, ["BADSIG", "is not signed"]),
        (_unsigned, ["is not signed"]),
    ],
    ids=["package", "package-and-index", "release", "unsigned"],
)
def test_tampering_is_refused(debian: Debian, tamper: Callable[[Path], None], words: list[str]) -> None:
    tamper(debian.root / "repository")
    update = debian.apt("update", check=False)
    install = debian.apt("install", CLIENT, check=False)
    said = update.stdout + update.stderr + install.stdout + install.stderr
    assert install.returncode != 0
    assert any(word in said for word in words), said
    assert debian.installed() == {}


def test_another_key_is_refused(debian: Debian, packages: Path, tmp_path: Path) -> None:
    make_repo(packages, tmp_path / "other", tmp_path / "other.asc")
    key = (debian.root / "etc/apt/keyrings/vstor.asc").read_text()
    debian.use(tmp_path / "other")
    (debian.root / "etc/apt/keyrings/vstor.asc").write_text(key)
    update = debian.apt("update", check=False)
    assert update.returncode != 0
    assert "NO_PUBKEY" in update.stdout + update.stderr
    assert debian.apt("install", CLIENT, check=False).returncode != 0
    run("test", "-d", debian.root / "repository")
    assert debian.installed() == {}
