"""The file tree of each package, made from the wheels of the tree (build/wheelhouse).

DESIGN: pip unpacks all wheels into one environment, as `vstor_install_method: wheelhouse` has it on a host. Each file of it is then moved
into the tree of the one package it belongs to, by packages.toml; what no package names belongs to vstor-common, so nothing is lost.
Compiled bytecode is part of the packages and not checked against the sources (PEP 552), so that nothing is written below /opt/vstor at run
time, and a removed package leaves nothing there.
"""

from __future__ import annotations

import compileall
import gzip
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "python3.11"  # the wheels are of this version; packages.toml depends on it
PREFIX = Path("opt/vstor")
SITE = PREFIX / "lib" / PYTHON / "site-packages"
MANUALS = Path("usr/share/man/man8")
COMPLETION = Path("usr/share/bash-completion/completions/vstorctl")
UNITS = Path("usr/lib/systemd/system")
# Programs of a package are linked from here; the mount helper where mount(8) looks for it.
LINKS = {"mount.fuse.vstor": Path("usr/sbin/mount.fuse.vstor")}
INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


@dataclass(frozen=True)
class Package:
    """One entry of packages.toml; see there."""

    name: str
    summary: str
    description: str
    depends: dict[str, list[str]]
    programs: list[str]
    rest: bool = False
    service: str = ""
    init_script: str = ""
    units: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    distributions: list[str] = field(default_factory=list)


def read_packages() -> list[Package]:
    """packages.toml."""
    with (ROOT / "packaging" / "packages.toml").open("rb") as file:
        return [Package(**entry) for entry in tomllib.load(file)["package"]]


def stage(wheels: Path, work: Path, packages: list[Package], version: str, date: int) -> None:
    """Make work/stage/PACKAGE, the tree of each package, and work/conffiles/PACKAGE with its init script (deb only).

    Args:
        date: modification time of everything, in seconds since 1970.
    """
    if f"python{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        raise SystemExit(f"packages are made with {PYTHON}, this is {sys.version.split()[0]}")
    environment = work / "environment"
    site = environment / SITE
    _unpack(wheels, site, version)
    trees = {package.name: work / "stage" / package.name for package in packages}
    by_file = _owners(wheels, site, packages)
    rest = next(package.name for package in packages if package.rest)
    _generate(site, work, packages)
    for path in sorted(site.rglob("*")):
        if path.is_dir():
            continue
        source = _source_of(path.relative_to(site))
        target = trees[by_file.get(source, rest)] / SITE / path.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for package in packages:
        _programs(trees[package.name], trees[rest] / SITE, package)
        _documents(trees[package.name], package)
    _interpreter(trees[rest])
    shutil.rmtree(environment)
    _normalise(work, date)


def _unpack(wheels: Path, site: Path, version: str) -> None:
    """Install all wheels as the given version of vstor, compiled, without the installer's own records."""
    run = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*run, "--no-compile", "--target", site, *sorted(wheels.glob("*.whl"))], check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)
    for info in site.glob("*.dist-info"):
        for name in INSTALLER_FILES:
            (info / name).unlink(missing_ok=True)
    _set_version(site, version)
    # Only our own module: the libraries of manylinux wheels were rewritten by patchelf, which strip does not always survive.
    subprocess.run(["strip", "--strip-unneeded", *(site / "vstor").glob("*.so")], check=True)
    compiled = compileall.compile_dir(
        site,
        quiet=1,
        stripdir=str(site),
        prependdir=f"/{SITE}",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise SystemExit("a module of the wheels does not compile")


def _set_version(site: Path, version: str) -> None:
    """Have the program and its metadata say `version`: `make packages VERSION=…` builds the tree as another version."""
    info = next(site.glob("vstor-*.dist-info"))
    for file, pattern in (
        (site / "vstor" / "__init__.py", r'(?<=^__version__ = ").*(?="$)'),
        (info / "METADATA", r"(?<=^Version: ).*$"),
    ):
        text, count = re.subn(pattern, version, file.read_text(), count=1, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"{file}: no version in it")
        file.write_text(text)
    info.rename(info.with_name(f"vstor-{version}.dist-info"))


def _owners(wheels: Path, site: Path, packages: list[Package]) -> dict[Path, str]:
    """File below site-packages -> package, for all that does not go into the rest.

    Raises SystemExit for a name of packages.toml that does not exist: a dependency was renamed or dropped.
    """
    found: dict[Path, str] = {}
    for package in packages:
        for module in package.modules:
            directory = site / "vstor" / module
            if not directory.is_dir():
                raise SystemExit(f"packages.toml: {package.name}: there is no vstor.{module}")
            found |= {file.relative_to(site): package.name for file in directory.rglob("*")}
        for distribution in package.distributions:
            wheel = list(wheels.glob(f"{distribution}-*.whl"))
            if len(wheel) != 1:
                raise SystemExit(f"packages.toml: {package.name}: there is no wheel of {distribution}")
            with zipfile.ZipFile(wheel[0]) as archive:
                found |= {Path(name): package.name for name in archive.namelist()}
    return found


def _source_of(path: Path) -> Path:
    """The module that a compiled file belongs to; other files themselves."""
    if path.parent.name != "__pycache__":
        return path
    return path.parent.parent / (path.name.split(".", 1)[0] + ".py")


def _generate(site: Path, work: Path, packages: list[Package]) -> None:
    """Manual pages, completion, units and init scripts, made by the program itself, shared out to the packages."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    pages = work / "pages"
    pages.mkdir()
    run("-m", "vstor.ctl.manpages", str(pages))
    programs = {program: package.name for package in packages for program in package.programs}
    rest = next(package.name for package in packages if package.rest)
    for page in sorted(pages.iterdir()):
        tree = work / "stage" / programs.get(page.stem, rest)
        _write(tree / MANUALS / f"{page.name}.gz", gzip.compress(page.read_bytes(), 9, mtime=0))
    shutil.rmtree(pages)
    _write(work / "stage" / rest / COMPLETION, run("-m", "vstor.ctl.completion").encode())
    templates = {f"{name}@.service" for name in run("-c", _PROGRAMS).split()}
    for unit_file in sorted((site / "vstor/ctl/units").iterdir()):
        if unit_file.name not in templates:
            _write(work / "stage" / rest / UNITS / unit_file.name, unit_file.read_bytes())
    for package in packages:
        for kind in package.units:
            # As vstorctl would write it on a host: it leaves out its own copy where this one says the same.
            text = run("-c", _UNIT, kind, f"/{PREFIX}/bin/vstorctl")
            name, _, unit = text.partition("\n")
            _write(work / "stage" / package.name / UNITS / name, unit.encode())
        if package.init_script:
            text = run("-c", _INIT_SCRIPT, package.init_script, f"/{PREFIX}/bin/vstorctl")
            _write(work / "conffiles" / package.name / package.init_script, text.encode())


_PROGRAMS = "from vstor.ctl import service_files; print(*service_files.PROGRAMS.values())"
_UNIT = """
import sys
from vstor.ctl import service_files
print(service_files.PROGRAMS[sys.argv[1]] + "@.service")
print(service_files.systemd_unit(sys.argv[1], [sys.argv[2]], "vstor"), end="")
"""
_INIT_SCRIPT = """
import sys
from vstor.ctl import initd
print(initd.script(sys.argv[1], [sys.argv[2]]), end="")
"""


def _programs(tree: Path, common_site: Path, package: Package) -> None:
    """The commands of a package, from the entry points of the wheel, and links to them on PATH."""
    info = next(common_site.glob("vstor-*.dist-info"))
    entries = dict(re.findall(r"^(\S+) = (\S+)$", (info / "entry_points.txt").read_text(), flags=re.MULTILINE))
    for program in package.programs:
        module, _, function = entries[program].partition(":")
        text = f"#!/{PREFIX}/bin/python\nimport sys\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        _write(tree / PREFIX / "bin" / program, text.encode())
        _link(tree / LINKS.get(program, Path("usr/bin") / program), f"/{PREFIX}/bin/{program}")


def _documents(tree: Path, package: Package) -> None:
    """Licence and changes, where distributions have them."""
    documents = tree / "usr/share/doc" / package.name
    _write(documents / "copyright", b"License: Apache-2.0\n\n" + (ROOT / "LICENSE").read_bytes())
    _write(documents / "changelog.gz", gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), 9, mtime=0))


def _interpreter(tree: Path) -> None:
    """A virtual environment of the system's Python (PEP 405), without an installer in it; user and directories."""
    _link(tree / PREFIX / "bin" / PYTHON, f"/usr/bin/{PYTHON}")
    _link(tree / PREFIX / "bin" / "python3", PYTHON)
    _link(tree / PREFIX / "bin" / "python", PYTHON)
    _write(tree / PREFIX / "pyvenv.cfg", b"home = /usr/bin\ninclude-system-site-packages = false\n")
    for directory in ("sysusers.d", "tmpfiles.d"):
        _write(tree / "usr/lib" / directory / "vstor.conf", (ROOT / "packaging" / f"{directory}.conf").read_bytes())


def _normalise(work: Path, date: int) -> None:
    """The same modes and times whoever builds: wheels carry any, and only programs and scripts are executable."""
    for path in work.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" or "conffiles" in path.parts else 0o644)
        os.utime(path, (date, date), follow_symlinks=False)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
