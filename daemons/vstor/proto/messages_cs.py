"""Messages of chunk servers: registration, heartbeats, reports, and the orders they are given."""

from __future__ import annotations

from typing import Union

from vstor.proto.messages_base import Body


class CsCreate(Body, tag=80):
    """make-cs: a new id."""

    host_id: str
    hostname: str
    tier: int
    path: str


class CsCreated(Body, tag=81):
    cs_id: int
    cluster_id: str


class CsRegister(Body, tag=82):
    """Start of a connection of a running CS."""

    cs_id: int
    incarnation: int
    addresses: list[str]
    host_id: str
    hostname: str
    location: str  # room.row.rack, may be ""
    tier: int
    path: str
    pid: int
    version: str
    space_bytes: int
    free_bytes: int
    flags: str  # J C D c, then error letters


class CsRegistered(Body, tag=83):
    lease_ms: int  # serve no longer than this after sending a heartbeat that was answered
    heartbeat_ms: int
    now_ms: int
    epoch: int  # of the leader: orders of smaller epochs are refused
    cs_key: bytes
    ticket_keys: list[tuple[int, bytes]]
    auth_mode: int
    config: dict[str, str]


class CsHeartbeat(Body, tag=84):
    cs_id: int
    space_bytes: int
    free_bytes: int
    replicas: int
    flags: str
    io_lat_avg_ms: float
    io_lat_max_ms: float
    queue_depth: int
    bytes_read: int
    bytes_written: int
    scrub_chunks: int = 0
    scrub_last_ms: int = 0
    journal_full_percent: float = 0.0
    io_wait_percent: float = -1.0  # of the time, in which its disk had I/O in flight; below 0: not known


class CsHeartbeatReply(Body, tag=85):
    now_ms: int
    ticket_keys: list[tuple[int, bytes]]
    config: dict[str, str]


class CsInventory(Body, tag=86):
    """All replicas held, in pages: packed <QII (chunk_id, version, flags 1: syncing)>; last=True ends it."""

    cs_id: int
    packed: bytes
    last: bool


class CsReport(Body, tag=87):
    """kind: corrupt, io_error, no_space, journal_error, repaired, lost."""

    cs_id: int
    kind: str
    chunk_id: int
    offset: int
    error: int
    message: str


class Source(Body):
    """Where to copy from: a data session of the target CS at the source CS, and a ticket for READ."""

    cs_id: int
    addresses: list[str]
    session_id: int
    expiry_ms: int
    key: bytes
    ticket: bytes


class OrderSetVersion(Body, tag=90):
    """create_bytes > 0: the chunk may not have been written yet; where it is absent it is made, empty, at this version. So a late first
    write under a ticket of an older version finds nothing to create and is refused."""

    chunk_id: int
    version: int
    create_bytes: int = 0


class OrderDelete(Body, tag=91):
    chunk_ids: list[int]


class OrderReplicate(Body, tag=92):
    """Make an identical copy at `version` from one of the sources.  base_version: the version a stale replica here may be
    reused from (only granules with mod_version >= base_version are compared and copied), 0: start empty.
    final=False: copy, keep the replica marked syncing, report the source's write_seq (CsOrderDone.value) for the next pass.
    final=True: writes are stopped; copy what changed since and finish at `version`."""

    chunk_id: int
    version: int
    chunk_bytes: int
    sources: list[Source]
    base_version: int
    since_seq: int  # copy granules with write_seq > this (0: all)
    final: bool
    rate_bytes_s: int  # 0: no limit


class OrderRepair(Body, tag=93):
    """Rewrite the granule at offset from a good replica, after verification."""

    chunk_id: int
    version: int
    offset: int
    sources: list[Source]


class OrderReconcile(Body, tag=94):
    """Make this replica equal to the source (compare granule hashes, copy those that differ), at `version`, and flush it. Without a source,
    for the one that the others are compared with: only flush it."""

    chunk_id: int
    version: int
    sources: list[Source]


class OrderScrub(Body, tag=95):
    chunk_id: int


Order = Union[OrderSetVersion, OrderDelete, OrderReplicate, OrderRepair, OrderReconcile, OrderScrub]


class CsOrder(Body, tag=96):
    order_id: int
    epoch: int
    order: Order


class CsOrderDone(Body, tag=97):
    """status: 0 or an error code. value: see the order. bytes: copied."""

    order_id: int
    status: int
    message: str = ""
    value: int = 0
    bytes: int = 0
