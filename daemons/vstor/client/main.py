"""vstor-mount: mount a cluster through FUSE."""

from __future__ import annotations

import argparse
import asyncio
import grp
import hashlib
import logging
import os
import pwd
import re
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from vstor import __version__, daemon, logs, paths
from vstor.client import engine_api as cl
from vstor.client import metrics, mountpoint
from vstor.client.fileops import FileOperations
from vstor.client.files import FLUSH_S_MAX
from vstor.client.kernel import FuseKernel
from vstor.client.volume import Volume, open_volume
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import discovery
from vstor.net.identity import check_cluster_name, load_identity

log = logging.getLogger(__name__)

NAME = "vstor-mount"
CONNECT_S = 20.0
ANSWER_S_MAX = 30.0
STOP_S, STOP_S_MAX = int(FLUSH_S_MAX), 100  # the service manager kills after 120 s (ctl/service_files.py)
MAX_WRITE_BYTES = 1 << 20
MAX_BACKGROUND = 256
DRAIN_S_MAX = (
    10.0  # an unmounted file system that the kernel keeps has a copy elsewhere, in a container that was just made
)
UNIX_PATH_BYTES_MAX = 107
NAMES_ENV = "VSTOR_KERNEL_NAMES"  # 0: ask for each name as kernels before 6.16 do, whatever this one can (tests)


@dataclass(frozen=True)
class Config:
    """What to mount, checked."""

    cluster: str
    point: str
    flags: int
    timeout_s: float | None
    wait_for_space: bool
    max_background: int
    owner: tuple[int | None, int | None, int | None]  # uid, gid, mode shown for the root directory
    foreground: bool
    log_file: Path | None
    log_level: str
    stop_s: int = STOP_S  # for what was not synced, at the end

    @property
    def id(self) -> str:
        """Name of this mount in files of this node: as vstorctl names the service."""
        plain = self.point.strip("/") or "root"
        text = re.sub(r"[^A-Za-z0-9._-]", "-", plain)[:80]
        if "-" in plain or text != plain.replace("/", "-"):
            text += "-" + hashlib.sha256(os.fsencode(self.point)).hexdigest()[:8]
        return f"mount-{self.cluster}-{text}"

    @property
    def metrics_socket(self) -> Path:
        """Named by the mount's id, or by a hash of it where unix(7) has no room for that."""
        path = paths.run_dir() / f"{self.id}.metrics.sock"
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            path = paths.run_dir() / f"mount-{hashlib.sha256(self.id.encode()).hexdigest()[:16]}.metrics.sock"
        return path


def build_parser() -> argparse.ArgumentParser:
    """The command line; manual pages and completion are made from it."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Mount a vstor cluster at a directory. Returns when the file system answers, or says in one line why not. "
        "Unmount with umount(8).",
    )
    parser.add_argument("-c", "--cluster", metavar="NAME", required=True, help="name of the cluster")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground, log to standard error")
    parser.add_argument(
        "-o", "--options", metavar="OPTIONS", action="append", default=[],
        help="options of mount(8), and: nospace=block|error (what a full cluster does to writers, default block), timeout=SECONDS to "
        "wait for the cluster (default 20, 0: for ever), stop_timeout=SECONDS to wait at the end for what was not synced (default 60, at most "
        "100), max_background=N requests of the kernel at once",
    )  # fmt: skip
    parser.add_argument("-u", "--user", metavar="USER", help="owner shown for the root directory (name or number)")
    parser.add_argument("-g", "--group", metavar="GROUP", help="group shown for the root directory (name or number)")
    parser.add_argument(
        "-m", "--mode", metavar="MODE", help="permissions shown for the root directory (octal, e.g. 0770)"
    )
    parser.add_argument(
        "-l", "--log", metavar="LOGFILE", help="log file (default in the background: /var/log/vstor/mount-*.log)"
    )
    parser.add_argument("-d", "--level", metavar="LEVEL", choices=logs.LEVELS, help="debug, info, warning or error")
    parser.add_argument("-v", "--verbose", action="store_true", help="the same as -d debug")
    parser.add_argument("-C", "--cache", metavar="FILE", help="read cache on a local SSD (not available yet)")
    parser.add_argument("-R", "--cache-size", metavar="MB", help="size of the read cache (not available yet)")
    parser.add_argument("-V", "--version", action="version", version=f"{NAME} {__version__}")
    parser.add_argument("directory", metavar="DIR", help="mount point, an existing directory")
    return parser


def _user(text: str | None) -> int | None:
    if text is None or text.isdigit():
        return int(text) if text else None
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise VstorError(ErrorCode.USAGE, f"no user {text!r} on this host") from None


def _group(text: str | None) -> int | None:
    if text is None or text.isdigit():
        return int(text) if text else None
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise VstorError(ErrorCode.USAGE, f"no group {text!r} on this host") from None


def _number(own: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = own.get(name, str(default))
    if not text.isdigit() or not low <= int(text) <= high:
        raise VstorError(ErrorCode.USAGE, f"mount option {name} must be a number from {low} to {high}, not {text!r}")
    return int(text)


def configure(args: argparse.Namespace) -> Config:
    """Check everything that needs no network. Raises VstorError."""
    check_cluster_name(args.cluster)
    options = mountpoint.parse_options(",".join(args.options))
    own = options.own
    if args.cache or args.cache_size:
        raise VstorError(
            ErrorCode.NOT_SUPPORTED, "-C and -R (read cache on a local SSD) are not available yet; leave them out"
        )
    mode = args.mode or own.get("mode")
    if mode is not None and not re.fullmatch(r"[0-7]{3,4}", mode):
        raise VstorError(ErrorCode.USAGE, f"mode {mode!r} is not octal permissions such as 0770")
    nospace = own.get("nospace", "block")
    if nospace not in ("block", "error"):
        raise VstorError(ErrorCode.USAGE, f"mount option nospace is block or error, not {nospace!r}")
    timeout = _number(own, "timeout", int(CONNECT_S), 0, 1_000_000)
    log_name = args.log or own.get("log")
    config = Config(
        cluster=args.cluster,
        point=mountpoint.check_point(args.directory),
        flags=options.flags,
        timeout_s=timeout or None,
        wait_for_space=nospace == "block",
        max_background=_number(own, "max_background", MAX_BACKGROUND, 1, 65535),
        owner=(
            _user(args.user or own.get("user")),
            _group(args.group or own.get("group")),
            int(mode, 8) if mode else None,
        ),
        foreground=args.foreground,
        log_file=Path(log_name).absolute() if log_name else None,
        log_level="debug" if args.verbose else args.level or "info",
        stop_s=_number(own, "stop_timeout", STOP_S, 1, STOP_S_MAX),
    )
    os.close(mountpoint.open_fuse())
    load_identity(args.cluster)
    return config


def _ignore_signals() -> None:
    """It is ending already: a second SIGTERM must not cut off the flushing, nor hit the moment when the loop has let go of its handlers."""
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(sig)
        signal.signal(sig, signal.SIG_IGN)


class Mount:
    """The running file system."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.volume: Volume = open_volume(
            config.cluster,
            config.point,
            make_kernel=lambda engine: FuseKernel(
                lambda code, body: engine.native.fuse_notify(code, body), leave_names=os.environ.get(NAMES_ENV) != "0"
            ),
            wait_for_space=config.wait_for_space,
        )
        self.operations = FileOperations(self.volume)
        self.operations.owner = config.owner
        self._closed = asyncio.Event()
        self.volume.engine.on[cl.EV_FUSE_CLOSED] = lambda _event: self._closed.set()
        self._fd = -1
        self._device: str | None = None

    async def start(self) -> None:
        """Mounted and answering on return. Raises VstorError."""
        config = self.config
        await self.volume.start(config.timeout_s)
        self._fd = mountpoint.open_fuse()
        mountpoint.mount(self._fd, config.cluster, config.point, config.flags)
        self._device = mountpoint.device_at(config.point)
        result = self.volume.engine.native.fuse_start(self._fd, MAX_WRITE_BYTES, config.max_background)
        if result < 0:
            raise VstorError(ErrorCode.CONFIG, f"FUSE does not start: {os.strerror(-result)}")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                mode = (await loop.run_in_executor(None, os.stat, config.point)).st_mode
        except (TimeoutError, OSError) as exc:
            reason = getattr(exc, "strerror", None) or f"no answer within {ANSWER_S_MAX:.0f} s"
            raise VstorError(ErrorCode.UNREACHABLE, f"mounted, but the file system does not answer: {reason}") from exc
        assert isinstance(self.volume.kernel, FuseKernel)
        self.volume.kernel.probe()
        self.volume.leases.drop_kernel_names()  # those given until now were given for no time
        if not stat.S_ISDIR(mode):
            raise VstorError(ErrorCode.INTERNAL, "the root of the file system is not a directory")

    def _describe(self) -> None:
        for line in self.volume.describe():
            log.warning("state %s", line)

    async def wait(self) -> None:
        """Until umount(8) or SIGTERM. SIGUSR1 writes what is going on into the log."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._describe)
        signalled = asyncio.ensure_future(daemon.wait_for_signal())
        unmounted = asyncio.ensure_future(self._closed.wait())
        await asyncio.wait({signalled, unmounted}, return_when=asyncio.FIRST_COMPLETED)
        for task in (signalled, unmounted):
            task.cancel()
        _ignore_signals()
        if not self._closed.is_set():
            log.info("stopping on a signal point=%s", self.config.point)
            await self._unmount()
        else:
            log.info("unmounted point=%s", self.config.point)

    def _is_there(self) -> bool:
        """Ours is what is mounted at the mount point. After a umount -l of a busy file system it may be another one."""
        return self._device is not None and mountpoint.device_at(self.config.point) == self._device

    async def _unmount(self) -> None:
        """Busy file systems are detached: programs that have files open get errors, what they wrote before is flushed."""
        if not self._is_there():
            return
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(None, mountpoint.umount, self.config.point):
            log.warning("still in use, detached point=%s", self.config.point)
            await loop.run_in_executor(None, lambda: mountpoint.umount(self.config.point, lazy=True))
            return
        try:
            async with asyncio.timeout(DRAIN_S_MAX):
                await self._closed.wait()
        except TimeoutError:
            log.warning("the kernel does not let go point=%s", self.config.point)

    async def close(self) -> None:
        """Flush, give back, disconnect; the mount goes if it is still there. Bounded (Files.close_all), whether the cluster answers or not."""
        if self._fd >= 0 and not self._closed.is_set() and self._is_there():
            mountpoint.umount(self.config.point, lazy=True)
        await self.volume.close(self.config.stop_s, self._cut_off)
        if self._fd >= 0:
            os.close(self._fd)

    def _cut_off(self) -> None:
        """Requests that still wait in the kernel end with ECONNABORTED.

        Closing the descriptor alone does not do it: a thread that tells the kernel to drop a page (kernel.py) keeps it open, and waits for
        the lock of that page, which a request may hold that nobody will answer.
        """
        if self._device is not None and not self._closed.is_set():
            number = mountpoint.abort(self._device)
            if number:
                log.warning("connection not aborted point=%s reason=%s", self.config.point, os.strerror(number))


async def serve(config: Config, told: daemon.Readiness, report: Report) -> None:
    """Mount, serve, unmount."""
    mount = Mount(config)
    try:
        await mount.start()
        server = await _serve_metrics(config, mount)
        told.ready()
        report.done(0, "")
        log.info("mounted cluster=%s point=%s session=%s", config.cluster, config.point, mount.volume.session.id)
        await mount.wait()
        told.stopping()
        if server is not None:
            server.close()
        if server is not None and not mountpoint.is_mounted(config.point):  # else it is the next one's
            config.metrics_socket.unlink(missing_ok=True)
    finally:
        await mount.close()


async def _serve_metrics(config: Config, mount: Mount) -> asyncio.Server | None:
    """A file system without metrics is better than none."""
    try:
        return await daemon.serve_metrics(config.metrics_socket, lambda: metrics.render(mount.operations))
    except OSError as exc:
        log.error("no metrics path=%s reason=%s", config.metrics_socket, exc)
        return None


class Report:
    """How the process in the background tells the one that was called: exit status and a line, once."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd

    def done(self, status: int, line: str) -> None:
        if self._fd >= 0:
            os.write(self._fd, f"{status}\n{line}".encode()[:4000])
            os.close(self._fd)
            self._fd = -1


def _into_background() -> Report:
    """Fork. The parent waits for the report and exits with it; returns in the child only."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # what goes wrong is reported by the parent
            os.dup2(null, standard)
        os.close(null)
        return Report(writing)
    os.close(writing)
    text = b""
    while piece := os.read(reading, 4096):
        text += piece
    status, _, line = text.decode(errors="replace").partition("\n")
    if line:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    os._exit(int(status) if status else ErrorCode.INTERNAL)


def run(config: Config) -> int:
    """Serve in this process or in one in the background; the exit status."""
    log_file = config.log_file
    if not config.foreground and log_file is None:
        log_file = paths.log_dir() / f"{config.id}.log"
    report = Report() if config.foreground else _into_background()
    try:
        logs.setup_logging(NAME, config.log_level, log_file)
        daemon.raise_limits()
        discovery.preload()
        told = daemon.Readiness(config.id)
    except (VstorError, OSError) as exc:
        error = exc if isinstance(exc, VstorError) else VstorError(ErrorCode.CONFIG, str(exc))
        report.done(error.exit_code, f"{NAME}: {error.message}")
        return daemon.complain(NAME, error)
    failed: list[VstorError] = []

    async def main_task() -> None:
        try:
            await serve(config, told, report)
        except VstorError as exc:
            failed.append(exc)
            raise
        finally:
            told.stopping()

    status = daemon.run(NAME, main_task)
    report.done(
        status, f"{NAME}: {failed[0].message} [{failed[0].code.name}]" if failed else f"{NAME}: failed, see {log_file}"
    )
    return status


def main() -> int:
    """Entry point."""
    args = build_parser().parse_args()
    try:
        config = configure(args)
    except VstorError as exc:
        return daemon.complain(NAME, exc)
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
