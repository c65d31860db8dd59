"""Commands on other hosts by SSH. The key of a host must be known before; a password is never asked for or sent.

DESIGN: paramiko is used and not ssh(1), so that each failure is told apart (unknown key, changed key, refused, silent) and has its mend.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import re
import shlex
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import paramiko

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error

CONNECT_S_MAX = 10.0
AUTH_S_MAX = 20.0
SILENCE_S_MAX = 120.0  # of a command
STDERR_BYTES_MAX = 4096
CHUNK_BYTES = 1 << 16
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_TARGET = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]@]+))(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A host to reach. `label` is what people call it, `address` where it is connected to."""

    label: str
    address: str
    port: int = 22
    user: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """How to get in.

    Attributes:
        user: login name where the target names none; "" is the caller's own.
        key_files: private keys besides those of the agent and of ~/.ssh.
        known_hosts: more files with keys of hosts.
        sudo: commands run as root by sudo -n.
    """

    user: str = ""
    port: int = 22
    key_files: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ()
    sudo: bool = False


def parse_target(text: str, access: Access) -> Target:
    """[USER@]HOST[:PORT], IPv6 in brackets. Raises USAGE."""
    found = _TARGET.fullmatch(text)
    if not found or not 0 < int(found["port"] or 22) < 65536:
        raise VstorError(
            ErrorCode.USAGE, f"{text!r} is no host — write [USER@]HOST[:PORT], an IPv6 address in brackets"
        )
    host = found["v6"] or found["host"]
    return Target(host, host, int(found["port"] or access.port), found["user"] or access.user)


def with_ssh_config(target: Target, file: Path) -> tuple[Target, list[str]]:
    """What ssh_config(5) says of the host: HostName, Port, User (as far as not given), IdentityFile. The target and key files."""
    if not file.is_file():
        return target, []
    try:
        found: Any = paramiko.SSHConfig.from_path(str(file)).lookup(target.label)
    except (OSError, paramiko.ConfigParseError) as exc:
        raise VstorError(ErrorCode.CONFIG, f"{file} cannot be read: {exc}") from exc
    address = found.get("hostname", target.address) if target.address == target.label else target.address
    port = int(found.get("port", target.port)) if target.port == 22 else target.port
    return replace(target, address=address, port=port, user=target.user or found.get("user", "")), list(
        found.get("identityfile", [])
    )


def _entry(name: str, port: int) -> str:
    """Name of a host in known_hosts (sshd(8))."""
    return name if port == 22 else f"[{name}]:{port}"


def _connect(target: Target, access: Access) -> paramiko.SSHClient:
    """Raises UNREACHABLE, DENIED with the mend."""
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what failed is said once, as the error
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    for file in (Path("~/.ssh/known_hosts").expanduser(), SYSTEM_KNOWN_HOSTS, *map(Path, access.known_hosts)):
        with contextlib.suppress(FileNotFoundError):
            client.get_host_keys().load(str(file))
    names = [target.label, target.address]
    name = next((n for n in names if client.get_host_keys().lookup(_entry(n, target.port))), target.label)
    try:
        sock = socket.create_connection((target.address, target.port), CONNECT_S_MAX)
    except OSError as exc:
        raise VstorError(
            ErrorCode.UNREACHABLE,
            f"{target.address} port {target.port}: {exc.strerror or exc} — is sshd up there, and the address right?",
        ) from exc
    try:
        client.connect(
            name,
            target.port,
            username=target.user or getpass.getuser(),
            key_filename=list(access.key_files) or None,
            sock=sock,
            timeout=CONNECT_S_MAX,
            banner_timeout=CONNECT_S_MAX,
            auth_timeout=AUTH_S_MAX,
        )
    except BaseException as exc:
        client.close()
        sock.close()
        if isinstance(exc, (paramiko.SSHException, OSError, EOFError)):
            raise _refusal(exc, target) from exc
        raise
    return client


def _refusal(exc: Exception, target: Target) -> VstorError:
    entry = _entry(target.label, target.port)
    scan = f"ssh-keyscan {f'-p {target.port} ' if target.port != 22 else ''}{target.address}"
    if isinstance(exc, paramiko.BadHostKeyException):
        return VstorError(
            ErrorCode.DENIED,
            f"the key of {entry} is not the one that is known ({exc.key.get_name()}) — somebody may sit in between; "
            f"if the host was made anew: ssh-keygen -R '{entry}'",
        )
    if isinstance(exc, paramiko.AuthenticationException):
        user = target.user or getpass.getuser()
        return VstorError(
            ErrorCode.DENIED,
            f"user {user} is not let in — give --user or --identity, or load the key into the agent (ssh-add)",
        )
    if "not found in known_hosts" in str(exc):
        return VstorError(
            ErrorCode.DENIED,
            f"the key of {entry} is not known — compare the output of {scan} with the host's own "
            "/etc/ssh/ssh_host_*.pub, then add it to ~/.ssh/known_hosts",
        )
    return VstorError(
        ErrorCode.UNREACHABLE, f"no SSH with {target.address} port {target.port}: {exc or type(exc).__name__}"
    )


def fetch(target: Target, access: Access, command: list[str], sink: BinaryIO, bytes_max: int) -> None:
    """Run `command` on the host and write its output to `sink`.

    Raises: UNREACHABLE, DENIED, TIMED_OUT, LIMIT when there is more than `bytes_max`, IO_ERROR with the last line of its errors.
    """
    with contextlib.closing(_connect(target, access)) as client:
        argv = ["sudo", "-n", *command] if access.sudo else command
        try:
            _stdin, stdout, stderr = client.exec_command(shlex.join(argv), timeout=SILENCE_S_MAX)
            size = 0
            while data := stdout.read(CHUNK_BYTES):
                size += len(data)
                if size > bytes_max:
                    raise VstorError(ErrorCode.LIMIT, f"it sent more than {bytes_max} bytes")
                sink.write(data)
            status = stdout.channel.recv_exit_status()
            errors = stderr.read(STDERR_BYTES_MAX).decode("utf-8", "replace").strip().splitlines()
        except TimeoutError as exc:
            raise VstorError(ErrorCode.TIMED_OUT, f"{command[0]} was silent for {SILENCE_S_MAX:g} s") from exc
        except paramiko.SSHException as exc:
            raise VstorError(ErrorCode.UNREACHABLE, f"the connection was lost: {exc}") from exc
        except OSError as exc:
            raise from_os_error(exc, "cannot keep what it sent") from exc
    if status:
        reason = errors[-1] if errors else "it said nothing"
        raise VstorError(ErrorCode.IO_ERROR, f"{shlex.join(argv)} ended with {status}: {reason}")
