"""What a chunk server holds, for `vstorctl check`: asked of the running one, or read from the disk of one that is stopped.

DESIGN: nothing here changes anything. The reader of disks knows the format (daemons/docs/on_disk_format.md) by itself, so that it can
contradict the engine. It judges only what stands in chunk files; what still waits in a journal is not seen, and said so (`settled`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vstor.codes_gen import ErrorCode
from vstor.cs.engine import EngineHost
from vstor.errors import VstorError
from vstor.native import crc32c
from vstor.proto.wire_gen import (
    BLOCK_BYTES,
    DISK_FORMAT,
    IO_BYTES_MAX,
    TABLE_PAGE_BLOCKS,
    ChunkFlag,
    ChunkHeader,
    JournalGroup,
    JournalHeader,
    TablePage,
)

PAGE_REPLICAS = 4096
PAGE_DIGESTS = 4  # replicas read in one answer
CORRUPT = "CORRUPT"
PIECE_BYTES = IO_BYTES_MAX  # divides every chunk size
ZEROS = hashlib.sha256(bytes(PIECE_BYTES)).digest()  # of a piece that was never written: most of a sparse file
MAGIC_CHUNK = int.from_bytes(b"VSTCHUNK", "little")
MAGIC_PAGE = int.from_bytes(b"VSTP", "little")
MAGIC_JOURNAL = int.from_bytes(b"VSTJRNAL", "little")
MAGIC_GROUP = int.from_bytes(b"VSTGROUP", "little")
CHUNK_HEADER_BYTES, JOURNAL_HEADER_BYTES, JOURNAL_GROUP_BYTES = 128, 96, 80


async def answer(host: EngineHost, repo: Path, query: dict[str, str]) -> bytes:
    """One page of a running server: replicas after `after`, with data=1 with digests of their content."""
    after, data = int(query.get("after", "0")), query.get("data") == "1"
    count = PAGE_DIGESTS if data else PAGE_REPLICAS
    replicas = await host.call(host.engine.list, after, count)
    rows = []
    for replica in replicas:
        digest = await host.call_scrub(_digest, host.engine, replica) if data else ""
        rows.append([replica.chunk_id, replica.version, int(replica.syncing), replica.bad_blocks, digest])
    quarantine = repo / "quarantine"
    put_aside = len(os.listdir(quarantine)) if quarantine.is_dir() else 0
    return json.dumps({"replicas": rows, "more": len(replicas) == count, "quarantined": put_aside}).encode()


def _digest(engine: Any, replica: Any) -> str:
    """SHA-256 over the SHA-256 of each piece of the content; CORRUPT; "" for a replica that is gone or not served."""
    if replica.syncing:
        return ""
    total = hashlib.sha256()
    try:
        for offset in range(0, replica.chunk_bytes, PIECE_BYTES):
            piece = engine.read(replica.chunk_id, offset, PIECE_BYTES)
            total.update(ZEROS if piece is None else hashlib.sha256(piece).digest())
    except VstorError as exc:
        return CORRUPT if exc.code in (ErrorCode.CORRUPT, ErrorCode.IO_ERROR) else ""
    return total.hexdigest()


# --- the disk of a stopped server


def read_disk(repo: Path, cluster_id: str, data: bool) -> dict[str, Any]:
    """As `answer`, of all chunk files below `repo`, and which of them are damaged. Raises IO_ERROR for a directory that cannot be read."""
    rows, damaged = [], []
    for file in _chunk_files(repo):
        try:
            rows.append(_read_chunk(file, bytes.fromhex(cluster_id), data))
        except (ValueError, OSError) as exc:
            damaged.append(f"{file}: {exc}")
    quarantine = repo / "quarantine"
    put_aside = len(os.listdir(quarantine)) if quarantine.is_dir() else 0
    return {"replicas": rows, "more": False, "quarantined": put_aside, "damaged": damaged}


def _crc_without(block: bytes, struct_bytes: int) -> int:
    """CRC of a block whose structure of `struct_bytes` ends with the CRC itself, which counts as 0."""
    return crc32c(block[: struct_bytes - 4] + bytes(4) + block[struct_bytes:])


def _chunk_files(repo: Path) -> Iterator[Path]:
    root = repo / "chunks"
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        yield from sorted(directory.iterdir())


def _read_chunk(file: Path, cluster_id: bytes, data: bool) -> list[Any]:
    """A row. Raises ValueError saying what is wrong with header or table."""
    with file.open("rb") as stream:
        block = stream.read(BLOCK_BYTES)
        if len(block) != BLOCK_BYTES:
            raise ValueError("it is shorter than a header")
        header = ChunkHeader.unpack(block[:CHUNK_HEADER_BYTES])
        if _crc_without(block, CHUNK_HEADER_BYTES) != header.crc:
            raise ValueError("the header does not match its checksum")
        if header.magic != MAGIC_CHUNK or header.format != DISK_FORMAT:
            raise ValueError(f"not a chunk file of format {DISK_FORMAT}")
        if header.cluster_id != cluster_id:
            raise ValueError("it is of another cluster")
        if f"{header.chunk_id:016x}" != file.name:
            raise ValueError(f"it says it is chunk {header.chunk_id:016x}")
        bad, digest = _read_table(stream, header, data)
    return [header.chunk_id, header.chunk_version, int(bool(header.flags & ChunkFlag.SYNCING)), bad, digest]


def _read_table(stream: Any, header: ChunkHeader, data: bool) -> tuple[int, str]:
    """(bad blocks, digest as of the running server or "")."""
    blocks = header.chunk_bytes // BLOCK_BYTES
    pages = -(-blocks // TABLE_PAGE_BLOCKS)
    table = [_read_page(stream, header, number) for number in range(pages)]
    bad = sum(int.from_bytes(page.bad, "little").bit_count() for page in table if page is not None)
    if not data:
        return bad, ""
    total, unreadable = hashlib.sha256(), 0
    for first in range(0, blocks, PIECE_BYTES // BLOCK_BYTES):
        digest, wrong = _read_piece(stream, table, pages, first)
        total.update(digest)
        unreadable += wrong
    return bad + unreadable, CORRUPT if bad or unreadable else total.hexdigest()


def _read_piece(stream: Any, table: list[TablePage | None], pages: int, first: int) -> tuple[bytes, int]:
    """(digest of a piece, blocks of it that do not match their checksum). first: its first block."""
    piece, wrong, written = bytearray(PIECE_BYTES), 0, False
    for index in range(PIECE_BYTES // BLOCK_BYTES):
        page, at = table[(first + index) // TABLE_PAGE_BLOCKS], (first + index) % TABLE_PAGE_BLOCKS
        if page is None or not page.written[at // 8] >> at % 8 & 1 or page.bad[at // 8] >> at % 8 & 1:
            continue
        stream.seek((1 + pages + first + index) * BLOCK_BYTES)
        content = stream.read(BLOCK_BYTES)
        written = True
        wrong += len(content) != BLOCK_BYTES or crc32c(content) != page.block_crc[at]
        piece[index * BLOCK_BYTES : index * BLOCK_BYTES + len(content)] = content
    return hashlib.sha256(piece).digest() if written else ZEROS, wrong


def _read_page(stream: Any, header: ChunkHeader, number: int) -> TablePage | None:
    """A page of the table, None for one that was never written. Raises ValueError."""
    if not header.pages[number // 8] >> number % 8 & 1:
        return None
    stream.seek((1 + number) * BLOCK_BYTES)
    raw = stream.read(BLOCK_BYTES)
    if len(raw) != BLOCK_BYTES or _crc_without(raw, BLOCK_BYTES) != int.from_bytes(raw[-4:], "little"):
        raise ValueError(f"page {number} of its table does not match its checksum")
    page = TablePage.unpack(raw)
    if page.magic != MAGIC_PAGE or page.chunk_id != header.chunk_id or page.page != number:
        raise ValueError(f"page {number} of its table is of something else")
    return page if page.file_id == header.file_id else None


def journal_settled(journal: Path) -> bool:
    """No work waits in the journal: no valid group stands at its tail. False for a journal that cannot be read."""
    try:
        with journal.open("rb") as stream:
            headers = [h for h in (_journal_header(stream, at) for at in (0, BLOCK_BYTES)) if h is not None]
            if not headers:
                return False
            header = max(headers, key=lambda h: h.generation)
            # A group that does not fit before the end of the ring stands at its beginning.
            places = (header.log_start + header.tail % (header.journal_bytes - header.log_start), header.log_start)
            return not any(_waits(stream, at, header) for at in places)
    except OSError:
        return False


def _waits(stream: Any, at: int, header: JournalHeader) -> bool:
    stream.seek(at)
    try:
        group = JournalGroup.unpack(stream.read(JOURNAL_GROUP_BYTES))
    except ValueError:
        return False
    return group.magic == MAGIC_GROUP and group.epoch == header.epoch and group.position >= header.tail


def _journal_header(stream: Any, at: int) -> JournalHeader | None:
    stream.seek(at)
    block = stream.read(BLOCK_BYTES)
    try:
        header = JournalHeader.unpack(block[:JOURNAL_HEADER_BYTES])
    except ValueError:
        return None
    good = header.magic == MAGIC_JOURNAL and _crc_without(block, JOURNAL_HEADER_BYTES) == header.crc
    return header if good and header.journal_bytes > header.log_start else None
