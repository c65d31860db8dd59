"""What goes wrong in a data centre, on demand."""

from __future__ import annotations

import os
from pathlib import Path

from vstorlab import disks, hosts, network, supervise
from vstorlab.cgroups import ROOT as CGROUPS
from vstorlab.spec import LabError
from vstorlab.state import Lab
from vstorlab.tools import run


def partition(lab: Lab, here: list[str], there: list[str], one_way: bool) -> None:
    """Drop every frame between two sets of hosts, or only from the first to the second; holds over reboots, until `heal`.
    This machine still reaches all."""
    if there == ["all"]:
        there = [h for h in lab.hosts if h not in here]
    for host in [*here, *there]:
        lab.host(host)
    pairs = [(a, b) for a in here for b in there if a != b]
    network.cut(lab, pairs if one_way else [*pairs, *((b, a) for a, b in pairs)])


def heal(lab: Lab) -> None:
    """End all partitions."""
    network.mend(lab)


def fill(lab: Lab, host: str, path: str, leave: int) -> None:
    """Fill the file system of `path` on a host, leaving `leave` bytes. The file is PATH/lab-fill."""
    blocks, size = run(*hosts.ssh(lab, host), f"stat --file-system --format %a:%S {path}").split(":")
    free = int(blocks) * int(size)
    if free <= leave:
        raise LabError(f"{path} on {host} has only {free} bytes free")
    run(*hosts.ssh(lab, host), f"fallocate --length {free - leave} {path}/lab-fill")


def slow_disk(lab: Lab, host: str, disk: int, bps: int, iops: int) -> None:
    """Throttle a disk for all processes of its host. What is written through the page cache is not throttled; chunk servers write directly."""
    group = next((g for g in supervise.groups(lab, host) if g.is_relative_to(CGROUPS / "blkio")), None)
    if group is None or not group.exists():
        raise LabError(f"{host} is off, or this machine has no blkio cgroups (v1), by which disks are throttled")
    number = os.stat(_device(lab, host, disk)).st_rdev
    for kind, value in (("bps", bps), ("iops", iops)):
        for way in ("read", "write"):
            (group / f"blkio.throttle.{way}_{kind}_device").write_text(f"{os.major(number)}:{os.minor(number)} {value}")


def pull_disk(lab: Lab, host: str, disk: int) -> None:
    """Take a disk out of a running host: its XFS shuts down (every access fails with EIO, as when a device vanishes), then the device goes."""
    name = _device(lab, host, disk)
    inside = _inside(supervise.leader(lab, host))
    number = os.stat(name).st_rdev
    for target in _mounts_of(supervise.leader(lab, host), f"{os.major(number)}:{os.minor(number)}"):
        run(*inside, "xfs_io", "-x", "-c", "shutdown", target)
    lab.hosts[host].disks.pop(disk)
    lab.save()
    hosts.write_disk_files(lab, host)
    run(*inside, "umount", "--lazy", name)
    run(*inside, "rm", name)
    run(*inside, "udevadm", "control", "--reload")
    run(
        *inside,
        "udevadm",
        "trigger",
        "--action=remove",
        "--subsystem-match=block",
        f"--sysname-match={Path(name).name}",
    )


def insert_disk(lab: Lab, host: str, size: int) -> int:
    """Put a new, empty disk into a host, running or not. Returns its number."""
    lab.host(host)
    number = disks.make(lab, host, size)
    lab.save()
    if supervise.running(lab, host) is not None:
        hosts.write_disk_files(lab, host)
        name = _device(lab, host, number)
        device = os.stat(name).st_rdev
        inside = _inside(supervise.leader(lab, host))
        run(*inside, "mknod", "--mode=0660", name, "b", str(os.major(device)), str(os.minor(device)))
        run(*inside, "chgrp", "disk", name)
        run(*inside, "udevadm", "control", "--reload")
        run(
            *inside,
            "udevadm",
            "trigger",
            "--action=add",
            "--settle",
            "--subsystem-match=block",
            f"--sysname-match={Path(name).name}",
        )
    return number


def _device(lab: Lab, host: str, disk: int) -> str:
    file = lab.host(host).disks.get(disk)
    if file is None:
        raise LabError(
            f"{host} has no disk {disk}; it has {', '.join(str(n) for n in sorted(lab.hosts[host].disks)) or 'none'}"
        )
    return disks.device(lab, file)


def _inside(leader: int) -> list[str]:
    # Not the host's network and processes alone: udevadm talks to the host's udev through /run, and its uevents come by its network name space.
    return ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]


def _mounts_of(leader: int, device: str) -> list[str]:
    lines = Path(f"/proc/{leader}/mountinfo").read_text().splitlines()
    return [fields[4] for fields in (line.split() for line in lines) if fields[2] == device]
