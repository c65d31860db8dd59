"""CRC32C in Python: the twin the C variants are tested against, and for tools on hosts without the extension. Slow."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected (RFC 3720 B.4)


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Continue `crc` (0 to start) over `data`."""
    crc ^= 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
