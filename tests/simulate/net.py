"""The network between simulated processes: ordered connections that delay, stall, break and lose what is under way.

What TCP promises is kept (order, no gap before a break); what it does not promise is tried: messages sent before a break may be delivered after the
sender has given up, the news of a break may come late or (power cut, partition) never.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulate.loop import Proc, SimLoop

UNACKED_S_MAX = 5.0  # TCP_USER_TIMEOUT of the product's connections
SLOW_PART = 0.02  # of messages are delayed much more than usual


class Net:
    """Who reaches whom, and how fast."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop, self.rng = loop, rng
        self.blocked: set[tuple[str, str]] = set()  # (from host, to host): nothing passes
        self.slow: dict[str, float] = {}  # host -> seconds added
        self.links: list[Link] = []

    def passes(self, source: str, target: str) -> bool:
        return source == target or (source, target) not in self.blocked

    def delay_s(self, source: str, target: str) -> float:
        extra = self.slow.get(source, 0.0) + self.slow.get(target, 0.0)
        base = 0.0001 + self.rng.random() ** 3 * 0.004
        if self.rng.random() < SLOW_PART:
            base += self.rng.random() * 0.4
        return base + (extra and self.rng.random() * extra)

    def heal(self) -> None:
        """Everything passes again; what TCP kept is sent again."""
        self.blocked.clear()
        self.slow.clear()
        for link in list(self.links):
            link.flush()

    def unblock(self, pairs: set[tuple[str, str]]) -> None:
        self.blocked -= pairs
        for link in list(self.links):
            link.flush()


class End:
    """One side of a connection."""

    def __init__(self, link: Link, proc: Proc) -> None:
        self.link, self.proc = link, proc
        self.open = True
        self.on_close: Callable[[], None] | None = None
        self.last_s = 0.0  # when the last message towards this end arrives
        # Messages under way to this end, in order, each with: it goes through to an end that is deaf.
        self.coming: deque[tuple[Callable[[], None], bool]] = deque()
        self.held = 0  # of them have met a blocked path
        self.deaf = False  # what was under way when the peer gave up is lost

    @property
    def peer(self) -> End:
        return self.link.ends[1] if self.link.ends[0] is self else self.link.ends[0]

    def send(self, deliver: Callable[[], None]) -> None:
        """`deliver` runs at the peer, in order."""
        if self.open and self.proc.alive:
            self.link.transmit(self.peer, deliver)

    def close(self, *, abort: bool = False) -> None:
        """This side is done. abort: what is under way may be lost."""
        if not self.open:
            return
        self.open = False
        peer = self.peer
        if abort and self.link.net.rng.random() < 0.5:
            peer.deaf = True
        self.link.transmit(peer, peer.closed_by_peer, last=True)

    def closed_by_peer(self) -> None:
        if self.open:
            self.open = False
            if self.on_close is not None:
                self.on_close()
        self.link.forget_if_done()


class Link:
    """One connection."""

    def __init__(self, net: Net, a: Proc, b: Proc) -> None:
        self.net = net
        self.ends = (End(self, a), End(self, b))
        net.links.append(self)
        for end in self.ends:
            end.proc.on_death.append(self._death_of(end))

    def _death_of(self, end: End) -> Callable[[bool], None]:
        def died(told: bool) -> None:
            if end.open:
                end.open = False
                if told:
                    self.transmit(end.peer, end.peer.closed_by_peer, last=True)

        return died

    def transmit(self, to: End, deliver: Callable[[], None], *, last: bool = False) -> None:
        to.coming.append((deliver, last))
        self._set_out(to)

    def _set_out(self, to: End) -> None:
        """One message more arrives some time. Which one says the queue alone: timers of the same moment fire in any order."""
        net, source = self.net, to.peer.proc.host.name
        if not to.proc.alive:
            # Nobody is there: its host's kernel says so, or (it has no power) nothing is acknowledged.
            wait_s = net.rng.choice((0.001, UNACKED_S_MAX))
            net.loop.call_later(wait_s, to.peer.closed_by_peer, context=to.peer.proc.context)
            return
        when_s = max(net.loop.now_s + net.delay_s(source, to.proc.host.name), to.last_s)
        to.last_s = when_s
        net.loop.call_at(when_s, self._arrive, to, context=to.proc.context)

    def _arrive(self, to: End) -> None:
        if to.held or not self.net.passes(to.peer.proc.host.name, to.proc.host.name):
            if not to.held:
                self.net.loop.call_later(UNACKED_S_MAX, self._unacked, to, context=to.peer.proc.context)
            to.held += 1
        elif to.coming:
            self._take(to, *to.coming.popleft())

    def _take(self, to: End, deliver: Callable[[], None], last: bool) -> None:
        if to.open and (last or not to.deaf):
            deliver()

    def _unacked(self, to: End) -> None:
        """Nothing was acknowledged for too long: the sender's kernel gives the connection up."""
        if to.held and to.peer.open:
            sender = to.peer
            sender.open = False
            if sender.on_close is not None:
                sender.on_close()

    def flush(self) -> None:
        for end in self.ends:
            if end.held and self.net.passes(end.peer.proc.host.name, end.proc.host.name):
                held, end.held = end.held, 0
                if not end.peer.open and self.net.rng.random() < 0.5:
                    end.coming.clear()  # the kernel had given up sending
                    self.transmit(end, end.closed_by_peer, last=True)
                else:
                    for _ in range(held):
                        self._set_out(end)
            if not end.peer.open and end.open and not end.held and end.peer.proc.alive is False:
                self.transmit(end, end.closed_by_peer, last=True)

    def forget_if_done(self) -> None:
        if not self.ends[0].open and not self.ends[1].open and self in self.net.links:
            self.net.links.remove(self)


class Directory:
    """Which process listens at an address."""

    def __init__(self) -> None:
        self._listening: dict[str, tuple[Proc, Any]] = {}

    def listen(self, address: str, proc: Proc, service: Any) -> None:
        self._listening[address] = (proc, service)

    def find(self, address: str) -> tuple[Proc, Any] | None:
        found = self._listening.get(address)
        return found if found is not None and found[0].alive else None
