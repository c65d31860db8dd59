"""Manual pages and completion say what --help says."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess

import pytest
from vstor.ctl.completion import bash_completion
from vstor.ctl.main import COMMANDS
from vstor.ctl.manpages import DAEMONS, daemon_pages, exit_statuses, roff, verb_parsers, vstorctl_pages

PARSERS = verb_parsers()


def plain(page: str) -> str:
    """Text of a page as a reader sees it, white space squeezed."""
    page = re.sub(r"\\f[BIR]", "", page)
    for escape, char in ((r"\-", "-"), (r"\(aq", "'"), (r"\(ga", "`"), (r"\(em", "—"), (r"\e", "\\"), (r"\&", "")):
        page = page.replace(escape, char)
    return " ".join(re.sub(r"^\.\w+ ?", "", page, flags=re.MULTILINE).split())


def squeeze(text: str) -> str:
    return " ".join(text.replace("…", "...").split())


def check_page(page: str, parser: argparse.ArgumentParser) -> None:
    """Description and every option with its text, as --help has them."""
    help_text = " ".join(parser.format_help().split())
    assert squeeze(parser.description or "") in page
    for action in parser._actions:
        for flag in action.option_strings:
            assert flag in page
            assert flag in help_text
        assert action.help, f"{parser.prog}: {action.dest} has no help"
        assert squeeze(parser._get_formatter()._expand_help(action)) in page, action


@pytest.mark.parametrize("name", [c.name for c in COMMANDS])
def test_page_has_all_of_help(name: str) -> None:
    check_page(plain(vstorctl_pages()[f"vstorctl-{name}.8"]), PARSERS[name])


@pytest.mark.parametrize("name", DAEMONS)
def test_page_of_a_daemon(name: str) -> None:
    parser = importlib.import_module(DAEMONS[name].module).build_parser()
    assert parser.prog == name
    check_page(plain(daemon_pages()[f"{name}.8"]), parser)


def test_page_has_nothing_else() -> None:
    """Each flag that stands in OPTIONS of a page is an option of the verb."""
    for name, parser in PARSERS.items():
        section = vstorctl_pages()[f"vstorctl-{name}.8"].split(".SH OPTIONS")[1].split(".SH")[0]
        flags = set(re.findall(r"\\fB(-\S+?)\\fR", section.replace("\\-", "-")))
        assert flags == {flag for action in parser._actions for flag in action.option_strings}


def test_every_exit_status_of_the_errors_is_named() -> None:
    codes = {int(code) for code, _ in exit_statuses()}
    assert {0, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 70, 77, 130} <= codes


def test_main_page_names_all_verbs() -> None:
    page = plain(vstorctl_pages()["vstorctl.8"])
    for command in COMMANDS:
        assert command.summary in page
        assert f"vstorctl-{command.name}(8)" in page


def test_roff_is_inert() -> None:
    assert roff(".TH x\n'y\n-a \\n") == "\\&.TH x\n\\(aqy\n\\-a \\en"


def test_completion_is_valid_bash_and_knows_the_words() -> None:
    script = bash_completion()
    test = """
    complete() { :; }
    eval "$1"
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vstorctl; echo "${COMPREPLY[*]}"; }
    try vstorctl make-
    try vstorctl -c abc make-cs --ti
    try vstorctl -c abc list-chunks --state ur
    try vstorctl service resta
    try vstorctl service restart m
    """
    done = subprocess.run(["bash", "-c", test, "bash", script], capture_output=True, text=True, check=True, timeout=30)
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert lines[0].split() == ["make-mds", "make-cs"]
    assert set(lines[1].split()) == {"--tier", "--timeout"}
    assert lines[2:] == ["urgent", "restart", "mds mount"]


def test_options_are_unambiguous() -> None:
    for name, parser in PARSERS.items():
        flags = [flag for action in parser._actions for flag in action.option_strings]
        assert len(flags) == len(set(flags)), name
        assert isinstance(parser, argparse.ArgumentParser)
