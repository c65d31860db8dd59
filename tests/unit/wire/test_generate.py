"""The generator refuses a definition that contradicts itself, and the committed outputs are what it writes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "native" / "wire" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_outputs_are_up_to_date() -> None:
    result = subprocess.run([sys.executable, PROGRAM, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("STALE = { code = 1,", "STALE = { code = 2,", "NO_CHUNK has the value 2 of STALE"),
        ("PROVE = { value = 2,", "PROVE = { value = 1,", "PROVE has the value 1 of HELLO"),
        ('name = "hello"\n', 'name = "ticket"\n', "fields make|used twice"),
        ("size = 56", "size = 57", "fields make 56 bytes, size says 57"),
        ('["u32", "cs_id", "the server', '["u128", "cs_id", "the server', "unknown type"),
        ('errno = "EACCES", exit = 4, retryable = false, text = "no valid', 'errno = "EBOGUS", exit = 4, retryable = false, text = "x', "EBOGUS"),
        ('["u32", "handle", "slot', '["u64", "handle", "slot', "not aligned|fields make"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(generate: ModuleType, old: str, new: str, message: str) -> None:
    text = generate.DEFINITION.read_text()
    assert old in text
    with pytest.raises(generate.DefinitionError, match=message):
        generate.load(text.replace(old, new, 1))
