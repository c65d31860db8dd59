"""Chunk servers that go: for ever (rm-cs) or for a short time (maintenance).

A removal is refused when it leaves fewer failure domains than a file on the server (or a new file of the root) wants replicas: it would never
end, since the last replicas have nowhere to go. Dropping at once (force) is refused when it loses data.
"""

from __future__ import annotations

from collections import Counter

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.admin import to_json
from vstor.model.chunkservers import DROPPED, OFFLINE
from vstor.model.records import DOMAINS, VOID, unpack_policy
from vstor.model.step import Step
from vstor.proto.messages import ROOT_INO, CsMaintenance, JsonReply, RemoveCs

TOGETHER_MAX = 1000


def would_lose(s: Step, cs_id: int, leaving: set[int]) -> int:
    """Chunks with data on this server that have no reachable replica on another one that stays."""
    lost = 0
    for chunk_id in s.state.by_cs.get(cs_id, ()):
        found = s.state.chunk_by_id(chunk_id)
        if found is None or found[2].flags & VOID:
            continue
        others = [r for r in found[2].replicas if r not in leaving and s.core.admin_of(r) != DROPPED]
        lost += not any(s.core.servers.is_active(r) for r in others)
    return lost


def refusal(s: Step, cs_id: int, leaving: set[int]) -> str:
    """Why this server cannot be emptied while all of `leaving` go, with the mend; empty when it can."""
    wanted: Counter[tuple[int, int]] = Counter()  # (failure domain, replicas) -> chunks on the server
    for chunk_id in s.state.by_cs.get(cs_id, ()):
        found = s.state.chunk_by_id(chunk_id)
        inode = s.state.inodes.get(found[0]) if found is not None else None
        if inode is not None:
            rule = unpack_policy(inode.policy)
            wanted[rule.domain, rule.normal] += 1
    root = unpack_policy(s.state.inodes[ROOT_INO].policy)
    wanted[root.domain, root.normal] += 0
    for (level, replicas), chunks in sorted(wanted.items(), key=lambda item: -item[0][1]):
        left = _places(s, level, leaving)
        # What is on it needs all its places; new files must only not get fewer than they have now.
        if left < (replicas if chunks else min(replicas, _places(s, level, set()))):
            names = ", ".join(f"CS#{n}" for n in sorted(leaving))
            of = f" of {chunks} chunks on it" if chunks else " of new files"
            kind = DOMAINS[level]
            rest = f"1 {kind} is" if left == 1 else f"{left} {kind}s are"
            return (
                f"without {names} only {rest} left for {replicas} replicas{of}: add chunk servers on other {kind}s first, "
                "or lower replicas with set-attr; --force drops it without moving anything"
            )
    return ""


def _places(s: Step, level: int, without: set[int]) -> int:
    """Failure domains with a server that keeps replicas and is not away for long."""
    return len({
        s.core.servers.domain(s, record.cs_id, level)
        for record in s.state.servers.values()
        if record.admin in ("normal", "maintenance") and record.cs_id not in without
        and s.core.servers.live[record.cs_id].activity != OFFLINE
    })  # fmt: skip


def remove_cs(s: Step, body: RemoveCs) -> JsonReply:
    """rm-cs: drain a server, or drop it at once (force). Its id is never used again."""
    record = s.state.servers.get(body.cs_id)
    if record is None:
        raise VstorError(ErrorCode.NOT_MDS, f"no chunk server CS#{body.cs_id}")
    if len(body.together) > TOGETHER_MAX:
        raise VstorError(ErrorCode.TOO_LARGE, f"more than {TOGETHER_MAX} chunk servers at once")
    leaving = {body.cs_id, *body.together}
    lose = would_lose(s, body.cs_id, leaving)
    left = len(s.state.by_cs.get(body.cs_id, ()))
    admin = record.admin
    why = "" if admin in ("releasing", DROPPED) or body.cancel else refusal(s, body.cs_id, leaving)
    if not body.dry_run and admin != DROPPED:
        admin = _remove(s, body, lose, left, why)
    return to_json({"cs_id": body.cs_id, "state": admin, "replicas_left": left, "would_lose": lose, "refusal": why})


def _remove(s: Step, body: RemoveCs, lose: int, left: int, why: str) -> str:
    record = s.state.servers[body.cs_id]
    if body.cancel:
        if record.admin == "releasing":
            _set_admin(s, body.cs_id, "normal", "info", f"Release of CS#{body.cs_id} was cancelled")
            return "normal"
        return record.admin
    if body.force:
        if lose and not body.accept_loss:
            raise VstorError(
                ErrorCode.UNSAFE,
                f"{lose} chunks have their only reachable replica on CS#{body.cs_id} and would be lost",
            )
        text = f"CS#{body.cs_id} was dropped" + (f"; {lose} chunks had no other reachable replica" if lose else "")
        _set_admin(s, body.cs_id, DROPPED, "err" if lose else "warn", text)
        _drop_live(s, body.cs_id)
        return DROPPED
    if record.admin == "releasing":
        return "releasing"
    if why:
        raise VstorError(ErrorCode.UNSAFE, why)
    others = [r for r in s.state.servers.values() if r.admin == "normal" and r.cs_id != body.cs_id]
    if left and not others:
        raise VstorError(ErrorCode.UNSAFE, f"no other chunk server can take the {left} replicas on CS#{body.cs_id}")
    _set_admin(s, body.cs_id, "releasing", "info", f"CS#{body.cs_id} is being released, {left} replicas to move")
    return "releasing"


def _set_admin(s: Step, cs_id: int, admin: str, severity: str, message: str) -> None:
    s.tx.server(cs_id).admin = admin
    s.event(severity, message)
    s.core.tracker.server_changed(cs_id)


def _drop_live(s: Step, cs_id: int) -> None:
    """The server is out for ever: its connection is not listened to, its replicas leave the maps in the background."""
    live = s.core.servers.live[cs_id]
    live.activity, live.conn_id = DROPPED, 0
    s.core.orders.server_lost(s, cs_id)
    s.core.recovery.server_lost(s, cs_id)
    s.core.lost.extend((chunk_id, cs_id) for chunk_id in s.state.by_cs.get(cs_id, ()))


def maintenance(s: Step, body: CsMaintenance) -> JsonReply:
    """Announce a short absence of a server, or end it."""
    record = s.state.servers.get(body.cs_id)
    if record is None or record.admin == DROPPED:
        raise VstorError(ErrorCode.NOT_MDS, f"no chunk server CS#{body.cs_id}")
    state = record.admin
    if not body.dry_run and body.on and state == "normal":
        state = "maintenance"
        _set_admin(s, body.cs_id, state, "info", f"CS#{body.cs_id} is in maintenance")
    elif not body.dry_run and not body.on and state == "maintenance":
        state = "normal"
        _set_admin(s, body.cs_id, state, "info", f"Maintenance of CS#{body.cs_id} ended")
    elif body.on and state not in ("normal", "maintenance"):
        raise VstorError(ErrorCode.UNSAFE, f"CS#{body.cs_id} is {state}")
    sole = would_lose(s, body.cs_id, {body.cs_id})
    return to_json({"cs_id": body.cs_id, "state": state, "sole_replicas": sole})


def tick(s: Step) -> None:
    """A server being released that holds nothing any more is dropped."""
    for record in s.state.servers.values():
        if record.admin == "releasing" and not s.state.by_cs.get(record.cs_id) and s.core.tracker.settled():
            _set_admin(s, record.cs_id, DROPPED, "info", f"CS#{record.cs_id} was released and is dropped")
            s.core.servers.live[record.cs_id].activity = DROPPED
            s.core.servers.live[record.cs_id].conn_id = 0
