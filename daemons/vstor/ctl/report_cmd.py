"""report: a bundle for whoever helps, without secrets, of this node or of several hosts."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from vstor import paths
from vstor import services as registry
from vstor.codes_gen import ErrorCode
from vstor.ctl import report_hosts
from vstor.ctl import services_mgr as mgr
from vstor.ctl.clusterpath import mounts
from vstor.ctl.context import Context
from vstor.ctl.report_hosts import SSH_OPTIONS
from vstor.ctl.spec import BOOTSTRAP, EXIT_PARTLY, Command, Opt
from vstor.errors import VstorError, from_os_error
from vstor.proto import messages

LOG_BYTES_MAX = 4 << 20  # the end of each log file
CONFIG_BYTES_MAX = 1 << 20
EVENTS_MAX = 10000
SECRET_NAMES = (".key", ".pem", ".p12", "digest", "password", "secret", "verifier", "keyring")
SECRET_MARKS = (b"PRIVATE KEY", b"password", b"verifier", b"secret")


def is_secret(path: Path, data: bytes) -> bool:
    """By its name or by what it holds. Rather one file too many is left out."""
    return any(word in path.name.lower() for word in SECRET_NAMES) or any(
        mark.lower() in data.lower() for mark in SECRET_MARKS
    )


class _Bundle:
    def __init__(self, tar: tarfile.TarFile, prefix: str) -> None:
        self._tar, self._prefix = tar, prefix
        self.left_out: list[str] = []

    def add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(f"{self._prefix}/{name}")
        info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(info, io.BytesIO(data))

    def add_answer(self, name: str, ask: Callable[[], Any]) -> None:
        """JSON of what `ask` returns, or why it could not."""
        try:
            value = ask()
        except (VstorError, OSError) as exc:
            value = {"error": str(exc)}
        self.add(name, json.dumps(value, indent=1, default=str).encode())

    def add_tree(self, name: str, root: Path, limit_bytes: int, secrets_out: bool) -> None:
        """Regular files below `root`, no links, each at most its last `limit_bytes`."""
        for directory, _dirs, files in os.walk(root):
            for file in sorted(files):
                path = Path(directory, file)
                if not path.is_file() or path.is_symlink():
                    continue
                try:
                    data = _tail(path, limit_bytes)
                except OSError as exc:
                    self.left_out.append(f"{path}: {exc.strerror}")
                    continue
                if secrets_out and is_secret(path, data):
                    self.left_out.append(f"{path}: secret")
                    continue
                self.add(f"{name}/{path.relative_to(root)}", data)


def _tail(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - limit_bytes))
        return stream.read(limit_bytes)


def _system() -> dict[str, Any]:
    # Not of mounts: while their cluster is down they do not answer, and that is when reports are wanted.
    stores = [Path(s.path) for s in registry.list_services() if s.kind != "mount"]
    places = {str(p): p for p in (paths.state_dir(), paths.log_dir(), *stores)}
    space = {}
    for name, place in places.items():
        if place.is_dir():
            st = os.statvfs(place)
            space[name] = {
                "total_bytes": st.f_blocks * st.f_frsize,
                "free_bytes": st.f_bavail * st.f_frsize,
                "files_free": st.f_favail,
            }
    return {
        "uname": " ".join(platform.uname()),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "memory": Path("/proc/meminfo").read_text().splitlines()[:5],
        "space": space,
        "mounts": [m.__dict__ for m in mounts()],
    }


def _open_new(target: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
    except OSError as exc:
        raise from_os_error(exc, f"cannot write {target}") from exc


def _add_cluster(bundle: _Bundle, ctx: Context) -> None:
    bundle.add_answer("status.json", lambda: ctx.call_json(messages.GetStatus()))
    bundle.add_answer("events.json", lambda: ctx.call_json(messages.GetEvents(after=0, since_ms=0, limit=EVENTS_MAX)))
    bundle.add_answer("config.json", lambda: ctx.call_json(messages.GetConfig(name="")))


def _add_node(bundle: _Bundle, cluster: str) -> None:
    bundle.add_answer("system.json", _system)
    bundle.add_answer(
        "services.json",
        lambda: [s.to_json() for s in mgr.states(mgr.choose_manager(), registry.list_services(cluster))],
    )
    bundle.add_tree("etc", paths.cluster_dir(cluster), CONFIG_BYTES_MAX, secrets_out=True)
    bundle.add_tree("log", paths.log_dir(), LOG_BYTES_MAX, secrets_out=False)
    bundle.add("left_out.txt", "".join(f"{line}\n" for line in bundle.left_out).encode())


def report(ctx: Context) -> int:
    """Write the bundle; what does not answer is noted in it."""
    where = "hosts" if ctx.args.host else platform.node()
    name = f"vstor-report-{ctx.cluster}-{where}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    if ctx.args.output == "-":
        if ctx.args.host:
            raise VstorError(ErrorCode.USAGE, "-o - is for the bundle of this node alone — give a file")
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as tar:
            bundle = _Bundle(tar, name)
            _add_cluster(bundle, ctx)
            _add_node(bundle, ctx.cluster)
        return 0
    target = Path(ctx.args.output or f"{name}.tar.gz")
    if ctx.args.host:
        return _report_hosts(ctx, name, target)
    with _open_new(target) as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
        bundle = _Bundle(tar, name)
        _add_cluster(bundle, ctx)
        _add_node(bundle, ctx.cluster)
    ctx.emit({"file": str(target), "left_out": bundle.left_out}, str(target))
    return 0


def _report_hosts(ctx: Context, name: str, target: Path) -> int:
    """The bundles of several hosts in one. Exit status EXIT_PARTLY when one is missing."""
    targets, run = report_hosts.over_ssh(ctx)
    command = ["vstorctl", "-q", "-c", ctx.cluster, "report", "-o", "-"]

    def said(host: str, error: VstorError | None) -> None:
        if error is None:
            ctx.say(f"{host}: done")
        else:
            ctx.warn(f"{host}: {' '.join(error.message.split())}")

    with _open_new(target) as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
        bundle = _Bundle(tar, name)
        _add_cluster(bundle, ctx)
        failed = report_hosts.collect(targets, partial(run, command), tar, f"{name}/hosts", said)
        bundle.add("failed.json", json.dumps(failed, indent=1).encode())
    done = [t.label for t in targets if t.label not in failed]
    ctx.emit({"file": str(target), "hosts": done, "failed": failed}, str(target))
    return EXIT_PARTLY if failed else 0


COMMANDS = (
    Command(
        name="report",
        summary="write a bundle of logs, configuration and status",
        description=(
            "Writes a compressed tar file with the logs of this node, the cluster's status, events and configuration. Keys and passwords are left out. "
            "With --host the same is collected by SSH from other hosts, where vstorctl must be installed; keys of hosts are checked as by ssh(1), "
            "private keys come from the agent, ~/.ssh or --identity, and ~/.ssh/config is heeded (HostName, Port, User, IdentityFile). "
            "A host that fails is named, the others are collected, and the exit status is 15."
        ),
        run=report,
        options=(
            Opt(
                "-o",
                "--output",
                metavar="FILE",
                help="name of the bundle, - for standard output (default: vstor-report-CLUSTER-HOST-TIME.tar.gz here)",
            ),
            *SSH_OPTIONS,
            BOOTSTRAP,
        ),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster report",
            "vstorctl -c test_cluster report --host all --user admin --sudo",
            "vstorctl -c test_cluster report --host node1 --host root@10.30.100.102 -o bundle.tar.gz",
        ),
    ),
)
