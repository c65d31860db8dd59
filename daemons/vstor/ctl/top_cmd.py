"""top: the page of status, live, with keys."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.event_cmd import render_events
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.ctl.status_cmd import NUMERIC, SORT, view_of
from vstor.ctl.status_text import COLUMN_SETS, View, render_status
from vstor.errors import VstorError
from vstor.proto import messages

CLEAR = "\x1b[H\x1b[2J"
TOP_EVENTS = 8
TOP_INTERVAL_MS_MIN = 200
WIDE_COLUMNS = 132  # a terminal at least so wide shows all columns of chunk servers
ALL_TABLES = ("mds", "cs", "clients")
QUIT = "q"
KEYS = "a all  m MDS  c CS  i columns  v details  q quit"


def press(view: View, key: str) -> View:
    """The view after a key; keys that mean nothing change nothing."""
    if key == "a":
        return replace(view, tables=ALL_TABLES)
    if key == "m":
        return replace(view, tables=("mds",))
    if key == "c":
        return replace(view, tables=("cs",))
    if key == "i":
        return replace(view, columns=(view.columns + 1) % len(COLUMN_SETS))
    if key in ("v", "V"):
        return replace(view, details=not view.details)
    return view


def fit(page: str, columns: int, lines: int) -> str:
    """What of the page a terminal has place for."""
    return "\n".join(line[:columns] for line in page.split("\n")[: max(1, lines)])


@contextlib.contextmanager
def _keys_of(stream: TextIO | None) -> Iterator[int | None]:
    """A descriptor that keys can be read from one by one, None where nobody types."""
    if stream is None or not stream.isatty():
        yield None
        return
    fd = stream.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _wait(keys: int | None, seconds: float) -> str:
    """Keys typed within the time, "" for none."""
    if keys is None:
        time.sleep(seconds)
        return ""
    ready, _, _ = select.select([keys], [], [], seconds)
    return os.read(keys, 64).decode("utf-8", "replace") if ready else ""


def top(ctx: Context) -> int:
    """Print the status again and again. An outage is shown, not fatal: the page comes back when an MDS does."""
    terminal = ctx.out.isatty()
    view = view_of(ctx)
    if terminal and shutil.get_terminal_size().columns < WIDE_COLUMNS:
        view = replace(view, columns=1)
    shown = 0
    page = ""
    with _keys_of(ctx.stdin if terminal else None) as keys:
        while True:
            try:
                value = ctx.call_json(messages.GetStatus())
                events = ctx.call_json(messages.GetEvents(after=0, since_ms=0, limit=TOP_EVENTS))
            except VstorError as exc:
                if not exc.retryable or shown == 0:
                    raise
                value, page = None, f"Cluster '{ctx.cluster}': unknown\n{exc.message}"
            shown += 1
            deadline_s = time.monotonic() + max(ctx.args.interval_ms, TOP_INTERVAL_MS_MIN) / 1000
            while True:
                if value is not None:
                    page = f"{render_status(value, view)}\n\n{render_events(events)}"
                if terminal:
                    size = shutil.get_terminal_size()
                    page = f"{CLEAR}{fit(page, size.columns, size.lines - 2)}\n{KEYS}"
                print(page, file=ctx.out, flush=True)
                if ctx.args.iterations and shown >= ctx.args.iterations:
                    return 0
                typed = _wait(keys, max(0.0, deadline_s - time.monotonic()))
                if QUIT in typed:
                    return 0
                if not typed:
                    break
                for key in typed:
                    view = press(view, key)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise VstorError(ErrorCode.USAGE, f"{text!r} is not above 0")
    return int(text)


COMMANDS = (
    Command(
        name="top",
        summary="show the state of the cluster and the last events, live",
        description=(
            "Prints the page of status and the last events again and again. On a terminal keys choose what is shown: a everything, m metadata servers, "
            "c chunk servers, i other columns of chunk servers, v the lines above the tables or not, q ends it."
        ),
        run=top,
        options=(
            NUMERIC,
            *SORT,
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
        examples=("vstorctl -c test_cluster top -T 1000", "vstorctl -c test_cluster top -S iolat=inv"),
    ),
)
