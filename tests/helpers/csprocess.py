"""A chunk server engine in a process of its own, to be killed: `python -m tests.helpers.csprocess DIR [pool]` prints its port."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from vstor.proto.wire_gen import AuthMode

from tests.helpers.dataclient import KEY_ID, SESSION, CsServer, DataClient

ROOT = Path(__file__).resolve().parents[2]


class CsProcess:
    """Started at once; `port` waits until it serves."""

    def __init__(self, directory: Path, *, no_uring: bool) -> None:
        command = [sys.executable, "-m", "tests.helpers.csprocess", str(directory)] + (["pool"] if no_uring else [])
        path = os.pathsep.join([str(ROOT / "daemons"), str(ROOT)])
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )

    def connect(self) -> DataClient:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the chunk server ended before it served"
        client = DataClient(("127.0.0.1", int(line)), 5, bytes([5]) * 32, b"t" * 32, AuthMode.CRC, SESSION)
        client.handshake()
        return client

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def main() -> None:
    """Serve until killed."""
    server = CsServer(sys.argv[1], no_uring="pool" in sys.argv[2:], incarnation=random.getrandbits(40))
    server.engine.set_ticket_key(KEY_ID, server.ticket_key)
    with server:
        print(server.port, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
