"""Control-plane messages: what MDS, CS, clients and tools say to each other.

DESIGN: one TCP connection under TLS 1.3 carries frames of `u32 little-endian length` + msgpack of one
envelope (`Request`, `Reply`, `Failure`, `Push`).  Bodies are `msgspec` structs in array form: new fields go
to the end with a default, a tag is never used twice, so old and new peers understand each other.
Times: `*_ms` of the cluster clock are Unix milliseconds of the leader; durations are milliseconds.
"""

from __future__ import annotations

from typing import Union

import msgspec

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 16 << 20  # one envelope; READDIR and inventories are paged below it
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 65536
MAP_CHUNKS_MAX = 256  # chunks in one GetMap
DIR_ENTRIES_MAX = 4096  # entries in one ReadDir reply
ROOT_INO = 1

# Lease modes (also vst_file_set_lease): CACHE lets a client cache attributes (and a directory's entries).
NONE, SHARED, EXCLUSIVE, CACHE = 0, 1, 2, 3


class _Body(msgspec.Struct, array_like=True, gc=False):
    """Base of every body."""


# --- shared pieces ---------------------------------------------------------------------------------


class Attr(_Body):
    """Attributes of an inode. Times in ns since the epoch; size in bytes; mode holds the type bits too."""

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int  # of 512 bytes, an estimate
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    cacheable: bool = True  # False: another client writes it now, do not cache


class ChunkMap(_Body):
    """One chunk of a file. `replicas` empty: a hole (reads are zeros)."""

    index: int
    chunk_id: int
    version: int
    flags: int  # 1: void, never reported written (the ticket carries CREATE)
    replicas: list[int]
    ticket: bytes = b""


class CsAccess(_Body):
    """How a session reaches a chunk server."""

    cs_id: int
    addresses: list[str]  # "ip:port", "unix:/path" (only for the same host_id)
    host_id: str
    expiry_ms: int
    key: bytes


# --- greeting, authentication ------------------------------------------------------------------------


class Hello(_Body, tag=1):
    """First message. role: client, cs, ctl, mds, auth (the only one allowed without a certificate)."""

    cluster: str
    cluster_id: str
    role: str
    protocol: int
    version: str
    host_id: str
    hostname: str


class HelloReply(_Body, tag=2):
    """Who answers. Anything but authentication and local status must go to the leader."""

    cluster: str
    cluster_id: str
    mds_id: int
    leader: bool
    leader_address: str  # "ip:port" of the leader's control port, "" when unknown
    epoch: int
    now_ms: int
    addresses: list[str]  # control ports of all MDS


class AuthStart(_Body, tag=3):
    """Ask for the parameters of the password proof."""


class AuthParams(_Body, tag=4):
    """scrypt parameters; w = scrypt(password, salt) feeds SPAKE2."""

    salt: bytes
    n: int
    r: int
    p: int


class AuthExchange(_Body, tag=5):
    """Client's SPAKE2 message."""

    message: bytes


class AuthChallenge(_Body, tag=6):
    """Server's SPAKE2 message and confirmation = HMAC(K, "server" | SHA-256 of the TLS server certificate)."""

    message: bytes
    confirm: bytes


class AuthFinish(_Body, tag=7):
    """confirm = HMAC(K, "client" | certificate hash | CSR)."""

    confirm: bytes
    csr_pem: bytes


class AuthCertificate(_Body, tag=8):
    """The node certificate, and tag = HMAC(K, "cert" | ca | cert)."""

    certificate_pem: bytes
    ca_pem: bytes
    cluster_id: str
    mds_addresses: list[str]  # bs.list form, IP:2510
    tag: bytes


# --- client sessions -----------------------------------------------------------------------------------


class SessionOpen(_Body, tag=10):
    name: str  # mount point or program
    pid: int
    host_id: str
    hostname: str


class SessionReply(_Body, tag=11):
    session_id: int
    ttl_ms: int  # all leases end so long after the last answered renewal was sent
    margin_ms: int  # the client stops this much earlier
    now_ms: int
    auth_mode: int  # of data connections
    config: dict[str, str]


class SessionRenew(_Body, tag=12):
    session_id: int


class Renewed(_Body, tag=13):
    now_ms: int


class SessionResume(_Body, tag=14):
    """After a reconnect, to whatever leader: leases held, as (ino, mode). The reply's config has the current values;
    leases the MDS could not give back are recalled by Push."""

    session_id: int
    leases: list[tuple[int, int]]
    locks: list[LockRange] = []
    opens: list[tuple[int, int]] = []  # (ino, count) of open files, so that files without a name live on


class SessionClose(_Body, tag=15):
    session_id: int


# --- name space (all need a session; ino is the directory or file) ----------------------------------------


class Lookup(_Body, tag=20):
    parent: int
    name: bytes


class GetAttr(_Body, tag=21):
    ino: int


SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = 1, 2, 4, 8, 16, 32, 64
DROP_SUID = 128  # of a regular file: set-user-id goes, set-group-id too where the group may execute


TIME_NOW = -(1 << 63)


class SetAttr(_Body, tag=22):
    """mask of SET_* and DROP_SUID. Size changes need the EXCLUSIVE lease; the client has punched the tail before."""

    ino: int
    mask: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int = 0  # TIME_NOW: the server's
    mtime_ns: int = 0
    ctime_ns: int = 0


class Create(_Body, tag=23):
    """Make a file, directory, device, fifo, socket or symlink. exclusive=False opens an existing regular file.
    open=True on a regular file: as Open with an EXCLUSIVE lease, in one round trip."""

    parent: int
    name: bytes
    mode: int  # with type bits
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""  # symlink
    exclusive: bool = True
    open: bool = False


class EntryReply(_Body, tag=24):
    """ino 0 in attr: no such entry, and that may be cached (negative lookup)."""

    attr: Attr


class Open(_Body, tag=25):
    """lease: SHARED or EXCLUSIVE. truncate: O_TRUNC."""

    ino: int
    lease: int
    truncate: bool = False


class OpenReply(_Body, tag=26):
    """created: by Create(exclusive=False). chunks: the first ones, with tickets, no more than 16."""

    attr: Attr
    lease: int
    chunk_bytes: int
    chunks: list[ChunkMap]
    servers: list[CsAccess]
    created: bool = False


class Close(_Body, tag=27):
    """One open less (unlink-while-open counts them per session). Leases stay until recalled or released."""

    ino: int


class Link(_Body, tag=28):
    ino: int
    parent: int
    name: bytes


class Unlink(_Body, tag=29):
    parent: int
    name: bytes


class Rmdir(_Body, tag=30):
    parent: int
    name: bytes


class Rename(_Body, tag=31):
    """flags: 1 RENAME_NOREPLACE, 2 RENAME_EXCHANGE."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0


class ReadDir(_Body, tag=32):
    """Entries with a cookie > `cookie`, in cookie order, which does not move when others are added or removed."""

    ino: int
    cookie: int
    limit: int
    plus: bool = False


class DirEntry(_Body):
    name: bytes
    ino: int
    type: int  # S_IFMT >> 12
    cookie: int
    attr: Attr | None = None


class DirReply(_Body, tag=33):
    """parent: ino of ".."."""

    entries: list[DirEntry]
    eof: bool
    parent: int


class ReadLink(_Body, tag=34):
    ino: int


class BytesReply(_Body, tag=35):
    data: bytes


class GetXattr(_Body, tag=36):
    ino: int
    name: bytes


class SetXattr(_Body, tag=37):
    """flags: 1 XATTR_CREATE, 2 XATTR_REPLACE."""

    ino: int
    name: bytes
    value: bytes
    flags: int


class ListXattr(_Body, tag=38):
    ino: int


class NamesReply(_Body, tag=39):
    names: list[bytes]


class RemoveXattr(_Body, tag=40):
    ino: int
    name: bytes


class StatFs(_Body, tag=41):
    ino: int


class StatFsReply(_Body, tag=42):
    """Bytes a user of the default policy can write; files: inodes."""

    total_bytes: int
    free_bytes: int
    files: int
    files_free: int


class Ok(_Body, tag=43):
    """Nothing to say."""


class AttrReply(_Body, tag=44):
    attr: Attr


# --- leases and maps ---------------------------------------------------------------------------------------


class LeaseAcquire(_Body, tag=50):
    """Wait for conflicting holders (recalled by the MDS) and get the lease; answered by LeaseReply."""

    ino: int
    mode: int


class LeaseReply(_Body, tag=51):
    attr: Attr
    mode: int


class Commit(_Body, tag=52):
    """The holder of EXCLUSIVE tells size and mtime; `written`: indexes of chunks first written (they are void no longer).
    durable: fsync, answered when committed (R1 needs it before fsync returns when anything changed)."""

    ino: int
    size: int
    mtime_ns: int
    written: list[int] = []


class LeaseRelease(_Body, tag=53):
    """Given back unasked, or as the answer to Push Recall. mode: what is kept (NONE, SHARED, CACHE or EXCLUSIVE, the last only to answer
    want=ATTR). size/mtime/written as in Commit when EXCLUSIVE was held, else size < 0."""

    ino: int
    seq: int  # of the Recall, 0 unasked
    mode: int
    size: int = -1
    mtime_ns: int = 0
    written: list[int] = []


class GetMap(_Body, tag=54):
    """Chunks [index, index+count). write: allocate missing ones (EXCLUSIVE needed) and give tickets for writing."""

    ino: int
    index: int
    count: int
    write: bool


class MapReply(_Body, tag=55):
    chunks: list[ChunkMap]
    servers: list[CsAccess]


class ReplicaFailed(_Body, tag=56):
    """A write could not reach a replica; answered by the map at a higher version (waits while blocked, R7)."""

    ino: int
    index: int
    chunk_id: int
    version: int
    cs_id: int
    status: int


class BadBlock(_Body, tag=57):
    chunk_id: int
    version: int
    cs_id: int
    offset: int


class GetCsAccess(_Body, tag=58):
    cs_ids: list[int]


class CsAccessReply(_Body, tag=59):
    servers: list[CsAccess]


class LockRange(_Body):
    """POSIX or flock lock. type: 0 read, 1 write, 2 unlock (fcntl F_RDLCK...). end inclusive, 2**63-1: to the end."""

    ino: int
    owner: int
    type: int
    start: int
    end: int
    pid: int
    flock: bool = False


class LockGet(_Body, tag=60):
    lock: LockRange


class LockSet(_Body, tag=61):
    """wait: answered when granted; else WOULD_BLOCK."""

    lock: LockRange
    wait: bool


class LockReply(_Body, tag=62):
    """The conflicting lock, or type 2."""

    lock: LockRange


class LockCancel(_Body, tag=63):
    """The waiting LockSet with this request id was interrupted."""

    request_id: int


# --- pushes to clients -----------------------------------------------------------------------------------------


ATTR = 4  # Recall.want: keep the lease, tell size and mtime


class Recall(_Body, tag=70):
    """Give back: want is the highest mode that may stay (NONE, CACHE, SHARED) or ATTR. Answer with LeaseRelease(seq)."""

    ino: int
    want: int
    seq: int


class Invalidate(_Body, tag=71):
    """Cached attributes of ino, and, if name is not empty, its entry `name`, are old. Answer with InvalidateDone(seq)
    after the kernel has been told: the change waits for it."""

    ino: int
    names: list[bytes]
    seq: int


class InvalidateDone(_Body, tag=72):
    seq: int


class MapChanged(_Body, tag=73):
    """Hint, no answer: forget maps of this file from index on (a replica was added, moved or lost)."""

    ino: int
    index: int
    count: int


# --- chunk servers ------------------------------------------------------------------------------------------------


class CsCreate(_Body, tag=80):
    """make-cs: a new id."""

    host_id: str
    hostname: str
    tier: int
    path: str


class CsCreated(_Body, tag=81):
    cs_id: int
    cluster_id: str


class CsRegister(_Body, tag=82):
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


class CsRegistered(_Body, tag=83):
    lease_ms: int  # serve no longer than this after sending a heartbeat that was answered
    heartbeat_ms: int
    now_ms: int
    epoch: int  # of the leader: orders of smaller epochs are refused
    cs_key: bytes
    ticket_keys: list[tuple[int, bytes]]
    auth_mode: int
    config: dict[str, str]


class CsHeartbeat(_Body, tag=84):
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


class CsHeartbeatReply(_Body, tag=85):
    now_ms: int
    ticket_keys: list[tuple[int, bytes]]
    config: dict[str, str]


class CsInventory(_Body, tag=86):
    """All replicas held, in pages: packed <QII (chunk_id, version, flags 1: syncing)>; last=True ends it."""

    cs_id: int
    packed: bytes
    last: bool


class CsReport(_Body, tag=87):
    """kind: corrupt, io_error, no_space, journal_error, repaired, lost."""

    cs_id: int
    kind: str
    chunk_id: int
    offset: int
    error: int
    message: str


class Source(_Body):
    """Where to copy from: a data session of the target CS at the source CS, and a ticket for READ."""

    cs_id: int
    addresses: list[str]
    session_id: int
    expiry_ms: int
    key: bytes
    ticket: bytes


class OrderSetVersion(_Body, tag=90):
    """create_bytes > 0: the chunk may not have been written yet; where it is absent it is made, empty, at this version. So a late first
    write under a ticket of an older version finds nothing to create and is refused."""

    chunk_id: int
    version: int
    create_bytes: int = 0


class OrderDelete(_Body, tag=91):
    chunk_ids: list[int]


class OrderReplicate(_Body, tag=92):
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


class OrderRepair(_Body, tag=93):
    """Rewrite the granule at offset from a good replica, after verification."""

    chunk_id: int
    version: int
    offset: int
    sources: list[Source]


class OrderReconcile(_Body, tag=94):
    """Make this replica equal to the source (compare granule hashes, copy those that differ), at `version`."""

    chunk_id: int
    version: int
    sources: list[Source]


class OrderScrub(_Body, tag=95):
    chunk_id: int


Order = Union[OrderSetVersion, OrderDelete, OrderReplicate, OrderRepair, OrderReconcile, OrderScrub]


class CsOrder(_Body, tag=96):
    order_id: int
    epoch: int
    order: Order


class CsOrderDone(_Body, tag=97):
    """status: 0 or an error code. value: see the order. bytes: copied."""

    order_id: int
    status: int
    message: str = ""
    value: int = 0
    bytes: int = 0


# --- administration ---------------------------------------------------------------------------------------------------


class GetStatus(_Body, tag=110):
    """JSON text of the status object (schema: daemons/vstor/ctl/status.schema.json)."""


class JsonReply(_Body, tag=111):
    json: bytes


class GetEvents(_Body, tag=112):
    """Newest `limit` with id > after and time >= since_ms, ascending; severity "" for all. JSON list of {id,time_ms,sys,sev,message}."""

    after: int
    since_ms: int
    limit: int
    severity: str = ""


class GetConfig(_Body, tag=113):
    name: str  # "" for all


class SetConfig(_Body, tag=114):
    name: str
    value: str


class GetPathAttr(_Body, tag=115):
    """Attributes of a path relative to the cluster root: replicas, failure-domain, tier, chunk-size, ... JSON object."""

    path: str


class SetPathAttr(_Body, tag=116):
    path: str
    recursive: bool
    attributes: dict[str, str]


class FileInfo(_Body, tag=117):
    """JSON: ino, size, replicas, chunks[{index,chunk_id,version,state,replicas[{cs_id,host,state,version}]}]."""

    path: str
    first_index: int = 0
    limit: int = 1024


class RemoveCs(_Body, tag=118):
    """releasing, then dropped when nothing is left on it. force: dropped at once, only if `accept_loss` when chunks would be lost.
    cancel: back to normal. JSON: {state, replicas_left, would_lose}."""

    cs_id: int
    force: bool = False
    cancel: bool = False
    dry_run: bool = False
    accept_loss: bool = False


class RemoveMds(_Body, tag=119):
    mds_id: int
    dry_run: bool = False


class GetLeases(_Body, tag=120):
    path: str  # "" all


class RevokeLeases(_Body, tag=121):
    path: str
    recursive: bool


class ListChunks(_Body, tag=122):
    state: str  # a chunk state or ""
    after: int
    limit: int


class MdsJoin(_Body, tag=123):
    """make-mds without -I: a new MDS with this address; the reply has what its repository needs (JSON with CA keys: only over mutual TLS)."""

    host_id: str
    hostname: str
    address: str  # ip:port of MDS-to-MDS (etcd peers); +1 control; +2 etcd clients
    csr_pem: bytes


class MdsReport(_Body, tag=124):
    """Presence of a standby, for status."""

    mds_id: int
    address: str
    pid: int
    version: str
    cpu_percent: float
    rss_bytes: int
    applied_revision: int


class CsMaintenance(_Body, tag=125):
    """A chunk server is about to go away for a short time: no replication starts until it is back or mds.wd.maintenance_tout is over.
    JSON: {state, sole_replicas: chunks that cannot be read meanwhile}."""

    cs_id: int
    on: bool
    dry_run: bool = False


class BackupDone(_Body, tag=126):
    """vstorctl backup has written a file: the time is remembered, an event tells of it."""

    revision: int
    size_bytes: int


class RestoreFinish(_Body, tag=127):
    """After a restore: go on without the chunk servers that have not come back (model/restored.py)."""


class AuthChange(_Body, tag=128):
    """A new password, proven by the old one: in place of AuthFinish. confirm = HMAC(K, "change" | certificate hash | verifier)."""

    confirm: bytes
    verifier: bytes  # net/auth.Verifier as JSON: the MDS never sees the password


class ListNodes(_Body, tag=129):
    """Nodes that have connected to this leader, and revoked certificates. JSON list."""


class RevokeNode(_Body, tag=130):
    """Revoke the certificates of a node for good. name: CN of a certificate, host id or host name. JSON: {certificates, dry_run}."""

    name: str
    dry_run: bool = False


RequestBody = Union[
    Hello, AuthStart, AuthExchange, AuthFinish,
    SessionOpen, SessionRenew, SessionResume, SessionClose,
    Lookup, GetAttr, SetAttr, Create, Open, Close, Link, Unlink, Rmdir, Rename, ReadDir, ReadLink,
    GetXattr, SetXattr, ListXattr, RemoveXattr, StatFs,
    LeaseAcquire, Commit, LeaseRelease, GetMap, ReplicaFailed, BadBlock, GetCsAccess, LockGet, LockSet, LockCancel,
    InvalidateDone,
    CsCreate, CsRegister, CsHeartbeat, CsInventory, CsReport, CsOrderDone,
    GetStatus, GetEvents, GetConfig, SetConfig, GetPathAttr, SetPathAttr, FileInfo, RemoveCs, RemoveMds,
    GetLeases, RevokeLeases, ListChunks, MdsJoin, MdsReport, CsMaintenance, BackupDone, RestoreFinish,
    AuthChange, ListNodes, RevokeNode,
]  # fmt: skip
ReplyBody = Union[
    HelloReply, AuthParams, AuthChallenge, AuthCertificate, SessionReply, Renewed,
    EntryReply, OpenReply, DirReply, BytesReply, NamesReply, StatFsReply, Ok, AttrReply, LeaseReply, MapReply,
    CsAccessReply, LockReply, CsCreated, CsRegistered, CsHeartbeatReply, JsonReply,
]  # fmt: skip
PushBody = Union[Recall, Invalidate, MapChanged, CsOrder]


class Request(msgspec.Struct, array_like=True, gc=False, tag=1):
    """id: grows by one for each request of a session, also over reconnects, so that a retry is recognised (its outcome is kept until
    acknowledged); ack: every id up to this one is finished at the client."""

    id: int
    body: RequestBody
    ack: int = 0


class Reply(msgspec.Struct, array_like=True, gc=False, tag=2):
    id: int
    body: ReplyBody


class Failure(msgspec.Struct, array_like=True, gc=False, tag=3):
    """code: codes_gen.ErrorCode; message: one line for people."""

    id: int
    code: int
    message: str


class Push(msgspec.Struct, array_like=True, gc=False, tag=4):
    body: PushBody


Envelope = Union[Request, Reply, Failure, Push]
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Envelope).decode
