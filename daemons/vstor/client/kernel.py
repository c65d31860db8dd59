"""Telling the kernel what to drop. The library has no kernel cache and uses `NoKernel`."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from vstor.client import fuseproto as fp

log = logging.getLogger(__name__)

THREADS_MAX = 16  # one notification blocks as long as a page is locked
# A reply that names an inode may have been written but not yet been used by the kernel: the notification then finds nothing.
UNKNOWN_RETRIES_S = (0.001, 0.01, 0.1)


class KernelCache(Protocol):
    """Caches above this client."""

    async def drop_attr(self, ino: int, *, known: bool) -> None:
        """Attributes are old. known: the kernel holds a reference, so not finding it means "not yet"."""

    async def drop_pages(self, ino: int, offset: int = 0, length: int = 0, *, late: bool = False) -> bool:
        """Write back and drop pages (length 0: to the end) and attributes. False when some could not be dropped.

        late: a page may be locked by a request that waits for a lease, so this may take as long as another client likes.
        """

    names_cached: bool  # names may be given a time of validity, because drop_names can take it back
    direct_writes_drop_pages: (
        bool  # cached pages of what is written through a FOPEN_DIRECT_IO handle are dropped by the kernel itself
    )

    def drop_names(self) -> None:
        """No name is to be believed any more without asking. At once, does not block."""

    def close(self) -> None:
        """Nothing is told any more."""


class NoKernel:
    """No cache, nothing to drop."""

    names_cached = False
    direct_writes_drop_pages = False

    async def drop_attr(self, ino: int, *, known: bool) -> None:
        return

    async def drop_pages(self, ino: int, offset: int = 0, length: int = 0, *, late: bool = False) -> bool:
        return True

    def drop_names(self) -> None:
        return

    def close(self) -> None:
        return


class FuseKernel:
    """Notifications to the kernel; those that can block on page locks from small pools of threads.

    `notify(code, body)` gives 0 or a negative errno (vst_fuse_notify).
    """

    def __init__(self, notify: Callable[[int, bytes], int], *, leave_names: bool = True) -> None:
        """leave_names: False keeps names out of the kernel, as one that cannot drop them."""
        self._notify = notify
        self.names_cached = self.direct_writes_drop_pages = False
        self._leave_names = leave_names
        # Late drops wait for other clients, so they must not keep the threads from drops that others wait for.
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="fuse-drop")
        self._late_pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="fuse-drop-late")
        self.sent = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._late_pool.shutdown(wait=False, cancel_futures=True)

    async def drop_attr(self, ino: int, *, known: bool) -> None:
        """Without a range the kernel takes no lock that anybody keeps, so this needs no thread."""
        self.sent += 1
        body = fp.inval_inode(ino, -1, 0)
        result = self._notify(fp.Notify.INVAL_INODE, body)
        for pause_s in UNKNOWN_RETRIES_S if known else ():
            if result != -errno.ENOENT:
                return
            await asyncio.sleep(pause_s)
            result = self._notify(fp.Notify.INVAL_INODE, body)

    async def drop_pages(self, ino: int, offset: int = 0, length: int = 0, *, late: bool = False) -> bool:
        self.sent += 1
        pool, body = self._late_pool if late else self._pool, fp.inval_inode(ino, offset, length)
        for _ in range(3):
            result = await asyncio.get_running_loop().run_in_executor(pool, self._notify, fp.Notify.INVAL_INODE, body)
            if result in (0, -errno.ENOENT):
                return True
        log.warning("kernel keeps pages ino=%s offset=%s length=%s errno=%s", ino, offset, length, -result)
        return False

    def probe(self) -> None:
        """Once the file system is mounted: what can this kernel do?

        Taking a name back by FUSE_NOTIFY_INVAL_ENTRY waits for the lock of its directory, which the kernel holds while a request of ours
        on that directory waits for the MDS; that may be waiting for another client in the same position.  So names are cached in the
        kernel only where their epoch can be ended without a lock; elsewhere it asks, and the engine answers (kept.py).
        """
        epochs = self._notify(fp.Notify.INC_EPOCH, b"") == 0
        self.names_cached = epochs and self._leave_names
        self.direct_writes_drop_pages = epochs  # since 6.13; epochs came with 6.16

    def drop_names(self) -> None:
        if self.names_cached:
            self.sent += 1
            result = self._notify(fp.Notify.INC_EPOCH, b"")
            if result < 0:
                log.error("kernel does not drop names errno=%s", -result)
