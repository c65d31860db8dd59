"""A cgroup for each host in every hierarchy, below that of the process which started it: what a host runs is found and ended by it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from vstorlab.tools import kill, wait_until

ROOT = Path("/sys/fs/cgroup")
# A new group of cpuset takes no process before it was given processors, and nothing here needs one.
LEFT_OUT = {"cpuset"}


def plan(name: str) -> list[Path]:
    """The groups `name` below this process's own, one a hierarchy (v1, hybrid or v2)."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in LEFT_OUT:
            continue
        if controllers:
            mount = ROOT / controllers.removeprefix("name=")
        else:
            mount = ROOT / "unified" if (ROOT / "unified").is_dir() else ROOT
        if (mount / "cgroup.procs").exists():
            found.append(mount / path.lstrip("/") / name)
    return found


def make(groups: list[Path]) -> None:
    """Make them."""
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)


def join(groups: list[Path]) -> None:
    """Put this process into them."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def processes(groups: list[Path]) -> list[int]:
    """Process ids in the groups and below."""
    found: set[int] = set()
    for group in groups:
        for file in group.rglob("cgroup.procs"):
            try:
                found.update(int(p) for p in file.read_text().split())
            except OSError:
                continue  # the group went away meanwhile
    return sorted(found)


def end(groups: list[Path]) -> None:
    """Kill all that is in the groups, lowest id first (a host's init takes the rest with it), and remove them."""

    def killed() -> bool:
        left = processes(groups)
        for pid in left:
            kill(pid, signal.SIGKILL)
        return not left

    wait_until(killed, 60, "the processes of a host end")
    for group in groups:
        for directory in sorted((p for p in [group, *group.rglob("*")] if p.is_dir()), reverse=True):
            # Killed processes leave a moment after they stop being listed.
            wait_until(lambda d=directory: _removed(d), 10, f"{directory} becomes empty")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
