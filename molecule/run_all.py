"""`make molecule-all`: runs every scenario, or those of ONLY, and writes what came out to the file named. Exit 1 when one failed.

    python molecule/run_all.py [--keep] RESULTS [SCENARIO…]      # --keep: the hosts of a scenario that fails stay, to be looked at

Each line of the results has the date, the commit and the versions of its own run. Scenarios that are not run keep the line they have, so a file of
several runs says of each what was tested; one that never ran says so. The file is written after each scenario: a run that is stopped loses nothing.
"""

from __future__ import annotations

import argparse
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
HEADER = """# Molecule: the last run of every scenario

Written by `molecule/run_all.py` (`make molecule-all`), never by hand, but for sections that follow the table. A run is the whole sequence of the
scenario: hosts made, `--check` on them with the file trees compared, deployed, deployed again with nothing changed, looked at, what the scenario is about,
looked at again.

| scenario | result | took | begun (UTC) | tree | with | what it is |
| --- | --- | --- | --- | --- | --- | --- |
"""


def scenarios() -> list[str]:
    """All of them, the known ones first."""
    found = {p.parent.name for p in (TREE / "molecule").glob("*/molecule.yml")}
    return [s for s in FIRST if s in found] + sorted(found.difference(FIRST))


def first_line(text: str) -> str:
    """What a heading says of a scenario: the comment at the top of its molecule.yml."""
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), "")


def rows_of(text: str) -> dict[str, str]:
    """Scenario → its line in an earlier file of results."""
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    return {name: line for name, line in cells.items() if name != "scenario" and not name.startswith("---")}


def notes_of(text: str) -> str:
    """Sections after the table of an earlier file of results, where somebody has written what was run in another way."""
    start = text.find("\n## ")
    return text[start:] if start >= 0 else ""


def page(rows: dict[str, str], names: list[str], notes: str = "") -> str:
    """The file of results: a line for each scenario of NAMES, in that order, then the notes; lines of scenarios that are gone are left out."""
    never = {name: f"| {name} | not run | | | | | |" for name in names}
    return HEADER + "".join(f"{rows.get(name, never[name])}\n" for name in names) + notes


def tree() -> str:
    """The commit, and whether anything besides the results differs from it."""
    commit = _git("rev-parse", "--short=12", "HEAD").strip()
    changed = [
        line for line in _git("status", "--porcelain").splitlines() if not line.endswith(" docs/molecule-results.md")
    ]
    return f"{commit}, changed: {len(changed)} files" if changed else commit


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=TREE, capture_output=True, text=True, check=True).stdout


def run(name: str, keep: bool) -> tuple[bool, str]:
    """Run a scenario: whether it passed, and its line. The hosts are removed afterwards, but those of one that failed if `keep`."""
    commit, began, start = tree(), datetime.datetime.now(datetime.UTC), time.monotonic()
    print(f"== {name}", flush=True)
    subprocess.run(["molecule", "reset", "--scenario-name", name], cwd=TREE, check=True)
    _destroy(name)
    done = subprocess.run(["molecule", "test", "--destroy", "never", "--scenario-name", name], cwd=TREE, check=False)
    took = time.monotonic() - start
    if done.returncode == 0 or not keep:
        _destroy(name)
    result = "passed" if done.returncode == 0 else f"failed ({done.returncode})"
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("ansible-core", "molecule"))
    system = f"{platform.freedesktop_os_release().get('PRETTY_NAME', '')}, Linux {platform.release()}"
    heading = first_line((TREE / "molecule" / name / "molecule.yml").read_text())
    cells = [name, result, f"{took:.0f} s", f"{began:%Y-%m-%d %H:%M}", commit, f"{versions}, {system}", heading]
    return done.returncode == 0, f"| {' | '.join(cells)} |"


def _destroy(name: str) -> None:
    subprocess.run([sys.executable, str(TREE / "molecule/lab/lab.py"), "destroy", f"mol-{name}"], check=True)


def main() -> int:
    """Run, write, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="the hosts of a scenario that fails stay")
    parser.add_argument("results", type=Path, help="the file to write")
    parser.add_argument("only", nargs="*", metavar="SCENARIO", help="none: all")
    args = parser.parse_args()
    names = scenarios()
    if unknown := sorted(set(args.only).difference(names)):
        print(f"no scenarios: {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    failed = False
    for name in args.only or names:
        passed, line = run(name, args.keep)
        failed |= not passed
        text = args.results.read_text() if args.results.exists() else ""
        args.results.write_text(page({**rows_of(text), name: line}, names, notes_of(text)))
        print(line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
