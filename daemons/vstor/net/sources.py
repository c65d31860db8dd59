"""Where a node learns the MDSs of a cluster from: the rules. Pure: no I/O, no clock; discovery.py does the asking.

DESIGN: an answer of DNS or mDNS is a hint and never trusted: whom a node talks to is decided by the cluster's CA (and by the password
proof of auth-node). A forged answer can keep a node from its cluster, which is why mDNS, open to everybody on the link, is off until configured.

    DNS   _vstor._tcp.CLUSTER.DOMAIN  SRV  PRIORITY WEIGHT PORT HOST    the MDSs of a cluster, PORT as in bs.list
          vstor_clusters.DOMAIN       TXT  "CLUSTER,CLUSTER…"           names of clusters, for `discover`
    mDNS  mdsN-CLUSTERID._vstor._tcp.local with TXT cluster=NAME id=CLUSTERID, one for each MDS (DNS-SD, RFC 6763)
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

BS_LIST, DNS, MDNS = "bs.list", "dns", "mdns"
SOURCES = (BS_LIST, DNS, MDNS)
DEFAULT_ORDER = (BS_LIST, DNS)
SRV_PREFIX = "_vstor._tcp"
CLUSTERS_NAME = "vstor_clusters"
MDNS_TYPE = "_vstor._tcp.local."
ADDRESSES_MAX = 64  # taken from one source
CLUSTERS_MAX = 256
PORT_MAX = 65533  # an MDS uses the two above as well
DOMAINS_MAX = 6  # as the search list of resolv.conf(5)
_DOMAIN = re.compile(
    r"(?=.{1,253}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """$VSTOR_ETC/discovery.toml.

    Attributes:
        order: sources in order of preference; one that is not named is not used.
        domains: where the DNS records are; empty: the search list of resolv.conf.
        nameservers: "ip:port"; empty: those of resolv.conf.
        interfaces: own addresses on which mDNS is spoken; empty: all (an MDS: the one it serves on).
        announce: an MDS of this node announces itself by mDNS.
    """

    order: tuple[str, ...] = DEFAULT_ORDER
    domains: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    announce: bool = False


@dataclass(frozen=True, slots=True)
class Srv:
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


def parse_config(text: str, where: str, check_address: Callable[[str, int], tuple[str, int]]) -> DiscoveryConfig:
    """The settings. Raises CONFIG naming `where` and the key.

    Args:
        check_address: splits "ip[:port]" with a default port, or raises CONFIG.
    """

    def wrong(what: str) -> VstorError:
        return VstorError(ErrorCode.CONFIG, f"{where}: {what}")

    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise wrong(f"not TOML ({exc})") from exc
    dns, mdns = _table(value, "dns", wrong), _table(value, "mdns", wrong)
    for keys, known, prefix in (
        (value, ("sources", "dns", "mdns"), ""),
        (dns, ("domains", "nameservers"), "dns."),
        (mdns, ("interfaces", "announce"), "mdns."),
    ):
        for key in keys:
            if key not in known:
                raise wrong(f"unknown setting {prefix}{key}; known are {', '.join(prefix + k for k in known)}")
    order = _strings(value, "sources", "sources", wrong) if "sources" in value else DEFAULT_ORDER
    for name in order:
        if name not in SOURCES:
            raise wrong(f"sources: {name!r} is none of {', '.join(SOURCES)}")
    domains = _strings(dns, "domains", "dns.domains", wrong)
    for domain in domains:
        if not _DOMAIN.fullmatch(domain):
            raise wrong(f"dns.domains: {domain!r} is no domain")
    if len(domains) > DOMAINS_MAX:
        raise wrong(f"dns.domains: more than {DOMAINS_MAX}")
    announce = mdns.get("announce", False)
    if not isinstance(announce, bool):
        raise wrong("mdns.announce: write true or false")
    addresses = {"nameservers": _strings(dns, "nameservers", "dns.nameservers", wrong)}
    addresses["interfaces"] = _strings(mdns, "interfaces", "mdns.interfaces", wrong)
    checked: dict[str, tuple[str, ...]] = {}
    for key, items in addresses.items():
        try:
            pairs = [check_address(item, 53) for item in items]
        except VstorError as exc:
            raise wrong(f"{key}: {exc.message}") from exc
        checked[key] = tuple(ip if key == "interfaces" else join(ip, port) for ip, port in pairs)
    return DiscoveryConfig(
        tuple(dict.fromkeys(order)), domains, checked["nameservers"], checked["interfaces"], announce
    )


def _table(value: dict[str, Any], key: str, wrong: Callable[[str], VstorError]) -> dict[str, Any]:
    table = value.get(key, {})
    if not isinstance(table, dict):
        raise wrong(f"{key}: write it as a table, [{key}]")
    return table


def _strings(table: dict[str, Any], key: str, name: str, wrong: Callable[[str], VstorError]) -> tuple[str, ...]:
    items = table.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        raise wrong(f'{name}: write a list of texts, for example ["…"]')
    return tuple(items)


def join(host: str, port: int) -> str:
    """ "ip:port", IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def srv_name(cluster: str, domain: str) -> str:
    """Name of the SRV records of a cluster."""
    return f"{SRV_PREFIX}.{cluster}.{domain.rstrip('.')}."


def clusters_name(domain: str) -> str:
    """Name of the TXT records that list clusters."""
    return f"{CLUSTERS_NAME}.{domain.rstrip('.')}."


def order_srv(records: Iterable[Srv], pick: Callable[[int], int]) -> list[Srv]:
    """RFC 2782: lowest priority first; among equals by chance in proportion to the weight. A target of "." means "not here"; impossible ports are left out.

    Args:
        pick: pick(n) is a random number 0 ≤ x ≤ n.
    """
    by_priority: dict[int, list[Srv]] = {}
    for record in sorted(
        records, key=lambda r: (r.priority, r.weight, r.target, r.port)
    ):  # weight 0 first, as the RFC asks
        if record.target not in ("", ".") and 0 < record.port <= PORT_MAX:
            by_priority.setdefault(record.priority, []).append(record)
    ordered = []
    for group in by_priority.values():
        while group:
            at, running = pick(sum(r.weight for r in group)), 0
            for record in group:
                running += record.weight
                if running >= at:
                    break
            group.remove(record)
            ordered.append(record)
    return ordered


def cluster_names(texts: Iterable[str]) -> list[str]:
    """Names in TXT strings such as "c1,c2"; what is no cluster name is left out."""
    words = (word.strip() for text in texts for word in text.split(","))
    return list(dict.fromkeys(word for word in words if _CLUSTER_NAME.fullmatch(word)))[:CLUSTERS_MAX]


def mdns_instance(cluster_id: str, mds_id: int) -> str:
    """Name of an announcement, unique on the link, in one DNS label."""
    return f"mds{mds_id}-{cluster_id[:12]}.{MDNS_TYPE}"


def mdns_properties(cluster: str, cluster_id: str, mds_id: int) -> dict[str, str]:
    """TXT of an announcement."""
    return {"cluster": cluster, "id": cluster_id, "mds": str(mds_id)}


def mdns_cluster(properties: dict[bytes, bytes | None]) -> str | None:
    """Cluster that an announcement is of; None for one that is not ours to understand."""
    name = (properties.get(b"cluster") or b"").decode("ascii", "replace")
    return name if _CLUSTER_NAME.fullmatch(name) else None
