"""A mounted FUSE file system with one directory and its files, whose data is the client engine's: just enough Python to test the C side.

DESIGN: the slow side is one thread that takes kernel messages when MiniMds sees the event. The mount is done with mount(2) and undone in any
case. Page faults on a mapping hold the GIL, which the chunk servers of the same process need: mappings are tested in another process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import struct
import threading
from pathlib import Path
from typing import Any

from vstor.native import cl, lib

from tests.helpers.minimds import MiniMds

LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, OPEN, STATFS, RELEASE = 1, 2, 3, 4, 10, 14, 17, 18
GETXATTR, FLUSH, OPENDIR, READDIR, RELEASEDIR, GETLK, SETLK, SETLKW = 22, 25, 27, 28, 29, 31, 32, 33
CREATE, BATCH_FORGET, ACCESS, READDIRPLUS = 35, 42, 34, 44
IN_HEADER = struct.Struct("<IIQQIIIHH")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
MNT_FORCE, MNT_DETACH = 1, 2
FATTR_SIZE = 8
_libc = ctypes.CDLL(None, use_errno=True)


def mount(fd: int, point: Path) -> None:
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    if _libc.mount(b"vstor-test", os.fsencode(point), b"fuse.vstor-test", 0, options.encode()) < 0:
        raise OSError(ctypes.get_errno(), "mount")


def unmount(point: Path) -> None:
    """By force when it is busy: requests that nobody answers end with ECONNABORTED."""
    if _libc.umount2(os.fsencode(point), 0) == 0:
        return
    if _libc.umount2(os.fsencode(point), MNT_FORCE | MNT_DETACH) < 0 and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "umount")


class MiniFuse:
    """Context manager: mounted on entry. open_flags: FOPEN_* of every open (1: direct I/O, 64: parallel direct writes)."""

    def __init__(self, mds: MiniMds, point: Path, *, open_flags: int = 0, bind_flags: int = 0) -> None:
        self.mds, self.point = mds, point
        self.open_flags, self.bind_flags = open_flags, bind_flags
        self.names: dict[bytes, int] = {}
        self.files: dict[int, cl.File] = {}
        self.seen: list[int] = []  # opcodes that came to Python
        self.forgotten: list[tuple[int, int]] = []
        self.handles: dict[int, int] = {}
        self.closed = threading.Event()
        self.release = threading.Condition()
        self._next = 2
        self._queue: queue.Queue[bool] = queue.Queue()
        self._fd = -1
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> MiniFuse:
        usual = self.mds.policy

        def policy(event: cl.Event) -> bool:
            if event.kind == lib.VST_EV_FUSE:
                self._queue.put(True)
            elif event.kind == lib.VST_EV_FUSE_CLOSED:
                self.closed.set()
            else:
                return usual(event)
            return True

        self.mds.policy = policy
        self._thread.start()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount(self._fd, self.point)
        assert self.mds.client.fuse_start(self._fd, 1 << 20, 64) == 0
        return self

    def __exit__(self, *_: object) -> None:
        try:
            unmount(self.point)
            assert self.closed.wait(20), "the engine did not see the unmount"
        finally:
            self._queue.put(False)
            self._thread.join()
            self.mds.client.stop()
            os.close(self._fd)

    # --- the slow side

    def _run(self) -> None:
        while self._queue.get():
            while (message := self.mds.client.fuse_take()) is not None:
                header = IN_HEADER.unpack_from(message)
                with self.release:
                    self.seen.append(header[1])
                    self._handle(header[1], header[2], header[3], message[IN_HEADER.size :])
                    self.release.notify_all()

    def _reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        assert self.mds.client.fuse_reply(unique, error, body) in (0, -errno.ENOENT)

    def _attr(self, ino: int) -> bytes:
        size = self.files[ino].size if ino in self.files else 0
        mode = 0o100644 if ino in self.files else 0o40755
        return ATTR.pack(ino, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entry(self, ino: int) -> bytes:
        return struct.pack("<QQQQII", ino, 0, 0, 0, 0, 0) + self._attr(ino)

    def _make(self, name: bytes) -> int:
        ino, self._next = self._next, self._next + 1
        self.names[name] = ino
        self.files[ino] = self.mds.new_file(ino)
        return ino

    def _open(self, ino: int, flags: int) -> bytes:
        fh = 1000 + len(self.handles)
        self.handles[fh] = ino
        bind = self.bind_flags
        bind |= 0 if flags & os.O_ACCMODE == os.O_RDONLY else 1
        bind |= 2 if flags & os.O_APPEND else 0
        bind |= 4 if flags & (os.O_SYNC | os.O_DSYNC) else 0
        assert self.mds.client.fuse_bind(fh, self.files[ino], bind) == 0
        return struct.pack("<QII", fh, self.open_flags, 0)

    def _handle(self, op: int, unique: int, nodeid: int, body: bytes) -> None:
        if op == LOOKUP:
            ino = self.names.get(body.rstrip(b"\0"))
            self._reply(unique, self._entry(ino) if ino else b"", 0 if ino else errno.ENOENT)
        elif op == GETATTR:
            self._reply(unique, struct.pack("<QII", 0, 0, 0) + self._attr(nodeid))
        elif op == SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            if valid & FATTR_SIZE:
                self._truncate(self.files[nodeid], size)
            self._reply(unique, struct.pack("<QII", 0, 0, 0) + self._attr(nodeid))
        elif op == CREATE:
            flags = struct.unpack_from("<I", body)[0]
            ino = self._make(body[16:].rstrip(b"\0"))
            self._reply(unique, self._entry(ino) + self._open(ino, flags))
        elif op == OPEN:
            flags = struct.unpack_from("<I", body)[0]
            if flags & os.O_TRUNC:
                self._truncate(self.files[nodeid], 0)
            self._reply(unique, self._open(nodeid, flags))
        elif op == RELEASE:
            self.mds.client.fuse_unbind(struct.unpack_from("<Q", body)[0])
            self._reply(unique)
        elif op in (SETLK, SETLKW, FLUSH, OPENDIR, RELEASEDIR):
            self._reply(unique, bytes(16) if op == OPENDIR else b"")
        elif op == BATCH_FORGET:
            count = struct.unpack_from("<I", body)[0]
            self.forgotten += [struct.unpack_from("<QQ", body, 8 + 16 * i) for i in range(count)]
        elif op in (READDIR, READDIRPLUS):
            self._reply(unique)
        else:
            self._reply(unique, error=errno.ENOSYS)

    def _truncate(self, file: cl.File, size: int) -> None:
        old = file.size
        if size < old:
            file.io(lib.VST_IO_PUNCH, size, old - size)
        file.set_size(size)

    def wait_seen(self, op: int, timeout_s: float = 20) -> None:
        with self.release:
            assert self.release.wait_for(lambda: op in self.seen, timeout_s), f"operation {op} did not come"


def fio(point: Path, *options: str) -> dict[str, Any]:
    """Run one job; its JSON. Fails the test with fio's output when it fails."""
    import json
    import subprocess

    command = ["fio", "--name=t", f"--filename={point}", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=point.parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    start = done.stdout.index("{")
    return dict(json.loads(done.stdout[start:])["jobs"][0])
