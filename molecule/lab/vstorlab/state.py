"""One lab on disk: /var/lib/vstor-lab/NAME. Everything a lab is can be found from there, so that a crashed one can be destroyed."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vstorlab.spec import LabError, LabSpec
from vstorlab.tools import run

ROOT = Path(os.environ.get("VSTOR_LAB_DIR", "/var/lib/vstor-lab"))
# Each lab has the /24 and the /64 of its number, which two labs never share: any number of them run at once.
NETWORK = os.environ.get("VSTOR_LAB_NETWORK", "10.86.{number}.0/24")
NETWORK6 = os.environ.get("VSTOR_LAB_NETWORK6", "fd86:0:0:{number}::/64")
NUMBERS = range(1, 255)
FIRST_HOST = 11
NAME = re.compile(r"^[a-z][a-z0-9_-]{0,30}$")


@dataclass
class Host:
    """One host. `disks`: backing file by number; a disk that was pulled is no longer there."""

    name: str
    index: int
    disks: dict[int, str]
    groups: list[str]
    variables: dict[str, object]


@dataclass
class Lab:
    """A lab, as saved in lab.json."""

    name: str
    number: int
    base: str
    apt: str
    hosts: dict[str, Host]

    @property
    def directory(self) -> Path:
        """All files of the lab."""
        return ROOT / self.name

    @property
    def network(self) -> ipaddress.IPv4Network:
        """Its own."""
        return ipaddress.IPv4Network(NETWORK.format(number=self.number))

    @property
    def network6(self) -> ipaddress.IPv6Network:
        """Its own."""
        return ipaddress.IPv6Network(NETWORK6.format(number=self.number))

    @property
    def gateway(self) -> str:
        """This machine's address in the lab; there is no route beyond it."""
        return str(self.network[1])

    @property
    def bridge(self) -> str:
        """Name of the bridge, and of the nftables table with the partitions."""
        return f"vlab{self.number}"

    @property
    def key(self) -> Path:
        """Private key that opens every host of the lab."""
        return self.directory / "key"

    @property
    def known_hosts(self) -> Path:
        """Host keys."""
        return self.directory / "known_hosts"

    @property
    def inventory(self) -> Path:
        """For ansible-playbook -i."""
        return self.directory / "inventory" / "hosts.yml"

    @property
    def connections(self) -> Path:
        """Ansible's shared SSH connections (ControlPath): they end with the lab."""
        return self.directory / "ssh"

    def host(self, name: str) -> Host:
        """A host by name."""
        if name not in self.hosts:
            raise LabError(f"lab {self.name} has no host {name}; it has {', '.join(self.hosts)}")
        return self.hosts[name]

    def address(self, host: str) -> str:
        """IPv4 address of a host."""
        return str(self.network[FIRST_HOST + self.host(host).index])

    def address6(self, host: str) -> str:
        """IPv6 address of a host."""
        return str(self.network6[FIRST_HOST + self.host(host).index])

    def machine(self, host: str) -> str:
        """Name of the host on this machine, different in each lab."""
        return f"v{self.number}h{self.host(host).index}"

    def port(self, host: str) -> str:
        """The host's port on the bridge; systemd-nspawn chooses the name."""
        return f"vb-{self.machine(host)}"

    def host_directory(self, host: str) -> Path:
        """Overlay, console and process id of a host."""
        return self.directory / "hosts" / host

    def describe(self) -> dict[str, object]:
        """For programs."""
        return {
            "name": self.name,
            "network": str(self.network),
            "gateway": self.gateway,
            "inventory": str(self.inventory),
            "key": str(self.key),
            "known_hosts": str(self.known_hosts),
            "hosts": {
                h.name: {"address": self.address(h.name), "address6": self.address6(h.name), "disks": sorted(h.disks)}
                for h in self.hosts.values()
            },
        }

    def save(self) -> None:
        """Write lab.json, whole or not at all."""
        data = {
            "number": self.number,
            "base": self.base,
            "apt": self.apt,
            "hosts": [vars(h) for h in self.hosts.values()],
        }
        file = self.directory / "lab.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(data, indent=1))
        new.replace(file)

    @classmethod
    def load(cls, name: str) -> Lab:
        """A lab by name."""
        try:
            data = json.loads((ROOT / name / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError(f"there is no lab {name}; there are: {', '.join(labs()) or 'none'}") from None
        hosts = [Host(**{**h, "disks": {int(n): f for n, f in h["disks"].items()}}) for h in data["hosts"]]
        return cls(name, data["number"], data["base"], data["apt"], {h.name: h for h in hosts})

    @classmethod
    def new(cls, name: str, spec: LabSpec, base: Path) -> Lab:
        """Take a free number for a lab and save it."""
        if not NAME.fullmatch(name):
            raise LabError(
                f"{name!r} is no name for a lab: lower case letters, digits, dashes and underscores, at most 31"
            )
        with lock():
            if (ROOT / name).exists():
                raise LabError(f"there is a lab {name} already: destroy it first")
            hosts = {h.name: Host(h.name, i, {}, list(h.groups), h.variables) for i, h in enumerate(spec.hosts)}
            lab = cls(name, _free_number(), str(base), spec.apt, hosts)
            lab.directory.mkdir(mode=0o700)
            lab.save()
        return lab


def labs() -> list[str]:
    """Names of all labs of this machine."""
    return sorted(p.parent.name for p in ROOT.glob("*/lab.json"))


def _free_number() -> int:
    taken = {Lab.load(n).number for n in labs()}
    in_use = [
        ipaddress.ip_interface(f"{a['local']}/{a['prefixlen']}").network
        for i in json.loads(run("ip", "-j", "address"))
        for a in i["addr_info"]
    ]
    for number in NUMBERS:
        network = ipaddress.ip_network(NETWORK.format(number=number))
        if number not in taken and not any(network.overlaps(n) for n in in_use if n.version == network.version):
            return number
    raise LabError(f"no free network in {NETWORK}: set VSTOR_LAB_NETWORK")


@contextmanager
def lock() -> Iterator[None]:
    """One at a time takes numbers, builds bases."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
