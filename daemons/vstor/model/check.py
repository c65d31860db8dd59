"""The invariants of a cluster, checked over a snapshot of its records and what its chunk servers hold. Pure, and independent of the MDS's code.

DESIGN: every finding names what is wrong and who mends it. `repair` holds mutations only where nothing can be lost by them; findings
about replicas have none, as a running cluster mends those itself (recovery, scrub, deletion of what is in no map).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from vstor.errors import VstorError
from vstor.model import keys
from vstor.model.records import VOID, Dentry, Inode, encode, unpack_policy
from vstor.model.state import State
from vstor.proto.messages import ROOT_INO

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
COOKIE_STEP = 1
PATH_PARTS_MAX = 4096
LOST_NAME = b".lost-%d"  # of a file that has no name any more, in the root directory

Mutation = tuple[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant.

    Attributes:
        kind: stable word for programs. key: what it is about; kind and key tell a finding from others.
        repair: mutations that mend it and lose nothing; () when it is not mended here.
    """

    severity: str
    kind: str
    key: tuple[int | str, ...]
    text: str
    repair: tuple[Mutation, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A replica as its chunk server has it. digest: of its content, "" when not read, "CORRUPT" when it cannot be read."""

    version: int
    syncing: bool = False
    bad_blocks: int = 0
    digest: str = ""


@dataclass(slots=True)
class Inventory:
    """All replicas of one chunk server. settled: nothing newer may wait in its journal."""

    replicas: dict[int, Held] = field(default_factory=dict)
    quarantined: int = 0
    damaged: list[str] = field(default_factory=list)  # files that are no replicas (yet), with the reason
    settled: bool = True


def load(items: Iterable[Mutation]) -> tuple[State, list[Finding]]:
    """The state of a snapshot, and its records that cannot be read. Raises NEWER_FORMAT."""
    state, findings = State(), []
    for key, value in items:
        try:
            state.apply([(key, value)])
        except VstorError as exc:
            if exc.code.name == "NEWER_FORMAT":
                raise
            text = f"the record {key[:1].decode('ascii', 'replace')} {key[1:].hex()} cannot be read: {exc.message}"
            findings.append(Finding(ERROR, "damaged-record", (key.hex(),), f"{text}; restore a backup"))
    return state, findings


class Names:
    """Who refers to which inode."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.of: dict[int, list[tuple[int, bytes]]] = {}
        for parent, directory in state.dirs.items():
            for name, entry in directory.entries.items():
                self.of.setdefault(entry.ino, []).append((parent, name))

    def path(self, ino: int) -> str:
        """A path of the inode, for people; inode N when it has none."""
        parts: list[str] = []
        at = ino
        while at != ROOT_INO:
            names = self.of.get(at)
            if not names or len(parts) > PATH_PARTS_MAX:
                return f"inode {ino}"
            parent, name = names[0]
            parts.append(name.decode("utf-8", "backslashreplace"))
            at = parent
        return "/" + "/".join(reversed(parts))


def check(state: State, inventories: dict[int, Inventory]) -> list[Finding]:
    """Every finding, in a stable order. Servers without an inventory are not judged by what they hold."""
    names = Names(state)
    findings: list[Finding] = []
    if state.cluster is None:
        findings.append(Finding(ERROR, "no-cluster", (), "the record of the cluster is missing; restore a backup"))
    root = state.inodes.get(ROOT_INO)
    if root is None or not stat.S_ISDIR(root.mode):
        findings.append(Finding(ERROR, "no-root", (), "the root directory is missing; restore a backup"))
    for part in (_entries, _inodes, _attached, _maps):
        findings += part(state, names)
    findings += _replicas(state, names, inventories)
    findings += _holdings(state, inventories)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, tuple(map(str, f.key))))


# --- names


def _entries(state: State, names: Names) -> Iterator[Finding]:
    for parent, directory in state.dirs.items():
        owner = state.inodes.get(parent)
        if owner is None or not stat.S_ISDIR(owner.mode):
            text = f"inode {parent} has {len(directory.entries)} entries but is no directory; restore a backup"
            yield Finding(ERROR, "entries-without-directory", (parent,), text)
            continue
        for name, entry in directory.entries.items():
            inode = state.inodes.get(entry.ino)
            shown = f"{names.path(parent).rstrip('/')}/{name.decode('utf-8', 'backslashreplace')}"
            if inode is None:
                text = f"{shown} names inode {entry.ino}, which does not exist"
                # Where more is left of the inode than its name, somebody may want to put it together again.
                bare = entry.ino not in state.extents and entry.ino not in state.xattrs
                gone = ((keys.dentry(parent, name), None),) if bare else ()
                yield Finding(
                    ERROR, "dangling-name", (parent, name.hex()), text if bare else f"{text}; restore a backup", gone
                )
                continue
            if entry.type != stat.S_IFMT(inode.mode) >> 12:
                text = f"{shown} says type {entry.type:#o}, its inode {stat.S_IFMT(inode.mode) >> 12:#o}"
                right = Dentry(entry.ino, stat.S_IFMT(inode.mode) >> 12, entry.cookie)
                yield Finding(
                    ERROR, "wrong-type", (parent, name.hex()), text, ((keys.dentry(parent, name), encode(right)),)
                )
            if entry.cookie >= owner.next_cookie:
                text = f"{shown} has cookie {entry.cookie}, the directory's next is {owner.next_cookie}"
                yield Finding(ERROR, "cookie", (parent, name.hex()), text, _inode(owner, next_cookie=entry.cookie + 1))


def _inodes(state: State, names: Names) -> Iterator[Finding]:
    subdirs: dict[int, int] = {}
    for ino, inode in state.inodes.items():
        if stat.S_ISDIR(inode.mode):
            for parent, _ in names.of.get(ino, ()):
                subdirs[parent] = subdirs.get(parent, 0) + 1
    reached = _reachable(state)
    for ino, inode in state.inodes.items():
        found = names.of.get(ino, [])
        if ino >= state.counters.get("ino", 0):
            yield Finding(ERROR, "id-not-given", ("inode", ino), f"inode {ino} is above the counter; restore a backup")
        if stat.S_ISDIR(inode.mode):
            yield from _directory(state, names, inode, subdirs.get(ino, 0), ino in reached)
        elif not found and ino not in state.orphans:
            text = f"inode {ino} ({inode.size} bytes) has no name and nobody keeps it; --repair names it {_lost(ino)}"
            yield Finding(ERROR, "lost-file", (ino,), text, _name_again(state, inode))
        elif found and inode.nlink != len(found):
            text = f"{names.path(ino)} has {len(found)} names and counts {inode.nlink}"
            yield Finding(ERROR, "link-count", (ino,), text, _inode(inode, nlink=len(found)))


def _directory(state: State, names: Names, inode: Inode, subdirs: int, reached: bool) -> Iterator[Finding]:
    ino, found = inode.ino, names.of.get(inode.ino, [])
    entries = len(state.directory(ino).entries)
    if ino in state.orphans:
        return
    if len(found) > 1:
        yield Finding(
            ERROR, "many-parents", (ino,), f"directory {names.path(ino)} has {len(found)} names; restore a backup"
        )
    elif not reached:
        text = f"directory inode {ino} with {entries} entries cannot be reached from the root"
        if found:
            yield Finding(ERROR, "cycle", (ino,), f"{text}: it is inside of itself; restore a backup")
        else:
            yield Finding(
                ERROR, "lost-directory", (ino,), f"{text}; --repair names it {_lost(ino)}", _name_again(state, inode)
            )
    elif found and inode.parent != found[0][0]:
        text = f"directory {names.path(ino)} says its parent is inode {inode.parent}, it is {found[0][0]}"
        yield Finding(ERROR, "wrong-parent", (ino,), text, _inode(inode, parent=found[0][0]))
    wrong = {}
    if inode.used != entries:
        wrong["used"] = entries
    if inode.nlink != 2 + subdirs:
        wrong["nlink"] = 2 + subdirs
    if wrong:
        text = f"directory {names.path(ino)} has {entries} entries and {2 + subdirs} links, it counts {inode.used} and {inode.nlink}"
        yield Finding(ERROR, "directory-count", (ino,), text, _inode(inode, **wrong))


def _reachable(state: State) -> set[int]:
    found, todo = {ROOT_INO}, [ROOT_INO]
    while todo:
        for entry in state.directory(todo.pop()).entries.values():
            if entry.ino not in found and entry.ino in state.dirs:
                todo.append(entry.ino)
            found.add(entry.ino)
    return found


def _lost(ino: int) -> str:
    return f"/{(LOST_NAME % ino).decode()}"


def _name_again(state: State, inode: Inode) -> tuple[Mutation, ...]:
    """A name in the root directory for an inode that has none. The counts of the root are mended by a second run."""
    root = state.inodes.get(ROOT_INO)
    if root is None:
        return ()
    name = LOST_NAME % inode.ino
    entry = Dentry(inode.ino, stat.S_IFMT(inode.mode) >> 12, root.next_cookie)
    return (keys.dentry(ROOT_INO, name), encode(entry)), *_inode(root, next_cookie=root.next_cookie + COOKIE_STEP)


def _inode(inode: Inode, **changes: int) -> tuple[Mutation, ...]:
    fields = {name: getattr(inode, name) for name in inode.__struct_fields__}
    return ((keys.inode(inode.ino), encode(Inode(**{**fields, **changes}))),)


# --- what hangs on inodes


def _attached(state: State, names: Names) -> Iterator[Finding]:
    for ino in state.orphans:
        inode = state.inodes.get(ino)
        if inode is None or names.of.get(ino):
            text = (
                f"inode {ino} is kept as a file without a name, but {'does not exist' if inode is None else 'has one'}"
            )
            yield Finding(ERROR, "wrong-orphan", (ino,), text, ((keys.orphan(ino), None),))
    for ino, attributes in state.xattrs.items():
        if ino not in state.inodes:
            bare = ino not in state.extents and not names.of.get(ino)
            gone = tuple((keys.xattr(ino, name), None) for name in attributes) if bare else ()
            text = f"{len(attributes)} extended attributes of inode {ino}, which does not exist"
            yield Finding(ERROR, "xattr-without-inode", (ino,), text, gone)
    for session, inodes in state.writers.items():
        if session not in state.sessions:
            shown = ", ".join(names.path(ino) for ino in sorted(inodes)[:3])
            text = f"{len(inodes)} files ({shown}) wait for session {session}, which has ended; the next leading MDS ends that"
            yield Finding(WARNING, "writer-without-session", (session,), text)


def _maps(state: State, names: Names) -> Iterator[Finding]:
    homes: dict[int, tuple[int, int]] = {}
    for ino in state.extents:
        inode = state.inodes.get(ino)
        chunks = list(state.chunks(ino))
        if inode is None or not stat.S_ISREG(inode.mode):
            text = f"{len(chunks)} chunks of inode {ino}, which is no file; restore a backup"
            yield Finding(ERROR, "chunks-without-file", (ino,), text)
            continue
        policy, path = unpack_policy(inode.policy), names.path(ino)
        written = sum(not chunk.flags & VOID for _, chunk in chunks)
        if inode.used != written and not inode.writer:
            text = f"{path} has {written} written chunks and counts {inode.used}"
            yield Finding(ERROR, "chunk-count", (ino,), text, _inode(inode, used=written))
        for index, chunk in chunks:
            where = f"chunk {chunk.id} ({path} index {index})"
            if chunk.id in homes:
                text = (
                    f"{where} is also index {homes[chunk.id][1]} of {names.path(homes[chunk.id][0])}; restore a backup"
                )
                yield Finding(ERROR, "chunk-twice", (chunk.id, ino, index), text)
            homes[chunk.id] = (ino, index)
            if chunk.id >= state.counters.get("chunk", 0):
                yield Finding(
                    ERROR, "id-not-given", ("chunk", chunk.id), f"{where} is above the counter; restore a backup"
                )
            yield from _servers(state, where, chunk.id, chunk.replicas, bool(chunk.flags & VOID), policy.normal)
    for ino, inode in state.inodes.items():
        if stat.S_ISREG(inode.mode) and inode.used and ino not in state.extents and not inode.writer:
            text = f"{names.path(ino)} has no chunks and counts {inode.used}"
            yield Finding(ERROR, "chunk-count", (ino,), text, _inode(inode, used=0))


def _servers(
    state: State, where: str, chunk_id: int, replicas: tuple[int, ...], void: bool, normal: int
) -> Iterator[Finding]:
    if len(set(replicas)) != len(replicas):
        yield Finding(ERROR, "server-twice", (chunk_id,), f"{where} names a chunk server twice: {replicas}")
    for cs_id in set(replicas):
        record = state.servers.get(cs_id)
        if record is None or record.admin == "dropped":
            what = "does not exist" if record is None else "was dropped"
            yield Finding(ERROR, "server-gone", (chunk_id, cs_id), f"{where} has a replica on CS#{cs_id}, which {what}")
    if not replicas and not void:
        yield Finding(ERROR, "no-replica", (chunk_id,), f"{where} has no replica: its data are lost; restore the file")
    elif len(replicas) < normal and not void:
        text = f"{where} has {len(replicas)} of {normal} replicas; the cluster makes new ones where servers are left"
        yield Finding(NOTE, "degraded", (chunk_id,), text)


# --- what chunk servers hold


def _replicas(state: State, names: Names, inventories: dict[int, Inventory]) -> Iterator[Finding]:
    for ino, inode in state.inodes.items():
        for index, chunk in state.chunks(ino):
            where = f"chunk {chunk.id} ({names.path(ino)} index {index})"
            void, good, digests = bool(chunk.flags & VOID), 0, {}
            unknown = sum(cs_id not in inventories for cs_id in chunk.replicas)
            for cs_id in chunk.replicas:
                inventory = inventories.get(cs_id)
                if inventory is None:
                    continue
                held = inventory.replicas.get(chunk.id)
                problem = _judge(chunk.version, void, held, alone=len(chunk.replicas) == 1)
                if problem is None:
                    good += 1
                    if held is not None and held.digest:
                        digests[cs_id] = held.digest
                elif inventory.settled or (held is None and not inventory.damaged):
                    kind, text = problem
                    severity = WARNING if kind == "version-below" else ERROR
                    yield Finding(severity, kind, (chunk.id, cs_id), f"{where} on CS#{cs_id}: {text}")
                else:
                    unknown += 1
            if not good and not unknown and chunk.replicas and not void:
                yield Finding(
                    ERROR, "no-good-replica", (chunk.id,), f"{where} has no good replica left: restore the file"
                )
            if len(set(digests.values())) > 1 and not inode.writer:
                shown = ", ".join(f"CS#{cs_id} {digest[:12]}" for cs_id, digest in sorted(digests.items()))
                text = f"the replicas of {where} differ: {shown}; compare the file with a copy"
                yield Finding(ERROR, "replicas-differ", (chunk.id,), text)


def _judge(version: int, void: bool, held: Held | None, *, alone: bool) -> tuple[str, str] | None:
    """What is wrong with a replica that is in the map."""
    if held is None:
        return None if void else ("replica-missing", "it is not there; the cluster makes a new one")
    if held.syncing:
        return "half-copied", "it is a copy that was not finished; the cluster makes a new one"
    if held.version > version:
        return "version-above", f"it has version {held.version}, the map {version}"
    if held.version < version:
        return "version-below", f"it has version {held.version}, the map {version}; the leading MDS raises it"
    if held.bad_blocks or held.digest == "CORRUPT":
        mend = "no other replica to repair them from: restore the file" if alone else "the cluster repairs them"
        return "bad-blocks", f"{held.bad_blocks or 'some'} blocks do not match their checksum; {mend}"
    return None


def _holdings(state: State, inventories: dict[int, Inventory]) -> Iterator[Finding]:
    given = state.counters.get("chunk", 0)
    for cs_id, inventory in inventories.items():
        mapped = state.by_cs.get(cs_id, set())
        if cs_id not in state.servers:
            yield Finding(
                ERROR, "unknown-server", (cs_id,), f"CS#{cs_id} is not known to the cluster; restore a backup"
            )
        for chunk_id in inventory.replicas.keys() - mapped:
            if chunk_id >= given:
                text = f"CS#{cs_id} holds chunk {chunk_id}, which this cluster never made; it is left alone"
                yield Finding(ERROR, "id-not-given", ("replica", chunk_id, cs_id), text)
            elif chunk_id in state.chunk_home:
                text = f"CS#{cs_id} holds a stale replica of chunk {chunk_id}; the cluster reuses or deletes it"
                yield Finding(NOTE, "stale-replica", (chunk_id, cs_id), text)
            else:
                text = f"CS#{cs_id} holds chunk {chunk_id} of a deleted file; the cluster deletes it"
                yield Finding(NOTE, "orphan-replica", (chunk_id, cs_id), text)
        for text in inventory.damaged:
            if inventory.settled:
                text_end, severity = "the chunk server puts it aside", ERROR
            else:  # a new chunk file is empty until a checkpoint writes its header: until then it stands in the journal
                text_end, severity = "its journal may hold what is missing: start the chunk server and look again", NOTE
            yield Finding(severity, "damaged-file", (cs_id, text), f"CS#{cs_id}: {text}; {text_end}")
        if inventory.quarantined:
            text = f"CS#{cs_id} has put {inventory.quarantined} damaged files aside; look at its quarantine directory"
            yield Finding(NOTE, "quarantine", (cs_id,), text)


def persistent(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """Findings of the second look that were there at the first: what was merely under way is gone."""
    known = {(f.kind, f.key) for f in first}
    return [f for f in second if (f.kind, f.key) in known]


def repairs(
    findings: Iterable[Finding], wanted: Callable[[Finding], bool] = lambda f: True
) -> dict[bytes, bytes | None]:
    """Mutations of the findings that can be mended, each record once: what touches a record of an earlier one waits for the next run.

    None while a record cannot be read: what looks like a missing inode may be that one.
    """
    findings = list(findings)
    chosen: dict[bytes, bytes | None] = {}
    if any(finding.kind == "damaged-record" for finding in findings):
        return chosen
    for finding in findings:
        if finding.repair and wanted(finding) and not any(key in chosen for key, _ in finding.repair):
            chosen.update(finding.repair)
    return chosen
