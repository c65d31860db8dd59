"""The repository of an MDS on disk: what lies where, reading and writing mds.json and the bootstrap record.

mds.json            who this MDS is (checksummed)
tls/                ca.crt mds.crt mds.key       control RPC
etcd/tls/           ca.crt member.crt member.key etcd peers, server and client
etcd/data           of the etcd member, when this MDS runs one
etcd/started        the member has had data: an empty data directory is a loss from now on
restored.json       0600, the next leader begins with the reconciliation of a restore
etcd/alone          the member goes on alone at its next start (--force-new-cluster), then removed
bootstrap.json      0600, secrets of a new cluster until its first start has put them into etcd
incomplete          while make-mds writes
lease, lock         of the running daemon
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.meta.etcd_client import EtcdTls

FORMAT = 1
LEASE_TTL_S = 2  # of the leadership: what the loss of the leading host costs; etcd allows no less
FILE_BYTES_MAX = 1 << 20
FOREIGN_OK = {"lost+found"}
ETCD_PORT_OFFSET = 2  # etcd clients; + 1 is the control RPC


@dataclass(frozen=True, slots=True)
class MdsConfig:
    """Contents of mds.json. Addresses are MDS-to-MDS ones, ip:port."""

    cluster: str
    cluster_id: str
    mds_id: int
    address: str
    host_id: str
    managed_etcd: bool  # this MDS runs an etcd member
    etcd_urls: list[str]  # client endpoints of all members
    initial_cluster: str = ""  # --initial-cluster of the member's first start
    initial_state: str = "new"
    lease_ttl_s: int = LEASE_TTL_S
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repository:
    """Paths of a repository."""

    root: Path

    @property
    def config_path(self) -> Path:
        return self.root / "mds.json"

    @property
    def bootstrap_path(self) -> Path:
        return self.root / "bootstrap.json"

    @property
    def restored_path(self) -> Path:
        return self.root / "restored.json"

    @property
    def alone_path(self) -> Path:
        return self.root / "etcd" / "alone"

    @property
    def incomplete_path(self) -> Path:
        return self.root / "incomplete"

    @property
    def lease_path(self) -> Path:
        return self.root / "lease"

    @property
    def tls(self) -> tuple[Path, Path, Path]:
        """(certificate, key, CA) of the control RPC."""
        return self.root / "tls" / "mds.crt", self.root / "tls" / "mds.key", self.root / "tls" / "ca.crt"

    @property
    def etcd_tls(self) -> EtcdTls:
        directory = self.root / "etcd" / "tls"
        return EtcdTls(directory / "ca.crt", directory / "member.crt", directory / "member.key")

    @property
    def etcd_data(self) -> Path:
        return self.root / "etcd" / "data"

    @property
    def etcd_started_path(self) -> Path:
        return self.root / "etcd" / "started"

    def load(self) -> MdsConfig:
        """mds.json. Raises NOT_FOUND, DAMAGED, NEWER_FORMAT."""
        item = read_checked(self.config_path, "run make-mds for this directory first")
        try:
            return MdsConfig(**item)
        except TypeError as exc:
            raise VstorError(
                ErrorCode.DAMAGED, f"{self.config_path} is damaged ({exc}); restore it from a backup"
            ) from exc

    def save(self, config: MdsConfig) -> None:
        """Durable on return; writes only what changed."""
        write_checked(self.config_path, asdict(config), 0o644)

    def load_bootstrap(self) -> tuple[dict[str, str], dict[str, bytes]] | None:
        """(configuration, secrets) of a cluster that was never started, None when there is none. Raises DAMAGED."""
        if not self.bootstrap_path.exists():
            return None
        item = read_checked(self.bootstrap_path, "")
        return item["config"], {name: base64.b64decode(text) for name, text in item["secrets"].items()}

    def save_bootstrap(self, config: dict[str, str], secrets: dict[str, bytes]) -> None:
        """Durable on return."""
        encoded = {name: base64.b64encode(data).decode() for name, data in secrets.items()}
        write_checked(self.bootstrap_path, {"config": config, "secrets": encoded}, 0o600)

    def lock(self, name: str) -> IO[bytes]:
        """Exclusive use by one process, for as long as the file is kept open. Raises IN_USE, NOT_FOUND, DENIED."""
        path = self.root / name
        try:
            file = path.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VstorError(ErrorCode.IN_USE, f"{self.root} is in use by another process") from None
        except OSError as exc:
            raise from_os_error(exc, f"cannot use repository {self.root}") from exc
        return file

    def foreign_entries(self) -> list[str]:
        """What lies in the directory besides things a file system makes itself."""
        return sorted(name for name in os.listdir(self.root) if name not in FOREIGN_OK)


def write_checked(path: Path, item: dict[str, Any], mode: int) -> None:
    """JSON with format and checksum, durable on return; the same again writes nothing."""
    body = json.dumps(item, sort_keys=True)
    data = json.dumps(
        {"format": FORMAT, "sha256": hashlib.sha256(body.encode()).hexdigest(), "content": item}, indent=1
    )
    encoded = data.encode() + b"\n"
    if not path.exists() or path.read_bytes() != encoded:
        paths.write_atomic(path, encoded, mode)


def read_checked(path: Path, missing_hint: str) -> dict[str, Any]:
    """Content of a file of write_checked. Raises NOT_FOUND with the hint, DAMAGED, NEWER_FORMAT."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise VstorError(ErrorCode.NOT_FOUND, f"{path} is missing; {missing_hint}") from None
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path}") from exc
    try:
        item = json.loads(raw)
        version, digest, content = item["format"], item["sha256"], item["content"]
    except (ValueError, KeyError, TypeError) as exc:
        raise VstorError(ErrorCode.DAMAGED, f"{path} is damaged (not JSON of vstor); restore it from a backup") from exc
    if not isinstance(version, int) or version > FORMAT:
        raise VstorError(
            ErrorCode.NEWER_FORMAT,
            f"{path} has format {version}, this program knows {FORMAT}; install the newer version",
        )
    if hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() != digest or not isinstance(
        content, dict
    ):
        raise VstorError(ErrorCode.DAMAGED, f"{path} is damaged (checksum); restore it from a backup")
    return content
