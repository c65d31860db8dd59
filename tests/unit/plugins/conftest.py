"""Runs modules of the collection as Ansible does: as programs, with arguments on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FAKE = Path(__file__).with_name("fake_vstorctl.py")
STATUS = {
    "cluster": {"name": "vstor", "id": "0" * 32, "state": "healthy"},
    "mds": [{"id": 1}, {"id": 2}],
    "cs": [{"id": 1025, "state": "active"}, {"id": 1026, "state": "dropped"}],
    "chunks": {},
    "space": {},
}


class Host:
    """A host with a fake vstorctl."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.state_file = base / "state.json"
        self.tool = base / "bin" / "vstorctl"
        self.tool.parent.mkdir()
        self.tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{FAKE}" "$@"\n')
        self.tool.chmod(0o755)
        self.write({"services": [], "status": STATUS, "attributes": {}, "config": {}, "calls": [], "fail": {}})

    def write(self, state: dict[str, Any]) -> None:
        self.state_file.write_text(json.dumps(state))

    @property
    def state(self) -> dict[str, Any]:
        """What the fake remembers."""
        found: dict[str, Any] = json.loads(self.state_file.read_text())
        return found

    def update(self, **changes: Any) -> None:
        self.write({**self.state, **changes})

    @property
    def calls(self) -> list[tuple[str, list[str]]]:
        """Verbs that change something, with their arguments, since the last look."""
        reading = {"status", "discover", "list-services", "get-attr", "get-config"}
        found = [
            (c["verb"], c["argv"])
            for c in self.state["calls"]
            if c["verb"] not in reading and "--dry-run" not in c["argv"]
        ]
        self.update(calls=[])
        return found

    def authenticate(self) -> None:
        """As after auth-node."""
        file = self.base / "etc" / "clusters" / "vstor" / "node.crt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("certificate\n")

    def run(self, module: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run a module; its result."""
        arguments = {
            "cluster": "vstor",
            "executable": str(self.tool),
            **arguments,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            "_ansible_remote_tmp": str(self.base),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, module],
            input=json.dumps(arguments),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "collections"),
                "VSTOR_ETC": str(self.base / "etc"),
                "FAKE_VSTORCTL_STATE": str(self.state_file),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert arguments.get("password") is None or arguments["password"] not in done.stdout
        return found


# Hands the arguments over as the running Ansible wants them: the way has changed between its versions.
RUNNER = """
import importlib, json, sys
from ansible.module_utils import basic
arguments = json.load(sys.stdin)
if hasattr(basic, "_load_params"):
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
sys.argv = sys.argv[1:]
importlib.import_module("ansible_collections.vstor.storage.plugins.modules." + sys.argv[0]).main()
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a fake vstorctl and no cluster."""
    return Host(tmp_path)


RunModule = Callable[..., dict[str, Any]]
