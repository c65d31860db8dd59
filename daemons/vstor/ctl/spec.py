"""The shape of a vstorctl verb.

DESIGN: every verb is one `Command` in the table of its `<verb>_cmd.py`. The parser (main.py), `--help`, man pages and bash completion
are all made from these tables, so none of them can say something the others do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstor.ctl.context import Context

EXIT_PARTLY = 15  # exit status of a verb that did its work for a part only and has named the rest


@dataclass(frozen=True, init=False)
class Opt:
    """One argument of a verb: what argparse's add_argument takes."""

    flags: tuple[str, ...]
    kwargs: dict[str, Any]

    def __init__(self, *flags: str, **kwargs: Any) -> None:
        object.__setattr__(self, "flags", flags)
        object.__setattr__(self, "kwargs", kwargs)


@dataclass(frozen=True)
class Command:
    """A verb.

    Attributes:
        run: does it; the exit status. Raises VstorError.
        needs_cluster: -c/--cluster must be given.
        needs_root: refused with NOT_ROOT for other users.
        exclusive: options of which at most one may be given.
    """

    name: str
    summary: str
    run: Callable[[Context], int]
    description: str
    options: tuple[Opt, ...] = ()
    exclusive: tuple[Opt, ...] = ()
    aliases: tuple[str, ...] = ()
    needs_cluster: bool = True
    needs_root: bool = False
    examples: tuple[str, ...] = ()


FORMAT = Opt(
    "--format", choices=("text", "json"), default="text", help="output for people or for programs (default: text)"
)
CLUSTER = Opt("-c", "--cluster", metavar="NAME", help="name of the cluster (default: $VSTOR_NAME or $PSTORAGE_NAME)")
QUIET = Opt("-q", "--quiet", action="store_true", help="print results only, no progress")
TIMEOUT = Opt("--timeout", metavar="SECONDS", type=float, help="how long to wait for an MDS to answer (default: 30)")
BOOTSTRAP = Opt(
    "-b",
    "--bootstrap",
    metavar="IP[:PORT]",
    action="append",
    help="an MDS of the cluster to ask, instead of those that discover finds; may be given several times or separated by commas",
)


def add(parser: argparse._ActionsContainer, opt: Opt, **overrides: Any) -> None:
    """Put an option into a parser or group."""
    parser.add_argument(*opt.flags, **{**opt.kwargs, **overrides})
