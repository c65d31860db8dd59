"""The state machine of the leading MDS: requests in, Outcomes out. Pure: no I/O, no clock, no randomness but the seed."""

from __future__ import annotations

from typing import Any

from vstor.model.outcome import Ctx, Outcome
from vstor.model.state import State
from vstor.proto.messages import RequestBody


class Core:
    """What the leader decides. One instance for each term of leadership; the State outlives it on standbys.

    Requests the shell answers itself and never passes here: Hello, Auth*, MdsJoin, RemoveMds, MdsReport (quorum is etcd's).
    """

    def __init__(self, state: State, *, epoch: int, seed: int, now_ms: int) -> None:
        """Take over `state`, complete up to this leader's term. Starts the grace period if sessions exist.

        Args: epoch: create revision of the leader key, goes into every order. seed: of placement. now_ms: cluster clock, Unix ms.
        """

    def handle(self, ctx: Ctx, request_id: int, ack: int, body: RequestBody, now_ms: int) -> Outcome:
        """Do one request. Raises VstorError(code, message); then nothing was changed and there is nothing to send but the Failure."""
        raise NotImplementedError

    def tick(self, now_ms: int) -> Outcome:
        """Time passes: expiry of sessions, states of CSs, recovery, retries of orders. Called about every 200 ms."""
        raise NotImplementedError

    def session_disconnected(self, ctx: Ctx, now_ms: int) -> Outcome:
        """A connection of a client (or of a tool) closed: its parked requests are forgotten; the session itself lives on until its ttl."""
        raise NotImplementedError

    def cs_disconnected(self, ctx: Ctx, now_ms: int) -> Outcome:
        """The connection of a chunk server closed. Ignored when a newer connection has been bound."""
        raise NotImplementedError

    def report_event(self, severity: str, system: str, message: str, now_ms: int) -> Outcome:
        """Put an event of the shell (election, etcd, backup) into the log. severity: info, warn, err."""
        raise NotImplementedError

    def status(self, now_ms: int) -> dict[str, Any]:
        """The status object of GetStatus; the shell adds `mds`. handle(GetStatus) gives the same with mds=[]."""
        raise NotImplementedError
