"""The cluster password: from a terminal or from standard input, never from argv, never logged."""

from __future__ import annotations

import getpass
import sys

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context
from vstor.errors import VstorError

PASSWORD_BYTES_MAX = 1024
PROMPT = "Please enter password for cluster: "


def read_password(ctx: Context, *, new: bool, prompt: str = PROMPT) -> bytes:
    """The password. -P: first line of standard input; else a prompt, asked twice for a new cluster. Raises USAGE."""
    if getattr(ctx.args, "password_stdin", False):
        line = ctx.stdin.readline(PASSWORD_BYTES_MAX + 2)
        return _check(
            line.rstrip("\r\n"),
            "standard input gave no password — pipe it: printf '%s\\n' \"$PASSWORD\" | vstorctl … -P",
        )
    if not sys.stdin.isatty() and not _has_terminal():
        raise VstorError(
            ErrorCode.USAGE, "no terminal to ask for the password — give -P and write it to standard input"
        )
    first = getpass.getpass(prompt)
    password = _check(first, "an empty password does not do — enter one")
    if new and getpass.getpass("Please enter it again: ") != first:
        raise VstorError(ErrorCode.USAGE, "the two passwords differ — run the command again")
    return password


def _check(text: str, empty_message: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if not data:
        raise VstorError(ErrorCode.USAGE, empty_message)
    if len(data) > PASSWORD_BYTES_MAX:
        raise VstorError(ErrorCode.USAGE, f"the password has more than {PASSWORD_BYTES_MAX} bytes — take a shorter one")
    return data


def _has_terminal() -> bool:
    try:
        with open("/dev/tty"):
            return True
    except OSError:
        return False
