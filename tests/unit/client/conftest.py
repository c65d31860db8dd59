"""Clients on a fake MDS (the real state machine) and a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio
from vstor.client.volume import Volume

from tests.helpers.fakeengine import Disk, FakeNative
from tests.helpers.fakemds import FakeMds, FakeRpc


class World:
    """One cluster and its clients."""

    def __init__(self, mds: FakeMds) -> None:
        self.mds, self.disk = mds, Disk()
        self.volumes: list[Volume] = []

    async def client(self, make_kernel: Callable[[Any], Any] | None = None) -> Volume:
        host_id = f"{0xC0 + len(self.volumes):016x}"

        def make_rpc(on_push: Any, on_connect: Any) -> FakeRpc:
            return FakeRpc(self.mds, host_id, on_push, on_connect)

        volume = Volume(
            make_rpc,
            lambda auth_mode: FakeNative(self.disk, auth_mode),
            name="test",
            host_id=host_id,
            host="testhost",
            make_kernel=make_kernel,
        )
        self.volumes.append(volume)
        await volume.start(5)
        return volume

    async def until(self, check: Callable[[], Any], timeout_s: float = 10) -> Any:
        """Let everything run until check() is true."""
        async with asyncio.timeout(timeout_s):
            while not (result := check()):  # noqa: ASYNC110 - whatever the check looks at has no event of its own
                await asyncio.sleep(0.001)
        return result


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    mds = FakeMds(config={"fs.failure_domain": "disk"})
    built = World(mds)
    yield built
    for volume in built.volumes:
        await volume.close()
    await mds.close()
