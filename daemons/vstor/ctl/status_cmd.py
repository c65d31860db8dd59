"""status, stat."""

from __future__ import annotations

from vstor.ctl.context import Context
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.ctl.status_text import View, parse_sort, render_status, to_xml
from vstor.proto import messages

NUMERIC = Opt("-n", "--numeric", action="store_true", help="sizes in bytes")
SORT = (
    Opt(
        "-s",
        "--sort-mds",
        metavar="COLUMN[=inv]",
        help="order of the metadata servers, inv: descending (default: mdsid)",
    ),
    Opt("-S", "--sort-cs", metavar="COLUMN[=inv]", help="order of the chunk servers (default: csid)"),
    Opt("-O", "--sort-clients", metavar="COLUMN[=inv]", help="order of the clients (default: clid)"),
)


def view_of(ctx: Context) -> View:
    """What the options ask for. Raises INVALID."""
    wanted = {"mds": ctx.args.sort_mds, "cs": ctx.args.sort_cs, "clients": ctx.args.sort_clients}
    return View(numeric=ctx.args.numeric, sort={name: parse_sort(name, text) for name, text in wanted.items() if text})


def status(ctx: Context) -> int:
    """Print the status once."""
    view = view_of(ctx)
    value = ctx.call_json(messages.GetStatus())
    if ctx.args.xml:
        print(to_xml(value), file=ctx.out)
    else:
        ctx.emit(value, "" if ctx.json_wanted else render_status(value, view))
    return 0


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
        options=(NUMERIC, *SORT, Opt("-X", "--xml", action="store_true", help="print XML"), BOOTSTRAP),
        examples=("vstorctl -c test_cluster status", "vstorctl -c test_cluster status --format json"),
    ),
)
