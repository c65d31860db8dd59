"""The C engine through cffi: checksums, buffers, keys; the golden values shared with the C tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from vstor import native
from vstor.codes_gen import ErrorCode
from vstor.crc32c_py import crc32c as twin
from vstor.errors import VstorError

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PATTERNS = {
    "zeros": bytes,
    "ones": lambda n: b"\xff" * n,
    "up": lambda n: bytes(i & 255 for i in range(n)),
    "down": lambda n: bytes((n - 1 - i) & 255 for i in range(n)),
}


def vectors() -> list[tuple[bytes, int]]:
    found = []
    for line in (GOLDEN / "crc32c.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, length, crc, *text = line.split()
            data = text[0].encode() if pattern == "text" else PATTERNS[pattern](int(length))
            found.append((data, int(crc, 16)))
    return found


def test_crc32c_vectors_in_c_and_python() -> None:
    for data, crc in vectors():
        assert native.crc32c(data) == crc
        if len(data) <= 65536:
            assert twin(data) == crc


def test_crc32c_continues() -> None:
    data = bytes(range(256)) * 40
    assert native.crc32c(memoryview(data)[1000:], native.crc32c(data[:1000])) == native.crc32c(data)
    assert twin(data[1000:], twin(data[:1000])) == twin(data)


def test_self_test_names_the_variant() -> None:
    assert native.self_test() in ("vpclmul", "sse42", "portable")


def test_buffer_is_aligned_zeroed_and_bounded() -> None:
    with native.Buffer(8192) as buffer:
        assert int(native.ffi.cast("uintptr_t", buffer.pointer)) % native.ALIGN_BYTES == 0
        assert bytes(buffer.view) == bytes(8192)
        buffer.view[4096:4099] = b"abc"
        assert native.ffi.buffer(buffer.part(4096, 4096), 3)[:] == b"abc"
        for offset, length in ((1, 4096), (0, 4097), (4096, 8192), (-4096, 4096)):
            with pytest.raises(ValueError, match=r"multiples|outside"):
                buffer.part(offset, length)
    with pytest.raises(ValueError, match="closed"):
        _ = buffer.pointer


@pytest.mark.parametrize("size", [0, -4096, 100])
def test_buffer_refuses_odd_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        native.Buffer(size)


@pytest.mark.parametrize(
    ("errno", "code"),
    [(28, ErrorCode.NO_SPACE), (117, ErrorCode.DAMAGED), (98, ErrorCode.IN_USE), (5, ErrorCode.IO_ERROR)],
)
def test_check_translates_errno(errno: int, code: ErrorCode) -> None:
    assert native.check(3, "x") == 3
    with pytest.raises(VstorError, match="reading f: ") as caught:
        native.check(-errno, "reading f")
    assert caught.value.code is code
