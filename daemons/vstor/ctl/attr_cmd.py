"""get-attr, set-attr."""

from __future__ import annotations

from typing import Any

from vstor.ctl.attributes import FAILURE_DOMAINS, REPLICAS_MAX, parse_attributes
from vstor.ctl.clusterpath import ClusterPath, resolve
from vstor.ctl.context import Context
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.proto import messages

PATH = Opt(
    "path", metavar="PATH", help="a path on a mounted cluster, vstor://NAME/PATH, or with -p a path within the cluster"
)
IN_CLUSTER = Opt(
    "-p", "--in-cluster", action="store_true", help="PATH is relative to the cluster's root; no mount is needed, -c is"
)


def render_attributes(where: ClusterPath, value: dict[str, Any]) -> str:
    """Path, kind, and name=value lines."""
    lines = [f"Path: '{where}'", "Attributes:"]
    lines += [f"  {item}" if name == "type" else f"  {name}={item}" for name, item in value.items()]
    return "\n".join(lines)


def get_attr(ctx: Context) -> int:
    """Print the attributes of a path."""
    where = resolve(ctx, ctx.args.path)
    value = ctx.call_json(messages.GetPathAttr(path=where.path), where.cluster)
    ctx.emit({"cluster": where.cluster, "path": where.path, "attributes": value}, render_attributes(where, value))
    return 0


def set_attr(ctx: Context) -> int:
    """Change attributes; without a name=value show them, as get-attr."""
    attributes = parse_attributes(ctx.args.attributes)
    if not attributes:
        return get_attr(ctx)
    where = resolve(ctx, ctx.args.path)
    ctx.call(messages.SetPathAttr(path=where.path, recursive=ctx.args.recursive, attributes=attributes), where.cluster)
    value = ctx.call_json(messages.GetPathAttr(path=where.path), where.cluster)
    ctx.emit(
        {"cluster": where.cluster, "path": where.path, "attributes": value},
        "" if ctx.args.quiet else render_attributes(where, value),
    )
    return 0


COMMANDS = (
    Command(
        name="get-attr",
        summary="show the storage attributes of a file or directory",
        description="Prints replicas, failure domain, tier and chunk size of a file or directory. New files inherit those of their directory.",
        run=get_attr,
        options=(PATH, IN_CLUSTER, BOOTSTRAP),
        needs_cluster=False,
        examples=("vstorctl get-attr /pcs/containers", "vstorctl -c test_cluster get-attr -p /"),
    ),
    Command(
        name="set-attr",
        summary="change the storage attributes of a file or directory",
        description=(
            f"Attributes: replicas=NORMAL[:MINIMUM] (1 to {REPLICAS_MAX}; writes wait while fewer than MINIMUM replicas are left), "
            f"failure-domain={'|'.join(FAILURE_DOMAINS)}, tier=0..3, chunk-size=SIZE (a power of two, 1M to 1G), client-ssd-cache=0|1. "
            "Returns when the change is recorded; data are moved or copied in the background. Files made later inherit from their directory; "
            "those that exist change only with -R."
        ),
        run=set_attr,
        options=(
            Opt("-R", "--recursive", action="store_true", help="also everything below the directory"),
            IN_CLUSTER,
            PATH,
            Opt("attributes", metavar="NAME=VALUE", nargs="*", help="what to set; none: show them"),
            BOOTSTRAP,
        ),
        needs_cluster=False,
        examples=(
            "vstorctl set-attr -R /pcs replicas=3:2",
            "vstorctl -c test_cluster set-attr -p / failure-domain=disk tier=1",
        ),
    ),
)
