"""Leases: conflicts, fairness, invalidation before change, and the invariants under random messages, losses and expiry."""

from __future__ import annotations

import random
import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Parked, Sim

REG, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.fixture
def sim() -> Sim:
    return Sim()


def make(client: Client, name: bytes = b"f") -> int:
    ino = client.call(m.Create(1, name, REG, 0, 0)).attr.ino
    client.call(m.LeaseRelease(ino, 0, m.NONE))
    return ino


def waits(result: Any) -> Parked:
    assert isinstance(result, Parked)
    assert not result.done
    return result


def test_exclusive_recalls_shared_and_waits(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    a.call(m.Open(ino, m.SHARED))
    a.answer = False
    waiting = waits(b.send(m.LeaseAcquire(ino, m.EXCLUSIVE)))
    assert sim.state.inodes[ino].writer == 0  # nothing changed yet
    assert [p.want for p in a.pushes] == [m.NONE]
    a.react(a.pushes.pop())
    assert waiting.reply.mode == m.EXCLUSIVE
    assert sim.state.inodes[ino].writer == b.session_id


def test_shared_lets_the_writer_keep_shared(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.sizes[ino] = 777
    reply = b.call(m.Open(ino, m.SHARED))
    assert reply.attr.size == 777
    assert sim.core.leases.holders[ino] == {a.session_id: m.SHARED, b.session_id: m.SHARED}
    assert sim.state.inodes[ino].writer == 0


def test_readers_share(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    for client in (a, b):
        assert client.call(m.Open(ino, m.SHARED)).lease == m.SHARED
    assert not a.pushes


def test_getattr_asks_the_writer_each_time_and_is_not_cacheable(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.answer = False
    for size in (10, 20):
        a.sizes[ino] = size
        waiting = waits(b.send(m.GetAttr(ino)))
        assert a.pushes[-1].want == m.ATTR
        a.react(a.pushes.pop())
        assert waiting.reply.attr.size == size
        assert not waiting.reply.attr.cacheable
    assert sim.core.leases.mode(a.session_id, ino) == m.EXCLUSIVE
    assert sim.core.leases.mode(b.session_id, ino) == m.NONE


@pytest.mark.parametrize(
    "change",
    [
        lambda ino: m.Unlink(1, b"f"),
        lambda ino: m.Rename(1, b"f", 1, b"g"),
        lambda ino: m.Create(1, b"new", REG, 0, 0),
        lambda ino: m.Link(ino, 1, b"l"),
    ],
)
def test_a_change_of_entries_waits_for_invalidation(sim: Sim, change: Any) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    a.call(m.Lookup(1, b"f"))
    a.answer = False
    before = dict(sim.store)
    waiting = waits(b.send(change(ino)))
    assert sim.store == before
    late = waits(a.send(m.Lookup(1, b"zzz")))  # no new caching while the change waits
    told = [p for p in a.pushes if p.ino == 1]
    assert len(told) == 1
    for push in list(a.pushes):
        a.react(push)
    assert waiting.reply is not None
    assert late.done


def test_a_change_of_attributes_invalidates_and_keeps_the_read_lease(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    a.call(m.Open(ino, m.SHARED))
    a.answer = False
    waiting = waits(b.send(m.SetAttr(ino, m.SET_MODE, mode=0o600)))
    assert isinstance(a.pushes[0], m.Invalidate)
    a.react(a.pushes.pop())
    assert waiting.reply.attr.mode & 0o7777 == 0o600
    assert sim.core.leases.mode(a.session_id, ino) == m.SHARED


def test_first_come_first_served(sim: Sim) -> None:
    a, b, c = sim.client("a"), sim.client("b"), sim.client("c")
    ino = make(a)
    a.call(m.Open(ino, m.EXCLUSIVE))
    a.answer = b.answer = False
    second = waits(b.send(m.LeaseAcquire(ino, m.EXCLUSIVE)))
    third = waits(c.send(m.LeaseAcquire(ino, m.SHARED)))
    a.react(a.pushes.pop(0))
    assert second.reply.mode == m.EXCLUSIVE
    assert not third.done
    b.modes[ino] = m.EXCLUSIVE
    b.react(b.pushes.pop(0))
    assert third.reply.mode == m.SHARED


def test_two_upgrades_do_not_deadlock(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    for client in (a, b):
        client.call(m.Open(ino, m.SHARED))
        client.answer = False
    first = waits(a.send(m.LeaseAcquire(ino, m.EXCLUSIVE)))
    second = waits(b.send(m.LeaseAcquire(ino, m.EXCLUSIVE)))
    b.react(b.pushes.pop(0))
    assert first.reply.mode == m.EXCLUSIVE
    a.modes[ino] = m.EXCLUSIVE
    a.react(a.pushes.pop(0))
    assert second.reply.mode == m.EXCLUSIVE


def test_crossing_renames_do_not_deadlock(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    x = a.call(m.Create(1, b"x", DIR, 0, 0)).attr.ino
    y = a.call(m.Create(1, b"y", DIR, 0, 0)).attr.ino
    a.call(m.Create(x, b"1", REG, 0, 0))
    a.call(m.Create(y, b"2", REG, 0, 0))
    for client in (a, b):
        for ino in (x, y):
            client.call(m.ReadDir(ino, 0, 100))
        client.answer = False
    first = waits(a.send(m.Rename(x, b"1", y, b"3")))
    second = waits(b.send(m.Rename(y, b"2", x, b"4")))
    for client in (b, a, b, a):
        for push in client.pushes[:]:
            client.pushes.remove(push)
            client.react(push)
    assert first.reply is not None
    assert second.reply is not None


def test_a_closed_connection_stops_waiting(sim: Sim) -> None:
    a, b, c = sim.client("a"), sim.client("b"), sim.client("c")
    ino = make(a)
    a.call(m.Open(ino, m.EXCLUSIVE))
    a.answer = False
    waits(b.send(m.LeaseAcquire(ino, m.EXCLUSIVE)))
    third = waits(c.send(m.LeaseAcquire(ino, m.SHARED)))
    sim.drop_connection(b)
    for push in list(a.pushes):
        a.react(push)
    assert third.reply.mode == m.SHARED


def test_size_needs_exclusive(sim: Sim) -> None:
    a = sim.client("a")
    ino = make(a)
    with pytest.raises(VstorError) as caught:
        a.call(m.SetAttr(ino, m.SET_SIZE, size=5))
    assert caught.value.code == ErrorCode.LEASE_LOST


def test_the_bound_of_a_session(sim: Sim) -> None:
    sim.call(sim.ctx("ctl"), m.SetConfig("mds.lease.max_per_session", "16"))
    sim.step()
    a = sim.client("a")
    inos = [a.call(m.Create(1, b"%d" % n, REG, 0, 0)).attr.ino for n in range(30)]
    assert len(sim.core.leases.held[a.session_id]) == 16
    assert not a.call(m.GetAttr(inos[-1])).attr.cacheable
    with pytest.raises(VstorError) as caught:
        a.call(m.Open(inos[-1], m.SHARED))
    assert caught.value.code == ErrorCode.LIMIT


def check(sim: Sim) -> None:
    for ino, holders in sim.core.leases.holders.items():
        writers = [s for s, mode in holders.items() if mode == m.EXCLUSIVE]
        assert len(writers) <= 1
        if writers:
            assert all(mode == m.NONE for s, mode in holders.items() if s not in writers), holders
            assert sim.state.inodes[ino].writer == writers[0]


@pytest.mark.parametrize("seed", range(30))
def test_invariants_under_loss_and_expiry(seed: int) -> None:
    """Pushes are answered late, out of order or never; sessions expire; in the end nobody waits for ever."""
    rng = random.Random(seed)
    sim = Sim()
    clients = [sim.client(f"c{n}") for n in range(4)]
    inos = [make(clients[0], b"f%d" % n) for n in range(3)]
    for client in clients:
        client.answer = False
    pending: list[Parked] = []
    for _ in range(300):
        client = rng.choice(clients)
        ino = rng.choice(inos)
        roll = rng.random()
        try:
            if roll < 0.35:
                got = client.send(m.LeaseAcquire(ino, rng.choice([m.SHARED, m.EXCLUSIVE, m.CACHE])))
            elif roll < 0.5:
                got = client.send(
                    rng.choice([m.GetAttr(ino), m.Lookup(1, b"f0"), m.SetAttr(ino, m.SET_MODE, mode=0o600)])
                )
            elif roll < 0.85 and client.pushes:
                push = client.pushes.pop(rng.randrange(len(client.pushes)))
                client.modes[push.ino] = sim.core.leases.mode(client.session_id, push.ino)
                client.react(push)
                got = None
            elif roll < 0.9:
                got = client.send(m.LeaseRelease(ino, 0, m.NONE))
            else:
                got = None
                sim.now += 300
                for other in clients:
                    if other is not clients[3]:  # this one never renews
                        other.send(m.SessionRenew(other.session_id))
                sim.deliver(sim.core.tick(sim.now))
        except VstorError as exc:
            if exc.code != ErrorCode.NO_SESSION:
                raise
            got = None
        if isinstance(got, Parked):
            pending.append(got)
        check(sim)
    for client in clients:
        client.answer = True
        for push in client.pushes:
            if client.session_id in sim.clients:
                client.modes[push.ino] = sim.core.leases.mode(client.session_id, push.ino)
                client.react(push)
    for _ in range(100):
        sim.step()
        for client in clients:
            for ino in inos:
                client.modes[ino] = sim.core.leases.mode(client.session_id, ino)
        check(sim)
    assert all(p.done or p.ctx.session_id not in sim.state.sessions for p in pending)
