"""get-config, set-config."""

from __future__ import annotations

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.spec import BOOTSTRAP, Command, Opt
from vstor.errors import VstorError
from vstor.proto import messages


def get_config(ctx: Context) -> int:
    """Print one or all settings."""
    value = ctx.call_json(messages.GetConfig(name=ctx.args.name or ""))
    ctx.emit(value, "\n".join(f"{name}={value[name]}" for name in sorted(value)))
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
        options=(Opt("name", metavar="NAME", nargs="?", help="only this one"), BOOTSTRAP),
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
