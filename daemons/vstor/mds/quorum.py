"""The etcd members behind the MDSs: who votes, who answers, who is behind. Looked at by the leader, told in status."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import grpc

from vstor.errors import VstorError
from vstor.meta.etcd_client import EtcdClient
from vstor.meta.etcd_pb import rpc

log = logging.getLogger(__name__)

ANSWER_S_MAX = 1.5
BEHIND_MAX = 2000  # log entries; a member further behind is not in step (etcd keeps as many: --snapshot-count)


@dataclass(frozen=True, slots=True)
class MemberState:
    """One member as last seen. behind: log entries it lacks of the newest known."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    voter: bool
    alive: bool
    leads: bool
    behind: int

    @property
    def in_step(self) -> bool:
        """Has a vote, answers, and has nearly all."""
        return self.voter and self.alive and self.behind <= BEHIND_MAX


class Quorum:
    """Members of the etcd cluster. Empty until `look` has run."""

    def __init__(self, client: EtcdClient | None) -> None:
        self._client = client
        self.members: list[MemberState] = []

    async def look(self) -> None:
        """Ask every member. Raises StoreUnavailable when none lists the members."""
        if self._client is None:
            return
        try:
            listed = await self._client.call("Cluster", "MemberList", rpc.MemberListRequest())
        except grpc.aio.AioRpcError as exc:
            log.warning("etcd does not list its members reason=%s", exc.details())
            return
        answers = await asyncio.gather(*(self._status(list(member.clientURLs)) for member in listed.members))
        newest = max((answer.raftIndex for answer in answers if answer is not None), default=0)
        self.members = [
            MemberState(
                member.ID, member.name, tuple(member.peerURLs), tuple(member.clientURLs), not member.isLearner, answer is not None,
                answer is not None and answer.leader == member.ID, newest - answer.raftIndex if answer is not None else 0,
            )
            for member, answer in zip(listed.members, answers, strict=True)
        ]  # fmt: skip

    async def _status(self, urls: list[str]) -> Any:
        if not urls or self._client is None:
            return None  # it has not started yet
        client = self._client.like(urls)
        try:
            return await client.call("Maintenance", "Status", rpc.StatusRequest(), timeout_s=ANSWER_S_MAX)
        except (VstorError, grpc.aio.AioRpcError):
            return None
        finally:
            await client.close()

    def of_peer(self, url: str) -> MemberState | None:
        """The member with this peer URL."""
        return next((member for member in self.members if url in member.peer_urls), None)

    def summary(self) -> dict[str, int]:
        """`quorum` of the status object: can_lose is what may fail now without stopping the cluster; below 0 it stands."""
        voters = [member for member in self.members if member.voter]
        needed = len(voters) // 2 + 1 if voters else 0
        in_step = sum(member.in_step for member in voters)
        return {
            "members": len(self.members),
            "voters": len(voters),
            "in_step": in_step,
            "needed": needed,
            "can_lose": in_step - needed,
        }

    async def move_away(self, own_peer_url: str) -> bool:
        """Give etcd's leadership to a member on another host than the leading MDS's, so that the loss of this host costs one election, not two
        (a new etcd leader begins every lease anew). Whether it was moved."""
        own = self.of_peer(own_peer_url)
        others = [member for member in self.members if member.in_step and not member.leads]
        if self._client is None or own is None or not own.leads or not others:
            return False
        target = min(others, key=lambda member: member.behind)
        client = self._client.like(list(own.client_urls))
        try:
            await client.member.stub("Maintenance").MoveLeader(
                rpc.MoveLeaderRequest(targetID=target.member_id), timeout=2 * ANSWER_S_MAX
            )
        except grpc.aio.AioRpcError as exc:
            log.info("etcd's leadership was not moved to=%s reason=%s", target.name, exc.details())
            return False
        finally:
            await client.close()
        log.info("etcd's leadership was moved to=%s", target.name)
        return True
