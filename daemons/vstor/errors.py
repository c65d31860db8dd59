"""The one exception of vstor. What a code means (text, errno, exit code, retryable) stands in native/wire/protocol.toml."""

from __future__ import annotations

import errno as _errno

from vstor.codes_gen import ERRORS, ErrorCode


class VstorError(Exception):
    """An error with a stable code.

    Attributes:
        code: what went wrong, the same on the wire, in logs and as exit code.
        message: one line for people: what is wrong and, where there is one, the mend.
    """

    def __init__(self, code: ErrorCode | int, message: str = "") -> None:
        self.code = ErrorCode(code)
        self.message = message or ERRORS[self.code].text
        super().__init__(self.message)

    @property
    def retryable(self) -> bool:
        """The same request may succeed later by itself."""
        return ERRORS[self.code].retryable

    @property
    def errno(self) -> int:
        """Positive errno a file-system caller gets."""
        name = ERRORS[self.code].errno
        return 0 if name == "0" else int(getattr(_errno, name))

    @property
    def exit_code(self) -> int:
        """Exit status of a command that fails with this."""
        return ERRORS[self.code].exit_code


def from_os_error(exc: OSError, what: str) -> VstorError:
    """Translate at the system-call seam: ENOSPC and EDQUOT are NO_SPACE, EADDRINUSE is IN_USE, the rest IO_ERROR."""
    code = {
        _errno.ENOSPC: ErrorCode.NO_SPACE,
        _errno.EDQUOT: ErrorCode.NO_SPACE,
        _errno.EADDRINUSE: ErrorCode.IN_USE,
        _errno.ENOENT: ErrorCode.NOT_FOUND,
        _errno.EACCES: ErrorCode.DENIED,
        _errno.EPERM: ErrorCode.DENIED,
    }.get(exc.errno or 0, ErrorCode.IO_ERROR)
    return VstorError(code, f"{what}: {exc.strerror or exc}")
