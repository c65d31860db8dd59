"""One control connection from the caller's side: TLS, requests by id, replies and pushes. No retry, no choice of server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from vstor import __version__
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import framing, pki
from vstor.net.identity import hostname, parse_address
from vstor.proto import messages as m

log = logging.getLogger(__name__)

HANDSHAKE_S_MAX = 5.0
SHUTDOWN_S_MAX = 1.0
UNACKED_MS_MAX = 5000  # TCP_USER_TIMEOUT (tcp(7)): a vanished peer is noticed this soon


class RpcConnection(asyncio.Protocol):
    """Concurrency: one event loop. After `closed` is set every waiter has got DISCONNECTED."""

    def __init__(self, on_push: Callable[[m.PushBody], None] | None = None) -> None:
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._reader = framing.FrameReader()
        self._waiting: dict[int, asyncio.Future[m.ReplyBody]] = {}
        self._loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.last_received_s = self._loop.time()
        self.certificate_sha256 = b""  # of the server's TLS certificate (DER)
        self.server_role = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(True) if tls is not None else None
        if der:
            self.certificate_sha256 = hashlib.sha256(der).digest()
        self.server_role = pki.peer_role(transport.get_extra_info("peercert"))
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS_MAX)

    def data_received(self, data: bytes) -> None:
        self.last_received_s = self._loop.time()
        try:
            envelopes = self._reader.feed(data)
        except VstorError as exc:
            log.warning("MDS sent a bad message reason=%s", exc.message)
            self.abort()
            return
        for envelope in envelopes:
            if isinstance(envelope, m.Push):
                if self._on_push is not None:
                    self._on_push(envelope.body)
            elif isinstance(envelope, m.Reply):
                future = self._waiting.pop(envelope.id, None)
                if future is not None and not future.done():
                    future.set_result(envelope.body)
            elif isinstance(envelope, m.Failure):
                future = self._waiting.pop(envelope.id, None)
                if future is not None and not future.done():
                    future.set_exception(_failure(envelope))

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone("connection lost" if exc is None else str(exc) or type(exc).__name__)

    def send(self, request: m.Request) -> asyncio.Future[m.ReplyBody]:
        """The answer as a future; a Failure or a loss of the connection is its exception (VstorError)."""
        future: asyncio.Future[m.ReplyBody] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(VstorError(ErrorCode.DISCONNECTED))
            return future
        self._transport.write(framing.pack(request))
        self._waiting[request.id] = future
        return future

    def forget(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(request_id, None)

    def close(self) -> None:
        """End after what was sent."""
        if self._transport is not None:
            self._transport.close()
            self._gone("closed")

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()
            self._gone("aborted")

    def _gone(self, why: str) -> None:
        self._transport = None
        self.closed.set()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(VstorError(ErrorCode.DISCONNECTED, f"connection to the MDS lost ({why})"))
                future.exception()  # mark as seen: a caller that gave up is no defect


def _failure(envelope: m.Failure) -> VstorError:
    try:
        return VstorError(envelope.code, envelope.message)
    except ValueError:  # a code of a newer peer
        return VstorError(ErrorCode.INTERNAL, f"unknown error {envelope.code}: {envelope.message}")


async def connect(
    address: str,
    context: ssl.SSLContext,
    *,
    timeout_s: float,
    on_push: Callable[[m.PushBody], None] | None = None,
    verified: bool = True,
) -> RpcConnection:
    """Connect to a control port "ip:port".

    Args: verified: the server must show an MDS certificate of our CA (False only for auth-node).
    Raises: UNREACHABLE, or WRONG_CLUSTER when another CA signed the server, DENIED when it is no MDS.
    """
    host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, conn = await loop.create_connection(
                lambda: RpcConnection(on_push),
                host,
                port,
                ssl=context,
                server_hostname="" if not context.check_hostname else host,
                ssl_handshake_timeout=HANDSHAKE_S_MAX,
                ssl_shutdown_timeout=SHUTDOWN_S_MAX,
            )
    except ssl.SSLCertVerificationError as exc:
        message = (
            f"the MDS at {address} is not of this cluster ({exc.verify_message}); check bs.list or run auth-node again"
        )
        raise VstorError(ErrorCode.WRONG_CLUSTER, message) from exc
    except TimeoutError as exc:
        raise VstorError(ErrorCode.UNREACHABLE, f"{address}: no answer within {timeout_s:g} s") from exc
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise VstorError(ErrorCode.UNREACHABLE, f"{address}: {reason}") from exc
    if verified and conn.server_role != pki.ROLE_MDS:
        conn.abort()
        raise VstorError(
            ErrorCode.DENIED,
            f"{address}: the server's certificate is not that of an MDS",
        )
    return conn


def hello(cluster: str, cluster_id: str, role: str, host_id: str) -> m.Hello:
    """The first message of a connection."""
    return m.Hello(cluster, cluster_id, role, m.PROTOCOL_VERSION, __version__, host_id, hostname())
