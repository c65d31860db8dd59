"""The root file system that all hosts share below their overlays: Debian 12, made once by debootstrap and kept outside the tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.parse
from pathlib import Path

import yaml

from vstorlab.spec import LabError
from vstorlab.state import lock
from vstorlab.tools import run

CACHE = Path(os.environ.get("VSTOR_LAB_CACHE", "/var/cache/vstor-lab"))
SUITE = "bookworm"
# minimal: a server as the installer leaves it. prepared: with the Debian packages that the roles install, so that a deployment downloads nothing.
VARIANTS = ("minimal", "prepared")
# Raised when what is done to the base changes.
REVISION = 2
TREE = Path(__file__).resolve().parents[3]
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "openssh-server", "sudo", "python3", "iproute2", "iputils-ping", "nftables",
    "xfsprogs", "e2fsprogs", "gdisk", "util-linux", "procps", "kmod", "ca-certificates", "less",
)  # fmt: skip
# What would act on this machine's kernel instead of the host's, or at times of its own.
MASKED = (
    "systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "systemd-pstore.service", "systemd-random-seed.service",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "apt-daily.timer", "apt-daily-upgrade.timer",
    "getty.target", "console-getty.service",
)  # fmt: skip
# systemd listens to udev only where there is one when it starts, and udev starts after it: a server has the initramfs' or devtmpfs, a host
# of the lab has this as PID 1, which becomes systemd.
INIT = "/usr/local/sbin/lab-init"
INIT_TEXT = """#!/bin/sh
mkdir -p /run/udev
: >/run/udev/control
exec /lib/systemd/systemd "$@"
"""
SOURCES = "etc/apt/sources.list"
BUILD_S = 1800.0


def ensure(variant: str, rebuild: bool = False) -> Path:
    """Path of a base; it is built when it is not there yet (one minute, and Debian's packages from where this machine's apt has them)."""
    if variant not in VARIANTS:
        raise LabError(f"base is one of {', '.join(VARIANTS)}, not {variant!r}")
    packages = sorted({*PACKAGES, *(_role_packages() if variant == "prepared" else ())})
    words = "\n".join([SUITE, str(REVISION), *packages, *MASKED, INIT_TEXT])
    base = CACHE / f"{variant}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
    with lock():
        if rebuild and base.exists():
            if any(str(base) in line for line in Path("/proc/mounts").read_text().splitlines()):
                raise LabError(f"{base} is in use by a lab: destroy that first")
            shutil.rmtree(base)
        if not base.exists():
            _build(base, packages)
    return base


def _role_packages() -> set[str]:
    """Debian's packages in the defaults of the roles (variables *_packages); our own are not Debian's."""
    found: set[str] = set()
    for file in TREE.glob("roles/*/defaults/main.yml"):
        for name, value in (yaml.safe_load(file.read_text()) or {}).items():
            if name.endswith("_packages") and isinstance(value, list):
                found.update(p for p in value if isinstance(p, str) and not p.startswith("vstor"))
    return found


def sources() -> list[tuple[str, str]]:
    """(URI, suite) of Debian's main archive, updates and security, as this machine's apt has them."""
    text = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(ORIGIN)",
        "Created-By: Packages",
        "Component: main",
    )
    found = []
    for line in text.splitlines():
        uri, suite, origin = (*line.split(" ", 2), "")[:3]
        if origin == "Debian" and suite.split("-")[0] == SUITE:
            found.append((uri, suite))
    if SUITE not in [s for _, s in found]:
        raise LabError(f"this machine's apt knows no Debian {SUITE}: add it to its sources and run apt-get update")
    return found


def apt_settings() -> dict[str, str]:
    """Settings of this machine's apt that its archive needs."""
    found = {}
    for line in run("apt-config", "dump").splitlines():
        name, _, value = line.partition(" ")
        if name in ("Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::http::Proxy"):
            found[name] = value.strip().strip(";").strip('"')
    return found


def _build(base: Path, packages: list[str]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    new = base.with_suffix(".new")
    if new.exists():
        shutil.rmtree(new)
    run("apt-get", "update", timeout_s=BUILD_S)
    archive = {suite: uri for uri, suite in sources()}
    settings = apt_settings()
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if proxy := settings.pop("Acquire::http::Proxy", ""):
        env["http_proxy"] = proxy
    downloads = CACHE / "packages"
    downloads.mkdir(exist_ok=True)
    run(
        "debootstrap", "--variant=minbase", f"--cache-dir={downloads}", f"--include={','.join(packages)}", SUITE, new, archive[SUITE],
        env=env, timeout_s=BUILD_S,
    )  # fmt: skip
    (new / SOURCES).write_text("".join(f"deb {uri} {suite} main\n" for uri, suite in sources()))
    (new / "etc/apt/apt.conf.d/80-lab").write_text(
        "".join(f'{k} "{v}";\n' for k, v in settings.items()) + 'Acquire::Languages "none";\n'
    )
    for unit in MASKED:
        (new / "etc/systemd/system" / unit).symlink_to("/dev/null")
    if "etcd-server" in packages:  # as the role does before it installs the package: Debian's own service stays off
        (new / "etc/systemd/system/etcd.service").symlink_to("/dev/null")
    run("chroot", new, "systemctl", "enable", "systemd-networkd.service", "ssh.service")
    # Each host gets its own.
    for file in [
        *(new / "etc/ssh").glob("ssh_host_*"),
        new / "etc/machine-id",
        new / "etc/hostname",
        new / "etc/resolv.conf",
    ]:
        file.unlink(missing_ok=True)
    (new / INIT.lstrip("/")).write_text(INIT_TEXT)
    (new / INIT.lstrip("/")).chmod(0o755)
    (new / "var/log/journal").mkdir(exist_ok=True)
    shutil.rmtree(new / "var/cache/apt/archives", ignore_errors=True)
    (new / "var/cache/apt/archives/partial").mkdir(parents=True)
    new.rename(base)


def archive_hosts(base: Path) -> set[str]:
    """Names of the machines that a base has its packages from."""
    lines = (base / SOURCES).read_text().splitlines()
    return {urllib.parse.urlsplit(line.split()[1]).hostname or "" for line in lines}
