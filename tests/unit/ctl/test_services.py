"""Services under a real supervisord, with small programs in the place of the daemons."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vstor import services as registry
from vstor.ctl import service_cmd, services_mgr, supervisor
from vstor.ctl.service_files import mount_id, program_name
from vstor.services import Service

from tests.unit.ctl.conftest import Ctl

FAKE = Path(__file__).with_name("fake_daemon.py")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short directories (a socket's path is at most 107 bytes); supervisord is ended at the end."""
    with tempfile.TemporaryDirectory(prefix="vst") as name:
        for root in ("ETC", "RUN", "LOG", "STATE"):
            monkeypatch.setenv(f"VSTOR_{root}", f"{name}/{root.lower()}")
        monkeypatch.setenv("VSTOR_USER", "root")
        real = supervisor.files.daemon_arguments
        # The readiness file is named after the service, which the fake learns as its first argument.
        monkeypatch.setattr(supervisor, "program", lambda kind: [sys.executable, str(FAKE)])
        monkeypatch.setattr(supervisor.files, "daemon_arguments", lambda s, log, user: [s.name, *real(s, log, user)])
        yield Path(name)
        manager = supervisor.Supervisor()
        if manager.alive():
            pid = int((Path(name) / "run/supervisord.pid").read_text())
            os.kill(pid, signal.SIGTERM)  # ends its children first
            wait_until(lambda: not Path(f"/proc/{pid}").exists())


def wait_until(check: object) -> None:
    deadline = time.monotonic() + 30
    while not check():  # type: ignore[operator]
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.02)


def make(base: Path, kind: str, ident: str, behaviour: str = "serve") -> Path:
    repo = base / f"{kind}-{ident}"
    repo.mkdir()
    (repo / "behaviour").write_text(behaviour)
    registry.register("c", kind, ident, str(repo))
    return repo


def starts(repo: Path) -> list[int]:
    file = repo / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_life_of_services(base: Path, ctl: Ctl) -> None:
    repos = [make(base, kind, ident) for kind, ident in (("cs", "1025"), ("mds", "1"), ("etcd", "1"))]
    result = ctl("service", "start")
    assert result.code == 0, result.err
    assert [line.split(":")[0] for line in result.out.splitlines()] == ["etcd-c-1", "mds-c-1", "cs-c-1025"]
    again = ctl("-c", "c", "service", "start", "all")
    assert again.out.count("already runs") == 3
    assert all(len(starts(repo)) == 1 for repo in repos)
    found = json.loads(ctl("list-services", "--format", "json").out)
    assert [(s["kind"], s["state"], s["enabled"], s["managed"]) for s in found] == [
        ("etcd", "running", False, True),
        ("mds", "running", False, True),
        ("cs", "running", False, True),
    ]
    assert [s["pid"] for s in found] == [starts(r)[0] for r in reversed(repos)]
    restarted = ctl("service", "restart", "1025")
    assert restarted.code == 0, restarted.err
    assert len(starts(repos[0])) == 2
    assert ctl("service", "status").code == 0
    stopped = ctl("service", "stop", "all")
    assert [line.split(":")[0] for line in stopped.out.splitlines()] == ["mds-c-1", "cs-c-1025", "etcd-c-1"]
    assert ctl("service", "status").code == 3
    assert not Path(f"/proc/{starts(repos[0])[-1]}").exists()
    wait_until(lambda: not supervisor.Supervisor().alive())
    assert ctl("service", "stop", "all").code == 0


def test_one_kind_only(base: Path, ctl: Ctl) -> None:
    mds, cs = make(base, "mds", "1"), make(base, "cs", "1025")
    assert ctl("service", "start", "mds").code == 0
    assert (len(starts(mds)), len(starts(cs))) == (1, 0)
    assert ctl("service", "status", "mds").code == 0
    assert ctl("service", "status", "cs").code == 3


def test_a_daemon_that_fails_says_why(base: Path, ctl: Ctl) -> None:
    repo = make(base, "cs", "1025", "fail 7 vstor-csd: address 10.0.0.1:7000 is in use [IN_USE]")
    good = make(base, "cs", "1026")
    result = ctl("service", "start", "cs")
    assert result.code == 7
    assert "cs-c-1025 does not run: vstor-csd: address 10.0.0.1:7000 is in use — log: " in result.err
    assert result.err.count("\n") == 1
    assert len(starts(good)) == 1
    states = {s["id"]: s["state"] for s in json.loads(ctl("service", "status", "--format", "json").out)}
    assert states["1026"] == "running"
    assert states["1025"] in ("stopped", "failed")
    (repo / "behaviour").write_text("serve")
    assert ctl("service", "start", "1025").code == 0


def test_what_may_heal_is_tried_again(base: Path, ctl: Ctl) -> None:
    repo = make(base, "cs", "1025", "fail 10 vstor-csd: no MDS answers [UNREACHABLE]")
    result = ctl("service", "start", "cs")
    assert result.code == 10
    (repo / "behaviour").write_text("serve")
    wait_until(lambda: services_mgr.state_of(supervisor.Supervisor(), registry.list_services()[0]).state == "running")


def test_a_daemon_that_is_never_ready(base: Path, ctl: Ctl) -> None:
    repo = make(base, "cs", "1025", "mute")
    result = ctl("service", "start", "cs", "--deadline", "1")
    assert result.code == 10
    assert "is not ready after 1 s" in result.err
    assert json.loads(ctl("list-services", "--format", "json").out)[0]["state"] == "starting"
    assert Path(f"/proc/{starts(repo)[0]}").exists()


def test_a_killed_daemon_comes_back(base: Path, ctl: Ctl) -> None:
    repo = make(base, "cs", "1025")
    assert ctl("service", "start", "cs").code == 0
    os.kill(starts(repo)[0], signal.SIGKILL)
    wait_until(lambda: len(starts(repo)) == 2)


def test_a_daemon_started_by_hand_is_left_alone_and_can_be_stopped(base: Path, ctl: Ctl) -> None:
    repo = make(base, "cs", "1025")
    process = subprocess.Popen([sys.executable, str(FAKE), "cs-c-1025", "-r", str(repo)])
    wait_until(lambda: (base / "run/cs-c-1025.ready").exists())
    assert f"pid {process.pid}, started by hand" in ctl("service", "start", "cs").out
    assert len(starts(repo)) == 1
    found = json.loads(ctl("list-services", "--format", "json").out)[0]
    assert (found["state"], found["pid"], found["managed"]) == ("running", process.pid, False)
    # The shell that started it reaps it.
    signal.signal(signal.SIGCHLD, lambda _s, _f: process.poll())
    try:
        assert ctl("service", "stop", "cs").code == 0
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert process.wait(10) == 0


def test_enable_and_disable(base: Path, ctl: Ctl) -> None:
    mds, cs = make(base, "mds", "1"), make(base, "cs", "1025")
    assert json.loads(ctl("service", "enable", "mds", "--format", "json").out) == {"changed": ["mds-c-1"]}
    assert json.loads(ctl("service", "enable", "mds", "--format", "json").out) == {"changed": []}
    assert ctl("service", "start", "--enabled").code == 0
    assert (len(starts(mds)), len(starts(cs))) == (1, 0)
    assert json.loads(ctl("service", "disable", "all", "--format", "json").out) == {"changed": ["mds-c-1"]}
    assert ctl("service", "stop", "all").code == 0
    assert ctl("service", "start", "--enabled").code == 0
    assert len(starts(mds)) == 1


def test_forget(base: Path, ctl: Ctl) -> None:
    one, two = make(base, "cs", "1025"), make(base, "cs", "1026")
    assert ctl("service", "start", "cs").code == 0
    assert ctl("service", "enable", "cs").code == 0
    assert ctl("service", "forget").code == 2
    assert ctl("service", "forget", "1025").code == 0
    assert not Path(f"/proc/{starts(one)[0]}").exists()
    assert (one / "behaviour").exists()
    assert [s["id"] for s in json.loads(ctl("list-services", "--format", "json").out)] == ["1026"]
    assert sorted(p.name for p in (base / "etc/supervisor.d").iterdir()) == ["vstor-csd-c-1026.conf"]
    assert sorted(p.name for p in (base / "etc/enabled").iterdir()) == ["cs-c-1026"]
    assert ctl("service", "restart").code == 0
    assert (len(starts(one)), len(starts(two))) == (1, 2)


def test_json_tells_what_changed(base: Path, ctl: Ctl) -> None:
    make(base, "mds", "1")
    assert json.loads(ctl("service", "start", "--format", "json").out)["changed"] == ["mds-c-1"]
    assert json.loads(ctl("service", "start", "--format", "json").out)["changed"] == []


def test_a_new_definition_is_used_at_the_next_start(base: Path, ctl: Ctl) -> None:
    first = make(base, "cs", "1025")
    assert ctl("service", "start", "cs").code == 0
    other = base / "other"
    first.rename(other)
    registry.register("c", "cs", "1025", str(other))
    assert ctl("service", "restart", "cs").code == 0
    assert len(starts(other)) == 2


@pytest.mark.parametrize("selector", ["1025", "CS#1025", "cs-c-1025", "vstor-csd-c-1025"])
def test_select_by_id(selector: str) -> None:
    known = [Service("c", "mds", "1", "/m"), Service("c", "cs", "1025", "/x"), Service("c", "mount", "pcs", "/pcs")]
    assert services_mgr.select(known, selector) == [known[1]]
    assert services_mgr.select(known, "/pcs/") == [known[2]]
    assert services_mgr.select(known, "client") == [known[2]]


def test_mount_ids_differ() -> None:
    points = ["/mnt/vstor", "/mnt-vstor", "/mnt/a b", "/mnt/a/b", "/mnt/a-b", "/", "/root"]
    assert mount_id("/mnt/vstor") == "mnt-vstor"
    assert len({mount_id(p) for p in points}) == len(points) - 1 + (mount_id("/") != mount_id("/root"))
    assert all(program_name(Service("c", "mount", mount_id(p), p)).isprintable() for p in points)


def test_socket_path_too_long(base: Path, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    make(base, "cs", "1025")
    monkeypatch.setenv("VSTOR_RUN", str(base / ("x" * 120)))
    result = ctl("service", "start", "cs")
    assert result.code == 2
    assert "set VSTOR_RUN to a shorter directory" in result.err


def test_exec_becomes_the_daemon(base: Path, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(base, "cs", "1025")
    ran: list[list[str]] = []

    class Replaced(BaseException):
        pass

    def execvp(_file: str, argv: list[str]) -> None:
        ran.append(argv)
        raise Replaced

    monkeypatch.setattr(service_cmd.os, "execvp", execvp)
    monkeypatch.setattr(service_cmd, "program", lambda kind: [f"/bin/vstor-{kind}"])
    with pytest.raises(Replaced):
        ctl("service", "exec", "cs", "c.1025")
    assert ran[0][:2] == ["/bin/vstor-cs", "cs-c-1025"]
    assert str(repo) in ran[0]
    assert ctl("service", "exec", "cs", "c.1").code == 3


def test_start_clears_the_mount_of_a_client_that_died(base: Path) -> None:
    """Everything killed, supervisord too: the mount point can neither be looked at nor be made."""
    point = base / "mnt"
    point.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    assert ctypes.CDLL(None).mount(b"dead", bytes(point), b"fuse", 0, data) == 0, "needs root"
    os.close(device)
    with pytest.raises(OSError, match="not connected"):
        point.stat()
    service = registry.register("c", "mount", mount_id(str(point)), str(point))
    # The program in the client's place mounts nothing, so it is never ready; that the start gets that far is what counts.
    failures = services_mgr.start(supervisor.Supervisor(), [service], deadline_s=0.0, say=lambda text: None)
    assert [f.code.name for f in failures] == ["TIMED_OUT"]
    assert point.is_dir()
