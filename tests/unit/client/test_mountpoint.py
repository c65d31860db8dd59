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
