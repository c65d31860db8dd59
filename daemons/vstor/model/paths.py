"""Paths relative to the cluster's root, for administration. Symlinks are not followed."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model.records import Inode
from vstor.model.state import State
from vstor.proto.messages import ROOT_INO


def resolve(state: State, path: str) -> Inode:
    """The inode at a path. Raises NOT_FOUND, NOT_DIR."""
    ino = ROOT_INO
    for part in path.encode("utf-8", "surrogateescape").split(b"/"):
        if part in (b"", b"."):
            continue
        inode = state.inodes[ino]
        if not stat.S_ISDIR(inode.mode):
            raise VstorError(ErrorCode.NOT_DIR, f"{path}: not a directory on the way")
        if part == b"..":
            ino = inode.parent
            continue
        entry = state.directory(ino).entries.get(part)
        if entry is None:
            raise VstorError(ErrorCode.NOT_FOUND, f"{path}: no such file or directory")
        ino = entry.ino
    return state.inodes[ino]


def below(state: State, top: Inode) -> Iterator[Inode]:
    """The inode and everything below it; a file with several names comes once for each."""
    todo = [top.ino]
    while todo:
        inode = state.inodes.get(todo.pop())
        if inode is None:
            continue
        yield inode
        if stat.S_ISDIR(inode.mode):
            todo += [entry.ino for entry in state.directory(inode.ino).entries.values()]


def names_of(state: State, inos: set[int]) -> dict[int, str]:
    """One path for each inode that has one; walks all directories once."""
    found: dict[int, str] = {}
    wanted = set(inos)
    for parent, directory in state.dirs.items():
        if not wanted:
            break
        for name, entry in directory.entries.items():
            if entry.ino in wanted:
                wanted.discard(entry.ino)
                found[entry.ino] = directory_path(state, parent) + "/" + name.decode("utf-8", "surrogateescape")
    return {ino: path.encode("utf-8", "replace").decode() for ino, path in found.items()}


def directory_path(state: State, ino: int) -> str:
    """Path of a directory, "" for the root."""
    parts: list[str] = []
    while ino != ROOT_INO:
        parent = state.inodes[ino].parent
        for name, entry in state.directory(parent).entries.items():
            if entry.ino == ino:
                parts.append(name.decode("utf-8", "surrogateescape"))
                break
        ino = parent
    return "".join("/" + part for part in reversed(parts))
