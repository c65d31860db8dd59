"""The chunk that comes with a new file."""

from __future__ import annotations

from vstor.model.records import VOID
from vstor.proto import messages as m

from tests.unit.model.test_data import MINUTES, REG, World


def test_a_new_file_comes_with_its_first_chunk() -> None:
    world = World()
    reply = world.client.call(m.Create(1, b"new", REG, 0, 0, open=True, first_chunk=True))
    (chunk,) = reply.chunks
    stored = world.sim.state.chunk(reply.attr.ino, 0)
    assert stored is not None
    assert (chunk.chunk_id, chunk.replicas, chunk.flags) == (stored.id, list(stored.replicas), VOID)
    assert {s.cs_id for s in reply.servers} == set(chunk.replicas)
    assert len(chunk.ticket) == 64
    world.stored(chunk)
    world.client.call(m.Commit(reply.attr.ino, 100, 1, [0]))
    assert world.client.call(m.GetMap(reply.attr.ino, 0, 1, True)).chunks[0].chunk_id == chunk.chunk_id


def test_the_answer_given_again_leaves_the_chunk_to_be_asked_for() -> None:
    world = World()
    body = m.Create(1, b"new", REG, 0, 0, open=True, first_chunk=True)
    chunk = world.client.call(body).chunks[0]
    again = world.client.send(body, world.client.next_id - 1)
    assert again.chunks in ([], [chunk])
    assert world.client.call(m.GetMap(again.attr.ino, 0, 1, True)).chunks[0].chunk_id == chunk.chunk_id


def test_a_file_is_made_where_no_chunk_can_be_had() -> None:
    world = World("3:2", 3)
    for server in world.servers[:2]:
        server.kill()
    world.sim.run(5 * MINUTES)
    reply = world.client.call(m.Create(1, b"new", REG, 0, 0, open=True, first_chunk=True))
    assert reply.chunks == []
    assert world.sim.state.chunk(reply.attr.ino, 0) is None


def test_a_chunk_that_was_never_written_goes_with_its_file() -> None:
    world = World()
    reply = world.client.call(m.Create(1, b"new", REG, 0, 0, open=True, first_chunk=True))
    assert world.client.call(m.Unlink(1, b"new", closes=1)).closed
    assert reply.attr.ino not in world.sim.state.inodes
    assert reply.attr.ino not in world.sim.state.extents
