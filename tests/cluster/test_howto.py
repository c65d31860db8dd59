"""docs/howto.md does what it says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.helpers.cluster import ROOT, wait_for
from tests.helpers.howto import HowTo

PAGE = ROOT / "docs" / "howto.md"


@pytest.mark.timeout(400)
def test_every_command_of_the_howto() -> None:
    assert os.geteuid() == 0, "the HOWTO is for root"
    with tempfile.TemporaryDirectory(prefix="vst") as base:
        howto = HowTo(PAGE, Path(base))
        try:
            output = howto.run(timeout_s=360)
            assert "Cluster 'test_cluster': healthy" in output
            assert "correct horse" not in output
            assert "internal error" not in output
            assert {s["state"] for s in howto.services()} == {"stopped"}
            # What was stopped may take a moment to leave the table of processes.
            wait_for("every process of the page to end", lambda: not howto.pids())
        finally:
            howto.destroy()
