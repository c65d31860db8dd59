"""The first records of a new cluster."""

from __future__ import annotations

import stat

from vstor.model import config as cfg
from vstor.model import keys
from vstor.model.directory import FIRST_COOKIE
from vstor.model.records import DOMAINS, Blob, Cluster, Counter, Event, EventSlot, Inode, Policy, Text, encode
from vstor.proto.messages import ROOT_INO

FIRST_CS_ID = 1025  # as operators of the original know them; small numbers are MDS ids
FIRST_IDS = {"ino": ROOT_INO + 1, "chunk": 1, "session": 1, "cs": FIRST_CS_ID, "event": 2}


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
    Raises: VstorError INVALID or NOT_FOUND for a bad configuration value.
    """
    if len(secrets["data_key"]) != 32:
        raise ValueError("data_key has 32 bytes")
    stored = {name: cfg.check(name, value) for name, value in config.items()}
    values = cfg.Config(stored)
    normal, minimum = cfg.parse_replicas(values.text("fs.replicas"))
    policy = Policy(
        normal,
        minimum,
        DOMAINS.index(values.text("fs.failure_domain")),
        values.int("fs.tier"),
        values.int("fs.chunk_size").bit_length() - 1,
    )
    now_ns = now_ms * 1_000_000
    root = Inode(
        ROOT_INO, 1, stat.S_IFDIR | 0o755, 2, 0, 0, 0, now_ns, now_ns, now_ns, policy.pack(),
        parent=ROOT_INO, next_cookie=FIRST_COOKIE,
    )  # fmt: skip
    event = Event(1, now_ms, "MDS", "info", f"The cluster {cluster_name} was created")
    out: list[tuple[bytes, bytes | None]] = [
        (keys.CLUSTER_KEY, encode(Cluster(cluster_name, cluster_id, now_ms, 1, now_ms))),
        (keys.inode(ROOT_INO), encode(root)),
        (keys.events(0), encode(EventSlot([event]))),
    ]
    out += [(keys.named(keys.SECRET, name), encode(Blob(data))) for name, data in secrets.items()]
    out += [(keys.named(keys.COUNTER, name), encode(Counter(first))) for name, first in FIRST_IDS.items()]
    out += [(keys.named(keys.CONFIG, name), encode(Text(value))) for name, value in stored.items()]
    return out
