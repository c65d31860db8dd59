"""Asks DNS for the MDSs of a cluster and for the names of clusters. The records are described in sources.py."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

# Some of these are what dnspython would load with the first query: an upgrade may have replaced it by then (discovery.preload).
import dns._asyncio_backend
import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.resolver

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import sources
from vstor.net.identity import format_address, parse_address
from vstor.net.sources import DiscoveryConfig, Srv

log = logging.getLogger(__name__)

QUERY_S_MAX = 2.0  # one query with all its retries


def _resolver(config: DiscoveryConfig) -> dns.asyncresolver.Resolver:
    try:
        resolver = dns.asyncresolver.Resolver(configure=not config.nameservers)
    except dns.exception.DNSException as exc:
        raise VstorError(ErrorCode.UNREACHABLE, f"resolv.conf names no name server ({exc})") from exc
    if config.nameservers:
        pairs = [parse_address(text, 53) for text in config.nameservers]
        resolver.nameservers = [dns.nameserver.Do53Nameserver(ip, port) for ip, port in pairs]
    resolver.lifetime = QUERY_S_MAX
    resolver.timeout = QUERY_S_MAX / 2
    return resolver


def _domains(config: DiscoveryConfig, resolver: dns.asyncresolver.Resolver) -> list[str]:
    found = list(config.domains) or [str(name) for name in resolver.search or [resolver.domain]]
    found = [name for name in found if name.strip(".")][: sources.DOMAINS_MAX]
    if not found:
        raise VstorError(
            ErrorCode.UNREACHABLE, "no domain: resolv.conf has no search list and discovery.toml no dns.domains"
        )
    return found


async def _query(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> list[Any]:
    """Records, [] when there are none. Raises UNREACHABLE when no name server answers."""
    try:
        answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
    except dns.resolver.NXDOMAIN:
        return []
    except (dns.exception.DNSException, OSError) as exc:
        reason = (
            "no name server answers" if isinstance(exc, (dns.exception.Timeout, dns.resolver.NoNameservers)) else exc
        )
        raise VstorError(ErrorCode.UNREACHABLE, f"DNS query of {name} {kind} failed: {reason}") from exc
    return list(answer)


async def addresses(cluster: str, config: DiscoveryConfig) -> list[str]:
    resolver = _resolver(config)
    for domain in _domains(config, resolver):
        records = [
            Srv(r.priority, r.weight, r.port, str(r.target))
            for r in await _query(resolver, sources.srv_name(cluster, domain), "SRV")
        ]
        ordered = sources.order_srv(records, lambda n: secrets.randbelow(n + 1))[: sources.ADDRESSES_MAX]
        found = await asyncio.gather(*(_host_addresses(resolver, record) for record in ordered))
        if records:
            return list(dict.fromkeys(address for item in found for address in item))[: sources.ADDRESSES_MAX]
    return []


async def _host_addresses(resolver: dns.asyncresolver.Resolver, record: Srv) -> list[str]:
    answers = await asyncio.gather(
        *(_query(resolver, record.target, kind) for kind in ("AAAA", "A")), return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            log.warning("address of an SRV target not found target=%s reason=%s", record.target, answer)
    return [
        format_address(str(r.address), record.port) for answer in answers if isinstance(answer, list) for r in answer
    ]


async def clusters(config: DiscoveryConfig) -> list[str]:
    resolver = _resolver(config)
    texts = []
    for domain in _domains(config, resolver):
        for record in await _query(resolver, sources.clusters_name(domain), "TXT"):
            texts += [part.decode("ascii", "replace") for part in record.strings]
    return sources.cluster_names(texts)
