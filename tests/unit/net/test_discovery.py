"""Discovery against a real DNS server on loopback and real mDNS on the loopback interface, and clients that use it."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from vstor.codes_gen import ErrorCode
from vstor.ctl.main import main
from vstor.errors import VstorError
from vstor.net import auth, discovery, rpc_client
from vstor.net.identity import bs_list_path, load_identity
from vstor.net.race import ATTEMPT_DELAY_S
from vstor.net.rpc_client import MdsClient
from vstor.proto import messages as m

from tests.helpers.dnsserver import DnsServer
from tests.unit.net.net_helpers import CLUSTER, PASSWORD, Pki, running

pytestmark = [pytest.mark.timeout(60)]

ZONE = """
$TTL 60
vstor_clusters        TXT "unit,other" "third"
_vstor._tcp.unit      SRV 0 0 {port} s1
_vstor._tcp.unit      SRV 1 0 2510 s2
_vstor._tcp.other     SRV 0 0 2510 nowhere
s1 A 127.0.0.1
s2 A 127.0.0.2
s2 AAAA ::1
"""


def configure(etc: Path, text: str) -> None:
    etc.mkdir(parents=True, exist_ok=True)
    (etc / discovery.CONFIG_NAME).write_text(text)


def use_dns(etc: Path, server: DnsServer, order: str = '"bs.list", "dns"') -> None:
    configure(etc, f'sources = [{order}]\n[dns]\ndomains = ["vstor.test"]\nnameservers = ["{server.address}"]\n')


def use_mdns(etc: Path, announce: bool = True) -> None:
    configure(
        etc,
        'sources = ["bs.list", "mdns"]\n[mdns]\ninterfaces = ["127.0.0.1"]\n'
        f"announce = {'true' if announce else 'false'}\n",
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections (the kernel does) and never says a word, as bs.list would name it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1] - 1}"


async def test_srv_records_with_both_families_in_order(etc: Path) -> None:
    with DnsServer(ZONE.format(port=3000)) as server:
        use_dns(etc, server)
        found = await discovery.addresses("unit")
    assert found == ["127.0.0.1:3000", "[::1]:2510", "127.0.0.2:2510"]
    assert "_vstor._tcp.unit.vstor.test. SRV" in server.asked


async def test_names_of_clusters_by_txt(etc: Path) -> None:
    with DnsServer(ZONE.format(port=3000)) as server:
        use_dns(etc, server)
        found = await discovery.known_clusters("dns", discovery.read_config())
    assert {name: len(addresses) for name, addresses in found.items()} == {"unit": 3, "other": 0, "third": 0}


async def test_bs_list_comes_first_and_spares_the_name_server(etc: Path) -> None:
    bs_list_path("unit").parent.mkdir(parents=True)
    bs_list_path("unit").write_text("127.0.0.9\n")
    with DnsServer(ZONE.format(port=3000)) as server:
        use_dns(etc, server)
        assert await discovery.addresses("unit") == ["127.0.0.9:2510"]
        assert server.asked == []
        use_dns(etc, server, '"dns", "bs.list"')
        assert (await discovery.addresses("unit"))[0] == "127.0.0.1:3000"


async def test_what_each_source_said_when_nothing_is_known(etc: Path) -> None:
    with DnsServer(ZONE.format(port=3000)) as server:
        use_dns(etc, server)
        with pytest.raises(VstorError, match=r"no MDS known for cluster x \(asked bs.list: nothing; dns: nothing\)"):
            await discovery.addresses("x")


async def test_a_dead_name_server_is_said_within_its_time(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vstor.net import discovery_dns

    monkeypatch.setattr(discovery_dns, "QUERY_S_MAX", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        configure(etc, f'[dns]\ndomains = ["vstor.test"]\nnameservers = ["127.0.0.1:{sock.getsockname()[1]}"]\n')
        with pytest.raises(VstorError, match=r"dns: DNS query .* failed: no name server answers"):
            await discovery.addresses("unit")


async def test_client_finds_its_mds_by_dns_alone(node: Pki, etc: Path) -> None:
    async with running(node) as (_mds, server, _address):
        with DnsServer(ZONE.format(port=server.port - 1)) as dns:
            use_dns(etc, dns)
            client = MdsClient(load_identity(CLUSTER), "client")
            assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
            await client.close()


async def test_client_with_a_stale_bs_list_goes_on_to_dns(node: Pki, etc: Path) -> None:
    bs_list_path(CLUSTER).write_text("127.0.0.1:1\n")
    async with running(node) as (_mds, server, _address):
        with DnsServer(ZONE.format(port=server.port - 1)) as dns:
            use_dns(etc, dns)
            client = MdsClient(load_identity(CLUSTER), "client")
            assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
            await client.close()


async def test_an_mds_that_answers_spares_the_name_server(node: Pki, etc: Path) -> None:
    async with running(node) as (mds, _server, address):
        mds.leader = False
        bs_list_path(CLUSTER).write_text(address + "\n")
        with DnsServer(ZONE.format(port=1)) as dns:
            use_dns(etc, dns)
            client = MdsClient(load_identity(CLUSTER), "client")
            with pytest.raises(VstorError, match="no leading MDS at the moment"):
                await client.call(m.GetStatus(), deadline_s=1.0)
            await client.close()
            assert dns.asked == []


async def test_a_silent_first_entry_costs_a_moment_only(
    node: Pki, etc: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_client, "CONNECT_S", 600.0)  # it is passed, not waited for
    assert ATTEMPT_DELAY_S < 0.5
    async with running(node) as (_mds, _server, address):
        bs_list_path(CLUSTER).write_text(f"{silent}\n{address}\n")
        client = MdsClient(load_identity(CLUSTER), "client")
        assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
        await client.close()


async def test_auth_node_passes_a_silent_first_entry_and_uses_dns(
    make_pki: object, etc: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CONNECT_S_MAX", 600.0)
    made = make_pki("cluster")  # type: ignore[operator]
    async with running(made) as (_mds, server, address):
        assert await asyncio.to_thread(auth.auth_node, CLUSTER, PASSWORD, [silent, address])
        bs_list_path(CLUSTER).unlink()
        with DnsServer(ZONE.format(port=server.port - 1)) as dns:
            use_dns(etc, dns)
            await asyncio.to_thread(auth.auth_node, CLUSTER, PASSWORD)
        assert address in bs_list_path(CLUSTER).read_text().split()


async def test_mdns_finds_what_was_announced(etc: Path) -> None:
    use_mdns(etc)
    name, ident = f"u{secrets.token_hex(4)}", secrets.token_hex(16)  # the link is shared with other runs
    async with (
        discovery.announced(name, ident, 1, "127.0.0.1:3000"),
        discovery.announced(name, ident, 2, "127.0.0.2:3000"),
    ):
        found = await discovery.known_clusters("mdns", discovery.read_config())
    assert found[name] == ["127.0.0.1:3000", "127.0.0.2:3000"]


async def test_client_finds_its_mds_by_mdns_alone(node: Pki, etc: Path) -> None:
    use_mdns(etc)
    async with (
        running(node) as (_mds, _server, address),
        discovery.announced(CLUSTER, secrets.token_hex(16), 1, address),
    ):
        client = MdsClient(load_identity(CLUSTER), "client")
        assert await client.call(m.GetStatus(), deadline_s=20) == m.Ok()
        await client.close()


async def test_nothing_is_announced_unless_configured(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vstor.net import discovery_mdns

    monkeypatch.setattr(discovery_mdns, "LISTEN_S_MAX", 0.5)
    use_mdns(etc, announce=False)
    name = f"u{secrets.token_hex(4)}"
    async with discovery.announced(name, secrets.token_hex(16), 1, "127.0.0.1:3000"):
        assert name not in await discovery.known_clusters("mdns", discovery.read_config())


async def test_a_bad_settings_file_is_said_to_callers(node: Pki, etc: Path) -> None:
    configure(etc, "sources = [")
    client = MdsClient(load_identity(CLUSTER), "client")
    with pytest.raises(VstorError, match=r"discovery\.toml") as caught:
        await client.call(m.GetStatus(), deadline_s=0.5)
    assert caught.value.code == ErrorCode.CONFIG
    await client.close()


def test_discover_shows_sources_and_names_one_that_fails(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bs_list_path("unit").parent.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as mds, DnsServer(ZONE.format(port=mds.getsockname()[1] - 1)) as dns:
        address = f"127.0.0.1:{mds.getsockname()[1] - 1}"
        bs_list_path("unit").write_text(address + "\n")
        use_dns(etc, dns)
        assert main(["discover", "--format", "json"]) == 0
        found = {item["cluster"]: item for item in json.loads(capsys.readouterr().out)}
        assert found["unit"]["mds"][0] == {"address": address, "answers": True, "sources": ["bs.list", "dns"]}
        assert [server["answers"] for server in found["unit"]["mds"]] == [True, False, False]
        assert found["other"]["mds"] == []
        assert main(["-c", "unit", "discover", "--source", "bs.list"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split() == ["unit", "no", address, "bs.list", "yes"]
    assert main(["-c", "unit", "discover", "--source", "dns"]) == 0
    captured = capsys.readouterr()
    assert "vstorctl: dns: DNS query of _vstor._tcp.unit.vstor.test. SRV failed" in captured.err
