"""Texts that service managers read, init scripts, the mount helper; systemd with a fake systemctl."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.ctl import mount_helper, service_files, services_mgr, systemd
from vstor.ctl.service_files import PROGRAMS
from vstor.errors import VstorError
from vstor.services import Service

from tests.unit.ctl.conftest import Ctl

CS = Service("test_cluster", "cs", "1025", '/disks/a b/50% "x"')
MOUNT = Service("c", "mount", "pcs", "/pcs", {"options": ["-C", "/ssd/cache", "-R", "64"]})


# --- supervisord ---------------------------------------------------------------------------------------------------


def test_program_of_supervisord() -> None:
    argv = ["/opt/vstor/bin/vstor-csd", *service_files.daemon_arguments(CS, Path("/log/x.log"), "vstor")]
    text = service_files.supervisor_program(CS, argv, Path("/log"), {"VSTOR_ETC": '/a "b" 100%'})
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    parser.read_string(text)
    section = parser["program:vstor-csd-test_cluster-1025"]
    # supervisord expands values with the % operator and splits commands as a shell.
    assert shlex.split(section["command"] % {}) == argv
    assert shlex.split(section["environment"] % {})[0] == 'VSTOR_ETC=/a "b" 100%'
    assert section["autostart"] == "false"
    assert section["autorestart"] == "true"
    assert section["stopwaitsecs"] == "60"
    assert section["stderr_logfile"] == "/log/vstor-csd-test_cluster-1025.err"


def test_a_client_that_was_unmounted_stays_so() -> None:
    text = service_files.supervisor_program(MOUNT, ["/x"], Path("/log"), {})
    assert "autorestart=unexpected\nexitcodes=0\n" in text
    assert "environment" not in text


@pytest.mark.parametrize("path", ["/a\nb", "/a ;b", "/a #b", "/a\x7f"])
def test_paths_that_cannot_be_written_down(path: str) -> None:
    service = Service("c", "cs", "1", path)
    with pytest.raises(VstorError) as caught:
        service_files.supervisor_program(
            service, ["x", *service_files.daemon_arguments(service, Path("/l"), None)], Path("/log"), {}
        )
    assert caught.value.code == ErrorCode.INVALID


def test_arguments_of_daemons() -> None:
    assert service_files.daemon_arguments(MOUNT, Path("/l"), "vstor") == [
        "-c",
        "c",
        "-f",
        "-l",
        "/l",
        "-C",
        "/ssd/cache",
        "-R",
        "64",
        "/pcs",
    ]
    for kind in ("etcd", "mds", "cs"):
        service = Service("c", kind, "1", "/r")
        assert service_files.daemon_arguments(service, Path("/l"), "vstor") == ["-r", "/r", "-u", "vstor", "-l", "/l"]
        assert service_files.daemon_arguments(service, Path("/l"), None) == ["-r", "/r", "-l", "/l"]


# --- systemd ----------------------------------------------------------------------------------------------------------


class FakeSystemctl:
    """Remembers commands; answers `show` and `is-enabled` from tables."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.show = "ActiveState=inactive\nSubState=dead\nMainPID=0\nExecMainStatus=0\n"
        self.enabled: set[str] = set()
        self.journal = ""
        self.fail = ""

    def __call__(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(argv)
        out = ""
        if argv[0] == "journalctl":
            out = self.journal
        elif argv[1] == "show":
            out = self.show
        elif argv[1] == "is-enabled":
            out = "enabled\n" if argv[2] in self.enabled else "disabled\n"
        elif argv[1] == "enable":
            self.enabled.add(argv[2])
        elif argv[1] == self.fail:
            return subprocess.CompletedProcess(argv, 1, "", "Failed: nobody knows why\nmore\n")
        return subprocess.CompletedProcess(argv, 0, out, "")


@pytest.fixture
def systemctl() -> FakeSystemctl:
    return FakeSystemctl()


@pytest.fixture
def manager(systemctl: FakeSystemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> systemd.Systemd:
    monkeypatch.setattr(systemd, "journal_directories", lambda s: [Path("/ssd")] if s.kind == "cs" else [])
    return systemd.Systemd(systemctl, tmp_path / "units", tmp_path / "packaged")


def test_units_are_written_once(manager: systemd.Systemd, systemctl: FakeSystemctl, tmp_path: Path) -> None:
    for _ in range(2):
        manager.prepare([CS, MOUNT])
    assert systemctl.commands == [["systemctl", "daemon-reload"]]
    names = sorted(str(p.relative_to(tmp_path / "units")) for p in (tmp_path / "units").rglob("*") if p.is_file())
    assert names == [
        "vstor-csd@.service",
        "vstor-csd@test_cluster.1025.service.d/vstor.conf",
        "vstor-mount@.service",
        "vstor-mount@c.pcs.service.d/vstor.conf",
        "vstor-servers.target",
    ]
    dropin = (tmp_path / "units" / names[1]).read_text()
    assert 'RequiresMountsFor="/disks/a b/50%% \\"x\\""\n' in dropin
    assert 'ReadWritePaths="/ssd"\n' in dropin


def test_the_unit_of_a_package_needs_no_copy(
    manager: systemd.Systemd, systemctl: FakeSystemctl, tmp_path: Path
) -> None:
    packaged, copy = tmp_path / "packaged/vstor-csd@.service", tmp_path / "units/vstor-csd@.service"
    manager.prepare([CS])
    packaged.parent.mkdir()
    packaged.write_text(copy.read_text())
    manager.prepare([CS])
    assert not copy.exists()
    assert systemctl.commands == [["systemctl", "daemon-reload"]] * 2
    manager.prepare([CS])
    assert systemctl.commands == [["systemctl", "daemon-reload"]] * 2
    packaged.write_text("[Service]\nUser=somebody_else\n")
    manager.prepare([CS])
    assert copy.exists()


@pytest.mark.parametrize("kind", PROGRAMS)
def test_unit_files(kind: str) -> None:
    unit = service_files.systemd_unit(kind, ["/opt/vstor/bin/vstorctl"], "vstor")
    assert f"ExecStart=/opt/vstor/bin/vstorctl service exec {kind} %i\n" in unit
    assert "Type=notify\n" in unit
    assert "@" not in unit.replace("@%i", "").replace("@system-service", "")
    hardened = ("NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=\n", "User=vstor\n")
    for line in hardened:
        assert (line in unit) == (kind != "mount"), line
    assert "User=" not in service_files.systemd_unit(kind, ["/x"], None)
    # Mounts stop before the servers of their host: a client flushes to them.
    words = {line for line in unit.splitlines() if service_files.SERVERS_TARGET in line}
    if kind == "mount":
        assert [w.partition("=")[0] for w in words] == ["After"]
    else:
        assert sorted(w.partition("=")[0] for w in words) == ["Before", "Wants"]


def test_a_unit_starts(manager: systemd.Systemd, systemctl: FakeSystemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(services_mgr, "ready_pid", lambda _s: 77 if "MainPID=77" in systemctl.show else None)
    monkeypatch.setattr(services_mgr.time, "sleep", lambda _s: None)
    begin = manager.start

    def start(service: Service) -> None:
        begin(service)
        systemctl.show = "ActiveState=active\nSubState=running\nMainPID=77\nExecMainStatus=0\n"

    monkeypatch.setattr(manager, "start", start)
    assert services_mgr.start(manager, [CS], 5, said.append) == []
    assert said == ["cs-test_cluster-1025: running (pid 77)"]
    assert ["systemctl", "start", "--no-block", "vstor-csd@test_cluster.1025.service"] in systemctl.commands


def test_a_unit_that_fails(manager: systemd.Systemd, systemctl: FakeSystemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = manager.start

    def start(service: Service) -> None:
        begin(service)
        systemctl.show = "ActiveState=activating\nSubState=auto-restart\nMainPID=0\nExecMainStatus=6\n"
        systemctl.journal = "vstor-csd: /x holds something else [FOREIGN_DATA]\nother line\n"

    monkeypatch.setattr(manager, "start", start)
    (error,) = services_mgr.start(manager, [CS], 5, lambda _t: None)
    assert error.code == ErrorCode.FOREIGN_DATA
    assert error.message == (
        "cs-test_cluster-1025 does not run: vstor-csd: /x holds something else — log: journalctl -u vstor-csd@test_cluster.1025.service"
    )
    assert systemctl.commands[-1] == ["systemctl", "stop", "--no-block", "vstor-csd@test_cluster.1025.service"]


def test_systemctl_failure_is_one_line(manager: systemd.Systemd, systemctl: FakeSystemctl) -> None:
    systemctl.fail = "start"
    with pytest.raises(VstorError, match=r"^systemctl start .*: Failed: nobody knows why$"):
        manager.start(CS)


def test_enabled_units(manager: systemd.Systemd) -> None:
    assert not manager.enabled(CS)
    manager.enable(CS)
    assert manager.enabled(CS)


@pytest.mark.parametrize(("value", "kind"), [("systemd", systemd.Systemd), ("supervisor", services_mgr.Supervisor)])
def test_choice_by_environment(value: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTOR_SERVICE_MANAGER", value)
    assert isinstance(services_mgr.choose_manager(), kind)
    monkeypatch.setenv("VSTOR_SERVICE_MANAGER", "runit")
    with pytest.raises(VstorError, match="use systemd or supervisor"):
        services_mgr.choose_manager()


# --- init scripts -----------------------------------------------------------------------------------------------------


def test_init_scripts(ctl: Ctl, tmp_path: Path) -> None:
    assert ctl("service", "install", "--root", str(tmp_path)).code == 0
    assert "nothing to change" in ctl("service", "install", "--root", str(tmp_path)).out
    tool = tmp_path / "vstorctl"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    for name, kind in (("vstor-mdsd", "mds"), ("vstor-csd", "cs"), ("vstor-client", "mount")):
        path = tmp_path / "etc/init.d" / name
        assert path.stat().st_mode & 0o777 == 0o755
        text = path.read_text()
        assert f"# Provides:          {name}\n" in text
        line = next(x for x in text.splitlines() if x.startswith("    exec "))
        path.write_text(text.replace(line, f'    exec {tool} "$@"'))

        def run(*words: str, script: Path = path, **env: str) -> str:
            return subprocess.run(
                [str(script), *words], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, check=False
            ).stdout

        assert run("start") == f"service start {kind}\n"
        assert run("start", PREVLEVEL="N", RUNLEVEL="2") == f"service start --enabled {kind}\n"
        assert run("stop") == f"service stop {kind}\n"
        assert run("status") == f"service status {kind}\n"
        assert subprocess.run([str(path), "jump"], capture_output=True, check=False).returncode == 2


# --- mount helper -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["vstor://c", "/pcs"], ["-c", "c", "/pcs"]),
        (["vstor://c/", "/pcs", "-o", "rw,nosuid,nodev,_netdev,x-systemd.automount"], ["-c", "c", "-o", "nosuid,nodev", "/pcs"]),
        (["vstor://c", "/pcs", "-n", "-v", "-o", "rw,cache=/ssd/f,cachesize=64"], ["-c", "c", "-C", "/ssd/f", "-R", "64", "/pcs"]),
        (["vstor://c", "/pcs", "-t", "fuse.vstor", "-o", "ro"], ["-c", "c", "-o", "ro", "/pcs"]),
        (["vstor://c", "/pcs", "-f"], None),
    ],
)  # fmt: skip
def test_mount_helper(argv: list[str], expected: list[str] | None) -> None:
    assert mount_helper.parse(argv) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["vstor://c"],
        ["/dev/sda", "/pcs"],
        ["vstor://a b", "/pcs"],
        ["vstor://c", "/pcs", "-o"],
        ["vstor://c", "/pcs", "-z"],
        ["vstor://c", "/pcs", "-N", "x"],
    ],
)
def test_mount_helper_refuses(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mount.fuse.vstor", *argv])
    assert mount_helper.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("mount.fuse.vstor: ")
    assert err.count("\n") == 1
