"""Where things live on a node. Each root can be moved by an environment variable (several nodes on one machine, tests)."""

from __future__ import annotations

import os
from pathlib import Path


def etc_dir() -> Path:
    """Configuration: clusters/NAME/…, host_id, location."""
    return Path(os.environ.get("VSTOR_ETC", "/etc/vstor"))


def run_dir() -> Path:
    """Sockets, readiness and pid files; gone after a reboot."""
    return Path(os.environ.get("VSTOR_RUN", "/run/vstor"))


def log_dir() -> Path:
    """Log files."""
    return Path(os.environ.get("VSTOR_LOG", "/var/log/vstor"))


def state_dir() -> Path:
    """Default place of repositories."""
    return Path(os.environ.get("VSTOR_STATE", "/var/lib/vstor"))


def cluster_dir(cluster: str) -> Path:
    """Configuration of one cluster on this node."""
    return etc_dir() / "clusters" / cluster


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data`, durable on return: temporary file, fsync, rename, fsync of the directory (rename(2), fsync(2))."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError:
        os.close(fd)
        tmp.unlink(missing_ok=True)
        raise
    os.close(fd)
    os.replace(tmp, path)
    dir_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)
