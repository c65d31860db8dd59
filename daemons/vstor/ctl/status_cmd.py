"""status, stat, top."""

from __future__ import annotations

import time

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.event_cmd import render_events
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.ctl.status_text import render_status, to_xml
from vstor.errors import VstorError
from vstor.proto import messages

CLEAR = "\x1b[H\x1b[2J"
TOP_EVENTS = 8
TOP_INTERVAL_MS_MIN = 200

NUMERIC = Opt("-n", "--numeric", action="store_true", help="sizes in bytes")


def status(ctx: Context) -> int:
    """Print the status once."""
    value = ctx.call_json(messages.GetStatus())
    if ctx.args.xml:
        print(to_xml(value), file=ctx.out)
    else:
        ctx.emit(value, "" if ctx.json_wanted else render_status(value, ctx.args.numeric))
    return 0


def top(ctx: Context) -> int:
    """Print the status again and again. An outage is shown, not fatal: the page comes back when an MDS does."""
    interval_s = max(ctx.args.interval_ms, TOP_INTERVAL_MS_MIN) / 1000
    shown = 0
    while True:
        try:
            value = ctx.call_json(messages.GetStatus())
            events = ctx.call_json(messages.GetEvents(after=0, since_ms=0, limit=TOP_EVENTS))
            page = f"{render_status(value, ctx.args.numeric)}\n\n{render_events(events)}"
        except VstorError as exc:
            if not exc.retryable or shown == 0:
                raise
            page = f"Cluster '{ctx.cluster}': unknown\n{exc.message}"
        shown += 1
        print((CLEAR if ctx.out.isatty() else "") + page, file=ctx.out, flush=True)
        if ctx.args.iterations and shown >= ctx.args.iterations:
            return 0
        time.sleep(interval_s)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise VstorError(ErrorCode.USAGE, f"{text!r} is not above 0")
    return value


COMMANDS = (
    Command(
        name="status",
        aliases=("stat",),
        summary="show the state of the cluster",
        description=(
            "Prints the cluster's state, its space, the state of chunks, and a table each of metadata servers (M marks the master), chunk servers and clients. "
            "Flags of a chunk server: J journal, C checksums, D direct I/O, c journal clean; failed: H I/O error, h checksum mismatch, S journal unreadable, "
            "s checksums unreadable, R repository missing, T I/O timeout."
        ),
        run=status,
        options=(NUMERIC, Opt("-X", "--xml", action="store_true", help="print XML"), BOOTSTRAP),
        examples=("vstorctl -c test_cluster status", "vstorctl -c test_cluster status --format json"),
    ),
    Command(
        name="top",
        summary="show the state of the cluster and the last events, live",
        description="Prints the page of status and the last events again and again, until interrupted.",
        run=top,
        options=(
            NUMERIC,
            Opt(
                "-T",
                "--interval-ms",
                type=_positive,
                default=2000,
                metavar="MS",
                help="time between two pages (default: 2000)",
            ),
            Opt("--iterations", type=int, default=0, metavar="N", help="end after N pages (default: 0, never)"),
            BOOTSTRAP,
        ),
        examples=("vstorctl -c test_cluster top -T 1000",),
    ),
)
