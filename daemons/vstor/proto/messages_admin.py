"""Messages of administration: status, configuration, events, removal, membership, backup and nodes."""

from __future__ import annotations

from vstor.proto.messages_base import Body


class GetStatus(Body, tag=110):
    """JSON text of the status object (schema: daemons/vstor/ctl/status.schema.json)."""


class JsonReply(Body, tag=111):
    json: bytes


class GetEvents(Body, tag=112):
    """Newest `limit` with id > after and time >= since_ms, ascending; severity "" for all. JSON list of {id,time_ms,sys,sev,message}."""

    after: int
    since_ms: int
    limit: int
    severity: str = ""


class GetConfig(Body, tag=113):
    name: str  # "" for all


class SetConfig(Body, tag=114):
    name: str
    value: str


class GetPathAttr(Body, tag=115):
    """Attributes of a path relative to the cluster root: replicas, failure-domain, tier, chunk-size, ... JSON object."""

    path: str


class SetPathAttr(Body, tag=116):
    path: str
    recursive: bool
    attributes: dict[str, str]


class FileInfo(Body, tag=117):
    """JSON: ino, size, replicas, chunks[{index,chunk_id,version,state,replicas[{cs_id,host,state,version}]}]."""

    path: str
    first_index: int = 0
    limit: int = 1024


class RemoveCs(Body, tag=118):
    """releasing, then dropped when nothing is left on it; UNSAFE when the others (without those in `together`, which go too) are too few places
    for the replicas. force: dropped at once, only if `accept_loss` when chunks would be lost. cancel: back to normal. dry_run: changes nothing and is
    never refused. JSON: {state, replicas_left, would_lose, refusal: why it cannot be emptied, "" when it can}."""

    cs_id: int
    force: bool = False
    cancel: bool = False
    dry_run: bool = False
    accept_loss: bool = False
    together: tuple[int, ...] = ()


class RemoveMds(Body, tag=119):
    mds_id: int
    dry_run: bool = False


class GetLeases(Body, tag=120):
    path: str  # "" all


class RevokeLeases(Body, tag=121):
    path: str
    recursive: bool


class ListChunks(Body, tag=122):
    state: str  # a chunk state or ""
    after: int
    limit: int


class MdsJoin(Body, tag=123):
    """make-mds without -I: a new MDS with this address; the reply has what its repository needs (JSON with CA keys: only over mutual TLS)."""

    host_id: str
    hostname: str
    address: str  # ip:port of MDS-to-MDS (etcd peers); +1 control; +2 etcd clients
    csr_pem: bytes


class MdsReport(Body, tag=124):
    """Presence of a standby, for status."""

    mds_id: int
    address: str
    pid: int
    version: str
    cpu_percent: float
    rss_bytes: int
    applied_revision: int


class CsMaintenance(Body, tag=125):
    """A chunk server is about to go away for a short time: no replication starts until it is back or mds.wd.maintenance_tout is over.
    JSON: {state, sole_replicas: chunks that cannot be read meanwhile}."""

    cs_id: int
    on: bool
    dry_run: bool = False


class BackupDone(Body, tag=126):
    """vstorctl backup has written a file: the time is remembered, an event tells of it."""

    revision: int
    size_bytes: int


class RestoreFinish(Body, tag=127):
    """After a restore: go on without the chunk servers that have not come back (model/restored.py)."""


class AuthChange(Body, tag=128):
    """A new password, proven by the old one: in place of AuthFinish. confirm = HMAC(K, "change" | certificate hash | verifier)."""

    confirm: bytes
    verifier: bytes  # net/auth.Verifier as JSON: the MDS never sees the password


class ListNodes(Body, tag=129):
    """Nodes that have connected to this leader, and revoked certificates. JSON list."""


class RevokeNode(Body, tag=130):
    """Revoke the certificates of a node for good. name: CN of a certificate, host id or host name. JSON: {certificates, dry_run}."""

    name: str
    dry_run: bool = False
