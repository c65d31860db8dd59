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


def program(kind: str) -> list[str]:
    """Start of the command line: the program beside this Python, else (run from a source tree) the module, else one on PATH. Raises CONFIG."""
    name = PROGRAMS[kind]
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return [str(beside)]
    if importlib.util.find_spec(MODULES[kind]) is not None:
        return [sys.executable, "-m", MODULES[kind]]
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
