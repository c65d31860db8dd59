"""IP[:PORT] as operators write it."""

from __future__ import annotations

import ipaddress

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

PORT_DEFAULT = 2510  # MDS-to-MDS; the control port is one above, etcd's client port two above
PORTS_OF_AN_MDS = 3


def parse_address(text: str, default_port: int | None = PORT_DEFAULT, ports: int = 1) -> str:
    """IP:PORT of `text` (10.0.0.1, 10.0.0.1:2510, ::1, [::1]:2510). Names are not taken: an address must mean the same on every node.

    Args:
        default_port: when none is written; None: one must be written.
        ports: how many consecutive ports must fit.
    Raises: INVALID.
    """
    host, port_text = text.strip(), ""
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise _bad(text)
        port_text = rest[1:]
    elif host.count(":") == 1:
        host, _, port_text = host.partition(":")
        if not port_text:
            raise _bad(text)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise _bad(text) from None
    if port_text and not port_text.isdecimal():
        raise _bad(text)
    if not port_text and default_port is None:
        raise VstorError(ErrorCode.INVALID, f"{text!r} has no port — write IP:PORT")
    port = int(port_text) if port_text else int(default_port or 0)
    if not 1 <= port <= 65536 - ports:
        raise VstorError(ErrorCode.INVALID, f"port {port} of {text!r} does not do — use 1 to {65536 - ports}")
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def parse_listen_address(text: str) -> str:
    """IP or IP:PORT as a chunk server takes it; without a port any free one is used. Raises INVALID."""
    address = parse_address(text)
    has_port = text.strip().rpartition("]")[2].startswith(":") if "[" in text else text.count(":") == 1
    return address if has_port else address.rpartition(":")[0].strip("[]")


def split_bootstrap(values: list[str] | None) -> list[str] | None:
    """The -b options as a flat list of IP:PORT."""
    if not values:
        return None
    return [parse_address(part) for value in values for part in value.split(",") if part.strip()]


def _bad(text: str) -> VstorError:
    return VstorError(
        ErrorCode.INVALID, f"{text!r} is no address — write IP or IP:PORT, for example 10.30.100.101:{PORT_DEFAULT}"
    )
