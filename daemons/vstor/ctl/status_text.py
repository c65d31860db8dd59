"""The status object as text. Pure: object in, lines out; columns and words as FEATURES.md has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.ctl.output import percent, table
from vstor.errors import VstorError
from vstor.units import format_duration, format_size

CHUNK_STATES = (
    "healthy",
    "degraded",
    "urgent",
    "blocked",
    "pending",
    "offline",
    "standby",
    "replicating",
    "overcommitted",
    "deleting",
    "void",
    "unique",
)
CHUNKS_A_LINE = 3
# Any of these above zero means that data are at risk or not to be had.
BAD_CHUNK_STATES = ("urgent", "blocked", "pending", "offline")
SHORT_CHUNK_STATES = ("offline", "pending", "blocked", "urgent", "degraded")  # fewer replicas than wanted, worst first
FULL_WARN_PERCENT = 80
FULL_ERROR_PERCENT = 95


SPACE_COLUMNS = ("CSID", "STATUS", "SPACE", "FREE/AVAIL", "REPLICAS", "UNIQUE", "TIER", "HOST")
IO_COLUMNS = ("CSID", "STATUS", "IOWAIT", "IOLAT(ms)", "QDEPTH", "JRN_FULL", "FLAGS", "HOST")
COLUMN_SETS: tuple[tuple[str, ...] | None, ...] = (None, SPACE_COLUMNS, IO_COLUMNS)  # None: all


@dataclass(frozen=True)
class View:
    """What of the page is wanted.

    Attributes:
        numeric: plain bytes instead of 1.5GB.
        tables: mds, cs and clients, those shown.
        details: chunks, space and file system above the tables.
        columns: index into COLUMN_SETS, of the table of chunk servers.
        sort: table -> (column, descending).
    """

    numeric: bool = False
    tables: tuple[str, ...] = ("mds", "cs", "clients")
    details: bool = True
    columns: int = 0
    sort: Mapping[str, tuple[str, bool]] = field(default_factory=dict)


def render_status(status: dict[str, Any], view: View | None = None) -> str:
    """The page of `stat`, or the part of it that `view` wants."""
    view = view or View()
    size = (lambda n: str(int(n))) if view.numeric else format_size
    head = _cluster_lines(status, size)
    parts = [head if view.details else head.split("\n", 1)[0]]
    if "mds" in view.tables:
        parts.append(_mds_table(_sorted("mds", status["mds"], view), size))
    if "cs" in view.tables:
        parts.append(_cs_table(_sorted("cs", status["cs"], view), size, COLUMN_SETS[view.columns]))
    if "clients" in view.tables:
        parts.append(_clients_table(_sorted("clients", status.get("clients", []), view)))
    return "\n\n".join(part for part in parts if part)


# Columns that can be sorted by, and the field of the status object behind each.
SORT_FIELDS = {
    "mds": {"mdsid": "id", "status": "state", "cpu": "cpu_percent", "mem": "rss_bytes", "uptime": "uptime_s", "host": "host"},
    "cs": {
        "csid": "id", "status": "state", "space": "space_bytes", "free": "free_bytes", "replicas": "replicas", "unique": "unique",
        "iowait": "io_wait_percent", "iolat": "io_lat_avg_ms", "qdepth": "queue_depth", "jrn_full": "journal_full_percent",
        "tier": "tier", "host": "host",
    },
    "clients": {"clid": "session_id", "leases": "leases", "open": "open_files", "writing": "writing", "name": "name", "host": "host"},
}  # fmt: skip
_NATURAL = {"mds": "mdsid", "cs": "csid", "clients": "clid"}


def parse_sort(table: str, text: str) -> tuple[str, bool]:
    """COLUMN or COLUMN=inv. Raises INVALID naming the columns."""
    name, equals, word = text.lower().partition("=")
    if name not in SORT_FIELDS[table] or (equals and word != "inv"):
        known = ", ".join(SORT_FIELDS[table])
        raise VstorError(
            ErrorCode.INVALID, f"cannot sort by {text!r} — write COLUMN or COLUMN=inv; columns are {known}"
        )
    return name, bool(equals)


def _sorted(table: str, items: list[dict[str, Any]], view: View) -> list[dict[str, Any]]:
    column, inverse = view.sort.get(table, (_NATURAL[table], False))
    field_name, ident = SORT_FIELDS[table][column], SORT_FIELDS[table][_NATURAL[table]]

    def key(item: dict[str, Any]) -> tuple[bool, Any]:
        value = item.get(field_name)
        return (value is not None, value if value is not None else 0)

    # By id first: equal ones keep that order in both directions.
    return sorted(sorted(items, key=lambda item: item[ident]), key=key, reverse=inverse)


def _cluster_lines(status: dict[str, Any], size: Any) -> str:
    cluster, space, mds, cs = status["cluster"], status["space"], status["mds"], status["cs"]
    lines = [f"Cluster '{cluster['name']}': {cluster['state']}"]
    lines += [f"  {text}" for text in _remarks(status)]
    used, allocatable = space["logical_used_bytes"], space["allocatable_bytes"]
    total = used + allocatable
    raw = ""
    if space.get("raw_total_bytes"):
        raw = f", free {size(space.get('raw_free_bytes', 0))} of {size(space['raw_total_bytes'])}"
    limit = f", limit {size(space['capacity_limit_bytes'])}" if space.get("capacity_limit_bytes") else ""
    lines.append(f"Space: [{_space_word(used, total)}] allocatable {size(allocatable)} of {size(total)}{raw}{limit}")
    available = sum(1 for m in mds if m["state"] == "avail")
    leader = next((m for m in mds if m["leader"]), None)
    uptime = f", master uptime: {format_duration(leader['uptime_s'])}" if leader and leader.get("uptime_s") else ""
    lines.append(f"MDS nodes: {available} of {len(mds)}, epoch: {cluster.get('epoch', 0)}{uptime}")
    alive = [c for c in cs if c["state"] != "dropped"]
    by_state = {name: sum(1 for c in alive if c["state"] == name) for name in ("active", "inactive", "offline")}
    other = len(alive) - sum(by_state.values())
    words = ", ".join(f"{n} {name}" for name, n in by_state.items()) + (f", {other} other" if other else "")
    lines.append(f"CS nodes:  {by_state['active']} of {len(alive)} ({words})")
    lines += _chunk_lines(status["chunks"])
    fs = status.get("fs", {})
    lines.append(f"FS:  {size(used)} used, {fs.get('inodes', 0)} inodes, {fs.get('chunk_maps', 0)} chunk maps")
    replication = status.get("replication")
    if replication:
        eta, resynced = replication.get("eta_s"), replication.get("resynced_chunks")
        lines.append(
            f"Replication: {replication.get('queued', 0)} queued, {replication.get('running', 0)} running, "
            f"{size(replication.get('rate_bytes_s', 0))}/s"
            + (f", ETA {format_duration(eta)}" if eta else "")
            + (f", {replication['moving']} moving" if replication.get("moving") else "")
            + (f", {resynced} resynced with {size(replication['resynced_bytes'])}" if resynced else "")
        )
    io = status.get("io")
    if io:
        lines.append(f"IO:  read {size(io.get('read_bytes_s', 0))}/s, write {size(io.get('write_bytes_s', 0))}/s")
    return "\n".join(lines)


def _remarks(status: dict[str, Any]) -> list[str]:
    """What an operator should see first."""
    chunks, replication = status["chunks"], status.get("replication", {})
    remarks = []
    if status["cluster"].get("grace"):
        remarks.append("a new master waits for clients to take their leases up again")
    if replication.get("stopped_by_guard"):
        remarks.append("replication is stopped: too many hosts are offline (mds.wd.max_offline_cs_hosts)")
    if replication.get("fencing"):
        remarks.append(f"replicas of {replication['fencing']} files are made equal after their writer went away")
    short = {name: chunks[name] for name in SHORT_CHUNK_STATES if chunks.get(name)}
    if short:
        words = ", ".join(f"{n} {name}" for name, n in short.items())
        remarks.append(f"chunks have fewer replicas than they should ({words}): list-chunks shows the files")
    hopeless = status.get("damage", [])
    if hopeless:
        names = ", ".join(f"{d['path'] or 'a file'} (chunk {d['chunk_id']} on CS#{d['cs_id']})" for d in hopeless)
        more = ", …" if chunks.get("damaged", 0) > len(hopeless) else ""
        remarks.append(f"damaged, and no other replica to repair it from: {names}{more}")
    damaged = chunks.get("corrupt_reported", 0)
    if damaged:
        remarks.append(
            f"{damaged} damaged blocks were found, {chunks.get('corrupt_repaired', 0)} repaired: see get-event"
        )
    return remarks


def _space_word(used: int, total: int) -> str:
    full = 100 * used / total if total else 0
    if full >= FULL_ERROR_PERCENT or not total:
        return "FULL" if total else "NONE"
    return "WARN" if full >= FULL_WARN_PERCENT else "OK"


def _chunk_lines(chunks: dict[str, int]) -> list[str]:
    total = chunks.get("total", sum(chunks.get(k, 0) for k in ("healthy", "degraded", "urgent", "blocked", "offline")))
    word = "ERR" if any(chunks.get(k, 0) for k in BAD_CHUNK_STATES) else "WARN" if chunks.get("degraded", 0) else "OK"
    cells = [f"{chunks[name]} ({percent(chunks[name], total)}) {name}" for name in CHUNK_STATES if name in chunks]
    lines = [", ".join(cells[i : i + CHUNKS_A_LINE]) for i in range(0, len(cells), CHUNKS_A_LINE)]
    head = f"Chunks: [{word}] "
    return [
        (head if i == 0 else " " * len(head)) + line + ("," if i < len(lines) - 1 else "")
        for i, line in enumerate(lines)
    ]


def _mds_table(mds: list[dict[str, Any]], size: Any) -> str:
    rows = [
        (
            "M" if m["leader"] else "",
            m["id"],
            m["state"],
            f"{m['commit_time_percent']:.1f}%" if "commit_time_percent" in m else "-",
            f"{m['commits_s']:.1f}/s" if "commits_s" in m else "-",
            f"{m.get('cpu_percent', 0):.1f}%",
            size(m.get("rss_bytes", 0)),
            format_duration(m["uptime_s"]) if "uptime_s" in m else "-",
            m.get("applied_revision", "-"),
            _host(m.get("host"), m["address"]),
        )
        for m in mds
    ]
    header = ("", "MDSID", "STATUS", "%CTIME", "COMMITS", "%CPU", "MEM", "UPTIME", "REVISION", "HOST")
    return table(header, rows, left=(0, 2, 9))


def _cs_table(cs: list[dict[str, Any]], size: Any, columns: tuple[str, ...] | None) -> str:
    if not cs:
        return "No chunk server yet."
    rows = [
        (
            c["id"],
            c["state"],
            size(c["space_bytes"]),
            f"{size(c['free_bytes'])}/{size(c.get('avail_bytes', c['free_bytes']))}",
            c["replicas"],
            c.get("unique", 0),
            f"{c['io_wait_percent']:.0f}%" if c.get("io_wait_percent") is not None else "-",
            f"{c.get('io_lat_avg_ms', 0):.3g}/{c.get('io_lat_max_ms', 0):.3g}",
            c.get("queue_depth", 0),
            f"{c.get('journal_full_percent', 0):.0f}%",
            c.get("flags", "") or "-",
            c["tier"],
            _host(c.get("host"), c["address"]),
        )
        for c in cs
    ]
    header = (
        "CSID",
        "STATUS",
        "SPACE",
        "FREE/AVAIL",
        "REPLICAS",
        "UNIQUE",
        "IOWAIT",
        "IOLAT(ms)",
        "QDEPTH",
        "JRN_FULL",
        "FLAGS",
        "TIER",
        "HOST",
    )
    at = [header.index(name) for name in columns or header]
    shown = [tuple(row[i] for i in at) for row in rows]
    left = [n for n, i in enumerate(at) if header[i] in ("STATUS", "FLAGS", "HOST")]
    return table([header[i] for i in at], shown, left=left)


def _clients_table(clients: list[dict[str, Any]]) -> str:
    if not clients:
        return ""
    rows = [
        (
            c["session_id"],
            c.get("leases", 0),
            c.get("open_files", 0),
            c.get("writing", 0),
            c.get("pid", 0),
            c.get("name", ""),
            c.get("host", ""),
        )
        for c in clients
    ]
    return table(("CLID", "LEASES", "OPEN", "WRITING", "PID", "NAME", "HOST"), rows, left=(5, 6))


def _host(host: str | None, address: str) -> str:
    return f"{host}({address})" if host and address else host or address or "-"


def to_xml(status: dict[str, Any]) -> str:
    """The same object as XML: keys are elements, items of a list are <item>."""
    from xml.sax.saxutils import escape

    def render(name: str, value: Any, indent: str) -> str:
        if isinstance(value, dict):
            inner = "\n".join(render(k, v, indent + "  ") for k, v in value.items())
        elif isinstance(value, list):
            inner = "\n".join(render("item", v, indent + "  ") for v in value)
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            return f"{indent}<{name}>{escape(text)}</{name}>"
        return f"{indent}<{name}>\n{inner}\n{indent}</{name}>" if inner else f"{indent}<{name}/>"

    return '<?xml version="1.0" encoding="UTF-8"?>\n' + render("status", status, "")
