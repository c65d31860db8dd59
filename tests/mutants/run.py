"""make mutants: the product broken on purpose, one line at a time; a test must notice.

Each *.patch here begins with a head: `Promise:` R1 to R16, `Breaks:` in words, `Test:` the command that must fail (at the root of the copy, `python` is
this interpreter), `Needs: native` when the C code has to be built, `Quick: yes` when CI runs it. The patch is applied to a copy of the tree (what git
would commit, with the engine as built); the same command must succeed in a copy without it.
Exit 1: a mutant was not noticed, a patch does not apply, a command fails without any mutant.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEST_S_MAX = 600
PROMISES = [f"R{n}" for n in range(1, 17)]


@dataclass
class Mutant:
    """One patch and its head."""

    path: Path
    head: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def native(self) -> bool:
        return self.head.get("Needs") == "native"

    @property
    def quick(self) -> bool:
        return self.head.get("Quick") == "yes"


def read(path: Path) -> Mutant:
    """Raises SystemExit for a head that is not complete."""
    mutant = Mutant(path)
    for line in path.read_text().splitlines():
        if line.startswith("diff "):
            break
        key, _, value = line.partition(": ")
        if value:
            mutant.head[key] = value
    missing = [key for key in ("Promise", "Breaks", "Test") if key not in mutant.head]
    if missing or mutant.head["Promise"] not in PROMISES:
        raise SystemExit(f"mutants: {path.name}: head lacks {', '.join(missing) or 'a promise R1 to R16'}")
    return mutant


def copy_tree(target: Path) -> None:
    """What git knows or would add, and the built engine, so that only mutants of C are compiled."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    built = [p.relative_to(ROOT) for p in (ROOT / "daemons/vstor").glob("_native*.so")]
    built += [p.relative_to(ROOT) for p in (ROOT / "native/build").rglob("*") if p.is_file()]
    for name in [*(Path(os.fsdecode(n)) for n in listed.stdout.split(b"\0") if n), *built]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_test(tree: Path, mutant: Mutant, log: Path) -> int:
    """Exit status of its command in the tree. -1: it took too long."""
    argv = shlex.split(mutant.head["Test"])
    if argv[0] == "python":
        argv[0] = sys.executable
    env = os.environ | {"PYTHONPATH": str(tree / "daemons"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("ab") as out:
        try:
            return subprocess.run(
                argv, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=TEST_S_MAX
            ).returncode
        except subprocess.TimeoutExpired:
            return -1


def build(tree: Path, log: Path) -> bool:
    with log.open("ab") as out:
        argv = ["make", "-s", "-C", "native", f"PY={sys.executable}", "ext"]
        return subprocess.run(argv, cwd=tree, stdout=out, stderr=out).returncode == 0


def noticed(tree: Path, mutant: Mutant, log: Path) -> str:
    """ "" when its test fails as it must; else what is wrong."""
    applied = subprocess.run(["git", "apply", str(mutant.path)], cwd=tree, capture_output=True, text=True)
    if applied.returncode:
        return f"does not apply: {applied.stderr.strip().splitlines()[0]}"
    if mutant.native and not build(tree, log):
        return "does not compile"
    status = run_test(tree, mutant, log)
    # pytest says 1 for failed tests and more for its own trouble; make says 2.
    expected = (1, -1, 2) if mutant.head["Test"].startswith("make") else (1, -1)
    if status == 0:
        return "was not noticed"
    return "" if status in expected else f"its command ended with {status}, which is no failed test"


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="only those marked Quick")
    args = parser.parse_args()
    mutants = [read(path) for path in sorted(HERE.glob("*.patch"))]
    unknown = set(args.names) - {m.name for m in mutants}
    if unknown:
        raise SystemExit(f"mutants: no patch {', '.join(sorted(unknown))}")
    lacking = [p for p in PROMISES if p not in {m.head["Promise"] for m in mutants}]
    problems = [f"{promise} has no mutant" for promise in lacking]
    chosen = [m for m in mutants if (not args.names or m.name in args.names) and (m.quick or not args.quick)]
    with tempfile.TemporaryDirectory(prefix="vstor-mutants-") as scratch:
        clean = Path(scratch) / "clean"
        copy_tree(clean)
        log = Path(scratch) / "log"
        healthy: dict[str, bool] = {}
        for mutant in chosen:
            began = time.monotonic()
            command = mutant.head["Test"]
            if command not in healthy:
                healthy[command] = run_test(clean, mutant, log) == 0
            if not healthy[command]:
                verdict = f"its command fails without it: {command}"
            else:
                tree = Path(scratch) / "mutant"
                shutil.copytree(clean, tree)
                verdict = noticed(tree, mutant, log)
                shutil.rmtree(tree)
            print(
                f"{mutant.head['Promise']:>3} {mutant.name:<40} {time.monotonic() - began:4.0f} s  {verdict or 'noticed'}",
                flush=True,
            )
            if verdict:
                problems.append(f"{mutant.name}: {verdict}")
                print("\n".join(f"      {line}" for line in log.read_text(errors="replace").splitlines()[-12:]))
            log.write_bytes(b"")
    for problem in problems:
        print(f"mutants: {problem}")
    print(f"mutants: {len(chosen)} tried, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
