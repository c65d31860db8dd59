"""A history: what clients do, what the nemesis does to the cluster, how it ends. All of it follows from the seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.wire_gen import GRANULE_BYTES

from tests.simulate.engine import WORD
from tests.simulate.loop import Spinning
from tests.simulate.world import O_RDONLY, O_RDWR, REG, Client, Plan, World, simulated

FILES = 2
GRANULES = 3  # two chunks of a file
NAMES = (b"a", b"b", b"c")
BUSY_S = 7.0  # of work under faults
SETTLE_S = 90.0  # all must have finished so long after the last fault
DIRECTORY = m.ROOT_INO


def plan_of(rng: random.Random) -> Plan:
    return Plan(
        rng.choice(["3:2", "3:2", "2:1", "3:1", "1:1"]), rng.randrange(4, 6), rng.choice([1, 2]), rng.randrange(2, 4)
    )


class Worker:
    """What one client does: one operation after the other, each recorded."""

    def __init__(self, world: World, client: Client, rng: random.Random, inos: list[int], numbers: list[int]) -> None:
        self.world, self.client, self.rng, self.inos, self.numbers = world, client, rng, inos, numbers
        self.handles: dict[int, Any] = {}
        self.busy: str = ""
        self.done = False

    def _note_session(self) -> None:
        session = self.client.volume.session.id
        if session:
            self.client.sessions.add(session)

    async def _do(self, kind: str, key: Any, value: Any, work: Any) -> Any:
        world = self.world
        self._note_session()
        op = world.history.begin(self.client.name, self.client, kind, key, value, world.now)
        self.busy = str(op)
        try:
            result = await work
        except (VstorError, OSError) as exc:
            op.error = exc.code.name if isinstance(exc, VstorError) else str(exc.strerror)
            result = None
        self._note_session()
        op.ret = world.now
        self.busy = ""
        return op, result

    async def file(self, ino: int, *, write: bool) -> None:
        """Have it open so that the operation is allowed; read-only handles and writable ones in turn."""
        handle = self.handles.get(ino)
        if handle is not None and (handle.writable or not write):
            return
        files = self.client.volume.files
        _, opened = await files.open(ino, O_RDWR if write else O_RDONLY)
        if handle is not None:
            await files.close(handle.fh)
        self.handles[ino] = opened

    async def write(self, ino: int, granule: int) -> None:
        await self.file(ino, write=True)
        self.numbers[0] += 1
        value = self.numbers[0]
        buf = bytearray(value.to_bytes(WORD, "little"))
        op, _ = await self._do(
            "write", (ino, granule), value, self.client.volume.files.write(ino, granule * GRANULE_BYTES, buf)
        )
        if op.error:
            self.world.violate("R10", f"a write failed: {op}")

    async def read(self, ino: int, granule: int) -> None:
        await self.file(ino, write=False)
        buf = bytearray(WORD)
        op, _ = await self._do(
            "read", (ino, granule), None, self.client.volume.files.read(ino, granule * GRANULE_BYTES, buf)
        )
        op.value = int.from_bytes(buf, "little")
        if op.error:
            self.world.violate("R10", f"a read failed: {op}")

    async def sync(self, ino: int) -> None:
        if ino in self.handles:
            op, _ = await self._do("sync", ino, None, self.client.volume.files.sync(ino))
            if op.error:
                self.world.history.told(self.client, ino, op.call)

    async def close(self, ino: int) -> None:
        handle = self.handles.pop(ino, None)
        if handle is not None:
            await self.client.volume.files.close(handle.fh)

    async def name(self) -> None:
        names = self.client.volume.names
        kind = self.rng.choice(["create", "create", "rename", "rename", "unlink", "lookup", "lookup"])
        a, b = self.rng.choice(NAMES), self.rng.choice(NAMES)
        if kind == "create":
            op, inode = await self._do(kind, a, None, names.make(m.Create(DIRECTORY, a, REG, 0, 0)))
            op.value = inode.ino if inode is not None else 0
        elif kind == "unlink":
            op, _ = await self._do(kind, a, None, names.unlink(DIRECTORY, a))
            op.value = 0 if op.error else 1
        elif kind == "rename":
            op, _ = await self._do(kind, (a, b), None, names.rename(DIRECTORY, a, DIRECTORY, b, 0))
            op.value = 0 if op.error else 1
        else:
            op, inode = await self._do(kind, a, None, names.lookup(DIRECTORY, a))
            op.value = inode.ino if inode is not None else 0
        if op.error not in ("", ErrorCode.NOT_FOUND.name, ErrorCode.EXISTS.name):
            self.world.violate("R10", f"a name operation failed: {op}")

    async def run(self, until_s: float) -> None:
        rng, world = self.rng, self.world
        while self.client.volume is None or not self.client.volume.session.id:
            await asyncio.sleep(0.05)
        while world.now < until_s:
            roll, ino, granule = rng.random(), rng.choice(self.inos), rng.randrange(GRANULES)
            if roll < 0.35:
                await self.write(ino, granule)
            elif roll < 0.65:
                await self.read(ino, granule)
            elif roll < 0.78:
                await self.sync(ino)
            elif roll < 0.84:
                await self.close(ino)
            elif sum(o.kind in ("create", "rename", "unlink", "lookup") for o in world.history.ops) < 40:
                await self.name()
            await asyncio.sleep(rng.random() ** 3 * 0.5)
        for ino in self.inos:
            await self.sync(ino)
            await self.close(ino)
        self.done = True


class Run:
    """One history."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.workers: list[Worker] = []
        self.inos: list[int] = []
        self.numbers = [0]

    def worker(self, name: str) -> Worker:
        client = self.world.start_client(name)
        worker = Worker(self.world, client, random.Random(self.rng.getrandbits(60)), self.inos, self.numbers)
        self.workers.append(worker)
        return worker

    async def main(self) -> None:
        from tests.simulate.nemesis import Nemesis

        world = self.world
        for mds in world.mdss:
            world.start_mds(mds)
        for slot in world.slots:
            world.start_cs(slot)
        await self.files()
        until_s = world.now + BUSY_S
        for number in range(world.plan.n_clients):
            worker = self.worker(f"c{number + 1}")
            worker.client.proc.spawn(worker.run(until_s), "work")
        nemesis = Nemesis(self, random.Random(self.rng.getrandbits(60)))
        await nemesis.run(until_s)
        nemesis.mend()
        await self.finish()

    async def files(self) -> None:
        """The files, made before anything goes wrong."""
        world = self.world
        maker = self.worker("c0")
        self.workers.remove(maker)
        ready = asyncio.get_running_loop().create_future()

        async def make() -> None:
            while maker.client.volume is None or not maker.client.volume.session.id:
                await asyncio.sleep(0.05)
            for number in range(FILES):
                inode = await maker.client.volume.names.make(m.Create(m.ROOT_INO, b"f%d" % number, REG, 0, 0))
                self.inos.append(inode.ino)
            await maker.client.volume.session.close()
            ready.set_result(None)

        maker.client.proc.spawn(make(), "make")
        await ready
        while True:
            core = world.leader()
            if core is not None and sum(core.servers.is_known_good(s.cs_id) for s in world.slots) == len(world.slots):
                return
            await asyncio.sleep(0.1)

    async def finish(self) -> None:
        """All is well again: everybody comes to an end, a new client reads it all, replicas are whole and equal."""
        world = self.world
        end_s = world.now + SETTLE_S
        while world.now < end_s and not all(w.done or not w.client.up for w in self.workers):
            await asyncio.sleep(0.1)
        for worker in self.workers:
            if worker.client.up and not worker.done:
                world.violate(
                    "R7/R10", f"{worker.client.name} is stuck in {worker.busy}\n{self.state_of(worker.client)}"
                )
        if world.violations:
            return
        reader = self.worker("last")
        task = reader.client.proc.spawn(self.read_all(reader), "read-all")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.shield(task)
        if not task.done():
            world.violate("R10", f"the last reader is stuck in {reader.busy}")
            return
        await self.healthy(world.now + SETTLE_S)

    def state_of(self, client: Client) -> str:
        """Where a client waits: its own account of it, and the engine's."""
        lines = client.proc.call(client.volume.describe) if client.volume is not None else ["not started"]
        lines = [line for line in lines if not line.startswith("task=")]
        for native in self.world.natives:
            if native.proc is client.proc:
                lines += [line for file in native.files for line in file.describe()]
        core = self.world.leader()
        for inode in (core.state.inodes.get(i) for i in self.inos) if core is not None else ():
            lines.append(f"MDS: ino={inode.ino} writer={inode.writer} leases={core.leases.holders.get(inode.ino)}")
            lines += [f"  [{index}] {chunk}" for index, chunk in core.state.chunks(inode.ino)]
        return "\n".join(f"    {line}" for line in lines)

    async def read_all(self, reader: Worker) -> None:
        while reader.client.volume is None or not reader.client.volume.session.id:
            await asyncio.sleep(0.05)
        for ino in self.inos:
            for granule in range(GRANULES):
                await reader.read(ino, granule)
        for name in NAMES:
            names = reader.client.volume.names
            op, inode = await reader._do("lookup", name, None, names.lookup(DIRECTORY, name))
            op.value = inode.ino if inode is not None else 0

    async def healthy(self, end_s: float) -> None:
        """R12: recovery comes to its end by itself; then every replica of a map is at its version and all are equal."""
        world = self.world
        status: dict[str, Any] = {}
        while world.now < end_s:
            core = world.leader()
            if core is not None and not core.sessions.in_grace:
                status = core.status(0)["chunks"]
                idle = not (core.recovery.jobs or core.versions.raising or core.fences.active or core.versions.busy)
                # A new leader presumes its servers well until they have told: a replica that missed its version gets it then.
                idle = idle and all(core.servers.is_known_good(s.cs_id) for s in world.slots)
                idle = idle and not (core.lost or core.lower or core.higher or core.orders.count())
                if idle and status["healthy"] + status["void"] == status["total"] and not core.garbage.count():
                    break
            await asyncio.sleep(0.2)
        else:
            world.violate("R12", f"not healthy after {SETTLE_S:.0f} s: {status}")
            return
        self.replicas()

    def replicas(self) -> None:
        world = self.world
        state = world.committed
        for ino in self.inos:
            for index, chunk in state.chunks(ino):
                if chunk.flags & 1:
                    continue
                contents = {}
                for slot in world.slots:
                    if slot.cs_id not in chunk.replicas:
                        continue
                    held = slot.disk.replicas.get(chunk.id)
                    if held is None or held.version != chunk.version or held.syncing:
                        found = None if held is None else (held.version, held.syncing)
                        world.violate("R3", f"chunk {chunk.id} v{chunk.version}: cs{slot.cs_id - 1024} has {found}")
                    else:
                        contents[slot.cs_id] = tuple(held.value(i) for i in range(2))
                if len(set(contents.values())) > 1:
                    world.violate("R3", f"chunk {chunk.id} of file {ino} [{index}]: replicas differ: {contents}")


def run_seed(seed: int) -> tuple[World, list[str]]:
    """One history: the world it ended in, and what is wrong with it."""
    rng = random.Random(seed)
    plan = plan_of(rng)
    with simulated(seed, plan, rng) as world:
        run = Run(world, rng)
        try:
            world.loop.run_until_complete(run.main())
        except Spinning as exc:
            world.violate("R15", str(exc))
        return world, world.problems()
