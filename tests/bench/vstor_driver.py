"""vstor for the benchmark harness (tests/bench/harness/README.md): etcd, one MDS, three CSs in directories, replicas 3:2, one mount.

The harness is named this file by BENCH_DRIVERS=vstor:tests/bench/vstor_driver.py:VStor; `make bench` does it.
"""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

from drivers import Driver  # type: ignore[import-not-found]  # the harness puts it on the path

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "bench\n"


class VStor(Driver):  # type: ignore[misc]  # base class has no types
    """Same shape as the peers: three servers, three copies, everything on loopback; authenticated frames as by default."""

    name = "vstor"
    durability: ClassVar = {
        "write_ack": "on all 3 chunk servers' journals or chunk files by O_DIRECT (not flushed)",
        "fsync_ack": "journal and chunk files of all 3 flushed (fdatasync), size committed in etcd (fdatasync)",
        "metadata_ack": "etcd transaction committed (fdatasync)",
    }

    def _env(self):
        return {
            "PYTHONPATH": str(ROOT / "daemons"),
            **{f"VSTOR_{k.upper()}": f"{self.dir}/{k}" for k in ("etc", "run", "log", "state")},
        }

    def _ctl(self, *args, stdin=None):
        import subprocess

        done = subprocess.run(
            [sys.executable, "-m", "vstor.ctl.main", "-c", "bench", *args],
            env={**os.environ, **self._env()},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"vstorctl {args}: {done.stdout}{done.stderr}")
        return done.stdout

    def _daemon(self, name, module, *args):
        return self.spawn(name, [sys.executable, "-m", module, *args], self._env())

    def version(self):
        sys.path.insert(0, str(ROOT / "daemons"))
        import vstor

        return vstor.__version__

    def up(self):
        self.make_dirs("etc", "run", "log", "state")
        mds = f"{self.dir}/state/mds"
        self._ctl("make-mds", "-I", "-a", f"127.0.0.1:{self.port}", "-r", mds, "-P", stdin=PASSWORD)
        self._daemon("etcd", "vstor.mds.etcd_member", "-r", mds)
        self._daemon("mds", "vstor.mds.main", "-r", mds)
        self.wait_for("mds", lambda: Path(f"{self.dir}/run/mds-bench-1.ready").exists())
        for i in (1, 2, 3):
            repo = f"{self.dir}/state/cs{i}"
            self._ctl("make-cs", "-r", repo, "-a", f"127.0.0.1:{self.port + 10 + i}")
            self._start_cs(i)
        self._ctl("set-attr", "-p", "/", "replicas=3:2", "failure-domain=disk")
        self.config = {
            "replicas": "3:2",
            "auth_mode": "sign (default)",
            "journal": "256 MiB in the CS directory (default)",
        }
        self.mount()

    def _start_cs(self, i):
        repo = f"{self.dir}/state/cs{i}"
        ident = json.loads(Path(repo, "cs.json").read_text())["cs_id"]
        ready = Path(f"{self.dir}/run/cs-bench-{ident}.ready")
        ready.unlink(missing_ok=True)
        self._daemon(f"cs{i}", "vstor.cs.main", "-r", repo)
        self.wait_for(f"cs{i}", ready.exists)

    def mount(self):
        self._daemon("client", "vstor.client.main", "-c", "bench", "-f", self.mnt)
        self.wait_mounted()

    def kill_one(self):
        return self.sigkill("cs2")

    def restart_one(self):
        self._start_cs(2)

    def replicas_ok(self, path):
        info = json.loads(self._ctl("file-info", "--format", "json", path))
        bad = [c for c in info["chunks"] if c["state"] not in ("healthy", "void")]
        return not bad, f"{len(info['chunks'])} chunks, not healthy: {bad[:3]}"
