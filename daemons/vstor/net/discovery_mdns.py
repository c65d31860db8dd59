"""Listens for MDSs on the link by mDNS, and announces one. The announcements are described in sources.py."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zeroconf import Error, InterfaceChoice, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import sources
from vstor.net.identity import format_address, parse_address
from vstor.net.sources import DiscoveryConfig

log = logging.getLogger(__name__)

LISTEN_S_MAX = 2.0
INFO_MS = 1000  # for the details of one announcement
SETTLE_S = 0.3  # more MDSs of the same cluster answer so soon after the first


async def browse(config: DiscoveryConfig, wanted: str | None) -> dict[str, list[str]]:
    """Announcements on the link: cluster -> addresses. Returns soon after the first of `wanted`, else after LISTEN_S_MAX."""
    found: dict[str, list[str]] = {}
    first = asyncio.Event()
    asking: set[asyncio.Task[None]] = set()

    async def ask(zc: Zeroconf, kind: str, name: str) -> None:
        info = AsyncServiceInfo(kind, name)
        if not await info.async_request(zc, INFO_MS) or not info.port:
            return
        cluster = sources.mdns_cluster(info.properties)
        if cluster is None or (cluster not in found and len(found) >= sources.CLUSTERS_MAX):
            return
        listed = found.setdefault(cluster, [])
        for address in info.parsed_addresses():
            text = format_address(address, info.port)
            if text not in listed and len(listed) < sources.ADDRESSES_MAX:
                listed.append(text)
        if cluster == wanted:
            first.set()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and len(asking) < sources.CLUSTERS_MAX:
            task = asyncio.get_running_loop().create_task(ask(zeroconf, service_type, name))
            asking.add(task)
            task.add_done_callback(asking.discard)

    try:
        zc = AsyncZeroconf(interfaces=list(config.interfaces) or InterfaceChoice.All)
    except OSError as exc:
        raise VstorError(ErrorCode.UNREACHABLE, f"mDNS cannot be used here: {exc.strerror or exc}") from exc
    try:
        browser = AsyncServiceBrowser(zc.zeroconf, sources.MDNS_TYPE, handlers=[changed])
        try:
            async with asyncio.timeout(LISTEN_S_MAX):
                await first.wait()
                await asyncio.sleep(SETTLE_S)
        except TimeoutError:
            pass  # what has answered until now is the answer
        await browser.async_cancel()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await zc.async_close()
    return {cluster: sorted(listed) for cluster, listed in found.items()}


@asynccontextmanager
async def announced(
    config: DiscoveryConfig, cluster: str, cluster_id: str, mds_id: int, address: str
) -> AsyncIterator[None]:
    """Announce an MDS by mDNS inside of the block. A failure is logged and harms nothing.

    Args:
        address: "ip:port" as in bs.list.
    """
    host, port = parse_address(address)
    name = sources.mdns_instance(cluster_id, mds_id)
    info = ServiceInfo(
        sources.MDNS_TYPE,
        name,
        port=port,
        properties=sources.mdns_properties(cluster, cluster_id, mds_id),
        parsed_addresses=[host],
        server=f"{name.partition('.')[0]}.local.",
    )
    zc = None
    try:
        zc = AsyncZeroconf(interfaces=list(config.interfaces) or [host])
        await (await zc.async_register_service(info))
        log.info("announced by mDNS name=%s address=%s", name, address)
    except (OSError, Error) as exc:
        log.warning("not announced by mDNS reason=%s", exc)
    try:
        yield
    finally:
        if zc is not None:
            await zc.async_close()
