"""A client that never stops: `load.py DIRECTORY REPORT`. Writes records to files (every one flushed), reads earlier ones back and compares them,
until SIGTERM; then writes what it saw to REPORT as JSON: records written and read, errors, and the longest a single operation took, in seconds."""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

RECORD = 16384
FILES = 4
RECORDS_A_FILE = 512


def record(file: int, place: int, generation: int) -> bytes:
    """The bytes of a record: told by where and when it was written."""
    seed = hashlib.sha256(f"{file}:{place}:{generation}".encode()).digest()
    return (seed * (RECORD // len(seed)))[:RECORD]


def main() -> None:
    """Write, read, report."""
    directory, report = Path(sys.argv[1]), Path(sys.argv[2])
    stop = False

    def end(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    directory.mkdir(exist_ok=True)
    random.seed(1)
    paths = [directory / f"load-{n}" for n in range(FILES)]
    written: dict[tuple[int, int], int] = {}
    counts = {"writes": 0, "reads": 0}
    errors: list[str] = []
    longest = 0.0
    while not stop:
        file, place = random.randrange(FILES), random.randrange(RECORDS_A_FILE)
        start = time.monotonic()
        try:
            if random.random() < 0.6 or not written:
                generation = written.get((file, place), 0) + 1
                fd = os.open(paths[file], os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    os.pwrite(fd, record(file, place, generation), place * RECORD)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                written[file, place] = generation
                counts["writes"] += 1
            else:
                file, place = random.choice(list(written))
                fd = os.open(paths[file], os.O_RDONLY)
                try:
                    data = os.pread(fd, RECORD, place * RECORD)
                finally:
                    os.close(fd)
                if data != record(file, place, written[file, place]):
                    errors.append(f"{paths[file]} at {place}: not what was written")
                counts["reads"] += 1
        except OSError as exc:
            errors.append(f"{paths[file]} at {place}: {exc}")
            written.pop((file, place), None)
        longest = max(longest, time.monotonic() - start)
    report.write_text(
        json.dumps({**counts, "errors": errors[:20], "error_count": len(errors), "longest_s": round(longest, 2)})
    )


main()
