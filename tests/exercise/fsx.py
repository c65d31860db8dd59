"""A file system exerciser: random operations on one file through several mounts and ways, each read compared with what must be there.

Usage: python -m tests.exercise.fsx SEED OPERATIONS PATH [PATH of the same file on another mount]…
One thread: what a call has done is there for the next one, whichever mount or way it goes.  Prints the last operations when it fails.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import mmap
import os
import random
import sys
from collections.abc import Callable

PAGE = 4096
SPAN = 100 * PAGE  # bytes of the file that are worked on, behind `base`
CHUNK = 64 << 20
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Exerciser:
    """base: offset in the file where it all happens, so that borders of chunks are met; before it is a hole."""

    def __init__(self, seed: int, paths: list[str]) -> None:
        self.random = random.Random(seed)
        self.paths = paths
        self.base = self.random.choice([0, 0, CHUNK - SPAN // 2, (1 << 40) - SPAN // 2])
        self.data = bytearray()  # what the file holds from base on
        self.size = 0  # of the file; below base only at the very beginning
        self.fds: dict[tuple[str, str], int] = {}
        self.log: collections.deque[str] = collections.deque(maxlen=40)
        os.close(os.open(paths[0], os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))
        os.truncate(paths[0], self.base)
        self.size = self.base

    # --- descriptors

    def fd(self, way: str = "buffered") -> int:
        path = self.random.choice(self.paths)
        flags = {"buffered": 0, "direct": os.O_DIRECT, "append": os.O_APPEND, "sync": os.O_DSYNC}[way]
        if (path, way) not in self.fds:
            self.fds[path, way] = os.open(path, os.O_RDWR | flags)
        self.note(f"{way} {path}")
        return self.fds[path, way]

    def note(self, text: str) -> None:
        self.log.append(text)
        if os.environ.get("FSX_TRACE"):
            print(text, flush=True)

    # --- the model

    def place(self, *, inside: bool = False, align: int = 1) -> tuple[int, int]:
        """(offset from base, length)."""
        limit = len(self.data) if inside else SPAN
        start = self.random.randrange(max(1, limit)) // align * align
        length = self.random.choice([1, 7, 511, 512, 4095, 4096, 4097, 9000, 65_536, 131_073])
        length = min(length, limit - start) if inside else min(length, SPAN - start)
        return start, -(-length // align) * align

    def put(self, start: int, piece: bytes) -> None:
        if start > len(self.data):
            self.data.extend(bytes(start - len(self.data)))
        self.data[start : start + len(piece)] = piece

    def check(self, start: int, got: bytes, length: int, what: str) -> None:
        expected = bytes(self.data[start : start + length])
        if got != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
            )
            raise AssertionError(
                f"{what} at {start}+{length} (base {self.base}): {len(got)} bytes, {len(expected)} expected, first difference at {start + at}:"
                f" got {got[at : at + 16].hex()} expected {expected[at : at + 16].hex()}"
            )

    # --- operations

    def write(self) -> None:
        start, length = self.place()
        piece = self.random.randbytes(length)
        fd = self.fd(self.random.choice(["buffered", "buffered", "sync"]))
        self.note(f"write {start}+{length}")
        assert os.pwrite(fd, piece, self.base + start) == length
        self.put(start, piece)

    def write_direct(self) -> None:
        start, length = self.place(align=PAGE)
        piece = self.random.randbytes(length)
        fd = self.fd("direct")
        self.note(f"write_direct {start}+{length}")
        with mmap.mmap(-1, length) as buf:
            buf[:] = piece
            assert os.pwritev(fd, [buf], self.base + start) == length
        self.put(start, piece)

    def append(self) -> None:
        length = min(self.random.choice([1, 100, 4096, 10_000]), max(0, SPAN - len(self.data)))
        piece = self.random.randbytes(length)
        fd = self.fd("append")
        os.fstat(fd)  # the kernel knows the end; an append that another mount moved: test_coherence.py
        self.note(f"append {length} at {len(self.data)}")
        assert os.write(fd, piece) == length
        self.put(len(self.data), piece)

    def write_mapped(self) -> None:
        start, length = self.place(inside=True)
        if not length:
            return
        piece = self.random.randbytes(length)
        low = start // PAGE * PAGE
        fd = self.fd()
        self.note(f"write_mapped {start}+{length}")
        with mmap.mmap(fd, start + length - low, offset=self.base + low) as view:
            view[start - low :] = piece
            if self.random.random() < 0.3:
                view.flush()
        self.put(start, piece)

    def read(self) -> None:
        start, length = self.place()
        fd = self.fd()
        self.note(f"read {start}+{length}")
        self.check(start, os.pread(fd, length, self.base + start), length, "read")

    def read_direct(self) -> None:
        start, length = self.place(align=PAGE)
        fd = self.fd("direct")
        self.note(f"read_direct {start}+{length}")
        with mmap.mmap(-1, length) as buf:
            count = os.preadv(fd, [buf], self.base + start)
            self.check(start, buf[:count], length, "read_direct")

    def read_mapped(self) -> None:
        start, length = self.place(inside=True)
        if not length:
            return
        low = start // PAGE * PAGE
        fd = self.fd()
        self.note(f"read_mapped {start}+{length}")
        with mmap.mmap(fd, start + length - low, prot=mmap.PROT_READ, offset=self.base + low) as view:
            self.check(start, view[start - low :], length, "read_mapped")

    def truncate(self) -> None:
        size = self.random.randrange(SPAN)
        if self.random.random() < 0.5:
            fd = self.fd()
            self.note(f"ftruncate {size}")
            os.ftruncate(fd, self.base + size)
        else:
            path = self.random.choice(self.paths)
            self.note(f"truncate {path} {size}")
            os.truncate(path, self.base + size)
        self.data.extend(bytes(max(0, size - len(self.data))))
        del self.data[size:]

    def fallocate(self) -> None:
        mode = self.random.choice(
            [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]
        )
        start, length = self.place()
        if not length:
            return
        fd = self.fd()
        self.note(f"fallocate {mode} {start}+{length}")
        if _LIBC.fallocate64(fd, mode, self.base + start, length):
            raise OSError(ctypes.get_errno(), f"fallocate {mode}")
        end = start + length
        if not mode & KEEP_SIZE and end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(end, len(self.data))
            self.data[start:end] = bytes(max(0, end - start))

    def sync(self) -> None:
        fd = self.fd()
        self.note("fsync")
        os.fsync(fd)

    def size_is(self) -> None:
        path = self.random.choice(self.paths)
        self.note(f"stat {path}")
        size = os.stat(path).st_size
        assert size == self.base + len(self.data), (
            f"size {size - self.base}, expected {len(self.data)} (base {self.base})"
        )

    def seek(self) -> None:
        """What is reported as a hole must read as zeros; lseek(2)."""
        start = self.random.randrange(max(1, len(self.data)))
        if start >= len(self.data):
            return
        fd = self.fd()
        self.note(f"seek {start}")
        hole = os.lseek(fd, self.base + start, os.SEEK_HOLE) - self.base
        assert start <= hole <= len(self.data), f"hole {hole} of {len(self.data)}"
        try:
            data = os.lseek(fd, self.base + start, os.SEEK_DATA) - self.base
        except OSError:
            data = len(self.data)
        assert not any(self.data[start:data]), f"data said to begin at {data}, asked from {start}"

    def close(self) -> None:
        if self.fds:
            key = self.random.choice(sorted(self.fds))
            self.note(f"close {key}")
            os.close(self.fds.pop(key))

    def rename(self) -> None:
        path = self.paths[0]
        self.note("rename away and back")
        os.rename(path, path + "~")
        os.rename(path + "~", path)

    def run(self, count: int) -> None:
        weights: dict[Callable[[], None], int] = {
            self.write: 10, self.write_direct: 5, self.append: 4, self.write_mapped: 6, self.read: 10, self.read_direct: 5, self.read_mapped: 6,
            self.truncate: 4, self.fallocate: 6, self.sync: 2, self.size_is: 4, self.seek: 2, self.close: 3, self.rename: 1,
        }  # fmt: skip
        for number in range(count):
            try:
                self.random.choices(list(weights), list(weights.values()))[0]()
            except (AssertionError, OSError) as exc:
                lines = "\n".join(self.log)
                raise SystemExit(f"operation {number}: {type(exc).__name__} {exc}\nlast operations:\n{lines}") from exc
        for path in self.paths:
            with open(path, "rb", buffering=0) as f:
                f.seek(self.base)
                self.check(0, f.read(SPAN + 1), SPAN + 1, f"at the end, {path}")
        for fd in self.fds.values():
            os.close(fd)


def main() -> None:
    faulthandler.enable()
    Exerciser(int(sys.argv[1]), sys.argv[3:]).run(int(sys.argv[2]))


if __name__ == "__main__":
    main()
