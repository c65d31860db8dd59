"""Metadata that come from a backup, or from a member that may lack the newest transactions: the chunk servers know better.

DESIGN: between a restore and the end of this reconciliation nothing is served, copied or deleted. Each chunk server tells its inventory; when
all that are expected have (or the operator says that the missing ones will not come), the highest version of a chunk of which a complete replica
exists is the chunk: a replica is complete at its version unless it is marked as being copied, every change of the set of valid replicas raises
the version, and so does every fence. Lower replicas are stale. Then everything goes on as after any start.
Replicas of chunks that the restored metadata do not know (made after the backup) are kept and counted, never deleted: their ids lie between
`unknown_from` and `unknown_to`, which is skipped when new ids are given out. Chunk servers made after the backup are taken in when they
register. Sessions of the time before are ended, so no client can claim a lease on what has changed under it.
"""

from __future__ import annotations

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import keys
from vstor.model.chunkservers import DROPPED
from vstor.model.records import VOID, Chunk, Cluster, Counter, encode
from vstor.model.state import State
from vstor.model.step import Step
from vstor.proto.messages import CsRegister, Ok, RestoreFinish

CHUNKS_PER_TICK = 2000  # looked at
RAISES_PER_TICK = 128  # changed
EPOCH_JUMP = 1 << 40  # above all epochs the cluster can have had since
# So many ids may have been given out since the backup: none is given out again.
ID_JUMPS = {"ino": 1 << 24, "chunk": 1 << 32, "session": 1 << 20, "cs": 1 << 10, "event": 1 << 12}

Held = dict[int, tuple[int, int]]  # chunk id -> (version, flags), of one server


def mutations(state: State, now_ms: int) -> list[tuple[bytes, bytes | None]]:
    """What the first leader after a restore writes before it begins; done twice it does no harm. The last of them is the cluster's record."""
    cluster = state.cluster
    if cluster is None:
        raise VstorError(ErrorCode.DAMAGED, "the backup holds no cluster")
    out: list[tuple[bytes, bytes | None]] = [
        (keys.session(session_id), None) for session_id in (*state.sessions, *state.ended)
    ]
    counters = {name: limit + ID_JUMPS[name] for name, limit in state.counters.items()}
    out += [(keys.named(keys.COUNTER, name), encode(Counter(limit))) for name, limit in counters.items()]
    record = Cluster(
        cluster.name,
        cluster.cluster_id,
        cluster.created_ms,
        cluster.ticket_key_id + 1,
        now_ms,
        epoch_base=cluster.epoch_base + EPOCH_JUMP,
        restored_ms=now_ms,
        unknown_from=min(cluster.unknown_from or 1 << 63, max(state.chunk_home, default=0) + 1),
        unknown_to=counters["chunk"],
        backup_ms=cluster.backup_ms,
    )
    return [*out, (keys.CLUSTER_KEY, encode(record))]


def adoptable(state: State, cs_id: int) -> bool:
    """A server that this cluster made after the backup: its id was skipped."""
    cluster = state.cluster
    return bool(cluster and cluster.unknown_to) and cs_id not in state.servers and 0 < cs_id < state.counters["cs"]


def adopted_tier(body: CsRegister) -> int:
    """Tier of a server that is taken in."""
    return body.tier if 0 <= body.tier <= 3 else 0


class Restored:
    """The reconciliation. Its memory begins anew with each leader: the servers tell their inventories again."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._held: dict[int, Held] = {}
        self._finish = False
        self._todo: list[int] | None = None  # chunk ids not looked at, the next one last; None: not begun
        self.newer = 0
        self.missing = 0

    @property
    def active(self) -> bool:
        """It is not finished."""
        cluster = self._state.cluster
        return cluster is not None and cluster.restored_ms > 0

    def keeps(self, chunk_id: int) -> bool:
        """A replica of this chunk, which the metadata do not know, must not be deleted."""
        cluster = self._state.cluster
        return cluster is not None and cluster.unknown_from <= chunk_id < cluster.unknown_to

    def collect(self, cs_id: int, held: Held) -> None:
        """A complete inventory; a later one of the same server counts."""
        self._held[cs_id] = held

    def waiting_for(self, s: Step) -> list[int]:
        """Servers that have not told their inventory."""
        return [n for n, record in s.state.servers.items() if record.admin != DROPPED and n not in self._held]

    def finish(self, s: Step, body: RestoreFinish) -> Ok:
        """Go on without the servers that are missing. Raises INVALID when there is nothing to finish, UNSAFE before any server has come."""
        if not self.active:
            raise VstorError(ErrorCode.INVALID, "no restore is under way")
        waiting = self.waiting_for(s)
        if not self._held and s.state.chunk_home:
            raise VstorError(ErrorCode.UNSAFE, "no chunk server has told what it holds yet; start them first")
        if waiting and not self._finish:
            names = ", ".join(f"CS#{n}" for n in waiting)
            s.event(
                "warn", f"The restore goes on without {names}: what only they hold newer than the backup is not used"
            )
        self._finish = True
        return Ok()

    def tick(self, s: Step) -> None:
        """Look at a bounded number of chunks, when all servers have told."""
        if self._todo is None:
            if self.waiting_for(s) and not self._finish:
                return
            self._todo = sorted(s.state.chunk_home, reverse=True)
        raises = 0
        for _ in range(CHUNKS_PER_TICK):
            if not self._todo or raises >= RAISES_PER_TICK:
                break
            raises += self._look(s, self._todo.pop())
        if not self._todo and not s.core.versions.raising:
            self._end(s)

    def _look(self, s: Step, chunk_id: int) -> bool:
        """Whether the chunk was changed."""
        found = s.state.chunk_by_id(chunk_id)
        if found is None:
            return False
        ino, index, chunk = found
        complete = {
            n: held[chunk_id][0] for n, held in self._held.items() if chunk_id in held and not held[chunk_id][1]
        }
        best = max(complete.values(), default=0)
        if not best:
            self.missing += not chunk.flags & VOID
            return False
        if best < chunk.version:
            return False  # only an order was missed: as after any start
        replicas = tuple(n for n in chunk.replicas if complete.get(n) == best)
        replicas += tuple(sorted(n for n, version in complete.items() if version == best and n not in replicas))
        if best == chunk.version and set(replicas) == set(chunk.replicas):
            return False
        self.newer += best > chunk.version
        restored = Chunk(chunk.id, best, chunk.flags, replicas)
        s.core.versions.start(s, ino, index, restored)
        return True

    def _end(self, s: Step) -> None:
        from vstor.model import csops  # which uses this module

        cluster = s.state.cluster
        assert cluster is not None
        unknown = sum(self.keeps(n) for held in self._held.values() for n in held if n not in s.state.chunk_home)
        s.tx.put_cluster(msgspec.structs.replace(cluster, restored_ms=0))
        for cs_id, held in self._held.items():
            csops.compare_later(s, cs_id, held)
        s.core.fence_abandoned(s)
        s.event(
            "warn",
            f"The restore is complete: {self.newer} chunks were newer than the backup, {self.missing} have no replica, "
            f"{unknown} replicas of chunks made after it are kept",
        )
        s.out.wake.add(("grace",))
        self._held, self._todo = {}, None
