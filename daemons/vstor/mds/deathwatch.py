"""A leader whose process has ended is replaced at once, without waiting for its lease.

DESIGN: each standby holds a connection to the leader. When it ends, the standby asks the leader's host whether anybody listens there
any more. A host that answers "connection refused" each time runs no MDS, so its lease may be revoked. No answer proves nothing (a
partition, a hung host): then the lease decides. Should the host be wrong (a firewall that answers in its place), the former leader
cannot change anything (every transaction is guarded by its epoch), and what it may still read out until its next keepalive fails stays true:
its clients have not come back to the new leader, which grants and changes nothing until they have (grace).
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable

from vstor.errors import VstorError
from vstor.meta.store import Leader, Store
from vstor.net import pki
from vstor.net.identity import Identity, parse_address
from vstor.net.rpc_connection import connect, hello
from vstor.proto import messages as m

log = logging.getLogger(__name__)

CONNECT_S_MAX = 2.0
HELLO_S_MAX = 5.0
PROBES = 3  # all must be refused
PROBE_S = 0.05
RETRY_S = 0.5


def leader_address(leader: Leader | None) -> str:
    """Control address in the leader's record, "" when there is none."""
    try:
        return "" if leader is None else str(json.loads(leader.value)["address"])
    except (ValueError, KeyError, TypeError):
        return ""


class DeathWatch:
    """Of one standby. leader: who leads as far as it knows."""

    def __init__(self, store: Store, identity: Identity, own_address: str, leader: Callable[[], Leader | None]) -> None:
        self._store = store
        self._identity = identity
        self._own_address = own_address
        self._leader = leader

    async def run(self) -> None:
        """For ever."""
        context = pki.client_context(self._identity.cert_path, self._identity.key_path, self._identity.ca_path)
        while True:
            leader = self._leader()
            address = leader_address(leader)
            if leader is not None and address not in ("", self._own_address):
                await self._until_it_ends(address, context)
                if self._leader() is leader and await is_dead(address):
                    log.warning(
                        "the leading MDS has ended, its lease is revoked address=%s epoch=%d", address, leader.epoch
                    )
                    await self._depose(leader)
            await asyncio.sleep(RETRY_S)

    async def _until_it_ends(self, address: str, context: ssl.SSLContext) -> None:
        """Returns when the connection ends or cannot be made."""
        who = self._identity
        try:
            conn = await connect(address, context, timeout_s=CONNECT_S_MAX)
        except VstorError as exc:
            log.debug("the leader is not reached reason=%s", exc.message)
            return
        try:
            async with asyncio.timeout(HELLO_S_MAX):
                await conn.send(m.Request(1, hello(who.cluster, who.cluster_id, "mds", who.host_id)))
            await conn.closed.wait()
        except (VstorError, TimeoutError) as exc:
            log.debug("the leader does not answer reason=%s", exc)
        finally:
            conn.abort()

    async def _depose(self, leader: Leader) -> None:
        try:
            await self._store.depose(leader)
        except VstorError as exc:
            log.warning("the lease of the ended leader could not be revoked reason=%s", exc.message)


async def is_dead(address: str) -> bool:
    """The host says, each time, that nobody listens at this control address."""
    host, port = parse_address(address)
    for attempt in range(PROBES):
        if attempt:
            await asyncio.sleep(PROBE_S)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            continue
        except (OSError, TimeoutError):
            return False
        writer.close()
        return False
    return True
