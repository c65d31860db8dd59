"""make simulate: histories of seeds, for a time or one by one. Exit 1 when a promise was broken; the seed and a trace are printed."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus" / "seeds"
TRACE_LINES = 60


def run_quietly(seed: int) -> tuple[int, list[str], list[str], float]:
    """(seed, problems, trace, simulated seconds)."""
    from tests.simulate.scenario import run_seed

    logging.disable(logging.CRITICAL)
    world, problems = run_seed(seed)
    lines: list[tuple[float, str]] = []
    if problems:
        lines = [(float(line.split()[0]), line) for line in world.trace]
        lines += [(op.call, str(op)) for op in world.history.ops]
        lines += [
            (loss.call, f"{loss.call:9.4f} may lose {loss.key} -> {loss.values}: {loss.why}")
            for loss in world.history.losses
        ]
        lines.sort(key=lambda entry: entry[0])
    return seed, problems, [text for _, text in lines], world.now


def corpus() -> list[int]:
    """Seeds of histories that once went wrong."""
    rows = (line.split("#")[0].strip() for line in CORPUS.read_text().splitlines())
    return [int(row) for row in rows if row]


def report(seed: int, problems: list[str], trace: list[str], *, everything: bool) -> None:
    print(f"seed {seed} breaks a promise; again: make simulate SEED={seed}")
    shown = trace if everything else trace[-TRACE_LINES:]
    if len(shown) < len(trace):
        print(f"  ... {len(trace) - len(shown)} lines before, see SEED={seed}")
    for line in shown:
        print(f"  {line}")
    for problem in problems:
        print(f"  {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", default=[], help="only this history, with its whole trace")
    parser.add_argument("--seconds", type=float, default=30, help="run fresh seeds for so long")
    parser.add_argument("--from", dest="start", type=int, help="first seed (default: a random one, which is printed)")
    parser.add_argument("--count", type=int, default=0, help="run so many seeds instead, without the corpus")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    args = parser.parse_args()
    if args.seed:
        results = [run_quietly(seed) for seed in args.seed]
        for seed, problems, trace, _ in results:
            if problems:
                report(seed, problems, trace, everything=True)
            else:
                print(f"seed {seed}: every promise is kept")
        return 1 if any(problems for _, problems, _, _ in results) else 0
    if args.count:
        return some(range(args.start or 1, (args.start or 1) + args.count), args.jobs)
    start = args.start if args.start is not None else secrets.randbelow(1 << 40)
    print(f"simulate: {len(corpus())} seeds of the corpus, then from seed {start} for {args.seconds:.0f} s", flush=True)
    return fresh(start, args.seconds, args.jobs, keep_going=args.keep_going)


def some(seeds: range, jobs: int) -> int:
    """These histories, up to the first that fails."""
    with ProcessPoolExecutor(jobs) as pool:
        for seed, problems, trace, _ in pool.map(run_quietly, seeds, chunksize=4):
            if problems:
                report(seed, problems, trace, everything=False)
                pool.shutdown(cancel_futures=True)
                return 1
    print(f"simulate: {len(seeds)} histories, every promise is kept")
    return 0


def fresh(start: int, seconds: float, jobs: int, *, keep_going: bool) -> int:
    began = time.monotonic()
    count, simulated_s, failed = 0, 0.0, 0
    todo = corpus()
    next_seed = start
    with ProcessPoolExecutor(jobs) as pool:
        while todo or time.monotonic() - began < seconds:
            batch = todo or list(range(next_seed, next_seed + 16 * jobs))
            if not todo:
                next_seed += len(batch)
            todo = []
            for seed, problems, trace, now_s in pool.map(run_quietly, batch, chunksize=4):
                count += 1
                simulated_s += now_s
                if problems:
                    failed += 1
                    report(seed, problems, trace, everything=False)
            if failed and not keep_going:
                break
    took_s = time.monotonic() - began
    print(
        f"simulate: {count} histories ({simulated_s / 3600:.1f} h of simulated time) in {took_s:.0f} s, "
        f"{count / took_s * 60:.0f} a minute, {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of names is part of a history
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulate", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
