"""Where the daemons' programs are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from vstor.codes_gen import ErrorCode
from vstor.ctl.service_files import PROGRAMS
from vstor.errors import VstorError

MODULES = {
    "etcd": "vstor.mds.etcd_member",
    "mds": "vstor.mds.main",
    "cs": "vstor.cs.main",
    "mount": "vstor.client.main",
}
# Parts of the program that a package of their own brings (packaging/packages.toml): not every node has them.
PACKAGES = {
    "mds": "vstor-metadata-server",
    "meta": "vstor-metadata-server",
    "cs": "vstor-chunk-server",
    "client": "vstor-client",
}


def not_installed(exc: ModuleNotFoundError) -> VstorError | None:
    """What an operator is told when a part of the program is not on this node; None: the missing module is none of ours."""
    parts = (exc.name or "").split(".")
    package = PACKAGES.get(parts[1]) if parts[0] == "vstor" and len(parts) > 1 else None
    if package is None:
        return None
    return VstorError(ErrorCode.CONFIG, f"{package} is not installed on this node — install that package")


def program(kind: str) -> list[str]:
    """Start of the command line: the program beside this Python, else (run from a source tree) the module, else one on PATH. Raises CONFIG."""
    name = PROGRAMS[kind]
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return [str(beside)]
    try:
        if importlib.util.find_spec(MODULES[kind]) is not None:
            return [sys.executable, "-m", MODULES[kind]]
    except ModuleNotFoundError as exc:  # of its parent: the part is not on this node
        raise not_installed(exc) or exc from None
    found = shutil.which(name)
    if found is None:
        raise VstorError(ErrorCode.CONFIG, f"{name} is not installed on this node — install its package")
    return [found]


def vstorctl() -> list[str]:
    """Start of vstorctl's own command line, for units, init scripts and mounts: absolute."""
    beside = Path(sys.executable).with_name("vstorctl")
    if os.access(beside, os.X_OK):
        return [str(beside)]
    return [sys.executable, "-m", "vstor.ctl.main"]
