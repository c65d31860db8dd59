"""Options of mount(8) and checks of the mount point."""

from __future__ import annotations

from pathlib import Path

import pytest
from vstor.client import mountpoint
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError


def test_flags_set_and_clear_in_order() -> None:
    assert mountpoint.parse_options("ro,nosuid,nodev").flags == 1 | 2 | 4
    assert mountpoint.parse_options("ro,rw,noatime").flags == 1024
    assert mountpoint.parse_options("").flags == 0


def test_what_is_for_the_boot_process_is_taken() -> None:
    out = mountpoint.parse_options("_netdev,nofail,defaults,x-systemd.requires=network.target,rw")
    assert (out.flags, out.own) == (0, {})


def test_own_options() -> None:
    assert mountpoint.parse_options("nospace=error,timeout=5").own == {"nospace": "error", "timeout": "5"}


@pytest.mark.parametrize("bad", ["bogus", "nospace", "readonly", "fd=3"])
def test_unknown_options_are_refused_by_name(bad: str) -> None:
    with pytest.raises(VstorError, match=bad) as caught:
        mountpoint.parse_options(f"rw,{bad}")
    assert caught.value.code == ErrorCode.USAGE


def test_mount_points_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(VstorError, match="mkdir -p") as caught:
        mountpoint.check_point(str(tmp_path / "missing"))
    assert caught.value.code == ErrorCode.NOT_FOUND
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VstorError, match="not a directory"):
        mountpoint.check_point(str(tmp_path / "file"))
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert mountpoint.check_point(str(link)) == str(tmp_path)


def test_the_topmost_file_system_of_a_mount_point(tmp_path: Path) -> None:
    lines = [
        "57 27 0:50 / /mnt/a\\040b rw,relatime shared:3 master:1 - fuse.vstor vstor://c rw",
        "58 27 0:51 / /mnt/a\\040b rw,relatime - fuse.vstor vstor://c rw",
        "59 27 0:52 / /mnt/c rw - fuse.vstor vstor://c rw",
        "60 27 0:53 / /mnt/c rw - tmpfs tmpfs rw",
    ]
    table = tmp_path / "mountinfo"
    table.write_text("\n".join(lines) + "\n")
    assert mountpoint.device_at("/mnt/a b", str(table)) == "0:51"
    assert mountpoint.device_at("/mnt/c", str(table)) is None
    assert mountpoint.device_at("/mnt", str(table)) is None
