"""An MDS without processes: the real state machine (vstor.model), a shell that commits at once, connections in memory.

Chunk servers are registered and do every order at once. What clients get keeps the order of a connection, as over TCP: every message
is delivered by its own call_soon.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.bootstrap import initial_mutations
from vstor.model.core import Core
from vstor.model.outcome import WAKE_ALL, Ctx, Outcome
from vstor.model.state import State
from vstor.proto import messages as m

TICK_S = 0.05


class Conn:
    """One connection of a client or a chunk server."""

    def __init__(self, mds: FakeMds, role: str, host_id: str) -> None:
        self.mds = mds
        self.ctx = Ctx(mds.next_conn(), role, host_id=host_id, hostname="testhost", address="127.0.0.1")
        self.waiting: dict[int, asyncio.Future[m.ReplyBody]] = {}
        self.on_push: Callable[[m.PushBody], None] = lambda _body: None
        self.closed = False

    def send(self, request_id: int, ack: int, body: m.RequestBody) -> asyncio.Future[m.ReplyBody]:
        future: asyncio.Future[m.ReplyBody] = asyncio.get_running_loop().create_future()
        if self.closed:
            future.set_exception(VstorError(ErrorCode.DISCONNECTED))
            return future
        self.waiting[request_id] = future
        asyncio.get_running_loop().call_soon(self.mds.request, self, request_id, ack, body)
        return future

    def deliver(self, request_id: int, result: m.ReplyBody | VstorError) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, request_id, result)

    def _deliver(self, request_id: int, result: m.ReplyBody | VstorError) -> None:
        future = self.waiting.pop(request_id, None)
        if future is None or future.done():
            return
        if isinstance(result, VstorError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def push(self, body: m.PushBody) -> None:
        asyncio.get_running_loop().call_soon(lambda: None if self.closed else self.on_push(body))

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(VstorError(ErrorCode.DISCONNECTED))
        self.waiting.clear()
        self.mds.disconnected(self)


class FakeMds:
    """Make it in a running loop; `close` at the end."""

    def __init__(
        self,
        *,
        servers: int = 3,
        config: dict[str, str] | None = None,
        addresses: Callable[[FakeMds, int], list[str]] | None = None,
        on_order: Callable[[int, m.Order], None] | None = None,
    ) -> None:
        """addresses(mds, cs_id): of chunk servers that are there; on_order(cs_id, order): do it."""
        self._addresses = addresses or (lambda _mds, cs_id: [f"127.0.0.1:{10_000 + cs_id}", f"unix:/run/cs{cs_id}"])
        self._on_order = on_order
        secrets = {"data_key": bytes(range(32))}
        state = State()
        state.apply(initial_mutations("test", "0" * 32, config or {}, secrets, clock.unix_ms()))
        self._conns = 0
        self.core = Core(state, epoch=1, seed=1, now_ms=clock.unix_ms())
        self.parked: dict[Hashable, list[tuple[Conn, int, int, m.RequestBody]]] = {}
        self.work: deque[tuple[Conn, int, int, m.RequestBody]] = deque()
        self.sessions: dict[int, Conn] = {}
        self.servers: dict[int, Conn] = {}
        self.seen: list[m.RequestBody] = []  # what clients asked
        self.down = False
        self._cs_requests = 1
        for _ in range(servers):
            self._add_server()
        self._ticker = asyncio.get_running_loop().create_task(self._tick_forever())

    def next_conn(self) -> int:
        self._conns += 1
        return self._conns

    async def close(self) -> None:
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)

    # --- chunk servers

    def _cs(self, conn: Conn, body: m.RequestBody) -> Any:
        self._cs_requests += 1
        outcome = self.core.handle(conn.ctx, self._cs_requests, 0, body, clock.unix_ms())
        self._out(outcome, conn, 0)
        return outcome.reply

    def _add_server(self) -> None:
        host_id = f"{len(self.servers) + 1:016x}"
        conn = Conn(self, "cs", host_id)
        cs_id = self._cs(conn, m.CsCreate(host_id, "testhost", 0, f"/cs{host_id}")).cs_id
        space = 1 << 40
        registration = m.CsRegister(
            cs_id, 1, self._addresses(self, cs_id), host_id, "testhost", "", 0, f"/cs{cs_id}", 1,
            "0", space, space, "",
        )  # fmt: skip
        self.servers[cs_id] = conn
        self._cs(conn, registration)
        self._cs(conn, m.CsInventory(cs_id, b"", True))
        self._heartbeat(cs_id)

    def _heartbeat(self, cs_id: int) -> None:
        space = 1 << 40
        beat = m.CsHeartbeat(cs_id, space, space, 0, "", 0.1, 0.2, 0, 0, 0)
        self._cs(self.servers[cs_id], beat)

    async def _tick_forever(self) -> None:
        while True:
            for cs_id in list(self.servers):
                self._heartbeat(cs_id)
            self._out(self.core.tick(clock.unix_ms()), None, 0)
            self._wake({WAKE_ALL})
            await asyncio.sleep(TICK_S)

    # --- requests

    def request(self, conn: Conn, request_id: int, ack: int, body: m.RequestBody) -> None:
        if self.down:
            return  # lost on the way
        self.seen.append(body)
        self.work.append((conn, request_id, ack, body))
        self._drain()

    def _drain(self) -> None:
        while self.work:
            conn, request_id, ack, body = self.work.popleft()
            if conn.closed:
                continue
            try:
                outcome = self.core.handle(conn.ctx, request_id, ack, body, clock.unix_ms())
            except VstorError as exc:
                conn.deliver(request_id, exc)
                continue
            if outcome.park is not None:
                self.parked.setdefault(outcome.park, []).append((conn, request_id, ack, body))
            self._out(outcome, conn, request_id)

    def _out(self, outcome: Outcome, conn: Conn | None, request_id: int) -> None:
        if conn is not None and (outcome.bind_session or outcome.bind_cs):
            session = outcome.bind_session or conn.ctx.session_id
            conn.ctx = Ctx(
                conn.ctx.conn_id, conn.ctx.role, session, outcome.bind_cs or conn.ctx.cs_id,
                conn.ctx.host_id, conn.ctx.hostname, conn.ctx.address,
            )  # fmt: skip
            if outcome.bind_session:
                self.sessions[outcome.bind_session] = conn
        if conn is not None and outcome.reply is not None and request_id:
            conn.deliver(request_id, outcome.reply)
        for session_id, push in outcome.pushes:
            if session_id in self.sessions:
                self.sessions[session_id].push(push)
        for session_id in outcome.unbind_session:
            self.sessions.pop(session_id, None)
        self._wake(outcome.wake)
        for cs_id, order in outcome.orders:
            if self._on_order is not None:
                self._on_order(cs_id, order.order)
            self._cs(self.servers[cs_id], m.CsOrderDone(order.order_id, 0))

    def _wake(self, keys: set[Hashable]) -> None:
        for key in list(self.parked) if WAKE_ALL in keys else list(keys):
            self.work.extend(self.parked.pop(key, []))
        asyncio.get_running_loop().call_soon(self._drain)

    def disconnected(self, conn: Conn) -> None:
        for requests in self.parked.values():
            requests[:] = [r for r in requests if r[0] is not conn]
        self.sessions = {s: c for s, c in self.sessions.items() if c is not conn}
        self._out(self.core.session_disconnected(conn.ctx, clock.unix_ms()), None, 0)

    def end_session(self, session_id: int) -> None:
        """As when its ttl ran out."""
        conn = self.sessions[session_id]
        self._out(self.core.handle(conn.ctx, 1 << 40, 0, m.SessionClose(session_id), clock.unix_ms()), None, 0)


class FakeRpc:
    """Twin of vstor.net.rpc_client.MdsClient on a FakeMds."""

    def __init__(
        self,
        mds: FakeMds,
        host_id: str,
        on_push: Callable[[m.PushBody], None],
        on_connect: Callable[[Callable[[m.RequestBody], Awaitable[m.ReplyBody]]], Awaitable[None]],
    ) -> None:
        self.mds, self.host_id = mds, host_id
        self._on_push, self._on_connect = on_push, on_connect
        self._next_id = 1
        self._live: dict[int, None] = {}
        self.conn: Conn | None = None
        self._connecting = asyncio.Lock()

    def _ack(self) -> int:
        return next(iter(self._live), self._next_id) - 1

    async def wait_connected(self, deadline_s: float | None = None) -> None:
        async with self._connecting:
            if self.conn is not None:
                return
            conn = Conn(self.mds, "client", self.host_id)
            conn.on_push = self._on_push

            async def call_now(body: m.RequestBody) -> m.ReplyBody:
                self._next_id += 1
                return await conn.send(self._next_id - 1, self._ack(), body)

            await self._on_connect(call_now)
            self.conn = conn

    async def call(
        self,
        body: m.RequestBody,
        *,
        deadline_s: float | None = None,
        retry: bool = True,
        on_id: Callable[[int], None] | None = None,
        again: frozenset[ErrorCode] = frozenset(),
    ) -> m.ReplyBody:
        request_id = self._next_id
        self._next_id += 1
        self._live[request_id] = None
        if on_id is not None:
            on_id(request_id)
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    if self.conn is None:
                        await self.wait_connected()
                    assert self.conn is not None
                    try:
                        return await self.conn.send(request_id, self._ack(), body)
                    except VstorError as exc:
                        if (exc.code != ErrorCode.DISCONNECTED and exc.code not in again) or not retry:
                            raise
                        if self.conn is not None and exc.code in again:
                            conn, self.conn = self.conn, None
                            conn.close()
        except TimeoutError as exc:
            raise VstorError(ErrorCode.TIMED_OUT) from exc
        finally:
            self._live.pop(request_id, None)

    def reconnect(self) -> None:
        if self.conn is not None:
            conn, self.conn = self.conn, None
            conn.close()
            self._again = asyncio.get_running_loop().create_task(self.wait_connected())

    async def close(self) -> None:
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()
