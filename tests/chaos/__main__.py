"""Command line of the campaign."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import Campaign, isolate
from tests.chaos.schedule import KINDS
from tests.helpers.cluster import ROOT

RESULT = ROOT / "build/chaos/result.json"


def main() -> int:
    """0: every promise was kept; 1: one was broken; 3: something could not be decided."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", default=",".join(KINDS), help="faults to choose from")
    parser.add_argument("--mds", type=int, default=1, help="metadata servers: 1, 3 or 5")
    parser.add_argument("--keep", action="store_true", help="keep the directory also when all is well")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    isolate_args = ["--seed", str(seed)] if args.seed is None else []
    sys.argv += isolate_args
    isolate()
    base = Path(tempfile.mkdtemp(prefix="vstor-chaos-"))
    print(f"chaos: seed {seed}, {args.seconds:.0f} s of faults, in {base}", flush=True)
    campaign = Campaign(base, seed, args.seconds, tuple(args.kinds.split(",")), args.mds)
    began = time.time()
    try:
        verdict = campaign.run()
    except AssertionError as exc:  # the cluster did not come up or not become well
        verdict = campaign.verdict
        verdict.problems.append(str(exc))
    print("\n".join(campaign.nemesis.log))
    for text in verdict.problems:
        print(f"BROKEN: {text}")
    for text in verdict.undecided:
        print(f"undecided: {text}")
    print(
        f"chaos: seed {seed}: {verdict.operations} operations on registers, {verdict.files} files, {verdict.errors} errors, longest operation "
        f"{verdict.stall_s:.1f} s, {len(verdict.problems)} promises broken, {time.time() - began:.0f} s"
    )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)), "seed": seed, "seconds": args.seconds, "kinds": args.kinds, "mds": args.mds,
        "operations": verdict.operations, "files": verdict.files, "errors": verdict.errors, "longest_operation_s": round(verdict.stall_s, 1),
        "broken": verdict.problems, "undecided": verdict.undecided, "faults": campaign.nemesis.log,
    }, indent=1) + "\n")  # fmt: skip
    if not verdict.problems and not args.keep:
        shutil.rmtree(base)
    return 1 if verdict.problems else 3 if verdict.undecided else 0


if __name__ == "__main__":
    raise SystemExit(main())
