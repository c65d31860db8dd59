"""One host of a cluster, looked at as a careful operator would: `verify_host.py CLUSTER ADDRESS`, LAB_SECRET in the environment; run as root.

Prints every problem on a line of its own and exits 1 when there is one.
"""

import ipaddress
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

CLUSTER, ADDRESS = sys.argv[1:]
SECRET = os.environ.pop("LAB_SECRET").encode()
PLACES = (
    "/etc/vstor",
    "/var/lib/vstor",
    "/run/vstor",
    "/var/log/vstor",
    "/vstor",
    "/srv",
    "/chunks",
    "/journals",
    "/opt/vstor",
)
UNITS = {"etcd": "vstor-etcd", "mds": "vstor-mdsd", "cs": "vstor-csd", "mount": "vstor-mount"}
BIG = 16 << 20  # chunk files and journals of chunk servers hold no secrets of ours in clear text: not read
problems: list[str] = []


def run(*argv: str) -> str:
    """Output of a command."""
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, errors="replace", check=False).stdout


def services() -> list[dict]:
    """What the program says runs here."""
    return [s for s in json.loads(run("vstorctl", "list-services", "--format", "json")) if s["cluster"] == CLUSTER]


def check_units(found: list[dict]) -> None:
    """All services are active units, enabled at boot, and servers are confined and not root."""
    if failed := run("systemctl", "--failed", "--plain", "--no-legend").split():
        problems.append(f"failed units: {failed}")
    for service in found:
        unit = f"{UNITS[service['kind']]}@{CLUSTER}.{service['id']}.service"
        values = dict(
            line.split("=", 1)
            for line in run("systemctl", "show", "-p", "ActiveState,UnitFileState,MainPID,NRestarts", unit).splitlines()
        )
        if values["ActiveState"] != "active":
            problems.append(f"{unit} is {values['ActiveState']}")
            continue
        if values["UnitFileState"] != "enabled":
            problems.append(f"{unit} does not start at boot")
        if service["kind"] == "mount":
            continue
        status = dict(line.split(":", 1) for line in Path(f"/proc/{values['MainPID']}/status").read_text().splitlines())
        wanted = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16}
        for name, value in wanted.items():
            if status[name].strip() != value:
                problems.append(f"{unit}: {name} is {status[name].strip()}, not {value}")
        if "0" in status["Uid"].split():
            problems.append(f"{unit} runs as root")


def check_files() -> None:
    """Nothing that everybody may write; no secret that everybody may read."""
    for place in PLACES:
        for directory, names, files in os.walk(place):
            for name in [*names, *files]:
                path = Path(directory, name)
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    continue
                if mode & stat.S_IWOTH:
                    problems.append(f"{path}: everybody may write it")
                if stat.S_ISREG(mode) and path.stat().st_size < BIG:
                    data = path.read_bytes()
                    if SECRET in data:
                        problems.append(f"{path}: holds the password")
                    if mode & stat.S_IROTH and re.search(
                        rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----\s*$", data, re.MULTILINE
                    ):
                        problems.append(f"{path}: a private key that everybody may read")


def check_ports() -> None:
    """Servers listen on the address they were given and nowhere else."""
    for line in run("ss", "--tcp", "--udp", "--listening", "--numeric", "--processes", "--no-header").splitlines():
        local, owner = line.split()[4], line.split()[-1]
        address = local.rpartition(":")[0].strip("[]").partition("%")[0]
        if re.search(r'"(vstor|etcd)', owner) and (
            address == "*" or ipaddress.ip_address(address) != ipaddress.ip_address(ADDRESS)
        ):
            problems.append(f"{owner} listens on {local}")


def check_leaks() -> None:
    """The password is in no command line, no environment, no journal and no log."""
    own = {os.getpid(), os.getppid()}
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue  # it ended
            # Ansible's own way of starting this script has it; nothing of vstor may.
            if SECRET in data and int(process.name) not in own and b"LAB_SECRET" not in data:
                problems.append(f"process {process.name}: the password is in its {name}: {data.split(bytes(1))[0]!r}")
    if SECRET.decode() in run("journalctl", "--no-pager", "-o", "cat"):
        problems.append("the journal has the password")


def check_status() -> None:
    """The cluster answers to this host."""
    status = json.loads(run("vstorctl", "-c", CLUSTER, "status", "--format", "json") or "{}")
    if not status.get("mds"):
        problems.append(f"vstorctl status does not answer: {status}")


def main() -> None:
    """All of it."""
    found = services()
    if not found:
        problems.append(f"no service of cluster {CLUSTER} is known here")
    check_units(found)
    check_files()
    check_ports()
    check_leaks()
    check_status()
    print("\n".join(problems) or f"{len(found)} services, all well")
    sys.exit(bool(problems))


main()
