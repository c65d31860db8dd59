"""docs/operations.md and the README: each command of vstorctl is one, and each playbook is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from vstor.ctl.main import build_parser

ROOT = Path(__file__).parents[3]
IDS = {"CSID": "1025", "MDSID": "2"}


def commands(page: str) -> list[str]:
    """Command lines of vstorctl in sh blocks, indented blocks and `code`."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"^ {4}(vstorctl .*)$", page, re.MULTILINE)]
    lines += re.findall(r"`(vstorctl [^`]* [^`]*)`", page)
    return [line for line in lines if line.startswith("vstorctl ")]


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/discovery.md"])
def test_commands_parse(name: str) -> None:
    found = commands((ROOT / name).read_text())
    assert found
    parser = build_parser()
    for line in found:
        words = [IDS.get(word, word) for word in shlex.split(line.replace("CSID", "1025"))]
        args = parser.parse_args(words[1:])
        if args.verb == "deploy":
            assert (ROOT / "playbooks" / f"{args.playbook}.yml").exists(), line
