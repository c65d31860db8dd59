"""The chunk server: the product's control plane (CsService, OrderRunner, Replicator, Transfer) over the modelled engine.

Modelled besides the engine: how a copy reads another chunk server (each request finds it reachable, running and serving, or fails), and the process
around it. Scrubbing is left out; damage is found by reads.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.cs.engine import EngineHost
from vstor.cs.orders import OrderRunner
from vstor.cs.replicator import Replicator
from vstor.cs.repository import CsIdentity
from vstor.cs.service import CsService, Options
from vstor.cs.transfer import SourceState
from vstor.errors import VstorError
from vstor.net.rpc_client import MdsClient
from vstor.proto import messages as m
from vstor.proto.wire_gen import GRANULE_BYTES

from tests.simulate import rpc
from tests.simulate.disk import Disk, Engine
from tests.simulate.loop import Proc
from tests.simulate.net import Directory, End, Net

SPACE = 1 << 40


class NoScrub:
    """In place of the scrubber."""

    class state:
        chunks = 0
        finished_ms = 0

    def configure(self, config: dict[str, str]) -> None:
        return


class NoSources:
    auth_mode = 1


class Service(CsService):
    """Without a file system below it."""

    def _space(self) -> tuple[int, int]:
        return SPACE, SPACE // 2


class Reader:
    """vstor.cs.sources.RawReader: one replica at another chunk server."""

    def __init__(self, here: ChunkServer, source: m.Source) -> None:
        self.here, self.source = here, source
        self.cs_id = source.cs_id

    def _engine(self) -> Engine:
        found = self.here.directory.find(self.source.addresses[0])
        here, net = self.here.proc.host.name, self.here.net
        if found is None or found[0].paused:
            raise VstorError(ErrorCode.DISCONNECTED)
        if not net.passes(here, found[0].host.name) or not net.passes(found[0].host.name, here):
            raise VstorError(ErrorCode.TIMED_OUT)
        engine: Engine = found[1].engine
        return engine

    def _at(self, function: Any) -> Any:
        """Run at the source: with its clock."""
        engine = self._engine()
        proc = self.here.directory.find(self.source.addresses[0])
        assert proc is not None
        return proc[0].call(function, engine)

    def _state(self, engine: Engine) -> SourceState:
        return engine.stat_source(self.source.session_id, self.source.ticket)

    def stat(self) -> SourceState:
        state: SourceState = self._at(self._state)
        return state

    def granules(self, count: int) -> list[tuple[int, int]]:
        def ask(engine: Engine) -> Any:
            replica, _ = engine._check(self.source.session_id, self.source.ticket, write=False)
            return engine.granules(replica.chunk_id, count)

        found: list[tuple[int, int]] = self._at(ask)
        return found

    def hash(self, offset: int, length: int) -> bytes:
        def ask(engine: Engine) -> Any:
            replica, _ = engine._check(self.source.session_id, self.source.ticket, write=False)
            return engine.hash(replica.chunk_id, offset, length)

        digest: bytes = self._at(ask)
        return digest

    def read(self, offset: int, length: int) -> Any:
        def ask(engine: Engine) -> Any:
            return engine.serve("read", self.source.session_id, self.source.ticket, offset // GRANULE_BYTES, 0)

        return self._at(ask) or None

    def close(self) -> None:
        return


class ChunkServer:
    """One life of one chunk server."""

    def __init__(
        self,
        proc: Proc,
        net: Net,
        directory: Directory,
        disk: Disk,
        cs_id: int,
        bootstrap: list[str],
        rng: random.Random,
    ) -> None:
        self.proc, self.net, self.directory, self.rng, self.cs_id = proc, net, directory, rng, cs_id
        self.address = f"{proc.host.name}:{7000 + cs_id}"
        self.engine = Engine(disk, rng.getrandbits(62) | 1)
        self.service: Service | None = None
        self.client: Any = None
        directory.listen(self.address, proc, self)
        proc.call(self._start, bootstrap)

    def _start(self, bootstrap: list[str]) -> None:
        node = rpc.identity(self.proc.host.name)
        options = Options(
            CsIdentity("sim", rpc.CLUSTER_ID, self.cs_id), node, Path(f"/disk{self.cs_id}"), self.engine.incarnation,
            [self.address], "", True, True,
        )  # fmt: skip
        host = EngineHost(self.engine, lambda event: None)
        service: Any = Service(options, host, NoScrub(), NoSources())  # type: ignore[arg-type]
        replicator = Replicator(host, lambda source, chunk_id: Reader(self, source))  # type: ignore[arg-type, return-value]

        async def no_scrub(chunk_id: int) -> int:
            return 0

        service.orders = OrderRunner(host, replicator, no_scrub, service.report_order)
        client = MdsClient(node, "cs", on_push=service.on_push, on_connect=service.on_connect, bootstrap=bootstrap)
        service.client = self.client = client
        self.service = service
        self.engine.on_corrupt = lambda chunk_id, index: service.report("corrupt", chunk_id, index * GRANULE_BYTES)
        client.start()
        self.proc.spawn(service.heartbeat_forever(), "heartbeat")
        self.proc.spawn(service.report_forever(), "report")

    def request(self, end: End, args: tuple[Any, ...], answer: Any) -> None:
        """A data request arrives: it is done a little later, its answer leaves a little later again."""
        self.net.loop.call_later(self.rng.random() ** 3 * 0.003, self._serve, end, args, answer)

    def _serve(self, end: End, args: tuple[Any, ...], answer: Any) -> None:
        try:
            value, status = self.engine.serve(*args), 0
        except VstorError as exc:
            value, status = 0, int(exc.code)
        incarnation = self.engine.incarnation
        end.send(lambda: answer(status, value, incarnation))
