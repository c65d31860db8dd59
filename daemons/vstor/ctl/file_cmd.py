"""file-info, list-chunks."""

from __future__ import annotations

from typing import Any

from vstor.ctl.attr_cmd import IN_CLUSTER, PATH
from vstor.ctl.clusterpath import resolve
from vstor.ctl.context import Context
from vstor.ctl.output import table
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.ctl.status_text import CHUNK_STATES
from vstor.proto import messages
from vstor.units import format_size

PAGE_CHUNKS = 1024
LIST_LIMIT_DEFAULT = 1000


def _replica(replica: dict[str, Any], chunk_version: int) -> str:
    """cs, its host, and what is not as it should be."""
    text = f"{replica['cs_id']}"
    if replica.get("host"):
        text += f"({replica['host']})"
    notes = [replica["state"]] if replica["state"] != "active" else []
    if replica.get("version", chunk_version) != chunk_version:
        notes.append(f"v{replica['version']}")
    return text + (f"[{','.join(notes)}]" if notes else "")


def _chunk_rows(chunks: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [
        (
            c["index"],
            c["chunk_id"],
            c["version"],
            c["state"],
            " ".join(_replica(r, c["version"]) for r in c["replicas"]) or "-",
        )
        for c in chunks
    ]


def file_info(ctx: Context) -> int:
    """Print where the chunks of a file are, all pages of it."""
    where = resolve(ctx, ctx.args.path)
    info: dict[str, Any] = {}
    chunks: list[dict[str, Any]] = []
    next_index = 0
    while True:
        page = ctx.call_json(
            messages.FileInfo(path=where.path, first_index=next_index, limit=PAGE_CHUNKS), where.cluster
        )
        info = info or page
        chunks += page["chunks"]
        if len(page["chunks"]) < PAGE_CHUNKS:
            break
        next_index = page["chunks"][-1]["index"] + 1
    info["chunks"] = chunks
    head = [
        f"Path: '{where}'",
        f"inode {info['ino']}, size {info['size']} ({format_size(info['size'])}), replicas {info['replicas']}, {len(chunks)} chunks",
    ]
    body = table(("INDEX", "CHUNK", "VERSION", "STATE", "REPLICAS"), _chunk_rows(chunks), left=(3, 4)) if chunks else ""
    ctx.emit({"cluster": where.cluster, "path": where.path, **info}, "\n".join([*head, *([body] if body else [])]))
    return 0


def list_chunks(ctx: Context) -> int:
    """Print chunks, of one state if asked, with the files they belong to."""
    found: list[dict[str, Any]] = []
    after = 0
    while len(found) < ctx.args.limit:
        limit = min(PAGE_CHUNKS, ctx.args.limit - len(found))
        page = ctx.call_json(messages.ListChunks(state=ctx.args.state, after=after, limit=limit))
        found += page
        if len(page) < limit:
            break
        after = page[-1]["chunk_id"]
    rows = [
        (
            c["chunk_id"],
            c["version"],
            c["state"],
            c.get("path") or f"inode {c.get('ino', '?')}",
            c["index"],
            row[4],
        )
        for c, row in zip(found, _chunk_rows(found), strict=True)
    ]
    ctx.emit(found, table(("CHUNK", "VERSION", "STATE", "FILE", "INDEX", "REPLICAS"), rows, left=(2, 3, 5)))
    return 0


COMMANDS = (
    Command(
        name="file-info",
        summary="show the chunks of a file and where their replicas are",
        description="Prints size, wanted replicas and, for each chunk, its id, version, state and the chunk servers that hold it.",
        run=file_info,
        options=(PATH, IN_CLUSTER, BOOTSTRAP),
        needs_cluster=False,
        examples=("vstorctl file-info /pcs/containers/101/root.img",),
    ),
    Command(
        name="list-chunks",
        summary="list chunks that are not healthy, or those of one state",
        description="Prints chunks with their state, file and replicas, in the order of their ids; without --state all that are not healthy.",
        run=list_chunks,
        options=(
            Opt(
                "--state", choices=CHUNK_STATES, default="", help="only chunks of this state (default: all but healthy)"
            ),
            Opt(
                "--limit",
                type=int,
                default=LIST_LIMIT_DEFAULT,
                metavar="N",
                help=f"no more than N (default: {LIST_LIMIT_DEFAULT})",
            ),
            BOOTSTRAP,
        ),
        examples=("vstorctl -c test_cluster list-chunks --state urgent",),
    ),
)
