"""Which MDS leads: asks all that are known, overlapping, and waits with a standby while an election lasts.

DESIGN: the search is one race (race.py) over the addresses known and, after them, the sources of discovery in their order; a source is an
attempt whose outcome is more addresses. A standby that knows no leader, or names one that does not answer us, is asked again on the
same connection: that costs no TLS handshake, so many clients can do it often, and who waits hears of the new leader within POLL_S.
A leader that has fallen silent is asked last.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net.discovery import Finder, none_known, read_config
from vstor.net.identity import Identity, control_address, read_bs_list
from vstor.net.race import Race
from vstor.net.rpc_connection import RpcConnection, connect
from vstor.net.sources import BS_LIST
from vstor.proto import messages as m

log = logging.getLogger(__name__)

ADDRESSES_MAX = 64
SOURCE_S_MAX = 0.25
POLL_S = 0.2
ELECTION_S_MAX = 4.0  # then all addresses are tried again
SUCCESSOR_S = 0.4  # between rounds in search of a successor

Answer = tuple[RpcConnection, m.HelloReply]
SayHello = Callable[[RpcConnection], Awaitable[m.HelloReply]]


@dataclass(frozen=True, slots=True)
class _Source:
    """A source of discovery that is asked when the addresses before it have failed or are silent."""

    name: str
    wait_s: float | None  # for its answer; a late one is used in the next round


@dataclass(frozen=True, slots=True, eq=False)
class _Standby:
    """One that has answered and is asked again."""

    address: str
    answer: Answer


class LeaderSearch:
    """What a client knows of the MDSs.

    Args: bootstrap: MDS-to-MDS addresses instead of bs.list and the other sources. complain: told why nothing was found yet.
    Attributes:
        leader_address: control address of the present or last leader, "" when unknown.
        suspect: a leader that has just fallen silent.
    """

    def __init__(
        self,
        identity: Identity,
        bootstrap: list[str] | None,
        context: ssl.SSLContext,
        on_push: Callable[[m.PushBody], None] | None,
        say_hello: SayHello,
        complain: Callable[[VstorError], None],
    ) -> None:
        self.leader_address = ""
        self.suspect = ""
        self._identity = identity
        self._bootstrap = bootstrap
        self._context = context
        self._on_push = on_push
        self._say_hello = say_hello
        self._complain = complain
        self._finder = Finder(identity.cluster)
        self._learned: list[str] = []

    async def close(self) -> None:
        """End look-ups under way."""
        await self._finder.close()

    def _plan(self) -> tuple[list[str], list[_Source]]:
        """Control addresses in the order of trying, and what is asked for more. Raises CONFIG."""
        named, order = self._bootstrap or [], [] if self._bootstrap else list(read_config().order)
        known = self._learned
        try:
            if order and order[0] == BS_LIST:
                named = read_bs_list(self._identity.cluster)
                order.pop(0)
            known = [control_address(a) for a in named] + known
        except VstorError as exc:
            if not known:
                raise
            log.warning("bs.list not used reason=%s", exc.message)
        first = [self.leader_address] if self.leader_address else []
        addresses = list(dict.fromkeys(first + known))[:ADDRESSES_MAX]
        addresses.sort(key=lambda address: address == self.suspect)
        # A name server that is down must not keep a client with addresses from trying these again.
        wait_s = SOURCE_S_MAX if addresses else None
        return addresses, [_Source(name, wait_s) for name in order]

    async def find(self, connect_s: float) -> Answer | None:
        """A connection to the MDS that says it leads, or None after one round over all addresses."""

        async def attempt(key: _Source | _Standby | str) -> Answer | list[str]:
            if isinstance(key, _Source):
                return [control_address(a) for a in await self._finder.lookup(key.name, key.wait_s)]
            if isinstance(key, _Standby):
                return await self._wait_with(key)
            return await self._try(key, connect_s)

        def dispose(outcome: Answer | list[str]) -> None:
            if not isinstance(outcome, list):
                outcome[0].abort()

        try:
            addresses, more = self._plan()
        except VstorError as exc:
            self._complain(exc)
            return None
        reasons: list[str] = []  # why a source has told nothing
        async with Race(attempt, dispose) as race:
            for address in addresses:
                race.add(address)
            for source in more:
                race.add(source)
            while (ended := await race.next()) is not None:
                key, outcome = ended
                if isinstance(key, _Source):
                    found = outcome if isinstance(outcome, list) else []
                    for address in found:
                        race.add(address)
                    addresses += found
                    if not found:
                        why = outcome.message if isinstance(outcome, VstorError) else "nothing"
                        reasons.append(f"{key.name}: {why}")
                elif isinstance(outcome, VstorError):
                    self._complain(_unreachable(outcome, self._identity.cluster))
                elif not isinstance(outcome, list):
                    # 1. An MDS of this cluster has answered: it knows the others better than any source.
                    reply = outcome[1]
                    race.drop(lambda waiting: isinstance(waiting, _Source))
                    self._learned = reply.addresses[:ADDRESSES_MAX]
                    address = key if isinstance(key, str) else key.address
                    if reply.leader:
                        self.leader_address, self.suspect = address, ""
                        return outcome
                    # 2. Not the leader: the one it names comes next, and it is asked again meanwhile.
                    message = f"cluster {self._identity.cluster} has no leading MDS at the moment"
                    self._complain(VstorError(ErrorCode.UNREACHABLE, message))
                    race.add(_Standby(address, outcome), at_once=True)
                    if reply.leader_address:
                        race.add(reply.leader_address, at_once=True)
                    for other in self._learned:
                        race.add(other)
        if not addresses:
            self._complain(none_known(self._identity.cluster, reasons))
        self.leader_address = ""
        return None

    async def _try(self, address: str, connect_s: float) -> Answer:
        """Connect and say Hello. Raises VstorError."""
        conn = await connect(address, self._context, timeout_s=connect_s, on_push=self._on_push)
        try:
            return conn, await self._say_hello(conn)
        except TimeoutError as exc:
            conn.abort()
            raise VstorError(ErrorCode.UNREACHABLE, f"{address}: no answer") from exc
        except BaseException:
            conn.abort()
            raise

    async def _wait_with(self, standby: _Standby) -> Answer:
        """Its answer when it leads or names another leader. Raises VstorError when that takes too long."""
        conn, reply = standby.answer
        stale = reply.leader_address
        try:
            async with asyncio.timeout(ELECTION_S_MAX):
                while not reply.leader and reply.leader_address in ("", stale):
                    await asyncio.sleep(POLL_S * random.uniform(0.5, 1.5))
                    reply = await self._say_hello(conn)
            return conn, reply
        except TimeoutError as exc:
            conn.abort()
            raise VstorError(ErrorCode.UNREACHABLE, "no MDS leads") from exc
        except BaseException:
            conn.abort()
            raise

    async def successor(self, epoch: int) -> None:
        """Returns when another MDS says that there is a leader of a later epoch; never, if nobody does."""
        while True:
            await asyncio.sleep(SUCCESSOR_S * random.uniform(0.5, 1.5))
            for address in [a for a in self._learned if a != self.leader_address]:
                try:
                    conn, reply = await self._try(address, SUCCESSOR_S)
                except VstorError as exc:
                    log.debug("no answer about a successor reason=%s", exc.message)
                    continue
                conn.close()
                if reply.epoch > epoch:
                    return


def _unreachable(error: VstorError, cluster: str) -> VstorError:
    """Keep what tells more than "unreachable"."""
    if error.code in (ErrorCode.WRONG_CLUSTER, ErrorCode.DENIED, ErrorCode.UNSUPPORTED):
        return error
    return VstorError(ErrorCode.UNREACHABLE, f"no MDS of cluster {cluster} answers ({error.message})")
