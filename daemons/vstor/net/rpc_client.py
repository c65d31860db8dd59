"""The control RPC client: finds the leader, keeps a connection to it, retries.

DESIGN: request ids grow over the life of an MdsClient; a request that was
cut off by a lost connection goes out again with the same id, so that the MDS recognises it (exactly once). One background task owns
the connection; callers only wait on futures. A silent connection is probed by Hello, whose answer also says whether the peer still leads.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import pki
from vstor.net.identity import Identity, load_identity
from vstor.net.leader_search import LeaderSearch
from vstor.net.rpc_connection import RpcConnection, hello
from vstor.proto import messages as m

log = logging.getLogger(__name__)

CONNECT_S = 1.5  # per address in the first round
CONNECT_S_MAX = 5.0
HELLO_S_MAX = 3.0
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0
PROBE_AFTER_S = 1.0  # of silence
PROBE_S_MAX = 3.0  # then the connection is dropped
PENDING_MAX = 16384
# Said by an MDS that did not look at the request: it goes out again by itself.
TRANSIENT = frozenset(
    {
        ErrorCode.NOT_LEADER,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.META_UNAVAILABLE,
        ErrorCode.BUSY,
        ErrorCode.LIMIT,
        ErrorCode.DISCONNECTED,
    }
)

# May wait for minutes, and their outcome is not kept by the MDS: they must not hold back the acknowledgement of other requests.
WAITING = (m.LockSet, m.LeaseAcquire, m.GetMap, m.ReplicaFailed)

CallNow = Callable[[m.RequestBody], Awaitable[m.ReplyBody]]
OnPush = Callable[[m.PushBody], None]
OnConnect = Callable[[CallNow], Awaitable[None]]


class MdsClient:
    """A caller of the leading MDS.

    Args:
        role: client, cs, ctl or mds (Hello.role).
        on_push: called for each Push, on the event loop; must not block.
        on_connect: awaited on every new connection before anything else goes out; gets a function that sends at once on this
            connection. A retryable error of it means "connect again"; another one is handed to all callers.
        bootstrap: MDS-to-MDS addresses instead of bs.list and the other sources of discovery.
    Concurrency: one event loop, from which all methods are called. The first `call` starts it; `close` ends it.
    """

    def __init__(
        self,
        identity: Identity,
        role: str,
        *,
        on_push: OnPush | None = None,
        on_connect: OnConnect | None = None,
        bootstrap: list[str] | None = None,
    ) -> None:
        self.identity = identity
        self.role = role
        self.hello: m.HelloReply | None = None  # of the present or last leader
        self._on_connect = on_connect
        context = pki.client_context(identity.cert_path, identity.key_path, identity.ca_path)
        self._search = LeaderSearch(identity, bootstrap, context, on_push, self._say_hello, self._complain)
        self._next_id = 1
        self._live: dict[int, None] = {}  # ids not finished, ascending, those of WAITING left out
        self._calls = 0
        self._conn: RpcConnection | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}  # in order; woken when _conn or _fatal is set
        self._error = VstorError(ErrorCode.UNREACHABLE)
        self._fatal: VstorError | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._refused = False  # the leader has said that it may not serve now

    @property
    def leader_address(self) -> str:
        """Control address of the present or last leader, "" when unknown."""
        return self._search.leader_address

    @property
    def connected(self) -> bool:
        """A connection to the leader is up and on_connect has finished."""
        return self._conn is not None

    async def call(
        self,
        body: m.RequestBody,
        *,
        deadline_s: float | None = None,
        retry: bool = True,
        on_id: Callable[[int], None] | None = None,
        again: frozenset[ErrorCode] = frozenset(),
    ) -> m.ReplyBody:
        """Send to the leader and wait for the answer.

        Args:
            deadline_s: None waits for ever.
            retry: after a lost connection or a transient refusal, send again with the same id until the deadline.
            on_id: told the id of the request (for LockCancel).
            again: refusals after which on_connect is to run again on a new connection, and the request to go out again with the same id.
        Raises: VstorError by the Failure's code; TIMED_OUT or UNREACHABLE at the deadline (the request may have been done);
            DISCONNECTED without `retry`.
        """
        if self._closed:
            raise VstorError(ErrorCode.SHUTTING_DOWN, "the connection to the MDS is closed")
        if self._calls >= PENDING_MAX:
            raise VstorError(ErrorCode.LIMIT, f"more than {PENDING_MAX} requests to the MDS wait")
        self.start()
        request_id = self._take_id(body)
        if on_id is not None:
            on_id(request_id)
        self._calls += 1
        try:
            async with asyncio.timeout(deadline_s):
                return await self._call(request_id, body, retry, again)
        except TimeoutError as exc:
            raise self._deadline_error(deadline_s) from exc
        finally:
            self._calls -= 1
            self._live.pop(request_id, None)
            if self._conn is not None:
                self._conn.forget(request_id)

    async def wait_connected(self, deadline_s: float | None = None) -> None:
        """Until a connection is up. Raises what on_connect raised for good, or UNREACHABLE at the deadline."""
        self.start()
        try:
            async with asyncio.timeout(deadline_s):
                await self._wait_ready()
        except TimeoutError as exc:
            raise self._deadline_error(deadline_s) from exc

    def start(self) -> None:
        """Begin to connect; also done by the first call."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="mds-client")

    def reconnect(self) -> None:
        """Drop the connection, e.g. after NO_SESSION: on_connect will run again."""
        if self._conn is not None:
            self._conn.abort()

    async def close(self) -> None:
        """End the connection; calls that wait get SHUTTING_DOWN."""
        self._closed = True
        self._fatal = VstorError(ErrorCode.SHUTTING_DOWN, "the connection to the MDS is closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._search.close()
        if self._conn is not None:
            self._conn.close()
            self._conn = None
        self._wake()

    # --- requests

    def _take_id(self, body: m.RequestBody) -> int:
        request_id = self._next_id
        self._next_id += 1
        if not isinstance(body, WAITING):
            self._live[request_id] = None
        return request_id

    def _request(self, request_id: int, body: m.RequestBody) -> m.Request:
        # Every id below the oldest live one is finished.
        return m.Request(request_id, body, next(iter(self._live), self._next_id) - 1)

    async def _call(
        self, request_id: int, body: m.RequestBody, retry: bool, again: frozenset[ErrorCode]
    ) -> m.ReplyBody:
        backoff_s = BACKOFF_S_MIN
        while True:
            conn = await self._wait_ready()
            try:
                return await conn.send(self._request(request_id, body))
            except VstorError as exc:
                if exc.code == ErrorCode.NOT_LEADER or exc.code in again:
                    conn.abort()
                self._refused = self._refused or exc.code == ErrorCode.META_UNAVAILABLE
                if not retry or exc.code not in TRANSIENT | again:
                    raise
                if exc.code in (ErrorCode.DISCONNECTED, ErrorCode.NOT_LEADER) or exc.code in again:
                    if self._conn is conn:
                        self._conn = None  # _hold has not run yet
                    continue
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    async def _wait_ready(self) -> RpcConnection:
        """The connection once it may be used. Raises what makes it impossible for good."""
        while self._conn is None:
            if self._fatal is not None:
                raise self._fatal
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)
        return self._conn

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _deadline_error(self, deadline_s: float | None) -> VstorError:
        if self._conn is not None:
            return VstorError(ErrorCode.TIMED_OUT, f"the MDS did not answer within {deadline_s:g} s")
        return self._error

    # --- the connection

    async def _run(self) -> None:
        backoff_s, connect_s = BACKOFF_S_MIN, CONNECT_S
        while True:
            found = await self._search.find(connect_s)
            if found is not None:
                self.hello = found[1]
            if found is not None and await self._greet(found[0]):
                backoff_s, connect_s = BACKOFF_S_MIN, CONNECT_S
                await self._hold(found[0])
            else:
                connect_s = min(2 * connect_s, CONNECT_S_MAX)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    async def _say_hello(self, conn: RpcConnection) -> m.HelloReply:
        who = self.identity
        body = hello(who.cluster, who.cluster_id, self.role, who.host_id)
        request_id = self._take_id(body)
        try:
            async with asyncio.timeout(HELLO_S_MAX):
                reply = await conn.send(self._request(request_id, body))
        finally:
            self._live.pop(request_id, None)
        if not isinstance(reply, m.HelloReply):
            raise VstorError(ErrorCode.BAD_REQUEST, "the MDS answered Hello with something else")
        return reply

    async def _greet(self, conn: RpcConnection) -> bool:
        """Run on_connect; True when the connection may be used."""

        async def call_now(body: m.RequestBody) -> m.ReplyBody:
            request_id = self._take_id(body)
            try:
                return await conn.send(self._request(request_id, body))
            finally:
                self._live.pop(request_id, None)

        try:
            if self._on_connect is not None:
                await self._on_connect(call_now)
        except VstorError as exc:
            conn.close()
            if not exc.retryable:
                self._fatal = exc
                self._wake()
            self._complain(exc)
            return False
        except BaseException:
            conn.abort()
            raise
        if conn.closed.is_set():
            return False
        self._fatal = None
        self._conn = conn
        self._wake()
        log.info(
            "connected to the MDS address=%s epoch=%s",
            self.leader_address,
            self.hello and self.hello.epoch,
        )
        return True

    async def _hold(self, conn: RpcConnection) -> None:
        """Until the connection ends, stays silent, or its MDS no longer leads."""
        loop = asyncio.get_running_loop()
        try:
            while not conn.closed.is_set():
                silence_s = loop.time() - conn.last_received_s
                try:
                    async with asyncio.timeout(max(PROBE_AFTER_S - silence_s, 0.01)):
                        await conn.closed.wait()
                    break
                except TimeoutError:
                    if loop.time() - conn.last_received_s < PROBE_AFTER_S and not self._refused:
                        continue
                if not await self._probe(conn):
                    break
        except (TimeoutError, VstorError) as exc:
            self._search.suspect = self._search.leader_address
            log.warning("the MDS does not answer address=%s reason=%s", self.leader_address, exc or "silent")
        finally:
            self._conn = None
            conn.abort()
            self._error = VstorError(ErrorCode.UNREACHABLE, f"connection to the MDS at {self.leader_address} lost")

    async def _probe(self, conn: RpcConnection) -> bool:
        """Whether its MDS still leads. Meanwhile the others are asked: a leader that hangs, or has lost its store, has a successor before it ends.

        Raises: TimeoutError, VstorError when it does not answer."""
        assert self.hello is not None
        refused, self._refused = self._refused, False
        answer = asyncio.create_task(self._say_hello(conn), name="mds-probe")
        successor = asyncio.create_task(self._search.successor(self.hello.epoch), name="mds-successor")
        try:
            await asyncio.wait({answer, successor}, timeout=PROBE_S_MAX, return_when=asyncio.FIRST_COMPLETED)
            if refused and answer.done():
                await asyncio.wait({successor}, timeout=PROBE_AFTER_S)
            if answer.done() and not successor.done():
                reply = answer.result()
                self.hello = reply if reply.leader else self.hello
                return reply.leader
            if not successor.done():
                raise TimeoutError
            raise VstorError(ErrorCode.NOT_LEADER, "another MDS leads")
        finally:
            for task in (answer, successor):
                task.cancel()
            await asyncio.gather(answer, successor, return_exceptions=True)

    def _complain(self, error: VstorError) -> None:
        if error.message != self._error.message:
            log.warning("no connection to the MDS reason=%s", error.message)
        self._error = error


async def call_once(
    cluster: str,
    body: m.RequestBody,
    *,
    bootstrap: list[str] | None = None,
    deadline_s: float = 30.0,
    role: str = "ctl",
) -> m.ReplyBody:
    """One request on a connection of its own. Raises as MdsClient.call."""
    client = MdsClient(load_identity(cluster), role, bootstrap=bootstrap)
    try:
        return await client.call(body, deadline_s=deadline_s)
    finally:
        await client.close()


def call_sync(
    cluster: str,
    body: m.RequestBody,
    *,
    bootstrap: list[str] | None = None,
    deadline_s: float = 30.0,
) -> m.ReplyBody:
    """For tools: one request, blocking. Raises as MdsClient.call."""
    return asyncio.run(call_once(cluster, body, bootstrap=bootstrap, deadline_s=deadline_s))
