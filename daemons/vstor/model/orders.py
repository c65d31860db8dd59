"""Orders to chunk servers that were not answered yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vstor.codes_gen import ErrorCode
from vstor.model.step import Step
from vstor.proto.messages import CsOrder, CsOrderDone, Order

ORDERS_PER_CS_MAX = 4096


@dataclass(slots=True)
class Pending:
    """An order under way. done(step, cs_id, status, value, bytes) is called once, with DISCONNECTED when it is given up."""

    order_id: int
    cs_id: int
    order: Order
    since_ms: int
    sent_ms: int
    timeout_ms: int  # 0: waits for ever
    done: Callable[[Step, int, int, int, int], None]


class OrderBook:
    """Sends orders, sends them again on a new connection, gives them up after a time. Orders are idempotent at the chunk server.

    Order ids hold the low bits of the epoch, so that an answer to an earlier leader's order finds nothing here.
    """

    def __init__(self, epoch: int, resend_ms: Callable[[], int]) -> None:
        self._epoch = epoch
        self._resend_ms = resend_ms
        self._next = (epoch & 0xFFFFFFFF) << 28
        self._pending: dict[int, Pending] = {}
        self._by_cs: dict[int, set[int]] = {}

    def send(
        self,
        s: Step,
        cs_id: int,
        order: Order,
        done: Callable[[Step, int, int, int, int], None],
        timeout_ms: int = 0,
    ) -> int:
        """Give an order; returns its id."""
        self._next += 1
        pending = Pending(self._next, cs_id, order, s.now_ms, s.now_ms, timeout_ms, done)
        self._pending[self._next] = pending
        self._by_cs.setdefault(cs_id, set()).add(self._next)
        s.out.orders.append((cs_id, CsOrder(self._next, self._epoch, order)))
        return self._next

    def cancel(self, order_id: int) -> None:
        """Nobody wants the answer any more; the chunk server may still do it."""
        pending = self._pending.pop(order_id, None)
        if pending is not None:
            self._by_cs[pending.cs_id].discard(order_id)

    def room(self, cs_id: int) -> int:
        """How many orders more the chunk server may have waiting."""
        return ORDERS_PER_CS_MAX - len(self._by_cs.get(cs_id, ()))

    def count(self) -> int:
        """Orders under way."""
        return len(self._pending)

    def answered(self, s: Step, cs_id: int, body: CsOrderDone) -> None:
        """The chunk server reports; unknown ids are old news."""
        pending = self._pending.get(body.order_id)
        if pending is None or pending.cs_id != cs_id:
            return
        self.cancel(body.order_id)
        pending.done(s, cs_id, body.status, body.value, body.bytes)

    def resend(self, s: Step, cs_id: int) -> None:
        """A new connection of the chunk server: everything again."""
        for order_id in sorted(self._by_cs.get(cs_id, ())):
            pending = self._pending[order_id]
            pending.sent_ms = s.now_ms
            s.out.orders.append((cs_id, CsOrder(order_id, self._epoch, pending.order)))

    def tick(self, s: Step, connected: Callable[[int], bool]) -> None:
        """Give up what is overdue; repeat short orders that a living server has not answered."""
        for pending in list(self._pending.values()):
            if pending.order_id not in self._pending:
                continue  # cancelled by another one's end
            if pending.timeout_ms and s.now_ms - pending.since_ms >= pending.timeout_ms:
                self.cancel(pending.order_id)
                pending.done(s, pending.cs_id, ErrorCode.TIMED_OUT, 0, 0)
            elif connected(pending.cs_id) and s.now_ms - pending.sent_ms >= self._resend_ms():
                pending.sent_ms = s.now_ms
                s.out.orders.append((pending.cs_id, CsOrder(pending.order_id, self._epoch, pending.order)))

    def server_lost(self, s: Step, cs_id: int) -> None:
        """The chunk server is inactive: orders with a time limit end at once, the others wait for its return."""
        for order_id in list(self._by_cs.get(cs_id, ())):
            pending = self._pending.get(order_id)
            if pending is not None and pending.timeout_ms:
                self.cancel(order_id)
                pending.done(s, cs_id, ErrorCode.DISCONNECTED, 0, 0)
