"""The gate between hosts: every reason to wait has a case, and what is no reason has one too."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plugins.conftest import Host

FILE = (
    Path(__file__).resolve().parents[3] / "collections/ansible_collections/vstor/storage/plugins/module_utils/health.py"
)
spec = importlib.util.spec_from_file_location("health", FILE)
assert spec is not None
assert spec.loader is not None
health = importlib.util.module_from_spec(spec)
spec.loader.exec_module(health)

GIB = 1 << 30


def cs(number: int, host: str, **changes: Any) -> dict[str, Any]:
    """A chunk server that is well."""
    return {"id": number, "host": host, "state": "active", "admin": "normal", "space_bytes": 100 * GIB, "free_bytes": 80 * GIB, "replicas": 10,
            "inventory_complete": True, **changes}  # fmt: skip


def mds(number: int, **changes: Any) -> dict[str, Any]:
    """A metadata server that is well; the first leads."""
    return {"id": number, "state": "avail", "leader": number == 1, "applied_revision": 5000, **changes}


def good() -> dict[str, Any]:
    """A cluster that is well, scrubbing and balancing."""
    return {
        "cluster": {"name": "vstor", "id": "0" * 32, "state": "healthy", "grace": False},
        "mds": [mds(1), mds(2, applied_revision=4990), mds(3)],
        "cs": [cs(1025, "a"), cs(1026, "b"), cs(1027, "c"), cs(1028, "c", state="dropped", admin="dropped", free_bytes=0)],
        "chunks": {"healthy": 100, "degraded": 0, "urgent": 0, "blocked": 0, "pending": 0, "offline": 0, "standby": 0, "replicating": 3,
                   "overcommitted": 2, "deleting": 5, "void": 1, "stale": 1},
        "space": {},
    }  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good cluster with one value changed: "chunks.urgent", "cs.0.state"."""
    status = copy.deepcopy(good())
    *way, last = path.split(".")
    at: Any = status
    for word in way:
        at = at[int(word)] if word.isdecimal() else at[word]
    at[last] = value
    return status


def test_well() -> None:
    assert health.reasons(good()) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("cluster.state", "failure", "state is failure"),
        ("cluster.state", "unknown", "state is unknown"),
        ("cluster.grace", True, "waits for the clients"),
        ("mds.1.state", "unavail", "MDS#2 is unavail"),
        ("mds.0.leader", False, "no MDS leads"),
        ("mds.1.leader", True, "several MDSs"),
        ("mds.2.applied_revision", 3000, "MDS#3 has not caught up (2000 revisions behind)"),
        ("mds.2.in_step", False, "MDS#3 has not caught up"),
        ("mds.1.etcd", {"alive": True, "in_step": False}, "the etcd member of MDS#2 is behind"),
        ("mds.1.etcd", {"alive": False, "in_step": False}, "the etcd member of MDS#2 does not answer"),
        *(("cs.1.state", state, f"CS#1026 on b is {state}") for state in health.BAD_CS),
        ("cs.1.inventory_complete", False, "CS#1026 on b has not told"),
        *((f"chunks.{name}", 7, f"7 chunks are {name}") for name in (*health.BAD_CHUNKS, *health.THIN_CHUNKS)),
        ("cs.0.space_bytes", 400 * GIB, "without a 0 %"),
    ],
)
def test_each_reason(path: str, value: Any, words: str) -> None:
    found = health.reasons(changed(path, value))
    assert any(words in line for line in found), found


def test_nobody_answers() -> None:
    assert health.reasons(None) == ["no MDS answers"]


def test_missing_mds() -> None:
    assert health.reasons(good(), mds_expected=5) == ["3 of 5 MDSs are known"]


def test_what_maintenance_excuses() -> None:
    status = changed("cs.1.state", "inactive")
    status["cs"][1]["admin"] = "maintenance"
    status["chunks"]["degraded"] = 40
    status["chunks"]["standby"] = 4
    assert health.reasons(status, maintenance=[1026]) == []
    status["chunks"]["urgent"] = 1
    assert health.reasons(status, maintenance=[1026]) == ["1 chunks are urgent"]
    assert any("CS#1026" in line for line in health.reasons(status, maintenance=[1027]))


def test_one_host_needs_no_room_elsewhere() -> None:
    status = good()
    for item in status["cs"]:
        item["host"] = "a"
        item["free_bytes"] = 0
    assert health.reasons(status) == []


def test_module_waits_no_longer_than_it_may_and_says_why(host: Host) -> None:
    host.authenticate()
    host.update(status=changed("chunks.urgent", 2))
    done = host.run("vstor_health", timeout=0)
    assert done["failed"] is True
    assert "2 chunks are urgent" in done["msg"]
    assert "after 0 s" in done["msg"]
    done = host.run("vstor_health", timeout=60, stall_timeout=0)
    assert "without progress" in done["msg"]
    done = host.run("vstor_health", check=True, timeout=600)
    assert (done.get("failed", False), done["reasons"]) == (False, ["2 chunks are urgent"])
    host.update(status=good())
    assert host.run("vstor_health", timeout=0)["reasons"] == []


def test_maintenance(host: Host) -> None:
    host.authenticate()
    services = [
        {"kind": "cs", "id": str(n), "path": f"/d/{n}", "state": "running", "enabled": True, "extra": {}}
        for n in (1025, 1026)
    ]
    host.update(services=services, status=changed("cs.1.admin", "releasing"))
    assert host.run("vstor_maintenance", check=True)["changed"] is True
    assert host.calls == []
    assert host.run("vstor_maintenance")["ids"] == [1025, 1026]
    # One that is being released stays so.
    assert host.calls == [("maintenance", ["on", "1025"])]
    assert host.run("vstor_maintenance")["changed"] is False
    assert host.run("vstor_maintenance", state="absent", ids=[1025])["changed"] is True
    assert host.calls == [("maintenance", ["off", "1025"])]
    host.update(fail={"status": [7, "no MDS answers"]})
    assert "no chunk server was announced" in host.run("vstor_maintenance")["msg"]


def test_forgetting_one_service(host: Host) -> None:
    host.authenticate()
    services = [
        {"kind": "cs", "id": str(n), "name": f"cs-vstor-{n}", "path": f"/d/{n}", "state": "running", "enabled": True}
        for n in (1025, 1026)
    ]
    host.update(services=services)
    assert host.run("vstor_service", check=True, kind="cs", id="1026", state="absent")["changed"] is True
    assert host.run("vstor_service", kind="cs", id="1026", state="absent")["changed"] is True
    assert host.calls == [("service", ["forget", "cs-vstor-1026"])]
    assert host.run("vstor_service", kind="cs", id="1026", state="absent")["changed"] is False
    assert [item["id"] for item in host.state["services"]] == ["1025"]
