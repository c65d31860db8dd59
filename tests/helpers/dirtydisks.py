"""Loop devices, and things to find on a disk: what mkfs makes, and superblocks written byte for byte for what has no tool or driver here.

Each superblock is one that libblkid takes for real, checksums included (tests assert that it does).
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20


def run(*argv: str | Path) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@contextmanager
def loop_device(file: Path, *options: str) -> Iterator[str]:
    """`file` as a block device."""
    node = run("losetup", "--find", "--show", *options, file).strip()
    try:
        yield node
    finally:
        run("losetup", "--detach", node)


def digest(file: Path, limit: int | None = None) -> str:
    """Of the whole contents, or its first `limit` bytes: where data are, and every byte of them. Holes are zeros, and one that was written to shows."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        size, at = os.fstat(opened.fileno()).st_size, 0
        while at < (size if limit is None else limit):
            try:
                start = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # a hole up to the end
                    break
                raise
            at = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            if limit is not None:
                at = min(at, limit)
            data = os.pread(opened.fileno(), at - start, start)
            # Pages of zeros come and go with the file system's allocation.
            if data.count(0) != len(data):
                found.update(f"{start} {at}".encode() + data)
    return found.hexdigest() + f" {size}"


def put(file: Path, offset: int, data: bytes) -> None:
    """Write at `offset`; negative ones count from the end."""
    with file.open("r+b") as opened:
        opened.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        opened.write(data)


def crc32c(data: bytes) -> int:
    """Bit by bit: it is for 4 KiB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def ext4(file: Path) -> None:
    run("mkfs.ext4", "-q", "-F", "-L", "photos", file)


def xfs(file: Path) -> None:
    run("mkfs.xfs", "-q", file)


def foreign_cs(file: Path) -> None:
    """The disk of a chunk server of another cluster."""
    run("mkfs.xfs", "-q", "-L", "vs-123456789", file)


def swap(file: Path) -> None:
    run("mkswap", file)


def btrfs(file: Path) -> None:
    block = bytearray(4096)
    block[32:48] = uuid.uuid4().bytes
    struct.pack_into("<QQ8sQ", block, 48, 0x10000, 1, b"_BHRfS_M", 1)
    struct.pack_into("<II", block, 0x90, 4096, 4096)  # sector size, node size
    struct.pack_into("<I", block, 0, crc32c(bytes(block[32:])))
    put(file, 0x10000, bytes(block))


def lvm(file: Path) -> None:
    label = bytearray(512)
    struct.pack_into("<8sQII8s", label, 0, b"LABELONE", 1, 0, 32, b"LVM2 001")
    label[32:64] = b"a" * 32
    crc = zlib.crc32(bytes(label[20:]), 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    struct.pack_into("<I", label, 16, crc)
    put(file, 512, bytes(label))


def mdraid(file: Path) -> None:
    block = bytearray(256)
    struct.pack_into("<IIII", block, 0, 0xA92B4EFC, 1, 0, 0)
    block[16:32] = uuid.uuid4().bytes
    block[32:64] = b"host:0".ljust(32, b"\0")
    struct.pack_into("<Q", block, 128 + 16, 8)  # where this superblock is, in sectors
    sums = sum(struct.unpack_from("<64I", block))
    struct.pack_into("<I", block, 216, ((sums & 0xFFFFFFFF) + (sums >> 32)) & 0xFFFFFFFF)
    put(file, 4096, bytes(block))


def luks(file: Path) -> None:
    header = bytearray(592)
    struct.pack_into(">6sH32s32s32s", header, 0, b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256")
    header[168:208] = str(uuid.uuid4()).encode().ljust(40, b"\0")
    put(file, 0, bytes(header))


def mbr(file: Path) -> None:
    sector = bytearray(512)
    struct.pack_into("<B3sB3sII", sector, 446, 0x80, b"\0\2\0", 0x83, b"\xff" * 3, 2048, 100_000)
    sector[510:] = b"\x55\xaa"
    put(file, 0, bytes(sector))


def gpt(file: Path) -> None:
    last = file.stat().st_size // 512 - 1
    entry = bytearray(128)
    entry[0:16], entry[16:32] = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le, uuid.uuid4().bytes_le
    struct.pack_into("<QQ", entry, 32, 2048, last - 2048)
    entries = bytes(entry) + bytes(127 * 128)
    protective = bytearray(512)
    struct.pack_into("<B3sB3sII", protective, 446, 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, last)
    protective[510:] = b"\x55\xaa"
    disk = uuid.uuid4().bytes_le
    for here, other, table in ((1, last, 2), (last, 1, last - 32)):
        header = bytearray(92)
        struct.pack_into("<8sIIIIQQQQ", header, 0, b"EFI PART", 0x10000, 92, 0, 0, here, other, 34, last - 33)
        header[56:72] = disk
        struct.pack_into("<QIII", header, 72, table, 128, 128, zlib.crc32(entries))
        struct.pack_into("<I", header, 16, zlib.crc32(bytes(header)))
        put(file, here * 512, bytes(header).ljust(512, b"\0"))
        put(file, table * 512, entries)
    put(file, 0, bytes(protective))


def crc64_bcache(data: bytes) -> int:
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte << 56
        for _ in range(8):
            crc = (crc << 1 ^ (0x42F0E1EBA9EA3693 if crc >> 63 else 0)) & ((1 << 64) - 1)
    return crc ^ ((1 << 64) - 1)


def bcache(file: Path) -> None:
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    block = bytearray(4096)
    struct.pack_into("<QQ16s16s", block, 8, 8, 1, magic, uuid.uuid4().bytes)
    struct.pack_into("<Q", block, 0, crc64_bcache(bytes(block[8:208])))
    put(file, 4096, bytes(block))


def zfs(file: Path) -> None:
    for index in range(8):
        uberblock = struct.pack("<QQQQQ", 0x00BAB10C, 5000, 100 + index, 1, 1)
        for label in (0, 256 * 1024):
            put(file, label + 128 * 1024 + index * 1024, uberblock)


def bluestore(file: Path) -> None:
    put(file, 0, b"bluestore block device\n" + str(uuid.uuid4()).encode() + b"\n")


def several(file: Path) -> None:
    """An old file system shines through a new one: no tool can say which is meant."""
    ext4(file)
    btrfs(file)


def raw_start(file: Path) -> None:
    """A database that needs no file system."""
    put(file, 4096, b"pages of a database")


def raw_end(file: Path) -> None:
    put(file, -512, b"a backup of something")


# What makes it, and a word of the refusal.
SIGNATURES: dict[str, tuple[Callable[[Path], None], str]] = {
    "ext4": (ext4, "ext4"),
    "xfs": (xfs, "xfs"),
    "btrfs": (btrfs, "btrfs"),
    "swap": (swap, "swap space"),
    "lvm": (lvm, "LVM"),
    "mdraid": (mdraid, "RAID"),
    "luks": (luks, "LUKS"),
    "gpt": (gpt, "GPT"),
    "mbr": (mbr, "MBR"),
    "bcache": (bcache, "bcache"),
    "zfs": (zfs, "ZFS"),
    "bluestore": (bluestore, "Ceph"),
    "foreign-cs": (foreign_cs, "chunk server disk of another vstor cluster"),
    "several": (several, "btrfs"),
    "raw-start": (raw_start, "not blank"),
    "raw-end": (raw_end, "not blank"),
}
