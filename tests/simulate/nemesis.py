"""What goes wrong: kills, stops, power cuts, partitions (full, one way), slow hosts, damaged blocks; and how it is mended."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tests.simulate.loop import Proc
from tests.simulate.world import MdsSlot, Slot

if TYPE_CHECKING:
    from tests.simulate.scenario import Run


class Nemesis:
    """Faults of one history, each mended after a while, so that several overlap."""

    def __init__(self, run: Run, rng: random.Random) -> None:
        self.run_, self.world, self.rng = run, run.world, rng
        self.kinds = [
            self.kill_cs, self.kill_cs, self.power_cs, self.stop_cs, self.kill_leader, self.kill_leader, self.stop_leader,
            self.kill_client, self.stop_client, self.cut, self.cut, self.cut, self.cut_etcd, self.slow, self.damage,
        ]  # fmt: skip
        # A history has a theme: the same few kinds again and again find more than a bit of everything.
        self.kinds = rng.sample(self.kinds, rng.randrange(1, 6))
        if self.damage in self.kinds:
            # A damaged block and the loss of the replica that could mend it are two faults at once: nothing promises that.
            self.kinds = [k for k in self.kinds if k in (self.damage, self.kill_client, self.stop_client)]
        self.pause_s = rng.choice([0.3, 1.0, 2.5])
        self.clients = 0
        self.damaged: set[tuple[int, int]] = set()

    async def run(self, until_s: float) -> None:
        while self.world.now < until_s:
            await asyncio.sleep(self.rng.random() * 2 * self.pause_s)
            self.rng.choice(self.kinds)()

    def later(self, seconds: float, action: object, *args: object) -> None:
        asyncio.get_running_loop().call_later(seconds, action, *args)  # type: ignore[arg-type]

    def duration(self) -> float:
        return self.rng.choice([0.05, 0.4, 1.0, 2.0, 4.0, 7.0]) * (0.5 + self.rng.random())

    def mend(self) -> None:
        """All faults end."""
        world = self.world
        world.note("all faults end")
        world.net.heal()
        for mds in world.mdss:
            self.go_on(mds.mds.proc if mds.mds else None)
            self.back_mds(mds)
        for slot in world.slots:
            self.go_on(slot.server.proc if slot.server else None)
            self.back_cs(slot)
        for client in world.clients:
            self.go_on(client.proc)

    # --- chunk servers

    def _some_cs(self) -> Slot | None:
        up = [s for s in self.world.slots if s.up]
        return self.rng.choice(up) if up else None

    def kill_cs(self) -> None:
        slot = self._some_cs()
        if slot is not None and slot.server is not None:
            self.world.note(f"kill -9 {slot.server.proc.name}")
            slot.server.proc.kill()
            slot.disk.settle()
            self.later(self.duration(), self.back_cs, slot)

    def power_cs(self) -> None:
        slot = self._some_cs()
        if slot is not None and slot.server is not None:
            self.world.note(f"power of {slot.server.proc.name} is cut")
            self.world.power_cut(slot)
            self.later(self.duration(), self.back_cs, slot)

    def back_cs(self, slot: Slot) -> None:
        if not slot.up:
            self.world.start_cs(slot)
            self.world.note(f"{slot.server.proc.name if slot.server else ''} is back")

    def stop_cs(self) -> None:
        slot = self._some_cs()
        if slot is not None and slot.server is not None:
            self._stop(slot.server.proc)

    # --- metadata servers

    def _leader(self) -> MdsSlot | None:
        for slot in self.world.mdss:
            if slot.up and slot.mds is not None and slot.mds.term is not None:
                return slot
        return None

    def kill_leader(self) -> None:
        slot = self._leader()
        if slot is not None and slot.mds is not None:
            self.world.note(f"kill -9 {slot.mds.proc.name}")
            slot.mds.proc.kill(power=self.rng.random() < 0.3)
            self.later(self.duration(), self.back_mds, slot)

    def back_mds(self, slot: MdsSlot) -> None:
        if not slot.up:
            self.world.start_mds(slot)

    def stop_leader(self) -> None:
        slot = self._leader()
        if slot is not None and slot.mds is not None:
            self._stop(slot.mds.proc)

    # --- clients

    def kill_client(self) -> None:
        up = [w for w in self.run_.workers if w.client.up]
        if up and self.clients < 3:
            self.clients += 1
            worker = self.rng.choice(up)
            self.world.note(f"kill -9 {worker.client.name}")
            worker.client.proc.kill(power=self.rng.random() < 0.5)
            another = self.run_.worker(f"d{self.clients}")
            another.client.proc.spawn(another.run(self.world.now + 3), "work")

    def stop_client(self) -> None:
        up = [w for w in self.run_.workers if w.client.up]
        if up:
            self._stop(self.rng.choice(up).client.proc)

    def _stop(self, proc: Proc) -> None:
        if not proc.paused:
            self.world.note(f"SIGSTOP {proc.name}")
            proc.stop()
            self.later(self.duration(), self.go_on, proc)

    def go_on(self, proc: Proc | None) -> None:
        if proc is not None and proc.paused:
            self.world.note(f"SIGCONT {proc.name}")
            proc.go_on()

    # --- network

    def _hosts(self) -> list[str]:
        world = self.world
        hosts = [s.host.name for s in world.mdss] + [s.host.name for s in world.slots]
        return hosts + [w.client.proc.host.name for w in self.run_.workers if w.client.up]

    def cut(self) -> None:
        """Two groups of hosts do not reach each other, or one does not reach the other; or a host loses only some of its paths."""
        hosts = self._hosts()
        few = self.rng.sample(hosts, self.rng.randrange(1, 3))
        rest = [h for h in hosts if h not in few]
        if self.rng.random() < 0.5:
            rest = self.rng.sample(rest, self.rng.randrange(1, len(rest) + 1))
        pairs = {(a, b) for a in few for b in rest}
        if self.rng.random() < 0.6:
            pairs |= {(b, a) for a, b in pairs}
        self._block(pairs)

    def cut_etcd(self) -> None:
        slot = self._leader()
        if slot is not None:
            name = slot.host.name
            self._block(self.rng.choice([{(name, "etcd")}, {("etcd", name)}, {(name, "etcd"), ("etcd", name)}]))

    def _block(self, pairs: set[tuple[str, str]]) -> None:
        self.world.note("cut " + " ".join(f"{a[5:]}>{b[5:]}" for a, b in sorted(pairs)))
        self.world.net.blocked |= pairs
        self.later(self.duration(), self._unblock, pairs)

    def _unblock(self, pairs: set[tuple[str, str]]) -> None:
        self.world.note(f"mended {len(pairs)} paths")
        self.world.net.unblock(pairs)

    def slow(self) -> None:
        name = self.rng.choice(self._hosts())
        self.world.note(f"{name} is slow")
        self.world.net.slow[name] = self.rng.choice([0.05, 0.5, 1.5])
        self.later(self.duration(), self.world.net.slow.pop, name, None)

    # --- disks

    def damage(self) -> None:
        """A block does not match its checksum any more, where another good replica of the map has it."""
        world = self.world
        for slot in self.rng.sample(world.slots, len(world.slots)):
            for chunk_id, replica in sorted(slot.disk.replicas.items()):
                found = world.committed.chunk_by_id(chunk_id)
                if found is None or slot.cs_id not in found[2].replicas:
                    continue
                others = [
                    s for s in world.slots
                    if s is not slot and s.cs_id in found[2].replicas and chunk_id in s.disk.replicas
                    and not s.disk.replicas[chunk_id].bad_blocks and s.disk.replicas[chunk_id].version == replica.version
                ]  # fmt: skip
                whole = [
                    i
                    for i, g in sorted(replica.granules.items())
                    if not g.bad and not g.between and g.now[0] and (chunk_id, i) not in self.damaged
                ]
                if others and whole and not replica.bad_blocks:
                    index = self.rng.choice(whole)
                    world.note(f"damage on cs{slot.cs_id - 1024}: chunk {chunk_id} granule {index}")
                    replica.granules[index].bad = True
                    self.damaged.add((chunk_id, index))
                    return
