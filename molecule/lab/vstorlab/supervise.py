"""The process that stands for a host's power supply and firmware: it boots the host, and boots it again when it reboots."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from vstorlab import base, cgroups, disks, network
from vstorlab.spec import LabError
from vstorlab.state import Lab
from vstorlab.tools import is_program, kill, read_pid, wait_until

# Exit status of systemd-nspawn --keep-unit when the host asked for a reboot.
REBOOT = 133


def _pid_file(lab: Lab, host: str) -> Path:
    return lab.host_directory(host) / "supervise.pid"


def running(lab: Lab, host: str) -> int | None:
    """Process id of the host's supervisor, None when the host is off."""
    pid = read_pid(_pid_file(lab, host))
    return pid if pid is not None and is_program(pid, ["supervise", lab.name, host]) else None


def groups(lab: Lab, host: str) -> list[Path]:
    """cgroups of the host's processes."""
    file = lab.host_directory(host) / "cgroups"
    return [Path(line) for line in file.read_text().splitlines()] if file.exists() else []


def leader(lab: Lab, host: str) -> int:
    """Process id, here, of the host's PID 1. Raises LabError when the host is off."""
    nspawn = read_pid(lab.host_directory(host) / "nspawn.pid")
    if running(lab, host) is None or nspawn is None:
        raise LabError(f"{host} is off")
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
    except FileNotFoundError:
        children = []
    if not children:
        raise LabError(f"{host} is booting or going down")
    return int(children[0])


def start(lab: Lab, host: str) -> None:
    """Begin to boot a host that is off."""
    with (lab.host_directory(host) / "console.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve().parents[1] / "lab.py"), "supervise", lab.name, host],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    wait_until(lambda: running(lab, host) is not None, 30, f"the supervisor of {host} starts")


def kill_host(lab: Lab, host: str) -> None:
    """End a host and its supervisor at once, whatever they do."""
    pid = running(lab, host)
    if pid is not None:
        kill(pid, signal.SIGKILL)
    cgroups.end(groups(lab, host))


def main(lab: Lab, host: str) -> None:
    """Run until the host is switched off."""
    _pid_file(lab, host).write_text(str(os.getpid()))
    own = cgroups.plan(f"vstor-lab-{lab.name}-{host}")
    (lab.host_directory(host) / "cgroups").write_text("".join(f"{g}\n" for g in own))
    again = True
    while again:
        cgroups.make(own)
        network.unplug(lab, host)
        # Read again at each boot: disks come and go.
        process = subprocess.Popen(
            command(Lab.load(lab.name), host),
            env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"},
            preexec_fn=lambda: cgroups.join(own),  # this process has one thread
        )
        (lab.host_directory(host) / "nspawn.pid").write_text(str(process.pid))
        again = process.wait() == REBOOT
        cgroups.end(own)
    _pid_file(lab, host).unlink()


def command(lab: Lab, host: str) -> list[str]:
    """How a host is booted. /sys is writable, so that udev and with it device units and /dev/disk/by-uuid work as on a real server."""
    return [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--machine={lab.machine(host)}", f"--hostname={host}",
        f"--directory={lab.host_directory(host) / 'root'}", f"--network-bridge={lab.bridge}", "--resolv-conf=off", "--timezone=off",
        "--link-journal=no", "--console=pipe", "--bind=/dev/fuse",
        # The chunk servers use it; systemd-nspawn of Debian 12 does not know it yet.
        "--system-call-filter=io_uring_setup io_uring_enter io_uring_register",
        # The XFS tools and the daemons' locks want what a server has.
        "--capability=CAP_SYS_RAWIO,CAP_IPC_LOCK,CAP_WAKE_ALARM", "--rlimit=RLIMIT_MEMLOCK=infinity",
        *(f"--bind={disks.device(lab, file)}" for file in lab.hosts[host].disks.values()),
        base.INIT,
    ]  # fmt: skip
