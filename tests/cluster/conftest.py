"""Clusters for tests: one shared (tests only add files of their own), or one of one's own to break."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster
from tests.helpers.island import Island
from tests.helpers.outside import Loader
from tests.helpers.several import wait_all

ISLAND_PORT = 2510


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """3 CSs, replicas 3:2, two mounts "a" and "b"; nobody breaks it."""
    assert os.geteuid() == 0, "cluster tests mount file systems: run them as root"
    cluster = Cluster(tmp_path_factory.mktemp("shared"))
    try:
        cluster.make()
        cluster.mount("a")
        cluster.mount("b")
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture(params=["kernel", "engine"])
def cluster_of_either_kind(shared_cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """The shared cluster; its mounts "a" and "b" are of a kernel that keeps names, or of one that asks the engine for each (before 6.16)."""
    if request.param == "kernel":
        return shared_cluster
    for label in ("old-a", "old-b"):
        if label not in shared_cluster.mounts:
            shared_cluster.mount(label, kernel_names=False)
    other = copy.copy(shared_cluster)
    other.mounts = {"a": shared_cluster.mounts["old-a"], "b": shared_cluster.mounts["old-b"]}
    return other


@pytest.fixture
def mnt(shared_cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on mount a."""
    path: Path = shared_cluster.mounts["a"] / request.node.name.translate(str.maketrans("[]/", "___"))[:100]
    path.mkdir()
    return path


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """3 CSs, replicas 3:2, one mount "a"; the test may break it."""
    cluster = Cluster(tmp_path)
    try:
        cluster.make()
        cluster.mount("a")
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture
def three(own_cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Cluster, Loader]]:
    """own_cluster with a loader and, added under it, two more MDSs."""
    load = Loader(own_cluster.mounts["a"] / "load", tmp_path / "load.progress")
    try:
        for _ in range(2):
            own_cluster.add_mds()
        wait_all(own_cluster, 3)
        load.wait_rounds(3)
        yield own_cluster, load
    finally:
        load.end()


@pytest.fixture(scope="module")
def archipelago(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Loader, Island]]:
    """Three MDSs, of which the first, on an island (a network of its own that can be cut off), leads; three CSs and a loaded mount here."""
    assert os.geteuid() == 0, "cluster tests mount file systems: run them as root"
    base = tmp_path_factory.mktemp("archipelago")
    island = Island()
    cluster = Cluster(base, address=island.outside)
    load: Loader | None = None
    try:
        cluster.make_first_mds(island.inside, port=ISLAND_PORT, prefix=island.prefix)
        cluster.make()
        cluster.mount("a")
        load = Loader(cluster.mounts["a"] / "load", base / "load.progress")
        for _ in range(2):
            cluster.add_mds(island.outside)
        wait_all(cluster, 3)
        load.wait_rounds(3)
        yield cluster, load, island
        load.stop()
    finally:
        if load is not None:
            load.end()
        cluster.destroy()
        island.destroy()
