"""Sessions: exactly once, expiry and fencing, grace after a failover, files without a name."""

from __future__ import annotations

import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import sessions
from vstor.model.core import RESULTS_MAX
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Parked, Server, Sim

REG = stat.S_IFREG | 0o644


@pytest.fixture
def sim() -> Sim:
    return Sim({"fs.replicas": "2:1", "fs.failure_domain": "disk"})


def resume(client: Client, leases: list[tuple[int, int]], **more: Any) -> m.SessionReply:
    client.connect()
    return client.call(m.SessionResume(client.session_id, leases, **more))


def write(sim: Sim, client: Client, ino: int, count: int = 1) -> None:
    """Write the first chunks of a file, as a client and its chunk servers do."""
    for chunk in client.call(m.GetMap(ino, 0, count, True)).chunks:
        for cs_id in chunk.replicas:
            sim.servers[cs_id].chunks.setdefault(chunk.chunk_id, [chunk.version, 0])
    client.call(m.Commit(ino, (count - 1 << 26) + 100, 1, list(range(count))))


# --- exactly once -------------------------------------------------------------------------------------------------


def test_a_retry_gets_the_same_answer_also_after_a_failover(sim: Sim) -> None:
    a = sim.client("a")
    first = a.call(m.Create(1, b"f", REG, 0, 0))
    request_id = a.next_id - 1
    assert a.send(m.Create(1, b"f", REG, 0, 0), request_id) == first
    sim.failover()
    resume(a, [])
    again = a.send(m.Create(1, b"f", REG, 0, 0), request_id)
    assert again.attr.ino == first.attr.ino
    assert not again.attr.cacheable  # the new leader has not granted anything
    with pytest.raises(VstorError) as caught:
        a.call(m.Create(1, b"f", REG, 0, 0))
    assert caught.value.code == ErrorCode.EXISTS


def test_a_retried_open_and_close_count_once(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0)).attr.ino
    for _ in range(2):
        a.call(m.Open(ino, m.SHARED))
        a.send(m.Open(ino, m.SHARED), a.next_id - 1)
    assert sim.core.opens.by_ino[ino] == {a.session_id: 2}
    b.call(m.Unlink(1, b"f"))
    a.call(m.Close(ino))
    a.send(m.Close(ino), a.next_id - 1)
    assert ino in sim.state.inodes
    a.call(m.Close(ino))
    assert ino not in sim.state.inodes


def test_a_late_commit_does_not_undo_a_truncation(sim: Sim) -> None:
    a = sim.client("a")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.Commit(ino, 100, 1))
    request_id = a.next_id - 1
    a.call(m.SetAttr(ino, m.SET_SIZE, size=50))
    a.send(m.Commit(ino, 100, 1), request_id)
    assert sim.state.inodes[ino].size == 50


def test_results_are_pruned_by_ack_and_bounded(sim: Sim) -> None:
    a = sim.client("a")
    for n in range(20):
        a.call(m.Create(1, b"%d" % n, REG, 0, 0))
        a.acked = a.next_id - 1
    assert len(sim.state.sessions[a.session_id].results) == 1
    for n in range(RESULTS_MAX):
        a.call(m.Create(1, b"x%d" % n, REG, 0, 0))
    with pytest.raises(VstorError) as caught:
        a.call(m.Create(1, b"one too many", REG, 0, 0))
    assert caught.value.code == ErrorCode.LIMIT
    a.acked = a.next_id - 1
    a.call(m.Create(1, b"y", REG, 0, 0))


def reopen(client: Client, former: int) -> None:
    client.connect()
    client.session_id = client.send(m.SessionOpen(client.host, 1, client.host, client.host, former)).session_id


@pytest.mark.parametrize("failover", [False, True])
def test_a_change_is_done_once_though_its_session_ended(sim: Sim, failover: bool) -> None:
    a = sim.client("a")
    a.call(m.Create(1, b"old", REG, 0, 0))
    a.acked = a.next_id - 1
    made = a.call(m.Create(1, b"f", REG, 0, 0, open=True))
    create_id = a.next_id - 1
    a.call(m.Unlink(1, b"old"))
    unlink_id, old = a.next_id - 1, a.session_id
    sim.run(20_000, renew=False)
    assert old not in sim.state.sessions
    if failover:
        sim.failover()
    for _ in range(2):  # the reply to the first opening was lost
        reopen(a, old)
    assert a.send(m.Create(1, b"f", REG, 0, 0, open=True), create_id).attr.ino == made.attr.ino
    assert sim.core.opens.by_ino[made.attr.ino] == {a.session_id: 1}
    assert a.send(m.Unlink(1, b"old"), unlink_id) == m.Ok()
    with pytest.raises(VstorError) as caught:
        a.call(m.Unlink(1, b"old"))
    assert caught.value.code == ErrorCode.NOT_FOUND


def test_outcomes_of_a_former_session_are_for_its_client_only_and_not_for_ever(
    sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sim.client("a"), sim.client("b")
    a.call(m.Create(1, b"f", REG, 0, 0))
    old = a.session_id
    sim.run(20_000, renew=False)
    reopen(b, old)
    assert not sim.state.sessions[b.session_id].former
    assert list(sim.state.ended) == [old]
    sim.run(sessions.ENDED_MS_MAX // 1000, renew=True)
    assert list(sim.state.ended) == [old]
    sim.now += sessions.ENDED_MS_MAX
    sim.step()
    sim.step()
    assert old not in sim.state.ended
    monkeypatch.setattr(sessions, "ENDED_MAX", 0)
    c = sim.client("c")
    c.call(m.Create(1, b"g", REG, 0, 0))
    sim.run(20_000, renew=False)
    assert not sim.state.ended


def test_an_orderly_end_leaves_nothing(sim: Sim) -> None:
    a = sim.client("a")
    a.call(m.Create(1, b"f", REG, 0, 0))
    a.call(m.SessionClose(a.session_id))
    assert not sim.state.ended
    assert not sim.state.sessions


# --- expiry and fencing -------------------------------------------------------------------------------------------


def test_a_session_that_is_not_renewed_ends(sim: Sim) -> None:
    a = sim.client("a")
    sim.run(20_000, renew=False)
    assert a.session_id not in sim.state.sessions
    with pytest.raises(VstorError) as caught:
        a.call(m.GetAttr(1))
    assert caught.value.code == ErrorCode.NO_SESSION


def test_the_files_of_a_dead_writer_are_fenced_before_anybody_reads(sim: Sim) -> None:
    servers = [Server(sim, f"h{n}") for n in range(2)]
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    write(sim, a, ino, 2)
    a.call(m.GetMap(ino, 2, 1, True))  # void: never reported written
    void = sim.state.chunk(ino, 2)
    assert void is not None
    a.answer = False
    for server in servers:
        server.obey = False
    del sim.clients[a.session_id]  # it is dead
    waiting = b.send(m.Open(ino, m.SHARED))
    sim.run(20_000)
    assert a.session_id not in sim.state.sessions
    assert not waiting.done
    assert sim.state.inodes[ino].writer == a.session_id  # a new leader would fence again
    assert sim.state.chunk(ino, 2) is None
    assert [c.version for _, c in sim.state.chunks(ino)] == [2, 2]
    for _ in range(3):
        for server in servers:
            while server.orders:
                server.do(server.orders.popleft())
        sim.step()
    assert waiting.reply.attr.size == (1 << 26) + 100
    assert sim.state.inodes[ino].writer == 0
    done = [o for s in servers for o in s.seen]
    orders = [(o.chunk_id, bool(o.sources)) for o in done if isinstance(o, m.OrderReconcile)]
    both = [(c.id, equal) for _, c in sim.state.chunks(ino) for equal in (False, True)]
    assert sorted(orders) == sorted(both), "one replica of each chunk is made equal to the other, and both are flushed"
    assert all(s.chunks[c.id][0] == 2 for s in servers for _, c in sim.state.chunks(ino))


def test_a_client_that_ignores_recalls_loses_its_session(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.answer = False
    waiting = b.send(m.Open(ino, m.EXCLUSIVE))
    for _ in range(500):
        sim.now += 200
        for client in (a, b):
            try:
                client.send(m.SessionRenew(client.session_id))
            except VstorError as exc:
                assert client is a
                assert exc.code == ErrorCode.NO_SESSION  # noqa: PT017
        sim.deliver(sim.core.tick(sim.now))
    assert waiting.reply.lease == m.EXCLUSIVE
    assert a.session_id not in sim.state.sessions


def test_close_ends_a_session_at_once(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.LeaseRelease(ino, 0, m.NONE))
    a.call(m.SessionClose(a.session_id))
    assert b.call(m.Open(ino, m.EXCLUSIVE)).lease == m.EXCLUSIVE


# --- failover ------------------------------------------------------------------------------------------------------


def test_grace_holds_everybody_until_sessions_are_back(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.Commit(ino, 42, 1))
    sim.failover()
    resume(b, [])
    waiting = b.send(m.GetAttr(ino))
    assert isinstance(waiting, Parked)
    a.sizes[ino] = 50
    resume(a, [(ino, m.EXCLUSIVE)])
    assert sim.core.leases.mode(a.session_id, ino) == m.EXCLUSIVE
    assert waiting.done
    assert waiting.reply.attr.size == 50  # the writer was asked


def test_grace_ends_with_the_sessions_that_do_not_come_back(sim: Sim) -> None:
    servers = [Server(sim, f"h{n}") for n in range(2)]
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    write(sim, a, ino)
    sim.failover()
    for server in servers:
        server.start(restart=False)
    resume(b, [])
    waiting = b.send(m.Open(ino, m.EXCLUSIVE))
    sim.run(20_000)
    assert waiting.reply.lease == m.EXCLUSIVE
    chunk = sim.state.chunk(ino, 0)
    assert chunk is not None
    assert chunk.version > 1  # fenced, though the tickets were another leader's


def test_what_a_session_claims_without_right_is_recalled(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    sim.failover()
    b.answer = False
    resume(b, [(ino, m.EXCLUSIVE), (999, m.SHARED)])
    assert {(p.ino, p.want) for p in b.pushes} == {(ino, m.NONE), (999, m.NONE)}
    resume(a, [])  # not claimed: its release may be under way, so it still holds
    assert sim.core.leases.mode(a.session_id, ino) == m.EXCLUSIVE


def test_a_fence_goes_on_under_the_next_leader(sim: Sim) -> None:
    servers = [Server(sim, f"h{n}") for n in range(2)]
    a = sim.client("a")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    write(sim, a, ino)
    for server in servers:
        server.obey = False
    del sim.clients[a.session_id]
    sim.run(20_000)
    assert ino in sim.core.fences.active
    sim.failover()
    for server in servers:
        server.obey = True
        server.start(restart=False)
    assert ino in sim.core.fences.active
    sim.run(1_000)
    assert not sim.core.fences.active
    assert sim.state.inodes[ino].writer == 0


def test_resume_on_another_host_is_denied(sim: Sim) -> None:
    a = sim.client("a")
    a.host = "other"
    a.connect()
    with pytest.raises(VstorError) as caught:
        a.call(m.SessionResume(a.session_id, []))
    assert caught.value.code == ErrorCode.DENIED


def test_unanswered_recalls_are_repeated_on_the_new_connection(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.answer = False
    waiting = b.send(m.Open(ino, m.EXCLUSIVE))
    a.pushes.clear()  # lost with the connection
    sim.drop_connection(a)
    a.call(m.SessionResume(a.session_id, [(ino, m.EXCLUSIVE)]))
    assert [p.want for p in a.pushes] == [m.NONE]
    a.react(a.pushes.pop())
    assert waiting.reply.lease == m.EXCLUSIVE


# --- files without a name ---------------------------------------------------------------------------------------------


def test_unlink_while_open(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    b.call(m.Unlink(1, b"f"))
    assert a.call(m.GetAttr(ino)).attr.nlink == 0
    assert ino in sim.state.orphans
    a.call(m.Close(ino))
    assert ino not in sim.state.inodes
    assert ino not in sim.state.orphans


def test_unlink_closes_what_only_the_caller_has_open(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    b.call(m.Lookup(1, b"f"))
    assert a.call(m.Unlink(1, b"f", closes=1)).closed
    assert ino not in sim.state.inodes
    assert ino not in sim.state.orphans
    assert not sim.core.opens.by_ino
    assert sim.core.leases.mode(a.session_id, ino) == m.NONE
    assert not sim.state.writers.get(a.session_id)


def test_unlink_closes_nothing_that_goes_on(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.Link(ino, 1, b"g"))
    assert not a.call(m.Unlink(1, b"f", closes=1)).closed  # it has another name
    assert sim.core.opens.by_ino == {ino: {a.session_id: 1}}
    b.call(m.Open(ino, m.SHARED, False))
    assert not a.call(m.Unlink(1, b"g", closes=1)).closed  # b has it open
    assert ino in sim.state.orphans
    for client in (b, a):
        client.call(m.Close(ino))
    assert ino not in sim.state.inodes


def test_a_replaced_file_can_still_be_opened_for_a_moment(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    old = a.call(m.Create(1, b"f", REG, 0, 0)).attr.ino
    found = b.call(m.Lookup(1, b"f")).attr.ino
    assert found == old
    a.call(m.Create(1, b"new", REG, 0, 0))
    a.call(m.Rename(1, b"new", 1, b"f", 0))
    assert b.call(m.Open(found, m.SHARED, False)).attr.nlink == 0
    b.call(m.Close(found))
    assert old in sim.state.inodes
    sim.run(3_000)
    assert old not in sim.state.inodes
    assert not sim.state.orphans


def test_an_orphan_goes_with_the_session(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    b.call(m.Unlink(1, b"f"))
    del sim.clients[a.session_id]
    sim.run(30_000)
    assert ino not in sim.state.inodes


def test_an_orphan_survives_a_failover_when_it_is_still_open(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    kept = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    lost = a.call(m.Create(1, b"g", REG, 0, 0, open=True)).attr.ino
    for name in (b"f", b"g"):
        b.call(m.Unlink(1, name))
    sim.failover()
    resume(b, [])
    sim.step()
    assert {kept, lost} <= set(sim.state.inodes)
    resume(a, [], opens=[(kept, 1)])
    sim.step()
    assert kept in sim.state.inodes
    assert lost not in sim.state.inodes
