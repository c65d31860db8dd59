"""Making, switching and removing hosts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from vstorlab import base, disks, network, snapshot, supervise
from vstorlab.spec import LabError, LabSpec
from vstorlab.state import ROOT, Lab, lock
from vstorlab.tools import kill, run, wait_until

# A machine that is busy with other things boots hosts slowly; that is no fault of theirs.
BOOT_S = 400.0
SHUTDOWN_S = 180.0
# systemd's signals to its PID 1.
POWEROFF = signal.SIGRTMIN + 4
REBOOT = signal.SIGRTMIN + 5


def create(name: str, spec: LabSpec) -> Lab:
    """Make a lab and boot its hosts. What failed half-way is removed again."""
    network.check_programs()
    lab = Lab.new(name, spec, base.ensure(spec.base))
    try:
        network.make_bridge(lab)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", lab.key)
        for host in spec.hosts:
            for size in host.disks:
                disks.make(lab, host.name, size)
        lab.save()
        for host in spec.hosts:
            _make_files(lab, host.name)
        _write_inventory(lab, spec.variables)
        power_on(lab, list(lab.hosts))
        _each(lab.hosts, lambda h: _check_units(lab, h))
        snapshot.take(lab)
    except BaseException as exc:
        consoles = "".join(_console(lab, h) for h in lab.hosts) if isinstance(exc, LabError) else ""
        destroy(name)
        if consoles:
            raise LabError(f"{exc}\n{consoles}") from None
        raise
    return lab


def destroy(name: str) -> None:
    """Stop and remove everything of a lab; one that is not there is fine."""
    if not (ROOT / name).exists():
        return
    if not (ROOT / name / "lab.json").exists():
        shutil.rmtree(ROOT / name)
        return
    lab = Lab.load(name)
    _each(lab.hosts, lambda h: supervise.kill_host(lab, h))
    network.stop_proxy(lab)
    network.mend(lab)
    for host in lab.hosts:
        _unmount(lab, host)
    disks.detach_all(lab)
    network.remove_bridge(lab)
    with lock():
        shutil.rmtree(lab.directory)


def power_on(lab: Lab, names: list[str]) -> None:
    """Boot hosts that are off; return when all can be reached."""
    _forget_connections(lab)
    network.make_bridge(lab)
    if lab.apt == "proxy":
        network.start_proxy(lab)
    for host in names:
        if supervise.running(lab, host) is None:
            supervise.kill_host(lab, host)  # what a supervisor that was killed left
            _mount(lab, host)
            for file in lab.hosts[host].disks.values():
                disks.attach(file)
            write_disk_files(lab, host)
            network.unplug(lab, host)
            supervise.start(lab, host)
    _each(names, lambda h: _wait_reachable(lab, h))


def power_off(lab: Lab, names: list[str]) -> None:
    """Kill hosts at once. What their disks were told to flush is on them; what only a host had in memory is lost, as at a power cut
    (this machine may still write what XFS had given to the loop device: see README.md)."""

    def cut(host: str) -> None:
        network.unplug(lab, host)
        supervise.kill_host(lab, host)

    _each(names, cut)


def shutdown(lab: Lab, names: list[str]) -> None:
    """Shut hosts down in order."""
    for host in names:
        if supervise.running(lab, host) is not None:
            kill(supervise.leader(lab, host), POWEROFF)
    for host in names:
        wait_until(lambda h=host: supervise.running(lab, h) is None, SHUTDOWN_S, f"{host} shuts down")


def reboot(lab: Lab, names: list[str]) -> None:
    """Reboot hosts in order."""
    old = {host: supervise.leader(lab, host) for host in names}
    _forget_connections(lab)
    for pid in old.values():
        kill(pid, REBOOT)

    def again(host: str) -> None:
        wait_until(lambda: not Path(f"/proc/{old[host]}").exists(), SHUTDOWN_S, f"{host} goes down")
        _wait_reachable(lab, host)

    _each(names, again)


def ssh(lab: Lab, host: str) -> list[str]:
    """The command that opens a shell on a host; append a command."""
    return [
        "ssh", "-i", str(lab.key), "-o", f"UserKnownHostsFile={lab.known_hosts}", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", f"root@{lab.address(host)}",
    ]  # fmt: skip


def ssh_interactive(lab: Lab, host: str, command: list[str]) -> int:
    """A shell on a host, or a command; its exit status."""
    return subprocess.run([*ssh(lab, host), *command], check=False).returncode


def write_disk_files(lab: Lab, host: str) -> None:
    """Tell the host's udev of its disks: loop devices have other names after each attachment."""
    root = lab.host_directory(host) / "root"
    _write(root / "etc/udev/rules.d/90-lab.rules", disks.udev_rules(lab, host))
    _write(root / "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf", disks.udev_trigger(lab, host))


def _forget_connections(lab: Lab) -> None:
    """Ansible's shared SSH connections to hosts that went away hang until TCP gives up: it makes new ones."""
    lab.connections.mkdir(exist_ok=True)
    for file in lab.connections.iterdir():
        file.unlink(missing_ok=True)


def _each(names: Iterable[str], action: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(max_workers=20) as pool:
        for done in [pool.submit(action, n) for n in names]:
            done.result()


def _write(file: Path, text: str, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def _mount(lab: Lab, host: str) -> None:
    directory = lab.host_directory(host)
    if not (directory / "root").is_mount():
        options = f"lowerdir={lab.base},upperdir={directory / 'upper'},workdir={directory / 'work'}"
        run("mount", "-t", "overlay", "-o", options, "vstor-lab", directory / "root")


def _unmount(lab: Lab, host: str) -> None:
    root = lab.host_directory(host) / "root"
    if root.is_mount():
        # Lazily: a program of this machine that looks at all mounts may be inside for a moment.
        run("umount", "--lazy", root)


def _make_files(lab: Lab, host: str) -> None:
    directory = lab.host_directory(host)
    for name in ("upper", "work", "root"):
        (directory / name).mkdir(parents=True)
    # debootstrap makes / world-readable; so must the overlay's be.
    (directory / "upper").chmod(0o755)
    _mount(lab, host)
    root = directory / "root"
    _write(root / "etc/hostname", f"{host}\n")
    _write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {h}" for h in lab.hosts for address in (lab.address(h), lab.address6(h))]
    _write(root / "etc/hosts", "\n".join(lines) + "\n")
    _write(
        root / "etc/systemd/network/10-lab.network",
        f"[Match]\nName=host0\n[Network]\nAddress={lab.address(host)}/{lab.network.prefixlen}\n"
        f"Address={lab.address6(host)}/{lab.network6.prefixlen}\nIPv6AcceptRA=no\nLinkLocalAddressing=ipv6\n",
    )
    _write(root / "etc/apt/apt.conf.d/90-lab", network.apt_proxy(lab))
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    _write(root / "root/.ssh/authorized_keys", lab.key.with_suffix(".pub").read_text(), 0o600)
    key = root / "etc/ssh/ssh_host_ed25519_key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host, "-f", key)
    with lab.known_hosts.open("a") as file:
        file.write(f"{lab.address(host)},{lab.address6(host)},{host} {key.with_suffix('.pub').read_text()}")


def _write_inventory(lab: Lab, variables: dict[str, object]) -> None:
    hosts: dict[str, object] = {}
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for host in lab.hosts.values():
        hosts[host.name] = {
            "ansible_host": lab.address(host.name),
            "vstor_address": lab.address(host.name),
            "lab_address6": lab.address6(host.name),
            "lab_disks": [f"/dev/disk/by-id/lab-{host.name}-{n}" for n in host.disks],
            **host.variables,
        }
        for group in host.groups:
            groups.setdefault(group, {"hosts": {}})["hosts"][host.name] = None
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(lab.key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab.known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
        "ansible_control_path_dir": str(lab.connections),
        "ansible_python_interpreter": "/usr/bin/python3",
        **variables,
    }
    text = yaml.safe_dump({"all": {"hosts": hosts, "vars": common, "children": groups}}, sort_keys=False)
    _write(lab.inventory, text)


def _wait_reachable(lab: Lab, host: str) -> None:
    def answers() -> bool:
        if supervise.running(lab, host) is None:
            raise LabError(f"{host} went off while it was booting\n{_console(lab, host)}")
        try:
            socket.create_connection((lab.address(host), 22), timeout=1).close()
        except OSError:
            return False
        return subprocess.run([*ssh(lab, host), "true"], capture_output=True, check=False).returncode == 0

    wait_until(answers, BOOT_S, f"{host} answers to SSH")


def _check_units(lab: Lab, host: str) -> None:
    done = subprocess.run(
        [*ssh(lab, host), "systemctl is-system-running --wait; systemctl --failed --plain --no-legend"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.startswith("running"):
        raise LabError(f"{host} booted badly: {' '.join(done.stdout.split())} {done.stderr.strip()}")


def _console(lab: Lab, host: str) -> str:
    """The last words of a host: its console, and its journal as far as it is on its disk."""
    directory = lab.host_directory(host)
    console = directory / "console.log"
    lines = console.read_text(errors="replace").splitlines()[-15:] if console.exists() else []
    journal = directory / "upper/var/log/journal"
    if journal.exists():
        lines += run("journalctl", "--directory", journal, "--lines=40", "--no-pager", "--quiet").splitlines()
    return "".join(f"{host}: {line}\n" for line in lines)
