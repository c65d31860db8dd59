"""systemd as service manager: template units, one drop-in an instance, systemctl."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.ctl import service_files as files
from vstor.ctl.ownership import daemon_user, make_daemon_dir
from vstor.ctl.programs import vstorctl
from vstor.ctl.service_state import FAILED, RUNNING, STARTING, STOPPED, STOPPING, ProcessInfo
from vstor.ctl.supervisor import write_if_changed
from vstor.errors import VstorError
from vstor.services import Service

COMMAND_S = 180.0
JOURNAL_LINES = 20

_STATES = {
    "active": RUNNING,
    "reloading": RUNNING,
    "activating": STARTING,
    "deactivating": STOPPING,
    "inactive": STOPPED,
    "failed": FAILED,
}

Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def run_command(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """A command with its output. Raises CONFIG when it is not there, TIMED_OUT."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except FileNotFoundError:
        raise VstorError(ErrorCode.CONFIG, f"{argv[0]} is not there though systemd runs — install it") from None
    except subprocess.TimeoutExpired:
        raise VstorError(ErrorCode.TIMED_OUT, f"{' '.join(argv)} does not end — see systemctl list-jobs") from None


def journal_directories(service: Service) -> list[Path]:
    """Where a chunk server writes beside its repository."""
    if service.kind != "cs":
        return []
    from vstor.cs.repository import read_identity

    journal = read_identity(Path(service.path)).journal
    return [Path(journal).parent] if journal else []


class Systemd:
    """The manager where PID 1 is systemd.

    Args:
        run, unit_dir, packaged_dir: replaced in tests.
    """

    name = "systemd"

    def __init__(
        self,
        run: Run = run_command,
        unit_dir: Path = Path("/etc/systemd/system"),
        packaged_dir: Path = Path("/usr/lib/systemd/system"),
    ) -> None:
        self._run = run
        self._unit_dir = unit_dir
        self._packaged_dir = packaged_dir

    def _systemctl(self, *args: str) -> str:
        done = self._run(["systemctl", *args])
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise VstorError(
                ErrorCode.CONFIG, f"systemctl {' '.join(args)}: {lines[0] if lines else f'exit {done.returncode}'}"
            )
        return done.stdout

    def prepare(self, services: list[Service]) -> None:
        """Write units and drop-ins; reload systemd when one changed."""
        user = daemon_user()
        make_daemon_dir(paths.log_dir())
        environment = {k: os.environ[k] for k in files.ENVIRONMENT if k in os.environ}
        changed = False
        for kind in {s.kind for s in services}:
            unit = files.systemd_unit(kind, vstorctl(), user.pw_name if user else None)
            changed |= self._provide_unit(f"{files.PROGRAMS[kind]}@.service", unit)
        changed |= self._provide_unit(files.SERVERS_TARGET, (files.UNITS_DIR / files.SERVERS_TARGET).read_text())
        for service in services:
            file = self._unit_dir / f"{files.unit_name(service)}.d" / "vstor.conf"
            changed |= write_if_changed(file, files.systemd_dropin(service, environment, journal_directories(service)))
        if changed:
            self._systemctl("daemon-reload")

    def _provide_unit(self, name: str, text: str) -> bool:
        """Have systemd see this template: the package's own where it says the same, else a copy before it. True if something changed."""
        own, packaged = self._unit_dir / name, self._packaged_dir / name
        if not packaged.exists() or packaged.read_text() != text:
            return write_if_changed(own, text)
        had_copy = own.exists()
        own.unlink(missing_ok=True)
        return had_copy

    def start(self, service: Service) -> None:
        """Begin to start; `info` tells how it goes."""
        self._run(["systemctl", "reset-failed", files.unit_name(service)])
        self._systemctl("start", "--no-block", files.unit_name(service))

    def stop(self, service: Service) -> None:
        """Begin to stop."""
        self._systemctl("stop", "--no-block", files.unit_name(service))

    def info(self, service: Service) -> ProcessInfo:
        """What systemd knows of the unit."""
        text = self._systemctl(
            "show",
            "-p",
            "ActiveState",
            "-p",
            "SubState",
            "-p",
            "MainPID",
            "-p",
            "ExecMainStatus",
            files.unit_name(service),
        )
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        active = values.get("ActiveState", "inactive")
        # Between two starts a unit is "activating (auto-restart)": it has failed, though it will be tried again.
        state = FAILED if values.get("SubState") == "auto-restart" else _STATES.get(active, FAILED)
        pid = int(values.get("MainPID", "0")) or None
        return ProcessInfo(state, pid, int(values.get("ExecMainStatus", "0") or 0))

    def error_mark(self, service: Service) -> int:
        """Nothing to remember: the journal is asked for the last start."""
        return 0

    def last_error(self, service: Service, mark: int) -> str | None:
        """The program's last line in the journal."""
        done = self._run(
            [
                "journalctl",
                "-q",
                "-o",
                "cat",
                "-n",
                str(JOURNAL_LINES),
                "--no-pager",
                "-t",
                files.PROGRAMS[service.kind],
                "-u",
                files.unit_name(service),
            ]
        )
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("vstor")), lines[-1] if lines else None)

    def log_hint(self, service: Service) -> str:
        """Where an operator looks."""
        return f"journalctl -u {files.unit_name(service)}"

    def forget(self, service: Service) -> None:
        """Remove what belongs to a stopped service."""
        self.disable(service)
        file = self._unit_dir / f"{files.unit_name(service)}.d" / "vstor.conf"
        if file.exists():
            file.unlink()
            file.parent.rmdir()
            self._systemctl("daemon-reload")

    def finish(self) -> None:
        """systemd stays."""

    def enable(self, service: Service) -> None:
        """Start it at boot."""
        self._systemctl("enable", files.unit_name(service))

    def disable(self, service: Service) -> None:
        """Do not start it at boot."""
        self._run(["systemctl", "disable", files.unit_name(service)])

    def enabled(self, service: Service) -> bool:
        """It starts at boot."""
        return self._run(["systemctl", "is-enabled", files.unit_name(service)]).stdout.strip() == "enabled"
