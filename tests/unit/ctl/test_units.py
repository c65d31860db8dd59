"""What systemd itself thinks of the units."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from vstor.ctl import service_files as files
from vstor.services import Service

EXPOSURE_MAX = 25  # tenths: "OK" of systemd-analyze is below 5.0; ours are about 2


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """All units as installed, one instance each, with a program that exists."""
    for kind in ("etcd", "mds", "cs", "mount"):
        service = Service("c", kind, "1", str(tmp_path / kind))
        text = files.systemd_unit(kind, ["/bin/true"], "root")
        (tmp_path / f"{files.PROGRAMS[kind]}@.service").write_text(text)
        (tmp_path / files.unit_name(service)).write_text(text)
        place = tmp_path / f"{files.unit_name(service)}.d"
        place.mkdir()
        (place / "vstor.conf").write_text(files.systemd_dropin(service, {"VSTOR_ETC": "/a b%c"}, [tmp_path / "ssd"]))
    (tmp_path / files.SERVERS_TARGET).write_text((files.UNITS_DIR / files.SERVERS_TARGET).read_text())
    return tmp_path


def analyze(units: Path, *args: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", *args]
    return subprocess.run(
        argv, env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )


@pytest.mark.parametrize("kind", ["etcd", "mds", "cs", "mount"])
def test_systemd_finds_no_fault(units: Path, kind: str) -> None:
    unit = files.unit_name(Service("c", kind, "1", ""))
    done = analyze(units, "verify", "--man=no", str(units / unit))
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "vstor" in line]
    assert ours == []
    assert done.returncode == 0


@pytest.mark.parametrize("kind", ["etcd", "mds", "cs"])
def test_servers_are_hardened(units: Path, kind: str) -> None:
    unit = files.unit_name(Service("c", kind, "1", ""))
    done = analyze(
        units, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--json=short", str(units / unit)
    )
    assert done.returncode == 0, done.stderr
    loose = {item["name"] for item in json.loads(done.stdout) if item["set"] is False}
    assert "NoNewPrivileges=" not in loose
    assert "ProtectSystem=" not in loose


def test_a_journal_on_another_disk_is_waited_for() -> None:
    text = files.systemd_dropin(Service("c", "cs", "1", "/disks/a/cs"), {}, [Path("/ssd/journals")])
    assert 'RequiresMountsFor="/disks/a/cs"' in text
    assert 'RequiresMountsFor="/ssd/journals"' in text
