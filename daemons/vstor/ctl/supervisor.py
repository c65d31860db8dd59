"""supervisord as service manager: an instance of our own, started when first needed, spoken to by XML-RPC over its unix socket."""

from __future__ import annotations

import fcntl
import http.client
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.ctl import service_files as files
from vstor.ctl.ownership import daemon_user, make_daemon_dir
from vstor.ctl.programs import program, vstorctl
from vstor.ctl.service_state import FAILED, RUNNING, STARTING, STOPPED, STOPPING, ProcessInfo
from vstor.daemon import raise_limits
from vstor.errors import VstorError, from_os_error
from vstor.services import Service

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path less its NUL (unix(7))
START_S = 20.0
RPC_S = 150.0  # longer than any stopwaitsecs
OPEN_FILES = 65536
# supervisor.xmlrpc.Faults
BAD_NAME, ALREADY_ADDED, NOT_RUNNING, ALREADY_STARTED = 10, 90, 70, 60
ERR_TAIL_BYTES = 4096

_STATES = {
    "STOPPED": STOPPED,
    "STARTING": STARTING,
    "RUNNING": RUNNING,
    "BACKOFF": FAILED,
    "STOPPING": STOPPING,
    "EXITED": FAILED,
    "FATAL": FAILED,
    "UNKNOWN": FAILED,
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=RPC_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = str(path)

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class Supervisor:
    """The manager where PID 1 is not systemd.

    Files: $VSTOR_ETC/supervisord.conf, supervisor.d/NAME.conf, enabled/NAME; $VSTOR_RUN/supervisor.sock, supervisord.pid.
    Programs never start by themselves with supervisord: at boot the init script starts the enabled ones, in order.
    """

    name = "supervisor"

    def __init__(self) -> None:
        self._socket = paths.run_dir() / "supervisor.sock"
        self._conf = paths.etc_dir() / "supervisord.conf"

    # --- the instance

    @property
    def _rpc(self) -> Any:
        return xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(self._socket)).supervisor

    def alive(self) -> bool:
        """Our supervisord answers."""
        try:
            return bool(self._rpc.getState()["statename"] == "RUNNING")
        except (OSError, http.client.HTTPException):
            return False

    def _ensure(self) -> None:
        """Start supervisord unless it runs. Raises CONFIG, TIMED_OUT."""
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES_MAX:
            raise VstorError(
                ErrorCode.CONFIG, f"{self._socket}: too long for a socket — set VSTOR_RUN to a shorter directory"
            )
        make_daemon_dir(paths.run_dir())
        make_daemon_dir(paths.log_dir())
        with _lock(paths.run_dir() / "supervisor.lock"):
            if self.alive():
                return
            raise_limits(OPEN_FILES)
            soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            conf = files.supervisord_conf(
                paths.etc_dir(), paths.run_dir(), paths.log_dir(), min(OPEN_FILES, soft), os.geteuid() == 0
            )
            write_if_changed(self._conf, conf)
            (paths.etc_dir() / "supervisor.d").mkdir(exist_ok=True)
            environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
            done = subprocess.run(
                [_supervisord(), "-c", str(self._conf)],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_S,
                check=False,
            )
            if done.returncode:
                lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                said = next((line for line in lines if line.startswith("Error")), lines[0] if lines else "")
                raise VstorError(
                    ErrorCode.CONFIG,
                    f"supervisord does not start: {said or done.returncode} — see {self._conf} and {paths.log_dir()}",
                )
            deadline = time.monotonic() + START_S
            while not self.alive():
                if time.monotonic() > deadline:
                    raise VstorError(
                        ErrorCode.TIMED_OUT,
                        f"supervisord does not answer on {self._socket} — see {paths.log_dir() / 'supervisord.log'}",
                    )
                time.sleep(0.05)

    def finish(self) -> None:
        """End supervisord when nothing runs under it any more."""
        if self.alive() and not any(
            p["statename"] in ("RUNNING", "STARTING", "BACKOFF", "STOPPING") for p in self._rpc.getAllProcessInfo()
        ):
            self._rpc.shutdown()

    # --- services

    def prepare(self, services: list[Service]) -> None:
        """Write the programs and make supervisord know them; one that runs keeps its old definition until it is started again."""
        user = daemon_user()
        environment = {k: os.environ[k] for k in files.ENVIRONMENT if k in os.environ}
        self._ensure()
        with _lock(paths.run_dir() / "supervisor.lock"):
            for service in services:
                argv = _command(service, user.pw_name if user else None)
                text = files.supervisor_program(service, argv, paths.log_dir(), environment)
                write_if_changed(paths.etc_dir() / "supervisor.d" / f"{files.program_name(service)}.conf", text)
            added, changed, _removed = self._rpc.reloadConfig()[0]
            states = {p["name"]: p["statename"] for p in self._rpc.getAllProcessInfo()}
            for name in changed:
                if states.get(name) in ("STOPPED", "EXITED", "FATAL"):
                    self._rpc.removeProcessGroup(name)
                    added.append(name)
            for name in added:
                try:
                    self._rpc.addProcessGroup(name)
                except xmlrpc.client.Fault as fault:
                    if fault.faultCode != ALREADY_ADDED:
                        raise VstorError(
                            ErrorCode.CONFIG, f"supervisord does not take {name}: {fault.faultString}"
                        ) from fault

    def start(self, service: Service) -> None:
        """Begin to start; `info` tells how it goes."""
        try:
            self._rpc.startProcess(files.program_name(service), False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != ALREADY_STARTED:
                raise VstorError(
                    ErrorCode.CONFIG, f"supervisord does not start {service.name}: {fault.faultString}"
                ) from fault

    def stop(self, service: Service) -> None:
        """Begin to stop."""
        try:
            self._rpc.stopProcess(files.program_name(service), False)
        except (OSError, xmlrpc.client.Fault) as exc:
            if isinstance(exc, xmlrpc.client.Fault) and exc.faultCode not in (NOT_RUNNING, BAD_NAME):
                raise VstorError(
                    ErrorCode.CONFIG, f"supervisord does not stop {service.name}: {exc.faultString}"
                ) from exc

    def info(self, service: Service) -> ProcessInfo:
        """What supervisord knows of the process."""
        try:
            found = self._rpc.getProcessInfo(files.program_name(service))
        except (OSError, http.client.HTTPException):
            return ProcessInfo(STOPPED)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == BAD_NAME:
                return ProcessInfo(STOPPED)
            raise VstorError(ErrorCode.CONFIG, f"supervisord: {fault.faultString}") from fault
        return ProcessInfo(_STATES[found["statename"]], found["pid"] or None, found["exitstatus"])

    def error_mark(self, service: Service) -> int:
        """Where the program's standard error ends now, for `last_error`."""
        file = paths.log_dir() / f"{files.program_name(service)}.err"
        return file.stat().st_size if file.exists() else 0

    def last_error(self, service: Service, mark: int) -> str | None:
        """The last line the program wrote to standard error after the mark."""
        file = paths.log_dir() / f"{files.program_name(service)}.err"
        if not file.exists():
            return None
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(mark if mark <= size else 0, size - ERR_TAIL_BYTES))
            lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else None

    def log_hint(self, service: Service) -> str:
        """Where an operator looks."""
        return str(paths.log_dir() / f"{files.program_name(service)}.log")

    def forget(self, service: Service) -> None:
        """Remove a stopped service from supervisord."""
        name = files.program_name(service)
        (paths.etc_dir() / "supervisor.d" / f"{name}.conf").unlink(missing_ok=True)
        self.disable(service)
        if self.alive():
            try:
                self._rpc.reloadConfig()
                self._rpc.removeProcessGroup(name)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != BAD_NAME:
                    raise VstorError(
                        ErrorCode.CONFIG, f"supervisord does not forget {name}: {fault.faultString}"
                    ) from fault

    # --- at boot

    def _mark(self, service: Service) -> Path:
        return paths.etc_dir() / "enabled" / service.name

    def enable(self, service: Service) -> None:
        """Start it at boot."""
        if not self._mark(service).exists():
            paths.write_atomic(self._mark(service), b"")

    def disable(self, service: Service) -> None:
        """Do not start it at boot."""
        self._mark(service).unlink(missing_ok=True)

    def enabled(self, service: Service) -> bool:
        """It starts at boot."""
        return self._mark(service).exists()


def _command(service: Service, user: str | None) -> list[str]:
    """A mount goes through `service exec`, which first clears away what a client that was killed left behind."""
    if service.kind == "mount":
        return [*vstorctl(), "service", "exec", "mount", files.instance_name(service)]
    log_file = paths.log_dir() / f"{files.program_name(service)}.log"
    return program(service.kind) + files.daemon_arguments(service, log_file, user)


def write_if_changed(path: Path, text: str) -> bool:
    """True when the file was written."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        paths.write_atomic(path, data)
    except OSError as exc:
        raise from_os_error(exc, f"cannot write {path}") from exc
    return True


def _supervisord() -> str:
    for candidate in (
        str(Path(sys.executable).with_name("supervisord")),
        shutil.which("supervisord"),
        "/usr/bin/supervisord",
    ):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise VstorError(
        ErrorCode.CONFIG, "supervisord is not installed and PID 1 is not systemd — apt-get install supervisor"
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One vstorctl at a time changes supervisord."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
