"""What the leader does to the set of MDSs and their etcd members: join, remove, promote learners.

DESIGN: a joining member is a learner (no vote) until it is in step, so an MDS that never starts cannot cost the quorum. Removing asks
every remaining member first. Each step can be repeated: a lost reply or a crash in the middle is mended by the same command.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds.members import MEMBERS_MAX, MdsRecord, Members, encode
from vstor.mds.quorum import Quorum
from vstor.mds.repo_files import ETCD_PORT_OFFSET, MdsConfig
from vstor.mds.repository import etcd_name, etcd_url, san_addresses
from vstor.mds.term import Term
from vstor.meta.etcd import EtcdStore
from vstor.meta.etcd_client import EtcdClient
from vstor.meta.etcd_pb import rpc
from vstor.meta.store import Store
from vstor.net import identity, pki
from vstor.proto import messages as m

log = logging.getLogger(__name__)

MEMBER_ANSWER_S_MAX = 1.5
LEARNER_S_MAX = 15.0  # a join waits so long for the member before it
LEARNER_POLL_S = 0.2


class ClusterOps:
    """For one term. `lock`: one change of the membership at a time."""

    def __init__(
        self, config: MdsConfig, store: Store, members: Members, secrets: dict[str, bytes], term: Term
    ) -> None:
        self._config = config
        self._etcd = store.client if isinstance(store, EtcdStore) and config.managed_etcd else None
        self._members = members
        self._secrets = secrets
        self._term = term
        self._lock = asyncio.Lock()
        self.quorum = Quorum(store.client if isinstance(store, EtcdStore) else None)
        self.learners = True  # there may be members without a vote

    async def join(self, body: m.MdsJoin) -> m.JsonReply:
        """MdsJoin. The same address again gets the same id and new certificates.

        Raises: EXISTS (another host has the address), LIMIT, BAD_REQUEST, META_UNAVAILABLE."""
        address = identity.format_address(*identity.parse_address(body.address))
        async with self._lock:
            record = self._members.by_address(address)
            if record is not None and record.host_id != body.host_id:
                raise VstorError(
                    ErrorCode.EXISTS, f"MDS#{record.mds_id} on host {record.hostname} has address {address} already"
                )
            if record is None:
                if len(self._members.active()) >= MEMBERS_MAX:
                    raise VstorError(ErrorCode.LIMIT, f"a cluster has at most {MEMBERS_MAX} MDSs")
                record = self._new_record(address, body)
            name, secrets = etcd_name(record.mds_id), self._secrets
            cert = pki.issue(secrets["ca_cert"], secrets["ca_key"], body.csr_pem, common=name, role=pki.ROLE_MDS)
            etcd_cert, initial_cluster = b"", ""
            if self._etcd is not None:
                etcd_cert = pki.issue(
                    secrets["etcd_ca_cert"],
                    secrets["etcd_ca_key"],
                    body.csr_pem,
                    common=name,
                    role=pki.ROLE_ETCD,
                    addresses=san_addresses(address),
                )
                initial_cluster = await self._add_learner(self._etcd, name, etcd_url(address))
            if self._members.by_address(address) is None:
                mutation = encode(record)
                self._members.apply([mutation])
                await self._term.commit([mutation])
                self._term.report_event("info", f"MDS#{record.mds_id} ({address}) was added")
        reply = {
            "mds_id": record.mds_id,
            "cluster_id": self._config.cluster_id,
            "ca": secrets["ca_cert"].decode(),
            "mds_cert": cert.decode(),
            "etcd_ca": secrets["etcd_ca_cert"].decode(),
            "etcd_cert": etcd_cert.decode(),
            "managed_etcd": self._config.managed_etcd,
            "etcd_urls": self._members.etcd_urls() or list(self._config.etcd_urls),
            "initial_cluster": initial_cluster,
            "lease_ttl_s": self._config.lease_ttl_s,
            "mds_addresses": [r.address for r in self._members.active()],
        }
        return m.JsonReply(json.dumps(reply).encode())

    def _new_record(self, address: str, body: m.MdsJoin) -> MdsRecord:
        mds_id = self._members.new_id()
        managed = self._config.managed_etcd
        urls = [etcd_url(address, ETCD_PORT_OFFSET)] if managed else list(self._config.etcd_urls)
        return MdsRecord(mds_id, address, body.host_id, body.hostname[:255], etcd_name(mds_id) if managed else "", urls)

    async def _add_learner(self, etcd: EtcdClient, name: str, peer_url: str) -> str:
        """--initial-cluster for the new member, which is a learner now."""
        listed = await _call(etcd, "Cluster", "MemberList", rpc.MemberListRequest())
        if not any(peer_url in member.peerURLs for member in listed.members):
            await self._wait_for_votes(etcd)
            self.learners = True
            await _call(etcd, "Cluster", "MemberAdd", rpc.MemberAddRequest(peerURLs=[peer_url], isLearner=True))
            listed = await _call(etcd, "Cluster", "MemberList", rpc.MemberListRequest())
        parts = [f"{member.name or name}={url}" for member in listed.members for url in member.peerURLs]
        return ",".join(parts)

    async def _wait_for_votes(self, etcd: EtcdClient) -> None:
        """etcd takes one learner at a time: the member that joined before gets its vote first. Raises UNSAFE when it is not in step in time."""
        deadline_s = asyncio.get_running_loop().time() + LEARNER_S_MAX
        while True:
            listed = await _call(etcd, "Cluster", "MemberList", rpc.MemberListRequest())
            waiting = [member for member in listed.members if member.isLearner]
            if not waiting:
                return
            if asyncio.get_running_loop().time() >= deadline_s:
                names = ", ".join(member.name or "that joined before" for member in waiting)
                message = f"the MDS {names} does not run or is not in step yet; start it first, then run this again"
                raise VstorError(ErrorCode.UNSAFE, message)
            await self.promote_learners()
            await asyncio.sleep(LEARNER_POLL_S)

    async def promote_learners(self) -> None:
        """Give a vote to each learner that has caught up; etcd refuses the others."""
        if self._etcd is None:
            return
        listed = await _call(self._etcd, "Cluster", "MemberList", rpc.MemberListRequest())
        waiting = [member for member in listed.members if member.isLearner]
        self.learners = bool(waiting)
        for member in waiting:
            try:
                await self._promote(member.ID)
            except grpc.aio.AioRpcError as exc:
                log.debug("learner not promoted member=%x reason=%s", member.ID, exc.details())
                continue
            log.info("etcd member promoted name=%s member=%x", member.name, member.ID)
            self._term.report_event("info", f"The etcd member {member.name or '?'} is in step and votes now")

    async def _promote(self, member_id: int) -> None:
        assert self._etcd is not None
        promote = self._etcd.member.unary(
            "/etcdserverpb.Cluster/MemberPromote", rpc.MemberPromoteRequest, rpc.MemberPromoteResponse
        )
        await promote(rpc.MemberPromoteRequest(ID=member_id), timeout=MEMBER_ANSWER_S_MAX)

    async def remove(self, body: m.RemoveMds) -> m.JsonReply:
        """RemoveMds. Raises NOT_MDS, UNSAFE (it leads, it is the last, or the rest would have no quorum)."""
        async with self._lock:
            record = self._members.records.get(body.mds_id)
            mutation = self._members.removed(body.mds_id)
            assert record is not None
            if record.mds_id == self._config.mds_id:
                message = f"MDS#{record.mds_id} leads now; stop it first, so that another one takes over"
                if len(self._members.active()) == 1:
                    message = f"MDS#{record.mds_id} is the only MDS of the cluster"
                raise VstorError(ErrorCode.UNSAFE, message)
            voters_left = await self._check_quorum(record)
            if not body.dry_run:
                await self._remove_member(record)
                self._members.apply([mutation])
                await self._term.commit([mutation])
                self._term.report_event("warn", f"MDS#{record.mds_id} ({record.address}) was removed")
        return m.JsonReply(
            json.dumps({"mds_id": record.mds_id, "address": record.address, "voters_left": voters_left}).encode()
        )

    async def _check_quorum(self, leaving: MdsRecord) -> int:
        """Voting etcd members that remain. Raises UNSAFE when fewer than their quorum answer."""
        if self._etcd is None:
            return 0
        listed = await _call(self._etcd, "Cluster", "MemberList", rpc.MemberListRequest())
        peer_url = etcd_url(leaving.address)
        rest = [member for member in listed.members if peer_url not in member.peerURLs and not member.isLearner]
        answers = await asyncio.gather(*(self._answers(list(member.clientURLs)) for member in rest))
        alive, quorum = sum(answers), len(rest) // 2 + 1
        if alive < quorum:
            silent = ", ".join(
                member.name or "?" for member, answered in zip(rest, answers, strict=True) if not answered
            )
            message = f"only {alive} of the {len(rest)} remaining etcd members answer ({silent} do not), {quorum} are needed; start them first"
            raise VstorError(ErrorCode.UNSAFE, message)
        return len(rest)

    async def _answers(self, urls: list[str]) -> bool:
        if not urls or self._etcd is None:
            return False
        client = self._etcd.like(urls)
        try:
            await client.call("Maintenance", "Status", rpc.StatusRequest(), timeout_s=MEMBER_ANSWER_S_MAX)
            return True
        except (VstorError, grpc.aio.AioRpcError):
            return False
        finally:
            await client.close()

    async def _remove_member(self, record: MdsRecord) -> None:
        if self._etcd is None:
            return
        listed = await _call(self._etcd, "Cluster", "MemberList", rpc.MemberListRequest())
        peer_url = etcd_url(record.address)
        for member in listed.members:
            if peer_url in member.peerURLs:
                await _call(self._etcd, "Cluster", "MemberRemove", rpc.MemberRemoveRequest(ID=member.ID))


async def _call(etcd: EtcdClient, service: str, method: str, request: Any) -> Any:
    try:
        return await etcd.call(service, method, request)
    except grpc.aio.AioRpcError as exc:
        details = exc.details() or exc.code().name
        unsafe = exc.code() == grpc.StatusCode.FAILED_PRECONDITION
        raise VstorError(
            ErrorCode.UNSAFE if unsafe else ErrorCode.META_UNAVAILABLE, f"etcd refuses {method}: {details}"
        ) from exc
