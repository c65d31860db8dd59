# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""Filter inventory_problems: the mistakes of an inventory, as lines that name the variable to mend."""

from __future__ import annotations

import ipaddress
import re
import tomllib

DOCUMENTATION = r"""
name: inventory_problems
short_description: Find the mistakes of a vstor inventory
version_added: 0.1.0
description:
  - Checks groups and variables of all hosts against each other before anything is changed.
options:
  _input:
    description: Variables of all hosts, usually C(hostvars).
    type: dict
    required: true
  groups:
    description: Groups of the inventory, usually C(groups).
    type: dict
    required: true
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Nothing is wrong with the inventory
  ansible.builtin.assert:
    that: (hostvars | vstor.storage.inventory_problems(groups)) == []
"""

RETURN = r"""
_value:
  description: One line for each mistake, empty when there is none.
  type: list
  elements: str
"""

# What a variable is where the inventory does not set it: the same as in the roles' defaults.
DEFAULTS = {
    "vstor_install_method": "wheelhouse",
    "vstor_cluster_name": "vstor",
    "vstor_cluster_password": "",
    "vstor_cluster_config": {},
    "vstor_replicas": "3:2",
    "vstor_failure_domain": "host",
    "vstor_tier": 0,
    "vstor_mds_port": 2510,
    "vstor_mds_repository": "/var/lib/vstor/mds/1",
    "vstor_mds_allow_even": False,
    "vstor_etcd_endpoints": [],
    "vstor_cs_stores": [],
    "vstor_cs_disks": [],
    "vstor_disk_allow_format": False,
    "vstor_disk_named": [],
    "vstor_disk_wipe": [],
    "vstor_disk_size_min": "1G",
    "vstor_mount_point": "/mnt/vstor",
    "vstor_address": "",
    "vstor_location": "",
    "vstor_discovery": "",
}
METHODS = ("wheelhouse", "package")
GROUPS = ("etcd", "mds", "cs", "client")
DOMAINS = ("disk", "host", "rack", "row", "room")
REPLICAS_MAX = 15
NAME = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
REPLICAS = re.compile(r"([0-9]{1,2})(?::([0-9]{1,2}))?\Z")
# A repository below one of these would be lost, or would hurt, at the next boot or upgrade.
FORBIDDEN_PATHS = (
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/home",
    "/root",
)
FORBIDDEN_TREES = ("/dev", "/proc", "/sys", "/run", "/tmp", "/boot")


LOCATION = re.compile(r"[^\s.]*(\.[^\s.]*){0,2}\Z")
DISCOVERY_KEYS = {"sources", "dns", "mdns"}
DISCOVERY_SOURCES = ("bs.list", "dns", "mdns")


def location_problem(location):
    """What is wrong with `location` as ROOM.ROW.RACK, or an empty string."""
    if isinstance(location, str) and len(location) <= 256 and LOCATION.match(location):
        return ""
    return "is not ROOM.ROW.RACK without spaces, with at most 256 characters"


def discovery_problem(text):
    """What is wrong with `text` as /etc/vstor/discovery.toml, or an empty string. The programs on the host look at the rest of it."""
    if not isinstance(text, str):
        return "is not the text of a TOML file"
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return "is not TOML (%s)" % exc
    unknown = sorted(set(value) - DISCOVERY_KEYS)
    if unknown:
        return "has the unknown setting %s; known are %s" % (unknown[0], ", ".join(sorted(DISCOVERY_KEYS)))
    sources = value.get("sources", [])
    if not isinstance(sources, list) or any(source not in DISCOVERY_SOURCES for source in sources):
        return "has sources %r; known are %s" % (sources, ", ".join(DISCOVERY_SOURCES))
    return ""


def path_problem(path):
    """What is wrong with `path` as a directory of vstor, or an empty string."""
    if not isinstance(path, str) or not path.startswith("/"):
        return "is not an absolute path"
    if "//" in path or "/../" in path + "/" or "/./" in path + "/" or any(ord(c) < 32 for c in path):
        return "is not a plain path (no '..', '.', '//' or control characters)"
    clean = path.rstrip("/") or "/"
    if clean in FORBIDDEN_PATHS or any(clean.startswith(tree + "/") for tree in FORBIDDEN_TREES):
        return "is a system directory"
    return ""


def address_problem(address):
    """What is wrong with `address` as the IP address of a host, or an empty string."""
    try:
        parsed = ipaddress.ip_address(str(address))
    except ValueError:
        return "is not an IP address"
    if parsed.is_unspecified or parsed.is_multicast:
        return "is not the address of one host"
    if parsed.is_link_local:
        return "is a link-local address, which other hosts cannot use without an interface; give a routable one"
    if str(parsed) != str(address):
        return "is not in its usual form; write %s" % parsed
    return ""


def address_port_problem(text):
    """What is wrong with `text` as IP or IP:PORT (IPv6: [IP]:PORT), or an empty string."""
    host, port = str(text), ""
    if host.startswith("["):
        host, _bracket, port = host[1:].partition("]")
        port = port.lstrip(":")
    elif host.count(":") == 1:
        host, _colon, port = host.partition(":")
    if port and not (port.isdigit() and 1 <= int(port) <= 65535):
        return "has a bad port"
    return address_problem(host)


def cluster_problems(v):
    """Of the variables that all hosts share."""
    found = []
    if not NAME.match(str(v.get("vstor_cluster_name", ""))):
        found.append(
            "vstor_cluster_name: %r is not a cluster name; use 1 to 63 letters, digits, dashes and underscores"
            % (v.get("vstor_cluster_name"),)
        )
    if v.get("vstor_failure_domain") not in DOMAINS:
        found.append("vstor_failure_domain: %r is none of %s" % (v.get("vstor_failure_domain"), ", ".join(DOMAINS)))
    if v.get("vstor_tier") not in (0, 1, 2, 3):
        found.append("vstor_tier: %r is not a tier; use 0, 1, 2 or 3" % (v.get("vstor_tier"),))
    match = REPLICAS.match(str(v.get("vstor_replicas", "")))
    normal = int(match.group(1)) if match else 0
    minimum = int(match.group(2) or match.group(1)) if match else 0
    if not 1 <= minimum <= normal <= REPLICAS_MAX:
        found.append(
            'vstor_replicas: %r is not NORMAL[:MINIMUM] with 1 <= MINIMUM <= NORMAL <= %d; write for example "3:2", with the quotes'
            % (v.get("vstor_replicas"), REPLICAS_MAX)
        )
    password = str(v.get("vstor_cluster_password") or "")
    if "\n" in password:
        found.append("vstor_cluster_password: contains a line break")
    config = v.get("vstor_cluster_config")
    if not isinstance(config, dict):
        found.append("vstor_cluster_config: is not a mapping of settings to values")
    port = v.get("vstor_mds_port")
    if not str(port).isdigit() or not 1 <= int(port) <= 65533:
        found.append("vstor_mds_port: %r is not a port from 1 to 65533 (it and the two above it are used)" % (port,))
    return found


def group_problems(hostvars, groups):
    """Of the groups: enough hosts, and a sensible number of MDSs."""
    found = []
    for name in ("mds", "cs"):
        if not groups.get(name):
            found.append("group %s: is empty; name at least one host in it" % name)
    mds = groups.get("mds", [])
    if mds:
        first = hostvars[mds[0]]
        if len(mds) % 2 == 0 and not first.get("vstor_mds_allow_even", False):
            found.append(
                "group mds: an even number of hosts (%d) survives no more failures than one fewer; use 1, 3 or 5, or set vstor_mds_allow_even: true"
                % len(mds)
            )
        if not first.get("vstor_etcd_endpoints"):
            for host in sorted(set(groups.get("etcd", [])) ^ set(mds)):
                found.append(
                    "group etcd: %s is only in one of the groups etcd and mds; each MDS runs its etcd member, so put it in both, or name "
                    "an etcd cluster of your own in vstor_etcd_endpoints" % host
                )
    return found


def replica_problems(hostvars, groups):
    """Enough chunk servers in enough failure domains for the replicas that are asked for."""
    hosts = groups.get("cs", [])
    if not hosts:
        return []
    match = REPLICAS.match(str(hostvars[hosts[0]].get("vstor_replicas", "")))
    if not match:
        return []
    normal = int(match.group(1))
    stores = 0
    for host in hosts:
        disks = [
            d for d in hostvars[host].get("vstor_cs_disks") or [] if isinstance(d, dict) and d.get("use", "cs") == "cs"
        ]
        if any("filter" in disk and not (disk["filter"] or {}).get("count") for disk in disks):
            return []  # nobody knows yet how many disks that will be
        stores += len(hostvars[host].get("vstor_cs_stores") or [])
        stores += sum(int(disk["filter"]["count"]) if "filter" in disk else 1 for disk in disks)
    domain = hostvars[hosts[0]].get("vstor_failure_domain")
    have = {"disk": stores, "host": len(hosts)}.get(
        domain, len({str(hostvars[h].get("vstor_location", "")) for h in hosts})
    )
    if have < normal:
        return [
            "vstor_replicas: %d replicas need %d failure domains of kind %s, and the inventory has %d; add hosts, vstor_cs_disks or vstor_cs_stores, "
            "lower vstor_replicas, or choose a smaller vstor_failure_domain" % (normal, normal, domain, have)
        ]
    return []


def host_problems(host, v, groups):
    """Of the variables of one host."""
    found = []
    problem = address_problem(v.get("vstor_address", ""))
    if problem:
        found.append("vstor_address of %s: %r %s" % (host, v.get("vstor_address", ""), problem))
    for name, check in (("vstor_location", location_problem), ("vstor_discovery", discovery_problem)):
        problem = check(v.get(name))
        if problem:
            found.append("%s of %s: %r %s" % (name, host, v.get(name), problem))
    if host in groups.get("mds", []):
        problem = path_problem(v.get("vstor_mds_repository"))
        if problem:
            found.append("vstor_mds_repository of %s: %r %s" % (host, v.get("vstor_mds_repository"), problem))
    if host in groups.get("client", []):
        problem = path_problem(v.get("vstor_mount_point"))
        if problem:
            found.append("vstor_mount_point of %s: %r %s" % (host, v.get("vstor_mount_point"), problem))
    if host in groups.get("cs", []):
        found += store_problems(host, v)
    return found + nesting_problems(host, v, groups)


def store_problems(host, v):
    """Of the list of chunk servers of one host."""
    stores, disks = v.get("vstor_cs_stores"), v.get("vstor_cs_disks")
    if not isinstance(disks, list):
        return ["vstor_cs_disks of %s: is not a list of {device: /dev/disk/by-id/NAME} or {filter: CONDITIONS}" % host]
    if not isinstance(stores, list) or not stores + disks:
        return [
            "vstor_cs_stores of %s: is not a list with at least one entry {path: DIRECTORY}, and there is no disk in vstor_cs_disks"
            % host
        ]
    found = disk_problems(host, v, disks)
    for store in stores:
        if not isinstance(store, dict) or "path" not in store:
            found.append("vstor_cs_stores of %s: %r is not {path: DIRECTORY, tier: 0 to 3}" % (host, store))
            continue
        problem = path_problem(store["path"])
        if problem:
            found.append("vstor_cs_stores of %s: %r %s" % (host, store["path"], problem))
        if store.get("tier", 0) not in (0, 1, 2, 3):
            found.append(
                "vstor_cs_stores of %s: %s has tier %r; use 0, 1, 2 or 3" % (host, store["path"], store["tier"])
            )
        if store.get("address"):
            problem = address_port_problem(store["address"])
            if problem:
                found.append("vstor_cs_stores of %s: address %r %s" % (host, store["address"], problem))
    return found


DISK_KEYS = {"device", "filter", "use", "path", "tier", "address", "journal", "journal_mb"}
FILTER_KEYS = {"rotational", "size_min", "size_max", "model", "count"}


def disk_problems(host, v, disks):
    """Of the list of disks of one host; the host itself says more about each disk."""
    found = []
    where = "vstor_cs_disks of %s: " % host
    for disk in disks:
        if not isinstance(disk, dict) or set(disk) - DISK_KEYS or ("device" in disk) == ("filter" in disk):
            found.append(
                where
                + "%r is not {device: /dev/disk/by-id/NAME} or {filter: CONDITIONS} with %s"
                % (disk, ", ".join(sorted(DISK_KEYS)))
            )
            continue
        wanted = disk.get("filter", {})
        if not isinstance(wanted, dict) or set(wanted) - FILTER_KEYS:
            found.append(where + "filter %r has other conditions than %s" % (wanted, ", ".join(sorted(FILTER_KEYS))))
        if "device" in disk and not str(disk["device"]).startswith("/dev/disk/by-id/"):
            found.append(where + "%s is no stable name; use one of /dev/disk/by-id" % disk["device"])
        if disk.get("use", "cs") not in ("cs", "journal"):
            found.append(where + "use is %r, neither cs nor journal" % (disk["use"],))
        if disk.get("tier", 0) not in (0, 1, 2, 3):
            found.append(where + "tier is %r; use 0, 1, 2 or 3" % (disk["tier"],))
        for name in ("path", "journal"):
            problem = path_problem(disk[name]) if name in disk else ""
            if problem:
                found.append(where + "%s %r %s" % (name, disk[name], problem))
        if "filter" in disk and disk.get("path"):
            found.append(where + "a filter may find several disks and cannot have one path")
        problem = address_port_problem(disk["address"]) if disk.get("address") else ""
        if problem:
            found.append(where + "address %r %s" % (disk["address"], problem))
    for name in ("vstor_disk_named", "vstor_disk_wipe"):
        if not isinstance(v.get(name), list):
            found.append("%s of %s: is not a list of names below /dev/disk/by-id" % (name, host))
    return found


def nesting_problems(host, v, groups):
    """Directories that are the same or lie in each other."""
    named = []
    if host in groups.get("mds", []):
        named.append(("vstor_mds_repository", v.get("vstor_mds_repository")))
    if host in groups.get("client", []):
        named.append(("vstor_mount_point", v.get("vstor_mount_point")))
    if host in groups.get("cs", []):
        for name in ("vstor_cs_stores", "vstor_cs_disks"):
            named += [(name, s.get("path")) for s in v.get(name) or [] if isinstance(s, dict)]
    named = [(name, path.rstrip("/") + "/") for name, path in named if isinstance(path, str)]
    found = []
    for index, (name, path) in enumerate(named):
        for other_name, other in named[index + 1 :]:
            if path.startswith(other) or other.startswith(path):
                found.append(
                    "%s and %s of %s: %s and %s are the same or lie in each other"
                    % (name, other_name, host, path, other)
                )
    return found


def known(variables):
    """The variables that are checked, of one host, with defaults."""
    return {name: variables.get(name, value) for name, value in DEFAULTS.items()}


def address_problems(hostvars, hosts):
    """Two hosts with one address."""
    seen = {}
    found = []
    for host in hosts:
        address = str(hostvars[host]["vstor_address"])
        if address and address in seen:
            found.append("vstor_address of %s: %s is the address of %s too" % (host, address, seen[address]))
        seen.setdefault(address, host)
    versions = {":" in address: host for address, host in seen.items() if address}
    if len(versions) > 1:
        found.append(
            "vstor_address: %s has an IPv6 address and %s an IPv4 one; every host must reach every other, so use one kind for all"
            % (versions[True], versions[False])
        )
    return found


def method_problems(hostvars, hosts):
    """Where the program comes from: known, and the same everywhere, as the wheels are built once for all hosts."""
    methods = {host: hostvars[host]["vstor_install_method"] for host in hosts}
    found = [
        "vstor_install_method of %s: %r is neither wheelhouse nor package" % (host, method)
        for host, method in methods.items()
        if method not in METHODS
    ]
    if not found and len(set(methods.values())) > 1:
        found.append("vstor_install_method: is not the same on all hosts; set it in group_vars/all.yml")
    return found


def inventory_problems(hostvars, groups):
    """Lines, one for each mistake; an empty list when the inventory is fine."""
    hosts = sorted({host for name in GROUPS for host in groups.get(name, [])})
    if not hosts:
        return [
            "inventory: the groups etcd, mds, cs and client have no hosts; use -i inventory, or copy docs/inventory"
        ]
    hostvars = {host: known(hostvars[host]) for host in hosts}
    found = cluster_problems(hostvars[hosts[0]])
    found += group_problems(hostvars, groups)
    found += replica_problems(hostvars, groups)
    found += address_problems(hostvars, hosts)
    found += method_problems(hostvars, hosts)
    for host in hosts:
        found += host_problems(host, hostvars[host], groups)
    return found


class FilterModule:
    """Filters of the collection."""

    def filters(self):
        """Names and functions."""
        return {"inventory_problems": inventory_problems}
