"""What the lab makes of a spec; the hosts themselves are shown by the scenarios."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vstorlab import cgroups, snapshot, state
from vstorlab.spec import LabError, parse_size, parse_spec
from vstorlab.state import Host, Lab


def lab(*hosts: str, number: int = 7) -> Lab:
    return Lab("t", number, "/base", "none", {h: Host(h, i, {}, [], {}) for i, h in enumerate(hosts)})


def test_spec() -> None:
    spec = parse_spec("""
    apt: none
    variables: {a: "{{ b }}"}
    hosts:
      - {name: h1, disks: [512M, 2G], groups: [mds], variables: {tier: 1}}
      - {name: h2}
    """)
    assert (spec.base, spec.apt, spec.variables) == ("prepared", "none", {"a": "{{ b }}"})
    assert spec.hosts[0].disks == (512 << 20, 2 << 30)
    assert spec.hosts[0].variables == {"tier": 1}
    assert spec.hosts[1].groups == ()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("hosts: []", "1 to"),
        ("hosts: [{name: a}, {name: a}]", "different names"),
        ("hosts: [{name: A_b}]", "host name"),
        ("hosts: [{name: a, disks: [2X]}]", "no size"),
        ("{hosts: [{name: a}], disk: 1}", "unknown in the spec: disk"),
        ("{hosts: [{name: a}], apt: direct}", "apt is"),
        ("hosts: [{disks: []}]", "cannot be read"),
        ("hosts: [", "cannot be read"),
        ("just text", "cannot be read"),
    ],
)
def test_bad_specs_are_refused(text: str, word: str) -> None:
    with pytest.raises(LabError, match=word):
        parse_spec(text)


def test_sizes() -> None:
    assert [parse_size(s) for s in ("0", "4096", 7, "1K", "3T")] == [0, 4096, 7, 1024, 3 << 40]


def test_two_labs_share_nothing() -> None:
    one, two = lab("a", "b"), lab("a", "b", number=8)
    for name in ("bridge", "network", "network6"):
        assert getattr(one, name) != getattr(two, name)
    seen = [
        f(h) for f in (one.address, one.address6, one.port, two.address, two.address6, two.port) for h in ("a", "b")
    ]
    assert len(set(seen)) == len(seen)
    assert all(len(one.port(h)) <= 15 for h in one.hosts)
    with pytest.raises(LabError, match="has no host c"):
        one.address("c")


def test_groups_are_below_our_own() -> None:
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    planned = cgroups.plan("x")
    assert planned
    assert all(
        p.name == "x" and any(str(p.parent).endswith(path.rstrip("/")) for path in own.values()) for p in planned
    )


def test_snapshot_names_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "ROOT", tmp_path)
    made = lab("a")
    upper = made.host_directory("a") / "upper"
    for name in ("etc/vstor", "var/log"):
        (upper / name).mkdir(parents=True)
    (upper / "etc/vstor/x").write_text("1")
    disk = made.directory / "disk"
    disk.write_bytes(bytes(4096))
    made.hosts["a"].disks[1] = str(disk)
    snapshot.take(made)
    (upper / "var/log/x").write_text("a host logs")
    snapshot.compare(made)
    snapshot.take(made)
    os.utime(disk, ns=(1, 1))
    (upper / "etc/vstor/x").write_text("22")
    with pytest.raises(LabError, match=r"2 files or disks have changed: a: disk 1, a:/etc/vstor/x"):
        snapshot.compare(made)
    snapshot.compare(made)  # asked once


def test_snapshot_without_what_running_servers_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "ROOT", tmp_path)
    made = lab("a")
    upper = made.host_directory("a") / "upper"
    for name in ("etc", "var/lib/vstor"):
        (upper / name).mkdir(parents=True)
    disk = made.directory / "disk"
    disk.write_bytes(b"1")
    made.hosts["a"].disks[1] = str(disk)
    snapshot.take(made, ("var/lib/vstor", snapshot.DISKS))
    (upper / "var/lib/vstor/x").write_text("an MDS writes")
    disk.write_bytes(b"22")
    snapshot.compare(made)
    snapshot.take(made, ("var/lib/vstor",))
    (upper / "etc/x").write_text("3")
    disk.write_bytes(b"333")
    with pytest.raises(LabError, match="2 files or disks have changed: a: disk 1, a:/etc/x"):
        snapshot.compare(made)
