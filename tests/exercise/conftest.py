"""The clusters of tests/cluster."""

from tests.cluster.conftest import mnt, own_cluster, shared_cluster  # noqa: F401 - fixtures
