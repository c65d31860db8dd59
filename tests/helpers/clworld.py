"""What tests of the client engine share: in-memory chunk servers, a small MDS, short names."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

from vstor.native import cl, lib

from tests.helpers.fakecs import FakeCs
from tests.helpers.minimds import MiniMds

READ, WRITE, SYNC, PUNCH = lib.VST_IO_READ, lib.VST_IO_WRITE, lib.VST_IO_SYNC, lib.VST_IO_PUNCH
DURABLE, APPEND, TAIL = 1, 2, 4
KEY = bytes(range(32))
NONE, SHARED, EXCLUSIVE = lib.VST_LEASE_NONE, lib.VST_LEASE_SHARED, lib.VST_LEASE_EXCLUSIVE


@contextlib.contextmanager
def cluster(count: int = 3, **options: Any) -> Iterator[MiniMds]:
    options.setdefault("io_timeout_ms", 500)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FakeCs(i + 1, KEY)) for i in range(count)]
        yield stack.enter_context(MiniMds(servers, KEY, **options))


def read(file: cl.File, offset: int, length: int) -> bytes:
    buf = bytearray(length)
    got = file.io(READ, offset, length, buf)
    return bytes(buf[:got])


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def replicas_of(mds: MiniMds, ino: int, index: int, offset: int, length: int) -> list[bytes]:
    chunk = mds.inodes[ino].chunks[index]
    return [mds.servers[i].data(chunk.chunk_id, offset, length) for i in chunk.replicas]


def wait_parked(mds: MiniMds, count: int) -> None:
    """Polls: the engine raises no event for what is parked a second time."""
    end = time.monotonic() + 20
    while mds.client.counters()["parked"] != count:
        assert time.monotonic() < end, mds.client.counters()
        time.sleep(0.005)


def synced(mds: MiniMds, ino: int, index: int) -> list[dict[int, bytes]]:
    chunk = mds.inodes[ino].chunks[index]
    return [mds.servers[i].chunks[chunk.chunk_id].synced for i in chunk.replicas]
