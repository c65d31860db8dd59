"""Damaged blocks: rewritten from a good replica while writers of the chunk wait."""

from __future__ import annotations

from vstor.codes_gen import ErrorCode
from vstor.model import versions
from vstor.model.records import Chunk
from vstor.model.step import Step
from vstor.proto.messages import OrderRepair
from vstor.proto.wire_gen import GRANULE_BYTES

REPAIRS_MAX = 1024  # under way; more reports are taken when they come again (scrub and reads repeat them)


class Repairs:
    """Granules being repaired."""

    def __init__(self) -> None:
        self._running: set[tuple[int, int, int]] = set()  # chunk, server, granule
        self.reported = 0
        self.repaired = 0

    def report(self, s: Step, cs_id: int, chunk_id: int, offset: int, who: str) -> None:
        """Somebody found a block of this replica damaged."""
        found = versions.locate(s, chunk_id)
        key = (chunk_id, cs_id, offset // GRANULE_BYTES)
        if found is None or cs_id not in found[2].replicas or key in self._running or len(self._running) >= REPAIRS_MAX:
            return
        ino, index, chunk = found
        if not self._sources(s, chunk, cs_id):
            self.reported += s.core.damage.note(s, chunk_id, cs_id)
            return
        self.reported += 1
        text = f"CS#{cs_id}: chunk {chunk_id} is damaged at offset {offset} (found by {who})"
        s.core.servers.once(s, f"damaged {key}", "warn", text + ", repairing")
        self._running.add(key)
        if chunk_id in s.core.versions.raising or s.core.versions.busy.get(chunk_id, "repair") != "repair":
            self._drop(s, key)
            return
        s.core.versions.hold(chunk_id, "repair")
        if s.core.maps.is_open(ino, index):
            # Writes must not pass between the read of the source and the write of the target.
            s.core.versions.start(s, ino, index, chunk, lambda step, _: self._order(step, key))
        else:
            self._order(s, key)

    def _drop(self, s: Step, key: tuple[int, int, int]) -> None:
        """The chunk is in other hands now; the replica leaves the map and comes back whole by recovery."""
        self._running.discard(key)
        drop_damaged(s, key[0], key[1])

    def _order(self, s: Step, key: tuple[int, int, int]) -> None:
        chunk_id, cs_id, granule = key
        found = versions.locate(s, chunk_id)
        sources = self._sources(s, found[2], cs_id) if found is not None else []
        if found is None or cs_id not in found[2].replicas or not sources:
            self._end(s, key)
            return
        ino, _, chunk = found
        size = s.core.chunk_bytes(s, ino)
        access = [s.core.keyring.source(s, cs_id, r, chunk, size) for r in sources]

        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            self._done(step, key, status)

        order = OrderRepair(chunk_id, chunk.version, granule * GRANULE_BYTES, access)
        s.core.orders.send(s, cs_id, order, done, 4 * s.core.config.int("mds.order.tout"))

    @staticmethod
    def _sources(s: Step, chunk: Chunk, cs_id: int) -> list[int]:
        return [r for r in chunk.replicas if r != cs_id and s.core.servers.is_active(r)]

    def _done(self, s: Step, key: tuple[int, int, int], status: int) -> None:
        self._end(s, key)
        if status == ErrorCode.OK:
            self.repaired += 1
            s.event("info", f"CS#{key[1]}: chunk {key[0]} was repaired", "CS")
        elif drop_damaged(s, key[0], key[1]):
            s.event(
                "warn",
                f"CS#{key[1]}: chunk {key[0]} could not be repaired (error {status}), the replica is replaced",
                "CS",
            )

    def _end(self, s: Step, key: tuple[int, int, int]) -> None:
        self._running.discard(key)
        if not any(other[0] == key[0] for other in self._running) and s.core.versions.busy.get(key[0]) == "repair":
            s.core.versions.free(s, key[0])


def drop_damaged(s: Step, chunk_id: int, cs_id: int) -> bool:
    """Take a replica with damage out of the map; nothing of it is to be reused. False: it is the last."""
    found = versions.locate(s, chunk_id)
    if found is None or not versions.drop_replica(s, chunk_id, {cs_id}):
        return False
    s.core.recovery.note_stale(chunk_id, cs_id, 0, found[2].version)
    return True
