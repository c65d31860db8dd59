"""auth-node."""

from __future__ import annotations

import asyncio

from vstor.ctl.context import Context
from vstor.ctl.mds_cmd import PASSWORD_PROMPT, PASSWORD_STDIN
from vstor.ctl.ownership import give_to_daemons
from vstor.ctl.passwords import read_password
from vstor.ctl.spec import BOOTSTRAP, Command


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
)
