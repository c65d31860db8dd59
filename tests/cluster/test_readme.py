"""The Python example of the README, as it stands there."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.helpers.cluster import ROOT, Cluster


def test_the_python_example_runs(shared_cluster: Cluster) -> None:
    (shared_cluster.mounts["a"] / "hello").write_bytes(b"hello\n")
    text = (ROOT / "README.md").read_text().split("From Python:\n")[1].split("\n## ")[0]
    code = textwrap.dedent(text).replace('Client("vstor")', f"Client({shared_cluster.name!r})")
    done = subprocess.run(
        [sys.executable, "-c", code], env=shared_cluster.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "b'hello\\n'\n"), done.stderr
