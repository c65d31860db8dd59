"""I/O on a mount from outside of pytest, each in a process that can be given up: see mountchild.py for why."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.cluster import wait_for

CHILD = Path(__file__).with_name("mountchild.py")
PATIENCE_S = 180.0  # a bound for a broken product or a very busy machine, not a measurement
KILLED_S = 5.0  # a killed process has gone by then, or hangs in the kernel until its mount ends


class Hangs(AssertionError):
    """A process on the mount did not end."""


def give_up(proc: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """kill -9, without waiting for one that hangs in the kernel."""
    proc.kill()
    try:
        proc.wait(KILLED_S)
    except subprocess.TimeoutExpired:
        print(f"process {proc.pid} is left to the end of its mount")


def start(command: str, path: Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """A command of mountchild.py that is to wait; its output and errors by pipes."""
    argv = [sys.executable, str(CHILD), command, str(path)]
    return subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(command: str, path: Path, data: bytes = b"", timeout_s: float = PATIENCE_S) -> bytes:
    """A command of mountchild.py; its output. Raises Hangs; AssertionError when it fails."""
    proc = start(command, path, subprocess.PIPE)
    try:
        out, err = proc.communicate(data, timeout_s)
    except subprocess.TimeoutExpired:
        give_up(proc)
        raise Hangs(f"{command} {path} hangs") from None
    assert proc.returncode == 0, f"{command} {path}: {err.decode(errors='replace')}"
    return out


def put(path: Path, data: bytes) -> None:
    """A file with this content, synced."""
    run("put", path, data)


def update(path: Path, data: bytes) -> None:
    """The beginning of a file written over in place, synced."""
    run("update", path, data)


def get(path: Path) -> bytes:
    """The content of a file."""
    return run("get", path)


def names(path: Path) -> list[str]:
    """Names in a directory, sorted."""
    return [name.decode() for name in run("names", path).split(b"\0")[:-1]]


def space(path: Path) -> list[str]:
    """Inode number and mode of a mount point, size of its file system."""
    return run("space", path).decode().split()


def remove(path: Path) -> None:
    run("remove", path)


class Loader:
    """Works on a mount without pause and checks what it reads, in a process of its own (mountchild.load)."""

    def __init__(self, directory: Path, progress: Path) -> None:
        """progress: a file that is not on the mount."""
        self._progress = progress
        with progress.open("wb") as out:
            self._proc = subprocess.Popen(
                [sys.executable, str(CHILD), "load", str(directory)], stdin=subprocess.DEVNULL, stdout=out
            )

    def _lines(self) -> list[str]:
        return self._progress.read_text().split("\n")[:-1]  # the last one may be half written

    @property
    def done(self) -> int:
        """Finished rounds."""
        return sum(line.startswith("E") for line in self._lines())

    @property
    def problems(self) -> list[str]:
        """Every error and every wrong byte; must stay empty."""
        found = [line.split(" ", 2)[2] for line in self._lines() if line.startswith("E") and line.count(" ") > 1]
        return found if self._proc.poll() in (None, 0) else [*found, f"the loader ended with {self._proc.returncode}"]

    def stall_s(self, since: float) -> float:
        """The longest round that ended after `since` (time.monotonic), the one under way included."""
        longest, began = 0.0, None
        for line in self._lines():
            at = float(line.split(" ", 2)[1])
            if line.startswith("B"):
                began = at
            elif began is not None:
                longest = max(longest, at - began if at > since else 0.0)
                began = None
        return longest if began is None else max(longest, time.monotonic() - began)

    def wait_rounds(self, more: int, timeout_s: float = PATIENCE_S) -> None:
        goal = self.done + more
        wait_for(f"{more} more rounds; {self.problems}", lambda: self.done >= goal or self.problems, timeout_s)
        assert not self.problems, self.problems

    def end(self) -> None:
        """Whatever it found; one that hangs is left to the end of its mount."""
        self._proc.terminate()
        try:
            self._proc.wait(KILLED_S)
        except subprocess.TimeoutExpired:
            give_up(self._proc)

    def stop(self) -> None:
        """Ends with the round under way. Raises Hangs; AssertionError for what it found."""
        self._proc.send_signal(signal.SIGTERM)
        try:
            self._proc.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            give_up(self._proc)
            raise Hangs("the loader hangs") from None
        assert not self.problems, self.problems
