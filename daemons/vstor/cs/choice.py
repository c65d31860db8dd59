"""Which granules a copy needs, and from what it may start: pure.

DESIGN (ARCHITECTURE.md "Data path"): each granule of a replica remembers the chunk version at its last change (mod_version, on
disk) and the write sequence of that change (write_seq, in memory, counted since the server's start: its incarnation). A stale
replica that was complete at version b differs only in granules that were changed at b or later, there or here (a write that reached
only this replica was never acknowledged and is undone). Between two passes of one copy only granules with a
larger write_seq changed, if the source is the same and did not restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

Granule = tuple[int, int]  # mod_version, write_seq


class Action(Enum):
    SKIP = "skip"
    COMPARE = "compare"  # copy when the hashes differ
    COPY = "copy"


class Start(Enum):
    """What a copy finds here and does with it."""

    DONE = "done"  # it is here already: the order came twice
    REFUSE = "refuse"  # a newer replica is here
    FRESH = "fresh"  # nothing here: make an empty one
    EMPTY = "empty"  # remove what is here, make an empty one
    REUSE = "reuse"  # stale replica: mark it, then take over what changed
    CONTINUE = "continue"  # next pass of a copy that was begun


@dataclass(frozen=True)
class Local:
    """The replica here."""

    version: int  # 0: made empty by a copy that has not finished
    syncing: bool


@dataclass(frozen=True)
class LastPass:
    """What an earlier pass of this copy took over completely."""

    version: int  # of the order
    source_cs: int
    incarnation: int  # of the source
    write_seq: int  # everything up to it was seen


def choose_start(
    local: Local | None, version: int, base_version: int, since_seq: int, last: LastPass | None = None
) -> Start:
    """How OrderReplicate begins. `version` is the one wanted. A next pass names the version of the pass before as base_version."""
    if local is None:
        return Start.FRESH
    if not local.syncing:
        if local.version == version:
            return Start.DONE
        if local.version > version:
            return Start.REFUSE
    if local.syncing and (since_seq > 0 or follows(last, base_version, since_seq)):
        return Start.CONTINUE
    if base_version > 0 and local.version > 0:
        return Start.REUSE
    return Start.EMPTY


def usable_base(start: Start, local: Local | None, base_version: int) -> int:
    """The version up to which the replica here is complete; 0: nothing can be relied on.

    The MDS knows base_version from its own records; the replica itself may be older, never trust it beyond its own version.
    """
    if start is not Start.REUSE or local is None:
        return 0
    return min(base_version, local.version)


def choose_granules(
    source: Sequence[Granule],
    here: Sequence[Granule],
    start: Start,
    base_version: int,
    last: LastPass | None,
) -> list[Action]:
    """One action for each granule.

    Args:
        here: granules of the replica here, as many as the source has; only looked at for Start.REUSE.
        base_version: of usable_base.
        last: of usable_pass; None compares everything.
    """
    if start is Start.CONTINUE:
        if last is None:
            return [Action.COMPARE] * len(source)
        return [Action.COPY if seq > last.write_seq else Action.SKIP for _, seq in source]
    if start is Start.REUSE and base_version > 0:
        return [_reuse(theirs[0], mine[0], base_version) for theirs, mine in zip(source, here, strict=True)]
    return [Action.COPY] * len(source)


def _reuse(theirs: int, mine: int, base_version: int) -> Action:
    """From the mod_version of a granule at the source and here."""
    if theirs > base_version:
        return Action.COPY
    return Action.COMPARE if max(theirs, mine) >= base_version else Action.SKIP


def follows(last: LastPass | None, base_version: int, since_seq: int) -> bool:
    """The order is the next pass after `last`."""
    return last is not None and (last.version, last.write_seq) == (base_version, since_seq)


def usable_pass(
    last: LastPass | None, base_version: int, since_seq: int, source_cs: int, incarnation: int
) -> LastPass | None:
    """`last` if the order follows it and its sequence numbers mean anything at this source now."""
    if last is None or not follows(last, base_version, since_seq):
        return None
    return last if (last.source_cs, last.incarnation) == (source_cs, incarnation) else None
