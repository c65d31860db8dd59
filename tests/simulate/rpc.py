"""The product's control client (vstor.net.rpc_client.MdsClient) on simulated connections: what it sends and when is its own decision."""

from __future__ import annotations

import asyncio
import contextlib
import random as global_random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net.identity import Identity
from vstor.proto import messages as m

from tests.simulate.loop import PROC
from tests.simulate.mds import Mds
from tests.simulate.net import Directory, Link, Net

CLUSTER_ID = "0123456789abcdef" * 2


def identity(host: str) -> Identity:
    """A node of the simulated cluster."""
    nowhere = Path("/nonexistent")
    return Identity("sim", CLUSTER_ID, host, nowhere, nowhere, nowhere)


class SimRpcConnection:
    """vstor.net.rpc_connection.RpcConnection."""

    def __init__(self, link: Link, on_push: Callable[[Any], None] | None) -> None:
        self._end = link.ends[0]
        self._on_push = on_push
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.last_received_s = self._loop.time()
        self.server_request: Any = None
        self._end.on_close = lambda: self._gone("connection lost")

    def receive(self, envelope: Any) -> None:
        self.last_received_s = self._loop.time()
        if isinstance(envelope, m.Push):
            if self._on_push is not None:
                self._on_push(envelope.body)
            return
        future = self._waiting.pop(envelope.id, None)
        if future is None or future.done():
            return
        if isinstance(envelope, m.Reply):
            future.set_result(envelope.body)
        else:
            future.set_exception(VstorError(envelope.code, envelope.message))

    def send(self, request: m.Request) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        if not self._end.open:
            future.set_exception(VstorError(ErrorCode.DISCONNECTED))
            return future
        data = m.encode(request)
        deliver = self.server_request
        self._end.send(lambda: deliver(data))
        self._waiting[request.id] = future
        return future

    def forget(self, request_id: int) -> None:
        self._waiting.pop(request_id, None)

    def close(self) -> None:
        self._end.close()
        self._gone("closed")

    def abort(self) -> None:
        self._end.close(abort=True)
        self._gone("aborted")

    def _gone(self, why: str) -> None:
        self.closed.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(VstorError(ErrorCode.DISCONNECTED, f"connection to the MDS lost ({why})"))
                future.exception()


def connector(net: Net, directory: Directory) -> Callable[..., Any]:
    """What takes the place of rpc_connection.connect."""

    async def connect(
        address: str, context: Any, *, timeout_s: float, on_push: Any = None, verified: bool = True
    ) -> SimRpcConnection:
        proc = PROC.get()
        assert proc is not None
        await asyncio.sleep(net.delay_s(proc.host.name, "") * 2)
        found = directory.find(address)
        target = address.partition(":")[0]
        if not net.passes(proc.host.name, target) or not net.passes(target, proc.host.name):
            await asyncio.sleep(timeout_s)
            raise VstorError(ErrorCode.UNREACHABLE, f"{address}: no answer within {timeout_s:g} s")
        if found is None or found[0].paused:
            await asyncio.sleep(0.01 if found is None else timeout_s)
            raise VstorError(ErrorCode.UNREACHABLE, f"{address}: refused")
        server, mds = found
        assert isinstance(mds, Mds)
        link = Link(net, proc, server)
        conn = SimRpcConnection(link, on_push)
        other = server.call(mds.accept, link)
        other.receive = conn.receive
        conn.server_request = other.request
        return conn

    return connect


@contextlib.contextmanager
def product_in_simulation(net: Net, directory: Directory, seed: int) -> Iterator[None]:
    """The product's clock is that of the running process's host, its connections are simulated ones, its jitter comes from the seed."""

    def boottime_ms() -> int:
        proc = PROC.get()
        assert proc is not None
        return proc.host.boottime_ms(net.loop.now_s)

    def unix_ms() -> int:
        return 1_700_000_000_000 + int(net.loop.now_s * 1000)

    class NoDisk:
        """vstor.cs.stats.DiskBusy of a disk that is not there."""

        def __init__(self, path: Path) -> None:
            return

        def sample(self, now_s: float) -> float:
            return -1.0

    def no_certificates(*paths: Path) -> None:
        return

    state = global_random.getstate()
    global_random.seed(seed)
    with (
        mock.patch("vstor.clock.boottime_ms", boottime_ms),
        mock.patch("vstor.clock.unix_ms", unix_ms),
        mock.patch("vstor.cs.service.boottime_ms", boottime_ms),
        mock.patch("vstor.cs.service.stats.DiskBusy", NoDisk),
        mock.patch("vstor.net.leader_search.connect", connector(net, directory)),
        mock.patch("vstor.net.rpc_client.pki.client_context", no_certificates),
    ):
        try:
            yield
        finally:
            global_random.setstate(state)
