"""A real etcd member on free loopback ports, in a temporary directory, without TLS."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Etcd:
    """One member; `kill` is kill -9, `start` after it keeps the data."""

    def __init__(self, directory: Path) -> None:
        binary = shutil.which("etcd")
        assert binary, "etcd is not installed (Debian package etcd-server)"
        client, peer = free_port(), free_port()
        self.url = f"http://127.0.0.1:{client}"
        self.log = directory / "etcd.log"
        self.command = [
            *(
                binary,
                "--name=m1",
                f"--data-dir={directory / 'data'}",
                "--logger=zap",
                "--log-level=warn",
            ),
            *(
                f"--listen-client-urls={self.url}",
                f"--advertise-client-urls={self.url}",
            ),
            *(
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            ),
            *(
                f"--initial-cluster=m1=http://127.0.0.1:{peer}",
                "--heartbeat-interval=50",
                "--election-timeout=500",
            ),
            *(
                "--max-txn-ops=4096",
                "--max-request-bytes=8388608",
                "--log-outputs=stderr",
            ),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log, stdout=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as reply:
                    if b"true" in reply.read():
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"etcd does not start: {self.log.read_text()}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
