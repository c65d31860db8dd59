"""Several hosts: which they are, and what a command of theirs says, by SSH. For `report` and `check`."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.spec import Opt
from vstor.errors import VstorError
from vstor.proto import messages

if TYPE_CHECKING:
    from vstor.ctl.remote import Access, Target

HOSTS_AT_ONCE = 8
HOST_BYTES_MAX = 1 << 30
HOSTS_MAX = 1000
SSH_OPTIONS = (
    Opt(
        "--host",
        metavar="[USER@]HOST[:PORT]",
        action="append",
        help="include this host; may be given several times; all: every host with a server of the cluster",
    ),
    Opt("--user", metavar="USER", help="login name on hosts (default: that of ~/.ssh/config, or your own)"),
    Opt("--port", metavar="PORT", type=int, default=22, help="port of sshd on hosts (default: 22)"),
    Opt("--identity", metavar="FILE", action="append", help="private key; may be given several times"),
    Opt("--known-hosts", metavar="FILE", action="append", help="more keys of hosts; may be given several times"),
    Opt("--sudo", action="store_true", help="run vstorctl on hosts as root by sudo -n"),
)
GZIP_MAGIC = b"\x1f\x8b"


def hosts_of_status(status: dict[str, Any]) -> dict[str, str]:
    """Hosts with servers of the cluster: name -> an address. Dropped servers do not count."""
    found: dict[str, str] = {}
    for server in [*status["mds"], *(c for c in status["cs"] if c["state"] != "dropped")]:
        address = server.get("address", "")
        host = address.rpartition(":")[0].strip("[]")
        if host and not address.startswith("unix:"):
            found.setdefault(server.get("host") or host, host)
    return dict(sorted(found.items()))


def choose_targets(arguments: list[str], known: Callable[[], dict[str, str]], access: Access) -> list[Target]:
    """The hosts named, or with `all` those of the cluster; a name the cluster knows gets its address from there. Raises USAGE."""
    from vstor.ctl.remote import Target, parse_target

    wanted: dict[str, Target] = {}
    servers: dict[str, str] = {}
    if "all" in arguments:
        servers = known()
        if not servers:
            raise VstorError(ErrorCode.NOT_FOUND, "the cluster has no hosts — name them")
        wanted = {name: Target(name, address, access.port, access.user) for name, address in servers.items()}
    for text in arguments:
        if text != "all":
            target = parse_target(text, access)
            wanted[target.label] = replace(target, address=servers.get(target.label, target.address))
    if len(wanted) > HOSTS_MAX:
        raise VstorError(ErrorCode.LIMIT, f"{len(wanted)} hosts, at most {HOSTS_MAX} at a time")
    return list(wanted.values())


def over_ssh(ctx: Context) -> tuple[list[Target], Callable[[list[str], Target, BinaryIO], None]]:
    """The hosts that SSH_OPTIONS name, and what runs a command on one of them and keeps its output. Raises USAGE, NOT_FOUND."""
    from vstor.ctl import remote

    args = ctx.args
    known_hosts = known_hosts_files(args.known_hosts or [])
    access = remote.Access(args.user or "", args.port, tuple(args.identity or ()), known_hosts, args.sudo)
    targets = choose_targets(args.host, lambda: hosts_of_status(ctx.call_json(messages.GetStatus())), access)

    def run(command: list[str], target: Target, file: BinaryIO) -> None:
        target, keys = remote.with_ssh_config(target, Path("~/.ssh/config").expanduser())
        files = (*access.key_files, *(key for key in keys if Path(key).is_file()))
        remote.fetch(target, replace(access, key_files=files), command, file, HOST_BYTES_MAX)

    return targets, run


def collect(
    targets: list[Target],
    fetch: Callable[[Target, BinaryIO], None],
    tar: tarfile.TarFile,
    prefix: str,
    said: Callable[[str, VstorError | None], None],
) -> dict[str, str]:
    """Bundles of all hosts into `tar` as PREFIX/HOST.tar.gz; a host that fails does not keep the others.

    Args:
        fetch: writes the bundle of a host into a file.
        said: told each host when it is done, and why it failed.
    Returns: host -> why there is no bundle of it.
    """

    def one(target: Target) -> BinaryIO | VstorError:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by the caller
        try:
            fetch(target, file)
            file.seek(0)
            if file.read(2) != GZIP_MAGIC:
                raise VstorError(ErrorCode.IO_ERROR, "what it sent is no bundle")
        except VstorError as exc:
            file.close()
            return exc
        return file

    failed: dict[str, str] = {}
    with ThreadPoolExecutor(min(HOSTS_AT_ONCE, len(targets) or 1), thread_name_prefix="report") as pool:
        for target, outcome in zip(targets, pool.map(one, targets), strict=True):
            if isinstance(outcome, VstorError):
                failed[target.label] = outcome.message
                said(target.label, outcome)
                continue
            with outcome:
                info = tarfile.TarInfo(f"{prefix}/{target.label.replace('/', '_')}.tar.gz")
                info.size, info.mode = outcome.seek(0, io.SEEK_END), 0o600
                outcome.seek(0)
                tar.addfile(info, outcome)
            said(target.label, None)
    return failed


def known_hosts_files(names: list[str]) -> tuple[str, ...]:
    """Files given by --known-hosts. Raises NOT_FOUND."""
    for name in names:
        if not Path(name).is_file():
            raise VstorError(ErrorCode.NOT_FOUND, f"{name}: no such file — give a file of known_hosts lines")
    return tuple(names)
