"""make-mds: a new cluster with its first MDS, or another MDS of a cluster that runs.

DESIGN: nothing is started here and etcd is not needed: the secrets of a new cluster wait in bootstrap.json (0600) until the first start
puts them into etcd. mds.json is written last, so that a repository with it is complete; before, `incomplete` marks it as ours and a
rerun begins again. The same arguments again change nothing.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import secrets as random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from vstor import paths, services
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.mds.members import MdsRecord
from vstor.mds.repo_files import ETCD_PORT_OFFSET, LEASE_TTL_S, MdsConfig, Repository
from vstor.meta.etcd_client import parse_endpoint
from vstor.model import config as cluster_config
from vstor.net import auth, identity, pki
from vstor.net.rpc_client import call_once
from vstor.proto import messages as m

ETCD_TLS_OPTIONS = ("etcd-ca", "etcd-cert", "etcd-key")  # files for an etcd of the operator, given among the settings
LEASE_TTL_OPTION = "mds-lease-ttl-s"
JOIN_S_MAX = 60.0


def etcd_name(mds_id: int) -> str:
    """Name of the etcd member of an MDS."""
    return f"mds{mds_id}"


def etcd_url(address: str, offset: int = 0) -> str:
    """https://ip:port of the member: offset 0 peers, ETCD_PORT_OFFSET clients."""
    host, port = identity.parse_address(address)
    return f"https://{identity.format_address(host, port + offset)}"


def san_addresses(address: str) -> list[str]:
    """IPs of the etcd member's certificate. On loopback the source address of a connection is 127.0.0.1 whatever the target's is."""
    host, _ = identity.parse_address(address)
    ip = ipaddress.ip_address(host)
    return [host, "127.0.0.1" if ip.version == 4 else "::1"] if ip.is_loopback else [host]


def check_ports_free(address: str, ports: list[int]) -> None:
    """Raises IN_USE naming the port, CONFIG when the address is not of this host."""
    host, _ = identity.parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as exc:
                where = identity.format_address(host, port)
                if exc.errno == errno.EADDRNOTAVAIL:
                    raise VstorError(
                        ErrorCode.CONFIG, f"{host} is no address of this host; give one of its own with -a"
                    ) from exc
                if exc.errno == errno.EADDRINUSE:
                    raise VstorError(
                        ErrorCode.IN_USE, f"port {where} is in use by another program; choose another with -a IP:PORT"
                    ) from exc
                raise from_os_error(exc, f"cannot use {where}") from exc


def create_cluster(
    cluster: str,
    address: str,
    repo: Path,
    password: bytes,
    etcd: list[str] | None = None,
    config: dict[str, str] | None = None,
) -> dict[str, Any]:
    """make-mds -I: the repository of the first MDS of a new cluster, this node's certificate, bs.list and the registry of services.

    Args:
        address: IP[:PORT]; PORT etcd peers, +1 control RPC, +2 etcd clients.
        repo: a new or empty directory (lost+found is fine).
        etcd: client URLs of an etcd of the operator, None: this MDS runs a member.
        config: options of the cluster (model/config.py); also etcd-ca, etcd-cert, etcd-key (files) and mds-lease-ttl-s.
    Returns: cluster, cluster_id, mds_id, address, repository, changed (False: it was there already, nothing was written).
    Raises: CONFIG, INVALID, FOREIGN_DATA, WRONG_CLUSTER, EXISTS, IN_USE, DAMAGED. Durable on return.
    """
    identity.check_cluster_name(cluster)
    address = identity.format_address(*identity.parse_address(address))
    auth.check_password(password)
    options = dict(config or {})
    etcd_files = {name: options.pop(name) for name in ETCD_TLS_OPTIONS if name in options}
    ttl_s = _lease_ttl(options)
    for name, value in options.items():
        cluster_config.check(name, value)
    for url in etcd or []:
        parse_endpoint(url)
    repository = Repository(Path(repo).absolute())
    found = existing(repository, cluster, address)
    if found is not None:
        complete(repository, found)
        return result(repository, found, False)
    _refuse_known_cluster(cluster)
    check_ports_free(address, _ports(address, etcd is None))
    try:
        begin(repository)
        made = _write_new(repository, cluster, address, password, etcd, etcd_files, options, ttl_s)
    except OSError as exc:
        raise from_os_error(exc, f"cannot make repository {repository.root}") from exc
    return result(repository, made, True)


def _write_new(
    repository: Repository,
    cluster: str,
    address: str,
    password: bytes,
    etcd: list[str] | None,
    etcd_files: dict[str, str],
    options: dict[str, str],
    ttl_s: int,
) -> MdsConfig:
    cluster_id = random.token_hex(16)
    ca, ca_key = pki.make_ca(cluster, cluster_id)
    etcd_ca, etcd_ca_key = pki.make_ca(cluster, cluster_id, "ETCD CA")
    csr, key = pki.make_csr(etcd_name(1))
    write_tls(repository, ca, pki.issue(ca, ca_key, csr, common=etcd_name(1), role=pki.ROLE_MDS), key)
    if etcd is None:
        member = pki.issue(
            etcd_ca, etcd_ca_key, csr, common=etcd_name(1), role=pki.ROLE_ETCD, addresses=san_addresses(address)
        )
        write_etcd_tls(repository, etcd_ca, member, key)
    else:
        _copy_etcd_tls(repository, etcd, etcd_files)
    verifier = auth.make_verifier(password)
    repository.save_bootstrap(
        options,
        {
            "data_key": random.token_bytes(32),
            "verifier": verifier.to_json(),
            "ca_cert": ca,
            "ca_key": ca_key,
            "etcd_ca_cert": etcd_ca,
            "etcd_ca_key": etcd_ca_key,
        },
    )
    made = MdsConfig(
        cluster=cluster,
        cluster_id=cluster_id,
        mds_id=1,
        address=address,
        host_id=identity.host_id(),
        managed_etcd=etcd is None,
        etcd_urls=etcd or [etcd_url(address, ETCD_PORT_OFFSET)],
        initial_cluster=f"{etcd_name(1)}={etcd_url(address)}" if etcd is None else "",
        lease_ttl_s=ttl_s,
    )
    repository.save(made)
    complete(repository, made)
    return made


def join_cluster(
    cluster: str, address: str, repo: Path, etcd: list[str] | None = None, bootstrap: list[str] | None = None
) -> dict[str, Any]:
    """make-mds: the repository of another MDS. The node must be authenticated and the cluster must run with a quorum.

    Args: etcd: must be None for a cluster whose MDSs run etcd themselves; for one with an etcd of the operator it is not needed.
    Returns, raises as create_cluster; also DENIED, UNREACHABLE, UNSAFE. The new etcd member is a learner without a vote until it runs.
    """
    address = identity.format_address(*identity.parse_address(address))
    who = identity.load_identity(cluster)
    repository = Repository(Path(repo).absolute())
    found = existing(repository, cluster, address)
    if found is not None:
        complete(repository, found)
        return result(repository, found, False)
    check_ports_free(address, _ports(address, True))
    try:
        begin(repository)
        csr, key = pki.make_csr(identity.hostname())
        request = m.MdsJoin(who.host_id, identity.hostname(), address, csr)
        reply = asyncio.run(call_once(cluster, request, bootstrap=bootstrap, deadline_s=JOIN_S_MAX))
        if not isinstance(reply, m.JsonReply):
            raise VstorError(ErrorCode.BAD_REQUEST, "the MDS answered with a message of the wrong kind")
        item = json.loads(reply.json)
        write_tls(repository, item["ca"].encode(), item["mds_cert"].encode(), key)
        if item["etcd_cert"]:
            write_etcd_tls(repository, item["etcd_ca"].encode(), item["etcd_cert"].encode(), key)
        made = MdsConfig(
            cluster=cluster,
            cluster_id=item["cluster_id"],
            mds_id=item["mds_id"],
            address=address,
            host_id=who.host_id,
            managed_etcd=item["managed_etcd"],
            etcd_urls=item["etcd_urls"],
            initial_cluster=item["initial_cluster"],
            initial_state="existing",
            lease_ttl_s=item["lease_ttl_s"],
        )
        repository.save(made)
        identity.add_to_bs_list(cluster, item["mds_addresses"])
        complete(repository, made)
    except OSError as exc:
        raise from_os_error(exc, f"cannot make repository {repository.root}") from exc
    return result(repository, made, True)


def first_record(config: MdsConfig) -> MdsRecord:
    """The registry's record of the MDS that created the cluster."""
    return MdsRecord(
        config.mds_id,
        config.address,
        config.host_id,
        identity.hostname(),
        etcd_name(config.mds_id) if config.managed_etcd else "",
        list(config.etcd_urls),
    )


# --- parts


def _ports(address: str, managed_etcd: bool) -> list[int]:
    _, port = identity.parse_address(address)
    return [port, port + 1, port + ETCD_PORT_OFFSET] if managed_etcd else [port + 1]


def _lease_ttl(options: dict[str, str]) -> int:
    text = options.pop(LEASE_TTL_OPTION, str(LEASE_TTL_S))
    if not text.isdecimal() or not 1 <= int(text) <= 60:
        raise VstorError(ErrorCode.INVALID, f"{LEASE_TTL_OPTION}={text}: want 1 to 60 seconds")
    return int(text)


def existing(repository: Repository, cluster: str, address: str) -> MdsConfig | None:
    """The complete repository that is there already, if it is the one wanted. Raises IN_USE, FOREIGN_DATA, DAMAGED."""
    root = repository.root
    if not root.exists():
        return None
    if not root.is_dir():
        raise VstorError(ErrorCode.FOREIGN_DATA, f"{root} is not a directory; choose another one with -r")
    try:
        entries = repository.foreign_entries()
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {root}") from exc
    if not entries or (repository.incomplete_path.exists() and not repository.config_path.exists()):
        return None
    if not repository.config_path.exists():
        message = f"{root} is not empty and holds no MDS repository ({entries[0]}, …); choose an empty directory"
        raise VstorError(ErrorCode.FOREIGN_DATA, message)
    found = repository.load()
    if found.cluster != cluster:
        raise VstorError(
            ErrorCode.FOREIGN_DATA,
            f"{root} holds MDS#{found.mds_id} of cluster {found.cluster!r}; choose another directory",
        )
    if found.address != address:
        message = (
            f"{root} holds MDS#{found.mds_id} with address {found.address}; choose another directory, or that address"
        )
        raise VstorError(ErrorCode.IN_USE, message)
    return found


def _refuse_known_cluster(cluster: str) -> None:
    ca_path = identity.identity_files(cluster)[0]
    if ca_path.exists():
        _, known = pki.read_ca_names(ca_path.read_bytes(), str(ca_path))
        message = (
            f"this node belongs to a cluster named {cluster!r} already (id {known}); to add an MDS to it leave out -I, "
            f"for a new cluster choose another name or remove {ca_path.parent}"
        )
        raise VstorError(ErrorCode.WRONG_CLUSTER, message)


def begin(repository: Repository) -> None:
    """Make the directory and mark it as ours and incomplete."""
    repository.root.mkdir(mode=0o750, parents=True, exist_ok=True)
    paths.write_atomic(repository.incomplete_path, b"make-mds has not finished; run it again\n")


def write_tls(repository: Repository, ca: bytes, cert: bytes, key: bytes) -> None:
    """Certificates of the control RPC."""
    cert_path, key_path, ca_path = repository.tls
    paths.write_atomic(key_path, key, 0o600)
    paths.write_atomic(cert_path, cert)
    paths.write_atomic(ca_path, ca)


def write_etcd_tls(repository: Repository, ca: bytes, cert: bytes, key: bytes) -> None:
    """Certificates of etcd."""
    tls = repository.etcd_tls
    paths.write_atomic(tls.key, key, 0o600)
    paths.write_atomic(tls.cert, cert)
    paths.write_atomic(tls.ca, ca)


def _copy_etcd_tls(repository: Repository, urls: list[str], files: dict[str, str]) -> None:
    """Certificates for the operator's etcd into the repository."""
    if not any(parse_endpoint(url)[1] for url in urls):
        return
    missing = [name for name in ETCD_TLS_OPTIONS if name not in files]
    if missing:
        raise VstorError(ErrorCode.CONFIG, f"https etcd needs its certificates: set {', '.join(missing)}")
    try:
        ca, cert, key = (Path(files[name]).read_bytes() for name in ETCD_TLS_OPTIONS)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {exc.filename}") from exc
    write_etcd_tls(repository, ca, cert, key)


def write_node_identity(cluster: str, ca: bytes, ca_key: bytes) -> None:
    """Who made the cluster is authenticated."""
    ca_path, cert_path, key_path = identity.identity_files(cluster)
    csr, key = pki.make_csr(identity.hostname())
    cert = pki.issue(ca, ca_key, csr, common=f"node-{random.token_hex(8)}", role=pki.ROLE_NODE)
    paths.write_atomic(key_path, key, 0o600)
    paths.write_atomic(cert_path, cert)
    paths.write_atomic(ca_path, ca)


def complete(repository: Repository, config: MdsConfig) -> None:
    """What lies outside of the repository: certificate of this node, registry of services, bs.list; the same again writes nothing."""
    cluster = config.cluster
    if not identity.identity_files(cluster)[0].exists():
        waiting = repository.load_bootstrap()
        if waiting is not None:
            write_node_identity(cluster, waiting[1]["ca_cert"], waiting[1]["ca_key"])
    if config.managed_etcd:
        services.register(cluster, "etcd", config.mds_id, str(repository.root))
    services.register(cluster, "mds", config.mds_id, str(repository.root))
    identity.add_to_bs_list(cluster, [config.address])
    with suppress(FileNotFoundError):
        os.unlink(repository.incomplete_path)


def result(repository: Repository, config: MdsConfig, changed: bool) -> dict[str, Any]:
    """What make-mds tells."""
    return {
        "cluster": config.cluster,
        "cluster_id": config.cluster_id,
        "mds_id": config.mds_id,
        "address": config.address,
        "repository": str(repository.root),
        "changed": changed,
    }
