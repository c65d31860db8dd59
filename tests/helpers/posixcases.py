"""Cases of POSIX conformance: small programs of system calls, for any file system. What is right is what the kernel's own file system does.

A case is a list of steps in a fresh directory; a step is (user, call, arguments…). `posixrun.py` runs them and describes what came of each.
What a mount rightly does otherwise than the local file system is not among the cases; docs/posix.md lists it.
The families are those of the well-known conformance suites: each call on each type of file, by the owner, by a member of the group and by
others, with each errno that can be had without a fault, and the changes of mode, owner, links, size and times.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from typing import Any

Step = tuple[Any, ...]
Case = tuple[str, list[Step]]

ROOT, OWNER, MEMBER, OTHER = "root", "owner", "member", "other"
USERS: dict[str, tuple[int, int, list[int]]] = {  # uid, gid, further groups
    ROOT: (0, 0, []),
    OWNER: (65534, 65534, [65532]),
    MEMBER: (65533, 65534, []),
    OTHER: (65531, 65531, []),
}
TYPES = ("regular", "dir", "fifo", "block", "char", "socket", "symlink")
NODES = {"fifo": stat.S_IFIFO, "block": stat.S_IFBLK, "char": stat.S_IFCHR, "socket": stat.S_IFSOCK}
DAY_NS = 86_400_000_000_000


def make(kind: str, name: str, uid: int = 0, gid: int = 0) -> list[Step]:
    """Steps that make a file of a type, by root."""
    if kind == "none":
        return []
    if kind == "regular":
        steps: list[Step] = [(ROOT, "create", name, 0o644)]
    elif kind == "dir":
        steps = [(ROOT, "mkdir", name, 0o755)]
    elif kind == "symlink":
        steps = [(ROOT, "symlink", "nowhere", name)]
    else:
        steps = [(ROOT, "mknod", name, NODES[kind] | 0o644)]
    return steps + ([(ROOT, "lchown", name, uid, gid)] if uid or gid else [])


def owners_dir(name: str = "d", mode: int = 0o755) -> list[Step]:
    return [(ROOT, "mkdir", name, 0o755), (ROOT, "chown", name, 65534, 65534), (ROOT, "chmod", name, mode)]


def chmod_cases() -> Iterator[Case]:
    for kind in TYPES[:-1]:
        steps = make(kind, "f", 65534, 65534)
        for user, mode in itertools.product(USERS, (0o111, 0o6777, 0o2755, 0o1644, 0o4000, 0o7777, 0)):
            steps.append((user, "chmod", "f", mode))
        steps += [(ROOT, "symlink", "f", "s"), (OWNER, "chmod", "s", 0o222), (OTHER, "chmod", "s", 0o222)]
        yield f"chmod-{kind}", steps
        foreign = [*make(kind, "f", 65534, 65530), (OWNER, "chmod", "f", 0o2755), (OWNER, "chmod", "f", 0o6711)]
        yield f"chmod-foreign-group-{kind}", foreign


def chown_cases() -> Iterator[Case]:
    for kind in TYPES:
        steps = make(kind, "f", 65534, 65534)
        chmod: list[Step] = [(ROOT, "chmod", "f", 0o6555)] if kind != "symlink" else []
        changes = itertools.product(USERS, (-1, 65534, 65531, 0), (-1, 65534, 65532, 65530))
        for user, uid, gid in changes:
            if (uid, gid) == (-1, -1):  # POSIX: times need not change; Linux clears bits here, FUSE is not told
                continue
            steps += [(ROOT, "lchown", "f", 65534, 65534), *chmod, (user, "lchown", "f", uid, gid)]
        yield f"chown-{kind}", steps
        if kind != "symlink":
            for mode in (0o2644, 0o2755, 0o4644, 0o6777):
                yield (
                    f"chown-bits-{kind}-{mode:o}",
                    [*make(kind, "f", 65534, 65534), (ROOT, "chmod", "f", mode), (OWNER, "chown", "f", 65534, 65532),
                     (ROOT, "chmod", "f", mode), (ROOT, "chown", "f", 1, 1), (ROOT, "symlink", "f", "s"), (ROOT, "chown", "s", 2, 2)],
                )  # fmt: skip


def write_cases() -> Iterator[Case]:
    """Set-uid and set-gid bits when data changes; times of writes."""
    for mode in (0o6777, 0o2777, 0o4777, 0o2770, 0o4666):
        for user in (ROOT, OWNER, OTHER):
            for call in (
                ("write", "f", os.O_WRONLY, b"x"),
                ("truncate", "f", 3),
                ("write", "f", os.O_WRONLY | os.O_TRUNC, b""),
                ("write", "f", os.O_WRONLY | os.O_APPEND, b"x"),
                ("write", "f", os.O_WRONLY | os.O_DIRECT, bytes(4096)),
                ("fallocate", "f", 0, 0, 9000),
                ("fallocate", "f", 3, 0, 2),
                ("read", "f", os.O_RDONLY),
                ("write", "f", os.O_WRONLY, b""),
            ):
                steps = [
                    *make("regular", "f", 65534, 65534),
                    (ROOT, "write", "f", os.O_WRONLY, b"12345"),
                    (ROOT, "chmod", "f", mode),
                ]
                name = f"bits-{mode:o}-{user}-{call[0]}-{call[2:]}".replace(" ", "").replace("\\x00", "")[:60]
                yield name, [*steps, (user, *call)]


def open_cases() -> Iterator[Case]:
    flags = (
        os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_EXCL,
        os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_DIRECTORY, os.O_RDWR | os.O_DIRECTORY, os.O_WRONLY | os.O_APPEND,
        os.O_PATH, os.O_RDONLY | os.O_NOATIME,
    )  # fmt: skip
    for kind in ("none", "regular", "dir", "fifo", "socket", "symlink"):
        for flag in flags:
            wait = os.O_NONBLOCK if kind == "fifo" else 0
            yield f"open-{kind}-{flag:o}", [*make(kind, "f"), (ROOT, "open", "f", flag | wait, 0o640)]
    for mode in range(0, 0o1000, 0o111):
        for user in USERS:
            steps = [*make("regular", "f", 65534, 65534), (ROOT, "chmod", "f", mode)]
            for flag in flags[:9]:
                steps.append((user, "open", "f", flag, 0o600))
            yield f"open-permission-{mode:o}-{user}", steps
    for mask, mode in itertools.product((0, 0o022, 0o077, 0o345), (0, 0o777, 0o7777, 0o644, 0o2755)):
        for user in (ROOT, OWNER):
            steps = [*owners_dir("d", 0o777), (user, "umask", mask), (user, "open", "d/f", os.O_CREAT | os.O_WRONLY, mode),
                     (user, "mkdir", "d/d", mode), (user, "mknod", "d/p", stat.S_IFIFO | (mode & 0o777)), (ROOT, "umask", 0o022)]  # fmt: skip
            yield f"umask-{mask:o}-{mode:o}-{user}", steps
    for user in (ROOT, OWNER, MEMBER, OTHER):
        steps = [*owners_dir("d", 0o2777), (ROOT, "chown", "d", 65534, 65530), (ROOT, "chmod", "d", 0o2777)]
        steps += [(user, "create", "d/f", 0o6777), (user, "mkdir", "d/d", 0o755), (user, "mkdir", "d/d/d", 0o755)]
        steps += [
            (user, "symlink", "x", "d/s"),
            (user, "mknod", "d/p", stat.S_IFIFO | 0o644),
            (user, "link", "d/f", "d/l"),
        ]
        yield f"setgid-directory-{user}", steps


def path_cases() -> Iterator[Case]:
    """What can be wrong with a path, for each call that takes one."""
    long, longest, deep = "n" * 256, "n" * 255, "/".join(["d" * 100] * 41)
    one: list[tuple[str, tuple[Any, ...]]] = [
        ("chmod", (0o600,)), ("chown", (1, 1)), ("lchown", (1, 1)), ("truncate", (1,)), ("mkdir", (0o755,)), ("rmdir", ()), ("unlink", ()),
        ("mknod", (stat.S_IFIFO | 0o644,)), ("open", (os.O_RDONLY, 0)), ("open", (os.O_CREAT | os.O_WRONLY, 0o644)), ("lstat", ()), ("stat", ()),
        ("utime", (DAY_NS, DAY_NS)), ("readlink", ()), ("listdir", ()), ("access", (os.R_OK,)), ("getxattr", ("user.a",)), ("setxattr", ("user.a", b"1")),
        ("statvfs", ()), ("readlink", ()),
    ]  # fmt: skip
    bad = {
        "too-long": long, "longest": longest, "path-too-long": deep, "no-directory": "f/x", "missing-parent": "m/x", "loop": "loop/x",
        "loop-itself": "loop", "dangling": "s", "slash": "f/", "dir-slash": "d/", "symlink-to-dir-slash": "sd/", "dot": "d/.", "dotdot": "d/..",
        "missing": "x", "missing-slash": "x/", "empty": "", "closed": "closed/x", "read-only": "ro/x", "read-only-there": "ro/f", "dangling-slash": "s/",
        "socket": "sock", "fifo-below": "p/x",
    }  # fmt: skip
    setup: list[Step] = [
        *make("regular", "f", 65534, 65534), *owners_dir("d"), (ROOT, "symlink", "loop2", "loop"), (ROOT, "symlink", "loop", "loop2"),
        (ROOT, "symlink", "nothing", "s"), (ROOT, "symlink", "d", "sd"), *owners_dir("closed"), *make("regular", "closed/x", 65534, 65534),
        (ROOT, "chmod", "closed", 0o600), *owners_dir("ro"), *make("regular", "ro/f", 65534, 65534), (ROOT, "chmod", "ro", 0o555),
        *make("socket", "sock", 65534, 65534), *make("fifo", "p"), (ROOT, "chmod", ".", 0o777),
    ]  # fmt: skip
    for (what, path), user in itertools.product(bad.items(), (ROOT, OWNER, OTHER)):
        for i, (call, args) in enumerate(one):
            yield f"path-{what}-{call}-{i}-{user}", [*setup, (user, call, path, *args)]
        for call in ("link", "rename"):
            yield f"path-{what}-{call}-from-{user}", [*setup, (user, call, path, "new")]
            yield f"path-{what}-{call}-to-{user}", [*setup, (user, call, "f", path)]
            yield f"path-{what}-{call}-dir-to-{user}", [*setup, (user, call, "d", path)]
        yield f"path-{what}-symlink-{user}", [*setup, (user, "symlink", "t", path)]


def name_cases() -> Iterator[Case]:
    """Links, removal, renames of each type onto each type, sticky directories, RENAME_* flags."""
    for kind in TYPES:
        steps = [
            *make(kind, "f", 65534, 65534),
            (ROOT, "link", "f", "l"),
            (ROOT, "link", "l", "f"),
            (ROOT, "unlink", "f"),
            (ROOT, "unlink", "f"),
        ]
        steps += [(ROOT, "rmdir", "l"), (ROOT, "unlink", "l")]
        yield f"link-unlink-{kind}", steps
        yield (
            f"rmdir-{kind}",
            [*make(kind, "f"), *owners_dir("d"), *make(kind, "d/x"), (ROOT, "rmdir", "d"), (ROOT, "rmdir", "f")],
        )
    for kind, other in itertools.product(TYPES, ("none", *TYPES)):
        base = [*owners_dir("a"), *owners_dir("b"), *make(kind, "a/f", 65534, 65534), *make(other, "b/g")]
        yield f"rename-{kind}-{other}", [*base, (ROOT, "rename", "a/f", "b/g"), (ROOT, "rename", "b/g", "a/f")]
        for flag in (1, 2, 3):
            yield f"renameat2-{kind}-{other}-{flag}", [*base, (ROOT, "renameat2", "a/f", "b/g", flag)]
        yield f"rename-full-{kind}-{other}", [*base, (ROOT, "mkdir", "b/g/x", 0o755), (ROOT, "rename", "a/f", "b/g")]
    for kind, source, owner, user in itertools.product(
        ("regular", "dir", "symlink"), (65534, 65533, 0), (65534, 65533, 0), (OWNER, MEMBER)
    ):
        base = [
            *owners_dir("a", 0o1777),
            (ROOT, "chown", "a", source, source),
            (ROOT, "chmod", "a", 0o1777),
            *owners_dir("b", 0o777),
        ]
        base += [*make(kind, "a/f", owner, owner), *make("regular", "a/old", owner, owner)]
        yield f"sticky-{kind}-{source}-{owner}-{user}-away", [*base, (user, "rename", "a/f", "b/f")]
        yield f"sticky-{kind}-{source}-{owner}-{user}-here", [*base, (user, "rename", "a/f", "a/g")]
        onto = [
            *make(kind, "b/f", 65534, 65534),
            (ROOT, "lchown", "b/f", USERS[user][0], 65534),
            (user, "rename", "b/f", "a/f"),
        ]
        yield f"sticky-{kind}-{source}-{owner}-{user}-onto", [*base, *onto]
        yield (
            f"sticky-{kind}-{source}-{owner}-{user}-unlink",
            [*base, (user, "rmdir" if kind == "dir" else "unlink", "a/f")],
        )
        yield f"sticky-{kind}-{source}-{owner}-{user}-link", [*base, (user, "link", "a/old", "b/l")]
    yield (
        "rename-same",
        [*make("regular", "f"), (ROOT, "link", "f", "l"), (ROOT, "rename", "f", "l"), (ROOT, "rename", "f", "f")],
    )
    yield (
        "rename-under-itself",
        [
            *owners_dir("a"),
            *owners_dir("a/b"),
            (ROOT, "rename", "a", "a/b/c"),
            (ROOT, "rename", "a", "a/b"),
            (ROOT, "rename", "a/b", "a"),
        ],
    )
    yield (
        "rename-links",
        [
            *make("regular", "f"),
            (ROOT, "link", "f", "l"),
            *make("regular", "g"),
            (ROOT, "rename", "g", "l"),
            (ROOT, "link", "f", "h"),
        ],
    )
    yield (
        "dir-links",
        [
            *owners_dir("a"),
            *owners_dir("b"),
            *owners_dir("a/x"),
            (ROOT, "rename", "a/x", "b/x"),
            *owners_dir("a/x"),
            (ROOT, "rename", "a/x", "b/x"),
            (ROOT, "rmdir", "b/x"),
        ],
    )
    yield (
        "exchange-dirs",
        [
            *owners_dir("a"),
            *owners_dir("b"),
            *owners_dir("a/x"),
            *make("regular", "b/f"),
            (ROOT, "renameat2", "a/x", "b/f", 2),
            (ROOT, "renameat2", "a", "a/x", 2),
        ],
    )
    for length in (1, 59, 60, 255, 1023, 4095, 4096):
        yield f"symlink-{length}", [(ROOT, "symlink", "t" * length, "s"), (ROOT, "readlink", "s")]
    for size in (0, 1, 1000, 4000):
        yield f"xattr-{size}", [
            *make("regular", "f", 65534, 65534), (OWNER, "setxattr", "f", "user.k", b"v" * size), (OWNER, "getxattr", "f", "user.k"),
            (OTHER, "setxattr", "f", "user.k", b""), (ROOT, "setxattr", "f", "trusted.t", b"1"), (OTHER, "getxattr", "f", "trusted.t"),
            (OWNER, "setxattr", "f", "user.k", b"n", os.XATTR_CREATE), (OWNER, "setxattr", "f", "user.n", b"n", os.XATTR_REPLACE),
            (OWNER, "setxattr", "f", "nospace.k", b"n"), (OWNER, "setxattr", "f", "user." + "n" * 251, b""), (OWNER, "setxattr", "f", "user.", b""),
            (OWNER, "removexattr", "f", "user.k"), (OWNER, "removexattr", "f", "user.k"), (ROOT, "listxattr", "f"),
        ]  # fmt: skip
    for kind in TYPES:
        yield f"xattr-on-{kind}", [*make(kind, "f", 65534, 65534), (OWNER, "lsetxattr", "f", "user.k", b"v"), (ROOT, "lsetxattr", "f", "trusted.k", b"v"),
                                   (ROOT, "lsetxattr", "f", "security.k", b"v")]  # fmt: skip


def time_cases() -> Iterator[Case]:
    now, omit = "now", "omit"
    values = (0, 1, DAY_NS + 999_999_999, -DAY_NS + 7, -1, (1 << 31) * 10**9, (1 << 32) * 10**9 + 5, now, omit)
    for kind, user in itertools.product(("regular", "dir", "fifo", "symlink"), (ROOT, OWNER, OTHER)):
        steps = make(kind, "f", 65534, 65534)
        for atime, mtime in itertools.product(values, repeat=2):
            steps.append((user, "utimens", "f", atime, mtime))
        yield f"utimens-{kind}-{user}", steps
        if kind != "symlink":
            writable = [*make(kind, "f", 65534, 65534), (ROOT, "chmod", "f", 0o666)]
            times = ((now, now), (now, omit), (omit, omit), (5, 5))
            yield f"utimens-writable-{kind}-{user}", writable + [(user, "utimens", "f", *pair) for pair in times]


def size_cases() -> Iterator[Case]:
    for size in (0, 1, 4095, 4096, 4097, 1 << 20, (64 << 20) + 1, 1 << 41, -1):
        for call in ("truncate", "ftruncate"):
            steps = [*make("regular", "f"), (ROOT, "write", "f", os.O_WRONLY, b"0123456789" * 500)]
            yield f"{call}-{size}", [*steps, (ROOT, call, "f", size), (ROOT, call, "f", 5000)]
    for mode in (0, 1, 2, 3, 16, 17, 64, 4):
        for offset, length in ((0, 4096), (100, 9000), (20_000, 100), (0, 0), (-1, 5), (4096, -4096), (4096, 1 << 20)):
            steps = [*make("regular", "f"), (ROOT, "write", "f", os.O_WRONLY, bytes(range(256)) * 60)]
            yield (
                f"fallocate-{mode}-{offset}-{length}",
                [*steps, (ROOT, "fallocate", "f", mode, offset, length), (ROOT, "truncate", "f", 100_000)],
            )
    for kind in TYPES:
        yield f"truncate-on-{kind}", [*make(kind, "f"), (ROOT, "truncate", "f", 1)]
    yield "truncate-unlinked", [*make("regular", "f"), (ROOT, "unlinked", "f")]
    yield "truncate-read-only-handle", [*make("regular", "f"), (ROOT, "ftruncate-ro", "f", 3)]
    yield (
        "running-program",
        [(ROOT, "copy", "/bin/sleep", "prog"), (ROOT, "chmod", "prog", 0o755), (ROOT, "busy", "prog")],
    )
    for length in (1, 4096, 5000):
        yield (
            f"seek-{length}",
            [*make("regular", "f"), (ROOT, "write", "f", os.O_WRONLY, b"x" * length), (ROOT, "seek", "f")],
        )
    yield "limit", [*make("regular", "f"), (ROOT, "past-limit", "f")]


def all_cases() -> list[Case]:
    families = (chmod_cases, chown_cases, write_cases, open_cases, path_cases, name_cases, time_cases, size_cases)
    return [case for family in families for case in family()]
