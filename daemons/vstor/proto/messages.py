"""Control-plane messages: what MDS, CS, clients and tools say to each other.

DESIGN: one TCP connection under TLS 1.3 carries frames of `u32 little-endian length` + msgpack of one
envelope (`Request`, `Reply`, `Failure`, `Push`).  Bodies are `msgspec` structs in array form: new fields go
to the end with a default, a tag is never used twice, so old and new peers understand each other.
Times: `*_ms` of the cluster clock are Unix milliseconds of the leader; durations are milliseconds.
"""

from __future__ import annotations

from typing import Union

import msgspec

from vstor.proto.messages_admin import (
    AuthChange,
    BackupDone,
    CsMaintenance,
    FileInfo,
    GetConfig,
    GetEvents,
    GetLeases,
    GetPathAttr,
    GetStatus,
    JsonReply,
    ListChunks,
    ListNodes,
    MdsJoin,
    MdsReport,
    RemoveCs,
    RemoveMds,
    RestoreFinish,
    RevokeLeases,
    RevokeNode,
    SetConfig,
    SetPathAttr,
)
from vstor.proto.messages_base import (
    CACHE,
    DIR_ENTRIES_MAX,
    EXCLUSIVE,
    FRAME_BYTES_MAX,
    MAP_CHUNKS_MAX,
    NAME_BYTES_MAX,
    NONE,
    PROTOCOL_VERSION,
    ROOT_INO,
    SHARED,
    SYMLINK_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    Attr,
    Body,
    ChunkMap,
    CsAccess,
)
from vstor.proto.messages_cs import (
    CsCreate,
    CsCreated,
    CsHeartbeat,
    CsHeartbeatReply,
    CsInventory,
    CsOrder,
    CsOrderDone,
    CsRegister,
    CsRegistered,
    CsReport,
    Order,
    OrderDelete,
    OrderReconcile,
    OrderRepair,
    OrderReplicate,
    OrderScrub,
    OrderSetVersion,
    Source,
)

# --- greeting, authentication ------------------------------------------------------------------------


class Hello(Body, tag=1):
    """First message. role: client, cs, ctl, mds, auth (the only one allowed without a certificate)."""

    cluster: str
    cluster_id: str
    role: str
    protocol: int
    version: str
    host_id: str
    hostname: str


class HelloReply(Body, tag=2):
    """Who answers. Anything but authentication and local status must go to the leader."""

    cluster: str
    cluster_id: str
    mds_id: int
    leader: bool
    leader_address: str  # "ip:port" of the leader's control port, "" when unknown
    epoch: int
    now_ms: int
    addresses: list[str]  # control ports of all MDS


class AuthStart(Body, tag=3):
    """Ask for the parameters of the password proof."""


class AuthParams(Body, tag=4):
    """scrypt parameters; w = scrypt(password, salt) feeds SPAKE2."""

    salt: bytes
    n: int
    r: int
    p: int


class AuthExchange(Body, tag=5):
    """Client's SPAKE2 message."""

    message: bytes


class AuthChallenge(Body, tag=6):
    """Server's SPAKE2 message and confirmation = HMAC(K, "server" | SHA-256 of the TLS server certificate)."""

    message: bytes
    confirm: bytes


class AuthFinish(Body, tag=7):
    """confirm = HMAC(K, "client" | certificate hash | CSR)."""

    confirm: bytes
    csr_pem: bytes


class AuthCertificate(Body, tag=8):
    """The node certificate, and tag = HMAC(K, "cert" | ca | cert)."""

    certificate_pem: bytes
    ca_pem: bytes
    cluster_id: str
    mds_addresses: list[str]  # bs.list form, IP:2510
    tag: bytes


# --- client sessions -----------------------------------------------------------------------------------


class SessionOpen(Body, tag=10):
    name: str  # mount point or program
    pid: int
    host_id: str
    hostname: str
    former: int = 0  # the session this client lost: outcomes of its changes are known under the new one too


class SessionReply(Body, tag=11):
    session_id: int
    ttl_ms: int  # all leases end so long after the last answered renewal was sent
    margin_ms: int  # the client stops this much earlier
    now_ms: int
    auth_mode: int  # of data connections
    config: dict[str, str]


class SessionRenew(Body, tag=12):
    session_id: int


class Renewed(Body, tag=13):
    now_ms: int


class SessionResume(Body, tag=14):
    """After a reconnect, to whatever leader: leases held, as (ino, mode). The reply's config has the current values;
    leases the MDS could not give back are recalled by Push."""

    session_id: int
    leases: list[tuple[int, int]]
    locks: list[LockRange] = []
    opens: list[tuple[int, int]] = []  # (ino, count) of open files, so that files without a name live on


class SessionClose(Body, tag=15):
    session_id: int


# --- name space (all need a session; ino is the directory or file) ----------------------------------------


class Lookup(Body, tag=20):
    parent: int
    name: bytes


class GetAttr(Body, tag=21):
    ino: int


SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = 1, 2, 4, 8, 16, 32, 64
DROP_SUID = 128  # of a regular file: set-user-id goes, set-group-id too where the group may execute


TIME_NOW = -(1 << 63)


class SetAttr(Body, tag=22):
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


class Create(Body, tag=23):
    """Make a file, directory, device, fifo, socket or symlink. exclusive=False opens an existing regular file.
    open=True on a regular file: as Open with an EXCLUSIVE lease, in one round trip; first_chunk: a new one will have content, so a chunk is
    given with it (if it can be at once)."""

    parent: int
    name: bytes
    mode: int  # with type bits
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""  # symlink
    exclusive: bool = True
    open: bool = False
    first_chunk: bool = False


class EntryReply(Body, tag=24):
    """ino 0 in attr: no such entry, and that may be cached (negative lookup). parent: of the directory that was changed, as in Ok."""

    attr: Attr
    parent: Attr | None = None


class Open(Body, tag=25):
    """lease: SHARED or EXCLUSIVE. truncate: O_TRUNC."""

    ino: int
    lease: int
    truncate: bool = False


class OpenReply(Body, tag=26):
    """created: by Create(exclusive=False). chunks: the first ones, with tickets, no more than 16. parent: as in Ok, of Create."""

    attr: Attr
    lease: int
    chunk_bytes: int
    chunks: list[ChunkMap]
    servers: list[CsAccess]
    created: bool = False
    parent: Attr | None = None


class Close(Body, tag=27):
    """One open less (unlink-while-open counts them per session). Leases stay until recalled or released."""

    ino: int


class Link(Body, tag=28):
    ino: int
    parent: int
    name: bytes


class Unlink(Body, tag=29):
    """closes: opens of this session that are given up, with its lease, if the file goes with this name: nobody has it open any more there."""

    parent: int
    name: bytes
    closes: int = 0


class Rmdir(Body, tag=30):
    parent: int
    name: bytes


class Rename(Body, tag=31):
    """flags: 1 RENAME_NOREPLACE, 2 RENAME_EXCHANGE."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0


class ReadDir(Body, tag=32):
    """Entries with a cookie > `cookie`, in cookie order, which does not move when others are added or removed."""

    ino: int
    cookie: int
    limit: int
    plus: bool = False


class DirEntry(Body):
    name: bytes
    ino: int
    type: int  # S_IFMT >> 12
    cookie: int
    attr: Attr | None = None


class DirReply(Body, tag=33):
    """parent: ino of ".."."""

    entries: list[DirEntry]
    eof: bool
    parent: int


class ReadLink(Body, tag=34):
    ino: int


class BytesReply(Body, tag=35):
    data: bytes


class GetXattr(Body, tag=36):
    ino: int
    name: bytes


class SetXattr(Body, tag=37):
    """flags: 1 XATTR_CREATE, 2 XATTR_REPLACE."""

    ino: int
    name: bytes
    value: bytes
    flags: int


class ListXattr(Body, tag=38):
    ino: int


class NamesReply(Body, tag=39):
    names: list[bytes]


class RemoveXattr(Body, tag=40):
    ino: int
    name: bytes


class StatFs(Body, tag=41):
    ino: int


class StatFsReply(Body, tag=42):
    """Bytes a user of the default policy can write; files: inodes."""

    total_bytes: int
    free_bytes: int
    files: int
    files_free: int


class Ok(Body, tag=43):
    """Done. Of Unlink, Rmdir and Rename: parent: the directory after the change, if the session may cache it, and only one was changed.
    closed: what Unlink.closes offered was taken; the session holds nothing of the file any more."""

    parent: Attr | None = None
    closed: bool = False


class AttrReply(Body, tag=44):
    attr: Attr


# --- leases and maps ---------------------------------------------------------------------------------------


class LeaseAcquire(Body, tag=50):
    """Wait for conflicting holders (recalled by the MDS) and get the lease; answered by LeaseReply."""

    ino: int
    mode: int


class LeaseReply(Body, tag=51):
    attr: Attr
    mode: int


class Commit(Body, tag=52):
    """The holder of EXCLUSIVE tells size and mtime (0: no write since it told one); `written`: indexes of chunks first written (they are void no longer).
    durable: fsync, answered when committed (R1 needs it before fsync returns when anything changed)."""

    ino: int
    size: int
    mtime_ns: int
    written: list[int] = []


class LeaseRelease(Body, tag=53):
    """Given back unasked, or as the answer to Push Recall. mode: what is kept (NONE, SHARED, CACHE or EXCLUSIVE, the last only to answer
    want=ATTR). size/mtime/written as in Commit when EXCLUSIVE was held, else size < 0."""

    ino: int
    seq: int  # of the Recall, 0 unasked
    mode: int
    size: int = -1
    mtime_ns: int = 0
    written: list[int] = []


class GetMap(Body, tag=54):
    """Chunks [index, index+count). write: allocate missing ones (EXCLUSIVE needed) and give tickets for writing."""

    ino: int
    index: int
    count: int
    write: bool


class MapReply(Body, tag=55):
    chunks: list[ChunkMap]
    servers: list[CsAccess]


class ReplicaFailed(Body, tag=56):
    """A write could not reach a replica; answered by the map at a higher version (waits while blocked, R7)."""

    ino: int
    index: int
    chunk_id: int
    version: int
    cs_id: int
    status: int


class BadBlock(Body, tag=57):
    chunk_id: int
    version: int
    cs_id: int
    offset: int


class GetCsAccess(Body, tag=58):
    cs_ids: list[int]


class CsAccessReply(Body, tag=59):
    servers: list[CsAccess]


class LockRange(Body):
    """POSIX or flock lock. type: 0 read, 1 write, 2 unlock (fcntl F_RDLCK...). end inclusive, 2**63-1: to the end."""

    ino: int
    owner: int
    type: int
    start: int
    end: int
    pid: int
    flock: bool = False


class LockGet(Body, tag=60):
    lock: LockRange


class LockSet(Body, tag=61):
    """wait: answered when granted; else WOULD_BLOCK."""

    lock: LockRange
    wait: bool


class LockReply(Body, tag=62):
    """The conflicting lock, or type 2."""

    lock: LockRange


class LockCancel(Body, tag=63):
    """The waiting LockSet with this request id was interrupted."""

    request_id: int


# --- pushes to clients -----------------------------------------------------------------------------------------


ATTR = 4  # Recall.want: keep the lease, tell size and mtime


class Recall(Body, tag=70):
    """Give back: want is the highest mode that may stay (NONE, CACHE, SHARED) or ATTR. Answer with LeaseRelease(seq)."""

    ino: int
    want: int
    seq: int


class Invalidate(Body, tag=71):
    """Cached attributes of ino, and, if name is not empty, its entry `name`, are old. Answer with InvalidateDone(seq)
    after the kernel has been told: the change waits for it."""

    ino: int
    names: list[bytes]
    seq: int


class InvalidateDone(Body, tag=72):
    seq: int


class MapChanged(Body, tag=73):
    """Hint, no answer: forget maps of this file from index on (a replica was added, moved or lost)."""

    ino: int
    index: int
    count: int


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
