"""report from other hosts, over a real sshd."""

from __future__ import annotations

import io
import json
import socket
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vstor import paths
from vstor.ctl import remote, report_hosts
from vstor.errors import VstorError
from vstor.proto import messages

from tests.helpers.sshd import Sshd, make_key
from tests.unit.ctl.conftest import Ctl, FakeCluster

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No keys and no known hosts of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "home/.ssh").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def sshd(tmp_path: Path, home: Path) -> Iterator[Sshd]:
    """A host with an unauthenticated node of cluster c, a log and a key that must not get out."""
    etc = tmp_path / "host/etc"
    (etc / "clusters/c").mkdir(parents=True)
    (etc / "clusters/c/bs.list").write_text("127.0.0.9:1\n")
    (etc / "clusters/c/node.key").write_text("very secret")
    (tmp_path / "host/log").mkdir()
    (tmp_path / "host/log/far.log").write_text("from afar\n")
    env = {f"VSTOR_{n}": str(tmp_path / "host" / n.lower()) for n in ("ETC", "LOG", "RUN", "STATE")}
    with Sshd(tmp_path / "sshd", {**env, "VSTOR_SERVICE_MANAGER": "supervisor"}) as server:
        yield server


def host(server: Sshd) -> str:
    return f"root@127.0.0.1:{server.port}"


def options(server: Sshd, target: Path) -> list[str]:
    return ["--identity", str(server.identity), "--known-hosts", str(server.known_hosts), "-o", str(target)]


def inner(file: Path, name: str) -> dict[str, bytes]:
    """Files of the bundle of one host."""
    with tarfile.open(file) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(f"hosts/{name}.tar.gz"))
        stream = tar.extractfile(member)
        assert stream is not None
        with tarfile.open(fileobj=io.BytesIO(stream.read())) as bundle:
            return {
                m.name.partition("/")[2]: data.read()
                for m in bundle.getmembers()
                if (data := bundle.extractfile(m)) is not None
            }


def test_collects_from_a_host_and_names_the_one_that_fails(
    ctl: Ctl, cluster: FakeCluster, sshd: Sshd, tmp_path: Path
) -> None:
    cluster.answers.update({messages.GetStatus: {"a": 1}, messages.GetEvents: [], messages.GetConfig: {}})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        file = tmp_path / "all.tar.gz"
        (tmp_path / "hosts").write_text("")
        args = ["--host", host(sshd), "--host", dead.replace("127.0.0.1", "localhost"), *options(sshd, file)]
        done = ctl("-c", "c", "report", "--format", "json", *args)
    assert done.code == 15
    assert "vstorctl: localhost: " in done.err
    assert "is sshd up there" in done.err
    value = json.loads(done.out)
    assert (value["hosts"], list(value["failed"])) == (["127.0.0.1"], ["localhost"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    files = inner(file, "127.0.0.1")
    assert files["log/far.log"] == b"from afar\n"
    assert files["etc/bs.list"] == b"127.0.0.9:1\n"
    assert not any(b"very secret" in data for data in files.values())
    assert b"node.key: secret" in files["left_out.txt"]
    with tarfile.open(file) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names == {"status.json", "events.json", "config.json", "hosts/127.0.0.1.tar.gz", "failed.json"}


def test_an_unknown_host_key_is_refused_with_the_way_to_learn_it(ctl: Ctl, sshd: Sshd, tmp_path: Path) -> None:
    done = ctl("-c", "c", "report", "--host", host(sshd), "--identity", str(sshd.identity), "-o", str(tmp_path / "r"))
    assert done.code == 15
    assert f"the key of [127.0.0.1]:{sshd.port} is not known" in done.err
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1" in done.err


def test_a_changed_host_key_is_refused(ctl: Ctl, sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.public(other)}\n")
    done = ctl("-c", "c", "report", "--host", host(sshd), *options(sshd, tmp_path / "r"))
    assert done.code == 15
    assert "is not the one that is known" in done.err
    assert "ssh-keygen -R" in done.err


def test_a_key_that_is_not_let_in(ctl: Ctl, sshd: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    args = ["--identity", str(other), "--known-hosts", str(sshd.known_hosts), "-o", str(tmp_path / "r")]
    done = ctl("-c", "c", "report", "--host", host(sshd), *args)
    assert done.code == 15
    assert "user root is not let in" in done.err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "what it sent is no bundle"),
        ("echo 'vstorctl: must be run as root' >&2; exit 77", "ended with 77: vstorctl: must be run as root"),
        ("rm -f $0; exec vstorctl", "ended with 127"),
        ("head -c 3000000 /dev/zero", "more than 1000000 bytes"),
    ],
)
def test_a_host_whose_vstorctl_does_not_do(
    ctl: Ctl, sshd: Sshd, tmp_path: Path, script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_hosts, "HOST_BYTES_MAX", 1_000_000)
    sshd.install("vstorctl", script)
    done = ctl("-c", "c", "report", "--host", host(sshd), *options(sshd, tmp_path / "r"))
    assert done.code == 15
    assert said in done.err


def test_ssh_config_and_all_hosts_of_the_cluster(
    ctl: Ctl, cluster: FakeCluster, sshd: Sshd, home: Path, tmp_path: Path, status: dict[str, Any]
) -> None:
    status["mds"] = [{"id": 1, "state": "avail", "leader": True, "host": "n1", "address": "127.0.0.1:2510"}]
    status["cs"] = []
    cluster.answers[messages.GetStatus] = status
    (home / ".ssh/config").write_text(f"Host n1\n User root\n Port {sshd.port}\n IdentityFile {sshd.identity}\n")
    (home / ".ssh/known_hosts").write_text(f"[n1]:{sshd.port} {sshd.public(sshd.host_key)}\n")
    file = tmp_path / "r"
    done = ctl("-c", "c", "report", "--host", "all", "-o", str(file))
    assert done.code == 0, done.err
    assert "log/far.log" in inner(file, "n1")
    paths.etc_dir().mkdir(exist_ok=True)
    assert ctl("-c", "c", "report", "--host", "n1", "-o", "-").code == 2


def test_targets() -> None:
    access = remote.Access(user="u", port=2222)
    assert remote.parse_target("root@n1:22", access) == remote.Target("n1", "n1", 22, "root")
    assert remote.parse_target("[fd00::1]", access) == remote.Target("fd00::1", "fd00::1", 2222, "u")
    for bad in ("", "a b", "fd00::1", "n1:99999", "@n1", "n1:x"):
        with pytest.raises(VstorError, match="is no host"):
            remote.parse_target(bad, access)


def test_hosts_of_a_status(status: dict[str, Any]) -> None:
    status["cs"].append({"state": "dropped", "host": "gone", "address": "10.30.100.109:1"})
    status["cs"].append({"state": "active", "host": "node6", "address": "[fd00::6]:2000"})
    assert report_hosts.hosts_of_status(status) == {
        "node1": "10.30.100.101",
        "node2": "10.30.100.102",
        "node3": "10.30.100.103",
        "node6": "fd00::6",
    }
