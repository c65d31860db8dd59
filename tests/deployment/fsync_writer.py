"""Write files with fsync for as long as it works, and note each on another file system once its fsync has returned.

fsync_writer.py write DIR NOTES      until killed or refused; a line "NAME SHA256" in NOTES is a promise of the cluster
fsync_writer.py verify DIR NOTES     every noted file is there with its contents
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

SIZES = (1, 100, 4096, 5000, 70_000, 700_000)


def put(directory: Path, name: str, data: bytes) -> None:
    """A new file, and its name, on stable storage."""
    with (directory / name).open("xb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(directory: Path, notes: Path) -> None:
    """Until somebody ends it."""
    directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    with notes.open("a", encoding="ascii") as noted:
        number = 0
        while True:
            data = rng.randbytes(rng.choice(SIZES))
            name = f"{seed}-{number}"
            put(directory, name, data)
            noted.write(f"{name} {hashlib.sha256(data).hexdigest()}\n")
            noted.flush()
            number += 1


def verify(directory: Path, notes: Path) -> int:
    """Exit code: 0 when nothing noted is lost or different."""
    lines = [line.split() for line in notes.read_text(encoding="ascii").splitlines()]
    bad = []
    for name, digest in lines:
        try:
            found = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        except OSError as exc:
            bad.append(f"{name}: {exc.strerror}")
            continue
        if found != digest:
            bad.append(f"{name}: other contents")
    print(f"{len(lines)} fsynced files, {len(bad)} lost or different")
    for line in bad[:20]:
        print(line)
    return 1 if bad or not lines else 0


if __name__ == "__main__":
    verb, place, record = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if verb == "write":
        write(place, record)
    sys.exit(verify(place, record))
