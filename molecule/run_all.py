"""`make molecule-all`: runs every scenario and writes what came out, with date and versions, to the file named. Exit 1 when one failed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
# The order in which they were written: what a later one needs, an earlier one has shown.
FIRST = (
    "default",
    "single",
    "ha3",
    "powercycle",
    "add",
    "dirty-disks",
    "interrupted",
    "purge",
    "restart",
    "remove",
    "replace-disk",
    "upgrade",
)


def scenarios() -> list[str]:
    """All of them, the known ones first."""
    found = {p.parent.name for p in (TREE / "molecule").glob("*/molecule.yml")}
    return [s for s in FIRST if s in found] + sorted(found.difference(FIRST))


def first_line(text: str) -> str:
    """What a heading says of a scenario: the comment at the top of its molecule.yml."""
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")


def versions() -> list[str]:
    """What was tested with what."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=TREE, capture_output=True, text=True, check=True
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain"], cwd=TREE, capture_output=True, text=True, check=True
    ).stdout.strip()
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    packages = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("ansible-core", "molecule"))
    return [
        f"- tree: {commit}{' with changes that are not committed' if dirty else ''}",
        f"- on: {release}, Linux {platform.release()}, Python {platform.python_version()}",
        f"- with: {packages}",
    ]


def main() -> int:
    """Run, write, tell."""
    rows, failed = [], 0
    start = datetime.datetime.now(datetime.UTC)
    for name in scenarios():
        began = time.monotonic()
        print(f"== {name}", flush=True)
        done = subprocess.run(["molecule", "test", "--scenario-name", name], cwd=TREE, check=False)
        if done.returncode:
            failed += 1
            subprocess.run([sys.executable, str(TREE / "molecule/lab/lab.py"), "destroy", f"mol-{name}"], check=True)
        result = "passed" if done.returncode == 0 else f"failed ({done.returncode})"
        heading = first_line((TREE / "molecule" / name / "molecule.yml").read_text())
        rows.append(f"| {name} | {result} | {time.monotonic() - began:.0f} s | {heading} |")
        print(rows[-1], flush=True)
    lines = [
        "# Molecule: the last run of all scenarios",
        "",
        "Written by `make molecule-all`, never by hand.",
        "",
        f"- begun: {start:%Y-%m-%d %H:%M} UTC",
        *versions(),
        "",
        "| scenario | result | took | what it is |",
        "| --- | --- | --- | --- |",
        *rows,
    ]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
