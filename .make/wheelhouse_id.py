"""Print one hash of all wheels in a directory: names and contents of their members, not their time stamps.

Two builds of one tree give one hash, so a rebuilt but unchanged program is not deployed again.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path


def wheelhouse_id(directory: Path) -> str:
    """Hash of the wheels in `directory` (at least one)."""
    wheels = sorted(directory.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"no wheel in {directory}")
    digest = hashlib.sha256()
    for wheel in wheels:
        digest.update(wheel.name.encode())
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                digest.update(b"\0" + name.encode() + b"\0" + hashlib.sha256(archive.read(name)).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    print(wheelhouse_id(Path(sys.argv[1])))
