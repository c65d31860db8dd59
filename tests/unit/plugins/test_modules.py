"""Modules of the collection against a fake vstorctl: what they run, that a second run changes nothing, that check mode only reads."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.unit.plugins.conftest import Host

PASSWORD = "not in any argument"
SERVICE = {"kind": "cs", "id": "1025", "path": "/d/1", "state": "stopped", "enabled": False, "extra": {}}
MDS = {"kind": "mds", "id": "1", "path": "/d/mds", "state": "running", "enabled": True, "extra": {}}

# module, arguments, what must be run: verb and arguments
CASES: list[tuple[str, dict[str, Any], list[tuple[str, list[str]]]]] = [
    (
        "vstor_cluster",
        {"address": "127.0.0.1:2510", "repository": "/d/mds", "password": PASSWORD},
        [("make-mds", ["-I", "-a", "127.0.0.1:2510", "-r", "/d/mds", "-P"])],
    ),
    (
        "vstor_cluster",
        {
            "address": "10.0.0.1",
            "repository": "/d/mds",
            "password": PASSWORD,
            "etcd": ["https://a:2379", "https://b:2379"],
        },
        [("make-mds", ["-I", "-a", "10.0.0.1", "-r", "/d/mds", "-P", "--etcd", "https://a:2379,https://b:2379"])],
    ),
    ("vstor_mds", {"address": "10.0.0.2", "repository": "/d/mds"}, [("make-mds", ["-a", "10.0.0.2", "-r", "/d/mds"])]),
    ("vstor_mds", {"state": "absent", "id": 2}, [("rm-mds", ["2"])]),
    (
        "vstor_auth",
        {"password": PASSWORD, "bootstrap": ["10.0.0.1", "10.0.0.2:99"]},
        [("auth-node", ["-P", "-b", "10.0.0.1", "-b", "10.0.0.2:99"])],
    ),
    ("vstor_cs", {"repository": "/d/1", "tier": 2}, [("make-cs", ["-r", "/d/1", "-t", "2"])]),
    (
        "vstor_cs",
        {"repository": "/d/1", "address": "10.0.0.1:77"},
        [("make-cs", ["-r", "/d/1", "-t", "0", "-a", "10.0.0.1:77"])],
    ),
    (
        "vstor_cs",
        {"repository": "/d/1", "journal": "/ssd/j", "journal_mb": 512},
        [("make-cs", ["-r", "/d/1", "-t", "0", "-j", "/ssd/j", "-s", "512"])],
    ),
    ("vstor_cs", {"state": "absent", "id": 1025}, [("rm-cs", ["1025"])]),
    ("vstor_mount", {"path": "/mnt/v/", "options": ["ro", "nodev"]}, [("mount", ["/mnt/v", "-o", "ro,nodev"])]),
    ("vstor_mount", {"path": "/mnt/v"}, [("mount", ["/mnt/v"])]),
    (
        "vstor_backup",
        {"state": "restored", "path": "/root/b", "address": "10.0.0.1:2510", "repository": "/d/new"},
        [("restore", ["/root/b", "-a", "10.0.0.1:2510", "-r", "/d/new"])],
    ),
    (
        "vstor_attr",
        {"attributes": {"replicas": "3:2", "tier": 0}},
        [("set-attr", ["-p", "/", "replicas=3:2", "tier=0"])],
    ),
    (
        "vstor_attr",
        {"path": "/a", "attributes": {"tier": 1}, "recursive": True},
        [("set-attr", ["-R", "-p", "/a", "tier=1"])],
    ),
]
NEEDS_AUTHENTICATION = {"vstor_mds", "vstor_cs", "vstor_mount", "vstor_attr", "vstor_config"}


@pytest.mark.parametrize(("module", "arguments", "expected"), CASES)
def test_check_then_change_then_nothing(
    host: Host, module: str, arguments: dict[str, Any], expected: list[tuple[str, list[str]]]
) -> None:
    if module in NEEDS_AUTHENTICATION:
        host.authenticate()
    planned = host.run(module, check=True, **arguments)
    assert planned["changed"] is True, planned
    assert host.calls == []

    done = host.run(module, **arguments)
    assert done["changed"] is True, done
    assert done["diff"]["before"] != done["diff"]["after"]
    assert host.calls == expected

    again = host.run(module, **arguments)
    assert again["changed"] is False, again
    assert host.calls == []


@pytest.mark.parametrize("module", ["vstor_cluster", "vstor_auth"])
def test_password_goes_over_standard_input_only(host: Host, module: str) -> None:
    arguments = {"address": "127.0.0.1", "repository": "/d/mds"} if module == "vstor_cluster" else {}
    host.run(module, password=PASSWORD, **arguments)
    call = next(c for c in host.state["calls"] if c["verb"] in ("make-mds", "auth-node"))
    assert call["stdin"] == PASSWORD + "\n"
    assert PASSWORD not in " ".join(call["argv"])


@pytest.mark.parametrize("module", ["vstor_cluster", "vstor_auth"])
def test_missing_password_is_a_refusal(host: Host, module: str) -> None:
    arguments = {"address": "127.0.0.1", "repository": "/d/mds"} if module == "vstor_cluster" else {}
    done = host.run(module, **arguments)
    assert done["failed"] is True
    assert "password is needed" in done["msg"]
    assert host.calls == []


def test_cluster_with_another_repository_is_refused(host: Host) -> None:
    host.update(services=[MDS])
    done = host.run("vstor_cluster", address="127.0.0.1", repository="/elsewhere", password=PASSWORD)
    assert done["failed"] is True
    assert "/d/mds" in done["msg"]
    assert host.calls == []


def test_failure_of_the_tool_is_one_line(host: Host) -> None:
    host.authenticate()
    host.update(fail={"make-cs": [5, "/d/1 holds foreign data (file x): choose an empty directory"]})
    done = host.run("vstor_cs", repository="/d/1")
    assert done["failed"] is True
    assert done["msg"] == "vstorctl make-cs: /d/1 holds foreign data (file x): choose an empty directory"
    assert done["rc"] == 5


def test_removing_from_a_silent_cluster_fails(host: Host) -> None:
    host.authenticate()
    host.update(fail={"status": [7, "no MDS answers"]})
    for module in ("vstor_cs", "vstor_mds"):
        done = host.run(module, state="absent", id=1)
        assert done["failed"] is True
        assert "nothing was removed" in done["msg"]
    assert host.calls == []


def test_dropped_cs_is_absent(host: Host) -> None:
    host.authenticate()
    assert host.run("vstor_cs", state="absent", id=1026)["changed"] is False


@pytest.mark.parametrize(
    ("state", "enabled", "before", "verbs"),
    [
        ("started", None, "stopped", ["start"]),
        ("started", True, "stopped", ["enable", "start"]),
        ("started", False, "running", []),
        ("started", None, "starting", []),
        ("started", None, "failed", ["start"]),
        ("stopped", None, "running", ["stop"]),
        ("stopped", None, "stopped", []),
        ("restarted", None, "running", ["restart"]),
    ],
)
def test_service(host: Host, state: str, enabled: bool | None, before: str, verbs: list[str]) -> None:
    host.update(services=[{**SERVICE, "state": before}, MDS])
    arguments = {"kind": "cs", "state": state, "enabled": enabled}
    planned = host.run("vstor_service", check=True, **arguments)
    assert planned["changed"] is bool(verbs)
    assert host.calls == []
    done = host.run("vstor_service", **arguments)
    assert done["changed"] is bool(verbs)
    assert host.calls == [("service", [verb, "cs"]) for verb in verbs]


def test_service_of_nothing_changes_nothing(host: Host) -> None:
    for state in ("started", "stopped", "restarted"):
        assert host.run("vstor_service", kind="all", state=state)["changed"] is False
    assert host.calls == []


def test_mount_states(host: Host) -> None:
    host.authenticate()
    assert host.run("vstor_mount", path="/mnt/v", state="unmounted")["changed"] is False
    host.run("vstor_mount", path="/mnt/v")
    assert host.run("vstor_mount", path="/mnt/v", options=["ro"], check=True)["changed"] is True
    assert host.run("vstor_mount", path="/mnt/v", state="unmounted")["changed"] is True
    assert host.run("vstor_mount", path="/mnt/v", state="unmounted")["changed"] is False
    assert host.run("vstor_mount", path="/mnt/v", state="absent")["changed"] is True
    assert host.run("vstor_mount", path="/mnt/v", state="absent")["changed"] is False
    assert [verb for verb, _ in host.calls] == ["mount", "umount", "umount"]


def test_config_sets_only_what_differs(host: Host) -> None:
    host.authenticate()
    host.update(config={"a": "1", "b": "2", "c": "true"})
    done = host.run("vstor_config", settings={"a": 1, "b": 3, "c": True})
    assert done["changed"] is True
    assert host.calls == [("set-config", ["b=3"])]
    assert host.run("vstor_config", settings={"a": 1, "b": 3, "c": True})["changed"] is False


def test_unknown_setting_is_refused(host: Host) -> None:
    host.authenticate()
    done = host.run("vstor_config", settings={"nonsense": 1})
    assert done["failed"] is True
    assert "no such setting: nonsense" in done["msg"]


def test_info(host: Host) -> None:
    done = host.run("vstor_info")
    assert (done["changed"], done["installed"], done["authenticated"], done["status"]) == (False, True, False, None)
    assert done["cluster_id"] == ""
    host.authenticate()
    done = host.run("vstor_info")
    assert done["status"]["cluster"]["state"] == "healthy"
    assert done["cluster_id"] == "0" * 32


ALL = {
    "vstor_attr": {"attributes": {"tier": 1}},
    "vstor_auth": {},
    "vstor_cluster": {"address": "127.0.0.1", "repository": "/d/mds"},
    "vstor_config": {"settings": {"a": 1}},
    "vstor_cs": {"repository": "/d/1"},
    "vstor_mds": {"address": "127.0.0.1", "repository": "/d/mds"},
    "vstor_mount": {"path": "/mnt/v"},
    "vstor_service": {"kind": "all"},
}


@pytest.mark.parametrize("module", sorted(ALL))
def test_without_the_tool(host: Host, module: str) -> None:
    """Check mode on a new host plans; a real run says what is missing."""
    arguments = {"executable": "/nowhere/vstorctl", **ALL[module]}
    planned = host.run(module, check=True, **arguments)
    assert not planned.get("failed"), planned
    assert planned["changed"] is (module != "vstor_service")
    done = host.run(module, **arguments)
    assert done["failed"] is True
    assert "is not installed on this host" in done["msg"]


def test_stopping_without_the_tool_is_nothing(host: Host) -> None:
    done = host.run("vstor_service", executable="/nowhere/vstorctl", kind="all", state="stopped")
    assert done["changed"] is False


def test_info_without_status_asks_nobody(host: Host) -> None:
    host.authenticate()
    done = host.run("vstor_info", query_status=False)
    assert done["status"] is None
    assert done["authenticated"] is True
    assert "status" not in [c["verb"] for c in host.state["calls"]]


def test_info_without_the_tool(host: Host) -> None:
    done = host.run("vstor_info", executable="/nowhere/vstorctl")
    assert (done["installed"], done["status"], done["services"]) == (False, None, [])


def test_removing_a_chunk_server_that_does_not_get_empty_fails_with_the_mend(host: Host) -> None:
    host.authenticate()
    host.update(releasing={"state": "releasing", "replicas_left": 5})
    done = host.run("vstor_cs", state="absent", id=1025, stall_timeout=0)
    assert done["failed"] is True
    assert "none of the 5 replicas was moved" in done["msg"]
    assert "--cancel 1025" in done["msg"]
    assert host.run("vstor_cs", state="absent", id=1025, wait=False)["changed"] is True


def test_several_chunk_servers_are_removed_in_one_act(host: Host) -> None:
    host.authenticate()
    rows = [{"id": n, "state": "active", "admin": "normal", "replicas": 1} for n in (1025, 1026, 1027)]
    after = [{**row, "admin": "dropped" if row["id"] != 1027 else "normal"} for row in rows]
    asked = [{"state": "releasing", "replicas_left": 1}, {"state": "releasing", "replicas_left": 1}]
    host.update(releasing=asked, statuses=[{"cs": rows}, {"cs": after}])
    done = host.run("vstor_cs", state="absent", id=[1026, 1025, 9])
    assert done["changed"] is True
    assert host.calls == [("rm-cs", ["1025", "1026"])]


@pytest.mark.parametrize(("ends", "failed"), [("normal", True), ("dropped", False)])
def test_waiting_for_a_removal_only_looks(host: Host, ends: str, failed: bool) -> None:
    """A release that somebody cancels is not asked for again."""
    host.authenticate()
    seen = [{"cs": [{"id": 1025, "state": s, "admin": s, "replicas": 5}]} for s in ("normal", "releasing", ends)]
    host.update(releasing={"state": "releasing", "replicas_left": 5}, statuses=seen)
    done = host.run("vstor_cs", state="absent", id=1025)
    assert done.get("failed", False) is failed
    assert host.calls == [("rm-cs", ["1025"])]
    if failed:
        assert "cancelled by somebody: it is normal and keeps its 5 replicas" in done["msg"]
        assert done["rc"] == 8


def test_check_mode_tells_what_a_removal_would_move(host: Host) -> None:
    host.authenticate()
    host.update(releasing={"replicas_left": 5, "would_lose": 0})
    done = host.run("vstor_cs", check=True, state="absent", id=1025)
    assert done["plan"] == [{"replicas_left": 5, "would_lose": 0}]


@pytest.mark.parametrize(("code", "failed"), [(4, True), (7, False), (0, False)])
def test_a_wrong_password_is_told_before_it_is_needed(host: Host, code: int, failed: bool) -> None:
    host.authenticate()
    if code:
        host.update(fail={"auth-node": [code, "Authentication failure due to wrong credentials"]})
    done = host.run("vstor_auth", password=PASSWORD, verify=True)
    assert done.get("failed", False) is failed
    assert not done.get("changed")
    if failed:
        assert "vstor_cluster_password is not the password" in done["msg"]


def test_clocks_are_compared(host: Host) -> None:
    assert host.run("vstor_info", controller_time_s=time.time() - 100)["clock_ahead_s"] > 99
    assert "clock_ahead_s" not in host.run("vstor_info")


def test_report(host: Host) -> None:
    assert host.run("vstor_report", check=True, path="/root/r.tar.gz")["changed"] is True
    assert host.calls == []
    assert host.run("vstor_report", path="/root/r.tar.gz")["path"] == "/root/r.tar.gz"
    assert host.calls == [("report", ["-o", "/root/r.tar.gz"])]
    host.update(fail={"report": [6, "cannot write /root/r.tar.gz"]})
    assert "cannot write" in host.run("vstor_report", path="/root/r.tar.gz")["msg"]


def test_backup(host: Host) -> None:
    host.authenticate()
    assert host.run("vstor_backup", check=True, path="/root/b")["changed"] is True
    assert host.calls == []
    assert host.run("vstor_backup", path="/root/b")["changed"] is True
    assert host.calls == [("backup", ["/root/b"])]
    host.update(fail={"restore": [9, "MDS#1 answers: the cluster is there"]})
    done = host.run("vstor_backup", state="restored", path="/root/b", address="10.0.0.1", repository="/d/new")
    assert "MDS#1 answers" in done["msg"]
