"""Prometheus text of an MDS."""

from __future__ import annotations

from vstor import clock
from vstor.mds.service import MdsService

PREFIX = "vstor_mds_"


def render(service: MdsService) -> str:
    """Everything the MDS counts."""
    labels = f'cluster="{service.config.cluster}",mds="{service.config.mds_id}"'
    lines: list[str] = []

    def put(name: str, value: float, kind: str, text: str) -> None:
        full = PREFIX + name
        lines.extend((f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full}{{{labels}}} {value:g}"))

    term, server = service.term, service.server
    put("leader", int(term is not None), "gauge", "1 while this MDS leads")
    put(
        "applied_revision", term.revision if term else service.applied_revision, "gauge", "last etcd revision in memory"
    )
    put("epoch", service.leader.epoch if service.leader else 0, "gauge", "epoch of the known leader")
    put("lives_ended_total", service.counters["lives_ended"], "counter", "times memory was dropped and loaded again")
    put("defects_total", service.counters["defects"], "counter", "lives ended by an internal error")
    put("terms_total", service.counters["terms"], "counter", "elections won")
    put("inodes", len(service.state.inodes), "gauge", "inodes in memory")
    if server is not None:
        put("connections", len(server.connections), "gauge", "control connections")
        for name in ("requests", "garbage", "refused", "silent", "denied", "limited", "slow_peers", "internal_errors"):
            put(f"rpc_{name}_total", server.counters[name], "counter", f"control connections or requests: {name}")
    if term is not None:
        for name, size in term.sizes.items():
            put(name, size, "gauge", name.replace("_", " "))
        put("commits_total", term.counters["commits"], "counter", "transactions of this term")
        put("mutations_total", term.counters["mutations"], "counter", "records written in this term")
        put("commit_ms_max", term.commit_ms_max, "gauge", "slowest commit of this term in ms")
        put(
            "serving_margin_ms",
            term.leadership.serving_until_ms() - clock.boottime_ms(),
            "gauge",
            "ms left of the leadership without another keepalive",
        )
        put("metadata_full", int(term.metadata_full), "gauge", "1 while growing requests are refused")
        if term.store_status is not None:
            put("store_size_bytes", term.store_status.size_bytes, "gauge", "size of etcd's database")
            put("store_used_bytes", term.store_status.used_bytes, "gauge", "of it in use")
    return "\n".join(lines) + "\n"
