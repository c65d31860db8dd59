"""The stores under the contract: each test runs on every one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from vstor.meta.etcd import EtcdStore
from vstor.meta.etcd_pb import rpc
from vstor.meta.keys import PREFIX
from vstor.meta.memory import MemoryStore
from vstor.meta.store import Store

from tests.unit.meta.etcd_helpers import Etcd


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path_factory.mktemp("etcd"))
    etcd.start()
    yield etcd
    etcd.kill()


@pytest_asyncio.fixture
async def etcd_store(shared_etcd: Etcd) -> AsyncIterator[EtcdStore]:
    made = EtcdStore([shared_etcd.url], None)
    end = PREFIX[:-1] + bytes([PREFIX[-1] + 1])
    await made.client.call("KV", "DeleteRange", rpc.DeleteRangeRequest(key=PREFIX, range_end=end))
    yield made
    await made.close()


@pytest.fixture(params=["memory_store", "etcd_store"])
def store(request: pytest.FixtureRequest) -> Store:
    made: Store = request.getfixturevalue(request.param)
    return made


@pytest_asyncio.fixture
async def memory_store() -> MemoryStore:
    return MemoryStore()
