"""make-mds, rm-mds."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from vstor.codes_gen import ErrorCode
from vstor.ctl.address import PORTS_OF_AN_MDS, parse_address
from vstor.ctl.context import Context
from vstor.ctl.ownership import give_to_daemons
from vstor.ctl.passwords import read_password
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages

PASSWORD_PROMPT = Opt(
    "-p",
    "--password-prompt",
    action="store_true",
    help="ask for the cluster password (also the default when one is needed)",
)
PASSWORD_STDIN = Opt(
    "-P",
    "--password-stdin",
    action="store_true",
    help="read the cluster password from the first line of standard input",
)


def repository_path(text: str) -> Path:
    """Absolute path of -r: it is written into the registry and into service files."""
    return Path(text).expanduser().absolute()


def parse_settings(words: list[str] | None) -> dict[str, str]:
    """NAME=VALUE words of --set. Raises INVALID."""
    found = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise VstorError(ErrorCode.INVALID, f"{word!r} sets nothing — write NAME=VALUE")
        found[name] = value
    return found


def parse_etcd(text: str | None) -> list[str] | None:
    """URLs of --etcd. Raises INVALID."""
    if text is None:
        return None
    urls = [u.strip() for u in text.split(",") if u.strip()]
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise VstorError(
                ErrorCode.INVALID, f"{url!r} is no etcd address — write https://HOST:2379, several separated by commas"
            )
    if not urls:
        raise VstorError(
            ErrorCode.INVALID, "--etcd names no server — write https://HOST:2379, several separated by commas"
        )
    return urls


def make_mds(ctx: Context) -> int:
    """Make the repository of an MDS; with -I of the first one, and with it the cluster."""
    args = ctx.args
    cluster, repo = ctx.cluster, repository_path(args.repository)
    address = parse_address(args.address, ports=PORTS_OF_AN_MDS)
    etcd = parse_etcd(args.etcd)
    settings = parse_settings(args.settings)
    if args.init:
        password = read_password(ctx, new=True)
        from vstor.mds.repository import create_cluster

        result = create_cluster(cluster, address, repo, password, etcd, settings)
    else:
        if args.password_stdin or args.password_prompt or settings:
            raise VstorError(
                ErrorCode.USAGE, "-p, -P and --set belong to -I — an MDS that joins uses the certificate of auth-node"
            )
        from vstor.mds.repository import join_cluster

        result = join_cluster(cluster, address, repo, etcd=etcd, bootstrap=ctx.bootstrap)
    give_to_daemons(repo, cluster)
    mds_id = result["mds_id"]
    what = f"cluster {cluster!r} and MDS#{mds_id}" if args.init else f"MDS#{mds_id} of cluster {cluster!r}"
    made = f"{what} made in {repo}, address {result['address']}\nnow start it: vstorctl -c {cluster} service start mds"
    text = made if result["changed"] else f"MDS#{mds_id} is in {repo} already, nothing was changed"
    shown = ("cluster", "cluster_id", "mds_id", "address", "repository", "changed")
    public = {**{name: result[name] for name in shown}, "created_cluster": bool(args.init and result["changed"])}
    ctx.emit(public, "" if args.quiet and not ctx.json_wanted else text)
    return 0


def rm_mds(ctx: Context) -> int:
    """Take an MDS out of the cluster; refused by the MDS when the rest would have no quorum."""
    args = ctx.args
    reply = ctx.call(messages.RemoveMds(mds_id=args.mds_id, dry_run=args.dry_run))
    details = json.loads(reply.json) if isinstance(reply, messages.JsonReply) else {}
    value = {"mds_id": args.mds_id, "removed": not args.dry_run, **details}
    ctx.emit(value, f"MDS#{args.mds_id} can be removed" if args.dry_run else f"Removing MDS#{args.mds_id} ...\ndone")
    return 0


def server_id(text: str) -> int:
    """1026, CS#1026, MDS#3. Raises USAGE."""
    digits = text.rpartition("#")[2]
    if not digits.isdecimal():
        raise VstorError(ErrorCode.USAGE, f"{text!r} is no server id — see vstorctl status for the ids")
    return int(digits)


COMMANDS = (
    Command(
        name="make-mds",
        summary="create a cluster, or add a metadata server to one",
        description=(
            "Makes the repository of a metadata server (MDS) in an empty or new directory. With -I it is the first one and the cluster is created: "
            "its id, its certificate authority and the password that auth-node will ask for. Without -I the MDS joins a cluster that runs; this node must have "
            "been authenticated with auth-node. PORT is the lowest of three consecutive ones: MDS to MDS, clients and chunk servers to MDS, "
            "clients of the etcd member. A cluster has 1, 3 or 5 MDSs; 3 survive the loss of one, 5 of two."
        ),
        run=make_mds,
        options=(
            Opt("-I", "--init", action="store_true", help="first MDS: create the cluster"),
            Opt(
                "-a",
                "--address",
                metavar="IP[:PORT]",
                required=True,
                help="address of this MDS for all others (default port: 2510)",
            ),
            Opt("-r", "--repository", metavar="DIR", required=True, help="where the MDS keeps its data"),
            BOOTSTRAP,
            Opt("--etcd", metavar="URL,…", help="use this etcd instead of a member run by the MDS"),
            Opt(
                "--set",
                dest="settings",
                metavar="NAME=VALUE",
                action="append",
                help="with -I: a setting of the cluster, as with set-config",
            ),
        ),
        exclusive=(PASSWORD_PROMPT, PASSWORD_STDIN),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster make-mds -I -a 10.30.100.101 -r /vstor/test_cluster-mds -p",
            "vstorctl -c test_cluster make-mds -a 10.30.100.102 -r /vstor/test_cluster-mds",
        ),
    ),
    Command(
        name="rm-mds",
        summary="remove a metadata server",
        description="Takes a metadata server out of the cluster. Refused when the remaining ones would have no quorum.",
        run=rm_mds,
        options=(
            Opt("mds_id", metavar="MDSID", type=server_id, help="id of the MDS, see status"),
            Opt("--dry-run", action="store_true", help="say whether it could be removed, change nothing"),
            BOOTSTRAP,
        ),
        examples=("vstorctl -c test_cluster rm-mds 3",),
    ),
)
