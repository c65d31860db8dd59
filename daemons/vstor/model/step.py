"""One step of the core: the request at hand, the pending changes, the Outcome under construction."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.leases import Demand
from vstor.model.outcome import Ctx, Outcome
from vstor.model.records import Inode
from vstor.model.tx import Tx
from vstor.stamps import later

if TYPE_CHECKING:
    from vstor.model.core import Core


class Parked(Exception):
    """The request waits for `key`. keep: the changes made so far are committed all the same."""

    def __init__(self, key: Hashable, keep: bool = False) -> None:
        self.key = key
        self.keep = keep
        super().__init__(key)


class Step:
    """What a handler works with. `core` holds the parts, `tx` the changes, `out` what is sent."""

    __slots__ = ("ack", "cid", "core", "ctx", "now_ms", "out", "request_id", "session_id", "state", "tx")

    def __init__(self, core: Core, ctx: Ctx, request_id: int, now_ms: int) -> None:
        self.core = core
        self.state = core.state
        self.ctx = ctx
        self.request_id = request_id
        self.session_id = ctx.session_id
        self.cid: Hashable = (ctx.session_id, request_id) if ctx.session_id else (-ctx.conn_id, request_id)
        self.now_ms = now_ms
        self.ack = 0
        self.tx = self.new_tx()
        self.out = Outcome()

    def new_tx(self) -> Tx:
        """No changes yet."""
        return Tx(self.core.state, self.core.ids)

    @property
    def now_ns(self) -> int:
        """The cluster clock for time stamps."""
        return self.now_ms * 1_000_000

    def stamp(self, inode: Inode) -> int:
        """The time of a change of `inode` made in this step."""
        return later(self.now_ns, inode.ctime_ns)

    def settle(self, demands: list[Demand]) -> None:
        """Raise Parked unless every demand is met. Call it after all checks and before any change."""
        key = self.core.leases.settle(self.cid, self.session_id, demands, self.now_ms, self.out)
        if key is not None:
            raise Parked(key)

    def event(self, severity: str, message: str, system: str = "MDS") -> None:
        """A line for the event log."""
        self.tx.event(severity, system, message, self.now_ms)

    def need_session(self) -> int:
        """The session of the connection. Raises NO_SESSION."""
        if not self.session_id or self.session_id not in self.state.sessions:
            raise VstorError(ErrorCode.NO_SESSION)
        return self.session_id
