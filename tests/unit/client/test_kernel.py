"""Notifications: who may wait for whom."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest
from vstor.client import fuseproto as fp
from vstor.client.kernel import THREADS_MAX, FuseKernel
from vstor.client.leases import merged

pytestmark = pytest.mark.asyncio


async def test_late_drops_that_hang_keep_nothing_else_waiting() -> None:
    hang, seen, waiting = threading.Event(), [], threading.Semaphore(0)

    def notify(code: int, body: bytes) -> int:
        _, offset, _ = fp.INVAL_INODE_OUT.unpack(body)
        seen.append(offset)
        if offset == 4096:
            waiting.release()
            hang.wait(30)
        return 0

    kernel = FuseKernel(notify)
    stuck = [asyncio.ensure_future(kernel.drop_pages(i, 4096, 4096, late=True)) for i in range(2 * THREADS_MAX)]
    async with asyncio.timeout(20):
        for _ in range(THREADS_MAX):
            await asyncio.to_thread(waiting.acquire)
        assert await kernel.drop_pages(7)
        await kernel.drop_attr(7, known=True)
    assert seen[-2:] == [0, -1]
    hang.set()
    assert all(await asyncio.gather(*stuck))
    kernel.close()


async def test_an_inode_the_kernel_does_not_have_yet_is_told_again() -> None:
    answers = [-errno.ENOENT, -errno.ENOENT, 0]
    kernel = FuseKernel(lambda _code, _body: answers.pop(0))
    await kernel.drop_attr(5, known=True)
    assert answers == []
    answers[:] = [-errno.ENOENT]
    await kernel.drop_attr(5, known=False)
    assert answers == []


async def test_pages_that_cannot_be_dropped_are_said(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FuseKernel(lambda _code, _body: -errno.EBUSY)
    assert not await kernel.drop_pages(5)
    assert "kernel keeps pages ino=5" in caplog.text
    assert await FuseKernel(lambda _code, _body: -errno.ENOENT).drop_pages(5)


async def test_ranges_are_merged() -> None:
    assert merged([(4096, 8192), (0, 4096), (0, 100), (20_000, 20_001)]) == [(0, 8192), (20_000, 20_001)]
    assert merged([(0, 0)]) == [(0, 0)]
    assert merged([]) == []
