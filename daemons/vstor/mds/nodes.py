"""Nodes that are or were connected, and certificates that were revoked.

Keys: `ln` + common name of the certificate (records of the shell, never removed). Certificates of MDSs end with rm-mds instead.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.meta.store import Mutation
from vstor.net import pki
from vstor.net.rpc_server import Connection
from vstor.proto import messages as m

KIND = b"ln"
SEEN_MAX = 20_000  # the one unheard of for longest is forgotten


@dataclass(slots=True)
class Node:
    """One certificate, as the leader has seen it used."""

    host_id: str
    hostname: str
    address: str
    roles: set[str] = field(default_factory=set)


class Nodes:
    """Kept by every MDS; `seen` only of its own connections."""

    def __init__(self) -> None:
        self.revoked: dict[str, int] = {}  # common name -> Unix ms
        self.seen: OrderedDict[str, Node] = OrderedDict()

    def apply(self, mutations: Iterable[Mutation]) -> bool:
        """Take over what concerns it; whether anything did. Raises DAMAGED."""
        changed = False
        for key, record in mutations:
            if key.startswith(KIND) and record is not None:
                try:
                    self.revoked[key[len(KIND) :].decode()] = int(json.loads(record)["revoked_ms"])
                except (ValueError, KeyError, TypeError) as exc:
                    raise VstorError(ErrorCode.DAMAGED, f"record {key!r} of a revoked certificate is damaged") from exc
                changed = True
        return changed

    def check(self, conn: Connection) -> None:
        """Raises DENIED for a revoked certificate."""
        if conn.role == pki.ROLE_NODE and conn.peer_name in self.revoked:
            message = "this node's certificate was revoked; if it shall belong to the cluster, run vstorctl auth-node with the cluster password"
            raise VstorError(ErrorCode.DENIED, message)

    def saw(self, conn: Connection, hello: m.Hello) -> None:
        """A node has said Hello."""
        if conn.role != pki.ROLE_NODE:
            return
        node = self.seen.pop(conn.peer_name, None) or Node(hello.host_id[:64], hello.hostname[:255], "")
        node.address = conn.peer.rpartition(":")[0].strip("[]")
        node.roles.add(hello.role)
        self.seen[conn.peer_name] = node
        if len(self.seen) > SEEN_MAX:
            self.seen.popitem(last=False)

    def resolve(self, name: str) -> list[str]:
        """Common names meant by one, or by a host id or host name seen. Raises NOT_FOUND."""
        found = [cn for cn, node in self.seen.items() if name in (cn, node.host_id, node.hostname)]
        if not found and name.startswith("node-"):
            found = [name]  # not connected since this MDS leads; its certificate says so
        if not found:
            raise VstorError(
                ErrorCode.NOT_FOUND,
                f"no node {name!r} was seen; list-nodes shows them, or give the CN of its certificate",
            )
        return found

    def listing(self, connected: set[str]) -> list[dict[str, Any]]:
        """For list-nodes."""
        names = [*self.seen, *(cn for cn in self.revoked if cn not in self.seen)]
        nodes = [(cn, self.seen.get(cn) or Node("", "", "")) for cn in names]
        return [
            {
                "certificate": cn, "host_id": node.host_id, "host": node.hostname, "address": node.address, "roles": sorted(node.roles),
                "connected": cn in connected, "revoked_ms": self.revoked.get(cn, 0),
            }
            for cn, node in nodes
        ]  # fmt: skip


def revocation(common_name: str, now_ms: int) -> Mutation:
    """The mutation that revokes a certificate for good."""
    return KIND + common_name.encode(), json.dumps({"schema": 1, "revoked_ms": now_ms}).encode()
