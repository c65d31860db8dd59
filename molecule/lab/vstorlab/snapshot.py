"""What the hosts' files and disks are, to see that a run has written nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from vstorlab.spec import LabError
from vstorlab.state import Lab

# Written by a host that is only running, and by Ansible for looking.
OWN_LIFE = (
    "var/log",
    "var/tmp",
    "tmp",
    "run",
    "root/.ansible",
    "var/lib/systemd",
    "var/cache/ldconfig",
    "var/lib/dbus",
    "etc/machine-id",
)
SHOWN = 10


DISKS = "disks"


def take(lab: Lab, besides: tuple[str, ...] = ()) -> None:
    """Remember the state of all hosts, without the paths `besides` (from the root, as "var/lib/vstor"; DISKS: the contents of all disks), where
    running services write."""
    _file(lab).write_text(json.dumps({"besides": besides, "state": _state(lab, besides)}))


def compare(lab: Lab) -> None:
    """Raises LabError naming what differs from the remembered state, which is then forgotten; nothing remembered: nothing to say."""
    if not _file(lab).exists():
        return
    remembered = json.loads(_file(lab).read_text())
    before, now = remembered["state"], _state(lab, remembered["besides"])
    _file(lab).unlink()
    different = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if different:
        raise LabError(f"{len(different)} files or disks have changed: {', '.join(different[:SHOWN])}")


def _file(lab: Lab) -> Path:
    return lab.directory / "snapshot.json"


def _state(lab: Lab, besides: Iterable[str]) -> dict[str, list[int]]:
    found, ignored = {}, {*OWN_LIFE, *besides}
    for host in lab.hosts.values():
        upper = lab.host_directory(host.name) / "upper"
        for directory, names, files in os.walk(upper):
            inside = Path(directory).relative_to(upper)
            names[:] = [n for n in names if str(inside / n) not in ignored]
            for name in files:
                if str(inside / name) not in ignored:
                    found[f"{host.name}:/{inside / name}"] = _stat(Path(directory, name))
        for number, file in host.disks.items() if DISKS not in ignored else ():
            found[f"{host.name}: disk {number}"] = _stat(Path(file))
    return found


def _stat(path: Path) -> list[int]:
    stat = path.lstat()
    return [stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime_ns, stat.st_blocks]
