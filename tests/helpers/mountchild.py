"""What tests do on a mount that may stop answering, in a process of its own (outside.py starts it). Standard library only.

A request on a FUSE mount whose cluster is down cannot be interrupted. The process that has one must not be pytest: no signal and no timeout
reaches it there. A process that forks meanwhile hangs as well: the child closes copies of descriptors, close(2) waits for the lock that a
write holds, and the parent waits for the child's exec(2) with the interpreter locked.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path


def put(path: Path, mode: str = "wb") -> None:
    """Standard input becomes the file, and is on stable storage."""
    data = sys.stdin.buffer.read()
    with path.open(mode, buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def update(path: Path) -> None:
    """Standard input is written over the beginning of the file, in place, and synced."""
    put(path, "r+b")


def get(path: Path) -> None:
    """The file to standard output."""
    sys.stdout.buffer.write(path.read_bytes())


def names(path: Path) -> None:
    """Names in a directory, each ended by a zero byte."""
    sys.stdout.buffer.write(b"".join(os.fsencode(name) + b"\0" for name in sorted(os.listdir(path))))


def remove(path: Path) -> None:
    path.unlink()


def hold(path: Path) -> None:
    """Write a file without syncing it, say so, and keep it open until standard input ends."""
    with path.open("wb", buffering=0) as file:
        file.write(b"not synced" * 10_000)
        os.write(1, b"written\n")
        sys.stdin.buffer.read()


def space(path: Path) -> None:
    """What df asks: stat(2) and statfs(2)."""
    found, space = path.stat(), os.statvfs(path)
    os.write(1, f"{found.st_ino} {found.st_mode:o} {space.f_blocks}".encode())


def _round(directory: Path, number: int, rng: random.Random) -> None:
    data = rng.randbytes(rng.choice([10, 5000, 100_000]))
    name, other = directory / f"f{number}", directory / f"g{number}"
    with name.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    name.rename(other)
    assert other.read_bytes() == data, "read other bytes than were written"
    assert other.name in os.listdir(directory), "a name is missing"
    assert not name.exists(), "the old name is still there"
    if number % 3:
        other.unlink()


def load(directory: Path) -> None:
    """Make, write, sync, rename, read, list and remove files until SIGTERM; a line on standard output when a round begins and when it ends.

    "B TIME" and "E TIME[ PROBLEM]", CLOCK_MONOTONIC in seconds.
    """
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda sig, _frame: ending.append(sig))
    parent, rng, number = os.getppid(), random.Random(7), 0
    directory.mkdir()
    while not ending and os.getppid() == parent:
        os.write(1, f"B {time.monotonic()}\n".encode())
        problem = ""
        try:
            _round(directory, number, rng)
        except (OSError, AssertionError) as exc:
            problem = f" round {number}: {exc!r}".replace("\n", " ")
        os.write(1, f"E {time.monotonic()}{problem}\n".encode())
        number += 1


COMMANDS = {
    "put": put,
    "update": update,
    "get": get,
    "names": names,
    "remove": remove,
    "hold": hold,
    "space": space,
    "load": load,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))
