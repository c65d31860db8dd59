"""Which way dependencies point (ARCHITECTURE.md "Where things are"), read from the imports."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "daemons" / "vstor"
LEAVES = {
    "codes_gen",
    "errors",
    "units",
    "stamps",
    "config",
    "logs",
    "clock",
    "paths",
    "daemon",
    "services",
    "crc32c_py",
}
# layer -> what it may import besides itself and the leaves
ALLOWED = {
    "leaf": set(),
    "proto": set(),
    "model": {"proto"},
    "native": {"proto"},
    "meta": {"model", "proto"},
    "net": {"model", "proto", "native"},
    "mds": {"net", "meta", "model", "proto", "native"},
    "cs": {"net", "proto", "native"},
    "client": {"net", "proto", "native", "model"},
    "ctl": {"mds", "cs", "client", "net", "meta", "model", "proto", "native"},
}
PURE_FORBIDDEN = {"asyncio", "socket", "time", "random", "threading", "subprocess", "os", "pathlib"}


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(dotted: str) -> str:
    """Layer of vstor.X…"""
    parts = dotted.split(".")
    name = parts[1] if len(parts) > 1 else ""
    return name if name in ALLOWED else "leaf"


def test_imports_point_downwards() -> None:
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        own = layer("vstor." + str(file.relative_to(PACKAGE)).removesuffix(".py").replace("/", "."))
        for name in imports_of(file):
            if not name.startswith("vstor."):
                continue
            target = layer(name)
            if target not in ALLOWED[own] | {own, "leaf"}:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_native_imports_the_c_module() -> None:
    users = [f for f in PACKAGE.rglob("*.py") if any("_native" in name.split(".") for name in imports_of(f))]
    assert {f.relative_to(PACKAGE).parts[0] for f in users} == {"native"}


def test_the_model_is_pure() -> None:
    wrong = [
        (f.name, name)
        for f in (PACKAGE / "model").glob("*.py")
        for name in imports_of(f)
        if name.split(".")[0] in PURE_FORBIDDEN
    ]
    assert not wrong
