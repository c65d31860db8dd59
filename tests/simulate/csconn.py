"""Connections of the client's C engine to chunk servers (native/src/cl_conn.c): made when needed, dropped when nothing moves."""

from __future__ import annotations

from collections import deque
from typing import Any

from vstor.codes_gen import ErrorCode

from tests.simulate.loop import Proc
from tests.simulate.net import Link

IO_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0
RECONNECT_S = 0.5


class CsConn:
    """The connection to one chunk server, made when needed. It is watched, not the single request."""

    def __init__(self, engine: Any, cs_id: int) -> None:
        self.engine, self.cs_id = engine, cs_id
        self.addresses: list[str] = []
        self.session_id = 0
        self.link: Link | None = None
        self.connecting = False
        self.retry_at_s = 0.0
        self.waiting: deque[tuple[tuple[Any, ...], Any]] = deque()
        self.inflight: dict[int, Any] = {}
        self.moved_s = 0.0
        self._next = 0
        self._watching = False

    @property
    def in_backoff(self) -> bool:
        return self.link is None and not self.connecting and self.engine.net.loop.now_s < self.retry_at_s

    def ask(self, op: str, ticket: bytes, index: int, value: int, done: Any) -> None:
        """done(status, value, incarnation) later."""
        self.waiting.append(((op, ticket, index, value), done))
        self._go()

    def _go(self) -> None:
        loop = self.engine.net.loop
        if self.link is not None:
            while self.waiting:
                self._send(*self.waiting.popleft())
        elif not self.connecting:
            self.connecting = True
            loop.call_later(max(0.0, self.retry_at_s - loop.now_s), self._connect)

    def _connect(self) -> None:
        net, loop = self.engine.net, self.engine.net.loop
        found = self.engine.directory.find(self.addresses[0]) if self.addresses else None
        here = self.engine.proc.host.name
        there = self.addresses[0].partition(":")[0] if self.addresses else here
        if not net.passes(here, there) or not net.passes(there, here) or (found is not None and found[0].paused):
            loop.call_later(CONNECT_TIMEOUT_S, self._refused)
        elif found is None:
            loop.call_later(0.002, self._refused)
        else:
            loop.call_later(2 * net.delay_s(here, there), self._connected, found)

    def _refused(self) -> None:
        self.connecting = False
        self.retry_at_s = self.engine.net.loop.now_s + RECONNECT_S
        waiting, self.waiting = self.waiting, deque()
        for _, done in waiting:
            done(int(ErrorCode.DISCONNECTED), 0, 0)

    def _connected(self, found: tuple[Proc, Any]) -> None:
        if not found[0].alive:
            self._refused()
            return
        self.connecting = False
        self.link = Link(self.engine.net, self.engine.proc, found[0])
        self.server = found[1]
        self.link.ends[0].on_close = self._lost
        self.moved_s = self.engine.net.loop.now_s
        self._go()

    def _send(self, args: tuple[Any, ...], done: Any) -> None:
        assert self.link is not None
        number = self._next
        self._next += 1
        if not self.inflight:
            self.moved_s = self.engine.net.loop.now_s
        self.inflight[number] = done
        server, end, link = self.server, self.link.ends[1], self.link
        op, ticket, index, value = args

        def answer(status: int, result: int, incarnation: int) -> None:
            if self.link is link:
                self.moved_s = self.engine.net.loop.now_s
                waiting = self.inflight.pop(number, None)
                if waiting is not None:
                    waiting(status, result, incarnation)

        request = (op, self.session_id, ticket, index, value)
        link.ends[0].send(lambda: server.request(end, request, answer))
        if not self._watching:
            self._watching = True
            self.engine.net.loop.call_later(IO_TIMEOUT_S / 4, self._watch, self.engine.net.loop.now_s)

    def _watch(self, asked_s: float) -> None:
        """Drop the connection when nothing moves; a process that was stopped itself starts counting anew."""
        self._watching = False
        now_s = self.engine.net.loop.now_s
        if not self.inflight:
            return
        if now_s - asked_s > IO_TIMEOUT_S:
            self.moved_s = now_s
        if now_s - self.moved_s >= IO_TIMEOUT_S and self.link is not None:
            self.link.ends[0].close(abort=True)
            self._lost()
            return
        self._watching = True
        self.engine.net.loop.call_later(IO_TIMEOUT_S / 4, self._watch, now_s)

    def _lost(self) -> None:
        self.link = None
        inflight, self.inflight = self.inflight, {}
        for done in inflight.values():
            done(int(ErrorCode.DISCONNECTED), 0, 0)
