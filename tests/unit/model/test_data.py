"""Chunk maps, chunk servers and recovery: scenarios with named outcomes."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.records import VOID, Chunk
from vstor.proto import messages as m
from vstor.proto.tickets import session_key, verify_ticket
from vstor.proto.wire_gen import TicketFlag, TicketMode

from tests.unit.model.sim import Parked, Server, Sim

REG = stat.S_IFREG | 0o644
MINUTES = 60_000


class World:
    """Five servers on five hosts, a client, a file with one written chunk."""

    def __init__(self, replicas: str = "3:2", servers: int = 5, **config: str) -> None:
        self.sim = Sim({"fs.replicas": replicas, **config})
        self.servers = [Server(self.sim, f"h{n}") for n in range(servers)]
        self.client = self.sim.client("c")
        self.ino = self.client.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
        self.write(0)

    def write(self, index: int) -> None:
        reply = self.client.call(m.GetMap(self.ino, index, 1, True))
        self.stored(reply.chunks[0])
        self.client.call(m.Commit(self.ino, (index << 26) + 100, 1, [index]))

    def stored(self, chunk: m.ChunkMap) -> None:
        for cs_id in chunk.replicas:
            self.sim.servers[cs_id].chunks.setdefault(chunk.chunk_id, [chunk.version, 0])

    def chunk(self, index: int = 0) -> Chunk:
        chunk = self.sim.state.chunk(self.ino, index)
        assert chunk is not None
        return chunk

    def close(self) -> None:
        """No writer any more."""
        self.client.call(m.LeaseRelease(self.ino, 0, m.SHARED))
        self.client.modes[self.ino] = m.SHARED

    def server(self, position: int = 0) -> Server:
        """The server of a replica."""
        return self.sim.servers[self.chunk().replicas[position]]

    def status(self) -> dict[str, Any]:
        return self.sim.core.status(self.sim.now)

    def state(self) -> str:
        return self.sim.core.tracker.state_of(self.chunk().id)

    def events(self) -> list[str]:
        return [e["message"] for e in json.loads(self.sim.call(self.sim.ctx("ctl"), m.GetEvents(0, 0, 1000)).json)]

    def failed(self, cs_id: int, version: int, status: int = ErrorCode.DISCONNECTED) -> Any:
        return self.client.send(m.ReplicaFailed(self.ino, 0, self.chunk().id, version, cs_id, status))

    def config(self, name: str, value: str) -> None:
        self.sim.call(self.sim.ctx("ctl"), m.SetConfig(name, value))


def code(caught: pytest.ExceptionInfo[VstorError]) -> ErrorCode:
    return caught.value.code


# --- maps and tickets -----------------------------------------------------------------------------------------------


def test_allocation_gives_tickets_that_the_servers_accept() -> None:
    w = World()
    reply = w.client.call(m.GetMap(w.ino, 5, 2, True))
    assert [c.index for c in reply.chunks] == [5, 6]
    chunk = reply.chunks[0]
    assert len(set(chunk.replicas)) == 3
    assert {a.cs_id for a in reply.servers} == {r for c in reply.chunks for r in c.replicas}
    core = w.sim.core
    keys = {1: core.keyring.ticket_key(1)}
    ticket = verify_ticket(keys, chunk.ticket, w.client.session_id, w.sim.now)
    assert (ticket.chunk_id, ticket.chunk_version, ticket.chunk_bytes) == (chunk.chunk_id, 1, 64 << 20)
    assert ticket.mode == TicketMode.WRITE
    assert ticket.flags == TicketFlag.CREATE
    access = reply.servers[0]
    assert access.key == session_key(core.keyring.cs_key(access.cs_id), w.client.session_id, access.expiry_ms)
    assert all(not a.startswith("unix:") for a in access.addresses)  # the client is on another host


def test_chunk_ids_are_never_used_again() -> None:
    w = World()
    first = w.chunk().id
    w.client.call(m.SetAttr(w.ino, m.SET_SIZE, size=0))
    w.write(0)
    second = w.chunk().id
    w.sim.failover()
    for server in w.servers:
        server.start(restart=False)
    w.client.connect()
    w.client.call(m.SessionResume(w.client.session_id, [(w.ino, m.EXCLUSIVE)]))
    third = w.client.call(m.GetMap(w.ino, 1, 1, True)).chunks[0].chunk_id
    assert first < second < third


def test_a_void_chunk_is_a_hole_to_readers() -> None:
    w = World()
    w.client.call(m.GetMap(w.ino, 1, 1, True))
    w.close()
    chunks = w.client.call(m.GetMap(w.ino, 0, 3, False)).chunks
    assert [bool(c.replicas) for c in chunks] == [True, False, False]
    assert (
        verify_ticket({1: w.sim.core.keyring.ticket_key(1)}, chunks[0].ticket, w.client.session_id, w.sim.now).mode
        == TicketMode.READ
    )


@pytest.mark.parametrize("write", [True, False])
def test_maps_need_the_lease(write: bool) -> None:
    w = World()
    other = w.sim.client("o")
    with pytest.raises(VstorError) as caught:
        other.call(m.GetMap(w.ino, 0, 1, write))
    assert code(caught) == ErrorCode.LEASE_LOST


def test_truncation_deletes_the_replicas() -> None:
    w = World()
    w.write(1)
    kept = w.chunk(0).id
    w.client.call(m.SetAttr(w.ino, m.SET_SIZE, size=1 << 20))
    assert w.sim.state.chunk(w.ino, 1) is None
    w.sim.run(1000)
    assert {c for s in w.servers for c in s.chunks} == {kept}
    assert w.sim.state.inodes[w.ino].used == 1


def test_removal_deletes_the_replicas() -> None:
    w = World()
    w.client.call(m.Unlink(1, b"f"))
    w.client.call(m.Close(w.ino))
    w.sim.run(1000)
    assert not any(s.chunks for s in w.servers)
    assert w.status()["chunks"]["total"] == 0
    assert w.sim.state.logical_bytes == 0


def test_too_few_domains_are_reported_and_refused_below_the_minimum() -> None:
    w = World(servers=2)
    assert len(w.chunk().replicas) == 2
    assert w.state() == "urgent"
    assert any(e.startswith("Failed to allocate 3 replicas at tier 0 since only 2 chunk servers") for e in w.events())
    w.servers[0].kill()
    w.sim.run(10_000)
    with pytest.raises(VstorError) as caught:
        w.client.call(m.GetMap(w.ino, 1, 1, True))
    assert code(caught) == ErrorCode.NO_SERVERS


def test_full_servers_take_no_chunks_but_deletes_go_on() -> None:
    w = World()
    for server in w.servers:
        server.free = server.space // 25  # below the margin of 5 %
    w.sim.step()
    with pytest.raises(VstorError) as caught:
        w.client.call(m.GetMap(w.ino, 1, 1, True))
    assert code(caught) == ErrorCode.NO_SPACE
    assert w.status()["space"]["allocatable_bytes"] == 0
    w.client.call(m.Unlink(1, b"f"))
    w.client.call(m.Close(w.ino))
    w.sim.run(1000)
    assert not any(s.chunks for s in w.servers)


def test_filling_up_is_told_once_for_each_level() -> None:
    w = World()
    for percent in (85, 86, 79, 85, 96, 50):
        for server in w.servers:
            server.free = server.space * (100 - percent) // 100
        w.sim.run(400)
    told = [e for e in w.events() if e.startswith("The cluster is filled")]
    assert [e.split()[-1] for e in told] == ["85%", "96%", "50%"]


def test_capacity_limit() -> None:
    w = World()
    w.config("mds.alloc.capacity_limit", "10")
    with pytest.raises(VstorError) as caught:
        w.client.call(m.GetMap(w.ino, 1, 1, True))
    assert code(caught) == ErrorCode.NO_SPACE


# --- a replica that fails ---------------------------------------------------------------------------------------------


def test_a_failed_replica_leaves_the_map_after_the_others_have_the_version() -> None:
    w = World()
    bad, *rest = w.chunk().replicas
    for cs_id in rest:
        w.sim.servers[cs_id].obey = False
    waiting = w.failed(bad, 1)
    assert isinstance(waiting, Parked)
    assert w.chunk().version == 2
    assert set(w.chunk().replicas) == set(rest)
    first, second = (w.sim.servers[n] for n in rest)
    first.do(first.orders.popleft())
    assert not waiting.done
    second.do(second.orders.popleft())
    assert waiting.reply.chunks[0].version == 2
    assert set(waiting.reply.chunks[0].replicas) == set(rest)


def test_one_that_fails_the_order_is_dropped_in_turn() -> None:
    w = World(replicas="3:1")
    bad, second, third = w.chunk().replicas
    w.sim.servers[second].fail[m.OrderSetVersion] = ErrorCode.IO_ERROR
    waiting = w.failed(bad, 1)
    assert waiting.reply.chunks[0].replicas == [third]
    assert w.chunk().version == 3
    assert w.sim.servers[third].chunks[w.chunk().id][0] == 3


def test_the_last_replica_is_never_dropped_and_tried_again() -> None:
    w = World(replicas="1:1", servers=1)
    only = w.chunk().replicas[0]
    waiting = w.failed(only, 1)
    assert isinstance(waiting, Parked)
    assert waiting.reply.chunks[0].replicas == [only]
    assert waiting.reply.chunks[0].version == 2
    again = w.failed(only, 2)  # not in a tight loop
    assert not again.done
    w.sim.run(2000)
    assert again.reply.chunks[0].version == 3


def test_below_the_minimum_writes_wait_and_resume_by_recovery() -> None:
    w = World(replicas="2:2", servers=3)
    bad = w.chunk().replicas[0]
    w.sim.servers[bad].kill()
    waiting = w.failed(bad, 1)
    assert isinstance(waiting, Parked)
    assert w.client.call(m.GetMap(w.ino, 0, 1, False)).chunks[0].replicas  # reads go on
    w.sim.run(10_000)
    assert len(waiting.reply.chunks[0].replicas) == 2
    assert bad not in waiting.reply.chunks[0].replicas


def test_below_the_minimum_writes_wait_and_resume_by_return() -> None:
    w = World(replicas="2:2", servers=2)
    bad = w.server()
    bad.kill()
    waiting = w.failed(bad.cs_id, 1)
    w.sim.run(10_000)
    assert not waiting.done
    assert w.state() == "pending"
    bad.start()
    w.sim.run(10_000)
    assert set(waiting.reply.chunks[0].replicas) == {s.cs_id for s in w.servers}
    assert w.state() == "healthy"


def test_a_writer_that_cannot_flush_keeps_its_session() -> None:
    """Below the minimum a recall cannot be answered; that is no fault of the client."""
    w = World(replicas="2:2", servers=2)
    bad = w.server()
    bad.kill()
    w.failed(bad.cs_id, 1)
    w.client.answer = False
    other = w.sim.client("o")
    waiting = other.send(m.Open(w.ino, m.SHARED))
    w.sim.run(3 * MINUTES)
    assert not waiting.done
    bad.start()
    w.sim.run(5000)
    w.client.react(w.client.pushes[0])
    assert waiting.reply.lease == m.SHARED


def test_a_dead_replica_is_dropped_when_a_writer_comes() -> None:
    w = World()
    w.close()
    dead = w.server()
    dead.kill()
    w.sim.run(10_000)
    assert dead.cs_id in w.chunk().replicas  # nobody writes: it may come back
    w.client.call(m.LeaseAcquire(w.ino, m.EXCLUSIVE))
    reply = w.client.call(m.GetMap(w.ino, 0, 1, True))
    assert dead.cs_id not in reply.chunks[0].replicas
    assert reply.chunks[0].version == 2


def test_a_restart_takes_the_server_out_of_chunks_being_written() -> None:
    w = World(replicas="3:3")
    server = w.server()
    server.kill()
    assert server.cs_id in w.chunk().replicas  # the minimum: perhaps only the connection broke
    server.start()  # another incarnation: what was not flushed may be gone
    assert server.cs_id not in w.chunk().replicas
    assert w.chunk().version == 2
    w.sim.run(5000)
    assert server.cs_id in w.chunk().replicas or len(w.chunk().replicas) == 3


def test_a_restart_leaves_idle_chunks_alone() -> None:
    w = World()
    w.close()
    server = w.server()
    server.restart()
    w.sim.run(1000)
    assert w.chunk().version == 1
    assert server.cs_id in w.chunk().replicas


# --- inventories ------------------------------------------------------------------------------------------------------


def test_unknown_chunks_are_deleted_but_not_ids_of_the_future() -> None:
    w = World()
    server = w.servers[0]
    server.chunks[2000] = [1, 0]
    server.chunks[10**9] = [1, 0]
    server.restart()
    w.sim.run(1000)
    assert 2000 not in server.chunks
    assert 10**9 in server.chunks


def test_a_replica_that_missed_the_order_is_raised() -> None:
    w = World()
    w.close()
    server = w.server()
    server.chunks[w.chunk().id][0] = 0
    server.restart()
    w.sim.run(1000)
    assert server.chunks[w.chunk().id][0] == 1
    assert server.cs_id in w.chunk().replicas


def test_a_lost_replica_is_replaced() -> None:
    w = World()
    w.close()
    server = w.server()
    server.chunks.clear()
    server.restart()
    w.sim.run(5000)
    assert len(w.chunk().replicas) == 3
    assert all(w.chunk().id in w.sim.servers[r].chunks for r in w.chunk().replicas)
    assert any("lacks replicas" in e for e in w.events())


def test_the_only_replica_lost_is_an_error_but_stays_in_the_map() -> None:
    w = World(replicas="1:1", servers=2)
    w.close()
    server = w.server()
    server.chunks.clear()
    server.restart()
    w.sim.run(2000)
    assert w.chunk().replicas == (server.cs_id,)
    assert any("its data is lost" in e for e in w.events())
    with pytest.raises(VstorError) as caught:
        w.client.call(m.GetMap(w.ino, 0, 1, False))
    assert code(caught) == ErrorCode.CHUNK_LOST
    server.chunks[w.chunk().id] = [1, 0]  # found again
    server.restart()
    w.sim.run(1000)
    assert w.client.call(m.GetMap(w.ino, 0, 1, False)).chunks[0].replicas


def test_versions_above_the_maps_are_adopted() -> None:
    """Metadata restored from an older backup."""
    w = World()
    w.close()
    for cs_id in w.chunk().replicas:
        w.sim.servers[cs_id].chunks[w.chunk().id][0] = 7
    for server in w.servers:
        server.start(restart=False)
    w.sim.run(2000)
    assert w.chunk().version > 7
    assert all(w.sim.servers[r].chunks[w.chunk().id][0] == w.chunk().version for r in w.chunk().replicas)


# --- states and recovery ----------------------------------------------------------------------------------------------


def test_inactive_then_offline_then_replaced_then_surplus_deleted() -> None:
    w = World()
    w.close()
    dead = w.server()
    dead.kill()
    w.sim.run(10_000)
    assert w.status()["cluster"]["state"] == "degraded"
    assert w.state() == "urgent"
    assert w.status()["chunks"]["standby"] == 1
    w.sim.run(4 * MINUTES)
    assert w.status()["replication"]["copied_chunks"] == 0  # a short absence
    w.sim.run(2 * MINUTES)
    assert w.state() == "healthy"
    assert dead.cs_id not in w.chunk().replicas
    assert "Replication completed" in w.events()
    assert f"CS#{dead.cs_id} ({dead.host}) is offline" in w.events()
    dead.start()
    w.sim.run(2000)
    assert not dead.chunks  # R6: enough good ones are known
    assert w.status()["cluster"]["state"] == "healthy"


def test_a_stale_replica_is_reused_by_its_version() -> None:
    w = World(servers=3)
    server = w.server()
    server.kill()
    w.failed(server.cs_id, 1)
    server.start()
    w.sim.run(5000)
    order = next(o for o in server.seen if isinstance(o, m.OrderReplicate))
    assert order.base_version == 1
    assert w.state() == "healthy"


def test_copies_of_an_open_chunk_stop_the_writer_only_for_the_last_pass() -> None:
    w = World(servers=4)
    bad, *_ = w.chunk().replicas
    target = next(s for s in w.servers if s.cs_id not in w.chunk().replicas)
    target.obey = False
    w.sim.servers[bad].kill()
    assert w.chunk().version == 2
    w.sim.run(1000)
    first = target.orders.popleft()
    assert (first.order.final, first.order.version) == (False, 2)
    assert not isinstance(w.client.send(m.GetMap(w.ino, 0, 1, True)), Parked)
    target.do(first)
    assert w.chunk().version == 3
    waiting = w.client.send(m.GetMap(w.ino, 0, 1, True))
    assert isinstance(waiting, Parked)
    last = target.orders.popleft()
    assert (last.order.final, last.order.version, last.order.since_seq, last.order.base_version) == (True, 3, 5, 2)
    target.do(last)
    assert target.cs_id in waiting.reply.chunks[0].replicas
    assert waiting.reply.chunks[0].version == 3


def test_a_write_ticket_during_an_idle_copy_makes_it_start_over() -> None:
    w = World(servers=4)
    w.close()
    gone = w.server()
    gone.chunks.clear()
    target = next(s for s in w.servers if s.cs_id not in w.chunk().replicas)
    for server in (target, gone):
        server.obey = False
    gone.restart()
    while not w.sim.core.recovery.jobs:
        w.sim.step()
        for order in [o for o in (*gone.orders, *target.orders) if not isinstance(o.order, m.OrderReplicate)]:
            server = gone if order in gone.orders else target
            server.orders.remove(order)
            server.do(order)
    job = w.sim.core.recovery.jobs[w.chunk().id]
    maker = w.sim.servers[job.target]
    first = maker.orders.popleft()
    assert first.order.final
    w.client.call(m.LeaseAcquire(w.ino, m.EXCLUSIVE))
    w.client.call(m.GetMap(w.ino, 0, 1, True))
    before = w.chunk().version
    maker.do(first)
    assert maker.cs_id not in w.chunk().replicas
    assert w.chunk().version == before + 1
    maker.do(maker.orders.popleft())
    assert maker.cs_id in w.chunk().replicas


def test_no_copy_is_made_at_a_version_the_target_may_hold_already() -> None:
    """A copy that was given up may have been finished all the same; its content is old, its version must never be current again."""
    w = World(servers=4)
    w.close()
    w.server().kill()
    spare = next(s for s in w.servers if s.cs_id not in w.chunk().replicas)
    spare.chunks[w.chunk().id] = [w.chunk().version, 0]  # left over, same version, not in the map
    spare.restart()
    w.config("mds.wd.offline_tout", "1000")
    w.sim.run(20_000)
    copies = [o for o in spare.seen if isinstance(o, m.OrderReplicate)]
    assert copies
    assert all(o.version > 1 for o in copies)
    assert w.state() == "healthy"


def test_copies_are_bounded_for_each_server() -> None:
    w = World(replicas="3:1", servers=4)
    for index in range(1, 30):
        w.write(index)
    w.close()
    for server in w.servers:
        server.obey = False
    w.config("mds.wd.offline_tout", "1000")
    w.servers[0].up = False
    w.servers[0].kill()
    w.sim.run(12_000)
    running = w.sim.core.recovery.jobs
    load: dict[int, int] = {}
    for job in running.values():
        for cs_id in (job.source, job.target):
            load[cs_id] = load.get(cs_id, 0) + 1
    assert running
    assert max(load.values()) <= 2


def test_mass_failure_stops_replication() -> None:
    w = World(servers=6)
    w.close()
    w.config("mds.wd.offline_tout", "5000")
    for server in w.servers[:3]:
        server.kill()
    w.sim.run(30_000)
    assert w.status()["cluster"]["state"] == "failure"
    assert w.status()["replication"]["copied_chunks"] == 0
    assert any("mds.wd.max_offline_cs_hosts=2" in e for e in w.events())
    for server in w.servers[:3]:
        server.start()
    w.sim.run(2000)
    assert w.status()["cluster"]["state"] == "healthy"


def test_raising_and_lowering_the_number_of_replicas() -> None:
    w = World(replicas="2:1")
    w.close()
    for wanted in ("3:2", "1:1", "5:3"):
        w.sim.call(w.sim.ctx("ctl"), m.SetPathAttr("/f", False, {"replicas": wanted}))
        w.sim.run(5000)
        count = int(wanted[0])
        assert len(w.chunk().replicas) == count
        assert sum(w.chunk().id in s.chunks for s in w.servers) == count
        assert w.state() == "healthy"


def test_release_moves_everything_then_drops() -> None:
    w = World(servers=4)
    w.close()
    server = w.server()
    ctl = w.sim.ctx("ctl")
    assert json.loads(w.sim.call(ctl, m.RemoveCs(server.cs_id, dry_run=True)).json)["would_lose"] == 0
    assert json.loads(w.sim.call(ctl, m.RemoveCs(server.cs_id)).json)["state"] == "releasing"
    for _ in range(50):
        if w.sim.state.servers[server.cs_id].admin == "dropped":
            server.up = False
        w.sim.step()
    assert w.sim.state.servers[server.cs_id].admin == "dropped"
    assert server.cs_id not in w.chunk().replicas
    assert w.state() == "healthy"
    server.up = False
    with pytest.raises(VstorError) as caught:
        server.start()
    assert code(caught) == ErrorCode.NOT_MDS
    server.up = False
    assert Server(w.sim, "new").cs_id > server.cs_id


def test_force_refuses_to_lose_data_unless_told() -> None:
    w = World(replicas="1:1", servers=2)
    w.close()
    server, ctl = w.server(), w.sim.ctx("ctl")
    with pytest.raises(VstorError) as caught:
        w.sim.call(ctl, m.RemoveCs(server.cs_id, force=True))
    assert code(caught) == ErrorCode.UNSAFE
    assert w.sim.state.servers[server.cs_id].admin == "normal"
    server.up = False
    w.sim.call(ctl, m.RemoveCs(server.cs_id, force=True, accept_loss=True))
    w.sim.run(2000)
    assert w.state() == "offline"
    with pytest.raises(VstorError) as caught:
        w.client.call(m.GetMap(w.ino, 0, 1, False))
    assert code(caught) == ErrorCode.CHUNK_LOST


def test_maintenance_starts_no_replication_and_ends_by_itself() -> None:
    w = World()
    w.close()
    server, ctl = w.server(), w.sim.ctx("ctl")
    w.sim.call(ctl, m.CsMaintenance(server.cs_id, True))
    server.kill()
    w.sim.run(10 * MINUTES)
    assert w.status()["replication"]["copied_chunks"] == 0
    assert next(c["state"] for c in w.status()["cs"] if c["id"] == server.cs_id) == "maintenance"
    w.sim.run(30 * MINUTES)
    assert w.status()["replication"]["copied_chunks"] == 1


def test_error_flags_fail_a_server_and_its_replicas_move() -> None:
    w = World()
    w.close()
    server = w.server()
    w.sim.call(server.ctx, m.CsHeartbeat(server.cs_id, 1 << 40, 1 << 40, 1, "CH", 0, 0, 0, 0, 0))
    assert w.sim.state.servers[server.cs_id].admin == "failed"
    w.sim.run(5000)
    assert server.cs_id not in w.chunk().replicas
    assert w.state() == "healthy"
    assert any("has reported hard error" in e for e in w.events())


# --- registration ----------------------------------------------------------------------------------------------------


def test_two_processes_of_one_server_are_refused() -> None:
    w = World()
    server = w.servers[0]
    ctx = w.sim.ctx("cs")
    body = m.CsRegister(server.cs_id, 99, [], "h9", "h9", "", 0, "/d", 1, "1", 1, 1, "")
    w.sim.step()
    with pytest.raises(VstorError) as caught:
        w.sim.call(ctx, body)
    assert code(caught) == ErrorCode.BUSY


def test_only_chunk_servers_register() -> None:
    w = World()
    with pytest.raises(VstorError) as caught:
        w.client.call(m.CsHeartbeat(1025, 0, 0, 0, "", 0, 0, 0, 0, 0))
    assert code(caught) == ErrorCode.DENIED


def test_offline_time_goes_on_over_a_failover() -> None:
    w = World()
    w.close()
    dead = w.server()
    dead.kill()
    w.sim.run(4 * MINUTES)
    w.sim.failover()
    for server in w.servers:
        if server.up:
            server.start(restart=False)
    w.sim.run(2 * MINUTES, renew=False)
    assert dead.cs_id not in w.chunk().replicas


def test_a_flag_of_void_ends_with_the_report_of_the_writer() -> None:
    w = World()
    reply = w.client.call(m.GetMap(w.ino, 3, 1, True))
    assert reply.chunks[0].flags & VOID
    w.stored(reply.chunks[0])
    w.client.call(m.LeaseRelease(w.ino, 0, m.SHARED, 5, 9, [3]))
    w.client.modes[w.ino] = m.SHARED
    assert not w.chunk(3).flags & VOID
    assert w.sim.state.inodes[w.ino].used == 2


def test_a_damaged_source_is_what_leaves_the_map_when_replicas_are_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    source, *others = w.chunk().replicas
    execute = Server.execute

    def from_damaged(server: Server, order: Any) -> tuple[int, int]:
        if isinstance(order, m.OrderReconcile) and order.sources and order.sources[0].cs_id == source:
            return ErrorCode.CORRUPT, 0
        return execute(server, order)

    monkeypatch.setattr(Server, "execute", from_damaged)
    w.sim.clients.clear()
    while len(w.chunk().replicas) == 3:
        w.sim.step(renew=False)
    assert set(w.chunk().replicas) == set(others)
