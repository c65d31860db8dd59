"""Chunk servers: registration, heartbeats, states, who may take new replicas.

Activity (FEATURES' words): active; inactive, silent for less than mds.wd.offline_tout; offline, silent for longer; dropped, removed for
ever. Administration: normal, releasing, failed, maintenance, dropped. What is durable is in `records.Cs`, the rest is the leader's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.config import AUTH_MODES, MB
from vstor.model.placement import Candidate, domain_of
from vstor.model.records import Chunk, Cs
from vstor.model.step import Step
from vstor.proto.messages import CsHeartbeat, CsRegister

ACTIVE, INACTIVE, OFFLINE, DROPPED = "active", "inactive", "offline", "dropped"
ERROR_FLAGS = set("HSsRT")  # h, a checksum mismatch, is repaired and does not fail the server
FULL_EVENT_MS = 600_000  # the same allocation trouble is reported once in this time
EWMA = 0.2
ILL_LOAD = 1000  # an ill server is chosen only where no other one is left


@dataclass(slots=True)
class Live:
    """What the leader knows of a running chunk server."""

    cs_id: int
    activity: str = INACTIVE
    conn_id: int = 0  # 0: not connected
    incarnation: int = 0
    last_ms: int = 0  # last heartbeat
    pid: int = 0
    space_bytes: int = 0
    free_bytes: int = 0
    replicas: int = 0
    flags: str = ""
    io_lat_avg_ms: float = 0.0
    io_lat_max_ms: float = 0.0
    queue_depth: int = 0
    journal_full_percent: float = 0.0
    io_wait_percent: float = -1.0
    scrub_chunks: int = 0
    scrub_last_ms: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    read_bytes_s: float = 0.0
    write_bytes_s: float = 0.0
    allocated: int = 0  # chunks placed since the last heartbeat
    inventory: dict[int, tuple[int, int]] | None = None  # being received; None: complete
    written: set[int] = field(default_factory=set)  # chunks first written while the inventory was being received


class Servers:
    """All chunk servers as the leader sees them."""

    def __init__(self, servers: dict[int, Cs], now_ms: int, offline_ms: int) -> None:
        self.live: dict[int, Live] = {}
        self._reported: dict[str, int] = {}
        for record in servers.values():
            live = self.add(record, now_ms)
            if record.down_ms == 0 and record.incarnation and record.admin != DROPPED:
                live.activity = ACTIVE  # presumed until the time to report is over: it served under the leader before
            elif record.down_ms and now_ms - record.down_ms >= offline_ms:
                live.activity = OFFLINE

    def add(self, record: Cs, now_ms: int) -> Live:
        """Start to know a server."""
        live = self.live[record.cs_id] = Live(record.cs_id, last_ms=now_ms, space_bytes=record.space_bytes)
        if record.admin == DROPPED:
            live.activity = DROPPED
        live.inventory = {}
        return live

    # --- questions ----------------------------------------------------------------------------------------------

    def is_active(self, cs_id: int) -> bool:
        """It answers, or is presumed to just after a change of leader."""
        live = self.live.get(cs_id)
        return live is not None and live.activity == ACTIVE

    def is_connected(self, cs_id: int) -> bool:
        """Orders reach it."""
        live = self.live.get(cs_id)
        return live is not None and live.conn_id != 0

    def is_known_good(self, cs_id: int) -> bool:
        """Active and connected, and its inventory has been compared with the maps: what R6 counts."""
        live = self.live.get(cs_id)
        return live is not None and live.activity == ACTIVE and live.conn_id != 0 and live.inventory is None

    def admin(self, s: Step, cs_id: int) -> str:
        """Administrative state."""
        record = s.state.servers.get(cs_id)
        return record.admin if record else DROPPED

    def domain(self, s: Step, cs_id: int, level: int) -> str:
        """Failure domain of a server."""
        record = s.state.servers[cs_id]
        return domain_of(cs_id, record.host_id, record.location, level)

    def margin(self, s: Step, live: Live) -> int:
        """Bytes kept free of new chunks."""
        config = s.core.config
        percent = live.space_bytes * config.int("mds.alloc.fill_margin") // 100
        return max(percent, min(config.int("mds.alloc.free_space_margin") * MB, live.space_bytes // 10))

    def usable(self, s: Step, *, reserve: bool = False) -> Iterator[tuple[Cs, Live]]:
        """Servers in order, with room or (reserve) also those only recovery may still fill."""
        for cs_id, live in self.live.items():
            record = s.state.servers[cs_id]
            if live.activity == ACTIVE and live.conn_id and live.inventory is None and record.admin == "normal":
                room = live.free_bytes - self.margin(s, live) // (2 if reserve else 1)
                if room > 0 and not ERROR_FLAGS & set(live.flags):
                    yield record, live

    def candidates(
        self, s: Step, *, reserve: bool = False, exclude: set[int] | frozenset[int] = frozenset()
    ) -> list[Candidate]:
        """Servers that may take a new replica."""
        out = []
        for record, live in self.usable(s, reserve=reserve):
            if record.cs_id not in exclude:
                load = 1.0 + live.allocated / 16 + live.queue_depth / 8 + live.io_lat_avg_ms / 50
                load *= ILL_LOAD if record.cs_id in s.core.slow.ill else 1
                weight = max(1.0, (live.free_bytes - self.margin(s, live)) / MB) / load
                out.append(Candidate(record.cs_id, record.host_id, record.location, record.tier, weight))
        return out

    def all_full(self, s: Step) -> bool:
        """There are healthy servers, and none has room."""
        healthy = [
            live for live in self.live.values()
            if live.activity == ACTIVE and live.conn_id and s.state.servers[live.cs_id].admin == "normal"
        ]  # fmt: skip
        return bool(healthy) and not any(True for _ in self.usable(s))

    def check_room(self, s: Step) -> None:
        """The cluster's own limit. Raises NO_SPACE."""
        limit = s.core.config.int("mds.alloc.capacity_limit")
        if limit and s.state.logical_bytes >= limit:
            raise VstorError(ErrorCode.NO_SPACE, "mds.alloc.capacity_limit is reached")

    def offline_hosts(self, s: Step) -> set[str]:
        """Hosts with an offline server, not counting those that are to go anyway."""
        return {
            s.state.servers[live.cs_id].host_id for live in self.live.values()
            if live.activity == OFFLINE and s.state.servers[live.cs_id].admin in ("normal", "failed")
        }  # fmt: skip

    def mass_failure(self, s: Step) -> bool:
        """So many hosts are offline that copying would make it worse."""
        limit = s.core.config.int("mds.wd.max_offline_cs_hosts")
        return bool(limit) and len(self.offline_hosts(s)) > limit

    def counts(self) -> dict[str, int]:
        """Servers by activity, without dropped ones."""
        out = {ACTIVE: 0, INACTIVE: 0, OFFLINE: 0}
        for live in self.live.values():
            if live.activity != DROPPED:
                out[live.activity] += 1
        return out

    # --- changes ------------------------------------------------------------------------------------------------

    def note_allocation(self, cs_id: int) -> None:
        """A chunk was placed there: it counts as load until the next heartbeat."""
        self.live[cs_id].allocated += 1

    def wrote(self, chunk: Chunk) -> None:
        """The chunk exists from now on: an inventory begun before may lack it."""
        for cs_id in chunk.replicas:
            live = self.live.get(cs_id)
            if live is not None and live.inventory is not None:
                live.written.add(chunk.id)

    def too_few(self, s: Step, wanted: int, tier: int, domain: str, found: int) -> None:
        """Say, not too often, that replicas have no place."""
        self.once(
            s, f"alloc {wanted} {tier} {domain} {found}", "warn",
            f"Failed to allocate {wanted} replicas at tier {tier} since only {found} chunk servers are available for allocation "
            f"(failure domain {domain})",
        )  # fmt: skip

    def once(self, s: Step, key: str, severity: str, message: str) -> None:
        """An event that is not repeated for a while."""
        if s.now_ms - self._reported.get(key, -FULL_EVENT_MS) >= FULL_EVENT_MS:
            if len(self._reported) > 1000:
                self._reported.clear()
            self._reported[key] = s.now_ms
            s.event(severity, message)

    def register(self, s: Step, body: CsRegister) -> Live:
        """Take over what a (re)connecting server says of itself."""
        live = self.live[body.cs_id]
        live.activity = ACTIVE
        live.conn_id = s.ctx.conn_id
        live.incarnation = body.incarnation
        live.last_ms = s.now_ms
        live.pid = body.pid
        live.space_bytes, live.free_bytes, live.flags = body.space_bytes, body.free_bytes, body.flags
        live.inventory, live.written = {}, set()
        live.allocated = 0
        return live

    def heartbeat(self, s: Step, live: Live, body: CsHeartbeat) -> None:
        """Take over the figures of a heartbeat."""
        elapsed_s = max(1, s.now_ms - live.last_ms) / 1000
        if live.bytes_read and body.bytes_read >= live.bytes_read and body.bytes_written >= live.bytes_written:
            live.read_bytes_s += EWMA * ((body.bytes_read - live.bytes_read) / elapsed_s - live.read_bytes_s)
            live.write_bytes_s += EWMA * ((body.bytes_written - live.bytes_written) / elapsed_s - live.write_bytes_s)
        live.last_ms = s.now_ms
        live.space_bytes, live.free_bytes = body.space_bytes, body.free_bytes
        live.replicas, live.flags = body.replicas, body.flags
        live.io_lat_avg_ms, live.io_lat_max_ms, live.queue_depth = (
            body.io_lat_avg_ms,
            body.io_lat_max_ms,
            body.queue_depth,
        )
        live.bytes_read, live.bytes_written = body.bytes_read, body.bytes_written
        live.scrub_chunks, live.scrub_last_ms = body.scrub_chunks, body.scrub_last_ms
        live.journal_full_percent, live.io_wait_percent = body.journal_full_percent, body.io_wait_percent
        live.allocated = 0

    def auth_mode(self, s: Step) -> int:
        """Protection of data connections as a number."""
        return AUTH_MODES[s.core.config.text("data.auth_mode")]
