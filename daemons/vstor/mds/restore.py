"""After the loss of all MDSs: a new one from a backup. After the loss of the quorum for good: a surviving one goes on alone.

DESIGN: both leave `restored.json` in the repository. The first leader writes what a restore needs (model/restored.py) before it serves, and
removes the file. The chunk servers' replicas then decide what each chunk is; nothing they hold is deleted because old metadata do not know it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from vstor import clock, paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.mds import repository as made
from vstor.mds.backup import Manifest, extract_snapshot, read_manifest
from vstor.mds.members import IDS_MAX
from vstor.mds.repo_files import ETCD_PORT_OFFSET, MdsConfig, Repository, write_checked
from vstor.net import identity, pki
from vstor.net.rpc_connection import connect

RESTORE_S_MAX = 1800.0
PROBE_S = 1.5
ID_JUMP = 10  # MDSs that may have been added since the backup; ids are not used twice


def restore_cluster(cluster: str, archive: Path, address: str, repo: Path, *, force: bool = False) -> dict[str, Any]:
    """Make the repository of the only MDS of the cluster from a backup; start it afterwards, then join others.

    Args: force: although an MDS of the cluster answers.
    Returns: as create_cluster, and the manifest's time_ms. The same again when it is complete changes nothing.
    Raises: DAMAGED, WRONG_CLUSTER, FOREIGN_DATA, IN_USE, UNSAFE (an MDS of the cluster runs), CONFIG (etcdctl is missing).
    """
    identity.check_cluster_name(cluster)
    address = identity.format_address(*identity.parse_address(address))
    manifest = read_manifest(archive)
    if manifest.cluster != cluster:
        raise VstorError(ErrorCode.WRONG_CLUSTER, f"{archive} is of cluster {manifest.cluster!r}, not of {cluster!r}")
    repository = Repository(Path(repo).absolute())
    existing = made.existing(repository, cluster, address)
    if existing is not None:
        made.complete(repository, existing)
        return {**made.result(repository, existing, False), "time_ms": manifest.time_ms}
    _refuse_other_cluster(cluster, manifest)
    if not force:
        _refuse_running(cluster, manifest)
    _, port = identity.parse_address(address)
    made.check_ports_free(address, [port, port + 1, port + ETCD_PORT_OFFSET])
    mds_id = min(max(manifest.mds_ids, default=0) + ID_JUMP, IDS_MAX)
    try:
        made.begin(repository)
        config = _write(repository, manifest, archive, mds_id, address)
    except OSError as exc:
        raise from_os_error(exc, f"cannot make repository {repository.root}") from exc
    return {**made.result(repository, config, True), "time_ms": manifest.time_ms}


def _write(repository: Repository, manifest: Manifest, archive: Path, mds_id: int, address: str) -> MdsConfig:
    name, ca, ca_key = made.etcd_name(mds_id), manifest.secret("ca_cert"), manifest.secret("ca_key")
    csr, key = pki.make_csr(name)
    made.write_tls(repository, ca, pki.issue(ca, ca_key, csr, common=name, role=pki.ROLE_MDS), key)
    etcd_ca = manifest.secret("etcd_ca_cert")
    member = pki.issue(
        etcd_ca,
        manifest.secret("etcd_ca_key"),
        csr,
        common=name,
        role=pki.ROLE_ETCD,
        addresses=made.san_addresses(address),
    )
    made.write_etcd_tls(repository, etcd_ca, member, key)
    config = MdsConfig(
        cluster=manifest.cluster,
        cluster_id=manifest.cluster_id,
        mds_id=mds_id,
        address=address,
        host_id=identity.host_id(),
        managed_etcd=True,
        etcd_urls=[made.etcd_url(address, ETCD_PORT_OFFSET)],
        initial_cluster=f"{name}={made.etcd_url(address)}",
        initial_state="new",
        lease_ttl_s=manifest.lease_ttl_s,
    )
    _restore_data(repository, config, archive)
    if not identity.identity_files(manifest.cluster)[0].exists():
        made.write_node_identity(manifest.cluster, ca, ca_key)
    mark(repository)
    repository.save(config)
    made.complete(repository, config)
    return config


def _restore_data(repository: Repository, config: MdsConfig, archive: Path) -> None:
    """etcd's data directory, by etcd's own tool, which checks the snapshot's hash. Raises DAMAGED, CONFIG."""
    tool = shutil.which("etcdctl", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/usr/local/bin")
    if tool is None:
        raise VstorError(ErrorCode.CONFIG, "etcdctl is not installed on this host; install the package etcd-client")
    data = repository.etcd_data
    if data.exists():
        shutil.rmtree(data)  # of a run that was interrupted: without mds.json nothing can have been started from it
    with tempfile.TemporaryDirectory(dir=repository.root, prefix=".restore-") as scratch:
        snapshot = Path(scratch) / "etcd.snapshot"
        extract_snapshot(archive, snapshot)
        argv = [
            tool, "snapshot", "restore", str(snapshot), f"--data-dir={data}", f"--name={made.etcd_name(config.mds_id)}",
            f"--initial-cluster={config.initial_cluster}", f"--initial-advertise-peer-urls={made.etcd_url(config.address)}",
            f"--initial-cluster-token=vstor-{config.cluster_id}-{clock.unix_ms()}",
        ]  # fmt: skip
        done = subprocess.run(
            argv,
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=RESTORE_S_MAX,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise VstorError(ErrorCode.DAMAGED, f"etcdctl cannot restore {archive}: {lines[-1][:300]}")


def mark(repository: Repository) -> None:
    """The next leader from this repository begins with a reconciliation. Durable on return."""
    write_checked(repository.restored_path, {"time_ms": clock.unix_ms()}, 0o600)


def recover_survivor(repo: Path, *, force: bool = False) -> dict[str, Any]:
    """The MDS of this repository shall go on alone: its etcd member forgets the others at its next start, whatever they know.

    Transactions that this member had not received yet are lost, as with a backup of that moment. Its services must be stopped.
    Raises: NOT_FOUND, IN_USE (it runs), UNSAFE (another MDS of the cluster runs), CONFIG (etcd of the operator), DAMAGED (no data).
    """
    repository = Repository(Path(repo).absolute())
    config = repository.load()
    if not config.managed_etcd:
        raise VstorError(ErrorCode.CONFIG, "this cluster uses an etcd of the operator: recover it with its own tools")
    for name in ("lock", "etcd/lock"):
        try:
            repository.lock(name).close()
        except VstorError as exc:
            if exc.code != ErrorCode.IN_USE:
                raise
            raise VstorError(
                ErrorCode.IN_USE,
                f"the MDS in {repository.root} runs; stop its services first (vstorctl service stop mds etcd)",
            ) from exc
    if not (repository.etcd_data / "member").is_dir():
        raise VstorError(ErrorCode.DAMAGED, f"{repository.etcd_data} holds no data of etcd; restore from a backup")
    if not force:
        addresses = [a for a in identity.read_bs_list(config.cluster) if a != config.address]
        _refuse_answering(addresses, config.cluster)
    mark(repository)
    write_checked(repository.alone_path, {"time_ms": clock.unix_ms()}, 0o600)
    return made.result(repository, config, True)


def _refuse_other_cluster(cluster: str, manifest: Manifest) -> None:
    ca_path = identity.identity_files(cluster)[0]
    if ca_path.exists() and pki.read_ca_names(ca_path.read_bytes(), str(ca_path))[1] != manifest.cluster_id:
        message = f"this node belongs to another cluster named {cluster!r}; remove {paths.cluster_dir(cluster)} first"
        raise VstorError(ErrorCode.WRONG_CLUSTER, message)


def _refuse_running(cluster: str, manifest: Manifest) -> None:
    addresses = list(manifest.mds_addresses)
    with suppress(VstorError):  # none of ours is known here
        addresses += identity.read_bs_list(cluster)
    _refuse_answering(list(dict.fromkeys(addresses)), cluster)


def _refuse_answering(addresses: list[str], cluster: str) -> None:
    """Two clusters with the same chunk servers would take them from each other. Raises UNSAFE."""

    async def answers(address: str) -> bool:
        try:
            conn = await connect(
                identity.control_address(address), pki.unverified_context(), timeout_s=PROBE_S, verified=False
            )
        except VstorError:
            return False
        conn.abort()
        return True

    async def ask() -> list[bool]:
        return list(await asyncio.gather(*map(answers, addresses)))

    running = [a for a, found in zip(addresses, asyncio.run(ask()), strict=True) if found]
    if running:
        message = f"an MDS of cluster {cluster!r} runs at {', '.join(running)}; stop it for good first, or give --force"
        raise VstorError(ErrorCode.UNSAFE, message)
