"""Who this node is: cluster name, host id, certificate files, and where the MDSs are.

DESIGN: everything is files under $VSTOR_ETC; the cluster id stands in the subject of the cluster's CA certificate, so that
name, id and trust cannot come apart. Nothing here talks to the network.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.net import pki

DEFAULT_PORT = 2510  # MDS-to-MDS (etcd peers); control RPC is the next one, etcd clients the one after
CLUSTER_NAME_CHARS_MAX = 63
BS_LIST_BYTES_MAX = 65536
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HOST_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a program needs to speak to its cluster."""

    cluster: str
    cluster_id: str  # 32 hex digits
    host_id: str  # 16 hex digits
    cert_path: Path
    key_path: Path
    ca_path: Path


def check_cluster_name(cluster: str) -> str:
    """The name itself. Raises CONFIG: letters, digits, '_' and '-', at most CLUSTER_NAME_CHARS_MAX."""
    if not _CLUSTER_NAME.fullmatch(cluster):
        raise VstorError(
            ErrorCode.CONFIG,
            f"bad cluster name {cluster!r}: use letters, digits, '_' and '-'",
        )
    if len(cluster) > CLUSTER_NAME_CHARS_MAX:
        raise VstorError(
            ErrorCode.CONFIG,
            f"bad cluster name: {len(cluster)} characters, at most {CLUSTER_NAME_CHARS_MAX} are allowed",
        )
    return cluster


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """(ip, port) of "IP", "IP:PORT", "[V6]" or "[V6]:PORT"; a bare IPv6 address is understood too. Raises CONFIG."""
    host, port = text.strip(), default_port
    bracket = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", host)
    if bracket:
        host, port = bracket[1], int(bracket[2] or default_port)
    elif host.count(":") == 1:
        host, _, port_text = host.partition(":")
        if not port_text.isdigit():
            raise VstorError(ErrorCode.CONFIG, f"bad address {text!r}: the port is not a number")
        port = int(port_text)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise VstorError(
            ErrorCode.CONFIG,
            f"bad address {text!r}: use IP or IP:PORT (IPv6 as [IP]:PORT)",
        ) from None
    if not 0 < port <= 65533:  # the two ports above it are used as well
        raise VstorError(ErrorCode.CONFIG, f"bad address {text!r}: port must be between 1 and 65533")
    return str(ip), port


def format_address(host: str, port: int) -> str:
    """ "ip:port", IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def control_address(address: str) -> str:
    """The control RPC address that belongs to an address of bs.list."""
    host, port = parse_address(address)
    return format_address(host, port + 1)


def bs_list_path(cluster: str) -> Path:
    """The file with the addresses of the MDSs."""
    return paths.cluster_dir(cluster) / "bs.list"


def read_bs_list(cluster: str) -> list[str]:
    """MDS-to-MDS addresses "ip:port" in file order, [] when there is no file.

    Lines are IP[:PORT]; '#' starts a comment. Raises CONFIG naming the line that is no address.
    """
    path = bs_list_path(cluster)
    try:
        with path.open("rb") as file:
            text = file.read(BS_LIST_BYTES_MAX).decode("ascii", "replace")
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path}") from exc
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            address = format_address(*parse_address(entry))
        except VstorError as exc:
            raise VstorError(ErrorCode.CONFIG, f"{path} line {number}: {exc.message}") from exc
        if address not in found:
            found.append(address)
    return found


def add_to_bs_list(cluster: str, addresses: list[str]) -> bool:
    """Append the addresses that are missing, keeping comments and order. True if the file changed; durable on return."""
    known = read_bs_list(cluster)
    missing = [a for a in dict.fromkeys(format_address(*parse_address(a)) for a in addresses) if a not in known]
    if not missing:
        return False
    path = bs_list_path(cluster)
    old = path.read_bytes() if path.exists() else b""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    paths.write_atomic(path, old + "".join(f"{a}\n" for a in missing).encode())
    return True


def host_id() -> str:
    """16 hex digits that name this host, made at first use ($VSTOR_ETC/host_id). Raises DAMAGED for a spoiled file."""
    path = paths.etc_dir() / "host_id"
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return _make_host_id(path)
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path}") from exc
    if not _HOST_ID.fullmatch(text):
        raise VstorError(
            ErrorCode.DAMAGED,
            f"{path} must hold 16 hexadecimal digits; restore it or remove it to get a new host id",
        )
    return text


def _make_host_id(path: Path) -> str:
    value = secrets.token_hex(8)
    tmp = path.with_name(f".host_id.{os.getpid()}.new")
    try:
        paths.write_atomic(tmp, f"{value}\n".encode())
        try:
            os.link(tmp, path)  # the first of several that start together wins
        except FileExistsError:
            value = path.read_text().strip()
        finally:
            tmp.unlink()
    except OSError as exc:
        raise from_os_error(exc, f"cannot make {path}") from exc
    return value


def hostname() -> str:
    """Name of this host, for people."""
    return socket.gethostname()


def identity_files(cluster: str) -> tuple[Path, Path, Path]:
    """(ca.crt, node.crt, node.key)."""
    directory = paths.cluster_dir(cluster)
    return directory / "ca.crt", directory / "node.crt", directory / "node.key"


def load_identity(cluster: str) -> Identity:
    """This node's identity in `cluster`. Raises DENIED when the node is not authenticated yet, DAMAGED for spoiled files."""
    check_cluster_name(cluster)
    ca_path, cert_path, key_path = identity_files(cluster)
    for path in (ca_path, cert_path, key_path):
        try:
            with path.open("rb"):
                pass
        except FileNotFoundError:
            message = f"this node is not authenticated in cluster {cluster}; run: vstorctl -c {cluster} auth-node"
            raise VstorError(ErrorCode.DENIED, message) from None
        except OSError as exc:
            raise from_os_error(exc, f"cannot read {path}") from exc
    name, cluster_id = pki.read_ca_names(ca_path.read_bytes(), str(ca_path))
    if name != cluster:
        message = f"{ca_path} belongs to cluster {name!r}, not {cluster!r}; remove it and run: vstorctl -c {cluster} auth-node"
        raise VstorError(ErrorCode.WRONG_CLUSTER, message)
    return Identity(cluster, cluster_id, host_id(), cert_path, key_path, ca_path)
