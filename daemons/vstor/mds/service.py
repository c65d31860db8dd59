"""The MDS: follows the store as a standby, campaigns, leads; and answers everybody who connects.

DESIGN: one loop of "lives". A life loads everything, follows the store, and when nobody leads tries to; who wins waits until it has
seen its own election in the stream (so it has everything before), and leads until the term ends. Any doubt (fenced, unknown outcome of
a commit, gap in the history, defect) ends the life, memory is dropped, and the next one starts from the store.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import random
import secrets
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds import nodes, process
from vstor.mds.cluster_ops import ClusterOps
from vstor.mds.deathwatch import DeathWatch, leader_address
from vstor.mds.large import Chain, Staged
from vstor.mds.maintenance import Maintenance
from vstor.mds.members import Members, encode
from vstor.mds.nodes import Nodes
from vstor.mds.presence import Presence
from vstor.mds.repo_files import MdsConfig, Repository
from vstor.mds.repository import etcd_url, first_record
from vstor.mds.term import ClusterClock, Peer, Term
from vstor.meta.etcd import EtcdStore
from vstor.meta.store import (
    BATCH_ID_BYTES,
    Fenced,
    HistoryLost,
    Leader,
    Leadership,
    Mutation,
    Snapshot,
    Store,
    StoreUnavailable,
)
from vstor.model import keys, restored
from vstor.model.bootstrap import initial_mutations
from vstor.model.core import Core
from vstor.model.outcome import Ctx
from vstor.model.records import Blob
from vstor.model.records import encode as encode_record
from vstor.model.state import State
from vstor.net import auth, identity, pki
from vstor.net.rpc_server import Connection, RpcServer
from vstor.proto import messages as m

log = logging.getLogger(__name__)

ROLES = ("client", "cs", "ctl", "mds", "auth")
BEAT_S = 0.2
LEADER_CHECK_S = 5.0  # a standby asks the store itself, in case the watch missed an expiry
RETRY_S_MIN, RETRY_S_MAX = 0.1, 2.0
FIRST_LOAD_S_MAX = 45.0  # without etcd the daemon ends after it
DRAIN_S_MAX = 5.0
TAKE_OVER_MS_MAX = 120_000
RESTORE_BATCH = 500
BATCH_ID = b"vstor bootstrap\0"


class MdsService:
    """See the module. `store` is closed by the caller."""

    def __init__(
        self, repository: Repository, config: MdsConfig, store: Store, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self.repository = repository
        self.config = config
        self.store = store
        self.term: Term | None = None
        self.ops: ClusterOps | None = None
        self.state = State()
        self.members = Members()
        self.staged = Staged()
        self.nodes = Nodes()
        self.leader: Leader | None = None
        self.applied_revision = 0
        self.counters: Counter[str] = Counter()
        self.server: RpcServer | None = None
        self._on_ready: Callable[[], None] | None = on_ready
        self._authenticator: auth.Authenticator | None = None
        self._attempts: auth.AttemptLimit | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_conn_id = 1
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        cert_path, key_path, ca_path = repository.tls
        self._context = pki.server_context(cert_path, key_path, ca_path)
        self._cert_sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert_path.read_text())).digest()
        self._identity = identity.Identity(
            config.cluster, config.cluster_id, config.host_id, cert_path, key_path, ca_path
        )
        self.control_address = identity.control_address(config.address)
        self.presence = Presence(config, self._identity, lambda: self.applied_revision)

    # --- life

    async def run(self) -> None:
        """Until cancelled. Raises what makes running pointless: DAMAGED, WRONG_CLUSTER, NEWER_FORMAT, IN_USE, META_UNAVAILABLE at start."""
        self._attempts = auth.AttemptLimit(self._loop.time)
        host, port = identity.parse_address(self.control_address)
        self.server = RpcServer(self, self._context)
        await self.server.start(host, port)
        started, retry_s = self._loop.time(), RETRY_S_MIN
        try:
            while not self._stopping:
                life_started = self._loop.time()
                try:
                    await self._life()
                except (StoreUnavailable, HistoryLost, Fenced) as exc:
                    self.counters["lives_ended"] += 1
                    log.warning("starting over reason=%s", exc.message)
                    if self._on_ready is not None and self._loop.time() - started > FIRST_LOAD_S_MAX:
                        raise
                except VstorError:
                    raise
                except Exception:
                    if self._on_ready is not None:
                        raise
                    self.counters["defects"] += 1
                    log.exception("starting over after a defect")
                retry_s = RETRY_S_MIN if self._loop.time() - life_started > 5 else min(2 * retry_s, RETRY_S_MAX)
                await asyncio.sleep(random.uniform(0.5, 1.0) * retry_s)
        finally:
            await self.server.stop()
            for task in list(self._tasks):
                task.cancel()

    async def stop(self) -> None:
        """Commit what was accepted, let another MDS lead at once."""
        self._stopping = True
        term = self.term
        if term is not None:
            self.term = None  # new requests: NOT_LEADER
            await term.drain(DRAIN_S_MAX)
            await term.leadership.resign()

    async def _life(self) -> None:
        gc.unfreeze()
        snapshot = await self.store.load()
        state, members = self._take_over(snapshot)
        gc.freeze()  # the working set is not garbage: a collection must not walk it
        leadership: Leadership | None = None
        helpers: list[asyncio.Task[None]] = []
        try:
            helpers.append(asyncio.create_task(self.presence.report_as_standby(members), name="standby-report"))
            watch = DeathWatch(self.store, self._identity, self.control_address, lambda: self.leader)
            helpers.append(asyncio.create_task(watch.run(), name="death-watch"))
            leadership, seq = await self._follow(snapshot, state, members)
            while helpers:
                helpers.pop().cancel()
            await self._lead(leadership, seq, state, members)
        finally:
            for helper in helpers:
                helper.cancel()
            self.term, self.ops, self.leader = None, None, None
            if leadership is not None:
                await leadership.resign()

    def _take_over(self, snapshot: Snapshot) -> tuple[State, Members]:
        state, members = State(), Members()
        state.load(snapshot.items)
        members.apply(snapshot.items)
        self.staged = Staged()
        self.staged.apply(snapshot.items)
        self.nodes.apply(snapshot.items)
        if snapshot.seq:
            found = state.cluster
            if found is None or found.cluster_id != self.config.cluster_id:
                message = f"etcd holds cluster {found.cluster_id if found else '?'}, this repository belongs to {self.config.cluster_id}"
                raise VstorError(ErrorCode.WRONG_CLUSTER, message)
        elif self.repository.load_bootstrap() is None:
            message = "etcd is empty although this cluster has been started before: restore etcd from a backup (see etcdctl snapshot restore)"
            raise VstorError(ErrorCode.DAMAGED, message)
        self.state, self.members = state, members
        self.leader, self.applied_revision = snapshot.leader, snapshot.revision
        self._learn(state, members)
        log.info(
            "metadata loaded revision=%d transactions=%d records=%d inodes=%d leader=%s",
            *(
                snapshot.revision,
                snapshot.seq,
                len(snapshot.items),
                len(state.inodes),
                self._leader_address() or "none",
            ),
        )
        return state, members

    def _learn(self, state: State, members: Members) -> None:
        """What follows from new secrets or members. Raises NOT_MDS when this MDS was removed."""
        own = members.records.get(self.config.mds_id)
        if own is not None and own.removed:
            message = f"MDS#{self.config.mds_id} was removed from the cluster; stop its services and delete {self.repository.root}"
            raise VstorError(ErrorCode.NOT_MDS, message)
        secret = state.secrets
        if "verifier" in secret and self._attempts is not None:
            try:
                verifier = auth.Verifier.from_json(secret["verifier"])
            except (ValueError, KeyError, TypeError) as exc:
                raise VstorError(ErrorCode.DAMAGED, "the password verifier in etcd is damaged") from exc
            self._authenticator = auth.Authenticator(
                verifier, secret["ca_cert"], secret["ca_key"], self.config.cluster_id, self._cert_sha256, self._attempts
            )
        urls = members.etcd_urls()
        if urls and urls != self.config.etcd_urls:
            self.config = process.with_etcd_urls(self.repository, self.config, urls)
            if isinstance(self.store, EtcdStore):
                self.store.client.add_urls(urls)

    async def _follow(self, snapshot: Snapshot, state: State, members: Members) -> tuple[Leadership, int]:
        """As a standby, until this MDS has won and has seen everything before its election: (leadership, seq of the chain)."""
        seq = snapshot.seq
        leadership: Leadership | None = None
        beating: asyncio.Task[None] | None = None
        checking = asyncio.create_task(self._check_leader(), name="leader-check")
        changes = self.store.follow(snapshot.revision, snapshot.seq)
        try:
            if snapshot.leader is None:
                leadership, beating = await self._campaign()
            waiting: asyncio.Future[Any] | None = None
            while True:
                if self.leader is not None and leadership is None:
                    self._ready()
                waiting = waiting or asyncio.ensure_future(anext(changes))
                await asyncio.wait({waiting, checking}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    await checking  # raises
                change, waiting = waiting.result(), None
                state.apply(change.mutations)
                self.staged.apply(change.mutations)
                if self.nodes.apply(change.mutations):
                    self._drop_revoked()
                secret = any(key.startswith(keys.SECRET) for key, _ in change.mutations)
                if members.apply(change.mutations) or secret or not self._authenticator:
                    self._learn(state, members)
                seq = change.seq or seq
                self.applied_revision = change.revision
                if not change.leader_changed:
                    continue
                self.leader = change.leader
                if leadership is not None and change.leader is not None and change.leader.epoch == leadership.epoch:
                    won, leadership = leadership, None
                    return won, seq
                if change.leader is None:
                    if leadership is not None:
                        raise Fenced("the leadership ended before it began")
                    leadership, beating = await self._campaign()
        finally:
            checking.cancel()
            if waiting is not None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await changes.aclose()  # type: ignore[attr-defined]
            if beating is not None:
                beating.cancel()
            if leadership is not None:
                await leadership.resign()

    async def _campaign(self) -> tuple[Leadership | None, asyncio.Task[None] | None]:
        value = json.dumps({"mds_id": self.config.mds_id, "address": self.control_address}).encode()
        leadership = await self.store.campaign(value, self.config.lease_ttl_s)
        if leadership is None:
            return None, None

        async def beat() -> None:
            while True:
                leadership.beat()
                await asyncio.sleep(BEAT_S)

        return leadership, asyncio.create_task(beat(), name="beat")

    async def _check_leader(self) -> None:
        """Ends with HistoryLost when the store twice names nobody although the watch did not say so."""
        strikes = 0
        while True:
            await asyncio.sleep(LEADER_CHECK_S)
            known = self.leader
            actual = await self.store.leader()
            strikes = strikes + 1 if actual is None and known is not None and known is self.leader else 0
            if strikes >= 2:
                raise HistoryLost("the watch missed the end of a leadership")

    # --- leading

    async def _lead(self, leadership: Leadership, seq: int, state: State, members: Members) -> None:
        if seq == 0:
            seq = await self._bootstrap(leadership, state, members)
        self.repository.bootstrap_path.unlink(missing_ok=True)
        if self.staged:
            chain = Chain(leadership, seq, secrets.token_bytes)
            log.warning("finishing the change of the leader before marked=%s", self.staged.marked)
            done = await chain.finish(self.staged)
            state.apply(done)
            members.apply(done)
            seq, self.staged = chain.seq, Staged()
        if self.repository.restored_path.exists():
            seq = await self._after_restore(leadership, seq, state, members)
        now_ms = ClusterClock()
        leadership.beat(TAKE_OVER_MS_MAX)  # the core looks at everything once, without a pause
        base = state.cluster.epoch_base if state.cluster is not None else 0
        core = Core(state, epoch=leadership.epoch + base, seed=secrets.randbits(63), now_ms=now_ms())
        term = Term(core, leadership, seq, now_ms)
        self.ops = ClusterOps(self.config, self.store, members, state.secrets, term)
        self._learn(state, members)
        self.term = term
        self.counters["terms"] += 1
        log.info("leading epoch=%d seq=%d", leadership.epoch, seq)
        upkeep = asyncio.create_task(
            Maintenance(
                self.store, term, self.ops, self.presence.standby_revisions, etcd_url(self.config.address)
            ).run(),
            name="maintenance",
        )
        running = asyncio.create_task(term.run(), name="term")
        try:
            term.report_event("info", f"MDS#{self.config.mds_id} ({self.control_address}) leads now")
            self._ready()
            await running
        finally:
            self.term = None
            for task in (upkeep, running):
                task.cancel()
            await asyncio.gather(upkeep, running, return_exceptions=True)
            log.info("no longer leading epoch=%d", leadership.epoch)
            if self.server is not None:
                for conn in list(self.server.connections):
                    conn.close()

    async def _bootstrap(self, leadership: Leadership, state: State, members: Members) -> int:
        """The first transaction of a new cluster; the chain is at 1 then."""
        waiting = self.repository.load_bootstrap()
        assert waiting is not None  # _take_over has looked
        config, secret = waiting
        mutations = initial_mutations(self.config.cluster, self.config.cluster_id, config, secret, clock.unix_ms())
        mutations.append(encode(first_record(self.config)))
        await leadership.commit(0, BATCH_ID, mutations)
        state.apply(mutations)
        members.apply(mutations)
        log.info("cluster created id=%s", self.config.cluster_id)
        return 1

    async def _after_restore(self, leadership: Leadership, seq: int, state: State, members: Members) -> int:
        """The first transactions after a restore (model/restored.py): this MDS is the only one. The chain's number afterwards."""
        own = first_record(self.config)
        gone = [encode(replace(r, removed=True)) for r in members.active() if r.mds_id != own.mds_id]
        todo = [*gone, encode(own), *restored.mutations(state, clock.unix_ms())]
        for start in range(0, len(todo), RESTORE_BATCH):
            part = todo[start : start + RESTORE_BATCH]
            await leadership.commit(seq, secrets.token_bytes(BATCH_ID_BYTES), part)
            seq += 1
            state.apply(part)
            members.apply(part)
        self.repository.restored_path.unlink()
        log.warning("metadata were restored: waiting for the chunk servers to tell what they hold")
        return seq

    def _ready(self) -> None:
        if self._on_ready is not None:
            if self.config.managed_etcd and self.repository.etcd_data.exists():
                self.repository.etcd_started_path.touch()
            self._on_ready()
            self._on_ready = None

    # --- other MDSs

    def _leader_address(self) -> str:
        return leader_address(self.leader)

    def mds_status(self) -> dict[str, Any]:
        """`mds` and `quorum` of the status object."""
        return self.presence.status(self.members, self.term, self.ops.quorum if self.ops is not None else None)

    # --- requests (rpc_server.Handler)

    def connected(self, conn: Connection) -> None:
        """Nothing is known of it before Hello."""
        conn.state = None

    def disconnected(self, conn: Connection) -> None:
        """Its parked requests and bindings end."""
        if isinstance(conn.state, Peer) and self.term is not None:
            self.term.disconnected(conn.state)

    def request(self, conn: Connection, request: m.Request) -> m.ReplyBody | None:
        """See rpc_server.Handler."""
        body = request.body
        if isinstance(body, m.Hello):
            return self._hello(conn, body)
        peer = conn.state
        if not isinstance(peer, Peer):
            raise VstorError(ErrorCode.BAD_REQUEST, "Hello comes first")
        if isinstance(body, m.AuthStart | m.AuthExchange | m.AuthFinish | m.AuthChange):
            if self._authenticator is None:
                raise VstorError(ErrorCode.META_UNAVAILABLE, "the MDS has not loaded its metadata yet; try again")
            if isinstance(body, m.AuthChange):
                if self.term is None:
                    raise VstorError(ErrorCode.NOT_LEADER, "this MDS does not lead")
                self._authenticator.answer(conn, body, [])  # raises
                self._answer_later(peer, request.id, self._set_verifier(self.term, body.verifier))
                return None
            return self._authenticator.answer(conn, body, [r.address for r in self.members.active()])
        if peer.ctx.role == "auth":
            raise VstorError(ErrorCode.DENIED, "this connection is for authentication only")
        term = self.term
        if term is None:
            raise VstorError(ErrorCode.NOT_LEADER, "this MDS does not lead")
        return self._as_leader(term, peer, request)

    def _as_leader(self, term: Term, peer: Peer, request: m.Request) -> m.ReplyBody | None:
        body = request.body
        if isinstance(body, m.MdsReport):
            if peer.conn.role != pki.ROLE_MDS:
                raise VstorError(ErrorCode.DENIED, "only an MDS may say that")
            self.presence.heard(body, term.revision)
            return m.Ok()
        if isinstance(body, m.GetStatus):
            if not term.may_serve():
                raise VstorError(ErrorCode.META_UNAVAILABLE, "the MDS has no contact with etcd and may not serve now")
            return m.JsonReply(json.dumps(term.core.status(term.now_ms()) | self.mds_status()).encode())
        if isinstance(body, m.ListNodes):
            connected = {c.peer_name for c in self.server.connections} if self.server is not None else set()
            return m.JsonReply(json.dumps(self.nodes.listing(connected)).encode())
        if isinstance(body, m.RevokeNode):
            self._answer_later(peer, request.id, self._revoke(term, body))
            return None
        if isinstance(body, m.MdsJoin) and self.ops is not None:
            self._answer_later(peer, request.id, self.ops.join(body))
            return None
        if isinstance(body, m.RemoveMds) and self.ops is not None:
            self._answer_later(peer, request.id, self.ops.remove(body))
            return None
        term.request(peer, request.id, request.ack, body)
        return None

    async def _set_verifier(self, term: Term, verifier: bytes) -> m.Ok:
        mutation: Mutation = (keys.named(keys.SECRET, "verifier"), encode_record(Blob(verifier)))
        await term.commit([mutation])
        self.state.apply([mutation])
        self._learn(self.state, self.members)
        term.report_event("warn", "The cluster password was changed")
        return m.Ok()

    async def _revoke(self, term: Term, body: m.RevokeNode) -> m.JsonReply:
        names = self.nodes.resolve(body.name)
        if not body.dry_run:
            new = [nodes.revocation(name, term.now_ms()) for name in names if name not in self.nodes.revoked]
            await term.commit(new)
            self.nodes.apply(new)
            term.revoke_tickets()
            term.report_event("warn", f"Certificates of node {body.name} were revoked: {', '.join(names)}")
            self._drop_revoked()
        return m.JsonReply(json.dumps({"certificates": names, "dry_run": body.dry_run}).encode())

    def _drop_revoked(self) -> None:
        for conn in list(self.server.connections) if self.server is not None else []:
            if conn.peer_name in self.nodes.revoked:
                conn.close()

    def _answer_later(self, peer: Peer, request_id: int, work: Awaitable[m.ReplyBody]) -> None:
        async def answer() -> None:
            try:
                peer.conn.reply(request_id, await work)
            except VstorError as exc:
                peer.conn.fail(request_id, exc)
            except asyncio.CancelledError:
                peer.conn.fail(request_id, VstorError(ErrorCode.SHUTTING_DOWN))
                raise
            except Exception:
                log.exception("administrative request failed by a defect")
                peer.conn.fail(request_id, VstorError(ErrorCode.INTERNAL))

        task = asyncio.create_task(answer(), name="admin-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hello(self, conn: Connection, body: m.Hello) -> m.HelloReply:
        if conn.state is None:
            self._check_hello(conn, body)
            host, _, _ = conn.peer.rpartition(":")
            ctx = Ctx(
                self._next_conn_id,
                body.role,
                host_id=body.host_id[:64],
                hostname=body.hostname[:255],
                address=host.strip("[]"),
            )
            self._next_conn_id += 1
            conn.state = Peer(conn, ctx)
            self.nodes.saw(conn, body)
        leads = (
            self.term is not None and self.term.may_serve()
        )  # without contact to etcd somebody else may lead: clients look
        now_ms = self.term.now_ms() if self.term is not None else clock.unix_ms()
        addresses = [identity.control_address(r.address) for r in self.members.active()] or [self.control_address]
        return m.HelloReply(
            self.config.cluster,
            self.config.cluster_id,
            self.config.mds_id,
            leads,
            self.control_address if leads else self._leader_address(),
            self.leader.epoch + (self.state.cluster.epoch_base if self.state.cluster else 0) if self.leader else 0,
            now_ms,
            addresses,
        )

    def _check_hello(self, conn: Connection, body: m.Hello) -> None:
        if body.role not in ROLES:
            raise VstorError(ErrorCode.BAD_REQUEST, f"unknown role {body.role[:32]!r}")
        if body.protocol != m.PROTOCOL_VERSION:
            message = f"this MDS speaks protocol {m.PROTOCOL_VERSION}, you {body.protocol}; install the same version everywhere"
            raise VstorError(ErrorCode.UNSUPPORTED, message)
        if body.role == "auth":
            return  # compares the name in the reply itself, and cannot know the id
        if body.cluster != self.config.cluster or body.cluster_id != self.config.cluster_id:
            message = f"this is the MDS of cluster {self.config.cluster!r} (id {self.config.cluster_id}); check bs.list"
            raise VstorError(ErrorCode.WRONG_CLUSTER, message)
        self.nodes.check(conn)
        if not conn.role or (body.role == "mds" and conn.role != pki.ROLE_MDS):
            raise VstorError(ErrorCode.DENIED, "the certificate does not allow this role")
