"""Manual pages, made from the same argparse tree that answers --help: `python -m vstor.ctl.manpages OUTDIR`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vstor
from vstor.codes_gen import ERRORS
from vstor.ctl.main import COMMANDS, build_parser
from vstor.ctl.spec import EXIT_PARTLY

SECTION = 8


@dataclass(frozen=True)
class Daemon:
    """A program with a page of its own: where its parser is made, and what to say."""

    module: str
    summary: str
    see_also: tuple[str, ...]


DAEMONS = {
    "vstor-etcd": Daemon(
        "vstor.mds.etcd_member", "run the etcd member of a metadata server", ("vstor-mdsd", "vstorctl-make-mds")
    ),
    "vstor-mdsd": Daemon("vstor.mds.main", "metadata server of a vstor cluster", ("vstorctl-make-mds", "vstor-etcd")),
    "vstor-csd": Daemon("vstor.cs.main", "chunk server of a vstor cluster", ("vstorctl-make-cs",)),
    "vstor-mount": Daemon("vstor.client.main", "mount a vstor cluster", ("vstorctl-mount", "mount", "fstab")),
}

FILES = (
    ("/etc/vstor/clusters/NAME/bs.list", "addresses of metadata servers, one IP:PORT a line; # starts a comment"),
    (
        "/etc/vstor/discovery.toml",
        'sources of discovery: sources = ["bs.list", "dns", "mdns"] in order of preference (default: the first two), [dns] domains and '
        "nameservers (default: those of resolv.conf), [mdns] interfaces, and announce = true for a metadata server that announces itself",
    ),
    (
        "/etc/vstor/clusters/NAME/{ca.crt,node.crt,node.key}",
        "the cluster's authority, and this node's certificate and key",
    ),
    ("/etc/vstor/clusters/NAME/services/", "servers and mounts made on this node"),
    ("/var/lib/vstor", "usual place of repositories"),
    ("/var/log/vstor", "log files"),
    ("/run/vstor", "sockets, readiness files"),
)
ENVIRONMENT = (
    ("VSTOR_NAME, PSTORAGE_NAME", "the cluster, when -c is not given"),
    ("VSTOR_ETC, VSTOR_RUN, VSTOR_LOG, VSTOR_STATE", "other places for the directories below FILES"),
    ("VSTOR_USER", "user the daemons run as (default: vstor)"),
    ("VSTOR_SERVICE_MANAGER", "systemd or supervisor, when the choice by PID 1 is not right"),
    ("VSTOR_DEBUG", "with 1, internal errors show where they come from"),
)


def roff(text: str) -> str:
    """Text as roff input: no character is a command, - stays a minus that can be copied."""
    text = (
        text.replace("\\", "\\e")
        .replace("-", "\\-")
        .replace("'", "\\(aq")
        .replace("`", "\\(ga")
        .replace("…", "...")
        .replace("—", "\\(em")
    )
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def _title(name: str) -> str:
    return f'.TH "{roff(name.upper())}" {SECTION} "" "vstor {vstor.__version__}" "vstor manual"'


def _invocation(action: argparse.Action) -> str:
    """-r DIR, --repository DIR: as argparse shows it, in bold and italics."""
    if not action.option_strings:
        return f"\\fI{roff(_metavar(action))}\\fR"
    value = "" if action.nargs == 0 else f" \\fI{roff(_metavar(action))}\\fR"
    return ", ".join(f"\\fB{roff(flag)}\\fR{value}" for flag in action.option_strings)


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices:
        return "{" + ",".join(str(c) for c in action.choices) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction):
            yield action


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _synopsis(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().split())
    return usage.removeprefix("usage: ")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    lines = []
    for action in _actions(parser):
        lines += [".TP", _invocation(action), roff(_help(parser, action))]
    return lines


def _pairs(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [line for name, text in pairs for line in (".TP", f"\\fB{roff(name)}\\fR", roff(text))]


def exit_statuses() -> tuple[tuple[str, str], ...]:
    """Every exit status with what it stands for."""
    texts: dict[int, list[str]] = {}
    for error in ERRORS.values():
        texts.setdefault(error.exit_code, []).append(error.text)
    texts.setdefault(3, []).append("(service status) something does not run")
    texts[EXIT_PARTLY] = [
        "(report, deploy) done in part, what failed is named; (check) something is wrong or was not examined"
    ]
    texts[130] = ["interrupted"]
    return tuple((str(code), "; ".join(dict.fromkeys(texts[code]))) for code in sorted(texts))


def page(
    name: str,
    summary: str,
    parser: argparse.ArgumentParser,
    examples: tuple[str, ...] = (),
    see_also: tuple[str, ...] = (),
    body: tuple[str, ...] = (),
) -> str:
    """One page. `body`: roff lines between description and options."""
    lines = [
        _title(name),
        ".SH NAME",
        f"{roff(name)} \\- {roff(summary)}",
        ".SH SYNOPSIS",
        ".ad l",
        ".nh",
        f"\\fB{roff(_synopsis(parser))}\\fR",
        ".hy",
        ".ad b",
    ]
    lines += [".SH DESCRIPTION", roff(parser.description or summary), *body, ".SH OPTIONS", *_options(parser)]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *(roff(e) for e in examples), ".fi"]
    lines += [".SH EXIT STATUS", *_pairs(exit_statuses())]
    lines += [".SH ENVIRONMENT", *_pairs(ENVIRONMENT), ".SH FILES", *_pairs(FILES)]
    lines += [
        ".SH SEE ALSO",
        ", ".join(f"\\fB{roff(other)}\\fR({8 if other.startswith(('vstor', 'mount')) else 5})" for other in see_also),
    ]
    return "\n".join(lines) + "\n"


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    """Verb -> its parser, without aliases."""
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {command.name: action.choices[command.name] for command in COMMANDS}


def vstorctl_pages() -> dict[str, str]:
    """File name -> page, of vstorctl and each verb."""
    verbs = [
        line for c in COMMANDS for line in (".TP", f"\\fB{roff(', '.join((c.name, *c.aliases)))}\\fR", roff(c.summary))
    ]
    others = tuple(f"vstorctl-{c.name}" for c in COMMANDS)
    parser = build_parser()
    pages = {
        f"vstorctl.{SECTION}": page(
            "vstorctl", "administer vstor clusters", parser, see_also=(*others, *DAEMONS), body=(".SH VERBS", *verbs)
        )
    }
    parsers = verb_parsers()
    for command in COMMANDS:
        name = f"vstorctl-{command.name}"
        pages[f"{name}.{SECTION}"] = page(
            name, command.summary, parsers[command.name], command.examples, ("vstorctl", *DAEMONS)
        )
        for alias in command.aliases:
            pages[f"vstorctl-{alias}.{SECTION}"] = f".so man{SECTION}/{name}.{SECTION}\n"
    return pages


def daemon_pages() -> dict[str, str]:
    """File name -> page, of the daemons and the mount program."""
    pages = {}
    for name, daemon in DAEMONS.items():
        parser: argparse.ArgumentParser = importlib.import_module(daemon.module).build_parser()
        pages[f"{name}.{SECTION}"] = page(name, daemon.summary, parser, see_also=("vstorctl", *daemon.see_also))
    pages[f"mount.fuse.vstor.{SECTION}"] = f".so man{SECTION}/vstor-mount.{SECTION}\n"
    return pages


def main(argv: list[str]) -> int:
    """Write all pages into OUTDIR."""
    if len(argv) != 1:
        print("usage: python -m vstor.ctl.manpages OUTDIR", file=sys.stderr)
        return 2
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for name, text in {**vstorctl_pages(), **daemon_pages()}.items():
        (out / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
