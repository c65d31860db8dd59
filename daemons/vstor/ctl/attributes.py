"""Attributes of files and directories: what set-attr takes. Checked here for a quick answer; the MDS has the last word."""

from __future__ import annotations

import re

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.units import parse_size

REPLICAS_MAX = 15
TIER_MAX = 3
CHUNK_BYTES_MIN = 1 << 20
CHUNK_BYTES_MAX = 1 << 30
FAILURE_DOMAINS = ("disk", "host", "rack", "row", "room")


def _replicas(value: str) -> str:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", value)
    if not match:
        raise ValueError("write NORMAL or NORMAL:MINIMUM, for example 3:2")
    normal = int(match[1])
    minimum = int(match[2]) if match[2] else None
    if not 1 <= normal <= REPLICAS_MAX:
        raise ValueError(f"the normal number is 1 to {REPLICAS_MAX}")
    if minimum is not None and not 1 <= minimum <= normal:
        raise ValueError("the minimum is at least 1 and not above the normal number")
    return f"{normal}" if minimum is None else f"{normal}:{minimum}"


def _failure_domain(value: str) -> str:
    if value not in FAILURE_DOMAINS:
        raise ValueError(f"one of {', '.join(FAILURE_DOMAINS)}")
    return value


def _tier(value: str) -> str:
    if not value.isdecimal() or int(value) > TIER_MAX:
        raise ValueError(f"0 to {TIER_MAX}")
    return str(int(value))


def _chunk_size(value: str) -> str:
    n_bytes = parse_size(value)
    if n_bytes & (n_bytes - 1) or not CHUNK_BYTES_MIN <= n_bytes <= CHUNK_BYTES_MAX:
        raise ValueError("a power of two from 1M to 1G, for example 64M")
    return str(n_bytes)


def _switch(value: str) -> str:
    if value not in ("0", "1"):
        raise ValueError("0 or 1")
    return value


CHECKS = {
    "replicas": _replicas,
    "failure-domain": _failure_domain,
    "tier": _tier,
    "chunk-size": _chunk_size,
    "client-ssd-cache": _switch,
}


def parse_attributes(words: list[str]) -> dict[str, str]:
    """name=value words, checked and in the form the MDS stores. Raises INVALID naming the word."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise VstorError(ErrorCode.INVALID, f"{word!r} sets nothing — write name=value, for example replicas=3:2")
        check = CHECKS.get(name)
        if check is None:
            raise VstorError(ErrorCode.INVALID, f"no attribute {name!r} — there are {', '.join(CHECKS)}")
        try:
            checked = check(value)
        except ValueError as exc:
            raise VstorError(ErrorCode.INVALID, f"{word!r} does not do — {name}: {exc}") from None
        if found.setdefault(name, checked) != checked:
            raise VstorError(ErrorCode.INVALID, f"{name} is given twice with different values — give it once")
    return found
