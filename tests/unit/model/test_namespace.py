"""The name space against a simple reference, over long random histories with retries, crashes and replay."""

from __future__ import annotations

import stat
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.check import NOTE, check
from vstor.model.state import State
from vstor.proto import messages as m

from tests.unit.model.sim import Client, Sim

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\x01", b"n" * 255])
ROOT = m.ROOT_INO


class Node:
    """An inode of the reference."""

    def __init__(self, kind: str, ino: int, parent: Node | None = None) -> None:
        self.kind, self.ino, self.parent = kind, ino, parent
        self.entries: dict[bytes, Node] = {}
        self.links = 2 if kind == "dir" else 1
        self.mode = 0o755
        self.size = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.opens = 0

    def inside(self, other: Node) -> bool:
        node: Node | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


class Reference:
    """A file system in thirty lines a call, no caching, no durability. Every call returns an ErrorCode or None."""

    def __init__(self) -> None:
        self.root = Node("dir", ROOT)
        self.nodes: dict[int, Node] = {ROOT: self.root}

    def check_dir(self, node: Node) -> ErrorCode | None:
        return None if node.kind == "dir" else ErrorCode.NOT_DIR

    def create(self, parent: Node, name: bytes, kind: str, ino: int) -> None:
        node = Node(kind, ino, parent if kind == "dir" else None)
        parent.entries[name] = node
        parent.links += kind == "dir"
        self.nodes[ino] = node

    def unlink(self, parent: Node, name: bytes) -> None:
        node = parent.entries.pop(name)
        if node.kind == "dir":
            parent.links -= 1
            del self.nodes[node.ino]
            node.links = 0
        else:
            node.links -= 1
            self.bury(node)

    def bury(self, node: Node) -> None:
        if node.links == 0 and node.opens == 0:
            self.nodes.pop(node.ino, None)

    def can_unlink(self, parent: Node, name: bytes) -> ErrorCode | None:
        if parent.kind != "dir":
            return ErrorCode.NOT_DIR
        node = parent.entries.get(name)
        if node is None:
            return ErrorCode.NOT_FOUND
        return ErrorCode.IS_DIR if node.kind == "dir" else None

    def can_rmdir(self, parent: Node, name: bytes) -> ErrorCode | None:
        if parent.kind != "dir":
            return ErrorCode.NOT_DIR
        node = parent.entries.get(name)
        if node is None:
            return ErrorCode.NOT_FOUND
        if node.kind != "dir":
            return ErrorCode.NOT_DIR
        return ErrorCode.NOT_EMPTY if node.entries else None

    def can_rename(self, a: Node, name: bytes, b: Node, new: bytes, flags: int) -> ErrorCode | None:
        if a.kind != "dir":
            return ErrorCode.NOT_DIR
        node = a.entries.get(name)
        if node is None:
            return ErrorCode.NOT_FOUND
        if b.kind != "dir":
            return ErrorCode.NOT_DIR
        target = b.entries.get(new)
        if node.kind == "dir" and b.inside(node):
            return ErrorCode.INVALID
        if flags == 2:
            if target is None:
                return ErrorCode.NOT_FOUND
            return ErrorCode.INVALID if target.kind == "dir" and a.inside(target) else None
        if target is None or (target is node and not flags):
            return None
        if flags == 1:
            return ErrorCode.EXISTS
        if node.kind == "dir" and target.kind != "dir":
            return ErrorCode.NOT_DIR
        if node.kind != "dir" and target.kind == "dir":
            return ErrorCode.IS_DIR
        return ErrorCode.NOT_EMPTY if target.entries else None

    def rename(self, a: Node, name: bytes, b: Node, new: bytes, flags: int) -> None:
        node, target = a.entries[name], b.entries.get(new)
        if target is node:
            return
        if flags == 2:
            assert target is not None
            a.entries[name], b.entries[new] = target, node
            self.moved(target, b, a)
            self.moved(node, a, b)
            return
        if target is not None:
            self.unlink(b, new)
        del a.entries[name]
        b.entries[new] = node
        self.moved(node, a, b)

    def moved(self, node: Node, a: Node, b: Node) -> None:
        if node.kind == "dir":
            node.parent = b
            a.links -= 1
            b.links += 1


class NamespaceMachine(RuleBasedStateMachine):
    """Two clients do the same kinds of things; each request may be repeated, and the leader may fall at any time."""

    @initialize()
    def start(self) -> None:
        self.sim = Sim()
        self.clients = [self.sim.client("h1"), self.sim.client("h2")]
        self.ref = Reference()
        self.open_files: dict[tuple[int, int], int] = {}

    # --- helpers ------------------------------------------------------------------------------------------------

    def node(self, pick: int) -> Node:
        nodes = sorted(self.ref.nodes)
        return self.ref.nodes[nodes[pick % len(nodes)]]

    def place(self, pick: int, name: bytes) -> tuple[Node, bytes]:
        """Mostly an entry that exists, else any node with `name`."""
        entries = sorted((ino, n) for ino, node in self.ref.nodes.items() for n in node.entries)
        if entries and pick < 40:
            ino, name = entries[pick % len(entries)]
            return self.ref.nodes[ino], name
        return self.node(pick), name

    def folder(self, pick: int) -> Node:
        """Mostly a directory."""
        folders = sorted(ino for ino, node in self.ref.nodes.items() if node.kind == "dir")
        return self.ref.nodes[folders[pick % len(folders)]] if pick < 40 else self.node(pick)

    def do(self, who: int, body: Any, repeat: bool) -> Any:
        """Send a request, perhaps a second time as a retry whose first answer was lost; both answers must agree."""
        client = self.clients[who]
        request_id = client.next_id
        try:
            first: Any = client.call(body)
        except VstorError as exc:
            first = exc.code
        if repeat and not isinstance(first, ErrorCode):
            again = client.send(body, request_id)
            if hasattr(again, "attr"):
                assert again.attr.ino == first.attr.ino
                assert again.attr.size == first.attr.size
            elif isinstance(again, m.Ok):
                assert again.closed == first.closed  # of the directory only the first answer tells
            else:
                assert again == first
        if not repeat:
            client.acked = request_id
        return first

    def expect(self, got: Any, want: ErrorCode | None) -> bool:
        """The outcome agrees with the reference; True when it was a success."""
        code = got if isinstance(got, ErrorCode) else None
        assert code == want, f"core says {code!r}, reference says {want!r}"
        return want is None

    # --- rules --------------------------------------------------------------------------------------------------

    @rule(
        who=st.integers(0, 1),
        parent=st.integers(0, 50),
        name=NAMES,
        kind=st.sampled_from(["file", "file", "dir", "dir", "dir", "link", "fifo"]),
        repeat=st.booleans(),
    )
    def create(self, who: int, parent: int, name: bytes, kind: str, repeat: bool) -> None:
        node = self.folder(parent)
        fmt = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO}[kind]
        target = b"t" if kind == "link" else b""
        got = self.do(who, m.Create(node.ino, name, fmt | 0o755, 1, 2, target=target), repeat)
        want = self.ref.check_dir(node) or (ErrorCode.EXISTS if name in node.entries else None)
        if self.expect(got, want):
            self.ref.create(node, name, kind, got.attr.ino)

    @rule(who=st.integers(0, 1), parent=st.integers(0, 50), name=NAMES, directory=st.booleans(), repeat=st.booleans())
    def remove(self, who: int, parent: int, name: bytes, directory: bool, repeat: bool) -> None:
        node, name = self.place(parent, name)
        if directory:
            want, body = self.ref.can_rmdir(node, name), m.Rmdir(node.ino, name)
        else:
            want, body = self.ref.can_unlink(node, name), m.Unlink(node.ino, name)
        if self.expect(self.do(who, body, repeat), want):
            self.ref.unlink(node, name)

    @rule(
        who=st.integers(0, 1), a=st.integers(0, 50), name=NAMES, b=st.integers(0, 50), new=NAMES,
        flags=st.sampled_from([0, 0, 1, 2]), repeat=st.booleans(),
    )  # fmt: skip
    def rename(self, who: int, a: int, name: bytes, b: int, new: bytes, flags: int, repeat: bool) -> None:
        (source, name), target = self.place(a, name), self.folder(b)
        want = self.ref.can_rename(source, name, target, new, flags)
        if self.expect(self.do(who, m.Rename(source.ino, name, target.ino, new, flags), repeat), want):
            self.ref.rename(source, name, target, new, flags)

    @rule(who=st.integers(0, 1), pick=st.integers(0, 50), parent=st.integers(0, 50), name=NAMES, repeat=st.booleans())
    def link(self, who: int, pick: int, parent: int, name: bytes, repeat: bool) -> None:
        node, folder = self.node(pick), self.folder(parent)
        want = None
        if node.kind == "dir":
            want = ErrorCode.PERM
        elif folder.kind != "dir":
            want = ErrorCode.NOT_DIR
        elif node.links == 0:
            want = ErrorCode.NOT_FOUND
        elif name in folder.entries:
            want = ErrorCode.EXISTS
        if self.expect(self.do(who, m.Link(node.ino, folder.ino, name), repeat), want):
            node.links += 1
            folder.entries[name] = node

    @rule(who=st.integers(0, 1), pick=st.integers(0, 50), repeat=st.booleans())
    def open(self, who: int, pick: int, repeat: bool) -> None:
        files = sorted(ino for ino, node in self.ref.nodes.items() if node.kind == "file")
        node = self.ref.nodes[files[pick % len(files)]] if files and pick < 40 else self.node(pick)
        want = {"file": None, "dir": ErrorCode.IS_DIR}.get(node.kind, ErrorCode.INVALID)
        if self.expect(self.do(who, m.Open(node.ino, m.EXCLUSIVE), repeat), want):
            node.opens += 1
            self.open_files[who, node.ino] = self.open_files.get((who, node.ino), 0) + 1

    @precondition(lambda self: self.open_files)
    @rule(pick=st.integers(0, 50), repeat=st.booleans())
    def close(self, pick: int, repeat: bool) -> None:
        who, ino = sorted(self.open_files)[pick % len(self.open_files)]
        self.expect(self.do(who, m.Close(ino), repeat), None)
        self.open_files[who, ino] -= 1
        if not self.open_files[who, ino]:
            del self.open_files[who, ino]
        node = self.ref.nodes[ino]
        node.opens -= 1
        self.ref.bury(node)

    @rule(who=st.integers(0, 1), pick=st.integers(0, 50), size=st.integers(0, 2**40), repeat=st.booleans())
    def resize(self, who: int, pick: int, size: int, repeat: bool) -> None:
        node = self.node(pick)
        if node.kind != "file":
            return
        self.do(who, m.LeaseAcquire(node.ino, m.EXCLUSIVE), False)
        got = self.do(who, m.SetAttr(node.ino, m.SET_SIZE, size=size), repeat)
        assert got.attr.size == size
        node.size = size

    @rule(who=st.integers(0, 1), pick=st.integers(0, 50), mode=st.integers(0, 0o7777), repeat=st.booleans())
    def chmod(self, who: int, pick: int, mode: int, repeat: bool) -> None:
        node = self.node(pick)
        self.expect(self.do(who, m.SetAttr(node.ino, m.SET_MODE, mode=mode), repeat), None)
        node.mode = mode
        if node.kind == "dir" and mode & stat.S_ISGID:  # inherited by new directories: keep the reference simple
            self.do(who, m.SetAttr(node.ino, m.SET_MODE, mode=mode & ~stat.S_ISGID), False)
            node.mode = mode & ~stat.S_ISGID

    @rule(
        who=st.integers(0, 1),
        pick=st.integers(0, 50),
        name=NAMES,
        value=st.binary(max_size=9),
        flags=st.integers(0, 2),
        repeat=st.booleans(),
    )
    def set_xattr(self, who: int, pick: int, name: bytes, value: bytes, flags: int, repeat: bool) -> None:
        node = self.node(pick)
        want = None
        if flags == 1 and name in node.xattrs:
            want = ErrorCode.EXISTS
        elif flags == 2 and name not in node.xattrs:
            want = ErrorCode.NO_DATA
        if self.expect(self.do(who, m.SetXattr(node.ino, name, value, flags), repeat), want):
            node.xattrs[name] = value

    @rule(who=st.integers(0, 1), pick=st.integers(0, 50), name=NAMES, repeat=st.booleans())
    def remove_xattr(self, who: int, pick: int, name: bytes, repeat: bool) -> None:
        node = self.node(pick)
        want = None if name in node.xattrs else ErrorCode.NO_DATA
        if self.expect(self.do(who, m.RemoveXattr(node.ino, name), repeat), want):
            del node.xattrs[name]

    @rule()
    def time_passes(self) -> None:
        self.sim.step()

    @rule()
    def failover(self) -> None:
        """The leader falls; the clients come back with what they hold."""
        self.sim.failover()
        for who, client in enumerate(self.clients):
            resume(client, [(ino, count) for (w, ino), count in self.open_files.items() if w == who])
        self.sim.step()

    @invariant()
    def same_tree(self) -> None:
        if not hasattr(self, "ref"):
            return
        state = self.sim.state
        replaced = {ino for ino, orphan in state.orphans.items() if orphan.since_ms > self.sim.now}
        assert set(state.inodes) - replaced == set(self.ref.nodes) - replaced
        for ino, node in self.ref.nodes.items():
            inode = state.inodes[ino]
            assert inode.nlink == node.links, (ino, inode.nlink, node.links)
            assert {n: e.ino for n, e in state.directory(ino).entries.items()} == {
                n: c.ino for n, c in node.entries.items()
            }
            if node.kind == "dir":
                assert inode.used == len(node.entries)
                assert inode.parent == (node.parent.ino if node.parent else ROOT)
            elif node.kind == "file":
                assert inode.size == node.size
            if ino != ROOT and node.kind != "link":
                assert inode.mode & 0o7777 == node.mode
            assert state.xattrs.get(ino, {}) == node.xattrs
        assert [f.text for f in check(state, {}) if f.severity != NOTE] == []

    @invariant()
    def replay_is_the_same(self) -> None:
        """A standby that loads the store holds what the leader holds."""
        if not hasattr(self, "sim"):
            return
        copy = State()
        copy.load(self.sim.store.items())
        assert facts(copy) == facts(self.sim.state)


def facts(state: State) -> dict[str, Any]:
    """Everything of a State, comparable."""
    out = {name: value for name, value in vars(state).items() if name not in ("dirs", "changed", "by_cs")}
    out["by_cs"] = {n: ids for n, ids in state.by_cs.items() if ids}
    out["dirs"] = {ino: directory.entries for ino, directory in state.dirs.items()}
    return out


def resume(client: Client, opens: list[tuple[int, int]]) -> None:
    client.connect()
    client.call(m.SessionResume(client.session_id, list(client.modes.items()), opens=opens))


NamespaceMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
TestNamespace = NamespaceMachine.TestCase
