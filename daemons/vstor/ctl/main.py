"""vstorctl: parser made from the verbs' tables, dispatch, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from typing import Any, NoReturn

import vstor
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.ctl import (
    attr_cmd,
    auth_cmd,
    backup_cmd,
    check_cmd,
    config_cmd,
    cs_cmd,
    deploy_cmd,
    discover_cmd,
    event_cmd,
    file_cmd,
    lease_cmd,
    mds_cmd,
    report_cmd,
    service_cmd,
    status_cmd,
    top_cmd,
)
from vstor.ctl.context import Call, Context, call_cluster
from vstor.ctl.programs import not_installed
from vstor.ctl.spec import CLUSTER, FORMAT, QUIET, TIMEOUT, Command, add
from vstor.errors import VstorError, from_os_error
from vstor.logs import setup_logging

GROUPS = (
    mds_cmd,
    auth_cmd,
    discover_cmd,
    cs_cmd,
    status_cmd,
    top_cmd,
    event_cmd,
    attr_cmd,
    config_cmd,
    file_cmd,
    lease_cmd,
    check_cmd,
    backup_cmd,
    service_cmd,
    report_cmd,
    deploy_cmd,
)
COMMANDS: tuple[Command, ...] = tuple(command for group in GROUPS for command in group.COMMANDS)

# What to do about an error whose message does not say it.
MENDS = {
    ErrorCode.UNREACHABLE: "check that an MDS runs and that vstorctl discover finds it",
    ErrorCode.TIMED_OUT: "try again, or look at the state with vstorctl status",
    ErrorCode.DISCONNECTED: "try again",
    ErrorCode.NOT_LEADER: "no MDS leads just now, try again",
    ErrorCode.META_UNAVAILABLE: "check etcd: vstorctl service status mds",
    ErrorCode.DENIED: "authenticate this node first: vstorctl -c NAME auth-node",
    ErrorCode.WRONG_PASSWORD: "try again with the password given when the cluster was made",
    ErrorCode.WRONG_CLUSTER: "check the name after -c",
    ErrorCode.FOREIGN_DATA: "choose an empty directory",
    ErrorCode.IN_USE: "choose another address or directory, or stop what uses it",
    ErrorCode.NO_SPACE: "make room",
    ErrorCode.NOT_ROOT: "run it as root",
    ErrorCode.USAGE: "see vstorctl --help",
    ErrorCode.NOT_MDS: "see vstorctl status for the ids",
    ErrorCode.UNSAFE: "nothing was changed",
    ErrorCode.CANCELLED: "vstorctl get-event tells when; run it again to go on",
    ErrorCode.DAMAGED: "restore the file from a backup, or replace the server",
    ErrorCode.INTERNAL: "please report it, with vstorctl report",
}


class Parser(argparse.ArgumentParser):
    """Errors as one line, the same way as all others."""

    def error(self, message: str) -> NoReturn:
        raise VstorError(ErrorCode.USAGE, f"{message} — see {self.prog} --help")


def build_parser() -> Parser:
    """The whole command line. Global options are taken before and after the verb."""
    parser = Parser(
        prog="vstorctl",
        description="Administers vstor clusters: makes servers, shows their state, changes settings.",
        epilog="Each verb has its own help, vstorctl VERB --help, and manual page, vstorctl-VERB(8).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"vstorctl {vstor.__version__}", help="print the version"
    )
    for opt in (CLUSTER, QUIET, TIMEOUT):
        add(parser, opt)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for command in COMMANDS:
        _add_command(verbs, command)
    return parser


def _add_command(verbs: Any, command: Command) -> None:
    sub = verbs.add_parser(
        command.name,
        aliases=list(command.aliases),
        help=command.summary,
        description=command.description,
        allow_abbrev=False,
    )
    for opt in command.options:
        add(sub, opt)
    if command.exclusive:
        group = sub.add_mutually_exclusive_group()
        for opt in command.exclusive:
            add(group, opt)
    add(sub, FORMAT)
    # SUPPRESS: a default here would hide what was given before the verb.
    for opt in (CLUSTER, QUIET, TIMEOUT):
        add(sub, opt, default=argparse.SUPPRESS)
    sub.set_defaults(command=command)


def one_line(exc: VstorError) -> str:
    """vstorctl: what is wrong — the mend."""
    text = " ".join(exc.message.split())
    mend = MENDS.get(exc.code)
    # Messages of the daemons put their mend after a semicolon or say "run: …".
    if mend and " — " not in text and "; " not in text and "run: " not in text:
        text += f" — {mend}"
    return f"vstorctl: {text}"


def main(argv: list[str] | None = None, call: Call = call_cluster) -> int:
    """Run a command line; the exit status. `call` is replaced in tests."""
    if os.environ.get("VSTOR_DEBUG"):
        setup_logging("vstorctl", "debug")
    else:
        # The network stack logs what it tries; here the outcome is said once, as the error.
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        return _main(argv, call)
    except VstorError as exc:
        return _complain(exc)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone, as head(1) does; keep the interpreter from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as exc:
        return _complain(from_os_error(exc, exc.filename or "system call failed"))
    except Exception as exc:  # noqa: BLE001 - the last resort: no traceback ever reaches an operator
        missing = not_installed(exc) if isinstance(exc, ModuleNotFoundError) else None
        if missing is not None:
            return _complain(missing)
        if os.environ.get("VSTOR_DEBUG"):
            traceback.print_exc()
        return _complain(
            VstorError(
                ErrorCode.INTERNAL,
                f"internal error: {type(exc).__name__}: {exc} — please report it, VSTOR_DEBUG=1 shows more",
            )
        )


def _main(argv: list[str] | None, call: Call) -> int:
    args = build_parser().parse_args(argv)
    command: Command | None = getattr(args, "command", None)
    if command is None:
        raise VstorError(ErrorCode.USAGE, f"which verb? {', '.join(c.name for c in COMMANDS)} — see vstorctl --help")
    ctx = Context(args, call_fn=call)
    if command.needs_cluster:
        _ = ctx.cluster
    if command.needs_root and os.geteuid() != 0:
        raise VstorError(ErrorCode.NOT_ROOT, f"{command.name} {ERRORS[ErrorCode.NOT_ROOT].text}")
    return command.run(ctx)


def _complain(exc: VstorError) -> int:
    print(one_line(exc), file=sys.stderr, flush=True)
    return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
