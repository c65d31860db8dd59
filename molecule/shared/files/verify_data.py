"""Files with their checksum as name: `write DIRECTORY HOST` adds some, flushed; `check DIRECTORY` reads all. Run on clients."""

import hashlib
import os
import sys
from pathlib import Path

SIZES = (0, 1, 4096, 1_000_003, 9_000_000)


def main() -> None:
    """Exit 1 with the name of a file that is not what was written."""
    action, directory = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        directory.mkdir(exist_ok=True)
        for size in SIZES:
            data = os.urandom(size)
            path = directory / f"{sys.argv[3]}-{hashlib.sha256(data).hexdigest()}"
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    for path in found:
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name.rpartition("-")[2]:
            sys.exit(f"{path} is not what was written")
    print(len(found), "files are as written")


main()
