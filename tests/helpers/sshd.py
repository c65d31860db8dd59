"""A real sshd on a loopback port, with keys and configuration of its own, and the keys of a client."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.helpers.cluster import ROOT, free_base_port, wait_for

SSHD = "/usr/sbin/sshd"


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


class Sshd:
    """Context manager.

    Attributes:
        port: on 127.0.0.1.
        identity: private key that is let in as root.
        known_hosts: file with the key of this sshd, as "[127.0.0.1]:PORT".
        bin: directory that is first on PATH of logins; holds vstorctl of this tree.
    """

    def __init__(self, base: Path, env: dict[str, str]) -> None:
        """env: set for commands run by SSH."""
        self.base = base
        base.mkdir(parents=True)
        self.port = free_base_port("127.0.0.1", 1)
        self.identity = make_key(base / "client_key")
        self.host_key = make_key(base / "host_key")
        self.known_hosts = base / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.public(self.host_key)}\n")
        self.bin = base / "bin"
        self.bin.mkdir()
        self.install("vstorctl", f'exec {sys.executable} -m vstor.ctl.main "$@"')
        path = f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
        settings = " ".join(f'"{k}={v}"' for k, v in {**env, "PATH": path, "PYTHONPATH": str(ROOT / "daemons")}.items())
        (base / "authorized_keys").write_text(self.public(self.identity) + "\n")
        (base / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.host_key}\nPidFile {base}/pid\nUsePAM no\n"
            f"AuthorizedKeysFile {base}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            f"PermitRootLogin prohibit-password\nSetEnv {settings}\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
        self._popen: subprocess.Popen[bytes] | None = None

    def install(self, name: str, script: str) -> None:
        """A command of this host."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    @staticmethod
    def public(key: Path) -> str:
        return " ".join(key.with_suffix(".pub").read_text().split()[:2])

    def __enter__(self) -> Self:
        log = (self.base / "log").open("ab")
        with log:
            self._popen = subprocess.Popen([SSHD, "-D", "-e", "-f", self.base / "sshd_config"], stderr=log, stdout=log)
        wait_for("sshd to listen", self._listens)
        return self

    def _listens(self) -> bool:
        assert self._popen is not None
        assert self._popen.poll() is None, (self.base / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def __exit__(self, *_exc: object) -> None:
        assert self._popen is not None
        self._popen.terminate()
        self._popen.wait(10)
