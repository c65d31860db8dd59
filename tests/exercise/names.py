"""A file system exerciser: random changes of names and attributes, each done on a mount and on the local file system and compared.

Usage: python -m tests.exercise.names SEED OPERATIONS PROCESSES LOCAL MOUNT [the same directory on another MOUNT]…
Each process has a tree of its own in both places and goes through the mounts at random: what a call has done is there for the next one,
whichever mount it goes. Now and then it changes something in a tree that all share, where only the end can be judged: all mounts show the
same, and each file and directory has as many links as names. Prints the last operations when something differs. Must run as root.
"""

from __future__ import annotations

import collections
import errno
import os
import random
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.posixrun import CALLS

NAMES = "abcdef"
DEPTH_MAX = 3
SHARED_EVERY = 4  # operations
TREE_EVERY = 100
XATTRS = ("user.a", "user.b", "trusted.c")
NOREPLACE, EXCHANGE = 1, 2
# What can come of an operation in the shared tree, when another process was faster.
RACES = {
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EPERM, errno.ENODATA, errno.ELOOP, errno.ESTALE,
    errno.ENXIO, errno.ESPIPE,
}  # fmt: skip

Op = tuple[str, tuple[Any, ...], tuple[int, ...]]  # call, arguments, which of them are paths


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _make(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _unlinked(path: str, data: bytes) -> list[Any]:
    """An open file loses its name and is still a file."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.unlink(path)
        os.pwrite(fd, data, 3)
        st = os.fstat(fd)
        return [st.st_nlink, st.st_size, zlib.crc32(os.pread(fd, 1 << 20, 0))]
    finally:
        os.close(fd)


HERE: dict[str, Callable[..., Any]] = CALLS | {
    "make": _make,
    "overwrite": _write,
    "loses-name": _unlinked,
    "listxattr": lambda p: sorted(n for n in os.listxattr(p, follow_symlinks=False) if not n.startswith("security.")),
}


def do(root: Path, op: Op) -> Any:
    """The result, or the name of the errno."""
    call, args, paths = op
    real = [str(root / a) if i in paths else a for i, a in enumerate(args)]
    try:
        return HERE[call](*real)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc))


def describe(root: Path, rel: str) -> list[Any]:
    """What every file system must say of a path."""
    path = root / rel
    try:
        st = os.lstat(path)
    except OSError as exc:
        return [errno.errorcode[exc.errno or 0]]
    out: list[Any] = [oct(st.st_mode), st.st_nlink, st.st_uid, st.st_gid]
    out.append({n: os.getxattr(path, n, follow_symlinks=False) for n in HERE["listxattr"](path)})
    if stat.S_ISREG(st.st_mode):
        out += [st.st_size, zlib.crc32(path.read_bytes())]
    elif stat.S_ISLNK(st.st_mode):
        out += [st.st_size, os.readlink(path)]
    elif stat.S_ISDIR(st.st_mode):
        out.append(sorted(os.listdir(path)))
    return out


def walk(root: Path) -> Iterator[str]:
    """All paths below, relative, parents first."""
    for top, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(dirs + files):
            yield os.path.relpath(os.path.join(top, name), root)


class Chooser:
    """Random operations on what is there, and on what is not."""

    def __init__(self, seed: str, tree: Path) -> None:
        self.random, self.tree = random.Random(seed), tree

    def path(self, *, new: bool = False) -> str:
        known = ["", *walk(self.tree)]
        if known[1:] and self.random.random() < (0.3 if new else 0.85):
            return self.random.choice(known[1:])
        dirs = [p for p in known if p.count("/") < DEPTH_MAX - 1 and os.path.isdir(self.tree / p)]
        return os.path.join(self.random.choice(dirs or [""]), self.random.choice(NAMES))

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([1, 10, 4096, 5000]))

    def op(self) -> Op:
        r = self.random
        times = [r.choice(["now", "omit", r.randrange(-(10**18), 4 * 10**18)]) for _ in range(2)]
        makers: list[tuple[int, Callable[[], Op]]] = [
            (10, lambda: ("make", (self.path(new=True), self.data()), (0,))),
            (8, lambda: ("mkdir", (self.path(new=True), r.choice([0o755, 0o700, 0o2775, 0o1777])), (0,))),
            (4, lambda: ("symlink", (r.choice(["a", "../b", "nowhere", "x" * 200]), self.path(new=True)), (1,))),
            (3, lambda: ("mknod", (self.path(new=True), stat.S_IFIFO | 0o640), (0,))),
            (8, lambda: ("link", (self.path(), self.path(new=True)), (0, 1))),
            (10, lambda: ("rename", (self.path(), self.path(new=True)), (0, 1))),
            (3, lambda: ("renameat2", (self.path(), self.path(), EXCHANGE), (0, 1))),
            (2, lambda: ("renameat2", (self.path(), self.path(new=True), NOREPLACE), (0, 1))),
            (7, lambda: ("unlink", (self.path(),), (0,))),
            (4, lambda: ("rmdir", (self.path(),), (0,))),
            (5, lambda: ("overwrite", (self.path(), self.data()), (0,))),
            (3, lambda: ("truncate", (self.path(), r.choice([0, 1, 4096, 10_000])), (0,))),
            (4, lambda: ("chmod", (self.path(), r.randrange(0o10000)), (0,))),
            (4, lambda: ("lchown", (self.path(), r.choice([-1, 0, 7]), r.choice([8, 0, 9])), (0,))),
            (4, lambda: ("utimens", (self.path(), *times), (0,))),
            (3, lambda: ("lsetxattr", (self.path(), r.choice(XATTRS), r.randbytes(r.choice([0, 5, 300]))), (0,))),
            (1, lambda: ("removexattr", (self.path(), r.choice(XATTRS)), (0,))),
            (1, lambda: ("loses-name", (self.path(), self.data()), (0,))),
        ]
        return r.choices([m for _, m in makers], [w for w, _ in makers])[0]()


class Exerciser:
    """One process's share."""

    def __init__(self, seed: str, local: Path, mounts: list[Path], shared: list[Path]) -> None:
        self.local, self.mounts, self.shared = local, mounts, shared
        self.chooser = Chooser(seed, local)
        self.random = random.Random(seed + "-mounts")
        self.together = Chooser(seed + "-shared", shared[0])
        self.log: collections.deque[str] = collections.deque(maxlen=30)
        self.times: dict[tuple[bool, str], tuple[int, int]] = {}
        self.tolerated = 0

    def expect(self, what: str, local: Any, ours: Any) -> None:
        if local != ours:
            raise AssertionError(f"{what}\n  local {local}\n  mount {ours}")

    def changed(self, root: Path, rel: str) -> list[str]:
        """Which times differ from what they were when this was last asked."""
        key = (root == self.local, rel)
        try:
            st = os.lstat(root / rel)
        except OSError:
            self.times.pop(key, None)
            return []
        before, self.times[key] = self.times.get(key), (st.st_mtime_ns, st.st_ctime_ns)
        return [] if before is None else [n for n, a, b in zip("mc", before, self.times[key], strict=True) if a != b]

    def step(self) -> None:
        op = self.chooser.op()
        mount = self.random.choice(self.mounts)
        self.log.append(f"{mount.parent.name} {op[0]} {[a if len(repr(a)) < 60 else len(a) for a in op[1]]}")
        paths = [op[1][i] for i in op[2]]
        looked = sorted({*paths, *(os.path.dirname(p) for p in paths)})
        for rel in looked:
            self.changed(self.local, rel)
            self.changed(mount, rel)
        local, ours = do(self.local, op), do(mount, op)
        self.log[-1] += f" -> {local}"
        self.expect("result", local, ours)
        mount = self.random.choice(self.mounts)
        if op[0] == "utimens" and local is None and any(isinstance(wish, int) for wish in op[1][1:]):
            st, there = os.lstat(self.local / paths[0]), os.lstat(mount / paths[0])
            for wish, a, b in (
                (op[1][1], st.st_atime_ns, there.st_atime_ns),
                (op[1][2], st.st_mtime_ns, there.st_mtime_ns),
            ):
                if isinstance(wish, int):
                    self.expect("time set", a, b)
        for rel in looked:
            changed, there = self.changed(self.local, rel), self.changed(mount, rel)
            if not set(changed) <= set(there):  # more: the local clock may go by ticks
                self.expect(f"times changed of {rel!r}", changed, there)
            self.expect(f"attributes of {rel!r}", describe(self.local, rel), describe(mount, rel))

    def race(self) -> None:
        """One operation in the shared tree."""
        call, args, paths = self.together.op()
        root = self.random.choice(self.shared)
        real = [str(root / a) if i in paths else a for i, a in enumerate(args)]
        try:
            HERE[call](*real)
        except OSError as exc:
            self.tolerated += 1
            if exc.errno not in RACES:
                raise AssertionError(f"shared: {call} {args}: {exc}") from exc

    def trees(self) -> None:
        for mount in self.mounts:
            self.expect("the tree", list(walk(self.local)), list(walk(mount)))
            for rel in walk(self.local):
                self.expect(f"the tree, {rel!r}", describe(self.local, rel), describe(mount, rel))

    def run(self, count: int) -> None:
        for number in range(count):
            try:
                self.step()
                if number % SHARED_EVERY == 0:
                    self.race()
                if number % TREE_EVERY == TREE_EVERY - 1 or number + 1 == count:
                    self.trees()
            except (AssertionError, OSError) as exc:
                raise SystemExit(f"operation {number}: {exc}\nlast operations:\n" + "\n".join(self.log)) from exc


def check_shared(mounts: list[Path]) -> None:
    """All mounts show the same, and links are counted right."""
    seen = [{rel: [os.lstat(m / rel).st_ino, *describe(m, rel)] for rel in walk(m)} for m in mounts]
    for other in seen[1:]:
        if other != seen[0]:
            wrong = sorted(r for r in seen[0].keys() | other.keys() if seen[0].get(r) != other.get(r))
            raise SystemExit(f"the shared tree differs: {[(r, seen[0].get(r), other.get(r)) for r in wrong[:5]]}")
    names = collections.Counter(what[0] for what in seen[0].values())
    for rel, what in seen[0].items():
        path = mounts[0] / rel
        is_dir = path.is_dir() and not path.is_symlink()
        expected = (
            2 + sum((path / n).is_dir() and not (path / n).is_symlink() for n in os.listdir(path))
            if is_dir
            else names[what[0]]
        )
        if what[2] != expected:
            raise SystemExit(f"the shared tree: {rel} has {what[2]} links, {expected} expected")


def main() -> None:
    seed, count, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    local, *mounts = map(Path, sys.argv[4:])
    if processes == 0:  # one of the processes: the number is the end of the seed
        name = "p" + seed.rsplit("-", 1)[1]
        os.umask(0o022)
        Exerciser(seed, local / name, [m / name for m in mounts], [m / "shared" for m in mounts]).run(count)
        return
    for name in ["shared", *(f"p{i}" for i in range(processes))]:
        (local / name).mkdir()
        (mounts[0] / name).mkdir()
    argv = [sys.executable, "-m", "tests.exercise.names"]
    children = [
        subprocess.Popen([*argv, f"{seed}-{i}", str(count), "0", str(local), *map(str, mounts)], stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]  # fmt: skip
    failures = [f"process {i}: {err}" for i, c in enumerate(children) if (err := c.communicate()[1]) or c.returncode]
    if failures:
        raise SystemExit("\n".join(failures))
    check_shared([m / "shared" for m in mounts])


if __name__ == "__main__":
    main()
