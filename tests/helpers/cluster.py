"""A real cluster of processes on this machine: etcd, MDSs, CSs, mounts, all state below one directory.

Everything is started through the commands a user runs (vstorctl, vstor-mdsd, …) and ended by pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vstor.client import mountpoint

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery staple"
MODULES = {
    "ctl": "vstor.ctl.main",
    "etcd": "vstor.mds.etcd_member",
    "mds": "vstor.mds.main",
    "cs": "vstor.cs.main",
    "mount": "vstor.client.main",
}
START_S = 30.0
STOP_S = 120.0  # more than a mount waits for a cluster that does not answer (client/main.py)
# An unmounted file system ends, and its daemon with it, unless another mount namespace has a copy: a container that was made meanwhile.
COPIED_S = 5.0
DUMP_S = 2.0
_MNT_FORCE, _MNT_DETACH = 1, 2


def free_base_port(address: str, count: int = 3) -> int:
    """First of `count` consecutive free TCP ports on `address`."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind((address, 0))
            base: int = probe.getsockname()[1]
        if base + count >= 60999:
            continue
        socks = []
        try:
            for port in range(base, base + count):
                sock = socket.socket()
                socks.append(sock)
                sock.bind((address, port))
            return base
        except OSError:
            continue
        finally:
            for sock in socks:
                sock.close()
    raise RuntimeError(f"no {count} free ports on {address}")


def wait_for(what: str, check: Callable[[], Any], timeout_s: float = START_S) -> Any:
    """The first true result of `check`, asked again and again; the timeout is a bound for a broken product, not a measurement."""
    deadline = time.monotonic() + timeout_s
    last: Any = None
    while time.monotonic() < deadline:
        last = check()
        if last:
            return last
        time.sleep(0.05)
    raise AssertionError(f"timed out after {timeout_s:.0f} s waiting for {what}; last: {last!r}")


def device_at(point: Path) -> str | None:
    """Device number of the topmost mount there, by the table of mounts: nothing is asked of the file system, which may not answer."""
    lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((line[2] for line in reversed(lines) if line[4] == str(point)), None)


def is_mounted(point: Path) -> bool:
    """Something is mounted exactly there."""
    return device_at(point) is not None


def umount(path: Path, *, force: bool = False) -> None:
    """umount2(2), lazily, so that a dead daemon cannot block it. force: who waits for it gets an error at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.umount2(os.fsencode(path), _MNT_DETACH | (_MNT_FORCE if force else 0))


class Proc:
    """One daemon."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.name, self.argv, self.env, self.log = name, argv, env, log
        self.popen: subprocess.Popen[bytes] | None = None
        self.device: str | None = None  # of a mount

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def signal(self, sig: signal.Signals) -> None:
        if self.running:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)
        if self.popen:
            self.popen.wait(30)

    def stop(self, timeout_s: float = STOP_S) -> int | None:
        """SIGTERM; the exit status. Has it say what it does, kills it and raises when it does not end."""
        self.signal(signal.SIGTERM)
        if not self.popen:
            return None
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._dump()
            if self.device is not None:
                # Killing is not enough while a thread of it waits in the kernel for a page that a request to it holds locked.
                mountpoint.abort(self.device)
            self.kill()
            raise AssertionError(f"{self.name} did not stop on SIGTERM within {timeout_s} s; log: {self.log}") from None

    def _dump(self) -> None:
        """Into its log: a mount's state (SIGUSR1), the stacks of the threads of others (faulthandler on SIGABRT, which ends it)."""
        assert self.popen is not None
        for sig in [signal.SIGUSR1] if self.name.startswith("mount") else [signal.SIGABRT]:
            self.signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(DUMP_S)

    def tail(self, lines: int = 40) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Cluster:
    """Build with `make()`, end with `destroy()`.

    Attributes:
        procs: name -> Proc: "etcd-1", "mds-1", "cs-1025", "mount-a", …
    """

    def __init__(self, base: Path, name: str = "test", address: str = "127.0.0.1") -> None:
        self.base, self.name, self.address = base, name, address
        self.env = dict(
            os.environ,
            PYTHONPATH=str(ROOT / "daemons"),
            PYTHONDONTWRITEBYTECODE="1",
            PYTHONFAULTHANDLER="1",
            VSTOR_ETC=str(base / "etc"),
            VSTOR_RUN=str(base / "run"),
            VSTOR_LOG=str(base / "log"),
            VSTOR_STATE=str(base / "state"),
        )
        for d in ("etc", "run", "log", "state", "mnt"):
            (base / d).mkdir(parents=True, exist_ok=True)
        self.procs: dict[str, Proc] = {}
        self.cs_dirs: dict[str, Path] = {}
        self.mounts: dict[str, Path] = {}
        self.port = 0

    # --- commands -------------------------------------------------------------------------------
    def run(
        self,
        *args: str,
        check: bool = True,
        stdin: str = "",
        module: str = "ctl",
        timeout_s: float = 60,
        prefix: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """A command such as vstorctl, with -c already given for ctl."""
        argv = [*prefix, sys.executable, "-m", MODULES[module], *(["-c", self.name] if module == "ctl" else []), *args]
        done = subprocess.run(argv, env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(argv[2:])}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.tails()}"
            )
        return done

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run("status", "--format", "json").stdout)
        return result

    def events(self) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = json.loads(self.run("get-event", "--format", "json").stdout)
        return result

    def file_info(self, path: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.run("file-info", "-p", path, "--format", "json").stdout)
        return result

    def wait_status(self, what: str, check: Callable[[dict[str, Any]], Any], timeout_s: float = 60) -> Any:
        """Until check(status) is true."""

        def ask() -> Any:
            done = self.run("status", "--format", "json", check=False)
            return check(json.loads(done.stdout)) if done.returncode == 0 else None

        try:
            return wait_for(what, ask, timeout_s)
        except AssertionError as exc:
            done = self.run("status", "--format", "json", check=False)
            raise AssertionError(f"{exc}\n{done.stdout}{done.stderr}\n{self.tails()}") from exc

    def tails(self) -> str:
        return "\n".join(f"--- {p.name} ({p.log})\n{p.tail()}" for p in self.procs.values())

    # --- daemons ----------------------------------------------------------------------------------
    def daemon(self, name: str, module: str, *args: str) -> Proc:
        proc = Proc(name, [sys.executable, "-m", MODULES[module], *args], self.env, self.base / "log" / f"{name}.out")
        self.procs[name] = proc
        return proc

    def start(self, name: str, timeout_s: float = START_S) -> None:
        """Start (again) and wait for readiness."""
        proc = self.procs[name]
        ready = self.base / "run" / f"{self.ready_name(name)}.ready"
        ready.unlink(missing_ok=True)
        proc.start()
        if name.startswith("etcd"):
            return  # mdsd waits for it

        def check() -> bool:
            if not proc.running:
                raise AssertionError(f"{name} ended with {proc.popen and proc.popen.returncode}:\n{proc.tail()}")
            return ready.exists()

        wait_for(f"{name} to be ready; {proc.log}", check, timeout_s)

    def ready_name(self, name: str) -> str:
        kind, ident = name.split("-", 1)
        return f"{kind}-{self.name}-{ident}"

    def make_first_mds(self, address: str = "", *, port: int = 0, prefix: tuple[str, ...] = ()) -> None:
        """make-mds -I, and start it with its etcd member. See add_mds for the arguments."""
        host = address or self.address
        self.port = port or free_base_port(host)
        repo = self.base / "state" / "mds-1"
        where = f"{host}:{self.port}"
        self.run("make-mds", "-I", "-a", where, "-r", str(repo), "-P", stdin=PASSWORD + "\n", prefix=prefix)
        self.daemon("etcd-1", "etcd", "-r", str(repo))
        self.daemon("mds-1", "mds", "-r", str(repo))
        for name in ("etcd-1", "mds-1"):
            self.procs[name].argv[:0] = prefix
            self.start(name, 60)

    def add_mds(self, address: str = "", *, port: int = 0, prefix: tuple[str, ...] = ()) -> str:
        """make-mds of one more, and start it with its etcd member; the name of its process. prefix: command that runs its commands elsewhere."""
        number = 1
        while (self.base / "state" / f"mds-{number}").exists():
            number += 1
        host = address or f"127.0.0.{number}"
        repo = self.base / "state" / f"mds-{number}"
        where = f"{host}:{port or free_base_port(host)}"
        made = self.run("make-mds", "-a", where, "-r", str(repo), "--format", "json", prefix=prefix)
        ident = json.loads(made.stdout)["mds_id"]
        self.daemon(f"etcd-{ident}", "etcd", "-r", str(repo))
        self.daemon(f"mds-{ident}", "mds", "-r", str(repo))
        for name in (f"etcd-{ident}", f"mds-{ident}"):
            self.procs[name].argv[:0] = prefix
            self.start(name, 60)
        ready = self.base / "run" / f"{self.ready_name(f'etcd-{ident}')}.ready"
        wait_for(f"the etcd member of mds-{ident} to have its vote", ready.exists, 60)
        return f"mds-{ident}"

    def add_cs(self, *options: str) -> str:
        """make-cs and start; the name of its process."""
        repo = self.base / "state" / f"cs{len(self.cs_dirs) + 1}"
        self.run(
            "make-cs", "-r", str(repo), "-a", f"{self.address}:{free_base_port(self.address, 1)}", "-s", "64", *options
        )
        ident = json.loads((repo / "cs.json").read_bytes())["cs_id"]
        name = f"cs-{ident}"
        self.cs_dirs[name] = repo
        self.daemon(name, "cs", "-r", str(repo))
        self.start(name)
        return name

    def mount(self, label: str = "a", *options: str, kernel_names: bool = True) -> Path:
        """kernel_names: False treats the kernel as one before 6.16, which asks for each name."""
        point = self.base / "mnt" / label
        with contextlib.suppress(
            FileExistsError
        ):  # also when a dead mount is there, of which nothing else can be asked
            point.mkdir()
        name = f"mount-{label}"
        proc = self.daemon(name, "mount", "-c", self.name, "-f", *options, str(point))
        proc.env = {**proc.env, "VSTOR_KERNEL_NAMES": str(int(kernel_names))}

        def said() -> int:
            return proc.log.read_text().count(": mounted cluster=") if proc.log.exists() else 0

        before = said()
        proc.start()

        def check() -> bool:
            if not proc.running:
                raise AssertionError(f"{name} ended with {proc.popen and proc.popen.returncode}:\n{proc.tail()}")
            return said() > before  # not by the table of mounts: a dead one may stand there

        wait_for(f"{point} to be mounted", check)
        self.mounts[label] = point
        proc.device = device_at(point)
        return point

    def umount(self, label: str = "a") -> None:
        """As umount(8): the daemon ends by itself, or when it is told to (COPIED_S)."""
        point = self.mounts.pop(label)
        subprocess.run(["umount", str(point)], check=True, timeout=60)
        proc = self.procs.pop(f"mount-{label}")
        assert proc.popen is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.popen.wait(COPIED_S)
        assert proc.stop() == 0, proc.tail()

    def make(self, n_cs: int = 3, replicas: str = "3:2", failure_domain: str = "disk") -> Cluster:
        """etcd, one MDS, `n_cs` CSs, default policy."""
        if not self.procs:
            self.make_first_mds()
        for _ in range(n_cs):
            self.add_cs()
        self.run("set-attr", "-p", "/", f"replicas={replicas}", f"failure-domain={failure_domain}")
        self.wait_status("all chunk servers active", lambda s: sum(c["state"] == "active" for c in s["cs"]) == n_cs)
        return self

    def kill_all(self) -> None:
        """kill -9 of every process, mounts detached."""
        for proc in self.procs.values():
            proc.signal(signal.SIGKILL)
        for point in self.mounts.values():
            umount(point, force=True)
        for proc in self.procs.values():
            proc.kill()
        for label in self.mounts:
            self.procs.pop(f"mount-{label}", None)
        self.mounts.clear()

    def start_all(self) -> None:
        """Everything but mounts."""
        for name in self.procs:
            if not self.procs[name].running:
                self.start(name, 60)

    def destroy(self) -> None:
        """Clients first; checks that every daemon stops cleanly on SIGTERM."""
        problems = []
        for proc in self.procs.values():
            proc.signal(signal.SIGCONT)  # one that a test froze
        for label in list(self.mounts):
            umount(self.mounts[label])
        order = {"mount": 0, "cs": 1, "mds": 2, "etcd": 3}
        for proc in sorted(self.procs.values(), key=lambda p: order[p.name.split("-")[0]]):
            if not proc.running:
                continue
            try:
                if proc.name.startswith("mount") and proc.popen:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        proc.popen.wait(COPIED_S)
                status = proc.stop()
                if status != 0 and not (
                    status == -signal.SIGTERM and proc.name.startswith("etcd")
                ):  # etcd raises the signal again when done
                    problems.append(f"{proc.name} ended with {status} on SIGTERM:\n{proc.tail()}")
            except (AssertionError, subprocess.TimeoutExpired) as exc:
                problems.append(f"{exc}\n{proc.tail()}")
        assert not problems, "\n".join(problems)
