"""A client of the campaign: a process that works on a mount and writes down, outside of the cluster, what it did and what came of it.

    python -m tests.chaos.worker ROLE DIRECTORY RECORD STOPFILE SEED NAME

register: reads and writes shared registers (a word at the begin of each chunk of a file) with O_DSYNC. keeper: makes files, syncs them, removes some.
A record is lines of JSON. Before each change a line says what is about to be done, after it another what came of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any

REGISTERS = 4
STRIDE = 1 << 20  # the chunk size of the campaign: each register in a chunk of its own
PAUSE_S = 0.02
WORD = struct.Struct("<Q")


def content(seed: int, name: str, size: int) -> bytes:
    """What a file holds: from its name alone."""
    return random.Random(f"{seed} {name}").randbytes(size)


class Record:
    """Lines of JSON, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def line(self, **fields: Any) -> None:
        self._file.write(json.dumps({"t": time.monotonic(), **fields}) + "\n")


class Register:
    """Operations on registers of one shared file."""

    def __init__(self, directory: Path, record: Record, rng: random.Random, number: int) -> None:
        self._path, self._record, self._rng = directory / "registers", record, rng
        self._fd = -1
        self._next = number << 32

    def round(self) -> None:
        """One operation. An error leaves a write open: it may have happened or may happen later."""
        index = self._rng.randrange(REGISTERS)
        began = time.monotonic()
        writes = self._rng.random() < 0.5
        self._next += writes
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_DSYNC)
                began = time.monotonic()
            if writes:
                self._record.line(do="write", register=index, value=self._next, began=began)
                os.pwrite(self._fd, WORD.pack(self._next), index * STRIDE)
                self._record.line(done="write", register=index, value=self._next, began=began)
            else:
                (value,) = WORD.unpack(os.pread(self._fd, WORD.size, index * STRIDE))
                self._record.line(done="read", register=index, value=value, began=began)
        except OSError as exc:
            self._record.line(failed="write" if writes else "read", register=index, errno=exc.errno, began=began)
            if self._fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(self._fd)
            self._fd = -1


class Keeper:
    """Files that must be there once they were synced."""

    def __init__(self, directory: Path, record: Record, rng: random.Random, seed: int, name: str) -> None:
        self._directory, self._record, self._rng, self._seed, self._name = directory, record, rng, seed, name
        self._kept: list[str] = []
        self._made = 0

    def round(self) -> None:
        """Make a file, or remove one."""
        began = time.monotonic()
        if len(self._kept) > 20 and self._rng.random() < 0.5:
            name = self._kept.pop(self._rng.randrange(len(self._kept)))
            self._record.line(do="remove", name=name, began=began)
            try:
                (self._directory / name).unlink()
            except OSError as exc:
                self._record.line(failed="remove", name=name, errno=exc.errno, began=began)
                return
            self._record.line(done="remove", name=name, began=began)
            return
        self._made += 1
        name = f"{self._name}-{self._made}"
        size = self._rng.choice([100, 5000, 70_000, 1_500_000])
        self._record.line(do="keep", name=name, size=size, began=began)
        try:
            self._write(name, content(self._seed, name, size))
        except OSError as exc:
            self._record.line(failed="keep", name=name, errno=exc.errno, began=began)
            return
        self._record.line(done="keep", name=name, size=size, began=began)
        self._kept.append(name)

    def _write(self, name: str, data: bytes) -> None:
        """As careful programs do: write, sync, rename, sync the directory."""
        part = self._directory / f".{name}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view[: 1 << 17]) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        part.rename(self._directory / name)
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_back(directory: Path) -> dict[str, str]:
    """name -> digest of every kept file. Raises OSError."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir() if not p.name.startswith(".")
    }


def main() -> int:
    """Work until the stop file is there."""
    role, directory, record_file, stop, seed, name = sys.argv[1:7]
    if role == "read":
        print(json.dumps(read_back(Path(directory))))
        return 0
    record = Record(Path(record_file))
    rng = random.Random(f"{seed} {role} {name}")
    worker: Register | Keeper
    if role == "register":
        worker = Register(Path(directory), record, rng, int(name))
    else:
        worker = Keeper(Path(directory), record, rng, int(seed), name)
    while not os.path.exists(stop):
        worker.round()
        time.sleep(rng.uniform(0, PAUSE_S))
    record.line(end=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
