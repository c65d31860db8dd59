"""What service managers read: command lines, supervisord programs, systemd units and drop-ins. Pure text, nothing is written here."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.services import Service

PROGRAMS = {"etcd": "vstor-etcd", "mds": "vstor-mdsd", "cs": "vstor-csd", "mount": "vstor-mount"}
# Seconds between SIGTERM and SIGKILL: an MDS hands over, a CS empties its journal, a client flushes dirty data.
STOP_S = {"etcd": 20, "mds": 20, "cs": 60, "mount": 120}
ENVIRONMENT = (
    "VSTOR_ETC",
    "VSTOR_RUN",
    "VSTOR_LOG",
    "VSTOR_STATE",
    "VSTOR_USER",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
)
SUPERVISOR_RETRIES = 1_000_000_000  # the delay between two starts grows by a second each time; it is never given up
UNITS_DIR = Path(__file__).with_name("units")
# Servers start before it, mounts after it; they stop the other way round.
SERVERS_TARGET = "vstor-servers.target"


def program_name(service: Service) -> str:
    """Name for supervisord and for files: vstor-csd-CLUSTER-ID."""
    return f"{PROGRAMS[service.kind]}-{service.cluster}-{service.id}"


def instance_name(service: Service) -> str:
    """Instance of a template unit: CLUSTER.ID; a cluster name holds no dot, so the first one separates."""
    return f"{service.cluster}.{service.id}"


def unit_name(service: Service) -> str:
    """vstor-csd@CLUSTER.ID.service."""
    return f"{PROGRAMS[service.kind]}@{instance_name(service)}.service"


def mount_id(mountpoint: str) -> str:
    """Id of the service that mounts there: /mnt/vstor is mnt-vstor; a short hash keeps apart what would look alike."""
    plain = mountpoint.strip("/") or "root"
    text = re.sub(r"[^A-Za-z0-9._-]", "-", plain)[:80]
    if "-" in plain or text != plain.replace("/", "-"):
        text += "-" + hashlib.sha256(mountpoint.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return text


def daemon_arguments(service: Service, log_file: Path, user: str | None) -> list[str]:
    """Arguments of the daemon of a service.

    Args:
        user: to become after what needs root; None: stay.
    """
    if service.kind == "mount":
        return [
            "-c",
            service.cluster,
            "-f",
            "-l",
            str(log_file),
            *[str(o) for o in service.extra.get("options", [])],
            service.path,
        ]
    return ["-r", service.path, *(["-u", user] if user else []), "-l", str(log_file)]


def check_plain(text: str) -> str:
    """The text, if it can stand in the files of service managers. Raises INVALID."""
    if re.search(r"[\x00-\x1f\x7f]|\s[;#]", text):
        raise VstorError(
            ErrorCode.INVALID,
            f"{text!r} cannot be run as a service — take a path without control characters, ' ;' and ' #'",
        )
    return text


def _supervisor_quote(argv: list[str]) -> str:
    return shlex.join(check_plain(a) for a in argv).replace("%", "%%")


def supervisor_program(service: Service, argv: list[str], log_dir: Path, environment: Mapping[str, str]) -> str:
    """The conf.d file of one service. The program starts as supervisord's user and becomes its own itself, once its limits are raised."""
    name = program_name(service)
    pairs = ",".join(
        '{}="{}"'.format(k, check_plain(v).replace("%", "%%").replace('"', '\\"'))
        for k, v in sorted(environment.items())
    )
    # A client that was unmounted by hand (exit 0) stays so; anything else comes back.
    restart = "unexpected" if service.kind == "mount" else "true"
    lines = [
        "; written by vstorctl service, changes are lost",
        f"[program:{name}]",
        f"command={_supervisor_quote(argv)}",
        "directory=/",
        "autostart=false",
        f"autorestart={restart}",
        "exitcodes=0",
        "startsecs=1",
        f"startretries={SUPERVISOR_RETRIES}",
        "stopsignal=TERM",
        f"stopwaitsecs={STOP_S[service.kind]}",
        f"stdout_logfile={str(log_dir / name).replace('%', '%%')}.out",
        "stdout_logfile_maxbytes=10MB",
        "stdout_logfile_backups=3",
        f"stderr_logfile={str(log_dir / name).replace('%', '%%')}.err",
        "stderr_logfile_maxbytes=10MB",
        "stderr_logfile_backups=3",
    ]
    if pairs:
        lines.append(f"environment={pairs}")
    return "\n".join(lines) + "\n"


def supervisord_conf(etc_dir: Path, run_dir: Path, log_dir: Path, open_files: int, as_root: bool) -> str:
    """Configuration of our own supervisord instance."""
    socket_path = run_dir / "supervisor.sock"
    lines = [
        "; written by vstorctl service, changes are lost",
        "[unix_http_server]",
        f"file={socket_path}",
        "chmod=0700",
        "[supervisord]",
        "identifier=vstor",
        f"logfile={log_dir / 'supervisord.log'}",
        "logfile_maxbytes=10MB",
        "logfile_backups=3",
        f"pidfile={run_dir / 'supervisord.pid'}",
        f"childlogdir={log_dir}",
        f"minfds={open_files}",
        "umask=022",
        *(["user=root"] if as_root else []),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisorctl]",
        f"serverurl=unix://{socket_path}",
        "[include]",
        f"files={etc_dir / 'supervisor.d'}/*.conf",
    ]
    return "\n".join(lines) + "\n"


def systemd_unit(kind: str, vstorctl: list[str], user: str | None) -> str:
    """The template unit of a kind, from the package's units/, with the program's place and the user filled in."""
    text = (UNITS_DIR / f"{PROGRAMS[kind]}@.service").read_text()
    text = text.replace("@VSTORCTL@", shlex.join(vstorctl))
    return text if user else re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE)


def systemd_dropin(service: Service, environment: Mapping[str, str], writable: list[Path]) -> str:
    """What differs between instances: the directories they write to, the mount they need, moved roots."""
    lines = ["# written by vstorctl service, changes are lost", "[Unit]"]
    if service.kind != "mount":
        lines += [f"RequiresMountsFor={_systemd_quote(str(p))}" for p in (Path(service.path), *writable)]
    lines.append("[Service]")
    if service.kind != "mount":
        lines += [f"ReadWritePaths={_systemd_quote(str(p))}" for p in (Path(service.path), *writable)]
    lines += [f"Environment={_systemd_quote(f'{k}={v}')}" for k, v in sorted(environment.items())]
    return "\n".join(lines) + "\n"


def _systemd_quote(text: str) -> str:
    escaped = check_plain(text).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
