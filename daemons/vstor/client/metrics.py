"""Metrics of a mount in Prometheus' text format."""

from __future__ import annotations

from typing import Any

from vstor.client import fuseproto as fp

# counter of the engine -> (name, kind, help)
ENGINE = {
    "reads": ("vstor_client_reads_total", "counter", "Read requests done"),
    "writes": ("vstor_client_writes_total", "counter", "Write requests done"),
    "syncs": ("vstor_client_syncs_total", "counter", "Sync requests done"),
    "bytes_read": ("vstor_client_read_bytes_total", "counter", "Bytes read"),
    "bytes_written": ("vstor_client_written_bytes_total", "counter", "Bytes written, once for all replicas"),
    "retries": ("vstor_client_retries_total", "counter", "Requests to chunk servers sent again"),
    "replica_failures": (
        "vstor_client_replica_failures_total",
        "counter",
        "Replicas reported because a write did not reach them",
    ),
    "bad_blocks": ("vstor_client_bad_blocks_total", "counter", "Damaged blocks met"),
    "reconnects": ("vstor_client_reconnects_total", "counter", "Connections to chunk servers made again"),
    "parked": ("vstor_client_parked_requests", "gauge", "Requests that wait for a map or a lease"),
    "inflight": ("vstor_client_inflight_requests", "gauge", "Requests under way"),
    "fuse_requests": ("vstor_client_fuse_requests_total", "counter", "Requests of the kernel"),
    "fuse_slow": (
        "vstor_client_fuse_slow_requests_total",
        "counter",
        "Requests of the kernel answered by the metadata path",
    ),
    "fuse_kept": (
        "vstor_client_fuse_kept_requests_total",
        "counter",
        "Lookups and questions for attributes that the engine answered",
    ),
}
LATENCY = ("read", "write", "sync")


def render(operations: Any) -> str:
    """The whole text. Does not block."""
    volume = operations.volume
    counters = volume.engine.native.counters()
    out: list[str] = []

    def put(name: str, kind: str, text: str, value: float, labels: str = "") -> None:
        if not labels:
            out.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}"))
        out.append(f"{name}{labels} {value:g}" if isinstance(value, float) else f"{name}{labels} {value}")

    for field, (name, kind, text) in ENGINE.items():
        put(name, kind, text, counters[field])
    for what in LATENCY:
        put(
            f"vstor_client_{what}_seconds_total",
            "counter",
            f"Time spent in {what} requests",
            counters[f"{what}_ns_sum"] / 1e9,
        )
        put(f"vstor_client_{what}_seconds_max", "gauge", f"Longest {what} request", counters[f"{what}_ns_max"] / 1e9)
    put(
        "vstor_client_session_remaining_ms",
        "gauge",
        "How long leases are valid without another answer",
        volume.session.remaining_ms(),
    )
    put(
        "vstor_client_sessions_total",
        "counter",
        "Sessions opened; more than one: sessions were lost",
        volume.session.sessions,
    )
    put("vstor_client_recalls_total", "counter", "Leases recalled", volume.leases.recalls)
    put("vstor_client_invalidations_total", "counter", "Attributes or names invalidated", volume.leases.invalidations)
    put("vstor_client_inodes", "gauge", "Inodes known", len(volume.table.inodes))
    put("vstor_client_open_handles", "gauge", "Open files", len(volume.table.handles))
    put("vstor_client_lookups_cached_total", "counter", "Names answered from memory", volume.names.lookups_cached)
    put("vstor_client_lookups_asked_total", "counter", "Names asked of the MDS", volume.names.lookups_asked)
    put("vstor_client_errors_total", "counter", "Requests of the kernel answered with an error", operations.errors)
    out.extend(
        ("# HELP vstor_client_operations_total Kernel requests by kind", "# TYPE vstor_client_operations_total counter")
    )
    for opcode, count in sorted(operations.requests.items()):
        put("vstor_client_operations_total", "counter", "", count, f'{{op="{_op(opcode)}"}}')
    return "\n".join(out) + "\n"


def _op(opcode: int) -> str:
    try:
        return fp.Op(opcode).name.lower()
    except ValueError:
        return str(opcode)
