"""discover: what each source of discovery says, and which MDSs answer."""

from __future__ import annotations

import asyncio
from typing import Any

from vstor import paths
from vstor.ctl.context import Context
from vstor.ctl.output import table
from vstor.ctl.spec import Command, Opt
from vstor.errors import VstorError

PROBE_S = 2.0


async def _answers(address: str) -> bool:
    """Something accepts connections on the control port (one above) of the address."""
    from vstor.net.identity import control_address, parse_address

    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(*parse_address(control_address(address)))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def cluster_id_of(cluster: str) -> str:
    """Id of a cluster as its certificate on this node says, empty where there is none. Raises DAMAGED."""
    from vstor.net import pki

    file = paths.cluster_dir(cluster) / "ca.crt"
    return pki.read_ca_names(file.read_bytes(), str(file))[1] if file.exists() else ""


async def _ask(source: str, cluster: str | None, config: Any) -> dict[str, list[str]]:
    """Clusters of one source with their addresses."""
    from vstor.net import discovery

    if cluster is None:
        return await discovery.known_clusters(source, config)
    found = await discovery.lookup(source, cluster, config)
    known = found or (source == "bs.list" and paths.cluster_dir(cluster).is_dir())
    return {cluster: found} if known else {}


async def _collect(order: list[str], cluster: str | None, config: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Clusters, the MDSs of each in the order in which they would be tried, and why a source could not be asked."""
    outcomes = await asyncio.gather(*(_ask(source, cluster, config) for source in order), return_exceptions=True)
    found: dict[str, dict[str, list[str]]] = {}  # cluster -> address -> sources
    failed = {}
    for source, outcome in zip(order, outcomes, strict=True):
        if isinstance(outcome, VstorError):
            failed[source] = outcome.message
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            for name, addresses in outcome.items():
                listed = found.setdefault(name, {})
                for address in addresses:
                    listed.setdefault(address, []).append(source)
    every = sorted({address for listed in found.values() for address in listed})
    answers = dict(zip(every, await asyncio.gather(*map(_answers, every)), strict=True))
    return [
        {
            "cluster": name,
            "cluster_id": cluster_id_of(name),
            "authenticated": (paths.cluster_dir(name) / "node.crt").exists(),
            "mds": [{"address": a, "answers": answers[a], "sources": by} for a, by in listed.items()],
        }
        for name, listed in sorted(found.items())
    ], failed


def discover(ctx: Context) -> int:
    """Print the clusters and MDSs that the sources name. A source that cannot be asked is said, the others are shown."""
    from vstor.net import discovery
    from vstor.net.sources import DiscoveryConfig

    config = discovery.read_config()
    order = list(dict.fromkeys(ctx.args.source or config.order))
    found, failed = asyncio.run(_collect(order, ctx.cluster_or_none, config))
    # A source that is asked only because nothing is configured (DNS without a domain) is no fault where another one answers.
    asked_for = bool(ctx.args.source) or config != DiscoveryConfig()
    for source, reason in failed.items() if asked_for or not found else ():
        ctx.warn(f"{source}: {reason}")
    rows = [
        (
            c["cluster"],
            "yes" if c["authenticated"] else "no",
            m["address"],
            ",".join(m["sources"]) or "-",
            "yes" if m["answers"] else "no",
        )
        for c in found
        for m in c["mds"] or [{"address": "-", "answers": False, "sources": []}]
    ]
    header = ("CLUSTER", "AUTHENTICATED", "MDS", "SOURCE", "ANSWERS")
    ctx.emit(found, table(header, rows, left=(0, 1, 2, 3, 4), gap="  "))
    return 0


COMMANDS = (
    Command(
        name="discover",
        summary="list the clusters this node can find and whether their MDSs answer",
        description=(
            "Asks the sources of discovery and tries each address they name: bs.list, the file on this node; dns, the SRV records "
            "_vstor._tcp.CLUSTER.DOMAIN and the list of clusters in the TXT records vstor_clusters.DOMAIN; mdns, announcements on the link. "
            "/etc/vstor/discovery.toml says which of them are used and in which order; without it bs.list comes first, then dns."
        ),
        run=discover,
        needs_cluster=False,
        options=(
            Opt(
                "--source",
                choices=("bs.list", "dns", "mdns"),
                action="append",
                help="ask this one only, configured or not; may be given several times",
            ),
        ),
        examples=("vstorctl discover", "vstorctl -c test_cluster discover --source dns"),
    ),
)
