"""get-event."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

from vstor.clock import unix_ms
from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.output import table, when
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages

FOLLOW_INTERVAL_S = 1.0
LIMIT_DEFAULT = 100
LIMIT_MAX = 10000
SEVERITIES = ("info", "warn", "err")
_SPAN = re.compile(r"(\d+)([smhd])")
_SPAN_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_since(text: str, now_ms: int) -> int:
    """Unix milliseconds of 10m, 2h, 3d, 2026-01-31, 2026-01-31T12:00:00 (UTC when no zone is written). Raises INVALID."""
    match = _SPAN.fullmatch(text)
    if match:
        return max(0, now_ms - int(match[1]) * _SPAN_S[match[2]] * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise VstorError(
            ErrorCode.INVALID, f"--since {text!r} is no time — examples: 10m, 2h, 3d, 2026-01-31T12:00:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def render_events(events: list[dict[str, Any]], header: bool = True) -> str:
    """Rows TIME SYS SEV MESSAGE."""
    rows = [(when(e["time_ms"]), e["sys"], e["sev"], e["message"]) for e in events]
    text = table(("TIME", "SYS", "SEV", "MESSAGE"), rows, left=(0, 1, 2, 3), gap="  ")
    return text if header else "\n".join(text.split("\n")[1:])


def get_event(ctx: Context) -> int:
    """Print events; with --follow go on until interrupted, over changes of the leader too."""
    args = ctx.args
    if not 1 <= args.limit <= LIMIT_MAX:
        raise VstorError(ErrorCode.INVALID, f"--limit {args.limit} does not do — use 1 to {LIMIT_MAX}")
    since_ms = parse_since(args.since, unix_ms()) if args.since else 0
    events = ctx.call_json(messages.GetEvents(after=0, since_ms=since_ms, limit=args.limit, severity=args.severity))
    if not args.follow:
        ctx.emit(events, render_events(events))
        return 0
    after, first = 0, True
    while True:
        if events or first:
            _print_followed(ctx, events, first)
            first = False
        after = max([after, *(e["id"] for e in events)])
        time.sleep(FOLLOW_INTERVAL_S)
        try:
            events = ctx.call_json(
                messages.GetEvents(after=after, since_ms=since_ms, limit=LIMIT_MAX, severity=args.severity)
            )
        except VstorError as exc:
            if not exc.retryable:
                raise
            events = []


def _print_followed(ctx: Context, events: list[dict[str, Any]], first: bool) -> None:
    """One line an event, JSON lines for programs: a follower never ends, so no list could be closed."""
    lines = (
        [json.dumps(e, ensure_ascii=False) for e in events]
        if ctx.json_wanted
        else [render_events(events, header=first)]
    )
    for line in lines:
        if line:
            print(line, file=ctx.out, flush=True)


COMMANDS = (
    Command(
        name="get-event",
        summary="print the cluster's event log",
        description="Prints the global log of important events, oldest first. It is the same list from every MDS and survives the loss of any of them.",
        run=get_event,
        options=(
            Opt(
                "--since",
                metavar="TIME",
                help="only events from then on: 10m, 2h, 3d or a date such as 2026-01-31T12:00:00 (UTC)",
            ),
            Opt(
                "--limit", type=int, default=LIMIT_DEFAULT, metavar="N", help=f"the newest N (default: {LIMIT_DEFAULT})"
            ),
            Opt("--severity", choices=SEVERITIES, default="", help="only events of this severity"),
            Opt("-f", "--follow", action="store_true", help="print new events as they come, until interrupted"),
            BOOTSTRAP,
        ),
        examples=(
            "vstorctl -c test_cluster get-event --since 2h",
            "vstorctl -c test_cluster get-event --severity err --format json",
        ),
    ),
)
