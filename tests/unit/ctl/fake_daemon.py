"""Stands in for vstor-mdsd and its like: `fake_daemon.py NAME -r DIR …`. What it does stands in DIR/behaviour.

serve: ready at once, ends on SIGTERM; fail STATUS LINE…: says the line and ends; mute: runs, never ready.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # for sigwait below
name, repo = sys.argv[1], Path(sys.argv[sys.argv.index("-r") + 1])
words = (repo / "behaviour").read_text().split(" ", 2)
with (repo / "starts").open("a") as starts:
    starts.write(f"{os.getpid()}\n")
if words[0] == "fail":
    print(words[2].strip(), file=sys.stderr, flush=True)
    sys.exit(int(words[1]))
ready = Path(os.environ["VSTOR_RUN"], f"{name}.ready")
if words[0] == "serve":
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.write_text(f"{os.getpid()}\n")
signal.sigwait([signal.SIGTERM])
ready.unlink(missing_ok=True)
