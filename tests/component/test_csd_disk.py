"""vstor-csd on a disk that is full or fails: the client sees the right error, the MDS the right letter, nothing is lost.

The disk fails for real: a small file system runs out of space, and a limit on file size set on the running daemon makes the
kernel cut writes short and then refuse them.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from vstor.clock import boottime_ms, unix_ms
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.native.cl import Client, RawChunk
from vstor.proto import messages as m
from vstor.proto.tickets import make_ticket, session_key

from tests.component.csd_world import KEY_ID, SESSION, Csd, Mds, world

MIB = 1 << 20
CHUNK_BYTES = 64 * MIB
WRITE, EXCLUSIVE = 2, 2
JOURNAL_MIB = 64
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ETC", "RUN", "LOG", "STATE"):
        monkeypatch.setenv(f"VSTOR_{name}", str(tmp_path / name))


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[tuple[Mds, Csd]]:
    async with world(tmp_path, 1) as (mds, daemons):
        yield mds, daemons[0]


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system with room for the journal and little else."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={JOURNAL_MIB + 48}m", "vstor-test", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


class Writer:
    """Whole replicas at one chunk server, through the client engine; a full server is an error, a failed one too."""

    def __init__(self, mds: Mds, cs_id: int) -> None:
        self.mds, self.cs_id = mds, cs_id
        self.client = Client(no_space_fails=True)
        self.client.start()
        self.client.set_lease_until(boottime_ms() + 600_000)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop()
        self.client.close()

    def ticket(self, chunk_id: int) -> bytes:
        expiry_ms = unix_ms() + 600_000
        key = session_key(self.mds.cs_keys[self.cs_id], SESSION, expiry_ms)
        self.client.set_cs(self.cs_id, self.mds.registered[self.cs_id].addresses, SESSION, expiry_ms, key)
        return make_ticket(
            self.mds.ticket_key, KEY_ID, session_id=SESSION, chunk_id=chunk_id, chunk_version=1, chunk_bytes=CHUNK_BYTES,
            expiry_ms=expiry_ms, write=True, create=True,
        )  # fmt: skip

    async def write(self, chunk_id: int, offset: int, data: bytes) -> int:
        """Bytes, or the ErrorCode the server answered with as a negative number (-1000 - code), or -errno."""
        file = self.client.new_file(chunk_id, CHUNK_BYTES, CHUNK_BYTES)
        file.set_lease(EXCLUSIVE, 0)
        file.set_chunk(0, chunk_id, 1, 0, True, [self.cs_id], self.ticket(chunk_id))
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[int] = loop.create_future()

        def events() -> None:
            while (event := self.client.next_event()) is not None:
                if event.kind == 4 and not failed.done():  # REPLICA_FAILED
                    failed.set_result(-1000 - event.error)
                    file.fail(0, 5)

        loop.add_reader(self.client.event_fd, events)
        try:
            return await asyncio.to_thread(file.io, WRITE, offset, len(data), bytearray(data))
        except OSError as exc:
            events()
            return failed.result() if failed.done() else -exc.errno
        finally:
            loop.remove_reader(self.client.event_fd)
            await asyncio.to_thread(file.close)

    async def read(self, chunk_id: int, offset: int, length: int) -> bytes:
        raw = RawChunk(self.client, self.cs_id, chunk_id, 1, self.ticket(chunk_id))
        buffer = bytearray(length)
        await asyncio.to_thread(raw.read_into, offset, buffer)
        return bytes(buffer)


async def report_of_kind(mds: Mds, kind: str) -> m.CsReport:
    async with asyncio.timeout(20):
        while (report := await mds.reports.get()).kind != kind:
            pass
    return report


def limit_files(daemon: Csd, limit_bytes: int) -> None:
    """Writes of the daemon past this offset of any file fail from now on (EFBIG; Python ignores the signal)."""
    assert daemon.process is not None
    hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))


async def test_a_full_disk_takes_no_more_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk):
        async with world(disk, 1) as (mds, (daemon,)):
            await fill_up(mds, daemon)


async def fill_up(mds: Mds, daemon: Csd) -> None:
    await daemon.start()
    with Writer(mds, daemon.cs_id) as writer:
        written = []
        for chunk_id in range(0x100, 0x180):
            result = await writer.write(chunk_id, 0, bytes([chunk_id & 0xFF]) * MIB)
            if result != MIB:
                break
            written.append(chunk_id)
        assert result == -28, "no ENOSPC"
        assert len(written) > 20
        assert (await report_of_kind(mds, "no_space")).cs_id == daemon.cs_id
        beat = await mds.heartbeat_where(daemon.cs_id, lambda b: b.free_bytes < 4 * MIB)
        assert not set(beat.flags) & set("HSsRT"), "full is not broken"
        for chunk_id in written:
            assert await writer.read(chunk_id, 0, MIB) == bytes([chunk_id & 0xFF]) * MIB
        # A full server can be emptied (R11), started again while full, and goes on when there is room.
        assert await daemon.end() == 0
        await daemon.start()
        done = await mds.order(daemon.cs_id, m.OrderDelete(written[:8]))
        assert done.status == ErrorCode.OK
        await mds.heartbeat_where(daemon.cs_id, lambda b: b.free_bytes > 6 * MIB)
        assert await writer.write(0x200, 0, b"n" * MIB) == MIB
        assert await writer.read(written[8], 0, MIB) == bytes([written[8] & 0xFF]) * MIB
        assert await daemon.end() == 0


async def test_a_file_that_cannot_be_written_is_an_io_error(one: tuple[Mds, Csd]) -> None:
    mds, daemon = one
    await daemon.start()
    with Writer(mds, daemon.cs_id) as writer:
        assert await writer.write(0x11, 40 * MIB - 65536, b"a" * 131072) == 131072
        assert await writer.write(0x11, 0, b"a" * MIB) == MIB
        limit_files(daemon, 40 * MIB)  # the journal is not that far
        for _ in range(2):  # cut short in the middle, twice: a failing disk
            assert await writer.write(0x11, 40 * MIB - 65536, b"b" * 131072) == -1000 - ErrorCode.IO_ERROR
        report = await report_of_kind(mds, "io_error")
        assert (report.chunk_id, report.error) == (0x11, 27)
        await mds.heartbeat_where(daemon.cs_id, lambda b: "H" in b.flags)
        # Each block is old or new with its checksum, what was acknowledged is there, and it serves on.
        data = await writer.read(0x11, 40 * MIB - 65536, 131072)
        assert all(data[i : i + 4096] in (b"a" * 4096, b"b" * 4096) for i in range(0, 131072, 4096))
        assert await writer.read(0x11, 0, MIB) == b"a" * MIB
        assert await writer.write(0x11, 0, b"c" * 4096) == 4096
        assert await daemon.end() == 0
        await daemon.start()
        assert await writer.read(0x11, 0, 8192) == b"c" * 4096 + b"a" * 4096


async def test_a_journal_that_cannot_be_written_stops_writes_not_reads(one: tuple[Mds, Csd]) -> None:
    mds, daemon = one
    await daemon.start()
    with Writer(mds, daemon.cs_id) as writer:
        assert await writer.write(0x11, 0, b"a" * 8192) == 8192
        limit_files(daemon, 65536)
        assert await writer.write(0x11, 4096, b"b" * 4096) == -1000 - ErrorCode.IO_ERROR
        assert (await report_of_kind(mds, "journal_error")).error == 27
        await mds.heartbeat_where(daemon.cs_id, lambda b: "S" in b.flags)
        assert await writer.write(0x12, 0, b"b" * 4096) == -1000 - ErrorCode.IO_ERROR
        assert await writer.read(0x11, 0, 8192) == b"a" * 8192
        await daemon.end()
        await daemon.start()
        beat = await mds.heartbeat_where(daemon.cs_id, lambda b: "S" not in b.flags)
        assert beat.replicas >= 1
        got = await writer.read(0x11, 0, 8192)
        assert got[:4096] == b"a" * 4096
        assert got[4096:] in (b"a" * 4096, b"b" * 4096)
        assert await writer.write(0x11, 0, b"d" * 4096) == 4096


async def test_lost_reports_bring_a_new_inventory(one: tuple[Mds, Csd]) -> None:
    """Replicas that went are told once. More than the daemon remembers: it registers again, and the MDS sees what is there."""
    mds, daemon = one
    await daemon.start()
    with Writer(mds, daemon.cs_id) as writer:
        assert await writer.write(0x11, 0, b"a" * MIB) == MIB
        mds.refuse_reports = True
        assert await daemon.end() == 0
        path = daemon.chunk_file(0x11)
        await daemon.start()
        before = mds.registrations[daemon.cs_id]
        with path.open("r+b") as file:  # the table of checksums
            file.seek(4096)
            file.write(b"damage" * 100)
        with pytest.raises(VstorError) as caught:
            await writer.read(0x11, 0, 4096)
        assert caught.value.code == ErrorCode.CORRUPT
        await mds.heartbeat_where(daemon.cs_id, lambda _: mds.registrations[daemon.cs_id] > before)
        assert mds.inventories[daemon.cs_id] == b""
