"""What operators ask: configuration, events, path attributes, leases, lists, status, space."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import config as cfg
from vstor.model.status import _fill
from vstor.proto import messages as m

from tests.unit.model.sim import Parked, Server, Sim

REG, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.fixture
def sim() -> Sim:
    return Sim({"fs.replicas": "2:1"})


def ask(sim: Sim, body: Any) -> Any:
    reply = sim.call(sim.ctx("ctl"), body)
    return json.loads(reply.json) if isinstance(reply, m.JsonReply) else reply


def refused(sim: Sim, body: Any) -> VstorError:
    with pytest.raises(VstorError) as caught:
        ask(sim, body)
    return caught.value


def test_config_round_trip_and_events(sim: Sim) -> None:
    ask(sim, m.SetConfig("mds.wd.offline_tout", "60000"))
    assert ask(sim, m.GetConfig("mds.wd.offline_tout"))["mds.wd.offline_tout"]["value"] == "60000"
    assert set(ask(sim, m.GetConfig(""))) == set(cfg.OPTIONS)
    last = ask(sim, m.GetEvents(0, 0, 1))[0]
    assert last["message"] == "mds.wd.offline_tout was set to 60000"
    before = dict(sim.store)
    ask(sim, m.SetConfig("mds.wd.offline_tout", "60000"))  # the same again
    assert sim.store == before


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("nonsense", "1", ErrorCode.NOT_FOUND),
        ("mds.wd.offline_tout", "-1", ErrorCode.INVALID),
        ("mds.wd.offline_tout", "soon", ErrorCode.INVALID),
        ("data.auth_mode", "none", ErrorCode.INVALID),
        ("fs.replicas", "3:4", ErrorCode.INVALID),
        ("fs.chunk_size", "3000000", ErrorCode.INVALID),
    ],
)
def test_bad_configuration_is_refused(sim: Sim, name: str, value: str, code: ErrorCode) -> None:
    before = dict(sim.store)
    assert refused(sim, m.SetConfig(name, value)).code == code
    assert sim.store == before


@pytest.mark.parametrize(("text", "want"), [("3:2", (3, 2)), ("3", (3, 2)), ("1", (1, 1)), ("15:15", (15, 15))])
def test_replicas_text(text: str, want: tuple[int, int]) -> None:
    assert cfg.parse_replicas(text) == want


def test_every_default_is_valid() -> None:
    for name, option in cfg.OPTIONS.items():
        assert cfg.check(name, option.default) == option.default


def test_events_are_a_bounded_ring(sim: Sim) -> None:
    for n in range(4200):
        sim.deliver(sim.core.report_event("info", "MDS", f"event {n}", sim.now + n))
    events = ask(sim, m.GetEvents(0, 0, 10_000))
    assert 4080 <= len(events) <= 4096
    assert events[-1]["message"] == "event 4199"
    assert [e["id"] for e in events] == sorted(e["id"] for e in events)
    assert sum(key[:1] == b"v" for key in sim.store) <= 256
    assert [e["message"] for e in ask(sim, m.GetEvents(events[-3]["id"], 0, 10))] == ["event 4198", "event 4199"]
    assert len(ask(sim, m.GetEvents(0, sim.now + 4190, 100))) == 10
    sim.deliver(sim.core.report_event("err", "JRN", "bad", sim.now))
    assert [e["sys"] for e in ask(sim, m.GetEvents(0, 0, 100, "err"))] == ["JRN"]


def test_path_attributes_are_inherited(sim: Sim) -> None:
    a = sim.client()
    folder = a.call(m.Create(1, b"d", DIR, 0, 0)).attr.ino
    a.call(m.Create(folder, b"old", REG, 0, 0))
    ask(
        sim,
        m.SetPathAttr("d", False, {"replicas": "3:2", "tier": "2", "failure-domain": "rack", "chunk-size": "1048576"}),
    )
    a.call(m.Create(folder, b"new", REG, 0, 0))
    new = ask(sim, m.GetPathAttr("/d/new"))
    assert new == {
        "type": "file", "client-ssd-cache": "1", "replicas": "3:2", "failure-domain": "rack", "tier": "2", "chunk-size": "1048576",
    }  # fmt: skip
    assert ask(sim, m.GetPathAttr("/d/old"))["replicas"] == "2:1"
    ask(sim, m.SetPathAttr("/", True, {"replicas": "1:1"}))
    assert {ask(sim, m.GetPathAttr(p))["replicas"] for p in ("/", "/d", "/d/old", "/d/new")} == {"1:1"}


@pytest.mark.parametrize(
    "attributes",
    [{}, {"replicas": "0"}, {"tier": "4"}, {"failure-domain": "moon"}, {"chunk-size": "5"}, {"colour": "red"}],
)
def test_bad_path_attributes_are_refused(sim: Sim, attributes: dict[str, str]) -> None:
    assert refused(sim, m.SetPathAttr("/", False, attributes)).code == ErrorCode.INVALID
    assert refused(sim, m.GetPathAttr("/none")).code == ErrorCode.NOT_FOUND


def test_a_recursive_change_of_a_large_tree_goes_in_parts(sim: Sim) -> None:
    a = sim.client()
    for n in range(2500):
        a.call(m.Create(1, b"%d" % n, REG, 0, 0))
        a.acked = a.next_id - 1
    waiting = sim.send(sim.ctx("ctl"), 0, 0, m.SetPathAttr("/", True, {"replicas": "3:1"}))
    assert isinstance(waiting, Parked)
    sim.run(1000)
    assert waiting.reply == m.Ok()
    assert ask(sim, m.GetPathAttr("/2499"))["replicas"] == "3:1"


def test_chunk_size_of_a_file_with_data_stays(sim: Sim) -> None:
    for n in range(2):
        Server(sim, f"h{n}")
    a = sim.client()
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.GetMap(ino, 0, 1, True))
    assert refused(sim, m.SetPathAttr("/f", False, {"chunk-size": "1048576"})).code == ErrorCode.INVALID
    ask(sim, m.SetPathAttr("/", True, {"chunk-size": "1048576"}))
    assert ask(sim, m.GetPathAttr("/f"))["chunk-size"] == str(64 << 20)
    assert ask(sim, m.GetPathAttr("/"))["chunk-size"] == "1048576"


def test_file_info_and_list_chunks(sim: Sim) -> None:
    servers = [Server(sim, f"h{n}") for n in range(2)]
    a = sim.client()
    folder = a.call(m.Create(1, b"d", DIR, 0, 0)).attr.ino
    ino = a.call(m.Create(folder, b"f", REG, 0, 0, open=True)).attr.ino
    a.call(m.GetMap(ino, 0, 3, True))
    a.call(m.Commit(ino, 150 << 20, 1, [0, 1, 2]))
    info = ask(sim, m.FileInfo("/d/f", 1, 1))
    assert info["size"] == 150 << 20
    assert [c["index"] for c in info["chunks"]] == [1]
    assert {r["state"] for r in info["chunks"][0]["replicas"]} == {"active"}
    for server in servers[:1]:
        server.kill()
    sim.run(10_000)
    rows = ask(sim, m.ListChunks("urgent", 0, 2))
    assert [r["path"] for r in rows] == ["/d/f", "/d/f"]
    assert len(ask(sim, m.ListChunks("urgent", rows[-1]["chunk_id"], 10))) == 1
    assert len(ask(sim, m.ListChunks("unique", 0, 10))) == 3
    assert refused(sim, m.ListChunks("rotten", 0, 10)).code == ErrorCode.INVALID


def test_leases_are_listed_and_revoked(sim: Sim) -> None:
    a = sim.client("host-a")
    ino = a.call(m.Create(1, b"f", REG, 0, 0, open=True)).attr.ino
    row = ask(sim, m.GetLeases(""))[0]
    assert (row["path"], row["mode"], row["host"]) == ("/f", "exclusive", "host-a")
    assert ask(sim, m.GetLeases("/f")) == [row]
    a.answer = False
    waiting = sim.send(sim.ctx("ctl"), 7, 0, m.RevokeLeases("/", True))
    assert isinstance(waiting, Parked)
    a.react(a.pushes.pop())
    assert waiting.reply == m.Ok()
    assert ask(sim, m.GetLeases("")) == []
    assert sim.state.inodes[ino].writer == 0


def test_status_has_what_the_tools_show(sim: Sim) -> None:
    for n in range(2):
        Server(sim, f"h{n}")
    sim.client("host-a")
    status = ask(sim, m.GetStatus())
    assert status == json.loads(json.dumps(sim.core.status(sim.now)))
    assert status["cluster"]["state"] == "healthy"
    assert status["cluster"]["name"] == "test"
    assert {c["state"] for c in status["cs"]} == {"active"}
    assert status["clients"][0]["host"] == "host-a"
    assert status["space"]["raw_total_bytes"] == 2 << 40
    assert 0 < status["space"]["allocatable_bytes"] <= 1 << 40


@pytest.mark.parametrize(
    ("room", "copies", "want"),
    [
        ([], 1, 0),
        ([10], 2, 0),
        ([10], 1, 10),
        ([10, 10], 1, 20),
        ([10, 30], 2, 10),
        ([10, 20, 30], 2, 30),
        ([5, 5, 100], 2, 10),
        ([1, 2, 3], 3, 1),
    ],
)
def test_space_under_distinct_domains(room: list[int], copies: int, want: int) -> None:
    assert _fill(room, copies) == want


def test_statfs_agrees_with_the_status(sim: Sim) -> None:
    for n in range(2):
        Server(sim, f"h{n}")
    reply = sim.client().call(m.StatFs(1))
    assert reply.free_bytes == sim.core.status(sim.now)["space"]["allocatable_bytes"]
    assert reply.total_bytes >= reply.free_bytes


def test_unknown_requests_are_refused(sim: Sim) -> None:
    assert refused(sim, m.AuthStart()).code == ErrorCode.UNSUPPORTED
