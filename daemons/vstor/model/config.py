"""Cluster configuration: names, defaults, bounds. Names with `mds.wd` and `mds.alloc` are the ones operators know (FEATURES)."""

from __future__ import annotations

from dataclasses import dataclass

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError


@dataclass(frozen=True, slots=True)
class Option:
    """An integer option, or one of `choices`."""

    default: str
    low: int = 0
    high: int = 0
    unit: str = ""
    text: str = ""
    choices: tuple[str, ...] = ()


def _int(default: int, low: int, high: int, unit: str, text: str) -> Option:
    return Option(str(default), low, high, unit, text)


MB = 1 << 20
OPTIONS: dict[str, Option] = {
    "mds.wd.offline_tout": _int(
        300_000, 1_000, 604_800_000, "ms", "a silent chunk server becomes offline: re-replication starts"
    ),
    "mds.wd.max_offline_cs_hosts": _int(
        2, 0, 10_000, "hosts", "more offline hosts stop automatic replication; 0: no limit"
    ),
    "mds.wd.heartbeat": _int(1_000, 50, 60_000, "ms", "interval of chunk server heartbeats"),
    "mds.wd.inactive_heartbeats": _int(3, 2, 100, "", "missed heartbeats after which a chunk server is inactive"),
    "mds.wd.maintenance_tout": _int(
        1_800_000, 1_000, 604_800_000, "ms", "maintenance of a chunk server ends by itself"
    ),
    "mds.wd.ill_latency": _int(
        200,
        0,
        60_000,
        "ms",
        "an average above this, and far above the others', for long makes a chunk server ill; 0: off",
    ),
    "mds.cs.lease": _int(
        6_000, 500, 600_000, "ms", "a chunk server without an answered heartbeat serves no longer than this"
    ),
    "mds.lease.ttl": _int(15_000, 500, 600_000, "ms", "a client's session ends so long after its last renewal"),
    "mds.lease.margin": _int(3_000, 100, 60_000, "ms", "the client stops so much earlier than the session ends"),
    "mds.lease.recall_tout": _int(
        60_000, 500, 3_600_000, "ms", "a client that does not answer a recall loses its session"
    ),
    "mds.ticket.ttl": _int(3_600_000, 10_000, 86_400_000, "ms", "validity of tickets and data session keys"),
    "mds.ticket.rotate": _int(86_400_000, 60_000, 31_536_000_000, "ms", "age at which a new ticket key is taken"),
    "mds.alloc.fill_margin": _int(5, 0, 50, "%", "part of a chunk server kept free of new chunks"),
    "mds.alloc.free_space_margin": _int(512, 0, 1_000_000, "MB", "the same in MB; at most a tenth of the server"),
    "mds.alloc.capacity_limit": _int(0, 0, 1 << 62, "bytes", "logical capacity of the cluster; 0: what the disks give"),
    "mds.repl.max_per_cs": _int(2, 1, 64, "", "copies in flight to and from one chunk server"),
    "mds.repl.max_total": _int(256, 1, 10_000, "", "copies in flight in the cluster"),
    "mds.repl.rate": _int(0, 0, 100_000, "MB/s", "bandwidth of one copy; 0: no limit"),
    "mds.balance.max_total": _int(4, 0, 1_000, "", "replicas being moved to a better place at once; 0: off"),
    "mds.balance.spread": _int(
        10, 1, 100, "%", "replicas move when disks of a tier differ by more of their space than this"
    ),
    "mds.balance.rate": _int(50, 0, 100_000, "MB/s", "bandwidth of one move; 0: no limit"),
    "mds.order.tout": _int(
        5_000, 200, 600_000, "ms", "an unanswered order is sent again; twice: the replica counts as failed"
    ),
    "mds.repl.tout": _int(600_000, 1_000, 86_400_000, "ms", "an unfinished copy is given up"),
    "mds.session.max": _int(10_000, 1, 1_000_000, "", "client sessions"),
    "mds.lease.max_per_session": _int(1_000_000, 16, 100_000_000, "", "inodes one session may cache or hold"),
    "cs.scrub.rate": _int(20, 0, 100_000, "MB/s", "scrubbing speed of one chunk server; 0: off"),
    "cs.scrub.interval": _int(604_800_000, 60_000, 31_536_000_000, "ms", "time between two passes over the same chunk"),
    "data.auth_mode": Option("sign", choices=("crc", "sign", "secure"), text="protection of data connections"),
    "fs.replicas": Option("1:1", text="replicas of new clusters' root, normal[:minimum]"),
    "fs.failure_domain": Option("host", choices=("disk", "host", "rack", "row", "room"), text="of new clusters' root"),
    "fs.tier": _int(0, 0, 3, "", "of new clusters' root"),
    "fs.chunk_size": _int(64 * MB, MB, 1024 * MB, "bytes", "of new clusters' root; power of two"),
    "freespace.threshold.percent": _int(20, 0, 100, "%", "free space below which the tools warn"),
    "freespace.threshold.mb": _int(1024, 0, 1 << 40, "MB", "free space below which the tools warn"),
}
AUTH_MODES = {"crc": 0, "sign": 1, "secure": 2}


def parse_replicas(text: str) -> tuple[int, int]:
    """(normal, minimum) of `3:2` or `3`. minimum left out: normal - 1, at least 1. Raises VstorError INVALID."""
    head, _, tail = text.partition(":")
    if not head.isdecimal() or (tail and not tail.isdecimal()) or (":" in text and not tail):
        raise VstorError(ErrorCode.INVALID, f"replicas={text}: want NORMAL[:MINIMUM], for example 3:2")
    normal = int(head)
    minimum = int(tail) if tail else max(1, normal - 1)
    if not 1 <= minimum <= normal <= 15:
        raise VstorError(ErrorCode.INVALID, f"replicas={text}: want 1 <= MINIMUM <= NORMAL <= 15")
    return normal, minimum


def check(name: str, value: str) -> str:
    """The value as it is stored. Raises VstorError: NOT_FOUND (no such option), INVALID."""
    option = OPTIONS.get(name)
    if option is None:
        raise VstorError(ErrorCode.NOT_FOUND, f"no option {name}; get-config lists them")
    value = value.strip()
    if name == "fs.replicas":
        parse_replicas(value)
    elif option.choices:
        if value not in option.choices:
            raise VstorError(ErrorCode.INVALID, f"{name}={value}: want one of {', '.join(option.choices)}")
    else:
        _check_int(name, value, option)
    return value


def _check_int(name: str, value: str, option: Option) -> None:
    if not value.isdecimal() or not option.low <= int(value) <= option.high:
        raise VstorError(
            ErrorCode.INVALID, f"{name}={value}: want a number {option.low}..{option.high} {option.unit}".rstrip()
        )
    if name == "fs.chunk_size" and int(value) & (int(value) - 1):
        raise VstorError(ErrorCode.INVALID, f"{name}={value}: want a power of two")


class Config:
    """The values in force: what the store has over the defaults."""

    def __init__(self, stored: dict[str, str]) -> None:
        self._stored = stored

    def text(self, name: str) -> str:
        """The value as text."""
        return self._stored.get(name, OPTIONS[name].default)

    def int(self, name: str) -> int:
        """The value of an integer option."""
        return int(self._stored.get(name, OPTIONS[name].default))

    def all(self) -> dict[str, str]:
        """Every option with its value."""
        return {name: self.text(name) for name in OPTIONS}
