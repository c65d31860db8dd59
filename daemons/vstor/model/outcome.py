"""What the core hands to the shell, and who asks.

DESIGN: the core (`core.Core`) is synchronous and pure. It changes memory at once and tells the shell what to make durable and
what to send. Rules for the shell:

1. Outcomes are delivered in the order in which the core made them. A reply, push or order of an Outcome goes out only when
   its own mutations *and those of every earlier Outcome* are committed: an Outcome without mutations may rest on memory that is
   not durable yet (a LOOKUP of a file just created).
2. On one connection replies and pushes keep that order, so that a client never gets `Invalidate` before the older reply.
3. `park` is not None: keep (ctx, request_id, ack, body) and call `handle` again with the same arguments when a later
   Outcome.wake contains that key; `WAKE_ALL` in wake means all parked requests. The parked Outcome itself may carry mutations (a replica taken out of
   the map), pushes (recalls) and orders: treat them as of any other Outcome.
4. A parked request whose connection closes is dropped by the shell; `Core.session_disconnected(ctx)` makes the core forget it.
5. A commit that fails ends the leadership: memory is ahead of the store, so the Core and its State are thrown away.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from vstor.proto.messages import CsOrder, PushBody, ReplyBody

WAKE_ALL = "all"


@dataclass(frozen=True, slots=True)
class Ctx:
    """The connection a request came by. The shell has authenticated it; role is what Hello said and the certificate allows.

    session_id and cs_id are 0 until an Outcome of this connection says `bind_session` or `bind_cs`.
    """

    conn_id: int  # never reused by the shell, > 0
    role: str  # client, cs, ctl, mds
    session_id: int = 0
    cs_id: int = 0
    host_id: str = ""
    hostname: str = ""
    address: str = ""  # peer's IP, for status and events


@dataclass(slots=True)
class Outcome:
    """The result of one step of the core."""

    mutations: list[tuple[bytes, bytes | None]] = field(
        default_factory=list
    )  # key -> record (None: delete); each key once
    reply: ReplyBody | None = None
    park: Hashable | None = None
    wake: set[Hashable] = field(default_factory=set)
    pushes: list[tuple[int, PushBody]] = field(default_factory=list)  # (session_id, push); no connection: drop
    orders: list[tuple[int, CsOrder]] = field(
        default_factory=list
    )  # (cs_id, order); no connection: drop, the core retries
    bind_session: int = 0  # this connection is from now on that of the session (an older connection of it is closed)
    bind_cs: int = 0  # this connection is from now on that of the CS (an older connection of it is closed)
    unbind_session: list[int] = field(
        default_factory=list
    )  # sessions that ended: close their connections after the reply
