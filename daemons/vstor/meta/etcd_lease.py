"""Keeps the leader's lease alive from a thread of its own, so that a busy event loop does not lose it, and a hung one does."""

from __future__ import annotations

import contextlib
import logging
import threading

import grpc

from vstor import clock
from vstor.meta.etcd_client import Member
from vstor.meta.etcd_pb import rpc, stubs

log = logging.getLogger(__name__)

SERVE_PART = 0.7  # of the ttl: the margin covers clocks that run differently and the time a reply needs to leave


class LeaseKeeper:
    """Sends keepalives every third of the ttl.

    serving_until_ms: CLOCK_BOOTTIME taken before a keepalive that succeeded, plus SERVE_PART of the ttl.
    beat_ms: set by the event loop; older than half a ttl: no more keepalives.
    """

    def __init__(self, members: list[Member], lease_id: int, ttl_s: int, granted_ms: int) -> None:
        self.serving_until_ms = granted_ms + int(ttl_s * 1000 * SERVE_PART)
        self.beat_ms = clock.boottime_ms()
        self.lost = False
        self._members = members
        self._lease_id = lease_id
        self._ttl_s = ttl_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etcd-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more keepalives and no more serving; returns at once."""
        self._stop.set()
        self.serving_until_ms = 0

    def _run(self) -> None:
        channels = [member.blocking_channel() for member in self._members]
        try:
            current = 0
            while not self._stop.wait(self._ttl_s / 3 if not self.lost else None):
                now_ms = clock.boottime_ms()
                if now_ms - self.beat_ms > self._ttl_s * 500:
                    log.warning(
                        "lease not prolonged: the event loop hangs lease=%x silent_ms=%d",
                        self._lease_id,
                        now_ms - self.beat_ms,
                    )
                    continue
                for _ in channels:
                    if self._keep_alive(channels[current % len(channels)]) or self._stop.is_set():
                        break
                    current += 1
        finally:
            for channel in channels:
                channel.close()

    def _keep_alive(self, channel: grpc.Channel) -> bool:
        """False: try another member."""
        sent_ms = clock.boottime_ms()
        call = stubs.LeaseStub(channel).LeaseKeepAlive(
            iter([rpc.LeaseKeepAliveRequest(ID=self._lease_id)]),
            timeout=max(self._ttl_s / 3, 0.5),
        )
        try:
            reply = next(call)
        except grpc.RpcError as exc:
            log.warning("lease keepalive failed lease=%x reason=%s", self._lease_id, exc)
            return False
        except StopIteration:
            return False
        finally:
            with contextlib.suppress(grpc.RpcError):
                call.cancel()
        if reply.TTL <= 0:
            log.warning("lease expired lease=%x", self._lease_id)
            self.lost = True
            self.stop()
        elif not self._stop.is_set():
            self.serving_until_ms = sent_ms + int(self._ttl_s * 1000 * SERVE_PART)
        return True
