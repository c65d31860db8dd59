"""Requests of chunk servers, and what time does to them."""

from __future__ import annotations

import struct

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import restored, versions
from vstor.model.chunkservers import ACTIVE, DROPPED, ERROR_FLAGS, INACTIVE, OFFLINE, Live
from vstor.model.files import policy
from vstor.model.records import VOID, Cs
from vstor.model.step import Parked, Step
from vstor.proto.messages import (
    CsCreate,
    CsCreated,
    CsHeartbeat,
    CsHeartbeatReply,
    CsInventory,
    CsOrderDone,
    CsRegister,
    CsRegistered,
    CsReport,
    Ok,
)

CS_MAX = 10_000
DROPS_PER_STEP = 256  # chunks one commit takes a server out of
INVENTORY_MAX = 50_000_000
_ITEM = struct.Struct("<QII")
SYNCING = 1


def create(s: Step, body: CsCreate) -> CsCreated:
    """make-cs: a new id, never used before."""
    if not 0 <= body.tier <= 3:
        raise VstorError(ErrorCode.INVALID, f"tier {body.tier}: want 0..3")
    if len(s.state.servers) >= CS_MAX:
        raise VstorError(ErrorCode.LIMIT, f"{CS_MAX} chunk servers")
    cs_id = s.tx.new_id("cs")
    record = Cs(cs_id, body.host_id, body.hostname, body.tier, body.path, s.now_ms, down_ms=s.now_ms)
    s.tx.add_server(record)
    s.core.servers.add(record, s.now_ms)
    s.event("info", f"CS#{cs_id} was created on {body.hostname} (tier {body.tier})", "CS")
    assert s.state.cluster is not None
    return CsCreated(cs_id, s.state.cluster.cluster_id)


def register(s: Step, body: CsRegister) -> CsRegistered:
    """A running server connects. After a restart it may lack writes that were not flushed: it leaves the maps of chunks open for writing first."""
    record = s.state.servers.get(body.cs_id) or _adopt(s, body)
    if record is None:
        raise VstorError(ErrorCode.NOT_MDS, f"no chunk server CS#{body.cs_id} in this cluster")
    if record.admin == DROPPED:
        raise VstorError(
            ErrorCode.NOT_MDS, f"CS#{body.cs_id} was removed from the cluster; make a new one with make-cs"
        )
    live = s.core.servers.live[body.cs_id]
    if live.conn_id and live.conn_id != s.ctx.conn_id and live.incarnation != body.incarnation:
        raise VstorError(ErrorCode.BUSY, f"CS#{body.cs_id} runs already (pid {live.pid} on {record.hostname})")
    if record.incarnation and record.incarnation != body.incarnation:
        _leave_open_chunks(s, body.cs_id, keep_minimum=False)
    was = live.activity
    if record.incarnation and record.host_id != body.host_id:
        s.event("info", f"CS#{body.cs_id} has moved from {record.hostname} to {body.hostname}", "CS")
    s.core.servers.register(s, body)
    _update_record(s, record, body)
    s.core.orders.resend(s, body.cs_id)
    s.core.tracker.server_changed(body.cs_id)
    if was != ACTIVE or record.down_ms:
        s.event("info", f"CS#{body.cs_id} ({body.hostname}) is active", "CS")
        _health_event(s)
    s.out.bind_cs = body.cs_id
    config = s.core.config
    return CsRegistered(
        config.int("mds.cs.lease"),
        config.int("mds.wd.heartbeat"),
        s.now_ms,
        s.core.epoch,
        s.core.keyring.cs_key(body.cs_id),
        s.core.keyring.ticket_keys(s),
        s.core.servers.auth_mode(s),
        _config_for_cs(s),
    )


def _adopt(s: Step, body: CsRegister) -> Cs | None:
    """A server of this cluster that was made after the backup its metadata come from."""
    if not restored.adoptable(s.state, body.cs_id):
        return None
    record = Cs(body.cs_id, body.host_id, body.hostname, restored.adopted_tier(body), body.path, s.now_ms)
    s.tx.add_server(record)
    s.core.servers.add(record, s.now_ms)
    s.event("warn", f"CS#{body.cs_id} ({body.hostname}) was made after the backup and is taken in again", "CS")
    return record


def _config_for_cs(s: Step) -> dict[str, str]:
    return {
        name: value for name, value in s.core.config.all().items() if name.startswith(("cs.", "data.", "mds.alloc."))
    }


def _update_record(s: Step, record: Cs, body: CsRegister) -> None:
    admin = record.admin
    if admin == "failed" and not ERROR_FLAGS & set(body.flags):
        admin = "normal"
    if admin == "maintenance":
        admin = "normal"
    new = s.tx.server(body.cs_id)
    new.addresses, new.host_id, new.hostname = list(body.addresses), body.host_id, body.hostname
    new.location, new.tier, new.path = body.location, body.tier, body.path
    new.incarnation, new.version, new.space_bytes = body.incarnation, body.version, body.space_bytes
    new.down_ms, new.admin = 0, admin


def _leave_open_chunks(s: Step, cs_id: int, *, keep_minimum: bool) -> None:
    """Take the server out of chunks that may be written now. Parks (progress kept) when there are very many and it is a registration."""
    if s.core.restored.active:
        return  # what the replicas are worth is decided when all servers have told
    done = 0
    for chunk_id in s.core.maps.open_on(s, cs_id):
        found = versions.locate(s, chunk_id)
        if found is None or cs_id not in found[2].replicas:
            continue
        inode = s.tx.peek(found[0])
        if keep_minimum and inode is not None and len(found[2].replicas) <= policy(inode).minimum:
            continue
        done += versions.drop_replica(s, chunk_id, {cs_id})
        if done >= DROPS_PER_STEP:
            if keep_minimum:
                return
            raise Parked(("tick",), keep=True)


def heartbeat(s: Step, body: CsHeartbeat) -> CsHeartbeatReply:
    """The server lives; the answer renews its permission to serve."""
    live = _own(s, body.cs_id)
    s.core.servers.heartbeat(s, live, body)
    if ERROR_FLAGS & set(body.flags) and s.core.servers.admin(s, body.cs_id) == "normal":
        record = s.tx.server(body.cs_id)
        record.admin = "failed"
        s.event("warn", f"CS#{body.cs_id} has reported hard error on {record.path}", "CS")
        s.core.tracker.server_changed(body.cs_id)
    return CsHeartbeatReply(s.now_ms, s.core.keyring.ticket_keys(s), _config_for_cs(s))


def _own(s: Step, cs_id: int) -> Live:
    """The server of this connection. Raises NO_SESSION: it must register (again)."""
    live = s.core.servers.live.get(cs_id)
    if live is None or live.conn_id != s.ctx.conn_id:
        raise VstorError(ErrorCode.NO_SESSION, f"CS#{cs_id} is not registered on this connection")
    return live


def inventory(s: Step, body: CsInventory) -> Ok:
    """What the server really holds. After the last page it is compared with the maps, in the background."""
    live = _own(s, body.cs_id)
    if len(body.packed) % _ITEM.size:
        raise VstorError(ErrorCode.BAD_REQUEST, "an inventory holds items of 16 bytes")
    if live.inventory is None:
        live.inventory, live.written = {}, set()
    if len(live.inventory) + len(body.packed) // _ITEM.size > INVENTORY_MAX:
        raise VstorError(ErrorCode.TOO_LARGE)
    for chunk_id, version, flags in _ITEM.iter_unpack(body.packed):
        live.inventory[chunk_id] = (version, flags)
    if body.last:
        held, live.inventory = live.inventory, None
        written, live.written = live.written, set()
        if s.core.restored.active:
            s.core.restored.collect(body.cs_id, held)
        else:
            _compare(s, body.cs_id, held, written)
        s.core.tracker.server_changed(body.cs_id)
    return Ok()


def compare_later(s: Step, cs_id: int, held: dict[int, tuple[int, int]]) -> None:
    """Compare an inventory that was kept until the metadata were right."""
    _compare(s, cs_id, held, set())


def _compare(s: Step, cs_id: int, held: dict[int, tuple[int, int]], written: set[int]) -> None:
    s.core.gone = {pair for pair in s.core.gone if pair[1] != cs_id}
    for chunk_id, (version, flags) in held.items():
        found = s.state.chunk_by_id(chunk_id)
        if found is None:
            if s.core.restored.keeps(chunk_id):
                s.core.servers.once(
                    s, f"unknown {cs_id}", "warn",
                    f"CS#{cs_id} holds chunk {chunk_id} (and perhaps more) made after the backup the metadata come from; it is kept",
                )  # fmt: skip
            elif chunk_id < s.state.counters.get("chunk", 0):
                s.core.garbage.add(chunk_id, (cs_id,))
            continue
        chunk = found[2]
        if cs_id not in chunk.replicas:
            s.core.recovery.note_stale(chunk_id, cs_id, 0 if flags & SYNCING else version, max(version, chunk.version))
        elif flags & SYNCING:
            s.core.recovery.note_stale(chunk_id, cs_id, 0, chunk.version)
            s.core.lost.append((chunk_id, cs_id))
        elif version > chunk.version:
            s.core.higher.append((chunk_id, cs_id, version))
        elif version < chunk.version:
            s.core.lower.append((chunk_id, cs_id))
    for chunk_id in s.state.by_cs.get(cs_id, ()):
        if chunk_id not in held and chunk_id not in written:
            found = s.state.chunk_by_id(chunk_id)
            if found is None:
                continue
            if not found[2].flags & VOID:
                s.core.lost.append((chunk_id, cs_id))
            elif found[2].version > 1:
                s.core.lower.append((chunk_id, cs_id))


def report(s: Step, body: CsReport) -> Ok:
    """The server met trouble by itself."""
    _own(s, body.cs_id)
    where = f"chunk {body.chunk_id} offset {body.offset}"
    if body.kind == "corrupt":
        s.core.repairs.report(s, body.cs_id, body.chunk_id, body.offset, f"CS#{body.cs_id}")
    elif body.kind == "repaired":
        s.event("info", f"CS#{body.cs_id} repaired {where}", "CS")
    elif body.kind == "lost":
        s.core.lost.append((body.chunk_id, body.cs_id))
    elif body.kind in ("io_error", "no_space", "journal_error"):
        text = body.message or body.kind.replace("_", " ")
        s.core.servers.once(s, f"{body.kind} {body.cs_id}", "err" if body.kind != "no_space" else "warn",
                            f"CS#{body.cs_id} reports {text} ({where}, errno {body.error})")  # fmt: skip
    else:
        raise VstorError(ErrorCode.BAD_REQUEST, f"report of kind {body.kind!r}")
    return Ok()


def order_done(s: Step, body: CsOrderDone) -> Ok:
    """The result of an order."""
    if not s.ctx.cs_id:
        raise VstorError(ErrorCode.NO_SESSION)
    s.core.orders.answered(s, s.ctx.cs_id, body)
    return Ok()


# --- time ---------------------------------------------------------------------------------------------------------


def disconnected(s: Step, cs_id: int) -> None:
    """The connection is gone: no orders reach it. Writers stop counting on it at once, where enough others are left."""
    live = s.core.servers.live.get(cs_id)
    if live is None or live.conn_id != s.ctx.conn_id:
        return
    live.conn_id = 0
    if live.activity == ACTIVE:
        _leave_open_chunks(s, cs_id, keep_minimum=True)


def tick(s: Step) -> None:
    """Silent servers become inactive, then offline; maintenance runs out; work left over from inventories goes on."""
    config = s.core.config
    silent_ms = config.int("mds.wd.heartbeat") * config.int("mds.wd.inactive_heartbeats")
    for live in s.core.servers.live.values():
        record = s.state.servers.get(live.cs_id)
        if record is None or live.activity == DROPPED:
            continue
        grace_ms = silent_ms if live.conn_id else max(silent_ms, config.int("mds.cs.lease"))
        if live.activity == ACTIVE and s.now_ms - live.last_ms > grace_ms:
            _became_inactive(s, live)
        elif live.activity == INACTIVE and record.admin == "maintenance":
            if s.now_ms - record.down_ms >= config.int("mds.wd.maintenance_tout"):
                s.tx.server(live.cs_id).admin = "normal"
                s.event("warn", f"Maintenance of CS#{live.cs_id} ended: it did not come back in time", "CS")
        elif live.activity == INACTIVE and s.now_ms - (record.down_ms or live.last_ms) >= config.int(
            "mds.wd.offline_tout"
        ):
            live.activity = OFFLINE
            if record.incarnation:
                s.event("warn", f"CS#{live.cs_id} ({record.hostname}) is offline", "CS")
            _health_event(s)
            s.core.tracker.server_changed(live.cs_id)
    if not s.core.restored.active:
        _work_off(s)


def _became_inactive(s: Step, live: Live) -> None:
    live.activity = INACTIVE
    live.conn_id = 0
    record = s.tx.server(live.cs_id)
    record.down_ms = record.down_ms or s.now_ms
    s.event("warn", f"CS#{live.cs_id} ({record.hostname}) is inactive", "CS")
    _health_event(s)
    s.core.orders.server_lost(s, live.cs_id)
    s.core.recovery.server_lost(s, live.cs_id)
    _leave_open_chunks(s, live.cs_id, keep_minimum=True)
    s.core.tracker.server_changed(live.cs_id)


def _health_event(s: Step) -> None:
    counts = s.core.servers.counts()
    numbers = f"{counts[ACTIVE]} active, {counts[INACTIVE]} inactive, {counts[OFFLINE]} offline CS"
    if s.core.servers.mass_failure(s):
        limit = s.core.config.int("mds.wd.max_offline_cs_hosts")
        s.event("err", f"The cluster failed with {numbers} (mds.wd.max_offline_cs_hosts={limit})")
    elif counts[INACTIVE] or counts[OFFLINE]:
        s.event("warn", f"The cluster is degraded with {numbers}")
    else:
        s.event("info", f"The cluster is healthy with {numbers}")


def _work_off(s: Step) -> None:
    """A bounded part of what inventories brought to light."""
    for _ in range(min(DROPS_PER_STEP, len(s.core.lost))):
        chunk_id, cs_id = s.core.lost.popleft()
        found = versions.locate(s, chunk_id)
        if found is None or cs_id not in found[2].replicas:
            continue
        if versions.drop_replica(s, chunk_id, {cs_id}):
            s.core.servers.once(
                s,
                f"lost {cs_id}",
                "warn",
                f"CS#{cs_id} lacks replicas it should hold (chunk {chunk_id} and perhaps more)",
            )
        elif len(found[2].replicas) == 1:
            s.core.gone.add((chunk_id, cs_id))
            versions.wake(s, chunk_id)
            s.core.servers.once(
                s, f"gone {chunk_id}", "err", f"CS#{cs_id} lacks the only replica of chunk {chunk_id}: its data is lost"
            )
    for _ in range(min(DROPS_PER_STEP, len(s.core.lower))):
        chunk_id, cs_id = s.core.lower.popleft()
        found = versions.locate(s, chunk_id)
        if found is not None and cs_id in found[2].replicas:
            s.core.versions.raise_one(s, found[2], cs_id)
    for _ in range(min(DROPS_PER_STEP, len(s.core.higher))):
        chunk_id, cs_id, version = s.core.higher.popleft()
        found = versions.locate(s, chunk_id)
        if found is not None and cs_id in found[2].replicas and version > found[2].version:
            # Only after metadata was restored from an older backup: the replicas know better.
            s.core.servers.once(
                s,
                "higher",
                "err",
                f"CS#{cs_id} holds chunk {chunk_id} (and perhaps more) at a higher version than the metadata",
            )
            s.core.versions.start(s, found[0], found[1], found[2]._replace(version=version))
