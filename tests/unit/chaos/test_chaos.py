"""The campaign's pure parts: schedules from seeds, and a judge that finds what is broken."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.chaos.schedule import AT_ONCE, KINDS, plan
from tests.chaos.verdict import Verdict, count, judge_files, judge_registers
from tests.chaos.worker import content

NAMES = ["cs-1025", "cs-1026", "cs-1027", "cs-1028", "mds-1", "etcd-1", "mount-a", "mount-b"]


def test_a_seed_is_a_schedule_within_what_the_cluster_promises_to_survive() -> None:
    kinds = set()
    for seed in range(50):
        faults = plan(seed, 60, NAMES)
        assert faults == plan(seed, 60, NAMES)
        assert faults == sorted(faults, key=lambda f: f.at_s)
        assert all(f.until_s <= 60 for f in faults)
        kinds |= {f.kind for f in faults}
        assert len({f.target for f in faults if f.kind == "corrupt"}) <= 1, "damage stays on one server"
        for fault in faults:
            during = [f for f in faults if f.at_s <= fault.at_s < f.until_s]
            assert len(during) <= AT_ONCE
            assert sum(f.target.startswith("cs-") for f in during) <= 1
    assert kinds == set(KINDS)
    assert plan(1, 60, NAMES) != plan(2, 60, NAMES)


def op(kind: str, value: int, began: float, t: float) -> list[dict[str, Any]]:
    lines = [{"do": "write", "register": 0, "value": value, "began": began, "t": began}] if kind == "write" else []
    return [*lines, {"done": kind, "register": 0, "value": value, "began": began, "t": t}]


def test_a_stale_read_is_found() -> None:
    verdict = Verdict()
    judge_registers({"a": op("write", 1, 0, 1), "b": op("read", 1, 2, 3)}, verdict)
    assert (verdict.problems, verdict.operations) == ([], 2)
    judge_registers({"a": op("write", 1, 0, 1), "b": op("read", 0, 2, 3)}, verdict)
    assert "register 0 is not linearizable" in verdict.problems[0]


def test_a_write_that_failed_may_have_happened_and_may_not() -> None:
    failed = [
        {"do": "write", "register": 0, "value": 7, "began": 0.0, "t": 0.0},
        {"failed": "write", "register": 0, "errno": 5, "began": 0.0, "t": 9.0},
    ]
    for read in (0, 7):
        verdict = Verdict()
        judge_registers({"a": failed, "b": op("read", read, 10, 11)}, verdict)
        assert verdict.problems == []
    judge_registers({"a": failed, "b": op("read", 7, 10, 11) + op("read", 0, 12, 13)}, verdict)
    assert verdict.problems, "a value that went back"
    count(failed, verdict)
    assert (verdict.errors, verdict.stall_s) == (1, 9.0)


def test_files_are_judged() -> None:
    def line(what: str, verb: str, name: str) -> dict[str, Any]:
        return {what: verb, "name": name, "size": 10, "t": 1.0, "began": 0.0}

    lines = [line("do", "keep", n) for n in "abcd"] + [line("done", "keep", n) for n in "abc"]
    lines += [line("do", "remove", "c"), line("done", "remove", "c")]
    good = {n: hashlib.sha256(content(3, n, 10)).hexdigest() for n in "abcd"}

    def problems(found: dict[str, str]) -> list[str]:
        verdict = Verdict()
        judge_files({"k": lines}, found, 3, verdict)
        return verdict.problems

    assert problems({"a": good["a"], "b": good["b"]}) == []
    assert problems({"a": good["a"], "b": good["b"], "d": good["d"]}) == []
    assert problems({"a": good["a"]}) == ["b was synced and is gone"]
    assert problems({**good}) == ["c was removed and is there"]
    assert problems({"a": good["b"], "b": good["b"]}) == ["a (kept, 10 bytes) has another content"]
