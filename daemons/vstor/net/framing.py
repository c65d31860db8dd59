"""Frames of the control connection, sans-I/O: `u32 little-endian length` and then one msgpack envelope of proto/messages.py."""

from __future__ import annotations

import struct

import msgspec

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m

_LENGTH = struct.Struct("<I")
HEADER_BYTES = _LENGTH.size


def pack(envelope: m.Request | m.Reply | m.Failure | m.Push) -> bytes:
    """One frame. Raises TOO_LARGE above FRAME_BYTES_MAX."""
    payload = m.encode(envelope)
    if len(payload) > m.FRAME_BYTES_MAX:
        raise VstorError(
            ErrorCode.TOO_LARGE,
            f"control message of {len(payload)} bytes exceeds {m.FRAME_BYTES_MAX}",
        )
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into envelopes.

    Bounds: keeps at most one incomplete frame (FRAME_BYTES_MAX) besides what was just fed.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[m.Request | m.Reply | m.Failure | m.Push]:
        """Envelopes completed by `data`, in order. Raises BAD_REQUEST or TOO_LARGE for garbage: the connection must be dropped."""
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer) if self._complete() else b""
            if not data:
                return []
        found = []
        offset, end = 0, len(data)
        view = memoryview(data)
        while end - offset >= HEADER_BYTES:
            (length,) = _LENGTH.unpack_from(data, offset)
            if length > m.FRAME_BYTES_MAX or length == 0:
                raise VstorError(ErrorCode.TOO_LARGE, f"frame of {length} bytes")
            start = offset + HEADER_BYTES
            if end - start < length:
                break
            offset = start + length
            try:
                found.append(m.decode(view[start:offset]))
            except (
                msgspec.DecodeError,
                ValueError,
            ) as exc:  # ValueError: text that is not UTF-8
                raise VstorError(ErrorCode.BAD_REQUEST, f"malformed control message: {exc}") from exc
        self._buffer = bytearray(view[offset:])
        return found

    def _complete(self) -> bool:
        """Whether the kept bytes hold at least one frame; spares copying a large frame for each of its segments."""
        if len(self._buffer) < HEADER_BYTES:
            return False
        length: int = _LENGTH.unpack_from(self._buffer)[0]
        return length > m.FRAME_BYTES_MAX or length == 0 or len(self._buffer) >= HEADER_BYTES + length
