"""What every daemon needs: signals, readiness, privileges, metrics, one line instead of a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

log = logging.getLogger(__name__)

METRICS_REQUEST_BYTES_MAX = 8192
METRICS_CONNECTIONS_MAX = 16


def sd_notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


class Readiness:
    """$VSTOR_RUN/NAME.ready holds the pid while the daemon serves; systemd is told as well."""

    def __init__(self, name: str) -> None:
        self.path = paths.run_dir() / f"{name}.ready"
        self.path.unlink(missing_ok=True)

    def ready(self) -> None:
        """From now on requests are served."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.path.with_suffix(".tmp")
        tmp.write_text(f"{os.getpid()}\n")
        os.replace(tmp, self.path)
        sd_notify("READY=1")

    def stopping(self) -> None:
        """No longer served by this process; one that took over meanwhile keeps its file."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.read_text().strip() == str(os.getpid()):
                self.path.unlink()
        sd_notify("STOPPING=1")


def drop_privileges(user: str) -> None:
    """Become `user`, with its groups, keeping raised limits. Nothing when not root already. Raises CONFIG for an unknown user."""
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise VstorError(ErrorCode.CONFIG, f"no user {user!r} on this host; create it or give -u another one") from None
    os.setgroups([g.gr_gid for g in grp.getgrall() if user in g.gr_mem])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def raise_limits(files: int = 65536) -> None:
    """Open files and locked memory (io_uring's registered buffers) as far as this process may.

    Root without CAP_SYS_RESOURCE, as in containers, may not go above the hard limit (setrlimit(2)): then that is what there is.
    """
    for which, wanted in ((resource.RLIMIT_NOFILE, files), (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)):
        _, hard = resource.getrlimit(which)
        unlimited = resource.RLIM_INFINITY
        within = hard if wanted == unlimited else wanted if hard == unlimited else min(wanted, hard)
        try:
            resource.setrlimit(which, (wanted, wanted))
        except (ValueError, PermissionError):
            resource.setrlimit(which, (within, hard))


Page = Callable[[dict[str, str]], Awaitable[bytes]]


async def serve_metrics(path: Path, render: Callable[[], str], pages: dict[str, Page] | None = None) -> asyncio.Server:
    """Prometheus text format over HTTP on a unix socket at `path` (world-connectable is not wanted: 0660).

    Args:
        render: returns the whole text and must not block.
        pages: other paths, asked with the parameters of the query; ValueError of one is Bad Request, VstorError is Service Unavailable.
    """
    open_connections = 0
    known = dict(pages or {})

    async def metrics_page(_query: dict[str, str]) -> bytes:
        return render().encode()

    known["/metrics"] = metrics_page

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            if open_connections > METRICS_CONNECTIONS_MAX:
                return
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n\r\n")
            status, body = await _page(known, request)
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; version=0.0.4\r\n"
            async with asyncio.timeout(5):
                writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            log.debug("metrics request dropped")
        finally:
            open_connections -= 1
            writer.close()

    # sun_path holds 107 bytes (unix(7)): bound by a short name in the directory's descriptor, then renamed.
    short = f".m{os.getpid()}"
    directory = _make_directory(path.parent)
    try:
        place = f"/proc/self/fd/{directory}/{short}"
        server = await asyncio.start_unix_server(answer, place, limit=METRICS_REQUEST_BYTES_MAX)
        os.chmod(short, 0o660, dir_fd=directory)
        os.replace(short, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)
    return server


async def _page(pages: dict[str, Page], request: bytes) -> tuple[HTTPStatus, bytes]:
    """Answer of a request "GET /path?query HTTP/1.1"."""
    words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    url = urlsplit(words[1] if len(words) == 3 and words[0] == "GET" else "")
    page = pages.get(url.path)
    if page is None:
        return HTTPStatus.NOT_FOUND, b"see /metrics\n"
    try:
        return HTTPStatus.OK, await page(dict(parse_qsl(url.query)))
    except ValueError as exc:
        return HTTPStatus.BAD_REQUEST, f"{exc}\n".encode()
    except VstorError as exc:
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{exc.message}\n".encode()


def _make_directory(path: Path) -> int:
    """A descriptor of the directory, made when absent."""
    path.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


async def wait_for_signal() -> signal.Signals:
    """Returns the first SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    got: asyncio.Future[signal.Signals] = loop.create_future()

    def take(sig: signal.Signals) -> None:
        if not got.done():
            got.set_result(sig)

    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, take, sig)
    return await got


def run(name: str, main: Callable[[], Awaitable[None]]) -> int:
    """Run the daemon's coroutine; the exit status. An error of vstor is one line on standard error and in the log, without a traceback."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())  # type: ignore[arg-type]
        return 0
    except VstorError as exc:
        return complain(name, exc)
    except BaseExceptionGroup as group:
        known, rest = group.split(VstorError)
        if rest is None and known is not None:
            return complain(name, _first(known))
        log.critical("stopped by an internal error", exc_info=group)
        return complain(name, VstorError(ErrorCode.INTERNAL, f"internal error, see the log: {group}"))
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        log.critical("stopped by an internal error", exc_info=exc)
        return complain(
            name, VstorError(ErrorCode.INTERNAL, f"internal error, see the log: {type(exc).__name__}: {exc}")
        )


def _first(group: BaseExceptionGroup[VstorError]) -> VstorError:
    inner = group.exceptions[0]
    return inner if isinstance(inner, VstorError) else _first(inner)


def complain(name: str, exc: VstorError) -> int:
    """Say it in one line; the exit status."""
    line = f"{name}: {exc.message} [{exc.code.name}]"
    print(line, file=sys.stderr, flush=True)
    if logging.getLogger().handlers:
        log.error("cannot run: %s code=%s", exc.message, exc.code.name)
    return exc.exit_code
