"""What is in the packages, read without installing them."""

from __future__ import annotations

import hashlib
import re
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.conftest import CLIENT, COMMON, CS, DATE, MDS, NAMES, NEW, OLD, ROOT, build, make_repo, run

SITE = "opt/vstor/lib/python3.11/site-packages/"
SERVER_WORDS = re.compile(r"mdsd|csd|etcd|grpc|protobuf|/mds/|/cs/|/meta/")


@pytest.fixture(scope="session")
def trees(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Package -> path -> entry, of the old version."""
    place = tmp_path_factory.mktemp("trees")
    found = {}
    for name in NAMES:
        run("sh", "-c", f"dpkg-deb --fsys-tarfile {packages}/deb/{name}_{OLD}_amd64.deb >{place}/{name}.tar")
        with tarfile.open(place / f"{name}.tar") as archive:
            found[name] = {m.name.removeprefix("./"): m for m in archive.getmembers()}
    return found


def files(tree: dict[str, tarfile.TarInfo]) -> set[str]:
    return {path for path, member in tree.items() if not member.isdir()}


def field(packages: Path, name: str, what: str) -> str:
    return run("dpkg-deb", "-f", packages / f"deb/{name}_{OLD}_amd64.deb", what).stdout.strip()


def test_a_client_gets_no_server(packages: Path, trees: dict[str, dict[str, tarfile.TarInfo]]) -> None:
    assert [path for path in files(trees[CLIENT]) if SERVER_WORDS.search(path)] == []
    depends = field(packages, CLIENT, "Depends") + field(packages, COMMON, "Depends")
    assert "etcd" not in depends
    # The templates of all units are data of vstorctl; they are no units.
    common = {
        path for path in files(trees[COMMON]) if "/vstor/ctl/" not in path and not path.startswith("usr/share/man")
    }
    assert [path for path in common if SERVER_WORDS.search(path)] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (COMMON, {"usr/bin/vstorctl", "usr/share/bash-completion/completions/vstorctl", "usr/share/man/man8/vstorctl.8.gz"}),
        (COMMON, {"usr/lib/sysusers.d/vstor.conf", "usr/lib/tmpfiles.d/vstor.conf", "usr/lib/systemd/system/vstor-servers.target"}),
        (MDS, {"usr/bin/vstor-mdsd", "usr/bin/vstor-etcd", "usr/lib/systemd/system/vstor-mdsd@.service", "etc/init.d/vstor-mdsd"}),
        (MDS, {"usr/lib/systemd/system/vstor-etcd@.service", "usr/share/man/man8/vstor-etcd.8.gz"}),
        (CS, {"usr/bin/vstor-csd", "usr/lib/systemd/system/vstor-csd@.service", "usr/share/man/man8/vstor-csd.8.gz"}),
        (CLIENT, {"usr/bin/vstor-mount", "usr/sbin/mount.fuse.vstor", "usr/lib/systemd/system/vstor-mount@.service"}),
    ],
)  # fmt: skip
def test_what_belongs_where(trees: dict[str, dict[str, tarfile.TarInfo]], name: str, expected: set[str]) -> None:
    assert expected <= files(trees[name])
    for other in set(NAMES) - {name}:
        assert not expected & files(trees[other])


def test_nothing_of_the_wheels_is_lost_or_twice(trees: dict[str, dict[str, tarfile.TarInfo]]) -> None:
    wheels = set()
    for wheel in (ROOT / "build/wheelhouse").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wheels |= {n for n in archive.namelist() if not n.endswith(("/", "/RECORD")) and ".data/" not in n}
    wheels = {re.sub(r"^vstor-[^/]*\.dist-info", f"vstor-{OLD}.dist-info", name) for name in wheels}
    everything = [path for tree in trees.values() for path in files(tree)]
    assert len(everything) == len(set(everything))
    packaged = {path.removeprefix(SITE) for path in everything if path.startswith(SITE)}
    assert wheels - packaged == set()
    assert {path for path in packaged - wheels if not path.endswith(".pyc")} == set()


def test_every_requirement_is_in_the_package_or_in_common(packages: Path, tmp_path: Path) -> None:
    where: dict[str, str] = {}
    needs: list[tuple[str, str, Requirement]] = []
    for name in NAMES:
        run("dpkg-deb", "-x", packages / f"deb/{name}_{OLD}_amd64.deb", tmp_path / name)
        for metadata in (tmp_path / name / SITE).glob("*.dist-info/METADATA"):
            distribution = metadata.parent.name.split("-", 1)[0]
            where[canonicalize_name(distribution)] = name
            for text in re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), flags=re.MULTILINE):
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    needs.append((name, distribution, requirement))
    assert where["vstor"] == COMMON
    for name, distribution, requirement in needs:
        if distribution != "vstor":  # its parts need different ones: test_install imports them
            assert where[canonicalize_name(requirement.name)] in (name, COMMON), f"{distribution} needs {requirement}"


def test_modes_owners_and_times(trees: dict[str, dict[str, tarfile.TarInfo]]) -> None:
    for tree in trees.values():
        for path, member in tree.items():
            assert (member.uid, member.gid, member.mtime) == (0, 0, DATE), path
            if member.issym():
                continue
            program = path.startswith(("opt/vstor/bin/", "etc/init.d/"))
            expected = 0o755 if member.isdir() or program else 0o644
            assert stat.S_IMODE(member.mode) == expected, path
    assert all(path == "etc/init.d" or path.startswith("etc/init.d/") or path == "etc"
               for tree in trees.values() for path in tree if path.startswith("etc"))  # fmt: skip


def test_rpm_has_the_same(packages: Path, trees: dict[str, dict[str, tarfile.TarInfo]]) -> None:
    for name in NAMES:
        rpm = packages / f"rpm/{name}-{OLD}-1.x86_64.rpm"
        listed = {path.lstrip("/") for path in run("rpm", "-qpl", rpm).stdout.splitlines()}
        wanted = {path for path in files(trees[name]) if not path.startswith("etc/")}
        assert wanted <= listed
        assert {path for path in listed - wanted if path not in trees[name]} == set()
        requires = run("rpm", "-qp", "--requires", rpm).stdout.splitlines()
        assert (f"vstor-common = {OLD}" in requires) == (name != COMMON)
    assert "etcd" in run("rpm", "-qp", "--requires", packages / f"rpm/{MDS}-{OLD}-1.x86_64.rpm").stdout.split()


def test_dependencies(packages: Path) -> None:
    for name in (MDS, CS, CLIENT):
        assert f"vstor-common (= {OLD})" in field(packages, name, "Depends")
    assert "etcd-server" in field(packages, MDS, "Depends")
    assert "python3.11" in field(packages, COMMON, "Depends").split(", ")
    # The newest symbol of the C library that an extension module asks for is what vstor-common depends on.
    found = re.search(r"libc6 \(>= ([0-9.]+)\)", field(packages, COMMON, "Depends"))
    assert found is not None


def test_the_c_library_is_new_enough(packages: Path, tmp_path: Path) -> None:
    newest: tuple[int, ...] = (0,)
    depends = ""
    for name in NAMES:
        run("dpkg-deb", "-x", packages / f"deb/{name}_{OLD}_amd64.deb", tmp_path / name)
        depends += field(packages, name, "Depends")
        for library in (tmp_path / name / SITE).rglob("*.so"):
            for version in re.findall(r"GLIBC_([0-9.]+)", run("objdump", "-T", library).stdout):
                newest = max(newest, tuple(int(n) for n in version.split(".")))
    found = re.search(r"libc6 \(>= ([0-9.]+)\)", depends)
    assert found is not None
    assert newest <= tuple(int(n) for n in found.group(1).split("."))


def test_the_same_tree_gives_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    build(tmp_path, OLD)
    for kind in ("deb", "rpm"):
        again = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in (tmp_path / kind).iterdir()}
        assert len(again) == len(NAMES)
        first = {n: hashlib.sha256((packages / kind / n).read_bytes()).digest() for n in again}
        assert again == first


@pytest.mark.parametrize("version", ["", "v1", "1", "1.2 3", "1.2-3", "1.2/../x", "latest"])
def test_a_bad_version_is_refused(tmp_path: Path, version: str) -> None:
    done = build(tmp_path / "out", version, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("packages: VERSION=")
    assert "write it as 1.2.3" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_key_is_made_once_and_private(packages: Path, tmp_path: Path) -> None:
    key = tmp_path / "keys/key.asc"
    first = make_repo(packages, tmp_path / "repo", key)
    assert "made the key" in first.stdout
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text()
    public = (tmp_path / "repo/vstor.asc").read_text()
    again = make_repo(packages, tmp_path / "repo", key)
    assert "made the key" not in again.stdout
    assert key.read_text() == secret
    assert (tmp_path / "repo/vstor.asc").read_text() == public
    for file in (tmp_path / "repo").rglob("*"):
        assert not file.is_file() or b"BEGIN PGP PRIVATE" not in file.read_bytes()


def test_a_file_that_is_no_key(packages: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.asc"
    key.write_text("nothing\n")
    done = run(sys.executable, ROOT / "packaging/repo.py", packages, tmp_path / "repo", key, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("repo: gpg failed")
    assert not (tmp_path / "repo").exists()


def test_rpm_and_yum_are_signed(repo: Path, tmp_path: Path) -> None:
    database = tmp_path / "rpmdb"
    run("rpmkeys", "--dbpath", database, "--import", repo / "vstor.asc")
    rpms = sorted((repo / "yum").glob("*.rpm"))
    assert len(rpms) == 2 * len(NAMES)
    checked = run("rpmkeys", "--dbpath", database, "--checksig", "--verbose", *rpms).stdout
    assert checked.count("RSA/SHA512 Signature") == len(rpms)
    assert "NOKEY" not in checked
    damaged = tmp_path / "damaged.rpm"
    data = bytearray(rpms[0].read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    assert run("rpmkeys", "--dbpath", database, "--checksig", damaged, check=False).returncode != 0

    home = {"GNUPGHOME": str(tmp_path / "gpg")}
    (tmp_path / "gpg").mkdir(mode=0o700)
    run("gpg", "--batch", "--import", repo / "vstor.asc", **home)
    repomd = repo / "yum/repodata/repomd.xml"
    run("gpg", "--batch", "--verify", f"{repomd}.asc", repomd, **home)
    (tmp_path / "repomd.xml").write_text(repomd.read_text().replace("<revision>", "<revision>1"))
    assert (
        run("gpg", "--batch", "--verify", f"{repomd}.asc", tmp_path / "repomd.xml", check=False, **home).returncode != 0
    )
    run("gpgconf", "--kill", "all", **home)
    assert NEW in " ".join(file.name for file in rpms)
