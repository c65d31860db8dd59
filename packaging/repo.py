"""Make a signed package repository of what is in build/packages: `make repo`, `make repo REPO_KEY=FILE`, `make repo AIRGAP=1`.

Usage: repo.py PACKAGES OUTPUT KEY [--with-dependencies]

OUTPUT/apt is for apt (suite stable, component main), OUTPUT/yum for yum and dnf, OUTPUT/vstor.asc the public key; apt.tar and yum.tar hold the
same for the role vstor_repo, which copies them to hosts that reach no web server. KEY is an armoured secret
key without a passphrase; it is made when it is not there. With dependencies the repository holds also Debian's packages that ours need, down
to libc6, for hosts without any other source: this machine's apt downloads them.
Needs gpg, apt-ftparchive, createrepo_c, rpmsign (packages-debian.txt).
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWNER = "vstor packages"
KEY_KIND = "rsa3072"  # which rpm of every distribution can check
SUITE = "stable"
ARCHITECTURE = "amd64"
# What the roles ask for besides what our packages depend on.
ROLE_PACKAGES = ("python3", "python3-apt", "python3-venv", "supervisor", "xfsprogs", "sudo", "ca-certificates")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> bytes:
    """A command's output. Raises SystemExit with what it said when it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)
    if done.returncode:
        text = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise SystemExit(f"repo: {command[0]} failed with {done.returncode}:\n{text}")
    return done.stdout


class Signer:
    """A key in a key ring of its own."""

    def __init__(self, home: Path, key: Path) -> None:
        self.env = {**os.environ, "GNUPGHOME": str(home), "LC_ALL": "C"}
        if key.exists():
            self.gpg("--import", key)
        else:
            self.gpg("--passphrase", "", "--quick-generate-key", OWNER, KEY_KIND, "sign", "never")
            key.parent.mkdir(parents=True, exist_ok=True)
            secret = self.gpg("--armor", "--export-secret-keys")
            with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secret)
            print(f"repo: made the key {key}; keep it, hosts trust no other")
        lines = self.gpg("--list-secret-keys", "--with-colons").decode().splitlines()
        prints = [line.split(":")[9] for line in lines if line.startswith("fpr:")]
        if not prints:
            raise SystemExit(f"repo: {key} holds no secret key")
        self.fingerprint = prints[0]

    def gpg(self, *arguments: str | Path) -> bytes:
        """Run gpg."""
        return run("gpg", "--batch", "--yes", "--pinentry-mode", "loopback", *arguments, env=self.env)

    def sign(self, path: Path, signature: Path, how: str) -> None:
        """Sign a file; `how` is --clearsign or --detach-sign."""
        self.gpg(
            "--local-user", self.fingerprint, "--digest-algo", "SHA512", "--armor", how, "--output", signature, path
        )

    def sign_rpms(self, files: list[Path]) -> None:
        """Put a signature into each."""
        macros = ("--define", f"__gpg {shutil.which('gpg')}", "--define", f"_gpg_name {self.fingerprint}")
        run("rpmsign", *macros, "--addsign", *files, env=self.env)


@contextmanager
def signer(key: Path) -> Iterator[Signer]:
    """The key ring, which is gone afterwards, with the agent that gpg started for it."""
    with tempfile.TemporaryDirectory(prefix="vstor-gpg-") as home:
        try:
            yield Signer(Path(home), key)
        finally:
            run("gpgconf", "--homedir", home, "--kill", "all")


def apt_repository(debs: list[Path], root: Path, sign: Signer) -> None:
    """pool/ and dists/, signed as InRelease and as Release.gpg."""
    pool, dist = root / "pool", root / "dists" / SUITE
    index = dist / "main" / f"binary-{ARCHITECTURE}"
    for directory in (pool, index):
        directory.mkdir(parents=True)
    for deb in debs:
        shutil.copy2(deb, pool)
    packages = run("apt-ftparchive", "packages", "pool", cwd=root)
    (index / "Packages").write_bytes(packages)
    (index / "Packages.gz").write_bytes(gzip.compress(packages, 9, mtime=0))
    fields = {
        "Origin": "vstor",
        "Label": "vstor",
        "Suite": SUITE,
        "Codename": SUITE,
        "Components": "main",
        "Architectures": ARCHITECTURE,
    }
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
    weak = ["-oAPT::FTPArchive::MD5=false", "-oAPT::FTPArchive::SHA1=false"]
    release = run("apt-ftparchive", *options, *weak, "release", f"dists/{SUITE}", cwd=root)
    (dist / "Release").write_bytes(release)
    sign.sign(dist / "Release", dist / "InRelease", "--clearsign")
    sign.sign(dist / "Release", dist / "Release.gpg", "--detach-sign")


def yum_repository(rpms: list[Path], root: Path, sign: Signer) -> None:
    """Signed packages, and repodata with repomd.xml.asc."""
    root.mkdir(parents=True)
    copies = [Path(shutil.copy2(rpm, root)) for rpm in rpms]
    sign.sign_rpms(copies)
    run("createrepo_c", "--quiet", "--no-database", root)
    sign.sign(root / "repodata/repomd.xml", root / "repodata/repomd.xml.asc", "--detach-sign")


def debian_dependencies(debs: list[Path], cache: Path) -> list[Path]:
    """What Debian has to bring for our packages on an empty system, of the releases that this machine's apt knows."""
    cache = cache.absolute()  # apt reads a relative name below its own directories
    (cache / "partial").mkdir(parents=True, exist_ok=True)
    status = cache / "status"
    status.write_text("")
    newest = {deb.name.split("_", 1)[0]: deb for deb in debs}  # one version of each: they want each other's
    options = [f"-oDir::State::status={status}", f"-oDir::Cache::archives={cache}", "-oDebug::NoLocking=1"]
    local = [deb.absolute() for deb in newest.values()]
    run("apt-get", *options, "--yes", "--download-only", "--no-install-recommends", "install", *local, *ROLE_PACKAGES)
    return sorted(cache.glob("*.deb"))


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def main(arguments: list[str]) -> None:
    """Make OUTPUT anew, at once: a reader sees the old one or the new one."""
    words = [word for word in arguments if not word.startswith("--")]
    if len(words) != 3 or set(arguments) - set(words) > {"--with-dependencies"}:
        raise SystemExit(__doc__)
    packages, output, key = Path(words[0]), Path(words[1]), Path(words[2]).expanduser()
    debs, rpms = sorted((packages / "deb").glob("*.deb")), sorted((packages / "rpm").glob("*.rpm"))
    if not debs or not rpms:
        raise SystemExit(f"repo: no packages in {packages}: make packages")
    work = output.with_name(output.name + ".new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    foreign = debian_dependencies(debs, output.with_name("debian")) if "--with-dependencies" in arguments else []
    with signer(key) as sign:
        apt_repository(debs + foreign, work / "apt", sign)
        yum_repository(rpms, work / "yum", sign)
        (work / "vstor.asc").write_bytes(sign.gpg("--armor", "--export", sign.fingerprint))
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask: apt reads as a user of its own
    work.chmod(0o755)
    for name in ("apt", "yum"):
        with tarfile.open(work / f"{name}.tar", "w") as archive:
            archive.add(work / name, name, filter=_of_root)
    old = output.with_name(output.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    work.rename(output)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
