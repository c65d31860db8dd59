"""docs/howto.md: every verb and option it shows exists; its runner cuts it as meant."""

from __future__ import annotations

import shlex
from pathlib import Path

from vstor.ctl.main import build_parser

from tests.helpers.howto import blocks, place

PAGE = Path(__file__).parents[3] / "docs" / "howto.md"


def test_blocks_and_their_lines() -> None:
    page = "a\n```sh\none\ntwo\n```\n```\nnot\n```\n```sh\nthree\n```\n"
    assert [(b.line, b.text) for b in blocks(page)] == [(3, "one\ntwo\n"), (10, "three\n")]


def test_paths_are_placed() -> None:
    text = 'vstor-mount -c c /pcs\ncat "/pcs-too/x" /vstor/c-mds /vstored /usr/pcs vstor://pcs/vstor > /etc/vstor/x /etc/x\n'
    assert place(text, Path("/B")) == (
        'vstor-mount -c c /B/pcs\ncat "/B/pcs-too/x" /B/vstor/c-mds /vstored /usr/pcs vstor://pcs/vstor > /B/etc/vstor/x /etc/x\n'
    )


def test_commands_parse() -> None:
    parser = build_parser()
    verbs = set()
    for block in blocks(PAGE.read_text()):
        for line in block.text.splitlines():
            words = shlex.split(line.replace("$(", " ").replace("| python3", "; #"), comments=True)
            if "vstorctl" not in words or "--version" in words:
                continue
            argv = words[words.index("vstorctl") + 1 :]
            for stop in (";", "|", ">", ">>"):
                argv = argv[: argv.index(stop)] if stop in argv else argv
            argv = ["1025" if word == "$CSID" else word for word in argv]
            verbs.add(parser.parse_args(argv).verb)
    assert {
        "make-mds",
        "auth-node",
        "make-cs",
        "status",
        "set-attr",
        "get-attr",
        "service",
        "list-services",
        "file-info",
        "rm-cs",
    } <= verbs
