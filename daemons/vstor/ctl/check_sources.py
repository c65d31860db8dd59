"""Where `check` gets its facts: the records from etcd at one revision, what chunk servers hold from themselves or from their disks."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vstor import paths
from vstor import services as registry
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.mds.large import Chain, Staged
from vstor.mds.repo_files import MdsConfig, Repository
from vstor.meta.etcd import EtcdStore
from vstor.meta.etcd_client import parse_endpoint
from vstor.meta.store import Mutation, Snapshot
from vstor.model.check import Held, Inventory
from vstor.net.identity import control_address

ANSWER_S_MAX = 600.0  # of one page: with data it reads whole chunks
ANSWER_BYTES_MAX = 64 << 20
REPAIR_LEASE_S = 10


@dataclass(frozen=True)
class Metadata:
    """The store of a cluster, reached with the certificates of an MDS of this node."""

    repository: Repository
    config: MdsConfig

    def _store(self) -> EtcdStore:
        secure = any(parse_endpoint(url)[1] for url in self.config.etcd_urls)
        return EtcdStore(self.config.etcd_urls, self.repository.etcd_tls if secure else None)

    def load(self) -> Snapshot:
        """Everything at one revision. Raises META_UNAVAILABLE."""

        async def run() -> Snapshot:
            store = self._store()
            try:
                return await store.load()
            finally:
                await store.close()

        return asyncio.run(run())

    def repair(self, snapshot: Snapshot, mutations: dict[bytes, bytes | None]) -> None:
        """Write, as the leader for a moment, onto exactly what `snapshot` saw. Raises UNSAFE when an MDS leads or something changed."""

        async def run() -> None:
            store = self._store()
            try:
                value = json.dumps(
                    {"mds_id": self.config.mds_id, "address": control_address(self.config.address)}
                ).encode()
                leadership = await store.campaign(value, REPAIR_LEASE_S)
                if leadership is None:
                    text = "an MDS leads the cluster — stop all MDSs (their etcd keeps running), then repair"
                    raise VstorError(ErrorCode.UNSAFE, text)
                try:
                    head = await store.load()
                    if head.seq != snapshot.seq:
                        raise VstorError(
                            ErrorCode.UNSAFE, "the records changed meanwhile, nothing was written — check again"
                        )
                    chain = Chain(leadership, head.seq, secrets.token_bytes)
                    staged = _staged(head)
                    if staged:
                        await chain.finish(staged)
                    await chain.commit_all(mutations)
                finally:
                    await leadership.resign()
            finally:
                await store.close()

        asyncio.run(run())


def _staged(snapshot: Snapshot) -> Staged:
    staged = Staged()
    staged.apply(snapshot.items)
    return staged


def records(snapshot: Snapshot) -> list[Mutation]:
    """What holds at the snapshot: a large change that is marked is done, though it may still be written (mds/large.py). Raises DAMAGED."""
    staged = _staged(snapshot)
    marked = [mutation for _, part in sorted(staged.parts().items()) for mutation in part] if staged.marked else []
    return [*snapshot.items, *marked]


def local_metadata(cluster: str) -> Metadata:
    """By an MDS of this node. Raises NOT_FOUND."""
    for service in registry.list_services(cluster):
        if service.kind == "mds":
            repository = Repository(Path(service.path))
            return Metadata(repository, repository.load())
    raise VstorError(
        ErrorCode.NOT_FOUND, f"no MDS of cluster {cluster} was made on this node — run check where one is, see status"
    )


# --- chunk servers of this node


def local_inventories(cluster: str, cluster_id: str, data: bool) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """What each chunk server of this node holds, as JSON would have it; and why one could not be examined."""
    found: dict[int, dict[str, Any]] = {}
    failed: dict[int, str] = {}
    for service in registry.list_services(cluster):
        if service.kind != "cs":
            continue
        try:
            found[int(service.id)] = _one(service.name, Path(service.path), cluster_id, data)
        except VstorError as exc:
            failed[int(service.id)] = exc.message
    return found, failed


def _one(name: str, repo: Path, cluster_id: str, data: bool) -> dict[str, Any]:
    from vstor.cs import inventory, repository

    sock = paths.run_dir() / f"{name}.metrics.sock"
    pages = _ask_all(sock, data)
    if pages is not None:
        return {**pages, "running": True, "settled": True, "damaged": []}
    identity = repository.read_identity(repo)
    if _in_use(repo):
        raise VstorError(ErrorCode.BUSY, f"its process runs but does not answer at {sock} — wait until it has started")
    try:
        held = inventory.read_disk(repo, cluster_id, data)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {repo}") from exc
    journal = Path(identity.journal) if identity.journal else repo / "journal"
    return {**held, "running": False, "settled": inventory.journal_settled(journal)}


def _in_use(repo: Path) -> bool:
    try:
        with (repo / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _ask_all(sock: Path, data: bool) -> dict[str, Any] | None:
    """All pages of a running chunk server, None where none listens. Raises IO_ERROR."""
    rows: list[Any] = []
    while True:
        page = _ask(sock, f"/inventory?after={rows[-1][0] if rows else 0}&data={int(data)}")
        if page is None:
            return None
        rows += page["replicas"]
        if not page["more"]:
            return {**page, "replicas": rows}


def _ask(sock: Path, url: str) -> dict[str, Any] | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as conn:
        conn.settimeout(ANSWER_S_MAX)
        try:
            # sun_path holds 107 bytes (unix(7)): by the descriptor of its directory.
            place = os.open(sock.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                conn.connect(f"/proc/self/fd/{place}/{sock.name}")
            finally:
                os.close(place)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as exc:
            raise from_os_error(exc, f"cannot ask {sock}") from exc
        try:
            conn.sendall(f"GET {url} HTTP/1.1\r\n\r\n".encode())
            answer = bytearray()
            while part := conn.recv(1 << 16):
                answer += part
                if len(answer) > ANSWER_BYTES_MAX:
                    raise VstorError(ErrorCode.LIMIT, f"{sock} sends too much")
        except OSError as exc:
            raise from_os_error(exc, f"{sock} stopped answering") from exc
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise VstorError(ErrorCode.IO_ERROR, f"{sock}: {body.decode(errors='replace').strip()}")
    value: dict[str, Any] = json.loads(body)
    return value


def inventory_of(item: dict[str, Any]) -> Inventory:
    """An inventory as JSON had it. Raises INVALID for something else."""
    try:
        replicas = {row[0]: Held(row[1], bool(row[2]), row[3], row[4]) for row in item["replicas"]}
        return Inventory(replicas, item["quarantined"], list(item.get("damaged", ())), item["settled"])
    except (KeyError, IndexError, TypeError) as exc:
        raise VstorError(ErrorCode.INVALID, f"not an inventory of a chunk server ({exc})") from exc
