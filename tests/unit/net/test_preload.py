"""A daemon loads everything when it starts: an upgrade may replace the files of the program below it at any time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dnsserver import DnsServer

DAEMONS = Path(__file__).parents[3] / "daemons"
ZONE = """
_vstor._tcp.c.vstor.test. 60 IN SRV 0 0 2510 a.vstor.test.
a.vstor.test. 60 IN A 127.0.0.9
a.vstor.test. 60 IN AAAA ::1
vstor_clusters.vstor.test. 60 IN TXT "c"
"""
CONFIG = 'sources = ["bs.list", "dns", "mdns"]\n[dns]\ndomains = ["vstor.test"]\nnameservers = ["{}"]\n[mdns]\nannounce = true\n'

# What functions of the loaded modules import must be there already, with the exception of what is loaded before the daemon serves.
LATE = """
import ast, importlib, importlib.util, sys
main = importlib.import_module(sys.argv[1])
from vstor.net import discovery
discovery.preload()
STARTING = {"vstor.native.cs", "vstor.native.cl", "vstor._native", "vstor.crc32c_py", "uvloop"}  # by main() itself
LIBRARY = {"vstor.client"}  # __getattr__, for programs that use the library
late = set()
def look(name, node, inside):
    for child in ast.iter_child_nodes(node):
        if inside and isinstance(child, ast.ImportFrom):
            base = importlib.util.resolve_name("." * child.level + (child.module or ""), name)
            wanted = {f"{base}.{a.name}" if f"{base}.{a.name}" in known(base) else base for a in child.names}
        elif inside and isinstance(child, ast.Import):
            wanted = {a.name for a in child.names}
        else:
            look(name, child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
            continue
        late.update(f"{name}: {w}" for w in wanted if w not in sys.modules and w not in STARTING)
def known(base):
    import pkgutil
    package = sys.modules.get(base) or importlib.import_module(base)
    return {f"{base}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))}
for name, module in sorted(sys.modules.items()):
    if name.startswith("vstor.") and getattr(module, "__file__", "").endswith(".py") and name not in LIBRARY:
        look(name, ast.parse(open(module.__file__).read()), False)
print("\\n".join(sorted(late)))
"""
# The sources are asked; what is imported during that must be the Python's own.
ASKED = """
import asyncio, importlib, sys
importlib.import_module(sys.argv[1])
from vstor.net import discovery
discovery.preload()
before = set(sys.modules)
config = discovery.read_config()
assert asyncio.run(discovery.lookup("dns", "c", config))
assert asyncio.run(discovery.known_clusters("dns", config))
asyncio.run(discovery.lookup("mdns", "c", config))
print("\\n".join(m for m in sys.modules if m not in before and m.split(".")[0] not in sys.stdlib_module_names))
"""


def late(code: str, daemon: str, etc: Path) -> list[str]:
    environment = {**os.environ, "VSTOR_ETC": str(etc), "PYTHONPATH": str(DAEMONS)}
    done = subprocess.run(
        [sys.executable, "-c", code, daemon], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.mark.parametrize("daemon", ["vstor.mds.main", "vstor.cs.main", "vstor.client.main"])
def test_no_function_of_a_daemon_loads_anything_later(daemon: str, tmp_path: Path) -> None:
    (tmp_path / "discovery.toml").write_text(CONFIG.format("127.0.0.1:1"))
    assert late(LATE, daemon, tmp_path) == []


@pytest.mark.parametrize("daemon", ["vstor.cs.main"])
def test_asking_the_sources_loads_nothing(daemon: str, tmp_path: Path) -> None:
    with DnsServer(ZONE) as server:
        (tmp_path / "discovery.toml").write_text(CONFIG.format(server.address))
        assert late(ASKED, daemon, tmp_path) == []
