"""Changes too large for one transaction of etcd, made atomic all the same (R9).

DESIGN: the parts are written aside first, as opaque records of the shell; then a mark is set: from that transaction on the change is done,
because each leader carries out what is marked before it serves; then each part is applied in a transaction that also removes it from aside,
and last the mark goes. A leader that dies before the mark leaves parts that its successor removes; nothing of the change was visible. All of it is in
the chain of guarded transactions, so a former leader cannot add to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.meta.store import (
    BATCH_ID_BYTES,
    COMMIT_BYTES_MAX,
    MUTATIONS_PER_COMMIT_MAX,
    Leadership,
    Mutation,
)

KIND = b"lw"  # of the shell: the model ignores it
MARK = KIND + b"\xff"
OVERHEAD_BYTES = 32  # of a mutation, about
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode

NewBatchId = Callable[[int], bytes]


def key_of(number: int) -> bytes:
    """Where part `number` waits."""
    return KIND + b"\x00" + number.to_bytes(4, "big")


def split(mutations: dict[bytes, bytes | None]) -> list[list[Mutation]]:
    """Parts that fit into a transaction each, with one mutation to spare; a single part for nearly everything."""
    parts: list[list[Mutation]] = [[]]
    size = 0
    for key, record in mutations.items():
        more = len(key) + len(record or b"") + OVERHEAD_BYTES
        if parts[-1] and (len(parts[-1]) >= MUTATIONS_PER_COMMIT_MAX - 1 or size + more > COMMIT_BYTES_MAX):
            parts.append([])
            size = 0
        parts[-1].append((key, record))
        size += more
    return parts


class Chain:
    """The transactions of one leadership, one after the other: who commits knows the number and the revision."""

    def __init__(self, leadership: Leadership, seq: int, new_id: NewBatchId) -> None:
        self.seq = seq
        self.revision = leadership.epoch
        self._leadership = leadership
        self._new_id = new_id

    async def commit(self, mutations: Iterable[Mutation]) -> None:
        """One transaction. Raises as Leadership.commit; durable on return."""
        self.revision = await self._leadership.commit(self.seq, self._new_id(BATCH_ID_BYTES), mutations)
        self.seq += 1

    async def commit_all(self, mutations: dict[bytes, bytes | None]) -> None:
        """All or nothing, however many. Raises as Leadership.commit: then it may be done or not, never half."""
        parts = split(mutations)
        if len(parts) == 1:
            await self.commit(parts[0])
            return
        for number, part in enumerate(parts):
            await self.commit([(key_of(number), _encode(part))])
        await self.commit([(MARK, str(len(parts)).encode())])
        await self._carry_out(dict(enumerate(parts)))

    async def _carry_out(self, parts: dict[int, list[Mutation]]) -> None:
        for number, part in sorted(parts.items()):
            await self.commit([*part, (key_of(number), None)])
        await self.commit([(MARK, None)])

    async def finish(self, staged: Staged) -> list[Mutation]:
        """What a new leader does about the change its predecessor was at: carry it out if it was marked, else remove it.

        Returns: mutations for memory. Raises as Leadership.commit, and DAMAGED."""
        parts = staged.parts()
        if staged.marked:
            await self._carry_out(parts)
            return [mutation for _, part in sorted(parts.items()) for mutation in part]
        for number in sorted(parts):
            await self.commit([(key_of(number), None)])
        return []


class Staged:
    """What waits aside in the store, kept up from the same changes as the State."""

    def __init__(self) -> None:
        self.marked = False
        self._parts: dict[int, bytes] = {}

    def apply(self, mutations: Iterable[Mutation]) -> None:
        """Take over what concerns it."""
        for key, record in mutations:
            if key == MARK:
                self.marked = record is not None
            elif key.startswith(KIND):
                number = int.from_bytes(key[-4:], "big")
                if record is None:
                    self._parts.pop(number, None)
                else:
                    self._parts[number] = record

    def __bool__(self) -> bool:
        return self.marked or bool(self._parts)

    def parts(self) -> dict[int, list[Mutation]]:
        """By number. Raises DAMAGED."""
        try:
            return {number: _decode(data) for number, data in self._parts.items()}
        except (msgspec.DecodeError, msgspec.ValidationError) as exc:
            raise VstorError(ErrorCode.DAMAGED, f"a change under way in etcd is damaged: {exc}") from exc
