"""One simulated cluster: etcd, MDSs, chunk servers, clients, and what is checked at every step of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vstor.client.volume import Volume
from vstor.model import keys
from vstor.model.bootstrap import initial_mutations
from vstor.model.records import Cs, encode, extent_items
from vstor.model.state import State
from vstor.net.rpc_client import MdsClient
from vstor.proto import messages as m

from tests.simulate import rpc
from tests.simulate.cs import ChunkServer
from tests.simulate.disk import Disk, Replica
from tests.simulate.engine import Native
from tests.simulate.etcd import Etcd
from tests.simulate.history import History
from tests.simulate.loop import Host, Proc, SimLoop
from tests.simulate.mds import Mds
from tests.simulate.net import Directory, Net

REG = stat.S_IFREG | 0o644
SKEW = 0.03  # clocks run so much faster or slower, at most
CONFIG = {
    "fs.failure_domain": "disk",
    "fs.chunk_size": str(2 << 20),
    "mds.lease.ttl": "3000",
    "mds.lease.margin": "600",
    "mds.lease.recall_tout": "4000",
    "mds.cs.lease": "1500",
    "mds.wd.heartbeat": "400",
    "mds.wd.offline_tout": "4000",
    "mds.wd.max_offline_cs_hosts": "0",
    "mds.order.tout": "500",
    "mds.repl.tout": "5000",
}
SECRETS = {"data_key": bytes(range(32)), "verifier": b"v"}


class Violation(AssertionError):
    """A promise is broken."""


@dataclass(slots=True)
class Plan:
    """What a seed decides before anything runs."""

    replicas: str
    n_cs: int
    n_mds: int
    n_clients: int


@dataclass
class Slot:
    """A chunk server's place: host and disk stay, the process comes and goes."""

    cs_id: int
    host: Host
    disk: Disk
    server: ChunkServer | None = None
    deleted: list[int] = field(default_factory=list)

    @property
    def up(self) -> bool:
        return self.server is not None and self.server.proc.alive


@dataclass
class MdsSlot:
    host: Host
    address: str  # of the control port
    mds: Mds | None = None

    @property
    def up(self) -> bool:
        return self.mds is not None and self.mds.proc.alive


@dataclass
class Client:
    """One life of one client."""

    name: str
    proc: Proc
    volume: Any = None
    sessions: set[int] = field(default_factory=set)

    @property
    def up(self) -> bool:
        return self.proc.alive


class World:
    """Everything of one history. `now` is true time, seconds."""

    def __init__(self, loop: SimLoop, rng: random.Random, plan: Plan) -> None:
        self.loop, self.rng, self.plan = loop, rng, plan
        self.net = Net(loop, rng)
        self.directory = Directory()
        self.etcd = Etcd(loop, self.net, rng)
        self.etcd.on_commit = self._committed
        self.history = History()
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.natives: list[Native] = []
        self.committed = State()  # what etcd holds, decoded
        normal, minimum = plan.replicas.split(":")
        self.normal, self.minimum = int(normal), int(minimum)
        config = CONFIG | {"fs.replicas": plan.replicas}
        first = initial_mutations("sim", rpc.CLUSTER_ID, config, SECRETS, 1_700_000_000_000)
        self.slots = [Slot(1025 + n, self._host(f"10.0.1.{n + 1}"), Disk()) for n in range(plan.n_cs)]
        first += [
            (keys.cs(s.cs_id), encode(Cs(s.cs_id, s.host.name, s.host.name, 0, f"/disk{s.cs_id}", 1, down_ms=1)))
            for s in self.slots
        ]
        self.etcd.records.update((k, v) for k, v in first if v is not None)
        self.etcd.seq = 1
        self.committed.load(list(self.etcd.records.items()))
        self.mdss = [MdsSlot(self._host(f"10.0.0.{n + 1}"), f"10.0.0.{n + 1}:2511") for n in range(plan.n_mds)]
        self.bootstrap = [f"{s.host.name}:2510" for s in self.mdss]
        self.clients: list[Client] = []
        self.sessions: dict[int, Client] = {}

    @property
    def now(self) -> float:
        return self.loop.now_s

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:9.4f} {text}")

    def violate(self, promise: str, text: str) -> None:
        self.violations.append(f"{promise}: {text}")
        self.note(f"VIOLATION {promise}: {text}")

    def _host(self, name: str) -> Host:
        return Host(name, 1 + self.rng.uniform(-SKEW, SKEW), self.rng.randrange(1_000_000, 9_000_000))

    # --- processes

    def start_mds(self, slot: MdsSlot) -> None:
        proc = Proc(self.loop, slot.host, f"mds{slot.host.name[-1]}")
        slot.mds = Mds(proc, self.net, self.etcd, slot.address, [s.address for s in self.mdss], self.rng)
        slot.mds.on_lead = lambda mds: self.note(f"{mds.proc.name} leads, epoch {mds.term.leadership.epoch}")
        self.directory.listen(slot.address, proc, slot.mds)

    def start_cs(self, slot: Slot) -> None:
        proc = Proc(self.loop, slot.host, f"cs{slot.cs_id - 1024}")
        slot.server = ChunkServer(proc, self.net, self.directory, slot.disk, slot.cs_id, self.bootstrap, self.rng)
        slot.server.engine.observe = lambda *args: self._wrote(slot, *args)
        slot.server.engine.on_delete = lambda chunk_id: self._deletes(slot, chunk_id)

    def start_client(self, name: str) -> Client:
        host = self._host(f"10.0.2.{len(self.clients) + 1}")
        client = Client(name, Proc(self.loop, host, name))
        self.clients.append(client)

        def make_native(auth_mode: int) -> Native:
            native = Native(self.net, self.directory, self.rng, self._acked, lambda file: self._lost(client, file))
            self.natives.append(native)
            return native

        def make_rpc(on_push: Any, on_connect: Any) -> MdsClient:
            return MdsClient(
                rpc.identity(host.name), "client", on_push=on_push, on_connect=on_connect, bootstrap=self.bootstrap
            )

        def make() -> Volume:
            return Volume(make_rpc, make_native, name=name, host_id=host.name, host=host.name)

        async def start() -> None:
            client.volume = make()
            await client.volume.start()

        client.proc.spawn(start(), name)
        return client

    def leader(self) -> Any:
        """The core that leads by etcd's account, if it is alive."""
        for slot in self.mdss:
            term = slot.mds.term if slot.mds is not None and slot.up else None
            if term is not None and term.leadership.epoch == self.etcd.epoch:
                return term.core
        return None

    # --- checked as it happens

    def _committed(self, epoch: int, mutations: list[tuple[bytes, bytes | None]]) -> None:
        """R3, R4: versions only rise, and rise when a replica leaves; only the newest leader writes."""
        if self.etcd.committed_epochs and epoch < self.etcd.committed_epochs[-1]:
            self.violate("R4", f"a transaction of epoch {epoch} after one of {self.etcd.committed_epochs[-1]}")
        self.etcd.committed_epochs.append(epoch)
        sessions = set(self.committed.sessions)
        for key, value in mutations:
            if key[:1] == keys.EXTENT and value is not None:
                self._check_extent(key, value)
        self.committed.apply(mutations)
        for session_id in sorted(sessions - set(self.committed.sessions)):
            self._session_ended(session_id)

    def _check_extent(self, key: bytes, value: bytes) -> None:
        for _, chunk in extent_items(value):
            found = self.committed.chunk_by_id(chunk.id)
            if found is None:
                continue
            before = found[2]
            if chunk.version < before.version:
                self.violate("R3", f"chunk {chunk.id}: version {before.version} became {chunk.version}")
            if set(before.replicas) - set(chunk.replicas) and chunk.version == before.version:
                self.violate(
                    "R3",
                    f"chunk {chunk.id}: replicas {before.replicas} became {chunk.replicas} at version {chunk.version}",
                )
            if not chunk.replicas:
                self.violate("R6", f"chunk {chunk.id} has no replica")

    def _session_ended(self, session_id: int) -> None:
        """What its client had not flushed may go."""
        self.note(f"session {session_id} ended")
        written = {o.key for o in self.history.ops if o.kind == "write" and session_id in o.session.sessions}
        for key in sorted(written):
            self.history.lose(key, self.now, f"session {session_id} ended")

    def _wrote(self, slot: Slot, replica: Replica, index: int, value: int, session_id: int) -> None:
        """R4: a write that changes a replica in the map is that of the only holder."""
        found = self.committed.chunk_by_id(replica.chunk_id)
        core = self.leader()
        if found is None or core is None or core.sessions.in_grace or not slot.up:
            return
        if slot.cs_id not in found[2].replicas or found[2].version != replica.version:
            return
        if replica.chunk_id in core.versions.raising:
            return  # the fence is being put up; whoever gets the lease waits for it
        others = {n: mode for n, mode in core.leases.holders.get(found[0], {}).items() if n != session_id}
        if any(mode in (m.SHARED, m.EXCLUSIVE) for mode in others.values()):
            self.violate(
                "R4",
                f"cs{slot.cs_id - 1024} takes {value} for chunk {replica.chunk_id} of session {session_id}, leases are {others}",
            )

    def _deletes(self, slot: Slot, chunk_id: int) -> None:
        """R6: of a chunk in use a replica is deleted only outside of the map, with enough good ones left."""
        found = self.committed.chunk_by_id(chunk_id)
        replica = slot.disk.replicas[chunk_id]
        if found is None:
            return
        chunk = found[2]
        if slot.cs_id in chunk.replicas and not replica.syncing:
            if self._started_over(slot, replica):
                return
            self.violate("R6", f"cs{slot.cs_id - 1024} deletes chunk {chunk_id}, which the map {chunk.replicas} names")
            return
        good = 0
        for other in self.slots:
            held = other.disk.replicas.get(chunk_id)
            good += (
                other.cs_id in chunk.replicas
                and held is not None
                and not held.syncing
                and held.version == chunk.version
            )
        if replica.version == chunk.version and not replica.syncing and good < min(self.minimum, len(chunk.replicas)):
            self.violate("R6", f"cs{slot.cs_id - 1024} deletes chunk {chunk_id}, only {good} good ones are left")

    def _started_over(self, slot: Slot, replica: Replica) -> bool:
        """A copy to this server begins by emptying what is here: then the replica is not what the map promises."""
        found = self.committed.chunk_by_id(replica.chunk_id)
        return found is not None and replica.version < found[2].version

    def _acked(self, file: Any, known: Any, granule: int, value: int) -> None:
        """R7: no write is acknowledged by fewer than `minimum` replicas."""
        if len(known.cs_ids) < self.minimum:
            self.violate(
                "R7", f"a write of chunk {known.chunk_id} was acknowledged by {known.cs_ids}, minimum {self.minimum}"
            )

    def _lost(self, client: Client, file: Any) -> None:
        self.note(f"{client.name} is told of losses in file {file.ino}")
        self.history.told(client, file.ino, self.now)

    # --- power

    def power_cut(self, slot: Slot) -> None:
        """The host of a chunk server loses power. What no disk of the map holds any more may be lost, if it was not flushed."""
        assert slot.server is not None
        slot.server.proc.kill(power=True)
        before = {(r.chunk_id, i): g.now[0] for r in slot.disk.replicas.values() for i, g in r.granules.items()}
        slot.disk.power_cut(self.rng)
        for ino, index in sorted((i, n) for i in self.committed.extents for n, _ in self.committed.chunks(i)):
            chunk = self.committed.chunk(ino, index)
            if chunk is None or slot.cs_id not in chunk.replicas:
                continue
            for inside in range(2):
                self._power_cut_granule(ino, index * 2 + inside, chunk, inside, before.get((chunk.id, inside), 0))

    def _power_cut_granule(self, ino: int, granule: int, chunk: Any, inside: int, before: int) -> None:
        unsafe = self.history.unsafe((ino, granule), self.now)
        values = set()
        for other in self.slots:
            held = other.disk.replicas.get(chunk.id)
            if other.cs_id in chunk.replicas and held is not None:
                granule_there = held.granules.get(inside)
                if granule_there is not None and not granule_there.cut:
                    values.add(granule_there.now[0])
        acked = [o.value for o in unsafe if o.ret is not None and not o.error]
        gone = before not in values and any(o.value == before for o in unsafe)  # perhaps not acknowledged yet
        if gone or (acked and acked[-1] not in values):
            self.history.lose((ino, granule), self.now, f"power of a host of chunk {chunk.id}")

    # --- the end

    def problems(self) -> list[str]:
        """Everything that is wrong with the history now that it is over."""
        out = list(self.violations)
        out += [f"defect: {exc!r}" for exc in self.loop.defects]
        out += [
            f"defect of {s.host.name}: {s.mds.fatal!r}"
            for s in self.mdss
            if s.mds is not None and s.mds.fatal is not None
        ]
        for check in (self.history.check_registers, self.history.check_names):
            found = check()
            if found:
                out.append(f"R1/R2/R3: {found}" if check == self.history.check_registers else f"R9: {found}")
        return out

    def close(self) -> None:
        for native in self.natives:
            native.close()
        self.loop.finish()


@contextlib.contextmanager
def simulated(seed: int, plan: Plan, rng: random.Random) -> Iterator[World]:
    """A world, and the product bound to its time."""
    loop = SimLoop(rng)
    world = World(loop, rng, plan)
    with rpc.product_in_simulation(world.net, world.directory, seed):
        asyncio.set_event_loop(loop)
        try:
            yield world
        finally:
            asyncio.set_event_loop(None)
            world.close()


O_RDWR, O_RDONLY = os.O_RDWR, os.O_RDONLY
