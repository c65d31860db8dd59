"""The decisions about disks, from facts alone: what loop devices cannot be, and how filters choose. tests/component/test_disks.py has the rest."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

UTILS = Path(__file__).resolve().parents[3] / "collections/ansible_collections/vstor/storage/plugins/module_utils"


def load(name: str) -> Any:
    """A module of the collection by its file."""
    spec = importlib.util.spec_from_file_location(name, UTILS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plan = load("disk_plan")
probe = load("disk_probe")
ID = "/dev/disk/by-id/"
CLUSTER = "abcdef0123456789" * 2
TIB = 1 << 40


def disk(name: str, **changes: Any) -> dict[str, Any]:
    """A blank disk of 4 TiB that may be used."""
    return {
        "device": f"/dev/{name}", "ids": [f"{ID}ata-{name}"], "kind": "disk", "size_bytes": 4 * TIB, "rotational": True, "read_only": False,
        "zoned": "none", "model": "ST4000NM0035", "serial": f"Z{name}", "wwid": f"w{name}", "partitions": [], "holders": [], "mounts": [],
        "swaps": [], "system": [], "signatures": [], "unknown_data": False, "problems": [], "twins": [], "in_fstab": False, "unfinished": False,
        "busy": False, **changes,
    }  # fmt: skip


def ours(name: str, use: str = "cs", **changes: Any) -> dict[str, Any]:
    """A disk that this cluster has formatted, mounted and in fstab."""
    signature = {"type": "xfs", "label": plan.own_label(CLUSTER, use), "uuid": f"u-{name}"}
    there = {"mounts": [f"/vstor/ata-{name}"], "in_fstab": True, "busy": True}
    return disk(name, **{"signatures": [signature], "unknown_data": True, **there, **changes})


def policy(**changes: Any) -> dict[str, Any]:
    """Formatting is allowed."""
    return {
        "cluster_id": CLUSTER,
        "size_min": TIB,
        "allow_format": True,
        "named": [],
        "wipe": [],
        "id_directory": ID.rstrip("/"),
        **changes,
    }


def made(disks: list[dict[str, Any]], *wishes: dict[str, Any], **changes: Any) -> tuple[dict[str, str], list[str]]:
    """({disk: state}, refusals and missing permissions)."""
    rows, refusals = plan.make_plan(disks, list(wishes), policy(**changes))
    return {row["device"]: row["state"] for row in rows}, refusals or plan.permission_refusals(rows, policy(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"system": ["/", "/boot"]}, "is the disk under /, /boot"),
        ({"kind": "device-mapper"}, "is a device-mapper device"),
        ({"kind": "RAID"}, "is a RAID device"),
        ({"kind": "partition"}, "is a partition"),
        ({"zoned": "host-managed"}, "zoned"),
        ({"twins": ["/dev/sdz"]}, "another path to the same disk as /dev/sdz"),
        ({"holders": ["md0", "dm-1"]}, "is held by md0, dm-1"),
        ({"swaps": ["/dev/sda2"]}, "swap space (/dev/sda2)"),
        ({"read_only": True}, "is read-only"),
        ({"size_bytes": TIB - 1}, "less than 1.0 TiB (vstor_disk_size_min)"),
        ({"problems": ["cannot be read: Input/output error"]}, "cannot be read"),
        ({"busy": True}, "is in use by the kernel"),
        ({"mounts": ["/srv"], "busy": True}, "is mounted at /srv"),
    ],
)
def test_what_nothing_overrides(changes: dict[str, Any], words: str) -> None:
    one = disk("sda", **changes)
    states, against = made([one], {"device": f"{ID}ata-sda"}, wipe=[f"{ID}ata-sda"])
    assert states == {"/dev/sda": "refused"}
    assert words in against[0]
    assert f"{ID}ata-sda (/dev/sda, " in against[0]
    assert "serial Zsda" in against[0]
    # Nor when this cluster has formatted it before, but for its own mount.
    if "mounts" not in changes and "busy" not in changes:
        states, _against = made([ours("sda", **changes)], {"device": f"{ID}ata-sda"})
        assert states == {"/dev/sda": "refused"}


def test_every_reason_is_named_at_once() -> None:
    one = disk("sda", read_only=True, mounts=["/srv"], signatures=[{"type": "ext4", "label": "home", "uuid": "1"}])
    _states, against = made([one], {"device": f"{ID}ata-sda"})
    for words in ("read-only", "mounted at /srv", "ext4", "label home"):
        assert words in against[0]


def test_multipath_and_host_aware_disks_do() -> None:
    for changes in ({"kind": "multipath"}, {"zoned": "host-aware"}, {"zoned": ""}):
        assert made([disk("sda", **changes)], {"device": f"{ID}ata-sda"}) == ({"/dev/sda": "format"}, [])


def test_filter_takes_what_the_cluster_has_first_and_then_by_name() -> None:
    disks = [disk("sda"), disk("sdb"), ours("sdc"), disk("sdd", rotational=False), disk("sde", model="OTHER")]
    wish = {"filter": {"rotational": True, "model": "st4000*", "count": 2}}
    states, against = made(disks, wish, named=[f"{ID}ata-sda"])
    assert states == {"/dev/sdc": "ready", "/dev/sda": "format", "/dev/sdb": "skipped"}
    assert against == []
    # The second run chooses the same.
    disks[0] = ours("sda")
    states, against = made(disks, wish, allow_format=False)
    assert states == {"/dev/sdc": "ready", "/dev/sda": "ready", "/dev/sdb": "skipped"}
    assert against == []


def test_filter_leaves_named_disks_to_their_names() -> None:
    disks = [disk("sda"), disk("sdb")]
    states, against = made(disks, {"filter": {}}, {"device": f"{ID}ata-sda", "tier": 3}, named=[f"{ID}ata-sdb"])
    assert states == {"/dev/sda": "format", "/dev/sdb": "format"}
    assert against == []


def test_filter_never_wipes_unasked_and_says_what_it_passes_over() -> None:
    disks = [disk("sda", partitions=["sda1"]), disk("sdb", system=["/"])]
    states, against = made(disks, {"filter": {"count": 1}})
    assert states == {"/dev/sda": "skipped", "/dev/sdb": "skipped"}
    assert "0 of 1 disks found" in against[0]
    assert "has partitions (sda1)" in against[0]
    assert "is the disk under /" in against[0]


def test_permissions() -> None:
    one = [disk("sda")]
    assert "vstor_disk_allow_format" in made(one, {"device": f"{ID}ata-sda"}, allow_format=False)[1][0]
    assert "vstor_disk_named" in made(one, {"filter": {}})[1][0]
    dirty = [disk("sda", unknown_data=True)]
    assert f"vstor_disk_wipe: [{ID}ata-sda]" in made(dirty, {"device": f"{ID}ata-sda"})[1][0]
    assert made(dirty, {"device": f"{ID}ata-sda"}, wipe=[f"{ID}ata-sda"]) == ({"/dev/sda": "wipe and format"}, [])
    # A filter without conditions means every disk, but formats none that is not named.
    # What is named for wiping and not used is a mistake, not a disk to wipe.
    assert (
        "nothing is wiped that is not used"
        in made([*dirty, disk("sdb")], {"device": f"{ID}ata-sdb"}, wipe=[f"{ID}ata-sda"])[1][0]
    )


def test_two_disks_at_one_place() -> None:
    wishes = [{"device": f"{ID}ata-{name}", "path": "/vstor/1"} for name in ("sda", "sdb")]
    assert "have the same path /vstor/1" in made([disk("sda"), disk("sdb")], *wishes)[1][0]


def test_disks_of_this_cluster() -> None:
    assert made([ours("sda", mounts=[], in_fstab=False, busy=False)], {"device": f"{ID}ata-sda"}) == (
        {"/dev/sda": "mount"},
        [],
    )
    assert made([ours("sda", in_fstab=False)], {"device": f"{ID}ata-sda"}) == ({"/dev/sda": "mount"}, [])
    assert "not at /vstor/x" in made([ours("sda")], {"device": f"{ID}ata-sda", "path": "/vstor/x"})[1][0]
    assert "formatted as a journal disk" in made([ours("sda", "journal")], {"device": f"{ID}ata-sda"})[1][0]
    # The label alone does not do: something else on it, or no cluster.
    both = ours("sda", mounts=[], busy=False)
    both["signatures"].append({"type": "gpt", "label": "", "uuid": ""})
    assert made([both], {"device": f"{ID}ata-sda"})[0] == {"/dev/sda": "refused"}
    assert made([ours("sda", mounts=[], busy=False)], {"device": f"{ID}ata-sda"}, cluster_id="")[0] == {
        "/dev/sda": "refused"
    }


@pytest.mark.parametrize(
    ("text", "size"), [("1G", 1 << 30), ("1.5T", 3 << 39), ("4096", 4096), ("10GiB", 10 << 30), ("2 kB", 2048)]
)
def test_sizes(text: str, size: int) -> None:
    assert plan.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1", "1X", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(plan.DiskError, match="size"):
        plan.parse_size(text)


def test_default_paths_are_plain() -> None:
    assert plan.default_path(f"{ID}ata-ST4000_1") == "/vstor/ata-ST4000_1"
    assert plan.default_path(f"{ID}../x y;z") == "/vstor/x-y-z"


def test_mountinfo() -> None:
    text = (
        "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "26 25 8:17 / /mnt/with\\040blank rw,noatime shared:1 - xfs /dev/sdb1 rw\n"
        "27 25 0:40 /sub /srv rw - btrfs /dev/sdc rw\n"
    )
    places, sources = probe.parse_mountinfo(text)
    assert places == {(8, 1): ["/"], (8, 17): ["/mnt/with blank"], (0, 40): ["/srv"]}
    assert sources["/srv"] == "/dev/sdc"
    assert probe.parse_swaps("Filename Type Size\n/dev/sda2 partition 1 0 -2\n") == ["/dev/sda2"]
    assert probe.parse_fstab("# x\nUUID=1 /a\\040b xfs defaults 0 0\n\n") == {"/a b"}
