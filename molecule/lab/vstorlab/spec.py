"""What a lab is made of, as asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

# vb-<machine> must fit into a network interface's 15 characters; machines are called v<lab>h<index>.
MAX_HOSTS = 50
HOST_NAME = re.compile(r"^[a-z][a-z0-9-]{0,30}$")


class LabError(Exception):
    """One line for the user."""


@dataclass(frozen=True)
class HostSpec:
    """disks: sizes in bytes. groups: of the inventory. variables: of the host, in the inventory."""

    name: str
    disks: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    variables: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LabSpec:
    """base: a variant of base.VARIANTS. apt: "proxy" (Debian's packages through this machine) or "none" (no way out).
    variables: of all hosts, in the inventory."""

    hosts: tuple[HostSpec, ...]
    base: str
    apt: str
    variables: dict[str, object]


def parse_size(text: str | int) -> int:
    """Bytes of "512M", "2G", 4096."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", str(text))
    if match is None:
        raise LabError(f"{text!r} is no size: give digits and K, M, G or T")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def parse_spec(text: str) -> LabSpec:
    """Read {base, apt, variables: {…}, hosts: [{name, disks: [SIZE…], groups: […], variables: {…}}]}, with JSON being YAML too."""
    try:
        data = yaml.safe_load(text)
        if not isinstance(data, dict):
            raise TypeError("no mapping")
        known = {"base", "apt", "hosts", "variables"}
        if extra := set(data) - known:
            raise LabError(f"unknown in the spec: {', '.join(sorted(extra))}; known: {', '.join(sorted(known))}")
        hosts = tuple(
            HostSpec(
                name=h["name"],
                disks=tuple(parse_size(d) for d in h.get("disks", [])),
                groups=tuple(h.get("groups", [])),
                variables=dict(h.get("variables", {})),
            )
            for h in data["hosts"]
        )
    except (yaml.YAMLError, KeyError, TypeError) as exc:
        raise LabError(f"the spec cannot be read: {exc!r}") from None
    names = [h.name for h in hosts]
    if not hosts or len(hosts) > MAX_HOSTS or len(set(names)) != len(names):
        raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts with different names, not {names}")
    for name in names:
        if not HOST_NAME.fullmatch(name):
            raise LabError(f"{name!r} is no host name: lower case letters, digits and dashes, at most 31")
    apt = data.get("apt", "proxy")
    if apt not in ("proxy", "none"):
        raise LabError(f"apt is proxy or none, not {apt!r}")
    return LabSpec(hosts, data.get("base", "prepared"), apt, dict(data.get("variables", {})))
