"""What the engine answers LOOKUP and GETATTR with, without a turn of Python (native/src/fuse_names.c).

DESIGN: a part of the table of inodes, put there when the kernel is answered and taken out by the table in the same step in which its own
record changes or ends (inodes.py is the only caller of the drops).  So it is valid exactly as long as the table is, and recalls and
invalidations need nothing else.  Writes, which Python does not see, end the attributes of their file in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Kept:
    """Nothing is kept: the library, which has no kernel above it."""

    def put_name(self, parent: int, name: bytes, ino: int) -> None:
        """The name means this inode; 0: there is no such name."""

    def drop_name(self, parent: int, name: bytes) -> None:
        """The name is not to be answered any more."""

    def put_attr(self, file: Any, ino: int, generation: int, attr: bytes) -> bool:
        """struct fuse_attr of an inode; file: of the engine, None when it is not open. True when there is something to drop."""
        return False

    def drop_attr(self, ino: int) -> int:
        """The attributes are not to be answered any more. How many references the kernel got meanwhile."""
        return 0

    def new_epoch(self, give_names: bool) -> None:
        """The kernel is about to drop all names; give_names: it may use names without asking from now on."""


class EngineKept(Kept):
    """In the engine of a mount. Concurrency: one event loop puts and drops, the engine's thread answers."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.on_given: Callable[[int, bytes], None] = lambda _parent, _name: (
            None
        )  # a name is dropped that the kernel may go on using

    def put_name(self, parent: int, name: bytes, ino: int) -> None:
        self._engine.native.fuse_put_name(parent, name, ino)

    def drop_name(self, parent: int, name: bytes) -> None:
        if self._engine.native.fuse_drop_name(parent, name):
            self.on_given(parent, name)

    def put_attr(self, file: Any, ino: int, generation: int, attr: bytes) -> bool:
        return bool(self._engine.native.fuse_put_attr(file, ino, generation, attr) == 0)

    def drop_attr(self, ino: int) -> int:
        return int(self._engine.native.fuse_drop_attr(ino))

    def new_epoch(self, give_names: bool) -> None:
        self._engine.native.fuse_new_epoch(give_names)
