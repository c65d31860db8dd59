"""Running other programs, waiting, processes by id."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vstorlab.spec import LabError

POLL_S = 0.1


def run(
    *argv: str | Path, data: str | None = None, env: dict[str, str] | None = None, timeout_s: float | None = 120
) -> str:
    """Standard output of a command. Raises LabError with its last words when it fails."""
    args = [str(a) for a in argv]
    try:
        done = subprocess.run(args, input=data, capture_output=True, text=True, env=env, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise LabError(f"{args[0]} is not installed: run make setup") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(args)} does not end within {timeout_s} s") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise LabError(f"{' '.join(args)}: {words[-1] if words else f'exit {done.returncode}'}")
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition that nothing tells about. Raises LabError naming `what`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def kill(pid: int, number: int) -> None:
    """Signal a process; one that has ended is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_program(pid: int, words: Sequence[str]) -> bool:
    """Process `pid` runs with these words in its command line: guards against a number used anew."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(w.encode() in argv for w in words)


def read_pid(file: Path) -> int | None:
    """The process id that a file holds."""
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
