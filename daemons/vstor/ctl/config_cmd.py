"""get-config, set-config."""

from __future__ import annotations

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.output import table
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages

VERBOSE = Opt("-v", "--verbose", action="store_true", help="also unit, default and meaning")


def get_config(ctx: Context) -> int:
    """Print one or all settings."""
    found = ctx.call_json(messages.GetConfig(name=ctx.args.name or ""))
    if ctx.args.verbose:
        rows = [
            (f"{name}={o['value']}", o["unit"] or "-", o["default"], o["text"]) for name, o in sorted(found.items())
        ]
        ctx.emit(found, table(("SETTING", "UNIT", "DEFAULT", "MEANING"), rows, left=(0, 1, 2, 3), gap="  "))
    else:
        values = {name: option["value"] for name, option in sorted(found.items())}
        ctx.emit(values, "\n".join(f"{name}={value}" for name, value in values.items()))
    return 0


def set_config(ctx: Context) -> int:
    """Change settings, one transaction each."""
    pairs = []
    for word in ctx.args.settings:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise VstorError(
                ErrorCode.INVALID, f"{word!r} sets nothing — write NAME=VALUE, for example mds.wd.offline_tout=300000"
            )
        pairs.append((name, value))
    for name, value in pairs:
        ctx.call(messages.SetConfig(name=name, value=value))
        ctx.say(f"{name}={value}")
    if ctx.json_wanted:
        ctx.emit(dict(pairs), "")
    return 0


COMMANDS = (
    Command(
        name="get-config",
        summary="show cluster-wide settings",
        description="Prints settings of the cluster as name=value; all of them when no name is given.",
        run=get_config,
        options=(Opt("name", metavar="NAME", nargs="?", help="only this one"), VERBOSE, BOOTSTRAP),
        examples=("vstorctl -c test_cluster get-config", "vstorctl -c test_cluster get-config mds.wd.offline_tout"),
    ),
    Command(
        name="set-config",
        summary="change cluster-wide settings",
        description="Changes settings of the cluster. They take effect at once on every server, without a restart, and outlive all of them.",
        run=set_config,
        options=(Opt("settings", metavar="NAME=VALUE", nargs="+", help="what to set"), BOOTSTRAP),
        examples=("vstorctl -c test_cluster set-config mds.wd.offline_tout=300000",),
    ),
)
