"""check: are the invariants of the cluster kept? Changes nothing unless --repair is given."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from vstor.codes_gen import ErrorCode
from vstor.ctl import report_hosts
from vstor.ctl.context import Context
from vstor.ctl.spec import BOOTSTRAP, EXIT_PARTLY, Command, Opt
from vstor.errors import VstorError

SECOND_LOOK_S = 3.0  # what is merely under way is over by then, or shows as such in the status
SHOWN_MAX = 1000
HOSTS_AT_ONCE = 8


@dataclass
class Look:
    """One look at everything."""

    snapshot: Any
    findings: list[Any]
    examined: list[int] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)  # chunk servers not examined, and why
    counts: dict[str, int] = field(default_factory=dict)


def _remote_inventories(ctx: Context, failed: dict[str, str]) -> dict[int, dict[str, Any]]:
    """Those of the chunk servers on the hosts of --host."""
    if not ctx.args.host:
        return {}
    targets, run = report_hosts.over_ssh(ctx)
    command = ["vstorctl", "-c", ctx.cluster, "check", "--inventory", *(["--data"] if ctx.args.data else [])]

    def one(target: Any) -> dict[str, Any] | VstorError:
        try:
            with cast(BinaryIO, tempfile.TemporaryFile()) as file:
                run(command, target, file)
                file.seek(0)
                value: dict[str, Any] = json.loads(file.read())
                return value
        except ValueError as exc:
            return VstorError(ErrorCode.INVALID, f"what it sent is no inventory ({exc})")
        except VstorError as exc:
            return exc

    found: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(min(HOSTS_AT_ONCE, len(targets) or 1), thread_name_prefix="check") as pool:
        for target, outcome in zip(targets, pool.map(one, targets), strict=True):
            if isinstance(outcome, VstorError):
                failed[target.label] = outcome.message
            else:
                found.update({int(cs_id): item for cs_id, item in outcome["servers"].items()})
    return found


def _look(ctx: Context, metadata: Any, failed_hosts: dict[str, str]) -> Look:
    from vstor.ctl import check_sources
    from vstor.model import check as core

    snapshot = metadata.load()
    state, findings = core.load(check_sources.records(snapshot))
    cluster_id = metadata.config.cluster_id
    local, failed = check_sources.local_inventories(ctx.cluster, cluster_id, ctx.args.data)
    held = {**local, **_remote_inventories(ctx, failed_hosts)}
    inventories = {cs_id: check_sources.inventory_of(item) for cs_id, item in held.items()}
    missing = {
        cs_id: failed.get(cs_id, f"it is on host {record.hostname}: give --host")
        for cs_id, record in state.servers.items()
        if cs_id not in inventories and record.admin != "dropped"
    }
    counts = {
        "inodes": len(state.inodes),
        "names": sum(len(d.entries) for d in state.dirs.values()),
        "chunks": len(state.chunk_home),
        "replicas": sum(map(len, state.by_cs.values())),
        "replicas_examined": sum(len(i.replicas) for i in inventories.values()),
    }
    findings += core.check(state, inventories)
    return Look(snapshot, findings, sorted(inventories), missing, counts)


def _inventory(ctx: Context) -> int:
    """--inventory: what the chunk servers of this node hold, for a check on another one."""
    from vstor.ctl import check_sources
    from vstor.net.identity import load_identity

    identity = load_identity(ctx.cluster)
    found, failed = check_sources.local_inventories(ctx.cluster, identity.cluster_id, ctx.args.data)
    print(json.dumps({"servers": found, "failed": failed}), file=ctx.out, flush=True)
    return 0


def check(ctx: Context) -> int:
    """Look twice, tell what was wrong both times; mend it if asked."""
    from vstor.ctl import check_sources
    from vstor.model import check as core

    if ctx.args.inventory:
        return _inventory(ctx)
    metadata = check_sources.local_metadata(ctx.cluster)
    failed_hosts: dict[str, str] = {}
    look = _look(ctx, metadata, failed_hosts)
    if look.findings and look.snapshot.leader is not None:
        first = look.findings
        time.sleep(SECOND_LOOK_S)
        look = _look(ctx, metadata, failed_hosts)
        look.findings = core.persistent(first, look.findings)
    for host, reason in failed_hosts.items():
        ctx.warn(f"{host}: {' '.join(reason.split())}")
    repaired = 0
    if ctx.args.repair:
        repaired = _repair(ctx, metadata, look)
        look = _look(ctx, metadata, failed_hosts)
    _tell(ctx, look, repaired)
    bad = any(f.severity != core.NOTE for f in look.findings)
    return EXIT_PARTLY if bad or look.missing else 0


def _repair(ctx: Context, metadata: Any, look: Look) -> int:
    """Mend what can be mended without loss; how many findings are mended."""
    from vstor.model import check as core

    chosen = core.repairs(look.findings)
    if not chosen:
        return 0
    metadata.repair(look.snapshot, chosen)
    mended = [f for f in look.findings if f.repair and all(chosen.get(k, b"?") == v for k, v in f.repair)]
    for finding in mended:
        ctx.say(f"repaired: {finding.text}")
    return len(mended)


def _tell(ctx: Context, look: Look, repaired: int) -> None:
    value = {
        "cluster": ctx.cluster,
        "revision": look.snapshot.revision,
        "complete": not look.missing,
        "not_examined": {str(cs_id): reason for cs_id, reason in sorted(look.missing.items())},
        "examined": look.examined,
        "counts": look.counts,
        "repaired": repaired,
        "findings": [
            {"severity": f.severity, "kind": f.kind, "key": list(f.key), "text": f.text, "repairable": bool(f.repair)}
            for f in look.findings
        ],
    }
    by = Counter(f.severity for f in look.findings)
    lines = [f"{f.severity}: {f.text}" for f in look.findings[:SHOWN_MAX]]
    if len(look.findings) > SHOWN_MAX:
        lines.append(f"… and {len(look.findings) - SHOWN_MAX} more, all of them with --format json")
    lines += [f"CS#{cs_id} was not examined: {reason}" for cs_id, reason in sorted(look.missing.items())]
    if any(f.repair for f in look.findings):
        lines.append(f"to mend what can be mended: stop all MDSs, then vstorctl -c {ctx.cluster} check --repair")
    lines.append(
        f"{look.counts['inodes']} inodes, {look.counts['names']} names, {look.counts['chunks']} chunks, "
        f"{look.counts['replicas_examined']} replicas on {len(look.examined)} chunk servers: "
        f"{by['error']} errors, {by['warning']} warnings, {by['note']} notes"
    )
    ctx.emit(value, "\n".join(lines))


COMMANDS = (
    Command(
        name="check",
        summary="check that the cluster's records and replicas fit together",
        description=(
            "Reads all metadata records at one moment and compares them with each other and with what the chunk servers hold: names, counts, chunk maps, "
            "versions, replicas, things that belong to nothing, and with --data the content of every replica, against its checksums and against "
            "the other replicas. To be run on a node with an MDS; chunk servers of other hosts are asked by SSH where --host names these, as with "
            "report. The cluster may run (what is wrong is looked at twice, so that work under way is no finding) or be stopped but for the etcd of "
            "its MDSs; a stopped chunk server is read from its disk. Nothing is changed, unless --repair is given: then records that can be mended "
            "without losing anything are, which needs all MDSs stopped. What is wrong with replicas a running cluster mends by itself. "
            "Exit status 0: nothing but notes; 15: something is wrong or was not examined."
        ),
        run=check,
        options=(
            Opt("--data", action="store_true", help="also read the content of all replicas (long)"),
            Opt("--repair", action="store_true", help="mend what can be mended without loss; no MDS may run"),
            Opt("--inventory", action="store_true", help="print what the chunk servers of this node hold, as JSON"),
            *report_hosts.SSH_OPTIONS,
            BOOTSTRAP,
        ),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster check",
            "vstorctl -c test_cluster check --data --host all --format json",
        ),
    ),
)
