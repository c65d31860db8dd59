"""POSIX and flock locks against a reference of single bytes, waiting, deadlocks, and their end."""

from __future__ import annotations

import random
import stat

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.locks import END, READ, UNLOCK, WRITE, LockTable
from vstor.model.outcome import Outcome
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Parked, Sim

REG = stat.S_IFREG | 0o644


@pytest.fixture
def sim() -> Sim:
    return Sim()


def lock(
    client: Client,
    ino: int,
    owner: int,
    kind: int,
    start: int = 0,
    end: int = END,
    *,
    wait: bool = False,
    flock: bool = False,
) -> object:
    return client.send(m.LockSet(m.LockRange(ino, owner, kind, start, end, owner, flock), wait))


def refused(client: Client, *args: int) -> ErrorCode:
    with pytest.raises(VstorError) as caught:
        lock(client, *args)
    return caught.value.code


def make(client: Client) -> int:
    return client.call(m.Create(1, b"f", REG, 0, 0)).attr.ino


@pytest.mark.parametrize("seed", range(20))
def test_ranges_agree_with_a_table_of_bytes(seed: int) -> None:
    rng = random.Random(seed)
    table, held = LockTable(), {}  # (owner, byte) -> type
    for _ in range(200):
        owner, kind = rng.randrange(3), rng.choice([READ, WRITE, UNLOCK])
        start = rng.randrange(20)
        end = rng.randrange(start, 20)
        want = m.LockRange(1, owner, kind, start, end, 1)
        expected = kind != UNLOCK and any(
            o != owner and start <= byte <= end and WRITE in (t, kind) for (o, byte), t in held.items()
        )
        conflict = None if kind == UNLOCK else table.conflict(5, want)
        assert (conflict is not None) == expected
        if not expected:
            table.set(5, want, Outcome())
            for byte in range(start, end + 1):
                if kind == UNLOCK:
                    held.pop((owner, byte), None)
                else:
                    held[owner, byte] = kind
        got = {
            (piece.owner, byte): piece.type
            for _, piece in table.by_ino.get(1, [])
            for byte in range(piece.start, piece.end + 1)
        }
        assert got == held
        assert sum(p.end - p.start + 1 for _, p in table.by_ino.get(1, [])) == len(held)  # no overlaps


def test_conflict_between_sessions_and_get(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    lock(a, ino, 1, WRITE, 10, 20)
    assert refused(b, ino, 1, READ, 15, 30) == ErrorCode.WOULD_BLOCK
    lock(b, ino, 1, READ, 21, 30)
    found = b.call(m.LockGet(m.LockRange(ino, 1, READ, 0, 12, 9))).lock
    assert (found.type, found.start, found.end) == (WRITE, 10, 20)
    assert b.call(m.LockGet(m.LockRange(ino, 1, READ, 0, 9, 9))).lock.type == UNLOCK


def test_flock_and_posix_do_not_meet(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    lock(a, ino, 1, WRITE)
    lock(b, ino, 1, WRITE, flock=True)


def test_waiting_and_wakeup(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    lock(a, ino, 1, WRITE)
    waiting = lock(b, ino, 1, WRITE, wait=True)
    assert isinstance(waiting, Parked)
    lock(a, ino, 1, UNLOCK)
    assert waiting.reply == m.Ok()


def test_cancel(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    lock(a, ino, 1, WRITE)
    waiting = lock(b, ino, 1, WRITE, wait=True)
    assert isinstance(waiting, Parked)
    b.call(m.LockCancel(waiting.request_id))
    assert waiting.error is not None
    assert waiting.error.code == ErrorCode.WOULD_BLOCK
    lock(a, ino, 1, UNLOCK)
    lock(a, ino, 2, WRITE)  # the cancelled one did not get it


def test_deadlock_is_refused(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    lock(a, ino, 1, WRITE, 0, 0)
    lock(b, ino, 1, WRITE, 1, 1)
    assert isinstance(lock(a, ino, 1, WRITE, 1, 1, wait=True), Parked)
    with pytest.raises(VstorError) as caught:
        lock(b, ino, 1, WRITE, 0, 0, wait=True)
    assert caught.value.code == ErrorCode.DEADLOCK


def test_locks_end_with_the_session_and_survive_a_failover(sim: Sim) -> None:
    a, b = sim.client("a"), sim.client("b")
    ino = make(a)
    mine = m.LockRange(ino, 1, WRITE, 0, END, 1)
    lock(a, ino, 1, WRITE)
    sim.failover()
    for client, locks in ((a, [mine]), (b, [])):
        client.connect()
        client.call(m.SessionResume(client.session_id, [], locks))
    assert refused(b, ino, 1, WRITE) == ErrorCode.WOULD_BLOCK
    del sim.clients[a.session_id]
    sim.run(20_000)
    lock(b, ino, 1, WRITE)


@pytest.mark.parametrize("bad", [(0, 5, 4), (7, 0, 1), (0, -1, 4)])
def test_bad_locks_are_refused(sim: Sim, bad: tuple[int, int, int]) -> None:
    a = sim.client("a")
    assert refused(a, make(a), 1, *bad) == ErrorCode.INVALID
