"""Runs the ```sh blocks of a page as they stand, with the paths of the page below a directory of one's own.

The commands find small programs of their names first on PATH, which run this source tree; `service NAME ACTION` runs the init script
that the product installs. Nothing outside of the directory is written.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.cluster import MODULES, ROOT, umount, wait_for

PROGRAMS = {"vstorctl": "ctl", "vstor-mount": "mount", "vstor-mdsd": "mds", "vstor-csd": "cs", "vstor-etcd": "etcd"}
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Paths of the page that stand for places of the machine; not parts of other paths, not vstor://.
_PATHS = re.compile(r"(?<![\w./:-])/(?=(?:vstor|pcs|pcs-too|etc/vstor)(?:[/\s\"'-]|$))", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block and the line of the page it begins at."""

    line: int
    text: str


def blocks(page: str) -> list[Block]:
    """All sh blocks of a page, in order."""
    return [Block(page.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in _BLOCK.finditer(page)]


def place(text: str, base: Path) -> str:
    """The block with its absolute paths below `base`."""
    return _PATHS.sub(lambda _m: f"{base}/", text)


class HowTo:
    """A page, run below `base` (a short path: sockets live in it)."""

    def __init__(self, page: Path, base: Path) -> None:
        self.base = base
        self.blocks = blocks(page.read_text())
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("VSTOR_", "PSTORAGE_"))},
            "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
            "VSTOR_ETC": str(base / "etc/vstor"),
            "VSTOR_RUN": str(base / "run"),
            "VSTOR_LOG": str(base / "log"),
            "VSTOR_STATE": str(base / "state"),
            "VSTOR_USER": "root",
            "VSTOR_SERVICE_MANAGER": "supervisor",
            "PYTHONPATH": str(ROOT / "daemons"),
        }
        self._install()

    def _install(self) -> None:
        """The commands of the page."""
        (self.base / "bin").mkdir(parents=True)
        for name, module in PROGRAMS.items():
            self._program(name, f'exec {shlex.quote(sys.executable)} -m {MODULES[module]} "$@"')
        self._program("service", f'exec {shlex.quote(str(self.base))}/root/etc/init.d/"$1" "$2"')
        subprocess.run(
            ["vstorctl", "service", "install", "--root", str(self.base / "root")],
            env=self.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _program(self, name: str, line: str) -> None:
        file = self.base / "bin" / name
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    def run(self, timeout_s: float) -> str:
        """All blocks in one shell; what it printed. An AssertionError names the block that failed."""
        script = ["set -euo pipefail", "at=0", "trap 'echo \"FAILED in the block at line $at\" >&2' ERR"]
        for block in self.blocks:
            script += [
                f"at={block.line}",
                f'echo "--- line {block.line} after $SECONDS s"',
                "set -x",
                place(block.text, self.base).rstrip(),
                "{ set +x; } 2>/dev/null",
            ]
        file = self.base / "howto.sh"
        file.write_text("\n".join(script) + "\n")
        output = self.base / "howto.out"
        with output.open("wb") as out:
            done = subprocess.run(
                ["bash", str(file)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        text = output.read_text(errors="replace")
        assert done.returncode == 0, f"exit {done.returncode}\n{text}\n{self.logs()}"
        return text

    def logs(self) -> str:
        """The end of each log file."""
        tails = []
        for file in sorted((self.base / "log").glob("*")):
            lines = file.read_text(errors="replace").splitlines()[-15:]
            if lines:
                tails.append(f"--- {file.name}\n" + "\n".join(lines))
        return "\n".join(tails)

    def pids(self) -> list[int]:
        """Processes that were started for the page: those that have its directory in their environment or command line."""
        found = []
        mark = f"{self.base}/".encode()
        for directory in Path("/proc").iterdir():
            if not directory.name.isdigit() or int(directory.name) == os.getpid():
                continue
            try:
                if mark in (directory / "environ").read_bytes() or mark in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
            except OSError:
                continue
        return found

    def destroy(self) -> None:
        """Detach the mounts and end what still runs."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            point = line.split()[1]
            if point.startswith(f"{self.base}/"):
                umount(Path(point))
        conf = self.base / "run/supervisord.pid"
        first = [int(conf.read_text())] if conf.exists() else []  # before its children, which it would start again
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in [*first, *self.pids()]:
                try:
                    os.kill(pid, sig)
                except ProcessLookupError:
                    continue
            try:
                wait_for("the processes of the page to end", lambda: not self.pids(), 20)
                return
            except AssertionError:
                if sig == signal.SIGKILL:
                    raise

    def services(self) -> list[dict[str, object]]:
        """What list-services says."""
        done = subprocess.run(
            ["vstorctl", "list-services", "--format", "json"], env=self.env, check=True, capture_output=True
        )
        found: list[dict[str, object]] = json.loads(done.stdout)
        return found
