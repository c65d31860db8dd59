"""Asks the sources of sources.py for the MDSs of a cluster: bs.list, DNS, mDNS, in the configured order.

Everybody who looks for an MDS does it through here: vstorctl, the daemons, the mount and the library (all by MdsClient), auth-node.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.net import sources
from vstor.net.identity import bs_list_path, parse_address, read_bs_list
from vstor.net.sources import BS_LIST, DNS, MDNS, DiscoveryConfig

CONFIG_NAME = "discovery.toml"
CONFIG_BYTES_MAX = 65536
ASK_AGAIN_S = 5.0  # an answer, also a missing one, is kept so long: clients in an outage do not flood the name server


def read_config() -> DiscoveryConfig:
    """Settings of this node, the defaults without a file. Raises CONFIG."""
    path = paths.etc_dir() / CONFIG_NAME
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return DiscoveryConfig()
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {path}") from exc
    return sources.parse_config(text, str(path), parse_address)


def preload() -> None:
    """Called by a daemon when it starts: load now what the configured sources need.

    An upgrade replaces the program's files below running daemons, which go on until they are restarted. What a daemon loaded only then would
    be of another version than the rest of it. A source that is configured later is loaded when it is used.
    """
    try:
        config = read_config()
    except VstorError:
        return  # whoever uses it says what is wrong
    if DNS in config.order:
        importlib.import_module("vstor.net.discovery_dns")
    if MDNS in config.order or config.announce:
        importlib.import_module("vstor.net.discovery_mdns")


async def lookup(source: str, cluster: str, config: DiscoveryConfig) -> list[str]:
    """MDS-to-MDS addresses "ip:port" of `cluster` that this source knows, best first, [] for none.

    Raises: CONFIG for a bad bs.list; UNREACHABLE when the source cannot be asked, with the reason.
    """
    if source == BS_LIST:
        return read_bs_list(cluster)
    # The two libraries are loaded where they are used: most commands never do.
    if source == DNS:
        from vstor.net import discovery_dns

        return await discovery_dns.addresses(cluster, config)
    from vstor.net import discovery_mdns

    return (await discovery_mdns.browse(config, cluster)).get(cluster, [])


async def known_clusters(source: str, config: DiscoveryConfig) -> dict[str, list[str]]:
    """Clusters that a source knows, with the addresses of their MDSs. Raises as lookup."""
    if source == MDNS:
        from vstor.net import discovery_mdns

        return await discovery_mdns.browse(config, None)
    if source == BS_LIST:
        root = paths.etc_dir() / "clusters"
        names = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    else:
        from vstor.net import discovery_dns

        names = await discovery_dns.clusters(config)
    return {name: await lookup(source, name, config) for name in names}


async def addresses(cluster: str, config: DiscoveryConfig | None = None) -> list[str]:
    """Those of the first source that knows any. Raises CONFIG, or UNREACHABLE saying what each source answered."""
    config = config or read_config()
    reasons = []
    for source in config.order:
        try:
            found = await lookup(source, cluster, config)
        except VstorError as exc:
            if exc.code == ErrorCode.CONFIG:
                raise
            found = []
            reasons.append(f"{source}: {exc.message}")
        else:
            reasons.append(f"{source}: nothing")
        if found:
            return found
    raise none_known(cluster, reasons)


def none_known(cluster: str, reasons: list[str]) -> VstorError:
    """The error of a node that does not know where its cluster is."""
    asked = f" (asked {'; '.join(reasons)})" if reasons else ""
    mend = f"write IP:2510 of one into {bs_list_path(cluster)}, or give -b IP"
    return VstorError(ErrorCode.UNREACHABLE, f"no MDS known for cluster {cluster}{asked} — {mend}")


class Finder:
    """The sources of one cluster. An answer, also a missing one, is kept for ASK_AGAIN_S; bs.list costs nothing and is read each time.

    Concurrency: one event loop; `close` ends what is being asked.
    """

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._asked: dict[str, tuple[float, asyncio.Task[list[str]]]] = {}

    async def lookup(self, source: str, wait_s: float | None = None) -> list[str]:
        """As the function of this name, with the settings read at that moment.

        Args:
            wait_s: give up waiting after that (UNREACHABLE); the question goes on, and its answer is there at one of the next calls.
        """
        if source == BS_LIST:
            return read_bs_list(self.cluster)
        loop = asyncio.get_running_loop()
        asked_s, task = self._asked.get(source, (0.0, None))
        if task is None or (task.done() and loop.time() - asked_s >= ASK_AGAIN_S):
            task = loop.create_task(lookup(source, self.cluster, read_config()), name=f"discovery-{source}")
            self._asked[source] = (loop.time(), task)
        await asyncio.wait({task}, timeout=wait_s)
        if not task.done():
            raise VstorError(ErrorCode.UNREACHABLE, "no answer yet")
        return task.result()

    async def close(self) -> None:
        """End what is being asked."""
        tasks = [task for _, task in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._asked.clear()


@asynccontextmanager
async def announced(cluster: str, cluster_id: str, mds_id: int, address: str) -> AsyncIterator[None]:
    """Announce an MDS by mDNS inside of the block if this node is configured so (mdns.announce). Raises CONFIG.

    Args:
        address: "ip:port" as in bs.list.
    """
    config = read_config()
    if not config.announce:
        yield
        return
    from vstor.net import discovery_mdns

    async with discovery_mdns.announced(config, cluster, cluster_id, mds_id, address):
        yield
