"""Disks of hosts: sparse files of the lab behind loop devices of this machine, which the host sees under the same name."""

from __future__ import annotations

import json
from pathlib import Path

from vstorlab.spec import LabError
from vstorlab.state import Lab
from vstorlab.tools import run

LOOP_MAJOR = 7


def make(lab: Lab, host: str, size: int) -> int:
    """A new disk of `size` bytes for a host, with a number that none of its disks ever had. Not saved."""
    directory = lab.directory / "disks"
    directory.mkdir(exist_ok=True)
    number = 1
    while (file := directory / f"{host}-{number}.img").exists():
        number += 1
    with file.open("xb") as new:
        new.truncate(size)
    lab.hosts[host].disks[number] = str(file)
    attach(str(file))
    return number


def attached() -> dict[str, str]:
    """Device by backing file, of all loop devices."""
    text = run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE")
    return {d["back-file"]: d["name"] for d in (json.loads(text)["loopdevices"] if text.strip() else [])}


def attach(file: str) -> str:
    """The loop device of a file; made when there is none. Direct: what the host flushes is not only in this machine's memory."""
    return attached().get(file) or run("losetup", "--find", "--show", "--direct-io=on", file).strip()


def device(lab: Lab, file: str) -> str:
    """The loop device of a lab's disk. Raises LabError when it is not attached."""
    name = attached().get(file)
    if name is None:
        raise LabError(f"{Path(file).name} of lab {lab.name} has no loop device: power the host off and on")
    return name


def detach_all(lab: Lab) -> None:
    """Give all loop devices of the lab back."""
    for file, name in attached().items():
        if Path(file.removesuffix(" (deleted)")).is_relative_to(lab.directory):
            run("losetup", "--detach", name)


def udev_rules(lab: Lab, host: str) -> str:
    """Stable names of a host's disks: /dev/disk/by-id/lab-HOST-N."""
    return "".join(
        f'ACTION!="remove", KERNEL=="{Path(device(lab, file)).name}", SYMLINK+="disk/by-id/lab-{host}-{number}"\n'
        for number, file in lab.hosts[host].disks.items()
    )


def udev_trigger(lab: Lab, host: str) -> str:
    """Drop-in of the host's systemd-udev-trigger.service: its network and its disks, not those of this machine and of other hosts."""
    names = "".join(f" --sysname-match={Path(device(lab, file)).name}" for file in lab.hosts[host].disks.values())
    lines = ["[Service]", "ExecStart=", "ExecStart=udevadm trigger --action=add --subsystem-match=net"]
    if names:
        lines.append(f"ExecStart=udevadm trigger --action=add --subsystem-match=block{names}")
    return "\n".join(lines) + "\n"
