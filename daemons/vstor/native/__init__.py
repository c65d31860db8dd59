"""The C engine seen from Python: the only importer of the extension `vstor._native`.

DESIGN: this module holds what both daemons share (buffers, checksums, keys, self test); `native.cs` and `native.cl`
wrap the two engines. cffi releases the GIL around every call.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.tickets import make_ticket, session_key, verify_ticket

try:
    from vstor._native import ffi, lib
except ImportError as exc:  # one line with the mend instead of a traceback from deep below
    raise ImportError(
        f"vstor's C extension cannot be loaded ({exc}); run `make native`, or install the package again"
    ) from exc

__all__ = [
    "ALIGN_BYTES", "Buffer", "check", "crc32c", "ffi", "lib", "make_ticket", "self_test", "session_key", "verify_ticket",
]  # fmt: skip

ALIGN_BYTES: int = int(lib.VST_ALIGN)


class Buffer:
    """Page-aligned memory for direct I/O (a shared anonymous mapping, zeroed). Freed by close() or with the object."""

    __slots__ = ("_cdata", "_view", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % ALIGN_BYTES:
            raise ValueError(f"size must be a positive multiple of {ALIGN_BYTES}, not {size_bytes}")
        pointer = lib.vst_buf_alloc(size_bytes)
        if pointer == ffi.NULL:
            raise MemoryError(f"no buffer of {size_bytes} bytes: {os.strerror(ffi.errno)}")
        self.size_bytes = size_bytes
        self._cdata = ffi.gc(pointer, lambda p: lib.vst_buf_free(p, size_bytes), size_bytes)
        self._view = memoryview(ffi.buffer(self._cdata, size_bytes))

    @property
    def pointer(self) -> Any:
        """void* for the C functions. Raises ValueError after close()."""
        if self._cdata is None:
            raise ValueError("buffer is closed")
        return self._cdata

    @property
    def view(self) -> memoryview:
        """The whole memory, writable. Not to be used after close()."""
        if self._cdata is None:
            raise ValueError("buffer is closed")
        return self._view

    def part(self, offset_bytes: int, length_bytes: int) -> Any:
        """void* to a part: both multiples of the alignment and inside. Raises ValueError."""
        if offset_bytes % ALIGN_BYTES or length_bytes % ALIGN_BYTES:
            raise ValueError(f"offset {offset_bytes} and length {length_bytes} must be multiples of {ALIGN_BYTES}")
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self.size_bytes:
            raise ValueError(f"part [{offset_bytes}, +{length_bytes}) lies outside of {self.size_bytes} bytes")
        return ffi.cast("char *", self.pointer) + offset_bytes

    def close(self) -> None:
        """Unmap now. Raises BufferError while slices of the view are held."""
        if self._cdata is not None:
            self._view.release()
            ffi.release(self._cdata)
            self._cdata = None

    def __len__(self) -> int:
        return self.size_bytes

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def crc32c(data: bytes | bytearray | memoryview | Buffer, crc: int = 0) -> int:
    """Continue `crc` (0 to start) over contiguous `data`."""
    if isinstance(data, Buffer):
        return int(lib.vst_crc32c(crc, data.pointer, data.size_bytes))
    with memoryview(data) as view:
        return int(lib.vst_crc32c(crc, ffi.from_buffer(view), view.nbytes))


def check(result: int, what: str) -> int:
    """A result of the C interface: >= 0 is returned, a negative errno raised as the matching VstorError."""
    if result >= 0:
        return result
    code = {
        "ENOSPC": ErrorCode.NO_SPACE,
        "EDQUOT": ErrorCode.NO_SPACE,
        "EUCLEAN": ErrorCode.DAMAGED,
        "EPROTO": ErrorCode.NEWER_FORMAT,
        "EBUSY": ErrorCode.IN_USE,
        "EADDRINUSE": ErrorCode.IN_USE,
        "EADDRNOTAVAIL": ErrorCode.CONFIG,
        "EINVAL": ErrorCode.INVALID,
        "EOPNOTSUPP": ErrorCode.CONFIG,
        "ETIMEDOUT": ErrorCode.TIMED_OUT,
        "ESHUTDOWN": ErrorCode.SHUTTING_DOWN,
    }.get(errno.errorcode.get(-result, ""), ErrorCode.IO_ERROR)
    raise VstorError(code, f"{what}: {os.strerror(-result)}")


def self_test() -> str:
    """Every checksum variant, a session key and the layout agree with Python: called when a daemon starts.

    Returns: the name of the CRC32C variant in use. Raises: INTERNAL when anything differs (a broken build or CPU).
    """
    from vstor.crc32c_py import crc32c as twin
    from vstor.proto import wire_gen

    sample = bytes(range(256)) * 17
    expected = twin(sample)
    index = 0
    name = ffi.new("char const **")
    while (variant := lib.vst_crc32c_variant_at(index, name)) != ffi.NULL:
        if variant(0, sample, len(sample)) != expected:
            raise VstorError(ErrorCode.INTERNAL, f"CRC32C variant {ffi.string(name[0]).decode()} computes wrong values")
        index += 1
    key = ffi.new("uint8_t[32]")
    lib.vst_session_key(bytes(range(32)), 7, 9, key)
    if bytes(key) != session_key(bytes(range(32)), 7, 9):
        raise VstorError(ErrorCode.INTERNAL, "session keys of C and Python differ")
    for struct, size in (("frame", wire_gen.FRAME_STRUCT.size), ("ticket", wire_gen.TICKET_STRUCT.size)):
        if ffi.sizeof(f"struct vst_{struct}") != size:
            raise VstorError(ErrorCode.INTERNAL, f"layout of {struct} differs between C and Python")
    return str(ffi.string(lib.vst_crc32c_variant()).decode())
