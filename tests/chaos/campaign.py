"""One campaign: a cluster, workers, faults, then peace, and the verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.nemesis import Nemesis
from tests.chaos.schedule import plan
from tests.chaos.verdict import Line, Verdict, count, judge_files, judge_registers
from tests.chaos.worker import REGISTERS, STRIDE
from tests.helpers.cluster import ROOT, Cluster

SERVERS = 5
CALM_S = 3.0  # workers go on so long after the last fault
HEAL_S = 240.0  # bounds for a broken product, not measurements
END_S = 120.0
SHORT = ("degraded", "urgent", "blocked", "pending", "offline")
CONFIG = {"mds.wd.offline_tout": 20_000, "cs.scrub.interval": 60_000, "cs.scrub.rate": 100}


class Campaign:
    """Attributes: verdict, nemesis (its log), problems of the run itself go into the verdict too."""

    def __init__(self, base: Path, seed: int, seconds: float, kinds: tuple[str, ...], mds: int = 1) -> None:
        self.base, self.seed, self.seconds, self.kinds, self.mds = base, seed, seconds, kinds, mds
        self.cluster = Cluster(base)
        self.verdict = Verdict()
        self.nemesis = Nemesis(self.cluster, seed)
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> Verdict:
        """All of it. Ends every process it started."""
        try:
            self._prepare()
            self._trouble()
            self._peace()
            self._judge()
        finally:
            for worker in self._workers.values():
                worker.kill()
                worker.wait()
            if self.verdict.problems or sys.exc_info()[0] is not None:
                self.cluster.kill_all()  # its logs are what is wanted now
            else:
                self.cluster.destroy()
        return self.verdict

    def _prepare(self) -> None:
        self.cluster.make(SERVERS)
        for _ in range(self.mds - 1):
            self.cluster.add_mds()
        self.cluster.run("set-attr", "-p", "/", f"chunk-size={STRIDE}")
        self.cluster.run("set-config", *(f"{name}={value}" for name, value in CONFIG.items()))
        for label in ("a", "b"):
            self.cluster.mount(label)
        first = self.cluster.mounts["a"]
        (first / "kept").mkdir()
        with (first / "registers").open("xb") as file:
            file.truncate(REGISTERS * STRIDE)
        for number, label in enumerate("abab", 1):
            self._start(f"register-{number}", "register", self.cluster.mounts[label], str(number))
        for label in "ab":
            self._start(f"keeper-{label}", "keeper", self.cluster.mounts[label] / "kept", label)

    def _start(self, name: str, role: str, directory: Path, ident: str) -> None:
        argv = [sys.executable, "-m", "tests.chaos.worker", role, str(directory), str(self.base / f"{name}.jsonl"),
                str(self.base / "stop"), str(self.seed), ident]  # fmt: skip
        with (self.base / f"{name}.out").open("wb") as out:
            self._workers[name] = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def _trouble(self) -> None:
        """The faults of the schedule."""
        faults = plan(self.seed, self.seconds, list(self.cluster.procs), self.kinds)
        todo = sorted([(f.at_s, 1, f) for f in faults] + [(f.until_s, 0, f) for f in faults], key=lambda item: item[:2])
        self.nemesis.ready()
        began = time.monotonic()
        while (at := time.monotonic() - began) < self.seconds:
            while todo and todo[0][0] <= at:
                _, begins, fault = todo.pop(0)
                (self.nemesis.begin if begins else self.nemesis.end)(fault)
            self.nemesis.care()
            time.sleep(0.05)

    def _peace(self) -> None:
        """Undo everything, wait until all is well, let the workers end."""
        self.nemesis.heal()
        began = time.monotonic()
        self.cluster.wait_status("the cluster to be well again", _well, HEAL_S)
        self.nemesis.log.append(f"       well again after {time.monotonic() - began:.1f} s")
        time.sleep(CALM_S)
        (self.base / "stop").touch()
        deadline = time.monotonic() + END_S
        for name, worker in self._workers.items():
            try:
                status = worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.verdict.problems.append(f"{name} hangs although all is well")
                continue
            if status:
                text = (self.base / f"{name}.out").read_text()
                self.verdict.problems.append(f"{name} ended with {status}: {text[-2000:]}")

    def _judge(self) -> None:
        records = {name: _lines(self.base / f"{name}.jsonl") for name in self._workers}
        for lines in records.values():
            count(lines, self.verdict)
        judge_registers({n: r for n, r in records.items() if n.startswith("register")}, self.verdict)
        keepers = {n: r for n, r in records.items() if n.startswith("keeper")}
        for label, point in self.cluster.mounts.items():
            try:
                found = self._read(point / "kept")
            except (subprocess.SubprocessError, ValueError) as exc:
                self.verdict.problems.append(f"the files cannot be read on mount {label}: {exc}")
                continue
            before = self.verdict.files
            judge_files(keepers, found, self.seed, self.verdict)
            self.verdict.files = max(before, self.verdict.files - before)
        self._check()

    def _read(self, directory: Path) -> dict[str, str]:
        argv = [sys.executable, "-m", "tests.chaos.worker", "read", str(directory), "-", "-", "0", "-"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=END_S, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def _check(self) -> None:
        """vstorctl check, on the running cluster: no errors."""
        done = self.cluster.run("check", "--format", "json", check=False, timeout_s=END_S)
        try:
            findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        except (ValueError, KeyError):
            self.verdict.problems.append(
                f"vstorctl check: exit {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
            )
            return
        errors = [f for f in findings if f["severity"] == "error"]
        self.verdict.problems += [f"vstorctl check: {f['kind']}: {f['text']}" for f in errors]


def _well(status: dict[str, Any]) -> bool:
    servers = [c for c in status["cs"] if c["state"] != "dropped"]
    replication, chunks = status["replication"], status["chunks"]
    busy = replication["queued"] or replication["running"] or replication["moving"] or replication["fencing"]
    hurt = any(chunks[word] for word in SHORT) or chunks["damaged"]
    return (
        not busy
        and not hurt
        and all(c["state"] == "active" for c in servers)
        and status["cluster"]["state"] == "healthy"
    )


def _lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def isolate() -> None:
    """Begin again in a network name space of its own, so that the rules of the campaign hold nothing up but itself."""
    if os.environ.get("VSTOR_CHAOS_NET") != "own":
        os.environ["VSTOR_CHAOS_NET"] = "own"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)
