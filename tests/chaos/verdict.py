"""What the records of the workers prove. Pure: lines in, problems out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.worker import content
from tests.helpers.linearizability import Operation, TooHard, check, register

Line = dict[str, Any]


@dataclass
class Verdict:
    """problems: promises broken. undecided: what was too much to decide."""

    problems: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    operations: int = 0
    files: int = 0
    errors: int = 0
    stall_s: float = 0.0  # the longest operation


def histories(records: dict[str, list[Line]]) -> dict[int, list[Operation]]:
    """register -> operations. A write without its end is open for ever; a read without one says nothing."""
    out: dict[int, list[Operation]] = {}
    for who, lines in records.items():
        open_writes: dict[int, tuple[int, float]] = {}
        for line in lines:
            if line.get("do") == "write":
                open_writes[line["value"]] = (line["register"], line["began"])
            elif line.get("done") in ("read", "write"):
                open_writes.pop(line["value"], None) if line["done"] == "write" else None
                action = (line["done"], line["value"])
                out.setdefault(line["register"], []).append(Operation(line["began"], line["t"], action, who))
        for value, (index, began) in open_writes.items():
            out.setdefault(index, []).append(Operation(began, math.inf, ("write", value), who))
    return out


def judge_registers(records: dict[str, list[Line]], verdict: Verdict) -> None:
    """R2: each register is linearizable, from 0 on."""
    for index, operations in sorted(histories(records).items()):
        verdict.operations += len(operations)
        try:
            found = check(_without_unseen(operations), 0, register)
        except TooHard:
            verdict.undecided.append(f"register {index}: {len(operations)} operations are too many to decide")
            continue
        if not found:
            verdict.problems.append(f"register {index} is not linearizable:\n{found.explain()}")


def _without_unseen(operations: list[Operation]) -> list[Operation]:
    """Open writes that nobody read may as well not have happened: they only make the search longer."""
    seen = {op.action[1] for op in operations if op.action[0] == "read"}
    return [op for op in operations if op.ret < math.inf or op.action[1] in seen]


def judge_files(records: dict[str, list[Line]], found: dict[str, str], seed: int, verdict: Verdict) -> None:
    """R1, R9: what was synced and not removed is there and whole; what was removed is gone. found: name -> digest of what is there."""
    for lines in records.values():
        state: dict[str, str] = {}
        size: dict[str, int] = {}
        for line in lines:
            name = line.get("name", "")
            if line.get("do") == "keep":
                state[name], size[name] = "perhaps", line["size"]
            elif line.get("done") == "keep":
                state[name] = "kept"
            elif line.get("do") == "remove":
                state[name] = "perhaps"
            elif line.get("done") == "remove":
                state[name] = "removed"
        verdict.files += len(state)
        for name, what in state.items():
            there = found.get(name)
            if what == "kept" and there is None:
                verdict.problems.append(f"{name} was synced and is gone")
            elif what == "removed" and there is not None:
                verdict.problems.append(f"{name} was removed and is there")
            if there is not None and there != hashlib.sha256(content(seed, name, size[name])).hexdigest():
                verdict.problems.append(f"{name} ({what}, {size[name]} bytes) has another content")


def count(lines: Iterable[Line], verdict: Verdict) -> None:
    """Errors that workers got, and how long the longest operation took."""
    for line in lines:
        verdict.errors += "failed" in line
        if "done" in line or "failed" in line:
            verdict.stall_s = max(verdict.stall_s, line["t"] - line["began"])
