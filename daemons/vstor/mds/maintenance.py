"""What the leader does for the store: history is compacted, the quota watched, learners promoted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vstor.errors import VstorError
from vstor.mds.cluster_ops import ClusterOps
from vstor.mds.term import Term
from vstor.meta.store import Store, StoreStatus

log = logging.getLogger(__name__)

PERIOD_S = 1.0
FULL_ROUNDS = 3  # each so-manieth round looks at everything, the others at members that wait for their vote
MOVE_ROUNDS = 10  # etcd's leadership is moved at most so often
QUOTA_BYTES = 8 << 30  # as etcd_member.py tells etcd
FULL_PERCENT = 85  # growing requests are refused above it, until it falls below RELAX_PERCENT
RELAX_PERCENT = 80
COMPACT_REVISIONS = 20_000  # at least so many since the last time; a compaction walks all live keys too
COMPACT_GROWTH_BYTES = 1 << 30
KEEP_REVISIONS = 1000  # for standbys that reconnect


class Maintenance:
    """For one term. standby_revisions: what the reporting standbys have applied."""

    def __init__(
        self, store: Store, term: Term, ops: ClusterOps, standby_revisions: Callable[[], list[int]], own_peer_url: str
    ) -> None:
        self._store = store
        self._term = term
        self._ops = ops
        self._standby_revisions = standby_revisions
        self._own_peer_url = own_peer_url
        self._compacted_revision = term.revision
        self._compacted_bytes = 0
        self.status: StoreStatus | None = None

    async def run(self) -> None:
        """For ever."""
        rounds = 0
        while True:
            try:
                if rounds % FULL_ROUNDS == 0:
                    await self.run_once()
                elif self._ops.learners:
                    await self._ops.promote_learners()
                if rounds % MOVE_ROUNDS == MOVE_ROUNDS - 1:
                    await self._ops.quorum.move_away(self._own_peer_url)
            except VstorError as exc:
                log.warning("maintenance of the metadata store failed reason=%s", exc.message)
            rounds += 1
            await asyncio.sleep(PERIOD_S)

    async def run_once(self) -> None:
        """One round. Raises StoreUnavailable."""
        self.status = await self._store.status()
        self._term.store_status = self.status
        self._guard_quota(self.status)
        await self._compact(self.status)
        await self._ops.promote_learners()
        await self._ops.quorum.look()

    def _guard_quota(self, status: StoreStatus) -> None:
        percent = 100 * status.used_bytes / QUOTA_BYTES
        if not self._term.metadata_full and percent >= FULL_PERCENT:
            self._term.metadata_full = True
            self._term.report_event("err", f"The metadata store is {percent:.0f} % full: new files are refused")
        elif self._term.metadata_full and percent < RELAX_PERCENT:
            self._term.metadata_full = False
            self._term.report_event("info", "The metadata store has room again")

    async def _compact(self, status: StoreStatus) -> None:
        target = min([status.revision - KEEP_REVISIONS, *self._standby_revisions()])
        revisions = target - self._compacted_revision
        grown = status.size_bytes - self._compacted_bytes
        if revisions <= 0 or (
            revisions < COMPACT_REVISIONS and (grown < COMPACT_GROWTH_BYTES or not self._compacted_bytes)
        ):
            self._compacted_bytes = self._compacted_bytes or status.size_bytes
            return
        await self._store.compact(target)
        log.info(
            "history compacted revision=%d size_bytes=%d used_bytes=%d", target, status.size_bytes, status.used_bytes
        )
        self._compacted_revision, self._compacted_bytes = target, status.size_bytes
