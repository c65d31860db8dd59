"""What each verb asks of the cluster and says of the answer."""

from __future__ import annotations

import io
import json
import stat
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
from vstor import paths, services
from vstor.codes_gen import ErrorCode
from vstor.ctl import attributes, clusterpath, cs_cmd, event_cmd, passwords
from vstor.errors import VstorError
from vstor.net import discovery
from vstor.proto import messages

from tests.unit.ctl.conftest import Ctl, FakeCluster

MOUNTS = """\
proc /proc proc rw 0 0
vstor://alpha /pcs fuse.vstor rw,nosuid 0 0
vstor://beta /pcs/inner\\040dir fuse.vstor rw 0 0
sshfs#x /mnt fuse.sshfs rw 0 0
"""


# --- attributes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "stored"),
    [
        ("replicas=3:2", "3:2"), ("replicas=1", "1"), ("replicas=15:15", "15:15"), ("failure-domain=rack", "rack"),
        ("tier=3", "3"), ("tier=00", "0"), ("chunk-size=64M", "67108864"), ("chunk-size=1G", "1073741824"), ("client-ssd-cache=0", "0"),
    ],
)  # fmt: skip
def test_good_attribute(word: str, stored: str) -> None:
    assert attributes.parse_attributes([word]) == {word.partition("=")[0]: stored}


@pytest.mark.parametrize(
    "word",
    [
        "replicas", "replicas=", "replicas=0", "replicas=16", "replicas=2:3", "replicas=3:0", "replicas=3:2:1", "replicas=-1", "replicas=x",
        "failure-domain=planet", "failure-domain=", "tier=4", "tier=-1", "tier=x", "chunk-size=3M", "chunk-size=512K", "chunk-size=2G",
        "chunk-size=big", "client-ssd-cache=yes", "colour=red", "=1",
    ],
)  # fmt: skip
def test_bad_attribute(word: str, ctl: Ctl, cluster: FakeCluster) -> None:
    result = ctl("-c", "c", "set-attr", "-p", "/", word)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert cluster.asked == []


def test_attribute_twice() -> None:
    with pytest.raises(VstorError, match="twice"):
        attributes.parse_attributes(["tier=1", "tier=2"])
    assert attributes.parse_attributes(["tier=1", "tier=1"]) == {"tier": "1"}


def test_set_attr(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetPathAttr] = {"type": "directory", "replicas": "3:2", "failure-domain": "disk"}
    result = ctl("-c", "c", "set-attr", "-R", "-p", "a//b/../c/", "replicas=3:2", "failure-domain=disk")
    assert cluster.asked[0] == (
        "c",
        messages.SetPathAttr(path="/a/c", recursive=True, attributes={"replicas": "3:2", "failure-domain": "disk"}),
    )
    expected = "Path: 'vstor://c/a/c'\nAttributes:\n  directory\n  replicas=3:2\n  failure-domain=disk\n"
    assert (result.code, result.out) == (0, expected)


def test_set_attr_json_matches_get_attr(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetPathAttr] = {"tier": 1}
    expected = {"cluster": "c", "path": "/", "attributes": {"tier": 1}}
    assert json.loads(ctl("-c", "c", "set-attr", "-p", "/", "tier=1", "--format", "json").out) == expected
    assert json.loads(ctl("-c", "c", "get-attr", "-p", "/", "--format", "json").out) == expected


# --- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/pcs", "vstor://alpha/"), ("/pcs/a/b", "vstor://alpha/a/b"), ("/pcs/inner dir/x", "vstor://beta/x"), ("/pcs/inner", "vstor://alpha/inner"),
        ("/pcsx", None), ("/mnt/x", None),
    ],
)  # fmt: skip
def test_path_on_mounts(path: str, expected: str | None) -> None:
    found = clusterpath.find_on_mounts(path, clusterpath.parse_mounts(MOUNTS))
    assert (str(found) if found else None) == expected


def test_path_verbs_find_the_cluster(ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusterpath, "mounts", lambda: clusterpath.parse_mounts(MOUNTS))
    cluster.answers[messages.GetPathAttr] = {}
    assert ctl("get-attr", "/pcs/dir").code == 0
    assert cluster.asked == [("alpha", messages.GetPathAttr(path="/dir"))]
    assert ctl("get-attr", "vstor://gamma/dir").code == 0
    assert cluster.asked[1] == ("gamma", messages.GetPathAttr(path="/dir"))


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["get-attr", "/nowhere"], 2, "not on a mounted cluster"),
        (["-c", "other", "get-attr", "/pcs/x"], 5, "belongs to cluster 'alpha', not to 'other'"),
        (["get-attr", "-p", "/x"], 2, "which cluster?"),
        (["-c", "c", "get-attr", "-p", "../x"], 2, "leads out of the cluster"),
        (["revoke", "/nowhere"], 2, "not on a mounted cluster"),
    ],
)
def test_path_refused(
    argv: list[str], code: int, words: str, ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusterpath, "mounts", lambda: clusterpath.parse_mounts(MOUNTS))
    result = ctl(*argv)
    assert result.code == code
    assert words in result.err
    assert cluster.asked == []


def test_symbolic_link_itself_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "link").symlink_to("/etc")
    (tmp_path / "way").symlink_to(tmp_path / "mnt")
    known = [clusterpath.Mount("c", str(tmp_path / "mnt"))]
    monkeypatch.setattr(clusterpath, "mounts", lambda: known)
    ctx = types.SimpleNamespace(args=types.SimpleNamespace(in_cluster=False, cluster=None), cluster_or_none=None)
    assert str(clusterpath.resolve(ctx, str(tmp_path / "way" / "link"))) == "vstor://c/link"  # type: ignore[arg-type]


# --- chunk servers, metadata servers ---------------------------------------------------------------------------------


def test_rm_cs_waits_until_dropped(ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [{"state": "releasing", "replicas_left": n, "would_lose": 0} for n in (2, 2, 1)] + [{"state": "dropped"}]
    )
    cluster.answers[messages.RemoveCs] = lambda _body: next(answers)
    monkeypatch.setattr(cs_cmd.time, "sleep", lambda _s: None)
    result = ctl("-c", "c", "rm-cs", "--wait", "CS#1026")
    assert result.out == "Removing CS#1026 ...\n2 replicas left\n1 replicas left\ndone\n"
    assert result.code == 0
    assert [b.dry_run for _, b in cluster.asked] == [False, True, True, True]


def test_rm_cs_does_not_begin_anew_what_somebody_cancelled(
    ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{"state": state, "replicas_left": 2} for state in ("releasing", "releasing", "normal")])
    cluster.answers[messages.RemoveCs] = lambda _body: next(answers)
    monkeypatch.setattr(cs_cmd.time, "sleep", lambda _s: None)
    result = ctl("-c", "c", "rm-cs", "--wait", "1026")
    assert (result.code, result.err.count("\n")) == (8, 1)
    assert "the release of CS#1026 was cancelled by somebody, it is normal and keeps its 2 replicas" in result.err
    assert [b.dry_run for _, b in cluster.asked] == [False, True, True]


def test_rm_cs_of_this_node_tells_how_to_end_it(ctl: Ctl, cluster: FakeCluster) -> None:
    services.register("c", "cs", 1026, "/x")
    cluster.answers[messages.RemoveCs] = {"state": "dropped", "replicas_left": 0, "would_lose": 0}
    assert ctl("-c", "c", "rm-cs", "1026").out.endswith("vstorctl -c c service forget 1026\n")
    assert "forget" not in ctl("-c", "c", "rm-cs", "1027").out


def test_rm_cs_without_wait(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.RemoveCs] = {"state": "releasing", "replicas_left": 7, "would_lose": 0}
    result = ctl("-c", "c", "rm-cs", "1026")
    assert "CS#1026 is releasing, 7 replicas left" in result.out
    assert cluster.asked == [("c", messages.RemoveCs(cs_id=1026))]


def test_rm_cs_force(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.RemoveCs] = VstorError(ErrorCode.UNSAFE, "3 chunks would be lost")
    result = ctl("-c", "c", "rm-cs", "--force", "1026")
    assert (result.code, result.err) == (6, "vstorctl: 3 chunks would be lost — nothing was changed\n")
    cluster.answers[messages.RemoveCs] = {"cs_id": 1026, "state": "dropped", "replicas_left": 3, "would_lose": 3}
    assert ctl("-c", "c", "rm-cs", "--force", "--accept-loss", "1026").out == "Removing CS#1026 ...\ndone\n"
    assert [(b.force, b.accept_loss) for _, b in cluster.asked] == [(True, False), (True, True)]


def test_rm_cs_dry_run_and_cancel(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.RemoveCs] = {"cs_id": 1026, "state": "normal", "replicas_left": 3, "would_lose": 1}
    assert "3 replicas to move, 1 chunks have no other one" in ctl("-c", "c", "rm-cs", "--dry-run", "1026").out
    assert ctl("-c", "c", "rm-cs", "--cancel", "1026").code == 0
    assert [(b.dry_run, b.cancel, b.force) for _, b in cluster.asked] == [(True, False, False), (False, True, False)]


def test_rm_cs_dry_run_tells_what_would_be_refused(ctl: Ctl, cluster: FakeCluster) -> None:
    plan = {"cs_id": 1026, "state": "normal", "replicas_left": 3, "would_lose": 0, "refusal": "only 2 hosts are left"}
    cluster.answers[messages.RemoveCs] = plan
    result = ctl("-c", "c", "rm-cs", "--dry-run", "1026", "--format", "json")
    assert (result.code, json.loads(result.out)) == (6, plan)
    assert "only 2 hosts are left" in result.err


def test_rm_cs_of_several_is_all_or_none(ctl: Ctl, cluster: FakeCluster) -> None:
    def answer(body: messages.RemoveCs) -> Any:
        if not body.dry_run:
            return {"state": "dropped", "replicas_left": 0}
        return {"state": "normal", "replicas_left": 1, "would_lose": 0, "refusal": "few" if body.cs_id == bad else ""}

    cluster.answers[messages.RemoveCs] = answer
    bad = 1027
    result = ctl("-c", "c", "rm-cs", "1026", "1027")
    assert (result.code, "few" in result.err) == (6, True)
    assert all(b.dry_run and b.together == (1026, 1027) for _, b in cluster.asked)
    bad = 0
    result = ctl("-c", "c", "rm-cs", "--wait", "1026", "1027", "1026", "--format", "json")
    assert [v["cs_id"] for v in json.loads(result.out)] == [1026, 1027]
    assert [b.cs_id for _, b in cluster.asked if not b.dry_run] == [1026, 1027]


def test_maintenance(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.CsMaintenance] = {"cs_id": 1026, "state": "maintenance", "sole_replicas": 2}
    assert "CS#1026 is maintenance; 2 chunks have no other replica" in ctl("-c", "c", "maintenance", "on", "1026").out
    cluster.answers[messages.CsMaintenance] = {"cs_id": 1026, "state": "normal", "sole_replicas": 2}
    assert ctl("-c", "c", "maintenance", "off", "CS#1026").out == "CS#1026 is normal\n"
    assert [(b.cs_id, b.on) for _, b in cluster.asked] == [(1026, True), (1026, False)]


def test_rm_mds(ctl: Ctl, cluster: FakeCluster) -> None:
    assert ctl("-c", "c", "rm-mds", "MDS#3").out == "Removing MDS#3 ...\ndone\n"
    cluster.answers[messages.RemoveMds] = VstorError(
        ErrorCode.UNSAFE, "Removing this MDS will make the cluster unusable"
    )
    result = ctl("-c", "c", "rm-mds", "3")
    assert result.code == 6
    assert result.err == "vstorctl: Removing this MDS will make the cluster unusable — nothing was changed\n"


def fake_repository(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Stands in for a daemon's repository module, which other tests are about."""
    fake = types.ModuleType(module)
    for name, function in functions.items():
        setattr(fake, name, function)
    monkeypatch.setitem(sys.modules, module, fake)


def test_make_mds_first(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []

    def create_cluster(*args: Any) -> dict[str, Any]:
        made.append(args)
        return {
            "cluster": "c",
            "cluster_id": "abc",
            "mds_id": 1,
            "address": args[1],
            "repository": str(args[2]),
            "changed": True,
        }

    fake_repository(monkeypatch, "vstor.mds.repository", create_cluster=create_cluster)
    monkeypatch.setattr(sys, "stdin", io.StringIO("pass word \n"))
    repo = tmp_path / "mds"
    result = ctl(
        "-c", "c", "make-mds", "-I", "-a", "10.0.0.1", "-r", str(repo), "-P", "--set", "a.b=1", "--format", "json"
    )
    assert made == [("c", "10.0.0.1:2510", repo, b"pass word ", None, {"a.b": "1"})]
    value = json.loads(result.out)
    assert (value["mds_id"], value["cluster_id"], value["address"]) == (1, "abc", "10.0.0.1:2510")
    assert "pass word" not in result.out + result.err


def test_make_mds_joins(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def join_cluster(*args: Any, **kwargs: Any) -> dict[str, Any]:
        made.append((args, kwargs))
        return {
            "cluster": "c",
            "cluster_id": "a",
            "mds_id": 2,
            "address": args[1],
            "repository": "/x/y",
            "changed": True,
        }

    fake_repository(monkeypatch, "vstor.mds.repository", join_cluster=join_cluster)
    result = ctl(
        "-c", "c", "make-mds", "-a", "10.0.0.2:3000", "-r", "/x/y", "--etcd", "https://e1:2379,https://e2:2379"
    )
    assert made == [
        (("c", "10.0.0.2:3000", Path("/x/y")), {"etcd": ["https://e1:2379", "https://e2:2379"], "bootstrap": None})
    ]
    assert result.out.startswith("MDS#2 of cluster 'c' made in /x/y")


def test_make_cs(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    fake_repository(monkeypatch, "vstor.cs.repository", create=lambda *a: made.append(a) or 1025)
    result = ctl("-c", "c", "make-cs", "-r", "/x", "-a", "10.0.0.1:7000", "-t", "2", "-j", "/ssd", "-s", "128")
    assert made == [("c", Path("/x"), "10.0.0.1:7000", 2, Path("/ssd"), 128)]
    assert result.out.startswith("CS#1025 made in /x\n")
    assert ctl("-c", "c", "make-cs", "-r", "/x", "-a", "10.0.0.1").code == 0
    assert made[1][2] == "10.0.0.1"
    assert ctl("-c", "c", "make-cs", "-r", "/x", "-a", "10.0.0.1:0").code == 2


# --- passwords -----------------------------------------------------------------------------------------------------


def test_auth_node(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    fake_repository(monkeypatch, "vstor.net.auth", auth_node=lambda *a: asked.append(a))
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\nmore\n"))
    assert ctl("-c", "c", "auth-node", "-P", "-b", "10.0.0.1").code == 0
    assert asked == [("c", b"secret", ["10.0.0.1:2510"])]


def test_auth_node_knows_no_mds(ctl: Ctl) -> None:
    result = ctl("-c", "c", "auth-node", "-P")
    assert result.code == 10
    assert "clusters/c/bs.list" in result.err


@pytest.mark.parametrize("typed", ["", "\n", "x" * 1025 + "\n"])
def test_bad_password_on_standard_input(typed: str, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    result = ctl("-c", "c", "auth-node", "-P", "-b", "10.0.0.1")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_new_password_is_asked_twice(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", "two"])
    monkeypatch.setattr(passwords.getpass, "getpass", lambda _prompt: next(typed))
    monkeypatch.setattr(passwords, "_has_terminal", lambda: True)
    result = ctl("-c", "c", "make-mds", "-I", "-a", "10.0.0.1", "-r", "/x", "-p")
    assert result.code == 2
    assert "differ" in result.err


def test_no_terminal_and_no_standard_input(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_has_terminal", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    result = ctl("-c", "c", "auth-node", "-b", "10.0.0.1")
    assert result.code == 2
    assert "give -P" in result.err


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_since() -> None:
    now_ms = 1_000_000_000
    assert event_cmd.parse_since("10m", now_ms) == now_ms - 600_000
    assert event_cmd.parse_since("2000000s", now_ms) == 0
    assert event_cmd.parse_since("1970-01-02", now_ms) == 86_400_000
    assert event_cmd.parse_since("1970-01-01T01:00:00+01:00", now_ms) == 0


def test_get_event(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetEvents] = [
        {"id": 1, "time_ms": 1795602000000, "sys": "MDS", "sev": "warn", "message": "The cluster is degraded"},
        {"id": 2, "time_ms": 1795602001000, "sys": "CS", "sev": "info", "message": "x"},
    ]
    result = ctl("-c", "c", "get-event", "--severity", "warn", "--limit", "5")
    assert result.out.splitlines() == [
        "TIME                  SYS  SEV   MESSAGE",
        "2026-11-25 10:20:00Z  MDS  warn  The cluster is degraded",
        "2026-11-25 10:20:01Z  CS   info  x",
    ]
    assert cluster.asked == [("c", messages.GetEvents(after=0, since_ms=0, limit=5, severity="warn"))]


def test_get_event_follows_over_an_outage(ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"id": 7, "time_ms": 0, "sys": "MDS", "sev": "info", "message": "one"}
    answers = iter(
        [[event], VstorError(ErrorCode.UNREACHABLE), [{**event, "id": 8, "message": "two"}], KeyboardInterrupt()]
    )

    def answer(_body: object) -> Any:
        value = next(answers)
        if isinstance(value, KeyboardInterrupt):
            raise value
        return value

    cluster.answers[messages.GetEvents] = answer
    monkeypatch.setattr(event_cmd.time, "sleep", lambda _s: None)
    result = ctl("-c", "c", "get-event", "-f", "--format", "json")
    assert [json.loads(line)["message"] for line in result.out.splitlines()] == ["one", "two"]
    assert [body.after for _, body in cluster.asked] == [0, 7, 7, 8]
    assert result.code == 130


def test_config(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetConfig] = {
        name: {"value": value, "default": "0", "unit": "ms", "text": "a time"}
        for name, value in (("b", "2"), ("a", "1"))
    }
    assert ctl("-c", "c", "get-config").out == "a=1\nb=2\n"
    assert json.loads(ctl("-c", "c", "get-config", "--format", "json").out) == {"a": "1", "b": "2"}
    assert ctl("-c", "c", "get-config", "-v").out.splitlines()[1].split() == ["a=1", "ms", "0", "a", "time"]
    assert ctl("-c", "c", "set-config", "a=b=c", "d=").out == "a=b=c\nd=\n"
    assert [b for _, b in cluster.asked[3:]] == [
        messages.SetConfig(name="a", value="b=c"),
        messages.SetConfig(name="d", value=""),
    ]


def test_file_info_reads_all_pages(ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vstor.ctl.file_cmd.PAGE_CHUNKS", 2)

    def chunk(index: int) -> dict[str, Any]:
        replicas = [
            {"cs_id": 1025, "host": "n1", "state": "active", "version": 2},
            {"cs_id": 1026, "host": "n2", "state": "offline", "version": 1},
        ]
        return {"index": index, "chunk_id": 900 + index, "version": 2, "state": "degraded", "replicas": replicas}

    def answer(body: messages.FileInfo) -> dict[str, Any]:
        chunks = [chunk(i) for i in range(body.first_index, 3)][: body.limit]
        return {"ino": 5, "size": 3 << 26, "replicas": "3:2", "chunks": chunks}

    cluster.answers[messages.FileInfo] = answer
    result = ctl("-c", "c", "file-info", "-p", "/f")
    assert result.out.splitlines() == [
        "Path: 'vstor://c/f'",
        "inode 5, size 201326592 (192MB), replicas 3:2, 3 chunks",
        "INDEX CHUNK VERSION STATE    REPLICAS",
        *(f"    {i}   90{i}       2 degraded 1025(n1) 1026(n2)[offline,v1]" for i in range(3)),
    ]
    assert [b.first_index for _, b in cluster.asked] == [0, 2]
    assert len(json.loads(ctl("-c", "c", "file-info", "-p", "/f", "--format", "json").out)["chunks"]) == 3


def test_list_chunks(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.ListChunks] = [
        {
            "chunk_id": 9,
            "version": 1,
            "state": "urgent",
            "path": "/a",
            "index": 4,
            "replicas": [{"cs_id": 1025, "host": "n1", "state": "active", "version": 1}],
        }
    ]
    result = ctl("-c", "c", "list-chunks", "--state", "urgent")
    assert result.out.splitlines()[1].split() == ["9", "1", "urgent", "/a", "4", "1025(n1)"]
    assert ctl("-c", "c", "list-chunks", "--state", "odd").code == 2


def test_leases(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetLeases] = [
        {
            "path": "/a",
            "ino": 4,
            "mode": "exclusive",
            "session_id": 71,
            "host": "n1",
            "client": "/pcs",
            "valid_ms": 14000,
        }
    ]
    assert ctl("-c", "c", "get-leases").out.splitlines()[1].split() == [
        "4",
        "exclusive",
        "71",
        "14s",
        "n1",
        "/pcs",
        "/a",
    ]
    assert ctl("get-leases").code == 2
    assert ctl("-c", "c", "revoke", "-R", "-p", "/a").out == "leases on vstor://c/a are revoked\n"
    assert cluster.asked[-1] == ("c", messages.RevokeLeases(path="/a", recursive=True))


def test_discover(ctl: Ctl) -> None:
    directory = paths.cluster_dir("c")
    directory.mkdir(parents=True)
    (directory / "bs.list").write_text("# first\n127.0.0.9:1\n")
    (directory / "node.crt").write_text("")
    value = json.loads(ctl("discover", "--source", "bs.list", "--format", "json").out)
    assert value == [
        {
            "cluster": "c",
            "cluster_id": "",
            "authenticated": True,
            "mds": [{"address": "127.0.0.9:1", "answers": False, "sources": ["bs.list"]}],
        }
    ]


def test_discover_says_why_a_source_failed_when_it_was_asked_for(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_domain(source: str, _config: object) -> dict[str, list[str]]:
        if source == "dns":
            raise VstorError(ErrorCode.UNREACHABLE, "no domain")
        return {"c": ["127.0.0.9:1"]} if known else {}

    monkeypatch.setattr(discovery, "known_clusters", no_domain)
    known = True
    assert "no domain" not in ctl("discover").err
    assert "no domain" in ctl("discover", "--source", "dns").err
    known = False
    assert "no domain" in ctl("discover").err
    known = True
    paths.etc_dir().mkdir()
    (paths.etc_dir() / "discovery.toml").write_text('sources = ["dns", "bs.list"]\n')
    assert "no domain" in ctl("discover").err


def test_report_holds_no_secret(ctl: Ctl, cluster: FakeCluster, tmp_path: Path) -> None:
    directory = paths.cluster_dir("c")
    directory.mkdir(parents=True)
    (directory / "bs.list").write_text("127.0.0.9:1\n")
    (directory / "node.key").write_text("k")
    (directory / "odd-name").write_text("-----BEGIN PRIVATE KEY-----")
    (directory / "link").symlink_to("/etc/passwd")
    paths.log_dir().mkdir()
    (paths.log_dir() / "a.log").write_text("x")
    cluster.answers[messages.GetStatus] = VstorError(ErrorCode.UNREACHABLE, "nobody there")
    cluster.answers[messages.GetEvents] = []
    cluster.answers[messages.GetConfig] = {}
    file = tmp_path / "r.tar.gz"
    assert ctl("-c", "c", "report", "-o", str(file)).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        status = next(m for m in tar.getmembers() if m.name.endswith("status.json"))
        content = tar.extractfile(status)
        assert content is not None
        assert json.load(content) == {"error": "nobody there"}
    assert names == {
        "system.json", "status.json", "events.json", "config.json", "services.json", "etc/bs.list", "log/a.log", "left_out.txt",
    }  # fmt: skip
    assert ctl("-c", "c", "report", "-o", str(file)).code != 0
