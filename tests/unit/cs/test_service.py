"""Pure parts of the service: leases, clocks, inventory pages, flags, latencies, metrics, the rate limit."""

from __future__ import annotations

from pathlib import Path

from vstor.cs import stats
from vstor.cs.rate import BURST_S, RateLimit
from vstor.cs.service import INVENTORY_ENTRY, INVENTORY_PAGE, clock_offset, inventory_pages, lease_until

from tests.unit.cs.fakes import CHUNK_BYTES, FakeChunk


def test_lease_counts_from_before_the_question() -> None:
    assert lease_until(1000, 500) == 1500


def test_cluster_time_is_never_behind() -> None:
    offset = clock_offset(now_ms=50_000, sent_boottime_ms=1000)
    assert 1040 + offset >= 50_000  # the answer arrives 40 ms later


def test_inventory_pages() -> None:
    assert list(inventory_pages(iter([]))) == [b""]
    replicas = [FakeChunk(i, 2, CHUNK_BYTES, syncing=i == 1) for i in range(1, INVENTORY_PAGE + 2)]
    pages = list(inventory_pages(iter(replicas)))
    assert [len(p) // INVENTORY_ENTRY.size for p in pages] == [INVENTORY_PAGE, 1]
    assert INVENTORY_ENTRY.unpack(pages[0][:16]) == (1, 2, 1)
    assert INVENTORY_ENTRY.unpack(pages[1]) == (INVENTORY_PAGE + 1, 2, 0)


def test_flags() -> None:
    assert stats.flags(False, True, True, set()) == "CDc"
    assert stats.flags(True, False, False, {"h", "H", "S"}) == "JCHhS"


def test_letters() -> None:
    health = stats.Health()
    assert health.letters(0) == set()
    health.note("h", 0)
    assert health.letters(1) == {"h"}
    assert health.letters(stats.ERRORS_WINDOW_MS) == set()
    health.note("H", 0)
    health.note("H", stats.ERRORS_WINDOW_MS)  # the first one is forgotten
    assert health.letters(stats.ERRORS_WINDOW_MS) == set()
    health.note("H", stats.ERRORS_WINDOW_MS + 1)
    health.note("S", 5)
    assert health.letters(1 << 40) == {"H", "S"}


def test_latency_is_of_the_interval() -> None:
    zero = dict.fromkeys(
        ("reads", "writes", "syncs", "read_ns_sum", "write_ns_sum", "sync_ns_sum", "read_ns_max", "write_ns_max", "sync_ns_max"), 0
    )  # fmt: skip
    assert stats.latency_ms(zero, {}) == (0.0, 0.0)
    later = zero | {
        "reads": 2,
        "writes": 2,
        "read_ns_sum": 4_000_000,
        "write_ns_sum": 4_000_000,
        "write_ns_max": 3_000_000,
    }
    assert stats.latency_ms(later, zero) == (2.0, 3.0)
    assert stats.latency_ms(later, later)[0] == 0.0


def test_metrics_text() -> None:
    counters = {"reads": 3, "read_ns_sum": 1_500_000_000, "read_ns_max": 5, "chunks": 7}
    text = stats.render_metrics({"cluster": 'a"b', "cs": "1"}, counters, {"free_bytes": 10})
    assert 'vstor_cs_reads_total{cluster="a\\"b",cs="1"} 3' in text
    assert 'vstor_cs_read_seconds_total{cluster="a\\"b",cs="1"} 1.500000' in text
    assert 'vstor_cs_chunks{cluster="a\\"b",cs="1"} 7' in text
    assert "ns_max" not in text
    assert text.endswith("10\n")


async def test_rate_limit_paces() -> None:
    slept: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    limit = RateLimit(1000, lambda: now, sleep)
    for _ in range(100):
        await limit.take(100)
    assert abs(now - (10 - BURST_S)) < 0.01
    await RateLimit(0, lambda: now, sleep).take(1 << 40)
    assert abs(now - (10 - BURST_S)) < 0.01


def test_disk_busy_is_a_figure_of_the_kernel(tmp_path: Path) -> None:
    assert stats.busy_percent(500, 1.0) == 50.0
    assert stats.busy_percent(5000, 1.0) == 100.0
    assert stats.busy_percent(1, 0.0) < 0
    busy = stats.DiskBusy(tmp_path)
    busy._file = tmp_path / "stat"
    assert busy.sample(1.0) < 0, "no such device"
    busy._file.write_text("1 2 3 4 5 6 7 8 9 1000 11 12\n")
    assert busy.sample(10.0) < 0, "nothing to compare with"
    busy._file.write_text("1 2 3 4 5 6 7 8 9 1250 11 12\n")
    assert busy.sample(11.0) == 25.0
