"""vstor-etcd: runs the etcd member of an MDS repository.

DESIGN: this process becomes etcd (exec), so that the service manager watches etcd itself. A small helper, not a child of etcd, waits
until the member answers and then writes the readiness file; systemd is told by etcd itself. Everything etcd is told stands here.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import ssl
import sys
import time
from pathlib import Path

from vstor import daemon, logs, services
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.mds.repo_files import ETCD_PORT_OFFSET, MdsConfig, Repository
from vstor.mds.repository import check_ports_free, etcd_name, etcd_url
from vstor.net import identity

log = logging.getLogger(__name__)

NAME = "vstor-etcd"
QUOTA_BYTES = 8 << 30
SNAPSHOT_COUNT = 2000  # entries kept in memory: a transaction may be several MB
HEARTBEAT_MS, ELECTION_MS = 100, 1000
READY_S_MAX = 600.0
LOG_LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error"}


def command(binary: str, repository: Repository, config: MdsConfig, level: str = "warning") -> list[str]:
    """The command line of etcd. Listens on the addresses of make-mds only, mutual TLS with etcd's own CA everywhere."""
    tls = repository.etcd_tls
    peer, client = etcd_url(config.address), etcd_url(config.address, ETCD_PORT_OFFSET)
    return [
        binary,
        f"--name={etcd_name(config.mds_id)}",
        f"--data-dir={repository.etcd_data}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--initial-cluster={config.initial_cluster}",
        f"--initial-cluster-state={config.initial_state}",
        f"--initial-cluster-token=vstor-{config.cluster_id}",
        "--client-cert-auth",
        f"--trusted-ca-file={tls.ca}",
        f"--cert-file={tls.cert}",
        f"--key-file={tls.key}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={tls.ca}",
        f"--peer-cert-file={tls.cert}",
        f"--peer-key-file={tls.key}",
        "--experimental-peer-skip-client-san-verification",  # multi-homed hosts: the source address may be another one
        "--max-txn-ops=4096",
        "--max-request-bytes=8388608",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        f"--snapshot-count={SNAPSHOT_COUNT}",
        "--pre-vote=true",
        f"--heartbeat-interval={HEARTBEAT_MS}",
        f"--election-timeout={ELECTION_MS}",
        "--experimental-initial-corrupt-check=true",
        "--enable-v2=false",
        "--logger=zap",
        "--log-outputs=stderr",
        f"--log-level={LOG_LEVELS[level]}",
    ]


def find_binary() -> str:
    """Path of etcd. Raises CONFIG."""
    binary = shutil.which("etcd", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/usr/local/bin")
    if binary is None:
        raise VstorError(ErrorCode.CONFIG, "etcd is not installed on this host; install the package etcd-server")
    return binary


def check_data(repository: Repository) -> None:
    """Refuse to start without data that was there: an empty member with the old name would forget what it promised.

    Raises: DAMAGED.
    """
    data = repository.etcd_data
    if (data / "member").is_dir():
        repository.etcd_started_path.touch()
    elif repository.etcd_started_path.exists():
        message = f"the data of etcd in {data} is gone; restore it, or remove this MDS with rm-mds and make it again"
        raise VstorError(ErrorCode.DAMAGED, message)


def build_parser() -> argparse.ArgumentParser:
    """Options of vstor-etcd."""
    parser = argparse.ArgumentParser(prog=NAME, description="Run the etcd member of a metadata server's repository.")
    parser.add_argument("-r", "--repository", metavar="DIR", required=True, help="repository made by vstorctl make-mds")
    parser.add_argument("-u", "--user", metavar="USER", help="become this user")
    parser.add_argument("-l", "--log-file", metavar="LOGFILE", help="log there instead of standard error")
    parser.add_argument(
        "-d",
        "--log-level",
        metavar="LEVEL",
        choices=logs.LEVELS,
        default="warning",
        help="debug, info, warning or error (default: %(default)s)",
    )
    parser.add_argument("--show-config", action="store_true", help="print etcd's command line and exit")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Does not return when etcd runs; else the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return _start(args)
    except VstorError as exc:
        return daemon.complain(NAME, exc)


def _start(args: argparse.Namespace) -> int:
    repository = Repository(Path(args.repository).absolute())
    config = repository.load()
    if not config.managed_etcd:
        raise VstorError(
            ErrorCode.CONFIG,
            f"{repository.root}: this MDS uses an etcd of the operator ({', '.join(config.etcd_urls)})",
        )
    argv = command(find_binary(), repository, config, args.log_level)
    if repository.alone_path.exists():
        argv.append("--force-new-cluster")
    if args.show_config:
        print("\n".join(argv))
        return 0
    if args.user:
        daemon.drop_privileges(args.user)
    daemon.raise_limits()
    lock = repository.lock("etcd/lock")  # stays ours through exec
    os.set_inheritable(lock.fileno(), True)
    _, port = identity.parse_address(config.address)
    check_ports_free(config.address, [port, port + ETCD_PORT_OFFSET])
    check_data(repository)
    try:
        repository.etcd_data.mkdir(mode=0o700, exist_ok=True)
        repository.etcd_data.chmod(0o700)
        if args.log_file:
            _redirect(Path(args.log_file))
        readiness = daemon.Readiness(
            services.Service(config.cluster, "etcd", str(config.mds_id), str(repository.root)).name
        )
        _watch_in_background(readiness, repository, config)
        os.execv(argv[0], argv)
    except OSError as exc:
        raise from_os_error(exc, f"cannot run {argv[0]}") from exc


def _redirect(path: Path) -> None:
    """Standard output and error into the log file, for what comes after exec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _watch_in_background(readiness: daemon.Readiness, repository: Repository, config: MdsConfig) -> None:
    """Fork twice, so that init and not etcd inherits the helper."""
    etcd_pid = os.getpid()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            os.environ.pop("NOTIFY_SOCKET", None)  # etcd speaks for itself
            status = (
                0
                if _wait_until_healthy(etcd_pid, repository, config) and _write_ready(readiness, etcd_pid, repository)
                else 1
            )
        else:
            status = 0
    finally:
        os._exit(status)


def _wait_until_healthy(etcd_pid: int, repository: Repository, config: MdsConfig) -> bool:
    """Ask /health over mutual TLS until it says true; False when etcd has gone."""
    tls = repository.etcd_tls
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.check_hostname = False
    context.load_cert_chain(tls.cert, tls.key)
    host, port = identity.parse_address(config.address)
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline and Path(f"/proc/{etcd_pid}").exists():
        try:
            with (
                socket.create_connection((host, port + ETCD_PORT_OFFSET), 1) as plain,
                context.wrap_socket(plain) as sock,
            ):
                sock.settimeout(5)
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if b'"health":"true"' in b"".join(iter(lambda s=sock: s.recv(4096), b"")):  # type: ignore[misc]
                    return True
        except OSError:
            pass  # not yet; the process is looked at again
        time.sleep(0.1)
    return False


def _write_ready(readiness: daemon.Readiness, etcd_pid: int, repository: Repository) -> bool:
    repository.alone_path.unlink(missing_ok=True)  # it is alone now, and must not be made so again
    readiness.path.parent.mkdir(parents=True, exist_ok=True)
    tmp = readiness.path.with_suffix(".tmp")
    tmp.write_text(f"{etcd_pid}\n")
    os.replace(tmp, readiness.path)
    return True


if __name__ == "__main__":
    sys.exit(main())
