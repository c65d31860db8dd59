"""What native/src/fuse_names.c does, in Python: the fake engine answers LOOKUP and GETATTR with it."""

from __future__ import annotations

import errno
from typing import Any

from vstor import clock
from vstor.client import fuseproto as fp

Reply = tuple[int, bytes]  # errno, body


class FakeKept:
    """Names and attributes put by the client under test."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, bytes], int] = {}
        self.attrs: dict[int, tuple[Any, int, bytes]] = {}  # engine's file, generation, struct fuse_attr
        self.lookups: dict[int, int] = {}
        self.given: set[tuple[int, bytes]] = set()
        self.give_names = False
        self.answered = 0

    def put_attr(self, file: Any, ino: int, generation: int, attr: bytes) -> None:
        assert len(attr) == fp.ATTR.size
        self.attrs[ino] = (file, generation, attr)
        self.lookups.setdefault(ino, 0)

    def drop_name(self, key: tuple[int, bytes]) -> bool:
        given = self.names.pop(key, None) is not None and key in self.given
        self.given.discard(key)
        return given

    def drop_attr(self, ino: int) -> int:
        self.attrs.pop(ino, None)
        return self.lookups.pop(ino, 0)

    def new_epoch(self, give_names: bool) -> None:
        self.given.clear()
        self.give_names = give_names

    def answer(self, op: int, nodeid: int, body: bytes, lease_until: int) -> Reply | None:
        """None: Python is asked."""
        ms = lease_until - clock.boottime_ms()
        reply = None
        if ms > 0 and op == fp.Op.GETATTR:
            reply = self._getattr(nodeid, ms)
        elif ms > 0 and op == fp.Op.LOOKUP:
            reply = self._lookup(nodeid, body.rstrip(b"\0"), ms)
        self.answered += reply is not None
        return reply

    def _valid(self, ino: int) -> tuple[Any, int, bytes] | None:
        """A write that Python has not heard of ends them."""
        known = self.attrs.get(ino)
        return None if known is None or (known[0] is not None and known[0].mtime_ns) else known

    def _getattr(self, ino: int, ms: int) -> Reply | None:
        known = self._valid(ino)
        return known and (0, fp.ATTR_HEAD.pack(ms // 1000, ms % 1000 * 1_000_000, 0) + known[2])

    def _lookup(self, parent: int, name: bytes, ms: int) -> Reply | None:
        ino = self.names.get((parent, name))
        known = self._valid(ino) if ino else None
        if ino is None or (ino and known is None):
            return None
        valid = (ms // 1000, ms % 1000 * 1_000_000) if self.give_names else (0, 0)
        if self.give_names:
            self.given.add((parent, name))
        if known is None:
            head = fp.ENTRY_HEAD.pack(0, 0, valid[0], 0, valid[1], 0)
            return (0, head + bytes(fp.ATTR.size)) if self.give_names else (errno.ENOENT, b"")
        self.lookups[ino] += 1
        head = fp.ENTRY_HEAD.pack(ino, known[1], valid[0], ms // 1000, valid[1], ms % 1000 * 1_000_000)
        return 0, head + known[2]
