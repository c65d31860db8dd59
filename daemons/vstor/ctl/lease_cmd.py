"""get-leases, revoke."""

from __future__ import annotations

from vstor.ctl.attr_cmd import IN_CLUSTER, PATH
from vstor.ctl.clusterpath import resolve
from vstor.ctl.context import Context
from vstor.ctl.output import table
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.proto import messages


def get_leases(ctx: Context) -> int:
    """Print who holds leases."""
    path, cluster = "", ctx.cluster_or_none
    if ctx.args.path:
        where = resolve(ctx, ctx.args.path)
        path, cluster = where.path, where.cluster
    leases = ctx.call_json(messages.GetLeases(path=path), cluster)
    rows = [
        (
            lease["ino"],
            lease["mode"],
            lease["session_id"],
            f"{lease['valid_ms'] / 1000:.0f}s",
            lease["host"],
            lease["client"],
            lease["path"] or "-",
        )
        for lease in leases
    ]
    ctx.emit(leases, table(("INODE", "MODE", "CLID", "VALID", "HOST", "CLIENT", "PATH"), rows, left=(1, 4, 5, 6)))
    return 0


def revoke(ctx: Context) -> int:
    """Drop the leases on a path, so that another client can open it."""
    where = resolve(ctx, ctx.args.path)
    ctx.call(messages.RevokeLeases(path=where.path, recursive=ctx.args.recursive), where.cluster)
    ctx.emit(
        {"cluster": where.cluster, "path": where.path, "revoked": True},
        "" if ctx.args.quiet else f"leases on {where} are revoked",
    )
    return 0


COMMANDS = (
    Command(
        name="get-leases",
        summary="show which clients hold leases on files",
        description=(
            "Prints the leases on a file, on all files when no path is given: shared (reads and caches) or exclusive (writes). "
            "VALID is how long a lease lasts if its client is not heard of."
        ),
        run=get_leases,
        options=(Opt("path", metavar="PATH", nargs="?", help=PATH.kwargs["help"]), IN_CLUSTER, BOOTSTRAP),
        needs_cluster=False,
        examples=("vstorctl -c test_cluster get-leases", "vstorctl get-leases /pcs/containers/101/root.img"),
    ),
    Command(
        name="revoke",
        summary="take the leases on a file or directory from their holders",
        description=(
            "Drops the leases so that another client can open the files, for example when a host died with a container on it. The holder is fenced: "
            "what it had not flushed is lost to it, and it cannot change the files any more."
        ),
        run=revoke,
        options=(
            Opt("-R", "--recursive", action="store_true", help="also everything below the directory"),
            IN_CLUSTER,
            PATH,
            BOOTSTRAP,
        ),
        needs_cluster=False,
        examples=("vstorctl -c test_cluster revoke -R /pcs/containers/101",),
    ),
)
