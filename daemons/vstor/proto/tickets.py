"""Session keys and tickets of the data plane in Python: the MDS makes them, the C engines check them.

DESIGN: the derivations stand in native/wire/protocol.toml; native/src/session.c is the twin, tests/golden/session.hex
binds both. Times are cluster time (Unix ms of the MDS).
"""

from __future__ import annotations

import hashlib
import hmac

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.wire_gen import Hello, HelloAck, Ticket, TicketFlag, TicketMode

KEY_BYTES = 32
MAC_BYTES = 16
TICKET_BYTES = 64
_SIGNED_BYTES = TICKET_BYTES - MAC_BYTES


def _mac(key: bytes, *parts: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key is {KEY_BYTES} bytes, not {len(key)}")
    return hmac.digest(key, b"".join(parts), hashlib.sha256)


def session_key(cs_key: bytes, session_id: int, expiry_ms: int) -> bytes:
    """K for a session at the chunk server that has `cs_key`, valid until `expiry_ms`. 32 bytes."""
    return _mac(cs_key, b"vstor-session", session_id.to_bytes(8, "little"), expiry_ms.to_bytes(8, "little"))


def hello_ack_mac(key: bytes, hello: Hello, ack: HelloAck) -> bytes:
    """The server's proof (hello_ack.mac)."""
    return _mac(key, b"vstor-server", hello.pack(), ack.pack()[:48])


def prove_mac(key: bytes, hello: Hello, ack: HelloAck) -> bytes:
    """The client's proof (data of PROVE)."""
    return _mac(key, b"vstor-client", hello.pack(), ack.pack()[:48])


def make_ticket(
    ticket_key: bytes,
    key_id: int,
    *,
    session_id: int,
    chunk_id: int,
    chunk_version: int,
    chunk_bytes: int,
    expiry_ms: int,
    write: bool,
    create: bool = False,
) -> bytes:
    """64 bytes that let the session read (or write) the chunk at this version until `expiry_ms`."""
    ticket = Ticket(
        session_id=session_id,
        chunk_id=chunk_id,
        expiry_ms=expiry_ms,
        chunk_version=chunk_version,
        chunk_bytes=chunk_bytes,
        key_id=key_id,
        mode=TicketMode.WRITE if write else TicketMode.READ,
        flags=TicketFlag.CREATE if create else 0,
    )
    signed = ticket.pack()[:_SIGNED_BYTES]
    return signed + _mac(ticket_key, signed)[:MAC_BYTES]


def verify_ticket(ticket_keys: dict[int, bytes], data: bytes, session_id: int, now_ms: int) -> Ticket:
    """Check a ticket as a chunk server does.

    Raises: DENIED (malformed, unknown key, wrong mac, another session), EXPIRED.
    """
    try:
        ticket = Ticket.unpack(data)
    except ValueError as exc:
        raise VstorError(ErrorCode.DENIED, f"malformed ticket: {exc}") from None
    key = ticket_keys.get(ticket.key_id)
    if key is None or not hmac.compare_digest(_mac(key, data[:_SIGNED_BYTES])[:MAC_BYTES], ticket.mac):
        raise VstorError(ErrorCode.DENIED, "ticket is not signed by a key of this cluster")
    if ticket.session_id != session_id:
        raise VstorError(ErrorCode.DENIED, "ticket of another session")
    if now_ms >= ticket.expiry_ms:
        raise VstorError(ErrorCode.EXPIRED, "ticket expired")
    return ticket
