"""Calls to etcd with failover between its members: one grpc.aio channel for each, deadlines on everything.

DESIGN: one channel per member and a switch on DEADLINE_EXCEEDED and UNAVAILABLE, because a multi-address channel does not notice a hung
member. Every call must be safe to repeat; meta/etcd.py makes commits so by the batch id.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from vstor import clock
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.meta.etcd_pb import stubs
from vstor.meta.store import StoreUnavailable

log = logging.getLogger(__name__)

RPC_S_MAX = 2.0  # one attempt
CALL_S_MAX = 8.0  # all attempts; etcd itself gives a proposal up after 5 s + 2 elections
RETRY_S = 0.1
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 5000),  # etcd refuses pings more often
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
]
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Files of mutual TLS with etcd."""

    ca: Path
    cert: Path
    key: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises NOT_FOUND, DENIED when a file cannot be read."""
        try:
            return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())
        except OSError as exc:
            raise from_os_error(exc, f"cannot read {exc.filename}") from exc


def parse_endpoint(url: str) -> tuple[str, bool]:
    """("host:port", TLS?) of http://host:port or https://host:port. Raises CONFIG."""
    scheme, separator, rest = url.rstrip("/").partition("://")
    if not separator or scheme not in ("http", "https") or ":" not in rest or "/" in rest:
        raise VstorError(
            ErrorCode.CONFIG,
            f"bad etcd endpoint {url!r}: use https://IP:PORT or http://IP:PORT",
        )
    return rest, scheme == "https"


class Member:
    """One endpoint and its stubs, made when first used."""

    def __init__(self, url: str, tls: EtcdTls | None) -> None:
        self.url = url
        self._target, self._secure = parse_endpoint(url)
        if self._secure and tls is None:
            raise VstorError(ErrorCode.CONFIG, f"no certificates for etcd endpoint {url}")
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}

    def blocking_channel(self) -> grpc.Channel:
        """A channel of its own for another thread."""
        if self._secure and self._tls is not None:
            return grpc.secure_channel(self._target, self._tls.credentials(), CHANNEL_OPTIONS)
        return grpc.insecure_channel(self._target, CHANNEL_OPTIONS)

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            if self._secure and self._tls is not None:
                self._channel = grpc.aio.secure_channel(self._target, self._tls.credentials(), CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self._target, CHANNEL_OPTIONS)
        return self._channel

    def stub(self, service: str) -> Any:
        """Stub of KV, Lease, Watch, Cluster or Maintenance."""
        if service not in self._stubs:
            self._stubs[service] = getattr(stubs, f"{service}Stub")(self._open())
        return self._stubs[service]

    def unary(self, path: str, request: Any, reply: Any) -> Any:
        """A method that etcd3's stubs do not know."""
        return self._open().unary_unary(
            path, request_serializer=request.SerializeToString, response_deserializer=reply.FromString
        )

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel, self._stubs = None, {}


class EtcdClient:
    """The members of one etcd cluster.

    Concurrency: one event loop.
    """

    def __init__(self, urls: list[str], tls: EtcdTls | None) -> None:
        if not urls:
            raise VstorError(ErrorCode.CONFIG, "no etcd endpoints configured")
        self._tls = tls
        self.members = [Member(url, tls) for url in urls]
        self._current = 0

    def like(self, urls: list[str]) -> EtcdClient:
        """Another client, of these members, with the same certificates."""
        return EtcdClient(urls, self._tls)

    def add_urls(self, urls: list[str]) -> None:
        """Use these members as well."""
        known = {member.url for member in self.members}
        self.members += [Member(url, self._tls) for url in urls if url not in known]

    @property
    def member(self) -> Member:
        """The one in use."""
        return self.members[self._current % len(self.members)]

    def rotate(self, failed: Member) -> None:
        """Use the next one, unless somebody has switched already."""
        if self.member is failed:
            self._current += 1

    async def call(
        self,
        service: str,
        method: str,
        request: Any,
        *,
        timeout_s: float = CALL_S_MAX,
        rpc_s: float = RPC_S_MAX,
    ) -> Any:
        """The reply, from whichever member answers. The request may be done more than once.

        Raises: StoreUnavailable after `timeout_s`; grpc.aio.AioRpcError for answers that another member would give too.
        """
        deadline_ms = clock.boottime_ms() + int(timeout_s * 1000)
        while True:
            member = self.member
            left_s = (deadline_ms - clock.boottime_ms()) / 1000
            try:
                return await getattr(member.stub(service), method)(request, timeout=max(min(rpc_s, left_s), 0.05))
            except grpc.aio.AioRpcError as exc:
                if exc.code() not in TRANSIENT or "space exceeded" in (exc.details() or ""):
                    raise
                log.debug(
                    "etcd call failed method=%s member=%s code=%s details=%s",
                    method,
                    member.url,
                    exc.code(),
                    exc.details(),
                )
                self.rotate(member)
                if clock.boottime_ms() >= deadline_ms:
                    raise StoreUnavailable(
                        f"etcd does not answer ({member.url}: {exc.details() or exc.code().name})"
                    ) from exc
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """End all channels."""
        for member in self.members:
            await member.close()
