"""Constants of native/include/vstor/client.h (compared with it by tests/unit/client/test_engine_api.py)."""

from __future__ import annotations

LEASE_NONE, LEASE_SHARED, LEASE_EXCLUSIVE = 0, 1, 2
IO_READ, IO_WRITE, IO_SYNC, IO_PUNCH = 1, 2, 3, 4
IO_DURABLE, IO_APPEND, IO_TAIL = 1, 2, 4
BIND_WRITABLE, BIND_APPEND, BIND_SYNC, BIND_KILL_SUIDGID, BIND_FLUSH, BIND_DIRECT = 1, 2, 4, 8, 16, 32

EV_NEED_MAP = 1
EV_NEED_LEASE = 2
EV_NEED_CS = 3
EV_REPLICA_FAILED = 4
EV_BAD_BLOCK = 5
EV_DRAINED = 6
EV_IO_DONE = 7
EV_FUSE = 8
EV_FUSE_CLOSED = 9
EV_COMMIT = 10
EV_APPEND_MOVED = 11
