"""Run `ansible-test sanity` on the built collection: `make sanity`. All arguments are handed on (--test NAME, names of files).

ansible-test leaves out what git ignores, so it gets a copy outside of the tree. It makes a virtual environment for each test and puts pip into
it with a script from a server of its own; where that cannot be reached, pip comes from the package index like everything else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages
from collection import PLACE, ROOT

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GET_PIP = """import subprocess, sys
command = [{python!r}, "-m", "pip", "--python", sys.executable, "install", "--quiet", "pip=={version}"]
sys.exit(subprocess.run(command).returncode)
"""


def main(arguments: list[str]) -> int:
    """The exit status of ansible-test."""
    home = ROOT / "build" / "ansible-test"
    version = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]
    bootstrap = home / ".ansible/test/cache" / f"get_pip_{version.replace('.', '_')}.py"
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    bootstrap.write_text(GET_PIP.format(python=sys.executable, version=version))
    environment = {**os.environ, "HOME": str(home), "LC_ALL": "C.UTF-8"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with tempfile.TemporaryDirectory(prefix="vstor-sanity-") as place:
        target = Path(place) / PLACE
        shutil.copytree(ROOT / "build/collection" / PLACE, target)
        command = ["ansible-test", "sanity", "--color", "no", "--python", PYTHON, *arguments]
        return subprocess.run(command, cwd=target, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
