"""Figures: the status object, space, statfs."""

from __future__ import annotations

from typing import Any

from vstor.model.admin import to_json
from vstor.model.chunkservers import ACTIVE, DROPPED, INACTIVE, OFFLINE
from vstor.model.namespace import need_inode
from vstor.model.placement import domain_of
from vstor.model.records import Policy, unpack_policy
from vstor.model.step import Step
from vstor.model.tracker import SHORT_STATES, STATES
from vstor.proto.messages import ROOT_INO, GetStatus, JsonReply, StatFs, StatFsReply

FILES_MAX = 1 << 40  # inodes: bounded by the metadata store, which has its own guard
CLIENTS_MAX = 1000


def get_status(s: Step, body: GetStatus) -> JsonReply:
    """The status object as JSON."""
    return to_json(build(s))


def stat_fs(s: Step, body: StatFs) -> StatFsReply:
    """Space as a user of the file's policy sees it."""
    s.need_session()
    policy = unpack_policy(need_inode(s, body.ino).policy)
    free = allocatable(s, policy)
    return StatFsReply(s.state.logical_bytes + free, free, len(s.state.inodes), FILES_MAX - len(s.state.inodes))


def allocatable(s: Step, policy: Policy) -> int:
    """Bytes of user data that still fit under a policy, with every replica in a failure domain of its own."""
    room: dict[str, int] = {}
    for record, live in s.core.servers.usable(s):
        domain = domain_of(record.cs_id, record.host_id, record.location, policy.domain)
        room[domain] = room.get(domain, 0) + max(0, live.free_bytes - s.core.servers.margin(s, live))
    limit = s.core.config.int("mds.alloc.capacity_limit")
    fits = _fill(sorted(room.values()), min(policy.normal, max(policy.minimum, len(room))))
    return min(fits, max(0, limit - s.state.logical_bytes)) if limit else fits


def _fill(room: list[int], copies: int) -> int:
    """Largest x with sum(min(room, x)) >= copies * x: x bytes, `copies` of each, no two copies in one domain. room ascending."""
    if len(room) < copies:
        return 0
    best, below = 0, 0
    for position, value in enumerate(room):
        # the domains from here on hold x each; those before are full
        above = len(room) - position
        if copies <= above:
            best = max(best, value)
        else:
            best = max(best, min(value, below // (copies - above)))
        below += value
    even = below // copies  # more than any one domain holds: all are full
    return max(best, even) if room and even >= room[-1] else best


FILL_LEVELS = (95, 90, 80)  # percent, from the top; warnings from 80 on (R11)


def tick(s: Step) -> None:
    """Say when the cluster fills up, and when it is over."""
    active = [live for live in s.core.servers.live.values() if live.activity == ACTIVE and live.conn_id]
    total = sum(live.space_bytes for live in active)
    if not total:
        return
    used = 100 * (total - sum(live.free_bytes for live in active)) // total
    level = next((n for n in FILL_LEVELS if used >= n), 0)
    if level > s.core.fill_level:
        s.event("err" if level == FILL_LEVELS[0] else "warn", f"The cluster is filled up to {used}%")
    elif level < s.core.fill_level and used < s.core.fill_level - 2:
        s.event("info", f"The cluster is filled up to {used}%")
    elif level < s.core.fill_level:
        return  # not up and down at the border
    s.core.fill_level = level


def build(s: Step) -> dict[str, Any]:
    """Everything `stat` and `top` show, but the MDS rows, which are the shell's."""
    assert s.state.cluster is not None
    root = unpack_policy(s.state.inodes[ROOT_INO].policy)
    return {
        "cluster": {
            "name": s.state.cluster.name,
            "id": s.state.cluster.cluster_id,
            "state": cluster_state(s),
            "created_ms": s.state.cluster.created_ms,
            "time_ms": s.now_ms,
            "epoch": s.core.epoch,
            "grace": s.core.sessions.in_grace,
            "last_backup_ms": s.state.cluster.backup_ms,
            "restore": {"waiting_for": s.core.restored.waiting_for(s)} if s.core.restored.active else None,
            "replicas": f"{root.normal}:{root.minimum}",
        },
        "mds": [],
        "cs": [_server(s, cs_id) for cs_id in sorted(s.core.servers.live)],
        "cs_counts": s.core.servers.counts(),
        "chunks": _chunks(s),
        "damage": s.core.damage.shown(),
        "space": _space(s, root),
        "replication": _replication(s),
        "io": _io(s),
        "fs": {
            "inodes": len(s.state.inodes),
            "directories": sum(1 for _ in s.state.dirs),
            "orphans": len(s.state.orphans),
            "chunk_maps": sum(map(len, s.state.extents.values())),
        },
        "clients": _clients(s),
    }  # fmt: skip


def cluster_state(s: Step) -> str:
    """healthy; degraded (a server is inactive, offline or failed, or a chunk has fewer replicas than it should); failure (too many hosts
    offline: no replication); unknown (just become leader)."""
    wait_ms = s.core.config.int("mds.cs.lease")
    silent = any(live.activity == ACTIVE and not live.conn_id for live in s.core.servers.live.values())
    if silent and s.now_ms - s.core.started_ms < wait_ms:
        return "unknown"
    if s.core.servers.mass_failure(s):
        return "failure"
    counts = s.core.servers.counts()
    failed = any(record.admin == "failed" for record in s.state.servers.values())
    short = any(s.core.tracker.counts[state] for state in SHORT_STATES)
    return "degraded" if counts[INACTIVE] or counts[OFFLINE] or failed or short else "healthy"


def _server(s: Step, cs_id: int) -> dict[str, Any]:
    record, live = s.state.servers[cs_id], s.core.servers.live[cs_id]
    state = live.activity
    if record.admin == "releasing" or record.admin == "maintenance":
        state = record.admin
    elif record.admin == "failed":
        state = "failed"
    elif state == ACTIVE and cs_id in s.core.slow.ill:
        state = "ill"
    return {
        "id": cs_id,
        "state": state,
        "activity": live.activity,
        "admin": record.admin,
        "host": record.hostname,
        "host_id": record.host_id,
        "address": next((a for a in record.addresses if not a.startswith("unix:")), ""),
        "location": record.location,
        "tier": record.tier,
        "path": record.path,
        "space_bytes": live.space_bytes,
        "free_bytes": live.free_bytes,
        "avail_bytes": max(0, live.free_bytes - s.core.servers.margin(s, live)),
        "replicas": len(s.state.by_cs.get(cs_id, ())),
        "replicas_reported": live.replicas,
        "unique": sum(1 for n in s.core.tracker.unique if n in s.state.by_cs.get(cs_id, ())),
        "pid": live.pid,
        "version": record.version,
        "flags": live.flags,
        "io_lat_avg_ms": live.io_lat_avg_ms,
        "io_lat_max_ms": live.io_lat_max_ms,
        "queue_depth": live.queue_depth,
        "journal_full_percent": live.journal_full_percent,
        "io_wait_percent": live.io_wait_percent if live.io_wait_percent >= 0 else None,
        "scrub_chunks": live.scrub_chunks,
        "scrub_last_ms": live.scrub_last_ms,
        "read_bytes_s": round(live.read_bytes_s),
        "write_bytes_s": round(live.write_bytes_s),
        "down_since_ms": record.down_ms,
        "inventory_complete": live.inventory is None,
    }


def _chunks(s: Step) -> dict[str, int]:
    tracker = s.core.tracker
    counts = {state: tracker.counts[state] for state in STATES if state != "healthy"}
    return {
        "total": len(s.state.chunk_home),
        "healthy": tracker.healthy(),
        **counts,
        "standby": len(tracker.standby),
        "unique": len(tracker.unique),
        "replicating": len(s.core.recovery.jobs),
        "deleting": s.core.garbage.count(),
        "stale": sum(map(len, s.core.recovery.stale.values())),
        "corrupt_reported": s.core.repairs.reported,
        "corrupt_repaired": s.core.repairs.repaired,
        "damaged": len(s.core.damage.chunks),
    }


def _space(s: Step, root: Policy) -> dict[str, int]:
    known = [live for live in s.core.servers.live.values() if live.activity != DROPPED]
    reachable = [live for live in known if live.activity == ACTIVE]
    total, free = sum(live.space_bytes for live in known), sum(live.free_bytes for live in reachable)
    return {
        "logical_used_bytes": s.state.logical_bytes,
        "allocatable_bytes": allocatable(s, root),
        "raw_total_bytes": total,
        "raw_free_bytes": free,
        "raw_used_bytes": sum(max(0, live.space_bytes - live.free_bytes) for live in reachable),
        "capacity_limit_bytes": s.core.config.int("mds.alloc.capacity_limit"),
        "free_after_largest_host_bytes": _after_largest_host(s),
    }


def _after_largest_host(s: Step) -> int:
    """Raw bytes that would be left if the host with the most data were lost and its data copied to the others; below 0: they do not fit."""
    used: dict[str, int] = {}
    free: dict[str, int] = {}
    for live in s.core.servers.live.values():
        record = s.state.servers[live.cs_id]
        if live.activity != ACTIVE or record.admin not in ("normal", "maintenance"):
            continue
        used[record.host_id] = used.get(record.host_id, 0) + max(0, live.space_bytes - live.free_bytes)
        free[record.host_id] = free.get(record.host_id, 0) + max(0, live.free_bytes - s.core.servers.margin(s, live))
    if not used:
        return 0
    largest = max(used, key=lambda host: used[host])
    return sum(free.values()) - free[largest] - used[largest]


def _replication(s: Step) -> dict[str, Any]:
    recovery, tracker = s.core.recovery, s.core.tracker
    running = sum(n not in s.core.balance.leaving for n in recovery.jobs)
    waiting = tracker.queued() + running
    rate = recovery.rate_bytes_s()
    root = unpack_policy(s.state.inodes[ROOT_INO].policy)
    eta = round(waiting * root.chunk_bytes / rate) if rate > 0 and waiting else 0
    return {
        "queued": tracker.queued(),
        "running": running,
        "copied_chunks": recovery.progress.copied_chunks,
        "copied_bytes": recovery.progress.copied_bytes,
        "resynced_chunks": recovery.progress.resynced_chunks,
        "resynced_bytes": recovery.progress.resynced_bytes,
        "failed": recovery.progress.failed,
        "moving": len(s.core.balance.leaving),
        "moved_chunks": s.core.balance.moved_chunks,
        "rate_bytes_s": round(rate),
        "no_progress_ms": recovery.no_progress_ms(s, waiting > 0),
        "eta_s": eta,
        "stopped_by_guard": s.core.servers.mass_failure(s),
        "fencing": len(s.core.fences.active),
        "orders": s.core.orders.count(),
    }


def _io(s: Step) -> dict[str, int]:
    active = [live for live in s.core.servers.live.values() if live.activity == ACTIVE]
    return {
        "read_bytes_s": round(sum(live.read_bytes_s for live in active)),
        "write_bytes_s": round(sum(live.write_bytes_s for live in active)),
    }


def _clients(s: Step) -> list[dict[str, Any]]:
    out = []
    for session_id, record in list(s.state.sessions.items())[:CLIENTS_MAX]:
        live = s.core.sessions.live[session_id]
        out.append({
            "session_id": session_id,
            "host": record.hostname,
            "name": record.name,
            "pid": record.pid,
            "leases": len(s.core.leases.held.get(session_id, ())),
            "open_files": len(s.core.opens.by_session.get(session_id, ())),
            "writing": len(s.state.writers.get(session_id, ())),
            "renewed_ms_ago": s.now_ms - live.last_ms,
            "resumed": live.resumed,
        })  # fmt: skip
    return out
