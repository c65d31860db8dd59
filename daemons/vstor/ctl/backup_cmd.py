"""backup, restore."""

from __future__ import annotations

import time
from pathlib import Path

from vstor import services as registry
from vstor.codes_gen import ErrorCode
from vstor.ctl.address import PORTS_OF_AN_MDS, parse_address
from vstor.ctl.context import Context
from vstor.ctl.mds_cmd import repository_path
from vstor.ctl.ownership import give_to_daemons
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages
from vstor.units import format_size


def backup(ctx: Context) -> int:
    """Write a backup of the metadata from the etcd member of an MDS of this node."""
    from vstor.mds.backup import make_backup
    from vstor.mds.repo_files import Repository

    target = Path(ctx.args.file).expanduser().absolute()
    found = [s for s in registry.list_services(ctx.cluster) if s.kind == "mds"]
    if not found:
        raise VstorError(
            ErrorCode.NOT_FOUND, f"no MDS of cluster {ctx.cluster!r} on this node — run this on one of its MDS hosts"
        )
    manifest = make_backup(Repository(Path(found[0].path)), target)
    try:
        ctx.call(messages.BackupDone(manifest.revision, manifest.snapshot_bytes))
    except VstorError as exc:
        ctx.warn(f"the cluster could not be told that a backup was taken: {exc.message}")
    value = {
        "cluster": manifest.cluster,
        "cluster_id": manifest.cluster_id,
        "file": str(target),
        "time_ms": manifest.time_ms,
        "revision": manifest.revision,
        "size_bytes": target.stat().st_size,
    }
    text = f"{format_size(manifest.snapshot_bytes)} of metadata in {target}, mode 0600; it holds all secrets of the cluster"
    ctx.emit(value, "" if ctx.args.quiet else text)
    return 0


def restore(ctx: Context) -> int:
    """A new MDS from a backup; or a surviving one alone; or the end of a restore without the chunk servers that are missing."""
    args = ctx.args
    if args.finish:
        ctx.call(messages.RestoreFinish())
        ctx.emit({"finished": True}, "going on without the chunk servers that are missing")
        return 0
    if not args.repository:
        raise VstorError(ErrorCode.USAGE, "-r DIR is missing — where is the repository of the MDS, or shall it be?")
    repo = repository_path(args.repository)
    if args.survivor:
        from vstor.mds.restore import recover_survivor

        result = recover_survivor(repo, force=args.force)
        text = f"MDS#{result['mds_id']} will go on alone; now start it: vstorctl -c {ctx.cluster} service start mds"
    else:
        if not args.file or not args.address:
            raise VstorError(ErrorCode.USAGE, "restore wants FILE and -a IP[:PORT], or --survivor, or --finish")
        from vstor.mds.restore import restore_cluster

        archive = Path(args.file).expanduser().absolute()
        address = parse_address(args.address, ports=PORTS_OF_AN_MDS)
        result = restore_cluster(ctx.cluster, archive, address, repo, force=args.force)
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(result["time_ms"] / 1000))
        text = f"MDS#{result['mds_id']} made in {repo} with the metadata of {when}\nnow start it: vstorctl -c {ctx.cluster} service start mds"
        if not result["changed"]:
            text = f"MDS#{result['mds_id']} is in {repo} already, nothing was changed"
    give_to_daemons(repo, ctx.cluster)
    ctx.emit(result, "" if args.quiet and not ctx.json_wanted else text)
    return 0


COMMANDS = (
    Command(
        name="backup",
        summary="back the metadata up into a file",
        description=(
            "Writes the cluster's metadata (names, attributes, maps of chunks, configuration, secrets) into a new file, from the etcd member of "
            "an MDS of this node, while the cluster runs. Nothing acknowledged before is missing. The data in the chunk servers are not in it. "
            "The file has mode 0600 and holds the keys of the cluster: whoever reads it can pose as any of its servers, so keep it as you keep "
            "them, on another host. status tells when the last backup was taken."
        ),
        run=backup,
        options=(Opt("file", metavar="FILE", help="new file"), BOOTSTRAP),
        needs_root=True,
        examples=("vstorctl -c test_cluster backup /root/test_cluster-2026-11-25.vstor",),
    ),
    Command(
        name="restore",
        summary="restore the metadata after the loss of all MDSs, or of their quorum",
        description=(
            "With FILE: makes the repository of a new MDS from a backup, when all MDSs are lost. Start it, and join others with make-mds. The "
            "chunk servers and clients find it by bs.list as before, so give it one of the old addresses, or change bs.list on the nodes. With "
            "--survivor: the quorum is lost for good, but the repository of one MDS is left; it goes on alone, with what it had received. In "
            "both cases nothing is served until every chunk server known has told what it holds (status shows whom it waits for): the newest "
            "complete replicas count, also where they are newer than the metadata. --finish goes on without those that are missing. What was "
            "made after the backup is not known any more: files made since have no name; their chunks are kept on the chunk servers and never "
            "deleted. Files changed since have the new content up to the size they had at the time of the backup. Files removed since are back, "
            "without content. Clients open new sessions; locks are gone."
        ),
        run=restore,
        options=(
            Opt("file", metavar="FILE", nargs="?", help="the backup"),
            Opt("-a", "--address", metavar="IP[:PORT]", help="address of the new MDS for all others"),
            Opt("-r", "--repository", metavar="DIR", help="new repository; with --survivor the one that is left"),
            Opt("--force", action="store_true", help="although an MDS of the cluster answers"),
            BOOTSTRAP,
        ),
        exclusive=(
            Opt("--survivor", action="store_true", help="go on with the MDS of this repository alone"),
            Opt("--finish", action="store_true", help="do not wait for the chunk servers that are missing"),
        ),
        needs_root=True,
        examples=(
            "vstorctl -c test_cluster restore /root/test_cluster-2026-11-25.vstor -a 10.30.100.101 -r /vstor/test_cluster-mds",
            "vstorctl -c test_cluster restore --survivor -r /vstor/test_cluster-mds",
            "vstorctl -c test_cluster restore --finish",
        ),
    ),
)
