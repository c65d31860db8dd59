"""Keys of the data plane: all derived from the cluster's data key, so nothing random is needed and nothing more is stored."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from vstor.model.records import Chunk
from vstor.model.step import Step
from vstor.proto.messages import CsAccess, Source
from vstor.proto.tickets import make_ticket, session_key

TICKET_KEYS_KEPT = 2  # the newest and the one before
CS_SESSIONS = 1 << 63  # data session ids of chunk servers copying from each other: this | cs id


class Keyring:
    """Chunk server keys, ticket keys, session keys and tickets of this cluster."""

    def __init__(self, data_key: bytes) -> None:
        self._data_key = data_key
        self._cs: dict[int, bytes] = {}
        self._ticket: dict[int, bytes] = {}

    def _derive(self, label: bytes, number: int) -> bytes:
        return hmac.digest(self._data_key, label + number.to_bytes(4, "little"), hashlib.sha256)

    def cs_key(self, cs_id: int) -> bytes:
        """What proves the MDS to the clients of a chunk server."""
        key = self._cs.get(cs_id)
        if key is None:
            key = self._cs[cs_id] = self._derive(b"cs", cs_id)
        return key

    def ticket_key(self, key_id: int) -> bytes:
        """The key tickets are signed with."""
        key = self._ticket.get(key_id)
        if key is None:
            key = self._ticket[key_id] = self._derive(b"ticket", key_id)
        return key

    def ticket_keys(self, s: Step) -> list[tuple[int, bytes]]:
        """Those that chunk servers accept, newest first."""
        newest = self._newest(s)
        return [(n, self.ticket_key(n)) for n in range(newest, max(0, newest - TICKET_KEYS_KEPT), -1)]

    @staticmethod
    def _newest(s: Step) -> int:
        return s.state.cluster.ticket_key_id if s.state.cluster else 1

    def rotate(self, s: Step) -> None:
        """Take a new ticket key when the newest is old. Tickets live much shorter than the key before."""
        cluster = s.state.cluster
        if cluster is not None and s.now_ms - cluster.ticket_key_ms >= s.core.config.int("mds.ticket.rotate"):
            new = msgspec.structs.replace(cluster, ticket_key_id=cluster.ticket_key_id + 1, ticket_key_ms=s.now_ms)
            s.tx.put_cluster(new)

    def replace_all(self, s: Step) -> None:
        """Take as many new ticket keys as are kept: none of the present ones is accepted any more."""
        cluster = s.state.cluster
        assert cluster is not None
        number = cluster.ticket_key_id + TICKET_KEYS_KEPT
        s.tx.put_cluster(msgspec.structs.replace(cluster, ticket_key_id=number, ticket_key_ms=s.now_ms))

    def ticket(
        self, s: Step, session_id: int, chunk: Chunk, chunk_bytes: int, *, write: bool, create: bool = False
    ) -> bytes:
        """A ticket for the chunk at its version."""
        key_id = self._newest(s)
        return make_ticket(
            self.ticket_key(key_id),
            key_id,
            session_id=session_id,
            chunk_id=chunk.id,
            chunk_version=chunk.version,
            chunk_bytes=chunk_bytes,
            expiry_ms=s.now_ms + s.core.config.int("mds.ticket.ttl"),
            write=write,
            create=create,
        )

    def access(self, s: Step, session_id: int, cs_ids: set[int]) -> list[CsAccess]:
        """How the session reaches these chunk servers; local sockets only when it is on the same host."""
        expiry = s.now_ms + s.core.config.int("mds.ticket.ttl")
        out = []
        for cs_id in sorted(cs_ids):
            record = s.tx.state.servers.get(cs_id)
            if record is None:
                continue
            local = record.host_id == s.ctx.host_id
            addresses = [a for a in record.addresses if local or not a.startswith("unix:")]
            addresses.sort(key=lambda a: not a.startswith("unix:"))
            out.append(
                CsAccess(cs_id, addresses, record.host_id, expiry, session_key(self.cs_key(cs_id), session_id, expiry))
            )
        return out

    def source(self, s: Step, target: int, source: int, chunk: Chunk, chunk_bytes: int) -> Source:
        """What the target needs to copy a chunk from the source."""
        session_id = CS_SESSIONS | target
        expiry = s.now_ms + s.core.config.int("mds.ticket.ttl")
        record, own = s.state.servers[source], s.state.servers[target]
        addresses = [a for a in record.addresses if record.host_id == own.host_id or not a.startswith("unix:")]
        ticket = self.ticket(s, session_id, chunk, chunk_bytes, write=False)
        return Source(
            source, addresses, session_id, expiry, session_key(self.cs_key(source), session_id, expiry), ticket
        )
