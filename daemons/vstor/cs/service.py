"""The CS's side of the conversation with the MDS: registration, inventory, heartbeats, reports, orders.

DESIGN: everything that a connection needs happens in `on_connect`: register, take over keys, epoch and time, send the inventory.
The lease counts from the local time taken before a registration or heartbeat was sent, so that this side always stops first (R4).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vstor
from vstor.clock import boottime_ms
from vstor.codes_gen import ErrorCode
from vstor.cs import stats
from vstor.cs.engine import EngineHost
from vstor.cs.orders import OrderRunner
from vstor.cs.repository import CsIdentity
from vstor.cs.scrubber import Scrubber
from vstor.cs.sources import Sources
from vstor.errors import VstorError
from vstor.net.identity import Identity, hostname
from vstor.net.rpc_client import CallNow, MdsClient
from vstor.proto import messages as m

log = logging.getLogger(__name__)

INVENTORY_PAGE = 16384  # replicas; far below FRAME_BYTES_MAX
INVENTORY_ENTRY = struct.Struct("<QII")
INVENTORY_SYNCING = 1
REPORTS_MAX = (
    1024  # waiting reports; when more are lost the inventory is sent again, and the scrub finds damaged blocks again
)
REGISTER_TIMEOUT_S = 10.0
KEYS_BYTES = 32


@dataclass(frozen=True)
class Options:
    """What the service says about itself."""

    identity: CsIdentity
    node: Identity
    repo: Path
    incarnation: int
    addresses: list[str]
    location: str
    direct: bool
    journal_clean: bool


@dataclass
class Lease:
    """Until when this CS may serve, by its own clock."""

    lease_ms: int = 0
    heartbeat_ms: int = 1000
    until_ms: int = 0  # CLOCK_BOOTTIME


def lease_until(sent_boottime_ms: int, lease_ms: int) -> int:
    """End of the lease that an answer grants: counted from before the question was sent."""
    return sent_boottime_ms + lease_ms


def clock_offset(now_ms: int, sent_boottime_ms: int) -> int:
    """Cluster time minus CLOCK_BOOTTIME. Taken as if the answer had been made when the question was sent: this side's idea of
    cluster time is never behind, so keys and tickets end early rather than late."""
    return now_ms - sent_boottime_ms


def inventory_pages(replicas: Iterator[Any]) -> Iterator[bytes]:
    """Packed entries, INVENTORY_PAGE a page; at least one page."""
    page = bytearray()
    first = True
    for replica in replicas:
        if len(page) >= INVENTORY_PAGE * INVENTORY_ENTRY.size:
            yield bytes(page)
            page.clear()
            first = False
        page += INVENTORY_ENTRY.pack(replica.chunk_id, replica.version, INVENTORY_SYNCING if replica.syncing else 0)
    if page or first:
        yield bytes(page)


@dataclass
class CsService:
    """One running chunk server. The MDS client is attached after construction, since it calls back into this."""

    options: Options
    host: EngineHost
    scrubber: Scrubber
    sources: Sources
    lease: Lease = field(default_factory=Lease)
    health: stats.Health = field(default_factory=stats.Health)

    def __post_init__(self) -> None:
        self.registered = asyncio.Event()
        self.orders: OrderRunner | None = None
        self.client: MdsClient | None = None
        self._reports: deque[m.CsReport] = deque(maxlen=REPORTS_MAX)
        self._report_waits = asyncio.Event()
        self._reports_lost = False  # the MDS may believe in replicas that are gone
        self._counters: dict[str, int] = {}
        self._busy = stats.DiskBusy(self.options.repo)
        self._known_ticket_keys: dict[int, bytes] = {}

    @property
    def cs_id(self) -> int:
        return self.options.identity.cs_id

    # --- connection

    async def on_connect(self, call_now: CallNow) -> None:
        """Register and send the inventory, on every new connection."""
        space_bytes, free_bytes = self._space()
        options = self.options
        sent_ms = boottime_ms()
        async with asyncio.timeout(REGISTER_TIMEOUT_S):
            reply = await call_now(
                m.CsRegister(
                    cs_id=self.cs_id,
                    incarnation=options.incarnation,
                    addresses=options.addresses,
                    host_id=options.node.host_id,
                    hostname=hostname(),
                    location=options.location,
                    tier=options.identity.tier,
                    path=str(options.repo),
                    pid=os.getpid(),
                    version=getattr(vstor, "__version__", "0"),
                    space_bytes=space_bytes,
                    free_bytes=free_bytes,
                    flags=self._flags(),
                )
            )
        if not isinstance(reply, m.CsRegistered):
            raise VstorError(ErrorCode.BAD_REQUEST, "the MDS answered CsRegister with something else")
        await self._take_over(reply, sent_ms)
        count = await self._send_inventory(call_now)
        self.registered.set()
        log.info("registered cs=%d epoch=%d replicas=%d lease_ms=%d", self.cs_id, reply.epoch, count, reply.lease_ms)

    async def _take_over(self, reply: m.CsRegistered, sent_ms: int) -> None:
        engine = self.host.engine
        if self.orders is not None:
            self.orders.set_epoch(reply.epoch)
        self.lease.lease_ms, self.lease.heartbeat_ms = reply.lease_ms, max(50, reply.heartbeat_ms)
        await self.host.call(engine.set_cs_key, reply.cs_key)
        await self.host.call(engine.set_min_auth, reply.auth_mode)
        self.sources.auth_mode = reply.auth_mode
        await self._set_ticket_keys(reply.ticket_keys)
        self.scrubber.configure(reply.config)
        await self._serve_until(reply.now_ms, sent_ms)

    async def _set_ticket_keys(self, keys: list[tuple[int, bytes]]) -> None:
        """Those that are valid now. What was opened under others ends: after the revocation of a node everybody needs new tickets."""
        oldest = min((key_id for key_id, _ in keys), default=0)
        for key_id, key in keys:
            if self._known_ticket_keys.get(key_id) != key:
                await self.host.call(self.host.engine.set_ticket_key, key_id, key)
                self._known_ticket_keys[key_id] = key
        if any(key_id < oldest for key_id in self._known_ticket_keys):
            await self.host.call(self.host.engine.forget_ticket_keys, oldest)
            self._known_ticket_keys = {n: key for n, key in self._known_ticket_keys.items() if n >= oldest}

    async def _serve_until(self, now_ms: int, sent_ms: int) -> None:
        self.lease.until_ms = lease_until(sent_ms, self.lease.lease_ms)
        await self.host.call(self.host.engine.set_time, clock_offset(now_ms, sent_ms), self.lease.until_ms)

    async def _send_inventory(self, call_now: CallNow) -> int:
        replicas = await self.host.call(self._all_replicas)
        pages = list(inventory_pages(iter(replicas)))
        for number, page in enumerate(pages, 1):
            await call_now(m.CsInventory(self.cs_id, page, last=number == len(pages)))
        return len(replicas)

    def _all_replicas(self) -> list[Any]:
        found: list[Any] = []
        while page := self.host.engine.list(found[-1].chunk_id if found else 0, INVENTORY_PAGE):
            found += page
        return found

    def on_push(self, body: m.PushBody) -> None:
        """Orders of the leader."""
        if isinstance(body, m.CsOrder) and self.orders is not None:
            self.orders.submit(body)
        else:
            log.warning("push ignored kind=%s", type(body).__name__)

    # --- heartbeats

    async def heartbeat_forever(self) -> None:
        """One heartbeat each heartbeat_ms, from the first registration on; ends only by cancellation."""
        await self.registered.wait()
        while True:
            started_ms = boottime_ms()
            await self._heartbeat()
            spent_ms = boottime_ms() - started_ms
            await asyncio.sleep(max(0, self.lease.heartbeat_ms - spent_ms) / 1000)

    async def _heartbeat(self) -> None:
        assert self.client is not None
        body = await self.host.call(self.heartbeat_body)
        sent_ms = boottime_ms()
        try:
            reply = await self.client.call(body, deadline_s=max(0.5, self.lease.lease_ms / 1000), retry=False)
        except VstorError as exc:
            log.warning("heartbeat failed cs=%d code=%s reason=%s", self.cs_id, exc.code.name, exc.message)
            if exc.code not in (ErrorCode.DISCONNECTED, ErrorCode.UNREACHABLE, ErrorCode.SHUTTING_DOWN):
                self.client.reconnect()  # the MDS does not know this connection as a CS any more: register again
            return
        if isinstance(reply, m.CsHeartbeatReply):
            await self._set_ticket_keys(reply.ticket_keys)
            self.scrubber.configure(reply.config)
            await self._serve_until(reply.now_ms, sent_ms)

    def heartbeat_body(self) -> m.CsHeartbeat:
        """State and counters now; the latencies since the last heartbeat. Blocks (statvfs)."""
        space_bytes, free_bytes = self._space()
        counters = self.host.engine.counters()
        average_ms, worst_ms = stats.latency_ms(counters, self._counters)
        self._counters = counters
        return m.CsHeartbeat(
            cs_id=self.cs_id,
            space_bytes=space_bytes,
            free_bytes=free_bytes,
            replicas=counters["chunks"],
            flags=self._flags(),
            io_lat_avg_ms=average_ms,
            io_lat_max_ms=worst_ms,
            queue_depth=counters["inflight"],
            bytes_read=counters["bytes_read"],
            bytes_written=counters["bytes_written"],
            scrub_chunks=self.scrubber.state.chunks,
            scrub_last_ms=self.scrubber.state.finished_ms,
            journal_full_percent=stats.journal_full_percent(counters),
            io_wait_percent=self._busy.sample(boottime_ms() / 1000),
        )

    def _space(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self.options.repo)
        return usage.total, usage.free

    def _flags(self) -> str:
        options = self.options
        return stats.flags(
            bool(options.identity.journal), options.direct, options.journal_clean, self.health.letters(boottime_ms())
        )

    # --- reports

    def report(self, kind: str, chunk_id: int = 0, offset: int = 0, error: int = 0, message: str = "") -> None:
        """Tell the MDS, as soon as there is one. Must not block."""
        self._reports_lost |= len(self._reports) == REPORTS_MAX
        self._reports.append(m.CsReport(self.cs_id, kind, chunk_id, offset, error, message))
        self._report_waits.set()

    async def report_forever(self) -> None:
        """Send what `report` collected; ends only by cancellation.

        A replica that is gone is told once. If that was lost, nothing else would tell: the inventory does, with a new registration.
        """
        assert self.client is not None
        while True:
            await self._report_waits.wait()
            self._report_waits.clear()
            while self._reports:
                body = self._reports.popleft()
                try:
                    await self.client.call(body)
                except VstorError as exc:
                    log.warning("report not taken kind=%s chunk=%d code=%s", body.kind, body.chunk_id, exc.code.name)
                    self._reports_lost |= body.kind == "lost"
            if self._reports_lost:
                self._reports_lost = False
                log.warning("reports were lost cs=%d: registering again to send the inventory", self.cs_id)
                self.client.reconnect()

    async def report_order(self, done: m.CsOrderDone) -> None:
        """Send the result of an order."""
        assert self.client is not None
        await self.client.call(done)

    # --- metrics

    def metrics(self) -> str:
        """Text of the metrics endpoint."""
        labels = {"cluster": self.options.identity.cluster, "cs": str(self.cs_id)}
        space_bytes, free_bytes = self._space()
        extra: dict[str, float] = {
            "space_bytes": space_bytes,
            "free_bytes": free_bytes,
            "lease_left_seconds": max(0.0, (self.lease.until_ms - boottime_ms()) / 1000),
            "connected": float(self.client is not None and self.client.connected),
            "scrub_chunks": self.scrubber.state.chunks,
            "scrub_bad_blocks": self.scrubber.state.bad_blocks,
            "scrub_last_finished_seconds": self.scrubber.state.finished_ms / 1000,
        }
        if self.orders is not None:
            extra |= {"orders_running": self.orders.running, "orders_done": self.orders.done}
            extra |= {"orders_failed": self.orders.failed}
        # Reading the counters resets the maxima that the heartbeat reports: the heartbeat's last ones are shown.
        return stats.render_metrics(labels, self._counters, extra)
