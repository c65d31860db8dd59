"""Rules of discovery: settings, order of SRV records, texts of others."""

from __future__ import annotations

import collections
import random

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import sources
from vstor.net.identity import parse_address
from vstor.net.sources import DiscoveryConfig, Srv


def parse(text: str) -> DiscoveryConfig:
    return sources.parse_config(text, "discovery.toml", parse_address)


def test_mdns_is_off_until_it_is_named() -> None:
    assert parse("") == DiscoveryConfig(order=("bs.list", "dns"), announce=False)
    assert parse('sources = ["mdns", "bs.list", "mdns"]').order == ("mdns", "bs.list")
    assert parse("sources = []").order == ()


def test_all_settings() -> None:
    text = (
        '[dns]\ndomains = ["a.test", "b.test."]\nnameservers = ["10.0.0.1", "[fd00::1]:5353"]\n'
        '[mdns]\ninterfaces = ["10.0.0.7"]\nannounce = true\n'
    )
    assert parse(text) == DiscoveryConfig(
        domains=("a.test", "b.test."),
        nameservers=("10.0.0.1:53", "[fd00::1]:5353"),
        interfaces=("10.0.0.7",),
        announce=True,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources = [", "not TOML"),
        ('sources = ["ldap"]', "'ldap' is none of bs.list, dns, mdns"),
        ('sources = "dns"', "write a list"),
        ("source = []", "unknown setting source; known are sources"),
        ("[dns]\nservers = []", "unknown setting dns.servers"),
        ('dns = "x"', "write it as a table"),
        ('[dns]\ndomains = ["a b"]', "'a b' is no domain"),
        ('[dns]\nnameservers = ["ns1"]', "nameservers: bad address 'ns1'"),
        ('[mdns]\nannounce = "yes"', "true or false"),
        ('[mdns]\ninterfaces = ["eth0"]', "interfaces: bad address 'eth0'"),
    ],
)
def test_bad_settings_name_file_and_key(text: str, said: str) -> None:
    with pytest.raises(VstorError) as caught:
        parse(text)
    assert caught.value.code == ErrorCode.CONFIG
    assert caught.value.message.startswith("discovery.toml: ")
    assert said in caught.value.message


def test_srv_order_is_priority_then_chance_by_weight() -> None:
    rng = random.Random(7)
    records = [Srv(1, 90, 2510, "b."), Srv(1, 10, 2510, "c."), Srv(0, 0, 2510, "a."), Srv(5, 1, 2510, "z.")]
    first = collections.Counter()
    for _ in range(1000):
        order = [r.target for r in sources.order_srv(records, lambda n: rng.randint(0, n))]
        assert order[0] == "a."
        assert order[3] == "z."
        first[order[1]] += 1
    assert 830 < first["b."] < 960


def test_srv_not_here_and_impossible_ports_are_left_out() -> None:
    records = [Srv(0, 0, 2510, "."), Srv(0, 0, 0, "a."), Srv(0, 0, 65535, "a."), Srv(0, 0, 2510, "b.")]
    assert sources.order_srv(records, lambda n: 0) == [Srv(0, 0, 2510, "b.")]


def test_cluster_names_of_texts() -> None:
    assert sources.cluster_names(["c1, c2", "c2,,bad name,c-3_X", "x" * 64]) == ["c1", "c2", "c-3_X"]
    assert len(sources.cluster_names([",".join(f"c{i}" for i in range(1000))])) == sources.CLUSTERS_MAX


def test_announcement_fits_a_label_and_is_understood() -> None:
    properties = sources.mdns_properties("c" * 63, "0123456789abcdef" * 2, 12)
    assert len(sources.mdns_instance("0123456789abcdef" * 2, 1 << 32).partition(".")[0]) <= 63
    assert sources.mdns_cluster({k.encode(): v.encode() for k, v in properties.items()}) == "c" * 63
    assert sources.mdns_cluster({b"cluster": b"a b"}) is None
    assert sources.mdns_cluster({b"cluster": None}) is None
    assert sources.mdns_cluster({}) is None
