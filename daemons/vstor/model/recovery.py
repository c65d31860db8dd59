"""Making replicas: most endangered first, many to many, bounded for each server.

DESIGN: a chunk nobody writes is copied in one final pass at its version, and the target joins the map. If somebody may be writing it, or
begins to meanwhile, the target copies while writes go on; then the version is raised (writers wait for the new map), the target copies what
changed since, and joins. A stale replica left from before is reused: only granules changed since its version are compared.
Surplus replicas leave the map (with a raise) and are deleted only when enough good ones are known from inventories (R6).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.model import versions
from vstor.model.chunkservers import INACTIVE
from vstor.model.config import MB
from vstor.model.files import policy
from vstor.model.placement import Candidate, place
from vstor.model.records import DOMAINS, VOID, Chunk, Inode, Policy
from vstor.model.step import Step
from vstor.proto.messages import MapChanged, OrderReplicate

STARTS_PER_TICK = 64
TRIMS_PER_TICK = 64
STALE_DELETES_PER_TICK = 512
RETRY_MS = 3_000  # doubled with each failure in a row of the same chunk
RETRY_DOUBLINGS_MAX = 5
FAILURES_MAX = 100_000  # chunks whose failures are counted
# A writer that died may have left a write of some versions ago on one replica only; so many versions back granules are compared.
BASE_MARGIN = 16
FINAL_PASS_MS = 30_000  # writers wait meanwhile


@dataclass(frozen=True, slots=True)
class Stale:
    """A replica outside of the map."""

    base: int  # complete up to this version, so that a copy may start from it; 0: worthless
    ceiling: int  # its version is not above this. A copy is made at a higher one: a chunk server takes an equal version for the same content


@dataclass(slots=True)
class Job:
    """A replica being made."""

    chunk_id: int
    source: int
    target: int
    version: int  # of the pass under way
    base_version: int
    dirty: bool  # writes may have happened since the copy began
    since_ms: int
    raised: bool = False  # writers wait
    since_seq: int = 0
    order_id: int = 0
    left: Stale | None = None  # what was at the target before


@dataclass(slots=True)
class Progress:
    """Figures for status."""

    copied_chunks: int = 0
    copied_bytes: int = 0
    resynced_chunks: int = 0  # of those, made from a stale replica: only what had changed was copied
    resynced_bytes: int = 0
    failed: int = 0
    running_since_ms: int = 0
    bytes_at_start: int = 0
    mark: tuple[int, int] = (0, 0)  # (copied chunks, bytes) when progress was last seen, at mark_ms
    mark_ms: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)  # (time, copied bytes), one a second, a minute of them


class Recovery:
    """All copies under way, and stale replicas."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.stale: dict[int, dict[int, Stale]] = {}  # chunk id -> cs id -> what it holds outside of the map
        self.progress = Progress()
        self._load: Counter[int] = Counter()  # cs id -> copies to and from it
        self._not_before: dict[int, int] = {}
        self._failures: Counter[int] = Counter()  # chunk id -> copies that failed since one succeeded

    # --- what others tell -----------------------------------------------------------------------------------------

    def note_stale(self, chunk_id: int, cs_id: int, base: int, ceiling: int) -> None:
        """The server has (or will have when it is back) a replica that is not in the map."""
        job = self.jobs.get(chunk_id)
        if job is None or job.target != cs_id:
            held = self.stale.setdefault(chunk_id, {})
            before = held.get(cs_id)
            base = max(1, base - BASE_MARGIN) if base else 0
            held[cs_id] = Stale(base, max(ceiling, before.ceiling if before else 0))

    def opened_for_write(self, chunk_id: int) -> None:
        """A write ticket goes out."""
        job = self.jobs.get(chunk_id)
        if job is not None:
            job.dirty = True

    def is_target(self, chunk_id: int, cs_id: int) -> bool:
        """A replica is being made there."""
        job = self.jobs.get(chunk_id)
        return job is not None and job.target == cs_id

    def server_lost(self, s: Step, cs_id: int) -> None:
        """Its stale replicas are told again by its next inventory; its copies fail by their orders."""
        for chunk_id in [c for c, held in self.stale.items() if cs_id in held]:
            self._forget_stale(chunk_id, cs_id)

    def _forget_stale(self, chunk_id: int, cs_id: int) -> None:
        held = self.stale.get(chunk_id, {})
        held.pop(cs_id, None)
        if not held:
            self.stale.pop(chunk_id, None)

    def abort(self, s: Step, chunk_id: int) -> None:
        """Give a copy up; what the target has is worth nothing."""
        job = self.jobs.get(chunk_id)
        if job is not None:
            s.core.orders.cancel(job.order_id)
            self._end(s, job)
            self.note_stale(chunk_id, job.target, 0, job.version)

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, s: Step) -> None:
        """Start copies, remove what is surplus, delete what is stale."""
        for chunk_id in [c for c, when in self._not_before.items() if when <= s.now_ms]:
            del self._not_before[chunk_id]
            s.core.tracker.again(chunk_id)
        self._drop_dead_jobs(s)
        if not s.core.sessions.in_grace:
            if not s.core.servers.mass_failure(s):
                self._start_some(s)
            self._trim_some(s)
            self._delete_stale(s)
        self._tell_progress(s)

    def _drop_dead_jobs(self, s: Step) -> None:
        for job in list(self.jobs.values()):
            if versions.locate(s, job.chunk_id) is None:
                s.core.orders.cancel(job.order_id)
                self._end(s, job)
                s.core.garbage.add(job.chunk_id, (job.target,))

    def _start_some(self, s: Step) -> None:
        limit = s.core.config.int("mds.repl.max_total")
        put_back: list[int] = []
        for _ in range(STARTS_PER_TICK):
            if len(self.jobs) >= limit:
                break
            chunk_id = s.core.tracker.take()
            if chunk_id is None:
                break
            if chunk_id not in self.jobs and chunk_id not in self._not_before and not self._start(s, chunk_id):
                put_back.append(chunk_id)
        for chunk_id in put_back:
            s.core.tracker.again(chunk_id)

    def _later(self, s: Step, chunk_id: int) -> None:
        self._not_before[chunk_id] = s.now_ms + (RETRY_MS << min(self._failures[chunk_id], RETRY_DOUBLINGS_MAX))

    def _start(self, s: Step, chunk_id: int) -> bool:
        """Begin to make a replica. False: no server is free now, look again soon."""
        found = versions.locate(s, chunk_id)
        inode = s.tx.peek(found[0]) if found is not None else None
        if found is None or inode is None:
            return True
        ino, index, chunk = found
        if s.core.versions.unsettled(chunk_id):
            self._later(s, chunk_id)
            return True
        if chunk.flags & VOID:
            # A raise makes it a chunk like any other, with all its replicas existing.
            s.core.versions.start(s, ino, index, chunk, lambda step, n: step.core.tracker.again(n))
            return True
        busy = s.core.config.int("mds.repl.max_per_cs")
        sources = [r for r in chunk.replicas if s.core.servers.is_active(r) and s.core.servers.is_connected(r)]
        free = [r for r in sources if self._load[r] < busy]
        target = self._choose_target(s, inode, chunk, busy)
        if not sources or target is None:
            self._later(s, chunk_id)
            return True
        if s.core.damage.blocks(chunk_id, sources):
            return True  # it would fail at the damaged block; a look that finds it mended brings the chunk here again
        if not free or self._load[target] >= busy:
            return False
        left = self.stale.get(chunk_id, {}).get(target)
        if left is not None and left.ceiling >= chunk.version:
            s.core.versions.start(s, ino, index, chunk, lambda step, n: step.core.tracker.again(n))
            return True
        source = self._choose_source(s, chunk_id, free)
        self._forget_stale(chunk_id, target)
        self._begin(s, ino, index, chunk, source, target, left)
        return True

    def _choose_source(self, s: Step, chunk_id: int, able: list[int]) -> int:
        """Whole disks before failing ones, these before ill ones, idle before busy."""
        failing = {
            r: (s.core.damage.blocks(chunk_id, [r]), s.core.admin_of(r) == "failed", r in s.core.slow.ill) for r in able
        }
        return min(able, key=lambda r: (failing[r], self._load[r], r))

    def move(self, s: Step, ino: int, index: int, chunk: Chunk, target: int) -> None:
        """One more replica of a healthy chunk; `balance` says which one goes then."""
        self._begin(s, ino, index, chunk, self._choose_source(s, chunk.id, list(chunk.replicas)), target, None)

    def load(self, cs_id: int) -> int:
        """Copies to and from the server."""
        return self._load[cs_id]

    def _begin(self, s: Step, ino: int, index: int, chunk: Chunk, source: int, target: int, left: Stale | None) -> None:
        dirty = s.core.maps.is_open(ino, index)
        job = Job(chunk.id, source, target, chunk.version, left.base if left else 0, dirty, s.now_ms, left=left)
        self.jobs[chunk.id] = job
        self._load.update((source, target))
        self._pass(s, job, ino, chunk, final=not job.dirty)

    def _choose_target(self, s: Step, inode: Inode, chunk: Chunk, busy: int) -> int | None:
        """A server with a stale replica before others, then by placement; not one that is fully busy while others are free."""
        rule = policy(inode)
        servers = s.core.servers
        taken = {
            servers.domain(s, r, rule.domain) for r in chunk.replicas
            if servers.is_active(r) and s.core.admin_of(r) in ("normal", "maintenance")
        }  # fmt: skip
        deleting = {r for r in s.core.servers.live if s.core.garbage.holds(chunk.id, r)}
        allowed = servers.candidates(s, reserve=True, exclude=deleting.union(chunk.replicas))
        idle = [c for c in allowed if self._load[c.cs_id] < busy]
        chosen = self._pick(s, chunk, idle, taken, rule) or self._pick(s, chunk, allowed, taken, rule)
        if chosen is None:
            servers.too_few(s, rule.normal, rule.tier, DOMAINS[rule.domain], len(chunk.replicas))
        return chosen

    def _pick(self, s: Step, chunk: Chunk, candidates: list[Candidate], taken: set[str], rule: Policy) -> int | None:
        able = {c.cs_id for c in candidates if s.core.servers.domain(s, c.cs_id, rule.domain) not in taken}
        reusable = [(left.base, n) for n, left in self.stale.get(chunk.id, {}).items() if left.base and n in able]
        if reusable:
            return max(reusable)[1]
        chosen = place(
            candidates, 1, level=rule.domain, tier=rule.tier, taken=taken, key=chunk.id, seed=s.core.seed
        )  # fmt: skip
        return chosen[0] if chosen else None

    # --- passes -------------------------------------------------------------------------------------------------

    def _pass(self, s: Step, job: Job, ino: int, chunk: Chunk, *, final: bool) -> None:
        size = s.core.chunk_bytes(s, ino)
        job.version = chunk.version
        rate = "mds.balance.rate" if chunk.id in s.core.balance.leaving else "mds.repl.rate"
        order = OrderReplicate(
            chunk_id=chunk.id,
            version=chunk.version,
            chunk_bytes=size,
            sources=[s.core.keyring.source(s, job.target, job.source, chunk, size)],
            base_version=job.base_version,
            since_seq=job.since_seq,
            final=final,
            rate_bytes_s=0 if job.raised else s.core.config.int(rate) * MB,
        )

        def done(step: Step, server: int, status: int, value: int, copied: int) -> None:
            self._passed(step, job, status, value, copied)

        timeout = FINAL_PASS_MS if job.raised else s.core.config.int("mds.repl.tout")
        job.order_id = s.core.orders.send(s, job.target, order, done, timeout)

    def _passed(self, s: Step, job: Job, status: int, value: int, copied: int) -> None:
        if self.jobs.get(job.chunk_id) is not job:
            return
        self.progress.copied_bytes += copied
        if job.left is not None and job.left.base:
            self.progress.resynced_bytes += copied
        found = versions.locate(s, job.chunk_id)
        usable = found is not None and found[2].version == job.version and job.source in found[2].replicas
        if status != ErrorCode.OK or not usable or found is None or s.core.versions.raising.get(job.chunk_id):
            self._failed(s, job, status)
        elif job.raised or not job.dirty:
            self._join(s, job, found)
        else:
            # Writes may have gone on: stop them, copy the rest, and let them go on with the new map.
            job.since_seq, job.base_version, job.raised = value, job.version, True
            s.core.versions.hold(job.chunk_id, "copy")
            s.core.versions.start(s, found[0], found[1], found[2], lambda step, _: self._last_pass(step, job))

    def _last_pass(self, s: Step, job: Job) -> None:
        found = versions.locate(s, job.chunk_id)
        if self.jobs.get(job.chunk_id) is not job or found is None:
            return
        if job.source not in found[2].replicas:
            self._failed(s, job, ErrorCode.DISCONNECTED)
            return
        self._pass(s, job, found[0], found[2], final=True)

    def _join(self, s: Step, job: Job, found: tuple[int, int, Chunk]) -> None:
        ino, index, chunk = found
        self._end(s, job)
        self._failures.pop(job.chunk_id, None)
        self.progress.copied_chunks += 1
        self.progress.resynced_chunks += bool(job.left is not None and job.left.base)
        kept = tuple(
            r for r in chunk.replicas if s.core.servers.is_active(r) or s.core.servers.live[r].activity == INACTIVE
        )
        joined = chunk._replace(replicas=(*kept, job.target))
        if len(kept) < len(chunk.replicas):
            s.core.versions.start(
                s, ino, index, joined
            )  # offline replicas leave: what they have must not be taken for valid
        else:
            s.tx.put_chunk(ino, index, joined)
        versions.wake(s, chunk.id)
        for session_id in s.core.leases.holders.get(ino, ()):
            s.out.pushes.append((session_id, MapChanged(ino, index, 1)))

    def _failed(self, s: Step, job: Job, status: int) -> None:
        self._end(s, job)
        self.progress.failed += 1
        if job.left is not None:
            # Granules the copy did not come to are as they were, perhaps the last good ones: they are kept.
            self.stale.setdefault(job.chunk_id, {})[job.target] = Stale(job.left.base, job.version)
        else:
            s.core.garbage.add(job.chunk_id, (job.target,))
        if len(self._failures) > FAILURES_MAX:
            self._failures.clear()
        self._failures[job.chunk_id] += status not in (ErrorCode.OK, ErrorCode.DISCONNECTED, ErrorCode.TIMED_OUT)
        self._later(s, job.chunk_id)
        if status == ErrorCode.CORRUPT and self._only_source(s, job):
            s.core.damage.note(s, job.chunk_id, job.source)  # which tells
        elif status not in (ErrorCode.OK, ErrorCode.DISCONNECTED):
            s.core.servers.once(
                s, f"copy {job.source} {job.target} {status}", "warn",
                f"Replication of chunk {job.chunk_id} from CS#{job.source} to CS#{job.target} failed (error {status})",
            )  # fmt: skip

    @staticmethod
    def _only_source(s: Step, job: Job) -> bool:
        found = versions.locate(s, job.chunk_id)
        return found is not None and not any(r != job.source and s.core.servers.is_active(r) for r in found[2].replicas)

    def _end(self, s: Step, job: Job) -> None:
        del self.jobs[job.chunk_id]
        self._load.subtract((job.source, job.target))
        if s.core.versions.busy.get(job.chunk_id) == "copy":
            s.core.versions.free(s, job.chunk_id)

    # --- less -----------------------------------------------------------------------------------------------------

    def _trim_some(self, s: Step) -> None:
        for chunk_id in list(s.core.tracker.surplus)[:TRIMS_PER_TICK]:
            del s.core.tracker.surplus[chunk_id]
            found = versions.locate(s, chunk_id)
            inode = s.tx.peek(found[0]) if found is not None else None
            if found is None or inode is None or s.core.versions.unsettled(chunk_id) or chunk_id in self.jobs:
                s.core.tracker.again(chunk_id)
                continue
            self._trim(s, inode, found[1], found[2])

    def _trim(self, s: Step, inode: Inode, index: int, chunk: Chunk) -> None:
        rule, servers = policy(inode), s.core.servers
        good = [
            r for r in chunk.replicas if servers.is_known_good(r) and s.core.admin_of(r) in ("normal", "maintenance")
        ]
        if len(good) < rule.normal:
            return
        keep: list[int] = []
        domains: set[str] = set()
        leaving = s.core.balance.leaving.get(chunk.id)

        def rank(cs_id: int) -> tuple[bool, bool, int]:
            return cs_id == leaving, s.state.servers[cs_id].tier != rule.tier, -servers.live[cs_id].free_bytes

        for cs_id in sorted(good, key=rank):
            domain = servers.domain(s, cs_id, rule.domain)
            if len(keep) < rule.normal and domain not in domains:
                keep.append(cs_id)
                domains.add(domain)
        keep += [r for r in good if r not in keep][: rule.normal - len(keep)]
        gone = [r for r in chunk.replicas if r not in keep and servers.live[r].activity != INACTIVE]
        if not gone:
            return
        kept = tuple(r for r in chunk.replicas if r not in gone)
        s.core.versions.start(s, inode.ino, index, chunk._replace(replicas=kept))
        s.core.garbage.add(chunk.id, gone)
        if leaving in gone:
            del s.core.balance.leaving[chunk.id]
            s.core.balance.moved_chunks += 1

    def _delete_stale(self, s: Step) -> None:
        """Stale replicas of chunks that have enough good ones (R6)."""
        done = 0
        for chunk_id, held in list(self.stale.items()):
            if done >= STALE_DELETES_PER_TICK:
                return
            found = versions.locate(s, chunk_id)
            if found is None or (chunk_id not in self.jobs and self._enough(s, found)):
                s.core.garbage.add(chunk_id, held)
                del self.stale[chunk_id]
                done += 1

    @staticmethod
    def _enough(s: Step, found: tuple[int, int, Chunk]) -> bool:
        inode = s.tx.peek(found[0])
        known = [r for r in found[2].replicas if s.core.servers.is_known_good(r) and s.core.admin_of(r) == "normal"]
        return inode is not None and not s.core.versions.unsettled(found[2].id) and len(known) >= policy(inode).normal

    # --- figures --------------------------------------------------------------------------------------------------

    def _tell_progress(self, s: Step) -> None:
        p = self.progress
        copying = sum(n not in s.core.balance.leaving for n in self.jobs)
        waiting = s.core.tracker.queued() + copying
        self.no_progress_ms(s, waiting > 0)
        if not p.samples or s.now_ms - p.samples[-1][0] >= 1000:
            p.samples.append((s.now_ms, p.copied_bytes))
            del p.samples[:-60]
        if copying and not p.running_since_ms:
            p.running_since_ms, p.bytes_at_start = s.now_ms, p.copied_bytes
            s.event("info", f"Replication started, {waiting} chunks are queued")
        elif not waiting and p.running_since_ms and s.core.tracker.settled():
            p.running_since_ms = 0
            s.event("info", "Replication completed")

    def no_progress_ms(self, s: Step, waiting: bool) -> int:
        """How long copies have been wanted without one being finished or bytes having moved; 0: none is wanted."""
        p = self.progress
        mark = (p.copied_chunks, p.copied_bytes)
        if not waiting or mark != p.mark:
            p.mark, p.mark_ms = mark, s.now_ms
        return s.now_ms - p.mark_ms

    def rate_bytes_s(self) -> float:
        """Copying speed of the last minute."""
        samples = self.progress.samples
        if len(samples) < 2 or samples[-1][0] == samples[0][0]:
            return 0.0
        return (samples[-1][1] - samples[0][1]) * 1000 / (samples[-1][0] - samples[0][0])
