"""make-cs, configure-cs, rm-cs, maintenance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vstor import services as registry
from vstor.codes_gen import ErrorCode
from vstor.ctl.address import parse_listen_address
from vstor.ctl.attributes import TIER_MAX
from vstor.ctl.context import Context
from vstor.ctl.mds_cmd import repository_path, server_id
from vstor.ctl.ownership import give_to_daemons, let_daemons_make_files
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages

WAIT_INTERVAL_S = 1.0
JOURNAL_MB_MIN = JOURNAL_MB_STEP = 64


def journal_mb(text: str) -> int:
    """Megabytes of -s, rounded up to what the engine takes. Raises USAGE."""
    if not text.isdecimal() or int(text) < JOURNAL_MB_MIN:
        raise VstorError(
            ErrorCode.USAGE, f"journal size {text!r} does not do — give megabytes, at least {JOURNAL_MB_MIN}"
        )
    return -(-int(text) // JOURNAL_MB_STEP) * JOURNAL_MB_STEP


def make_cs(ctx: Context) -> int:
    """Make the repository of a chunk server and get its id from the cluster."""
    from vstor.cs.repository import create

    args = ctx.args
    repo = repository_path(args.repository)
    address = parse_listen_address(args.address) if args.address else None
    journal = Path(args.journal).expanduser().absolute() if args.journal else None
    cs_id = create(ctx.cluster, repo, address, args.tier, journal, args.journal_size)
    give_to_daemons(repo, ctx.cluster)
    place = journal if journal is None or journal.is_dir() else journal.parent
    if place is not None and place.is_dir() and not let_daemons_make_files(place):
        ctx.warn(f"{place}: the daemons' user cannot write there and other files are in it — chown the directory to it")
    text = f"CS#{cs_id} made in {repo}\nnow start it: vstorctl -c {ctx.cluster} service start cs"
    ctx.emit(
        {"cluster": ctx.cluster, "cs_id": cs_id, "repository": str(repo), "tier": args.tier}, "" if args.quiet else text
    )
    return 0


def configure_cs(ctx: Context) -> int:
    """Put the journal of a stopped chunk server somewhere else."""
    from vstor.cs.repository import move_journal

    args = ctx.args
    repo = repository_path(args.repository)
    if not (args.attach_journal or args.move_journal or args.drop_journal):
        raise VstorError(ErrorCode.USAGE, "nothing to do — give -a DIR, -m DIR or -d")
    target = args.attach_journal or args.move_journal
    moved, file = move_journal(repo, Path(target).expanduser().absolute() if target else None)
    give_to_daemons(repo, ctx.cluster)
    if not let_daemons_make_files(file.parent):
        ctx.warn(f"{file.parent}: the daemons' user cannot write there — chown the directory to it")
    text = f"the journal is {'now' if moved else 'already'} {file}"
    if moved:
        text += f"\nnow start the chunk server: vstorctl -c {ctx.cluster} service start cs"
    ctx.emit({"repository": str(repo), "journal": str(file), "changed": moved}, "" if args.quiet else text)
    return 0


def _ask(ctx: Context, cs_id: int, **options: Any) -> dict[str, Any]:
    value: dict[str, Any] = ctx.call_json(messages.RemoveCs(cs_id=cs_id, **options))
    return {"cs_id": cs_id, **value}


def _emit(ctx: Context, values: list[dict[str, Any]], texts: list[str]) -> None:
    """One server: its object; several: a list of them."""
    ctx.emit(values[0] if len(values) == 1 else values, "\n".join(texts))


def rm_cs(ctx: Context) -> int:
    """Release chunk servers; with --wait until they are dropped. Safe to run again, and to interrupt."""
    args = ctx.args
    if args.accept_loss and not args.force:
        raise VstorError(ErrorCode.USAGE, "--accept-loss says how to force — give --force too")
    ids = list(dict.fromkeys(args.cs_id))
    if args.cancel:
        values = [_ask(ctx, n, cancel=True) for n in ids]
        _emit(ctx, values, [f"CS#{v['cs_id']} stays, state {v['state']}" for v in values])
        return 0
    if args.dry_run:
        _plan(ctx, ids)
        return 0
    together = tuple(ids) if len(ids) > 1 else ()
    if together and not args.force:  # all or none
        for n in ids:
            if why := _ask(ctx, n, dry_run=True, together=together).get("refusal"):
                raise VstorError(ErrorCode.UNSAFE, why)
    values = []
    for n in ids:
        ctx.say(f"Removing CS#{n} ...")
        values.append(_ask(ctx, n, force=args.force, accept_loss=args.accept_loss, together=together))
    if args.wait:
        values = _wait_until_dropped(ctx, values)
    _emit(ctx, values, [] if args.quiet else [_end(ctx, v) for v in values])
    return 0


def _plan(ctx: Context, ids: list[int]) -> None:
    """--dry-run. Raises UNSAFE, after it was shown, when the removal would be refused."""
    together = tuple(ids) if len(ids) > 1 else ()
    plans = [_ask(ctx, n, dry_run=True, together=together) for n in ids]
    text = "CS#{cs_id}: {replicas_left} replicas to move, {would_lose} chunks have no other one, nothing was changed"
    _emit(ctx, plans, [text.format(**plan) for plan in plans])
    for plan in plans:
        if plan.get("refusal"):
            raise VstorError(ErrorCode.UNSAFE, plan["refusal"])


def _end(ctx: Context, value: dict[str, Any]) -> str:
    cs_id, left = value["cs_id"], value.get("replicas_left", 0)
    if value["state"] != "dropped":
        return f"CS#{cs_id} is {value['state']}, {left} replicas left; it is dropped when none is"
    if any(s.kind == "cs" and s.id == str(cs_id) for s in registry.list_services(ctx.cluster)):
        return f"done\nit was made on this node; end it: vstorctl -c {ctx.cluster} service forget {cs_id}"
    return "done"


def _wait_until_dropped(ctx: Context, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Watch releases (only looking: asking again would start one anew that somebody cancelled). Raises CANCELLED."""
    shown = None
    while any(v["state"] == "releasing" for v in values):
        left = sum(v.get("replicas_left", 0) for v in values)
        if left != shown:
            shown = left
            ctx.say(f"{shown} replicas left")
        time.sleep(WAIT_INTERVAL_S)
        values = [_ask(ctx, v["cs_id"], dry_run=True) if v["state"] == "releasing" else v for v in values]
        for v in values:
            if v["state"] not in ("releasing", "dropped"):
                raise VstorError(
                    ErrorCode.CANCELLED,
                    f"the release of CS#{v['cs_id']} was cancelled by somebody, it is {v['state']} and keeps its "
                    f"{v.get('replicas_left', 0)} replicas",
                )
    return values


def maintenance(ctx: Context) -> int:
    """Announce that a chunk server goes away for a short time, or that this is over."""
    args = ctx.args
    on = args.switch == "on"
    value = ctx.call_json(messages.CsMaintenance(cs_id=args.cs_id, on=on, dry_run=args.dry_run))
    alone = (
        f"; {value['sole_replicas']} chunks have no other replica and cannot be used meanwhile"
        if value["sole_replicas"] and on
        else ""
    )
    text = f"CS#{args.cs_id} is {'still ' if args.dry_run else ''}{value['state']}{alone}"
    ctx.emit(value, "" if args.quiet else text)
    return 0


COMMANDS = (
    Command(
        name="make-cs",
        summary="make a chunk server on this node",
        description=(
            "Makes the repository of a chunk server (CS), one for each disk, in an empty or new directory (lost+found does no harm) on XFS or ext4. "
            "This node must have been authenticated with auth-node. Without -a the CS listens on the address it reaches the MDS from and a free port."
        ),
        run=make_cs,
        options=(
            Opt("-r", "--repository", metavar="DIR", required=True, help="where the CS keeps its data"),
            Opt(
                "-a",
                "--address",
                metavar="IP[:PORT]",
                help="address to listen on (default: the one that reaches the MDS, any free port)",
            ),
            Opt(
                "-t",
                "--tier",
                type=int,
                choices=range(TIER_MAX + 1),
                default=0,
                metavar="TIER",
                help=f"storage tier 0 to {TIER_MAX} (default: 0)",
            ),
            Opt(
                "-j",
                "--journal",
                metavar="DIR",
                help="directory of the write journal, on an SSD (default: in the repository)",
            ),
            Opt(
                "-s",
                "--journal-size",
                metavar="MB",
                type=journal_mb,
                help="size of the journal in megabytes, rounded up to a multiple of 64",
            ),
        ),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster make-cs -r /vstor/test_cluster-cs",
            "vstorctl -c test_cluster make-cs -r /disks/sdb/cs -t 1 -j /ssd/cs-sdb -s 4096",
        ),
    ),
    Command(
        name="configure-cs",
        summary="move the journal of a chunk server to another disk, or back",
        description=(
            "Moves the write journal of a chunk server: to a directory on an SSD (-a, or -m when it is apart already), or back into the "
            "repository (-d). The chunk server must be stopped; what stands in its journal goes along, also after a crash. "
            "Its size stays. If the command is interrupted the old place counts until all is copied."
        ),
        run=configure_cs,
        options=(Opt("-r", "--repository", metavar="DIR", required=True, help="repository of the chunk server"),),
        exclusive=(
            Opt("-a", "--attach-journal", metavar="DIR", help="directory of the journal, on another disk"),
            Opt("-m", "--move-journal", metavar="DIR", help="the same, for a journal that is apart already"),
            Opt("-d", "--drop-journal", action="store_true", help="put the journal back into the repository"),
        ),
        needs_root=True,
        examples=("vstorctl -c test_cluster configure-cs -r /disks/sdb/cs -a /ssd/journals",),
    ),
    Command(
        name="rm-cs",
        summary="remove chunk servers",
        description=(
            "Moves everything off chunk servers (state releasing) and then drops them for good; their ids are never used again. Nothing is lost and a server "
            "may be running or not. It is refused, for all of them, when the others are too few hosts (or whatever the failure domain of the files is) "
            "for their replicas. --force drops them at once; that is refused when chunks would be lost."
        ),
        run=rm_cs,
        options=(
            Opt("cs_id", metavar="CSID", type=server_id, nargs="+", help="ids of the chunk servers, see status"),
            Opt(
                "--wait",
                action="store_true",
                help="return when it is dropped; exit code 8 when somebody cancelled that",
            ),
            Opt("--accept-loss", action="store_true", help="with --force: even if chunks are lost"),
            BOOTSTRAP,
        ),
        exclusive=(
            Opt("--force", action="store_true", help="drop it at once, without moving data off it"),
            Opt(
                "--dry-run",
                action="store_true",
                help="say what would be moved, lost or refused (exit code 6), change nothing",
            ),
            Opt("--cancel", action="store_true", help="keep chunk servers that are being released"),
        ),
        examples=("vstorctl -c test_cluster rm-cs --wait 1026", "vstorctl -c test_cluster rm-cs --dry-run 1026"),
    ),
    Command(
        name="maintenance",
        summary="announce a short absence of a chunk server",
        description=(
            "With on, nothing is copied while the chunk server is away, until it is back or the setting mds.wd.maintenance_tout is over. "
            "With off the announcement ends. Tells how many chunks cannot be used while it is away."
        ),
        run=maintenance,
        options=(
            Opt("switch", choices=("on", "off"), metavar="on|off", help="on before it goes away, off when it is back"),
            Opt("cs_id", metavar="CSID", type=server_id, help="id of the chunk server, see status"),
            Opt("--dry-run", action="store_true", help="only tell, change nothing"),
            BOOTSTRAP,
        ),
        examples=("vstorctl -c test_cluster maintenance on 1026",),
    ),
)
