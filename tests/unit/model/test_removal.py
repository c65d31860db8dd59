"""Chunk servers that are to go: what is refused, with counts and the mend."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m

from tests.unit.model.sim import Server, Sim

REG = stat.S_IFREG | 0o644


class World:
    """Hosts h0, h1, … with a chunk server each, and a file of one chunk that nobody writes."""

    def __init__(self, hosts: int, replicas: str, locations: tuple[str, ...] = (), domain: str = "host") -> None:
        self.sim = Sim({"fs.replicas": replicas, "fs.failure_domain": domain})
        self.servers = [
            Server(self.sim, f"h{n}", location=locations[n] if locations else "") for n in range(hosts)
        ]  # fmt: skip
        client = self.sim.client()
        ino = client.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
        chunk = client.call(m.GetMap(ino, 0, 1, True)).chunks[0]
        for cs_id in chunk.replicas:
            self.sim.servers[cs_id].chunks[chunk.chunk_id] = [chunk.version, 0]
        client.call(m.Commit(ino, 1 << 20, 1, [0]))
        client.call(m.LeaseRelease(ino, 0, m.SHARED))

    def ask(self, server: Server, **options: Any) -> dict[str, Any]:
        reply = self.sim.call(self.sim.ctx("ctl"), m.RemoveCs(server.cs_id, **options))
        value: dict[str, Any] = json.loads(reply.json)
        return value

    def refused(self, server: Server, **options: Any) -> str:
        with pytest.raises(VstorError) as caught:
            self.ask(server, **options)
        assert caught.value.code == ErrorCode.UNSAFE
        assert self.sim.state.servers[server.cs_id].admin == "normal"
        return caught.value.message


def test_too_few_hosts_are_refused_with_counts_and_the_mend() -> None:
    w = World(3, "3:2")
    text = w.refused(w.servers[0])
    assert "only 2 hosts are left for 3 replicas of 1 chunks" in text
    assert "add chunk servers" in text
    assert w.ask(w.servers[0], dry_run=True)["refusal"] == text
    assert w.ask(w.servers[0], force=True)["state"] == "dropped"


def test_a_second_disk_of_the_host_or_another_host_is_place_enough() -> None:
    w = World(3, "3:2")
    second = Server(w.sim, "h0")
    assert w.ask(w.servers[0], dry_run=True)["refusal"] == ""
    assert "only 2 hosts" in w.ask(w.servers[0], dry_run=True, together=(second.cs_id,))["refusal"]
    assert w.ask(w.servers[0])["state"] == "releasing"
    w.refused(second)  # the first counts no more
    Server(w.sim, "h9")
    assert w.ask(second)["state"] == "releasing"


def test_racks_are_racks() -> None:
    w = World(4, "3:2", locations=("a.1.1", "a.1.1", "a.1.2", "a.1.3"), domain="rack")
    assert "only 2 racks are left for 3 replicas" in w.refused(w.servers[3])
    assert w.ask(w.servers[0])["state"] == "releasing"


def test_the_policy_of_a_file_counts_not_only_the_default() -> None:
    w = World(4, "2:1")
    w.sim.call(w.sim.ctx("ctl"), m.SetPathAttr("/f", False, {"replicas": "4:2"}))
    w.sim.run(15_000)
    assert len(w.sim.state.by_cs[w.servers[1].cs_id]) == 1
    assert "only 3 hosts are left for 4 replicas of 1 chunks" in w.refused(w.servers[1])


def test_a_dead_server_is_released_only_where_its_replicas_have_a_place() -> None:
    w = World(3, "3:2")
    w.servers[0].kill()
    w.sim.run(6 * 60_000)
    assert "only 2 hosts" in w.refused(w.servers[0])
    Server(w.sim, "h9")
    assert w.ask(w.servers[0])["state"] == "releasing"


def test_an_empty_server_may_go_where_places_were_too_few_before() -> None:
    sim = Sim({"fs.replicas": "3:1"})
    server, _ = Server(sim, "h0"), Server(sim, "h0")
    assert json.loads(sim.call(sim.ctx("ctl"), m.RemoveCs(server.cs_id)).json)["state"] == "releasing"


def test_an_empty_server_counts_for_new_files() -> None:
    sim = Sim({"fs.replicas": "2:1"})
    servers = [Server(sim, f"h{n}") for n in range(2)]
    with pytest.raises(VstorError, match="only 1 host is left for 2 replicas of new files"):
        sim.call(sim.ctx("ctl"), m.RemoveCs(servers[0].cs_id))


def test_the_cluster_is_not_healthy_while_chunks_lack_replicas() -> None:
    """All servers are well, but one is gone for ever and its replicas have no other place."""
    w = World(3, "3:2")
    assert w.sim.core.status(w.sim.now)["cluster"]["state"] == "healthy"
    w.servers[0].up = False
    w.ask(w.servers[0], force=True)
    w.sim.run(2000)
    status = w.sim.core.status(w.sim.now)
    assert (status["chunks"]["urgent"], status["cluster"]["state"]) == (1, "degraded")
    Server(w.sim, "h9")
    w.sim.run(5000)
    assert w.sim.core.status(w.sim.now)["cluster"]["state"] == "healthy"
