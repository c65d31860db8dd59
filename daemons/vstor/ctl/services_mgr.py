"""Starting, stopping and watching the services of this node. The one place that knows whether systemd or supervisord does it.

DESIGN: a manager (systemd.py, supervisor.py) begins to start or stop a process and tells its state. Here is what is the same for both:
order, readiness, deadlines, what a daemon said when it failed, and processes that were started by hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from vstor import paths
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.ctl import service_files as files
from vstor.ctl.clusterpath import mounts
from vstor.ctl.service_state import FAILED, RUNNING, STARTING, STOPPED, STOPPING, ProcessInfo, ServiceState
from vstor.ctl.supervisor import Supervisor
from vstor.ctl.systemd import Systemd
from vstor.errors import VstorError
from vstor.services import KINDS, Service

START_DEADLINE_S = 60.0
POLL_S = 0.1
UMOUNT_S = 120.0
# What a kind means when an operator names it: an MDS needs the etcd member made with it.
GROUPS = {
    "mds": ("etcd", "mds"),
    "cs": ("cs",),
    "mount": ("mount",),
    "client": ("mount",),
    "etcd": ("etcd",),
    "all": KINDS,
}


class Manager(Protocol):
    """What a service manager can do; see Supervisor for the words."""

    name: str

    def prepare(self, services: list[Service]) -> None: ...
    def start(self, service: Service) -> None: ...
    def stop(self, service: Service) -> None: ...
    def info(self, service: Service) -> ProcessInfo: ...
    def error_mark(self, service: Service) -> int: ...
    def last_error(self, service: Service, mark: int) -> str | None: ...
    def log_hint(self, service: Service) -> str: ...
    def forget(self, service: Service) -> None: ...
    def finish(self) -> None: ...
    def enable(self, service: Service) -> None: ...
    def disable(self, service: Service) -> None: ...
    def enabled(self, service: Service) -> bool: ...


def choose_manager() -> Manager:
    """systemd where it is PID 1 (sd_booted(3)), else supervisord; $VSTOR_SERVICE_MANAGER decides otherwise."""
    wanted = os.environ.get("VSTOR_SERVICE_MANAGER") or (
        "systemd" if Path("/run/systemd/system").is_dir() else "supervisor"
    )
    if wanted == "systemd":
        return Systemd()
    if wanted == "supervisor":
        return Supervisor()
    raise VstorError(ErrorCode.CONFIG, f"VSTOR_SERVICE_MANAGER={wanted!r} — use systemd or supervisor")


def select(services: list[Service], selector: str) -> list[Service]:
    """The services a word means: all, a kind, an id, or a name such as cs-CLUSTER-1025. Raises NOT_FOUND for an unknown id."""
    if selector in GROUPS:
        return [s for s in services if s.kind in GROUPS[selector]]
    wanted = selector.rpartition("#")[2]
    found = [
        s
        for s in services
        if wanted in (s.id, s.name, files.program_name(s)) or (s.kind == "mount" and s.path == selector.rstrip("/"))
    ]
    if not found:
        known = ", ".join(s.name for s in services) or "none"
        raise VstorError(ErrorCode.NOT_FOUND, f"no service {selector!r} on this node — there are: {known}")
    return found


# --- readiness -----------------------------------------------------------------------------------------------


def mounted(service: Service) -> bool:
    """The service's cluster is mounted where it should be."""
    return any(m.mountpoint == service.path and m.cluster == service.cluster for m in mounts())


def ready_pid(service: Service) -> int | None:
    """The pid in the readiness file of a living process."""
    try:
        pid = int((paths.run_dir() / f"{service.name}.ready").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def unmanaged_pid(service: Service) -> int | None:
    """A process of this service that the manager did not start: its readiness file is there and its command line names the repository."""
    pid = ready_pid(service)
    if pid is None:
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return pid if os.fsencode(service.path) in command else None


def state_of(manager: Manager, service: Service) -> ServiceState:
    """The service now: running means ready, too."""
    info = manager.info(service)
    enabled = manager.enabled(service)
    if info.state == RUNNING or info.state == STARTING:
        ready = ready_pid(service) == info.pid and (service.kind != "mount" or mounted(service))
        return ServiceState(service, RUNNING if ready else STARTING, info.pid, enabled)
    pid = unmanaged_pid(service)
    if pid is not None and pid != info.pid:
        return ServiceState(service, RUNNING, pid, enabled, managed=False)
    return ServiceState(service, info.state, info.pid, enabled)


# --- start ---------------------------------------------------------------------------------------------------


def daemon_error(service: Service, line: str | None, exit_status: int, hint: str) -> VstorError:
    """What a daemon said when it ended, with its own code."""
    match = re.search(r"\[([A-Z_]+)\]$", line or "")
    code = ErrorCode[match[1]] if match and match[1] in ErrorCode.__members__ else None
    if code is None:
        code = next((c for c in ErrorCode if exit_status and ERRORS[c].exit_code == exit_status), ErrorCode.INTERNAL)
    said = (line or f"ended with exit status {exit_status}").removesuffix(f" [{code.name}]")
    return VstorError(code, f"{service.name} does not run: {said} — log: {hint}")


def start(
    manager: Manager, services: list[Service], deadline_s: float = START_DEADLINE_S, say: Callable[[str], None] = print
) -> list[VstorError]:
    """Start what does not run, kind by kind, those of a kind at the same time; wait until each is ready. The failures, in order."""
    failures: list[VstorError] = []
    if services:
        manager.prepare(services)
    for kind in KINDS:
        group = [s for s in services if s.kind == kind]
        failures += _start_group(manager, group, deadline_s, say)
    return failures


def _start_group(
    manager: Manager, group: list[Service], deadline_s: float, say: Callable[[str], None]
) -> list[VstorError]:
    failures: list[VstorError] = []
    waiting: dict[str, Service] = {}
    marks: dict[str, int] = {}
    first_pid: dict[str, int] = {}
    for service in group:
        state = state_of(manager, service)
        if state.state == RUNNING:
            by_hand = "" if state.managed else f" (pid {state.pid}, started by hand)"
            say(f"{service.name}: already runs{by_hand}")
            continue
        if service.kind == "mount":
            free_dead_mount(service.path)  # before mkdir, which cannot look at it either
            Path(service.path).mkdir(parents=True, exist_ok=True)
        marks[service.name] = manager.error_mark(service)
        manager.start(service)
        waiting[service.name] = service
    deadline = time.monotonic() + deadline_s
    while waiting:
        for name, service in list(waiting.items()):
            info = manager.info(service)
            if info.pid:
                first_pid.setdefault(name, info.pid)
            if info.state == FAILED or (info.pid and info.pid != first_pid[name]):
                del waiting[name]
                failures.append(_give_up(manager, service, info, marks[name]))
            elif state_of(manager, service).state == RUNNING:
                del waiting[name]
                say(f"{name}: running (pid {info.pid})")
            elif time.monotonic() > deadline:
                del waiting[name]
                line = manager.last_error(service, marks[name])
                failures.append(
                    VstorError(
                        ErrorCode.TIMED_OUT,
                        f"{name} is not ready after {deadline_s:.0f} s{': ' + line if line else ''} — log: {manager.log_hint(service)}",
                    )
                )
        if waiting:
            time.sleep(POLL_S)
    return failures


def _give_up(manager: Manager, service: Service, info: ProcessInfo, mark: int) -> VstorError:
    """The daemon ended. What may heal by itself stays with the manager, which tries again; the rest is stopped."""
    error = daemon_error(service, manager.last_error(service, mark), info.exit_status, manager.log_hint(service))
    if not error.retryable:
        manager.stop(service)
    return error


# --- stop ----------------------------------------------------------------------------------------------------


def stop(manager: Manager, services: list[Service], say: Callable[[str], None] = print) -> list[VstorError]:
    """Stop what runs: clients first, then mds, cs, etcd; returns when all have ended. The failures, in order.

    Clients that cannot be unmounted because they are in use keep everything below them running: nothing else is stopped.
    """
    failures: list[VstorError] = []
    for kind in ("mount", "mds", "cs", "etcd"):
        group = [s for s in services if s.kind == kind]
        failures += _unmount_group(manager, group, say) if kind == "mount" else _stop_group(manager, group, say)
        if failures and kind == "mount":
            return failures
    manager.finish()
    return failures


def _unmount_group(manager: Manager, group: list[Service], say: Callable[[str], None]) -> list[VstorError]:
    failures = []
    for service in group:
        if mounted(service):
            error = unmount(service.path)
            if error is not None:
                failures.append(error)
                continue
        failures += _stop_group(manager, [service], say)
    return failures


def unmount(mountpoint: str) -> VstorError | None:
    """umount(8), not lazily: nothing that is in use is torn away. The failure, if any."""
    try:
        done = subprocess.run(
            ["umount", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UMOUNT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return VstorError(
            ErrorCode.TIMED_OUT,
            f"{mountpoint}: umount does not end, data may wait for the cluster — see vstorctl status",
        )
    if done.returncode == 0:
        return None
    if "busy" in done.stderr:
        return VstorError(
            ErrorCode.BUSY, f"{mountpoint} is in use — end the programs that use it: fuser -vm {mountpoint}"
        )
    return VstorError(ErrorCode.IO_ERROR, f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def free_dead_mount(mountpoint: str) -> None:
    """Detach what a client that died left behind (ENOTCONN): nothing can be in use through it any more."""
    try:
        os.stat(mountpoint)
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            return
        subprocess.run(
            ["umount", "-l", mountpoint], stdin=subprocess.DEVNULL, capture_output=True, timeout=UMOUNT_S, check=False
        )


def _stop_group(manager: Manager, group: list[Service], say: Callable[[str], None]) -> list[VstorError]:
    failures: list[VstorError] = []
    waiting: dict[str, Service] = {}
    for service in group:
        pid = unmanaged_pid(service)
        info = manager.info(service)
        if pid is not None and pid != info.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        # Asked even if it does not run just now: the manager may be about to start it again.
        if info.state != STOPPED:
            manager.stop(service)
        elif pid is None:
            say(f"{service.name}: stopped already" if service.kind != "mount" else f"{service.path}: not mounted")
            continue
        waiting[service.name] = service
    deadline = time.monotonic() + max((files.STOP_S[s.kind] for s in group), default=0) + 10
    while waiting:
        for name, service in list(waiting.items()):
            info = manager.info(service)
            if info.pid is None and info.state != STOPPING and unmanaged_pid(service) is None:
                del waiting[name]
                say(f"{name}: stopped")
            elif time.monotonic() > deadline:
                del waiting[name]
                failures.append(
                    VstorError(
                        ErrorCode.TIMED_OUT, f"{name} does not stop (pid {info.pid}) — log: {manager.log_hint(service)}"
                    )
                )
        if waiting:
            time.sleep(POLL_S)
    return failures


def restart(
    manager: Manager, services: list[Service], deadline_s: float, say: Callable[[str], None]
) -> list[VstorError]:
    """Stop, then start. What did not stop is not started."""
    return stop(manager, services, say) or start(manager, services, deadline_s, say)


def states(manager: Manager, services: Iterable[Service]) -> list[ServiceState]:
    """All of them, now."""
    return [state_of(manager, s) for s in services]
