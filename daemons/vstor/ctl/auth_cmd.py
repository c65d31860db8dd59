"""auth-node."""

from __future__ import annotations

import asyncio
from typing import Any

from vstor.ctl.context import Context
from vstor.ctl.mds_cmd import PASSWORD_PROMPT, PASSWORD_STDIN
from vstor.ctl.output import table
from vstor.ctl.ownership import give_to_daemons
from vstor.ctl.passwords import read_password
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.proto import messages


def auth_node(ctx: Context) -> int:
    """Prove the password to an MDS and get this node's certificate. Safe to run again."""
    from vstor.net import discovery
    from vstor.net.auth import auth_node as authenticate

    cluster = ctx.cluster
    # Looked for before the password is asked: nobody types it for nothing.
    bootstrap = ctx.bootstrap or asyncio.run(discovery.addresses(cluster))
    authenticate(cluster, read_password(ctx, new=False), bootstrap)
    give_to_daemons(None, cluster)
    ctx.emit(
        {"cluster": cluster, "authenticated": True},
        "" if ctx.args.quiet else f"this node is authenticated in cluster {cluster!r}",
    )
    return 0


def change_password(ctx: Context) -> int:
    """Replace the cluster password by another one."""
    from vstor.net import discovery
    from vstor.net.auth import change_password as change

    bootstrap = ctx.bootstrap or asyncio.run(discovery.addresses(ctx.cluster))
    old = read_password(ctx, new=False, prompt="Please enter the present password: ")
    new = read_password(ctx, new=True, prompt="Please enter the new password: ")
    change(ctx.cluster, old, new, bootstrap)
    ctx.emit({"changed": True}, "" if ctx.args.quiet else "the password was changed; certificates stay valid")
    return 0


def list_nodes(ctx: Context) -> int:
    """Who has connected, and what was revoked."""
    value = ctx.call_json(messages.ListNodes())
    rows = [
        [n["certificate"], n["host"] or "-", n["address"] or "-", ",".join(n["roles"]) or "-", _standing(n)]
        for n in value
    ]
    ctx.emit(value, table(["CERTIFICATE", "HOST", "ADDRESS", "ROLES", "STATE"], rows))
    return 0


def _standing(node: dict[str, Any]) -> str:
    return "revoked" if node["revoked_ms"] else "connected" if node["connected"] else "seen"


def revoke_node(ctx: Context) -> int:
    """Revoke the certificates of a node."""
    value = ctx.call_json(messages.RevokeNode(ctx.args.node, ctx.args.dry_run))
    what = "would be revoked" if ctx.args.dry_run else "revoked"
    ctx.emit(value, "" if ctx.args.quiet else f"{what}: {', '.join(value['certificates'])}")
    return 0


COMMANDS = (
    Command(
        name="auth-node",
        summary="authenticate this node in a cluster",
        description=(
            "Proves the cluster password to an MDS, which cannot learn it from that, and stores the certificate that this node's servers, clients "
            "and tools use from then on. Needed once on each node, for whatever role; not on the node that created the cluster."
        ),
        run=auth_node,
        options=(BOOTSTRAP,),
        exclusive=(PASSWORD_PROMPT, PASSWORD_STDIN),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster auth-node",
            "vstorctl -c test_cluster auth-node -P -b 10.30.100.101 < password-file",
        ),
    ),
    Command(
        name="change-password",
        summary="change the cluster password",
        description=(
            "Proves the present password and sets a new one. Nodes keep their certificates; only auth-node asks for the new password from now on. "
            "With -P the first line of standard input is the present password, the second the new one."
        ),
        run=change_password,
        options=(BOOTSTRAP,),
        exclusive=(PASSWORD_PROMPT, PASSWORD_STDIN),
        examples=("vstorctl -c test_cluster change-password",),
    ),
    Command(
        name="list-nodes",
        summary="list nodes by their certificates",
        description="Nodes that have connected to the leading MDS since it leads, and all revoked certificates.",
        run=list_nodes,
        options=(BOOTSTRAP,),
        examples=("vstorctl -c test_cluster list-nodes",),
    ),
    Command(
        name="revoke-node",
        summary="revoke the certificates of a node",
        description=(
            "Every MDS refuses the certificate from now on and drops its connections; chunk servers open no chunk for its tickets after their next "
            "heartbeat; its client session ends within the lease time, and then its writes are refused by the version of the chunks. Chunks it has open "
            "for reading stay readable on connections that exist, until the data session ends (mds.ticket.ttl). Who knows the password can get a new "
            "certificate with auth-node: change the password too."
        ),
        run=revoke_node,
        options=(
            Opt("node", metavar="NODE", help="CN of a certificate, host id or host name, see list-nodes"),
            Opt("--dry-run", action="store_true", help="only tell which certificates it would be"),
            BOOTSTRAP,
        ),
        examples=("vstorctl -c test_cluster revoke-node node7",),
    ),
)
