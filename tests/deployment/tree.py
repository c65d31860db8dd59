"""Print what is in file trees, one line an entry: type, mode, owner, time of change, hash or target, path.

Two outputs that are the same mean that nothing was written in between. Usage: tree.py [--except PATH]... PATH...
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

HASHED_BYTES_MAX = 1 << 20  # larger files (chunks, 64 MiB each) by size and time only


def describe(path: Path) -> str:
    """The line of one entry."""
    entry = path.lstat()
    if stat.S_ISLNK(entry.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(entry.st_mode) and entry.st_size <= HASHED_BYTES_MAX:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif stat.S_ISREG(entry.st_mode):
        content = f"{entry.st_size} bytes"
    else:
        content = "-"
    # A directory's time changes when a name in it is made and removed again, which is writing too.
    return f"{stat.filemode(entry.st_mode)} {entry.st_uid}:{entry.st_gid} {entry.st_mtime_ns} {content} {path}"


def walk(top: Path, left_out: set[Path]) -> Iterator[Path]:
    """`top` and everything below it on its file system, in order."""
    if top in left_out or not os.path.lexists(top):
        return
    yield top
    if top.is_dir() and not top.is_symlink() and top.stat().st_dev == top.parent.stat().st_dev:
        for name in sorted(os.listdir(top)):
            yield from walk(top / name, left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--except", action="append", default=[], type=Path, dest="left_out")
    parser.add_argument("paths", nargs="+", type=Path)
    args = parser.parse_args()
    for top in args.paths:
        for path in walk(top, set(args.left_out)):
            print(describe(path))


if __name__ == "__main__":
    main()
