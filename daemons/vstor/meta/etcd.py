"""The store in etcd. See store.py for the contract and ETCD.md (research) for the measurements behind it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc

from vstor import clock, paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.meta.etcd_client import EtcdClient, EtcdTls, Member
from vstor.meta.etcd_lease import LeaseKeeper
from vstor.meta.etcd_pb import DELETE, rpc
from vstor.meta.keys import LEADER_KEY, PREFIX, SEQ_KEY, load_spans
from vstor.meta.store import (
    ChainChecker,
    Change,
    Fenced,
    HistoryLost,
    Leader,
    Mutation,
    Snapshot,
    StoreStatus,
    StoreUnavailable,
    check_batch,
)

log = logging.getLogger(__name__)

ONE_RANGE_KEYS_MAX = 50_000  # fewer keys are loaded by one request, more by bounded spans
LOAD_S_MAX = 120.0
LOADS_IN_FLIGHT = 2
WATCH_PROBE_S = 2.0  # a silent watch is asked for progress
WATCH_SILENCE_S_MAX = 6.0  # then it is opened again, at another member
SHELL_SPANS = (
    (b"l", b"n"),
    (b"s", b"t"),
)  # leader key, members of the shell, sequence key
_LEADER, _SEQ = PREFIX + LEADER_KEY, PREFIX + SEQ_KEY
_END = PREFIX[:-1] + bytes([PREFIX[-1] + 1])


def _leader_of(kv: Any) -> Leader:
    return Leader(kv.create_revision, kv.value, kv.lease)


class EtcdStore:
    """See store.Store.

    Args: lease_file: remembers the lease of this MDS's leadership. The repository's lock guarantees that who wrote it is dead when we
        start, so its lease is revoked at once and nobody waits for it.
    """

    def __init__(self, urls: list[str], tls: EtcdTls | None, *, lease_file: Path | None = None) -> None:
        self.client = EtcdClient(urls, tls)
        self._lease_file = lease_file
        self._closed = False

    # --- reading

    async def load(self) -> Snapshot:
        await (
            self._revoke_former()
        )  # who loads does not lead: what is left of its own leadership would only delay the next one
        head = await self._call("KV", "Range", rpc.RangeRequest(key=_SEQ))
        revision = head.header.revision
        counted = await self._range(PREFIX, _END, revision, count_only=True)
        if counted.count <= ONE_RANGE_KEYS_MAX:
            replies = [await self._range(PREFIX, _END, revision)]
        else:
            replies = await self._load_spans(revision)
        seq, leader = 0, None
        items: list[tuple[bytes, bytes]] = []
        skip = len(PREFIX)
        for reply in replies:
            for kv in reply.kvs:
                if kv.key == _SEQ:
                    seq = kv.version
                elif kv.key == _LEADER:
                    leader = _leader_of(kv)
                else:
                    items.append((kv.key[skip:], kv.value))
        loaded = len(items) + (seq > 0) + (leader is not None)
        if loaded != counted.count:
            message = f"etcd holds {counted.count} keys under {PREFIX!r} but {loaded} were found in the known spans; use the newer version"
            raise VstorError(ErrorCode.NEWER_FORMAT, message)
        return Snapshot(revision, seq, leader, items)

    async def _load_spans(self, revision: int) -> list[Any]:
        gate = asyncio.Semaphore(LOADS_IN_FLIGHT)

        async def one(start: bytes, end: bytes) -> Any:
            async with gate:
                return await self._range(PREFIX + start, PREFIX + end, revision)

        return await asyncio.gather(*(one(start, end) for start, end in (*SHELL_SPANS, *load_spans())))

    async def _range(self, start: bytes, end: bytes, revision: int, count_only: bool = False) -> Any:
        # serializable: any member that has the revision may answer
        request = rpc.RangeRequest(
            key=start,
            range_end=end,
            revision=revision,
            serializable=True,
            count_only=count_only,
        )
        deadline_ms = clock.boottime_ms() + int(LOAD_S_MAX * 1000)
        while True:
            try:
                return await self.client.call("KV", "Range", request, timeout_s=LOAD_S_MAX, rpc_s=LOAD_S_MAX)
            except grpc.aio.AioRpcError as exc:
                # a follower that is behind says "required revision is a future revision"
                if "future revision" not in (exc.details() or "") or clock.boottime_ms() >= deadline_ms:
                    raise _translate(exc) from exc
                self.client.rotate(self.client.member)
                await asyncio.sleep(0.05)

    async def leader(self) -> Leader | None:
        reply = await self._call("KV", "Range", rpc.RangeRequest(key=_LEADER))
        return _leader_of(reply.kvs[0]) if reply.kvs else None

    async def follow(self, revision: int, seq: int) -> AsyncIterator[Change]:
        checker = ChainChecker(seq)
        failures = 0
        while not self._closed:
            member = self.client.member
            try:
                async for change in self._watch(member, revision + 1):
                    revision = change.revision
                    failures = 0
                    yield checker.check(change)
                reason = "ended"
            except TimeoutError:
                reason = "silent"
            except grpc.aio.AioRpcError as exc:
                reason = exc.details() or exc.code().name
            log.info(
                "watch interrupted member=%s reason=%s next_revision=%d",
                member.url,
                reason,
                revision + 1,
            )
            self.client.rotate(member)
            failures += 1
            if failures > 2 * len(self.client.members) + 20:
                raise StoreUnavailable(f"etcd does not answer ({member.url}: {reason})")
            await asyncio.sleep(min(0.05 * failures, 1.0))

    async def _watch(self, member: Member, revision: int) -> AsyncIterator[Change]:
        # hasleader: a member that lost its quorum ends the watch instead of staying silent
        call = member.stub("Watch").Watch(metadata=(("hasleader", "true"),))
        probe = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())
        create = rpc.WatchCreateRequest(key=PREFIX, range_end=_END, start_revision=revision, progress_notify=True)
        reading: asyncio.Task[Any] | None = None
        try:
            await call.write(rpc.WatchRequest(create_request=create))
            silent_s = 0.0
            while True:
                reading = reading or asyncio.ensure_future(call.read())
                done, _ = await asyncio.wait({reading}, timeout=WATCH_PROBE_S)
                if not done:
                    silent_s += WATCH_PROBE_S
                    if silent_s > WATCH_SILENCE_S_MAX:
                        raise TimeoutError
                    await call.write(probe)
                    continue
                reply, reading, silent_s = reading.result(), None, 0.0
                if reply is grpc.aio.EOF:
                    return
                if reply.compact_revision:
                    raise HistoryLost(f"history before revision {reply.compact_revision} was compacted")
                if reply.canceled:
                    return
                for change in _changes(reply.events):
                    yield change
        finally:
            if reading is not None:
                reading.cancel()
            call.cancel()

    # --- leading

    async def campaign(self, value: bytes, ttl_s: int) -> EtcdLeadership | None:
        await self._revoke_former()
        sent_ms = clock.boottime_ms()
        lease = await self._call("Lease", "LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_s))
        self._remember(lease.ID)
        request = rpc.TxnRequest()
        _compare(request, _LEADER, rpc.Compare.CREATE, 0)
        request.success.add().request_put.CopyFrom(rpc.PutRequest(key=_LEADER, value=value, lease=lease.ID))
        request.failure.add().request_range.CopyFrom(rpc.RangeRequest(key=_LEADER))
        reply = await self._call("KV", "Txn", request)
        if reply.succeeded:
            epoch = reply.header.revision
        else:
            held = reply.responses[0].response_range.kvs
            if not held or held[0].lease != lease.ID:  # ours: the reply to an earlier attempt was lost
                await self._revoke(lease.ID)
                self._remember(0)
                return None
            epoch = held[0].create_revision
        log.info("leadership won epoch=%d lease=%x", epoch, lease.ID)
        return EtcdLeadership(
            self,
            epoch,
            LeaseKeeper(self.client.members, lease.ID, max(int(lease.TTL), 1), sent_ms),
            lease.ID,
        )

    async def depose(self, leader: Leader) -> None:
        if leader.lease:
            await self._revoke(leader.lease)

    async def compact(self, revision: int) -> None:
        try:
            await self._call("KV", "Compact", rpc.CompactionRequest(revision=revision))
        except HistoryLost:
            log.debug("compacted already revision=%d", revision)

    async def status(self) -> StoreStatus:
        reply = await self._call("Maintenance", "Status", rpc.StatusRequest())
        members = await self._call("Cluster", "MemberList", rpc.MemberListRequest())
        used = reply.dbSizeInUse or reply.dbSize
        return StoreStatus(reply.header.revision, reply.dbSize, used, len(members.members))

    async def close(self) -> None:
        self._closed = True
        await self.client.close()

    # --- inside

    async def _call(self, service: str, method: str, request: Any) -> Any:
        try:
            return await self.client.call(service, method, request)
        except grpc.aio.AioRpcError as exc:
            raise _translate(exc) from exc

    async def _revoke(self, lease_id: int) -> None:
        try:
            await self.client.call(
                "Lease",
                "LeaseRevoke",
                rpc.LeaseRevokeRequest(ID=lease_id),
                timeout_s=2.0,
            )
        except (grpc.aio.AioRpcError, VstorError) as exc:
            log.debug("lease not revoked lease=%x reason=%s", lease_id, exc)  # it ends by itself

    async def _revoke_former(self) -> None:
        if self._lease_file is None or not self._lease_file.exists():
            return
        try:
            lease_id = int(self._lease_file.read_text(), 16)
        except ValueError:
            lease_id = 0
        if lease_id:
            log.info("revoking the lease of a former run lease=%x", lease_id)
            await self._revoke(lease_id)
        self._remember(0)

    def _remember(self, lease_id: int) -> None:
        if self._lease_file is None:
            return
        if lease_id:
            paths.write_atomic(self._lease_file, f"{lease_id:x}\n".encode(), 0o600)
        elif self._lease_file.exists():
            os.unlink(self._lease_file)


class EtcdLeadership:
    """See store.Leadership."""

    def __init__(self, store: EtcdStore, epoch: int, keeper: LeaseKeeper, lease_id: int) -> None:
        self.epoch = epoch
        self._store = store
        self._keeper = keeper
        self._lease_id = lease_id

    def serving_until_ms(self) -> int:
        return self._keeper.serving_until_ms

    def lost(self) -> bool:
        return self._keeper.lost

    def beat(self, ahead_ms: int = 0) -> None:
        self._keeper.beat_ms = clock.boottime_ms() + ahead_ms

    async def commit(self, seq: int, batch_id: bytes, mutations: Iterable[Mutation]) -> int:
        batch = list(mutations)
        check_batch(batch_id, batch)
        reply = await self._store._call("KV", "Txn", self._transaction(seq, batch_id, batch))
        if reply.succeeded:
            return int(reply.header.revision)
        leader, chain = (response.response_range.kvs for response in reply.responses)
        if chain and chain[0].value == batch_id and chain[0].version == seq + 1:
            return int(chain[0].mod_revision)  # done by an attempt whose reply was lost
        if not leader or leader[0].create_revision != self.epoch:
            raise Fenced(f"epoch {self.epoch} ended, leader is {leader[0].create_revision if leader else 'nobody'}")
        raise Fenced(f"the chain is at {chain[0].version if chain else 0}, not {seq}")

    def _transaction(self, seq: int, batch_id: bytes, mutations: list[Mutation]) -> Any:
        request = rpc.TxnRequest()
        _compare(request, _LEADER, rpc.Compare.CREATE, self.epoch)
        _compare(request, _SEQ, rpc.Compare.VERSION, seq)
        put = request.success.add().request_put
        put.key, put.value = _SEQ, batch_id
        for key, record in mutations:
            if record is None:
                request.success.add().request_delete_range.key = PREFIX + key
            else:
                put = request.success.add().request_put
                put.key, put.value = PREFIX + key, record
        request.failure.add().request_range.key = _LEADER
        request.failure.add().request_range.key = _SEQ
        return request

    async def resign(self) -> None:
        self._keeper.stop()
        await self._store._revoke(self._lease_id)
        self._store._remember(0)


def _compare(request: Any, key: bytes, target: int, value: int) -> None:
    compare = request.compare.add()
    compare.key, compare.target, compare.result = key, target, rpc.Compare.EQUAL
    if target == rpc.Compare.CREATE:
        compare.create_revision = value
    else:
        compare.version = value


def _changes(events: Iterable[Any]) -> list[Change]:
    """Events of a watch reply (which holds whole revisions) by revision."""
    found: list[Change] = []
    skip = len(PREFIX)
    revision, seq, changed, leader = 0, 0, False, None
    mutations: list[Mutation] = []

    def flush() -> None:
        if revision:
            found.append(Change(revision, seq, mutations, changed, leader))

    for event in events:
        kv = event.kv
        if kv.mod_revision != revision:
            flush()
            revision, seq, mutations, changed, leader = (
                kv.mod_revision,
                0,
                [],
                False,
                None,
            )
        deleted = event.type == DELETE
        if kv.key == _SEQ:
            seq = kv.version
        elif kv.key == _LEADER:
            changed, leader = True, None if deleted else _leader_of(kv)
        else:
            mutations.append((kv.key[skip:], None if deleted else kv.value))
    flush()
    return found


def _translate(exc: grpc.aio.AioRpcError) -> VstorError:
    details = exc.details() or exc.code().name
    if "compacted" in details:
        return HistoryLost(details)
    if "space exceeded" in details:
        return StoreUnavailable(
            "etcd's database is full (quota): compact and defragment it, then `etcdctl alarm disarm`"
        )
    if exc.code() == grpc.StatusCode.NOT_FOUND and "lease" in details:
        return Fenced(details)
    if exc.code() in (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    ):
        return VstorError(ErrorCode.DENIED, f"etcd refuses: {details}")
    return VstorError(ErrorCode.INTERNAL, f"etcd refuses: {details}")
