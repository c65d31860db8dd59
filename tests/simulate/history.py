"""What clients saw, and whether it can be: registers and names of a history, checked for linearizability with the losses that are allowed.

Allowed is: what was acknowledged but not flushed may go when its writer's session ends, when no disk holds it any more after a power cut, or when the
client was told so, which its next fsync says with EIO (every server of the chunk started again: the MDS may then keep any of them). It may
not go otherwise, and what an fsync covered may not go at all (R1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.linearizability import Operation, check, register

Key = tuple[int, int]  # file, granule
UNKNOWN = -1  # inode number of a file whose creator died before it was told


@dataclass(eq=False, slots=True)
class Op:
    """One operation of a client. ret: None while it runs, or for ever when the client died."""

    who: str
    session: Any
    kind: str
    key: Any
    value: Any
    call: float
    ret: float | None = None
    error: str = ""

    def __str__(self) -> str:
        end = "..." if self.ret is None else f"{self.ret:.4f}"
        return f"{self.call:9.4f} {end:>9} {self.who:<4} {self.kind} {self.key} = {self.value}{' ' + self.error if self.error else ''}"


@dataclass(eq=False, slots=True)
class Loss:
    """From `call` on the register may have fallen back to one of `values`; until the return of the next fsync that covers it."""

    key: Key
    call: float
    values: tuple[int, ...]
    why: str


@dataclass
class History:
    """All operations, in order of call."""

    ops: list[Op] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    def begin(self, who: str, session: Any, kind: str, key: Any, value: Any, now: float) -> Op:
        op = Op(who, session, kind, key, value, now)
        self.ops.append(op)
        return op

    # --- flushed and not

    def _is_safe(self, write: Op, now: float) -> bool:
        """An fsync of the same client that began after the write had returned covers it."""
        return write.ret is not None and not write.error and any(
            o.kind == "sync" and o.key == write.key[0] and o.session is write.session and not o.error
            and o.call >= write.ret and o.ret is not None and o.ret <= now
            for o in self.ops
        )  # fmt: skip

    def unsafe(self, key: Key, now: float) -> list[Op]:
        """Writes of the register that no fsync covers yet, acknowledged or not."""
        writes = [o for o in self.ops if o.kind == "write" and o.key == key and o.call <= now]
        return [o for o in writes if not self._is_safe(o, now)]

    def fallback(self, key: Key, now: float) -> tuple[int, ...]:
        """What the register may hold when unflushed writes are lost: any value that could be the last before them, or one of them."""
        unsafe = {id(o) for o in self.unsafe(key, now)}
        writes = [o for o in self.ops if o.kind == "write" and o.key == key and o.call <= now]
        safe = [o for o in writes if id(o) not in unsafe]
        latest = max((o.call for o in safe), default=-1.0)
        last = [o.value for o in safe if o.ret is not None and o.ret >= latest]
        return tuple(dict.fromkeys([*(last or [0]), *(o.value for o in writes if id(o) in unsafe)]))

    def lose(self, key: Key, now: float, why: str) -> None:
        if self.unsafe(key, now):
            self.losses.append(Loss(key, now, self.fallback(key, now), why))

    def told(self, session: Any, file: int, now: float) -> None:
        """The client was told that writes are lost: each that no fsync covers may have gone since it returned. Its own reads may have seen that."""
        for write in [o for o in self.ops if o.kind == "write" and o.key[0] == file and o.session is session]:
            if write.ret is not None and write.ret <= now and not self._is_safe(write, now):
                values = self.fallback(write.key, write.ret)
                self.losses.append(Loss(write.key, write.ret, values, f"{write.who} was told at {now:.4f}"))

    # --- verdicts

    def check_registers(self) -> str:
        """ "" or why not."""
        by_key: dict[Key, list[Operation]] = defaultdict(list)
        for op in self.ops:
            if op.kind == "write" or (op.kind == "read" and op.ret is not None and not op.error):
                ret = math.inf if op.ret is None or op.error else op.ret
                by_key[op.key].append(Operation(op.call, ret, (op.kind, op.value), op.who))
        for loss in self.losses:
            by_key[loss.key].append(Operation(loss.call, self._loss_end(loss), ("lose", loss.values), loss.why))
        for key in sorted(by_key):
            verdict = check(by_key[key], 0, register)
            if not verdict:
                return f"file {key[0]} granule {key[1]} is not linearizable\n{verdict.explain()}"
        return ""

    def _loss_end(self, loss: Loss) -> float:
        """What was to be lost is lost when a client has written the file and synced it since."""
        file = loss.key[0]
        syncs = [
            o
            for o in self.ops
            if o.kind == "sync" and o.key == file and o.call >= loss.call and o.ret is not None and not o.error
        ]
        return min(
            (
                s.ret for s in syncs if s.ret is not None
                and any(w.kind == "write" and w.key[0] == file and w.session is s.session and loss.call <= w.call < s.call for w in self.ops)
            ),
            default=math.inf,
        )  # fmt: skip

    def check_names(self) -> str:
        """The directory as one object, so that a rename is seen whole or not at all (R9)."""
        operations = [
            Operation(
                o.call,
                math.inf if o.ret is None else o.ret,
                (o.kind, o.key, None if o.ret is None else o.value),
                o.who,
            )
            for o in self.ops
            if o.kind in ("create", "rename", "unlink", "lookup") and not (o.kind == "lookup" and o.ret is None)
        ]
        verdict = check(operations, frozenset(), names)
        return "" if verdict else f"the directory is not linearizable\n{verdict.explain()}"


def names(state: Hashable, action: tuple[str, Any, Any]) -> Iterable[Hashable]:
    """Step function of a directory: state is the set of (name, ino). The result None: not known, it may have been done or not."""
    assert isinstance(state, frozenset)
    kind, key, result = action
    entries: dict[bytes, int] = dict(state)
    if kind == "lookup":
        if result and entries.get(key) == UNKNOWN:
            return (frozenset((entries | {key: result}).items()),)
        return (state,) if entries.get(key, 0) == result else ()
    after = dict(entries)
    possible = True
    if kind == "create":
        possible = key not in entries
        after[key] = result or UNKNOWN
    elif kind == "unlink":
        possible = after.pop(key, None) is not None
    else:
        possible = key[0] in entries
        if possible and key[0] != key[1]:
            after[key[1]] = after.pop(key[0])
    done = frozenset(after.items())
    if result is None:
        return {state, done} if possible else (state,)
    if result == 0:  # refused: exists already, or is not there
        return () if possible else (state,)
    return (done,) if possible else ()
