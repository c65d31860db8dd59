"""Does faults to the processes of a cluster, and undoes them. Partitions are rules of nftables in the network name space of the campaign."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.chaos.schedule import Fault
from tests.helpers.cluster import Cluster

RESTART_S = 1.0  # what ended by itself is started again after this, as systemd would
FLIPS = 8
TABLE = "chaos"


def _nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, check=True, capture_output=True, text=True, timeout=30)


class Nemesis:
    """Attributes: log: what was done, for people."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.log: list[str] = []
        self._rng = random.Random(f"{seed} nemesis")
        self._began = time.monotonic()
        self._active: dict[str, Fault] = {}  # target -> fault
        self._ended: dict[str, float] = {}

    def _say(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:6.1f} s {text}")

    def ready(self) -> None:
        """Times of the log count from now."""
        self._began = time.monotonic()

    def begin(self, fault: Fault) -> None:
        """Do it."""
        self._say(f"{fault.kind} {fault.target}")
        self._active[fault.target] = fault
        proc = self.cluster.procs.get(fault.target)
        if fault.kind == "corrupt":
            del self._active[fault.target]
            self._corrupt(self.cluster.cs_dirs[fault.target])
        elif fault.kind == "full":
            self._limit(1)
        elif proc is not None and fault.kind == "kill":
            proc.kill()
        elif proc is not None and fault.kind == "stop":
            proc.signal(signal.SIGSTOP)
        elif proc is not None and fault.kind == "restart":
            proc.signal(signal.SIGTERM)
        else:
            self._partition()

    def end(self, fault: Fault) -> None:
        """Undo it. What was killed is started again by `care`."""
        if self._active.pop(fault.target, None) is None:
            return
        self._say(f"end of {fault.kind} {fault.target}")
        if fault.kind == "full":
            self._limit(0)
        elif fault.kind == "stop":
            self.cluster.procs[fault.target].signal(signal.SIGCONT)
        elif fault.kind in ("cut", "deaf"):
            self._partition()

    def care(self) -> None:
        """Start again what does not run and is not meant to be down."""
        for name, proc in self.cluster.procs.items():
            if proc.running or name in self._active or name.startswith("mount"):
                self._ended.pop(name, None)
            elif time.monotonic() - self._ended.setdefault(name, time.monotonic()) >= RESTART_S:
                self._say(f"start {name}")
                proc.start()
                del self._ended[name]

    def heal(self) -> None:
        """Everything is undone, everything runs."""
        for fault in list(self._active.values()):
            self.end(fault)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not all(p.running for p in self.cluster.procs.values()):
            self.care()
            time.sleep(0.2)
        self._limit(0, check=True)

    # --- kinds ------------------------------------------------------------------------------------------------------

    def _limit(self, value: int, *, check: bool = False) -> None:
        """The capacity of the cluster, below what is used: writers of new chunks wait."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = self.cluster.run(
                "set-config", f"mds.alloc.capacity_limit={value}", check=check, timeout_s=60 if check else 5
            )
            self._say(f"capacity limit {value}: exit {done.returncode}")

    def _partition(self) -> None:
        lines = []
        for fault in self._active.values():
            if fault.kind in ("cut", "deaf"):
                port = self._port(fault.target)
                lines += [f"tcp dport {port} drop"] + ([f"tcp sport {port} drop"] if fault.kind == "cut" else [])
        rules = "\n".join(f"    {line}" for line in lines)
        _nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        if rules:
            _nft(f"table inet {TABLE} {{\n  chain out {{\n    type filter hook output priority 0;\n{rules}\n  }}\n}}\n")

    def _port(self, name: str) -> int:
        rows = json.loads((self.cluster.cs_dirs[name] / "cs.json").read_bytes())
        return int(str(rows["address"]).rpartition(":")[2])

    def _corrupt(self, repo: Path) -> None:
        """Flip bytes of chunk files on the disk."""
        files = sorted(p for p in (repo / "chunks").rglob("*") if p.is_file() and p.stat().st_size)
        for file in self._rng.sample(files, min(2, len(files))):
            size = file.stat().st_size
            fd = os.open(file, os.O_RDWR)
            try:
                for _ in range(FLIPS):
                    at = self._rng.randrange(size)
                    old = os.pread(fd, 1, at)
                    os.pwrite(fd, bytes([old[0] ^ 0xFF]) if old else b"\x55", at)
                os.fsync(fd)
            finally:
                os.close(fd)
            self._say(f"damaged {file.relative_to(repo)}, {size} bytes")
