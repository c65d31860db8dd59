"""A backup of the metadata: a snapshot of etcd and what is needed to make a working MDS of it, in one file with mode 0600.

DESIGN: a tar archive of etcd.snapshot, as etcd gives it, and manifest.json (who, when, which revision, SHA-256 of the snapshot, CA keys). The
file holds every secret of the cluster (CA keys, the password verifier, data keys), as etcd itself does: who can read it owns the cluster.
The snapshot is not older than the newest transaction acknowledged before the backup began. Restoring is restore.py's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from vstor import __version__, clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.mds.members import KIND, Members
from vstor.mds.repo_files import ETCD_PORT_OFFSET, MdsConfig, Repository
from vstor.mds.repository import etcd_url
from vstor.meta.etcd_client import EtcdClient, Member
from vstor.meta.etcd_pb import rpc
from vstor.meta.keys import PREFIX
from vstor.model import keys
from vstor.model.records import Blob, decode

FORMAT = 1
MANIFEST, SNAPSHOT = "manifest.json", "etcd.snapshot"
MANIFEST_BYTES_MAX = 1 << 20
NEEDED = ("ca_cert", "ca_key", "etcd_ca_cert", "etcd_ca_key")
SNAPSHOT_S_MAX = 600.0
CATCH_UP_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the archive says of itself. secrets: base64."""

    cluster: str
    cluster_id: str
    time_ms: int
    revision: int
    version: str
    mds_ids: list[int]  # all that ever were
    mds_addresses: list[str]
    lease_ttl_s: int
    snapshot_sha256: str
    snapshot_bytes: int
    secrets: dict[str, str]

    def secret(self, name: str) -> bytes:
        """A CA certificate or key."""
        return base64.b64decode(self.secrets[name])


def make_backup(repository: Repository, target: Path) -> Manifest:
    """Write `target` (0600, durable on return), from the etcd of this MDS. It is written beside and renamed: a crash leaves no half file.

    Raises: EXISTS, CONFIG (an MDS without an etcd member of its own: back up the operator's etcd with its own tools), META_UNAVAILABLE, DENIED.
    """
    config = repository.load()
    if not config.managed_etcd:
        raise VstorError(
            ErrorCode.CONFIG, "this cluster uses an etcd of the operator: back it up with etcdctl snapshot save"
        )
    if target.exists():
        raise VstorError(ErrorCode.EXISTS, f"{target} exists; name another file")
    part = target.with_name(f".{target.name}.part")
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w+b") as file:
            os.fchmod(fd, 0o600)
            manifest = _write(repository, config, file)
            file.flush()
            os.fsync(fd)
        os.rename(part, target)
        _sync_directory(target.parent)
    except OSError as exc:
        raise from_os_error(exc, f"cannot write {target}") from exc
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(repository: Repository, config: MdsConfig, file: Any) -> Manifest:
    """The archive. The header of the snapshot comes first and is written last, when its size is known."""
    header = tarfile.BLOCKSIZE
    file.seek(header)
    facts = asyncio.run(_collect(repository, config, file))
    size = file.tell() - header
    file.seek(header)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = Manifest(snapshot_sha256=digest, snapshot_bytes=size, **facts)
    data = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
    file.write(bytes(-size % tarfile.BLOCKSIZE) + _header(MANIFEST, len(data)) + data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
    file.seek(0)
    file.write(_header(SNAPSHOT, size))
    return manifest


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT)


async def _collect(repository: Repository, config: MdsConfig, file: Any) -> dict[str, Any]:
    """The snapshot into `file`, the rest of the manifest as the result."""
    client = EtcdClient([etcd_url(config.address, ETCD_PORT_OFFSET)], repository.etcd_tls)
    try:
        # 1. Linearizable: nothing acknowledged before is missing at this revision.
        spans = [PREFIX + keys.SECRET, PREFIX + KIND]
        replies = [
            await client.call("KV", "Range", rpc.RangeRequest(key=k, range_end=k[:-1] + bytes([k[-1] + 1])))
            for k in spans
        ]
        secrets = {keys.split_name(kv.key[len(PREFIX) :]): decode(Blob, kv.value).data for kv in replies[0].kvs}
        members = Members()
        members.apply([(kv.key[len(PREFIX) :], kv.value) for kv in replies[1].kvs])
        missing = [name for name in NEEDED if name not in secrets]
        if missing:
            raise VstorError(ErrorCode.DAMAGED, f"etcd lacks {', '.join(missing)}; was the cluster ever started?")
        revision = int(replies[0].header.revision)
        # 2. This member has applied it: its snapshot does not lack it.
        await _caught_up(client, revision)
        # 3. The snapshot itself.
        await _stream(client.member, file)
    except grpc.aio.AioRpcError as exc:
        raise VstorError(ErrorCode.META_UNAVAILABLE, f"etcd gives no snapshot: {exc.details()}") from exc
    finally:
        await client.close()
    return {
        "cluster": config.cluster,
        "cluster_id": config.cluster_id,
        "time_ms": clock.unix_ms(),
        "revision": revision,
        "version": __version__,
        "mds_ids": sorted(members.records),
        "mds_addresses": [record.address for record in members.active()],
        "lease_ttl_s": config.lease_ttl_s,
        "secrets": {name: base64.b64encode(secrets[name]).decode() for name in NEEDED},
    }


async def _caught_up(client: EtcdClient, revision: int) -> None:
    async with asyncio.timeout(CATCH_UP_S_MAX):
        while True:
            request = rpc.RangeRequest(key=PREFIX, serializable=True, count_only=True)
            if (await client.call("KV", "Range", request)).header.revision >= revision:
                return
            await asyncio.sleep(0.1)


async def _stream(member: Member, file: Any) -> None:
    async for part in member.stub("Maintenance").Snapshot(rpc.SnapshotRequest(), timeout=SNAPSHOT_S_MAX):
        file.write(part.blob)


def read_manifest(archive: Path) -> Manifest:
    """The manifest alone. Raises NOT_FOUND, DENIED, DAMAGED, NEWER_FORMAT."""
    try:
        with tarfile.open(archive, "r:") as tar:
            info = tar.getmember(MANIFEST)
            if info.size > MANIFEST_BYTES_MAX:
                raise VstorError(ErrorCode.DAMAGED, f"{archive} is no backup of vstor")
            file = tar.extractfile(info)
            assert file is not None
            item = json.loads(file.read())
        version = item.pop("format")
        if version > FORMAT:
            raise VstorError(ErrorCode.NEWER_FORMAT, f"{archive} has format {version}; install the newer version")
        return Manifest(**item)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {archive}") from exc
    except (tarfile.TarError, ValueError, KeyError, TypeError) as exc:
        raise VstorError(ErrorCode.DAMAGED, f"{archive} is no backup of vstor, or is damaged ({exc})") from exc


def extract_snapshot(archive: Path, target: Path) -> Manifest:
    """The snapshot into `target` (0600), compared with its checksum. Raises as read_manifest."""
    manifest = read_manifest(archive)
    digest = hashlib.sha256()
    try:
        with tarfile.open(archive, "r:") as tar:
            source = tar.extractfile(SNAPSHOT)
            assert source is not None
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                while block := source.read(4 << 20):
                    digest.update(block)
                    file.write(block)
    except OSError as exc:
        raise from_os_error(exc, f"cannot extract {archive}") from exc
    except (tarfile.TarError, KeyError) as exc:
        raise VstorError(ErrorCode.DAMAGED, f"{archive} is damaged ({exc}); use another backup") from exc
    if digest.hexdigest() != manifest.snapshot_sha256:
        raise VstorError(ErrorCode.DAMAGED, f"{archive} is damaged (checksum); use another backup")
    return manifest
