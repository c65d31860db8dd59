"""Clusters for tests: one shared (tests only add files of their own), or one of one's own to break."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster


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
