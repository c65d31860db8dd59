"""The client's session with the leading MDS: opened, renewed, resumed, replaced when it was lost.

DESIGN: leases are valid until `valid_until_ms` on CLOCK_BOOTTIME: taken before a renewal is sent, plus ttl, less margin.  Replies are
handled by the caller in the loop step in which they arrive (`MdsClient.call` has no extra hop after its future), pushes one
`call_soon` later: so both are handled in the order of the connection.  inodes.py depends on that order.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m

log = logging.getLogger(__name__)

RENEW_S_MIN = 0.05
NEVER: frozenset[ErrorCode] = frozenset()
REPLACED = frozenset({ErrorCode.NO_SESSION})


class Rpc(Protocol):
    """What is used of vstor.net.rpc_client.MdsClient."""

    async def call(
        self,
        body: m.RequestBody,
        *,
        deadline_s: float | None = None,
        retry: bool = True,
        on_id: Callable[[int], None] | None = None,
        again: frozenset[ErrorCode] = frozenset(),
    ) -> m.ReplyBody: ...
    async def wait_connected(self, deadline_s: float | None = None) -> None: ...
    def reconnect(self) -> None: ...
    async def close(self) -> None: ...


class Hooks(Protocol):
    """What the owner of a session is told."""

    def push(self, body: m.PushBody) -> None:
        """A push, in order."""

    def held(self) -> tuple[list[tuple[int, int]], list[m.LockRange], list[tuple[int, int]]]:
        """Leases (ino, mode), locks, opens (ino, count), for SessionResume."""

    def lost(self) -> None:
        """The session is over, and with it all leases and locks; a new one follows."""

    def valid_until(self, boottime_ms: int) -> None:
        """Leases end then, unless told otherwise."""

    def expired(self) -> None:
        """That time has passed without an answer of the MDS; the session may still come back."""


MakeRpc = Callable[[Callable[[m.PushBody], None], Callable[[Any], Awaitable[None]]], Rpc]


class Session:
    """Concurrency: one event loop."""

    def __init__(self, make_rpc: MakeRpc, hooks: Hooks, *, name: str, host_id: str, hostname: str) -> None:
        """make_rpc(on_push, on_connect) gives the RPC client; name: mount point or program."""
        self._hooks = hooks
        self._who = m.SessionOpen(name, os.getpid(), host_id, hostname)
        self.host_id = host_id
        self.id = 0
        self.ttl_ms = 0
        self.margin_ms = 0
        self.auth_mode = 1
        self.config: dict[str, str] = {}
        self.valid_until_ms = 0
        self.sessions = 0  # opened so far
        self.connections = 0  # to an MDS, made so far
        self._expired = False
        self._tasks: list[asyncio.Task[None]] = []
        self._renewed = asyncio.Event()
        self._closing = False
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when this session is lost
        self.rpc = make_rpc(self._on_push, self._on_connect)

    async def start(self, deadline_s: float | None) -> None:
        """Connect and open. Raises what makes it impossible, UNREACHABLE at the deadline."""
        await self.rpc.wait_connected(deadline_s)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._renew(), name="session-renew"),
            loop.create_task(self._watch(), name="session-watch"),
        ]

    async def close(self, deadline_s: float = 3.0) -> None:
        """Give everything back and disconnect; an MDS that does not answer is not waited for."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.id:
            try:
                await self.rpc.call(m.SessionClose(self.id), deadline_s=deadline_s)
            except VstorError as exc:
                log.warning(
                    "session not closed, its leases end by themselves session=%s reason=%s", self.id, exc.message
                )
        await self.rpc.close()

    def remaining_ms(self) -> int:
        """How long what we hold stays valid; 0 when nothing is."""
        return max(0, self.valid_until_ms - clock.boottime_ms())

    async def call(
        self, body: m.RequestBody, *, deadline_s: float | None = None, on_id: Callable[[int], None] | None = None
    ) -> Any:
        """Ask the MDS, for ever by default (R10). A session found dead is replaced and the request sent again.

        It keeps its id then, by which the MDS knows whether it was done under the session before (model/sessions.py).
        on_id: told the id of the request, for LockCancel.
        Raises: VstorError as the MDS says. Returns in the loop step in which the reply came.
        """
        again = NEVER if self._closing else REPLACED
        return await self.rpc.call(body, deadline_s=deadline_s, on_id=on_id, again=again)

    async def call_bound(self, body: m.RequestBody) -> Any:
        """As `call`, for what means something in this session only: never sent again under the next one, where the chunks it speaks of may be others.

        Raises: NO_SESSION when the session was lost meanwhile; the request may have been done.
        """
        lost, loop = self._lost, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:

                def end(_lost: object) -> None:
                    limit.reschedule(loop.time())

                lost.add_done_callback(end)
                try:
                    return await self.rpc.call(body)
                finally:
                    lost.remove_done_callback(end)
        except TimeoutError as exc:
            raise VstorError(ErrorCode.NO_SESSION) from exc
        except VstorError as exc:
            if exc.code == ErrorCode.NO_SESSION and not lost.done() and not self._closing:
                self.rpc.reconnect()
            raise

    def _on_push(self, body: m.PushBody) -> None:
        asyncio.get_running_loop().call_soon(self._hooks.push, body)

    async def _on_connect(self, call_now: Callable[[m.RequestBody], Awaitable[m.ReplyBody]]) -> None:
        self.connections += 1
        if self.id:
            leases, locks, opens = self._hooks.held()
            sent_ms = clock.boottime_ms()
            try:
                self._take(await call_now(m.SessionResume(self.id, leases, locks, opens)), sent_ms)
                log.info("session resumed session=%s leases=%s", self.id, len(leases))
                return
            except VstorError as exc:
                if exc.code != ErrorCode.NO_SESSION:
                    raise
            log.warning("session lost, all leases are gone session=%s", self.id)
            self._who.former, self.id = self.id, 0
            self._end_validity()
            self._lost.set_result(None)
            self._lost = asyncio.get_running_loop().create_future()
            self._hooks.lost()
        sent_ms = clock.boottime_ms()
        self._take(await call_now(self._who), sent_ms)
        self.sessions += 1
        log.info("session opened session=%s ttl_ms=%s", self.id, self.ttl_ms)

    def _take(self, reply: m.ReplyBody, sent_ms: int) -> None:
        if not isinstance(reply, m.SessionReply):
            raise VstorError(
                ErrorCode.INTERNAL, f"the MDS answered the opening of a session with {type(reply).__name__}"
            )
        self.id, self.ttl_ms, self.margin_ms = reply.session_id, reply.ttl_ms, reply.margin_ms
        self.auth_mode, self.config = reply.auth_mode, reply.config
        self._extend(sent_ms)

    def _extend(self, sent_ms: int) -> None:
        self.valid_until_ms = max(self.valid_until_ms, sent_ms + self.ttl_ms - self.margin_ms)
        self._expired = False
        self._renewed.set()
        self._hooks.valid_until(self.valid_until_ms)

    def _end_validity(self) -> None:
        self.valid_until_ms = 0
        self._hooks.valid_until(0)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(max(self.ttl_ms / 3000, RENEW_S_MIN))
            session, sent_ms = self.id, clock.boottime_ms()
            try:
                await self.rpc.call(m.SessionRenew(session), deadline_s=max(self.ttl_ms / 1000, 1.0), retry=False)
            except VstorError as exc:
                if exc.code == ErrorCode.NO_SESSION and self.id == session:
                    self.rpc.reconnect()
                log.debug("renewal failed session=%s reason=%s", session, exc.message)
                continue
            if self.id == session:
                self._extend(sent_ms)

    async def _watch(self) -> None:
        """Says so once when validity ran out."""
        while True:
            remaining = self.remaining_ms()
            if remaining:
                await asyncio.sleep(remaining / 1000)
            elif not self._expired:
                self._expired = True
                self._renewed.clear()
                log.warning("no answer of the MDS in time, leases may not be used session=%s", self.id)
                self._hooks.expired()
            else:
                await self._renewed.wait()
