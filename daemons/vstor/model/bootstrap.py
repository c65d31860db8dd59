"""The first records of a new cluster."""

from __future__ import annotations


def initial_mutations(
    cluster_name: str,
    cluster_id: str,
    config: dict[str, str],
    secrets: dict[str, bytes],
    now_ms: int,
) -> list[tuple[bytes, bytes | None]]:
    """Records of an empty cluster: root directory, cluster, secrets, counters, configuration, first event.

    Args:
        cluster_id: 32 hex digits. config: values other than the defaults, names as in model/config.py.
        secrets: kept as they are in State.secrets; must have `data_key` (32 random bytes: chunk server and ticket keys are derived
            from it). The shell adds its own, e.g. `verifier` (password), `salt`, `ca_key`, `ca_cert`, `etcd_ca_key`, ...
    """
    raise NotImplementedError
