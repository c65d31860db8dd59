"""Each mistake of an inventory is found, and its line names the variable."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "collections/ansible_collections/vstor/storage/plugins/filter/inventory_problems.py"
spec = importlib.util.spec_from_file_location("inventory_problems", FILE)
assert spec is not None
assert spec.loader is not None
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)

GOOD = {
    "vstor_address": "127.0.0.1",
    "vstor_failure_domain": "disk",
    "vstor_cs_stores": [{"path": f"/var/lib/vstor/cs/{n}", "tier": 0} for n in (1, 2, 3)],
}
GROUPS = {"etcd": ["a"], "mds": ["a"], "cs": ["a"], "client": ["a"]}


def problems(groups: dict[str, list[str]] | None = None, **changes: Any) -> list[str]:
    """Of a good inventory with changes."""
    groups = groups or GROUPS
    hosts = sorted({host for members in groups.values() for host in members})
    hostvars = {}
    for number, host in enumerate(hosts, 1):
        hostvars[host] = {**copy.deepcopy(GOOD), "vstor_address": f"127.0.0.{number}", **changes}
    found: list[str] = plugin.inventory_problems(hostvars, groups)
    return found


def test_good_inventory() -> None:
    assert problems() == []
    assert (
        problems(
            vstor_location="room1.row1.rack1", vstor_discovery='sources = ["mdns", "dns"]\n[dns]\ndomains = ["x.org"]'
        )
        == []
    )


def test_shipped_inventory() -> None:
    shared = yaml.safe_load((ROOT / "inventory/group_vars/all.yml").read_text())
    hosts = yaml.safe_load((ROOT / "inventory/hosts.yml").read_text())["all"]
    groups = {name: list(group["hosts"]) for name, group in hosts["children"].items()}
    variables = {**shared, **hosts["hosts"]["localhost"]}
    assert plugin.inventory_problems({"localhost": variables}, groups) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vstor_cluster_name": "a b"}, ["vstor_cluster_name"]),
        ({"vstor_cluster_name": ""}, ["vstor_cluster_name"]),
        ({"vstor_cluster_name": "x" * 64}, ["vstor_cluster_name"]),
        ({"vstor_cluster_name": "a\n"}, ["vstor_cluster_name"]),
        ({"vstor_cluster_name": "../x"}, ["vstor_cluster_name"]),
        ({"vstor_replicas": "2:3"}, ["vstor_replicas"]),
        ({"vstor_replicas": "0"}, ["vstor_replicas"]),
        ({"vstor_replicas": "16"}, ["vstor_replicas"]),
        ({"vstor_replicas": 182}, ["vstor_replicas"]),  # 3:2 without quotes is the number 182 in YAML
        ({"vstor_replicas": "4:2"}, ["vstor_replicas", "vstor_cs_stores"]),
        ({"vstor_failure_domain": "host"}, ["vstor_replicas", "vstor_failure_domain"]),
        ({"vstor_failure_domain": "planet"}, ["vstor_failure_domain"]),
        ({"vstor_tier": 4}, ["vstor_tier"]),
        ({"vstor_install_method": "rpm"}, ["vstor_install_method", "'rpm'"]),
        ({"vstor_install_method": None}, ["vstor_install_method"]),
        ({"vstor_cluster_password": "a\nb"}, ["vstor_cluster_password"]),
        ({"vstor_cluster_config": "x=1"}, ["vstor_cluster_config"]),
        ({"vstor_mds_port": 65534}, ["vstor_mds_port"]),
        ({"vstor_mds_port": "many"}, ["vstor_mds_port"]),
        ({"vstor_address": "localhost"}, ["vstor_address", "a"]),
        ({"vstor_address": "0.0.0.0"}, ["vstor_address"]),
        ({"vstor_address": ""}, ["vstor_address"]),
        ({"vstor_mds_repository": "mds"}, ["vstor_mds_repository", "absolute"]),
        ({"vstor_mds_repository": "/var/lib/../../etc"}, ["vstor_mds_repository"]),
        ({"vstor_mds_repository": "/tmp/mds"}, ["vstor_mds_repository", "system directory"]),
        ({"vstor_mount_point": "/"}, ["vstor_mount_point", "system directory"]),
        ({"vstor_mount_point": "/var/lib/vstor"}, ["vstor_mount_point", "lie in each other"]),
        ({"vstor_address": "fe80::1"}, ["vstor_address", "link-local"]),
        ({"vstor_address": "FD00:0:0::0001"}, ["vstor_address", "write fd00::1"]),
        ({"vstor_location": "room row rack"}, ["vstor_location"]),
        ({"vstor_location": "a.b.c.d"}, ["vstor_location"]),
        ({"vstor_location": None}, ["vstor_location"]),
        ({"vstor_location": "a.b.c\n"}, ["vstor_location"]),
        ({"vstor_discovery": "sources = [dns]"}, ["vstor_discovery", "TOML"]),
        ({"vstor_discovery": "source = []"}, ["vstor_discovery", "unknown", "source"]),
        ({"vstor_discovery": 'sources = ["dsn"]'}, ["vstor_discovery", "dsn"]),
        ({"vstor_discovery": "sources = 1"}, ["vstor_discovery"]),
        ({"vstor_discovery": "sources = [[]]"}, ["vstor_discovery"]),
        ({"vstor_discovery": {"sources": []}}, ["vstor_discovery"]),
        ({"vstor_cs_disks": {}}, ["vstor_cs_disks"]),
        ({"vstor_cs_disks": [{"tier": 1}]}, ["vstor_cs_disks"]),
        ({"vstor_cs_disks": [{"device": "/dev/sdb"}]}, ["vstor_cs_disks", "/dev/sdb", "stable"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "filter": {}}]}, ["vstor_cs_disks"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "teir": 1}]}, ["vstor_cs_disks", "teir"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "tier": 5}]}, ["vstor_cs_disks", "tier"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "use": "swap"}]}, ["vstor_cs_disks", "swap"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "path": "x"}]}, ["vstor_cs_disks", "absolute"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "path": "/mnt/vstor/x"}]}, ["lie in each other"]),
        ({"vstor_cs_disks": [{"device": "/dev/disk/by-id/x", "address": "here"}]}, ["vstor_cs_disks", "here"]),
        ({"vstor_cs_disks": [{"filter": {"colour": "red"}}]}, ["vstor_cs_disks", "colour"]),
        ({"vstor_cs_disks": [{"filter": {}, "path": "/vstor/x"}]}, ["vstor_cs_disks", "several"]),
        ({"vstor_disk_wipe": "/dev/disk/by-id/x"}, ["vstor_disk_wipe"]),
        ({"vstor_cs_stores": []}, ["vstor_cs_stores"]),
        ({"vstor_cs_stores": ["/a", "/b", "/c"]}, ["vstor_cs_stores"]),
        ({"vstor_cs_stores": [{"path": "/d/1"}, {"path": "/d/2"}, {"path": "/d/1/"}]}, ["vstor_cs_stores", "/d/1"]),
        (
            {"vstor_cs_stores": [{"path": "/d/1", "tier": 7}, {"path": "/d/2"}, {"path": "/d/3"}]},
            ["vstor_cs_stores", "tier"],
        ),
        (
            {"vstor_cs_stores": [{"path": "/d/1", "address": "127.0.0.1:0"}, {"path": "/d/2"}, {"path": "/d/3"}]},
            ["vstor_cs_stores", "port"],
        ),
    ],
)
def test_mistake(changes: dict[str, Any], words: list[str]) -> None:
    found = problems(**changes)
    assert found
    assert any(all(word in line for word in words) for line in found), found
    assert all("\n" not in line.replace("\\n", "") for line in found)


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ({}, "no hosts"),
        ({**GROUPS, "mds": []}, "group mds"),
        ({**GROUPS, "cs": []}, "group cs"),
        ({**GROUPS, "mds": ["a", "b"], "etcd": ["a", "b"]}, "even number"),
        ({**GROUPS, "etcd": ["a", "b"]}, "group etcd"),
        ({**GROUPS, "etcd": []}, "group etcd"),
    ],
)
def test_groups(groups: dict[str, list[str]], word: str) -> None:
    hostvars = {"a": GOOD, "b": {**GOOD, "vstor_address": "127.0.0.2"}}
    found = plugin.inventory_problems(hostvars, groups)
    assert any(word in line for line in found), found


def test_overrides() -> None:
    both = {**GROUPS, "mds": ["a", "b"], "etcd": ["a", "b"]}
    assert problems(both, vstor_mds_allow_even=True) == []
    assert problems({**GROUPS, "etcd": []}, vstor_etcd_endpoints=["https://10.0.0.1:2379"]) == []


def test_one_address_for_two_hosts() -> None:
    found = problems({**GROUPS, "client": ["a", "b"]}, vstor_address="127.0.0.9")
    assert any("vstor_address of b" in line for line in found)


def test_defaults_are_those_of_the_roles() -> None:
    """Of what the roles default to plainly; the rest is derived there from the same names."""
    mds = yaml.safe_load((ROOT / "roles/vstor_mds/defaults/main.yml").read_text())
    cs = yaml.safe_load((ROOT / "roles/vstor_cs/defaults/main.yml").read_text())
    for name in ("vstor_mds_port", "vstor_mds_repository", "vstor_mds_allow_even"):
        assert plugin.DEFAULTS[name] == mds[name]
    assert plugin.DEFAULTS["vstor_cs_stores"] == cs["vstor_cs_stores"]


def test_two_ways_to_install() -> None:
    hosts = {"a": {**GOOD, "vstor_install_method": "package"}, "b": {**GOOD, "vstor_address": "127.0.0.2"}}
    groups = {**GROUPS, "client": ["a", "b"]}
    (line,) = plugin.inventory_problems(hosts, groups)
    assert line.startswith("vstor_install_method: is not the same on all hosts")
    hosts["b"]["vstor_install_method"] = "package"
    assert plugin.inventory_problems(hosts, groups) == []


def test_disks_count_as_failure_domains() -> None:
    disks = [{"device": f"/dev/disk/by-id/{name}"} for name in "abc"]
    assert problems(vstor_cs_stores=[], vstor_cs_disks=disks) == []
    assert "has 2" in problems(vstor_cs_stores=[], vstor_cs_disks=disks[:2])[0]
    journal = {"device": "/dev/disk/by-id/ssd", "use": "journal"}
    assert "has 2" in problems(vstor_cs_stores=[], vstor_cs_disks=[*disks[:2], journal])[0]
    assert problems(vstor_cs_stores=[], vstor_cs_disks=[{"filter": {"count": 3}}]) == []
    assert "has 2" in problems(vstor_cs_stores=[], vstor_cs_disks=[{"filter": {"count": 2}}])[0]
    assert problems(vstor_cs_stores=[], vstor_cs_disks=[{"filter": {"rotational": True}}]) == []


def test_addresses_of_two_kinds_are_refused() -> None:
    groups = {"etcd": ["a"], "mds": ["a"], "cs": ["a", "b"], "client": ["a"]}
    hostvars = {host: {**copy.deepcopy(GOOD), "vstor_address": a} for host, a in (("a", "fd00::1"), ("b", "10.0.0.1"))}
    found = plugin.inventory_problems(hostvars, groups)
    assert any("a has an IPv6 address and b an IPv4 one" in line for line in found)
    hostvars["b"]["vstor_address"] = "fd00::2"
    assert plugin.inventory_problems(hostvars, groups) == []
