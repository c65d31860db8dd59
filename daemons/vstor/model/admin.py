"""Requests of operators: configuration, events, path attributes, chunks, backups, leases."""

from __future__ import annotations

import stat
from typing import Any

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import config as cfg
from vstor.model import pathattrs, paths, sessions
from vstor.model.chunkservers import DROPPED
from vstor.model.leases import Demand, Kind
from vstor.model.records import EXTENT_CHUNKS, VOID, Chunk, extent_items
from vstor.model.step import Parked, Step
from vstor.model.tracker import STATES
from vstor.proto.messages import (
    CACHE,
    EXCLUSIVE,
    SHARED,
    BackupDone,
    FileInfo,
    GetConfig,
    GetEvents,
    GetLeases,
    GetPathAttr,
    JsonReply,
    ListChunks,
    Ok,
    RestoreFinish,
    RevokeLeases,
    SetConfig,
    SetPathAttr,
)

EVENTS_MAX = 4096
LIST_MAX = 4096
LEASES_MAX = 10_000
REVOKE_MS = 10_000  # a client that does not answer a revocation loses its session
MODES = {CACHE: "cache", SHARED: "shared", EXCLUSIVE: "exclusive"}


def to_json(value: Any) -> JsonReply:
    """A JSON reply."""
    return JsonReply(msgspec.json.encode(value))


def get_events(s: Step, body: GetEvents) -> JsonReply:
    """The newest events that match, ascending."""
    events = [event for slot in s.state.events.values() for event in slot]
    wanted = [
        e for e in events
        if e.id > body.after and e.time_ms >= body.since_ms and (not body.severity or e.severity == body.severity)
    ]  # fmt: skip
    wanted.sort(key=lambda e: e.id)
    limit = max(1, min(body.limit, EVENTS_MAX))
    return to_json([
        {"id": e.id, "time_ms": e.time_ms, "sys": e.system, "sev": e.severity, "message": e.message} for e in wanted[-limit:]
    ])  # fmt: skip


def get_config(s: Step, body: GetConfig) -> JsonReply:
    """One value or all, as {name: {value, default, unit, text}}."""
    if body.name and body.name not in cfg.OPTIONS:
        raise VstorError(ErrorCode.NOT_FOUND, f"no option {body.name}; get-config lists them")
    names = [body.name] if body.name else sorted(cfg.OPTIONS)
    return to_json({
        name: {
            "value": s.core.config.text(name),
            "default": cfg.OPTIONS[name].default,
            "unit": cfg.OPTIONS[name].unit,
            "text": cfg.OPTIONS[name].text,
        }
        for name in names
    })  # fmt: skip


def set_config(s: Step, body: SetConfig) -> Ok:
    """Change a value for the whole cluster. The same value again changes nothing."""
    value = cfg.check(body.name, body.value)
    if value != s.core.config.text(body.name):
        s.tx.put_config(body.name, value)
        s.event("info", f"{body.name} was set to {value}")
    return Ok()


def get_path_attr(s: Step, body: GetPathAttr) -> JsonReply:
    """Attributes of a path."""
    return to_json(pathattrs.show(paths.resolve(s.state, body.path)))


def set_path_attr(s: Step, body: SetPathAttr) -> Ok:
    """Set attributes of a path, and of all below it."""
    if not pathattrs.change(s, body.path, body.recursive, body.attributes):
        raise Parked(("tick",), keep=True)
    if s.tx.dirty():
        text = ", ".join(f"{name}={value}" for name, value in body.attributes.items())
        s.event("info", f"Attributes of /{body.path.strip('/')} were set: {text}")
    return Ok()


# --- chunks ----------------------------------------------------------------------------------------------------------


def _replicas(s: Step, chunk: Chunk) -> list[dict[str, Any]]:
    out = []
    for cs_id in chunk.replicas:
        record = s.state.servers[cs_id]
        state = s.core.servers.live[cs_id].activity if record.admin in ("normal", DROPPED) else record.admin
        out.append({"cs_id": cs_id, "host": record.hostname, "state": state, "version": chunk.version})
    for cs_id, left in s.core.recovery.stale.get(chunk.id, {}).items():
        out.append({"cs_id": cs_id, "host": s.state.servers[cs_id].hostname, "state": "stale", "version": left.ceiling})
    return out


def file_info(s: Step, body: FileInfo) -> JsonReply:
    """A file with its chunks and where their replicas are."""
    inode = paths.resolve(s.state, body.path)
    attributes = pathattrs.show(inode)
    chunks: list[dict[str, Any]] = []
    limit = max(1, min(body.limit, LIST_MAX))
    extents = s.state.extents.get(inode.ino, {})
    for number in sorted(n for n in extents if (n + 1) * EXTENT_CHUNKS > body.first_index):
        for offset, chunk in extent_items(extents[number]):
            index = number * EXTENT_CHUNKS + offset
            if index >= body.first_index and len(chunks) < limit:
                chunks.append({
                    "index": index,
                    "chunk_id": chunk.id,
                    "version": chunk.version,
                    "state": s.core.tracker.state_of(chunk.id),
                    "void": bool(chunk.flags & VOID),
                    "replicas": _replicas(s, chunk),
                })  # fmt: skip
        if len(chunks) >= limit:
            break
    return to_json({
        "path": body.path, "ino": inode.ino, "size": inode.size, "mode": inode.mode, "nlink": inode.nlink,
        "replicas": attributes["replicas"], "attributes": attributes, "chunk_bytes": int(attributes["chunk-size"]), "chunks": chunks,
    })  # fmt: skip


def list_chunks(s: Step, body: ListChunks) -> JsonReply:
    """Chunks in a state (or, for "", in any but healthy) with id > after, ascending, with the file they belong to."""
    if body.state and body.state not in (*STATES, "unique", "standby"):
        raise VstorError(
            ErrorCode.INVALID, f"no chunk state {body.state}; there are {', '.join(STATES)}, unique, standby"
        )
    limit = max(1, min(body.limit, LIST_MAX))
    ids = sorted(n for n in _ids_in_state(s, body.state) if n > body.after)[:limit]
    rows = [(n, found) for n in ids if (found := s.state.chunk_by_id(n)) is not None]
    names = paths.names_of(s.state, {found[0] for _, found in rows})
    return to_json([
        {
            "chunk_id": chunk_id, "state": s.core.tracker.state_of(chunk_id), "ino": ino, "index": index,
            "path": names.get(ino, ""), "version": chunk.version, "replicas": _replicas(s, chunk),
        }
        for chunk_id, (ino, index, chunk) in rows
    ])  # fmt: skip


def _ids_in_state(s: Step, state: str) -> set[int]:
    tracker = s.core.tracker
    if state == "unique":
        return tracker.unique
    if state == "standby":
        return tracker.standby
    if state == "healthy":
        return set(s.state.chunk_home) - set(tracker.states)
    return {n for n, value in tracker.states.items() if not state or value == state}


# --- backup and restore ----------------------------------------------------------------------------------------------


def backup_done(s: Step, body: BackupDone) -> Ok:
    """Somebody has taken a backup: remember when."""
    cluster = s.state.cluster
    assert cluster is not None
    s.tx.put_cluster(msgspec.structs.replace(cluster, backup_ms=s.now_ms))
    s.event("info", f"A backup of the metadata was taken, {body.size_bytes} bytes at revision {body.revision}")
    return Ok()


def restore_finish(s: Step, body: RestoreFinish) -> Ok:
    """Do not wait for the servers that are missing."""
    return s.core.restored.finish(s, body)


# --- leases ----------------------------------------------------------------------------------------------------------


def get_leases(s: Step, body: GetLeases) -> JsonReply:
    """Leases of files (SHARED, EXCLUSIVE) at or below a path, "" for all; caching of attributes is not listed."""
    rows: list[dict[str, Any]] = []
    inside = (
        None if body.path.strip("/") == "" else {i.ino for i in paths.below(s.state, paths.resolve(s.state, body.path))}
    )
    for ino, holders in s.core.leases.holders.items():
        if inside is not None and ino not in inside:
            continue
        for session_id, mode in holders.items():
            record = s.state.sessions.get(session_id)
            if mode != CACHE and record is not None and len(rows) < LEASES_MAX:
                age = s.now_ms - s.core.sessions.live[session_id].last_ms
                rows.append({
                    "ino": ino, "mode": MODES[mode], "session_id": session_id, "host": record.hostname, "client": record.name,
                    "renewed_ms_ago": age, "valid_ms": max(0, s.core.config.int("mds.lease.ttl") - age),
                })  # fmt: skip
    names = paths.names_of(s.state, {row["ino"] for row in rows})
    return to_json([{"path": names.get(row["ino"], ""), **row} for row in rows])


def revoke_leases(s: Step, body: RevokeLeases) -> Ok:
    """Take the leases of files at (recursive: below) a path back. A client that does not answer soon loses its session."""
    top = paths.resolve(s.state, body.path)
    inodes = list(paths.below(s.state, top)) if body.recursive else [top]
    held = [i.ino for i in inodes if stat.S_ISREG(i.mode) and i.ino in s.core.leases.holders]
    if len(held) > LEASES_MAX:
        raise VstorError(ErrorCode.TOO_LARGE, f"{len(held)} files are held; revoke smaller trees")
    for asked in list(s.core.leases.asked.values()):
        if asked.cid == s.cid and s.now_ms - asked.since_ms > REVOKE_MS:
            sessions.kick(s, asked.session_id, "does not answer a revocation")
    if s.core.fences.active.keys() & set(held):
        raise Parked(("tick",), keep=True)
    s.settle([Demand(ino, Kind.ALONE) for ino in held])
    s.event("info", f"Leases of {len(held)} files at /{body.path.strip('/')} were revoked")
    return Ok()
