"""The checker: each kind of damage planted in a sound state is found, alone; repairs mend it and nothing else."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vstor.errors import VstorError
from vstor.model import check as core
from vstor.model import keys
from vstor.model.check import Held, Inventory
from vstor.model.records import VOID, Blob, Chunk, Counter, Cs, Dentry, Inode, Orphan, Session, encode, pack_extent
from vstor.model.state import State
from vstor.proto import messages as m

from tests.unit.model.sim import Sim

ROOT = m.ROOT_INO
DIR = stat.S_IFDIR | 0o755
REG = stat.S_IFREG | 0o644
Store = dict[bytes, bytes | None]


class World:
    """A sound cluster: /d/f with one chunk on three servers, /d/e empty, /g; `store` is what damage is planted in."""

    def __init__(self) -> None:
        sim = Sim({"fs.replicas": "3:2", "fs.failure_domain": "disk"})
        client = sim.client("h")
        self.d = client.call(m.Create(ROOT, b"d", DIR, 0, 0)).attr.ino
        self.e = client.call(m.Create(self.d, b"e", DIR, 0, 0)).attr.ino
        self.f = client.call(m.Create(self.d, b"f", REG, 0, 0)).attr.ino
        self.g = client.call(m.Create(ROOT, b"g", REG, 0, 0)).attr.ino
        self.store: Store = dict(sim.store)
        for cs_id in (1025, 1026, 1027):
            self.put(keys.cs(cs_id), encode(Cs(cs_id, f"h{cs_id}", f"h{cs_id}", 0, "/r", 1)))
        self.put(keys.named(keys.COUNTER, "chunk"), encode(Counter(100)))
        self.chunk = Chunk(7, 3, 0, (1025, 1026, 1027))
        self.set_chunks(self.f, {0: self.chunk}, used=1, size=1 << 20)
        held = {7: Held(3, digest="aa")}
        self.inventories = {cs_id: Inventory(dict(held)) for cs_id in (1025, 1026, 1027)}

    def put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            del self.store[key]
        else:
            self.store[key] = value

    def inode(self, ino: int) -> Inode:
        state = State()
        state.load((k, v) for k, v in self.store.items() if v is not None)
        return state.inodes[ino]

    def change(self, ino: int, **values: int) -> None:
        old = self.inode(ino)
        fields = {name: getattr(old, name) for name in old.__struct_fields__}
        self.put(keys.inode(ino), encode(Inode(**{**fields, **values})))

    def set_chunks(self, ino: int, chunks: dict[int, Chunk], **values: int) -> None:
        self.put(keys.extent(ino, 0), pack_extent(chunks))
        if values:
            self.change(ino, **values)

    def hold(self, cs_id: int, **values: Any) -> None:
        held = self.inventories[cs_id].replicas
        held[7] = replace(held[7], **values)

    def check(self) -> list[core.Finding]:
        state, damaged = core.load((k, v) for k, v in self.store.items() if v is not None)
        return damaged + core.check(state, self.inventories)

    def kinds(self) -> set[str]:
        return {f.kind for f in self.check()}


def lose_name(w: World) -> None:
    w.put(keys.dentry(w.d, b"f"), None)
    w.change(w.d, used=1)


def lose_directory(w: World) -> None:
    w.put(keys.dentry(w.d, b"e"), None)
    w.change(w.d, used=1, nlink=2)


def cycle(w: World) -> None:
    w.put(keys.dentry(ROOT, b"d"), None)
    w.put(keys.dentry(w.e, b"d"), encode(Dentry(w.d, stat.S_IFDIR >> 12, 16)))
    w.change(ROOT, used=1, nlink=2)
    w.change(w.e, used=1, nlink=3, next_cookie=17)
    w.change(w.d, parent=w.e)


def two_parents(w: World) -> None:
    w.put(keys.dentry(ROOT, b"e2"), encode(Dentry(w.e, stat.S_IFDIR >> 12, 40)))
    w.change(ROOT, used=3, nlink=4, next_cookie=41)


def same_chunk(w: World) -> None:
    w.set_chunks(w.g, {0: w.chunk}, used=1)


def no_inode(w: World) -> None:
    w.put(keys.inode(w.f), None)
    w.put(keys.dentry(w.d, b"f"), None)
    w.change(w.d, used=1)


def strange_chunk(w: World) -> None:
    w.inventories[1025].replicas[4000] = Held(1)


def stranger(w: World) -> None:
    w.inventories[1099] = Inventory()


def stale(w: World) -> None:
    w.set_chunks(w.f, {0: w.chunk._replace(replicas=(1025, 1026))})


def old_data(w: World) -> None:
    w.inventories[1025].replicas[6] = Held(1)


def no_copy_left(w: World) -> None:
    for cs_id in w.inventories:
        w.hold(cs_id, version=2)


def drop_server(w: World) -> None:
    w.put(keys.cs(1027), encode(Cs(1027, "h", "h", 0, "/r", 1, admin="dropped")))


DAMAGE: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "the record of the cluster": (lambda w: w.put(keys.CLUSTER_KEY, None), {"no-cluster"}),
    "a record": (lambda w: w.put(keys.inode(w.g), b"\x01\xc1"), {"damaged-record", "dangling-name"}),
    "a name of nothing": (lambda w: w.put(keys.inode(w.g), None), {"dangling-name"}),
    "a type": (lambda w: w.put(keys.dentry(ROOT, b"g"), encode(Dentry(w.g, 10, 17))), {"wrong-type"}),
    "cookies": (lambda w: w.change(w.d, next_cookie=16), {"cookie"}),
    "a count of links": (lambda w: w.change(w.g, nlink=2), {"link-count"}),
    "counts of a directory": (lambda w: w.change(w.d, used=9, nlink=9), {"directory-count"}),
    "a parent": (lambda w: w.change(w.e, parent=ROOT), {"wrong-parent"}),
    "a file's name": (lose_name, {"lost-file"}),
    "a directory's name": (lose_directory, {"lost-directory"}),
    "a cycle": (cycle, {"cycle"}),
    "two parents": (two_parents, {"many-parents"}),
    "an inode above the counter": (
        lambda w: w.put(keys.named(keys.COUNTER, "ino"), encode(Counter(w.g))), {"id-not-given"}),
    "an orphan with a name": (lambda w: w.put(keys.orphan(w.g), encode(Orphan(1))), {"wrong-orphan"}),
    "attributes of nothing": (lambda w: w.put(keys.xattr(999, b"user.a"), encode(Blob(b"x"))), {"xattr-without-inode"}),
    "a writer that is gone": (lambda w: w.change(w.g, writer=4711), {"writer-without-session"}),
    "chunks of nothing": (no_inode, {"chunks-without-file"}),
    "a count of chunks": (lambda w: w.change(w.f, used=5), {"chunk-count"}),
    "a count without chunks": (lambda w: w.change(w.g, used=5), {"chunk-count"}),
    "a chunk in two files": (same_chunk, {"chunk-twice"}),
    "a server that is gone": (drop_server, {"server-gone"}),
    "a server twice": (
        lambda w: w.set_chunks(w.f, {0: w.chunk._replace(replicas=(1025, 1026, 1027, 1027))}), {"server-twice"}),
    "no server": (
        lambda w: w.set_chunks(w.f, {0: w.chunk._replace(replicas=())}), {"no-replica", "stale-replica"}),
    "a replica that is gone": (lambda w: w.inventories[1026].replicas.clear(), {"replica-missing"}),
    "an unfinished copy": (lambda w: w.hold(1026, syncing=True), {"half-copied"}),
    "a version above": (lambda w: w.hold(1026, version=9), {"version-above"}),
    "a version below": (lambda w: w.hold(1026, version=2), {"version-below"}),
    "all versions below": (no_copy_left, {"version-below", "no-good-replica"}),
    "blocks": (lambda w: w.hold(1026, bad_blocks=2), {"bad-blocks"}),
    "content that cannot be read": (lambda w: w.hold(1026, digest="CORRUPT"), {"bad-blocks"}),
    "content that differs": (lambda w: w.hold(1026, digest="bb"), {"replicas-differ"}),
    "a chunk of another cluster": (strange_chunk, {"id-not-given"}),
    "an unknown server": (stranger, {"unknown-server"}),
    "a replica in no map": (stale, {"stale-replica", "degraded"}),
    "a replica of no file": (old_data, {"orphan-replica"}),
    "a chunk file": (lambda w: w.inventories[1025].damaged.append("x: torn"), {"damaged-file"}),
    "something put aside": (lambda w: setattr(w.inventories[1025], "quarantined", 1), {"quarantine"}),
}  # fmt: skip


def test_a_sound_state_has_no_findings() -> None:
    assert World().check() == []


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_alone(what: str) -> None:
    world = World()
    plant, expected = DAMAGE[what]
    plant(world)
    assert world.kinds() == expected


@pytest.mark.parametrize("what", DAMAGE)
def test_repairs_mend_and_lose_nothing(what: str) -> None:
    world = World()
    DAMAGE[what][0](world)
    before = world.check()
    if not any(f.repair for f in before):
        return
    inodes = {key for key in world.store if key.startswith(keys.INODE)}
    for _ in range(4):
        for key, value in core.repairs(world.check()).items():
            world.store.pop(key, None) if value is None else world.put(key, value)
    left = {f.kind for f in world.check()}
    assert left == ({f.kind for f in before} if what == "a record" else {f.kind for f in before if not f.repair})
    assert {key for key in world.store if key.startswith(keys.INODE)} == inodes
    assert any(key.startswith(keys.EXTENT) for key in world.store)


def test_every_kind_has_a_test() -> None:
    words = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)", (?:\(|f?"|text|where)', Path(core.__file__).read_text()))
    tested = {kind for _, expected in DAMAGE.values() for kind in expected}
    # The root and what only whole clusters have are planted in tests/cluster/test_check.py or mean that nothing is left to test.
    assert words - tested <= {"no-root", "entries-without-directory", "used", "nlink", "error", "warning", "note"}, (
        words - tested
    )


def test_what_is_not_known_is_not_judged() -> None:
    world = World()
    del world.inventories[1026]
    assert world.check() == []
    for cs_id in (1025, 1027):
        world.hold(cs_id, version=2)
    assert "no-good-replica" not in world.kinds(), "the third may have it"
    for inventory in world.inventories.values():
        inventory.settled = False
    assert world.kinds() == set(), "the new version may stand in a journal"


def test_a_chunk_file_without_its_header_is_no_damage_before_the_journal_is_applied() -> None:
    world = World()
    inventory = world.inventories[1025]
    inventory.replicas.clear()
    inventory.damaged.append("x: the header does not match its checksum")
    inventory.settled = False
    assert {(f.kind, f.severity) for f in world.check()} == {("damaged-file", core.NOTE)}
    inventory.settled = True
    assert world.kinds() == {"damaged-file", "replica-missing"}


def test_chunks_that_were_never_written_need_no_replica() -> None:
    world = World()
    world.set_chunks(world.f, {0: world.chunk._replace(flags=VOID)}, used=0)
    for inventory in world.inventories.values():
        inventory.replicas.clear()
    assert world.check() == []


def test_replicas_of_a_file_that_is_being_written_may_differ() -> None:
    world = World()
    world.put(keys.session(5), encode(Session(5, "n", 1, "h", "h", 1)))
    world.change(world.f, writer=5)
    world.hold(1026, digest="bb")
    assert world.check() == []


def test_only_what_stays_counts() -> None:
    world = World()
    world.hold(1026, version=2)
    first = world.check()
    world.hold(1026, version=3)
    world.hold(1027, version=2)
    assert core.persistent(first, world.check()) == []
    assert core.persistent(world.check(), world.check()) == world.check()


def test_a_newer_format_is_refused() -> None:
    world = World()
    world.put(keys.inode(world.g), b"\x02\x90")
    with pytest.raises(VstorError, match="schema 2"):
        world.check()


def test_a_name_of_more_than_nothing_is_kept() -> None:
    world = World()
    world.put(keys.inode(world.f), None)
    assert world.kinds() == {"dangling-name", "chunks-without-file"}
    assert core.repairs(world.check()) == {}
