"""auth-node, discover."""

from __future__ import annotations

import socket
from typing import Any

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.ctl.address import parse_address
from vstor.ctl.context import Context
from vstor.ctl.mds_cmd import PASSWORD_PROMPT, PASSWORD_STDIN
from vstor.ctl.output import table
from vstor.ctl.ownership import give_to_daemons
from vstor.ctl.passwords import read_password
from vstor.ctl.spec import BOOTSTRAP, Command
from vstor.errors import VstorError

PROBE_S = 2.0


def auth_node(ctx: Context) -> int:
    """Prove the password to an MDS and get this node's certificate. Safe to run again."""
    from vstor.net.auth import auth_node as authenticate

    cluster = ctx.cluster
    bootstrap = ctx.bootstrap
    if bootstrap is None and not bootstrap_list(cluster):
        file = paths.cluster_dir(cluster) / "bs.list"
        raise VstorError(
            ErrorCode.UNREACHABLE,
            f"no MDS of cluster {cluster!r} is known here — write IP:2510 of one into {file}, or give -b IP",
        )
    authenticate(cluster, read_password(ctx, new=False), bootstrap)
    give_to_daemons(None, cluster)
    ctx.emit(
        {"cluster": cluster, "authenticated": True},
        "" if ctx.args.quiet else f"this node is authenticated in cluster {cluster!r}",
    )
    return 0


def bootstrap_list(cluster: str) -> list[str]:
    """IP:PORT lines of bs.list. Raises INVALID naming a bad line."""
    file = paths.cluster_dir(cluster) / "bs.list"
    if not file.exists():
        return []
    lines = (line.split("#")[0].strip() for line in file.read_text(errors="replace").splitlines())
    return list(dict.fromkeys(parse_address(line) for line in lines if line))


def _answers(address: str) -> bool:
    """Something accepts connections on the control port (one above) of the address."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port) + 1), PROBE_S):
            return True
    except OSError:
        return False


def cluster_id_of(cluster: str) -> str:
    """Id of a cluster as its certificate on this node says, empty where there is none. Raises DAMAGED."""
    from vstor.net import pki

    file = paths.cluster_dir(cluster) / "ca.crt"
    return pki.read_ca_names(file.read_bytes(), str(file))[1] if file.exists() else ""


def discover(ctx: Context) -> int:
    """Print the clusters this node knows of and which of their MDSs answer."""
    root = paths.etc_dir() / "clusters"
    names = (
        [ctx.cluster_or_none]
        if ctx.cluster_or_none
        else sorted(p.name for p in root.iterdir())
        if root.is_dir()
        else []
    )
    found: list[dict[str, Any]] = []
    for name in names:
        servers = [{"address": address, "answers": _answers(address)} for address in bootstrap_list(name)]
        found.append(
            {
                "cluster": name,
                "cluster_id": cluster_id_of(name),
                "authenticated": (paths.cluster_dir(name) / "node.crt").exists(),
                "mds": servers,
            }
        )
    rows = [
        (c["cluster"], "yes" if c["authenticated"] else "no", m["address"], "yes" if m["answers"] else "no")
        for c in found
        for m in c["mds"] or [{"address": "-", "answers": False}]
    ]
    ctx.emit(found, table(("CLUSTER", "AUTHENTICATED", "MDS", "ANSWERS"), rows, left=(0, 1, 2, 3), gap="  "))
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
        name="discover",
        summary="list the clusters this node knows and whether their MDSs answer",
        description="Reads the bootstrap lists (bs.list) on this node and tries each address in them.",
        run=discover,
        needs_cluster=False,
        examples=("vstorctl discover",),
    ),
)
