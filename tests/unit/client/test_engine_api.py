"""engine_api against native/include/vstor/client.h."""

from __future__ import annotations

import re
from pathlib import Path

from vstor.client import engine_api

HEADER = Path(__file__).resolve().parents[3] / "native/include/vstor/client.h"


def test_constants_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    numbers = dict(re.findall(r"(?:#define )?VST_((?:EV|IO|LEASE)_[A-Z_]+)(?: =)? (\d+)", text))
    assert len(numbers) >= 18
    for name, value in numbers.items():
        if name != "EV_NONE":
            assert getattr(engine_api, name) == int(value), name
    ours = {n for n in vars(engine_api) if n.startswith(("EV_", "LEASE_"))}
    assert ours <= set(numbers)


def test_bind_flags_are_described_in_the_header() -> None:
    text = HEADER.read_text()
    part = text[text.index("fh given in an OPEN/CREATE reply") : text.index("int vst_fuse_bind")]
    for flag, word in {
        1: "writable",
        2: "append",
        4: "sync",
        8: "suid",
        16: "POSIX locks",
        32: "FOPEN_DIRECT_IO",
    }.items():
        assert re.search(rf"\b{flag} [^.,]*{word}", part), word
