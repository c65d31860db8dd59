"""The metadata store seam: what the MDS needs of etcd, and what the in-memory store of the tests does the same way.

DESIGN: the store holds opaque records under keys. One leader at a time writes, in a chain of transactions: each is guarded by the
leadership (create revision of the leader key = epoch) and by the version of the sequence key, whose value is the id of the
batch. So a transaction of a former leader is refused, none is lost, swapped or done twice, and a follower sees a gap. Followers get
whole transactions in order. Keys here are without the store's prefix; the leader and sequence keys never show up among mutations.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

Mutation = tuple[bytes, bytes | None]  # key -> record, None deletes

MUTATIONS_PER_COMMIT_MAX = 2000  # --max-txn-ops of etcd is above it
COMMIT_BYTES_MAX = 6 << 20  # --max-request-bytes of etcd is above it
BATCH_ID_BYTES = 16


class StoreUnavailable(VstorError):
    """The store does not answer. After a commit the outcome is unknown: whoever led must throw its memory away."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.META_UNAVAILABLE, message)


class Fenced(VstorError):
    """Somebody else leads, or the chain went on without us. Nothing of the batch was done."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NOT_LEADER, message)


class HistoryLost(VstorError):
    """The follower must load again: the history was compacted or a transaction is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.META_UNAVAILABLE, message)


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads. epoch: create revision of the leader key."""

    epoch: int
    value: bytes  # as given to campaign
    lease: int = field(default=0, compare=False)  # what `depose` needs


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one revision. seq: number of transactions in the chain, 0 for a store that was never written."""

    revision: int
    seq: int
    leader: Leader | None
    items: list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Change:
    """One revision. seq: 0 when the transaction was not one of the chain (an election)."""

    revision: int
    seq: int
    mutations: list[Mutation]
    leader_changed: bool = False
    leader: Leader | None = None  # only with leader_changed; None: nobody leads now


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """For metrics, the quota guard and compaction."""

    revision: int
    size_bytes: int
    used_bytes: int
    members: int


class Leadership(Protocol):
    """A won election, until lost or resigned."""

    epoch: int

    def serving_until_ms(self) -> int:
        """CLOCK_BOOTTIME ms up to which nobody else can lead; reads from memory are safe before it only."""
        ...

    def lost(self) -> bool:
        """The lease has ended for good, as far as is known here."""
        ...

    def beat(self, ahead_ms: int = 0) -> None:
        """The event loop is alive; without it (half a ttl) the leadership is not prolonged. ahead_ms: a long piece of work begins, allow so much."""
        ...

    async def commit(self, seq: int, batch_id: bytes, mutations: Iterable[Mutation]) -> int:
        """Do one transaction, the chain being at `seq`; its revision.

        Args: mutations: each key once, at most MUTATIONS_PER_COMMIT_MAX and COMMIT_BYTES_MAX. batch_id: random, BATCH_ID_BYTES.
        Raises: Fenced, StoreUnavailable (outcome unknown).
        Durability: on stable storage of a majority on return.
        """
        ...

    async def resign(self) -> None:
        """Let the next one lead at once. Never raises; the lease ends by itself otherwise."""
        ...


class Store(Protocol):
    """See the module."""

    async def load(self) -> Snapshot:
        """Everything at the newest revision. Raises StoreUnavailable."""
        ...

    def follow(self, revision: int, seq: int) -> AsyncIterator[Change]:
        """Changes after `revision`, where the chain was at `seq`, for ever. Raises HistoryLost, StoreUnavailable."""
        ...

    async def leader(self) -> Leader | None:
        """Who leads now (linearizable). Raises StoreUnavailable."""
        ...

    async def campaign(self, value: bytes, ttl_s: int) -> Leadership | None:
        """Try to lead; None when somebody else does. A leader must have followed up to epoch - 1 before it serves.

        Raises: StoreUnavailable."""
        ...

    async def depose(self, leader: Leader) -> None:
        """End the leadership of a leader whose process is known to have ended. Nothing happens when it has ended already."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`. Raises StoreUnavailable."""
        ...

    async def status(self) -> StoreStatus:
        """Raises StoreUnavailable."""
        ...

    async def close(self) -> None:
        """End connections; followers end."""
        ...


def check_batch(batch_id: bytes, mutations: list[Mutation]) -> None:
    """Bounds that both stores keep: a batch beyond them is a defect of the caller."""
    assert len(batch_id) == BATCH_ID_BYTES
    assert len(mutations) <= MUTATIONS_PER_COMMIT_MAX
    assert len({key for key, _ in mutations}) == len(mutations), "a key twice in one transaction"


class ChainChecker:
    """Sees that a follower misses no transaction of the chain."""

    __slots__ = ("_seq",)

    def __init__(self, seq: int) -> None:
        self._seq = seq

    def check(self, change: Change) -> Change:
        """Raises HistoryLost on a gap."""
        if change.seq:
            if change.seq != self._seq + 1:
                raise HistoryLost(f"transaction {self._seq + 1} is missing, got {change.seq}")
            self._seq = change.seq
        elif change.mutations:
            raise HistoryLost(f"records changed outside of the chain at revision {change.revision}")
        return change
