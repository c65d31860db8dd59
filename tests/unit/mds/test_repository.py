"""make-mds: what it writes, what it refuses, and that a rerun changes nothing."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest
from vstor import services
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds import etcd_member, repository
from vstor.mds.repo_files import Repository
from vstor.net import identity

PASSWORD = b"secret of the test"


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "etc"))
    monkeypatch.setenv("VSTOR_RUN", str(tmp_path / "run"))
    return tmp_path / "etc"


@pytest.fixture
def address() -> str:
    """Three free ports in a row."""
    for base in range(21000, 30000, 3):
        try:
            repository.check_ports_free(f"127.0.0.1:{base}", [base, base + 1, base + 2])
            return f"127.0.0.1:{base}"
        except VstorError:
            continue
    raise AssertionError("no free ports")


def snapshot(*roots: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.read_bytes()) for root in roots for p in sorted(root.rglob("*")) if p.is_file()
    }


def refused(code: ErrorCode, *args: object, **kwargs: object) -> str:
    with pytest.raises(VstorError) as caught:
        repository.create_cluster(*args, **kwargs)  # type: ignore[arg-type]
    assert caught.value.code == code, caught.value
    return caught.value.message


def test_create_and_again(tmp_path: Path, etc: Path, address: str) -> None:
    repo = tmp_path / "repo"
    made = repository.create_cluster("c1", address, repo, PASSWORD, None, {"fs.replicas": "3:2"})
    assert made["changed"]
    assert made["mds_id"] == 1
    who = identity.load_identity("c1")
    assert who.cluster_id == made["cluster_id"]
    assert identity.read_bs_list("c1") == [address]
    assert [(s.kind, s.id, s.path) for s in services.list_services("c1")] == [
        ("etcd", "1", str(repo)),
        ("mds", "1", str(repo)),
    ]
    config = Repository(repo).load()
    assert (config.cluster, config.address, config.managed_etcd) == ("c1", address, True)
    secret_files = [*repo.rglob("*.key"), repo / "bootstrap.json", who.key_path]
    assert len(secret_files) == 4
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in secret_files)
    assert not any(PASSWORD in data for _, data in snapshot(repo, etc).values())
    before = snapshot(repo, etc)
    again = repository.create_cluster("c1", address, repo, PASSWORD, None, {"fs.replicas": "3:2"})
    assert again == made | {"changed": False}
    assert snapshot(repo, etc) == before


def test_interrupted_runs_converge(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "repo"
    for broken in ("write_tls", "write_etcd_tls", "complete"):
        with monkeypatch.context() as patch:
            patch.setattr(repository, broken, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                repository.create_cluster("c1", address, repo, PASSWORD)
    repository.create_cluster("c1", address, repo, PASSWORD)
    assert identity.load_identity("c1").cluster_id == Repository(repo).load().cluster_id
    assert not (repo / "incomplete").exists()


def test_refusals_write_nothing(tmp_path: Path, etc: Path, address: str) -> None:
    repo = tmp_path / "repo"
    assert "cluster name" in refused(ErrorCode.CONFIG, "bad name", address, repo, PASSWORD)
    assert "address" in refused(ErrorCode.CONFIG, "c1", "nonsense", repo, PASSWORD)
    assert "no address of this host" in refused(ErrorCode.CONFIG, "c1", "192.0.2.1", repo, PASSWORD)
    refused(ErrorCode.CONFIG, "c1", address, repo, b"")
    refused(ErrorCode.NOT_FOUND, "c1", address, repo, PASSWORD, None, {"no.such.option": "1"})
    refused(ErrorCode.INVALID, "c1", address, repo, PASSWORD, None, {"fs.replicas": "2:3"})
    refused(ErrorCode.CONFIG, "c1", address, repo, PASSWORD, ["nonsense"])
    assert not repo.exists()
    assert not etc.exists()


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_port_in_use(tmp_path: Path, address: str, offset: int) -> None:
    host, port = identity.parse_address(address)
    with socket.socket() as sock:
        sock.bind((host, port + offset))
        sock.listen()
        message = refused(ErrorCode.IN_USE, "c1", address, tmp_path / "repo", PASSWORD)
    assert f"{host}:{port + offset}" in message


def test_foreign_directory(tmp_path: Path, address: str) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "lost+found").mkdir()
    (repo / "precious").write_text("x")
    refused(ErrorCode.FOREIGN_DATA, "c1", address, repo, PASSWORD)
    assert [p.name for p in sorted(repo.iterdir())] == ["lost+found", "precious"]
    (repo / "precious").unlink()
    repository.create_cluster("c1", address, repo, PASSWORD)


def test_other_arguments_for_the_same_directory(tmp_path: Path, address: str) -> None:
    repo = tmp_path / "repo"
    repository.create_cluster("c1", address, repo, PASSWORD)
    refused(ErrorCode.FOREIGN_DATA, "c2", address, repo, PASSWORD)
    refused(ErrorCode.IN_USE, "c1", "127.0.0.1:19999", repo, PASSWORD)
    message = refused(ErrorCode.WRONG_CLUSTER, "c1", address, tmp_path / "repo2", PASSWORD)
    assert "leave out -I" in message
    assert not (tmp_path / "repo2").exists()


@pytest.mark.parametrize("spoil", [b"", b"{}", b"garbage", b'{"format":1,"sha256":"00","content":{}}'])
def test_damaged_mds_json(tmp_path: Path, address: str, spoil: bytes) -> None:
    repo = tmp_path / "repo"
    repository.create_cluster("c1", address, repo, PASSWORD)
    (repo / "mds.json").write_bytes(spoil)
    with pytest.raises(VstorError) as caught:
        Repository(repo).load()
    assert caught.value.code == ErrorCode.DAMAGED
    assert str(repo / "mds.json") in caught.value.message
    refused(ErrorCode.DAMAGED, "c1", address, repo, PASSWORD)


def test_changed_content_and_newer_format(tmp_path: Path, address: str) -> None:
    repo = tmp_path / "repo"
    repository.create_cluster("c1", address, repo, PASSWORD)
    item = json.loads((repo / "mds.json").read_bytes())
    item["content"]["mds_id"] = 2
    (repo / "mds.json").write_text(json.dumps(item))
    with pytest.raises(VstorError, match="checksum"):
        Repository(repo).load()
    item["format"] = 2
    (repo / "mds.json").write_text(json.dumps(item))
    with pytest.raises(VstorError) as caught:
        Repository(repo).load()
    assert caught.value.code == ErrorCode.NEWER_FORMAT


def test_operators_etcd(tmp_path: Path, address: str) -> None:
    repo = tmp_path / "repo"
    repository.create_cluster("c1", address, repo, PASSWORD, ["http://127.0.0.1:2379"])
    config = Repository(repo).load()
    assert (config.managed_etcd, config.etcd_urls) == (False, ["http://127.0.0.1:2379"])
    assert [s.kind for s in services.list_services("c1")] == ["mds"]
    refused(ErrorCode.CONFIG, "c2", address, tmp_path / "repo2", PASSWORD, ["https://127.0.0.1:2379"])


def test_join_needs_authentication(tmp_path: Path, address: str) -> None:
    with pytest.raises(VstorError, match="auth-node"):
        repository.join_cluster("c1", address, tmp_path / "repo")


def test_etcd_command_line(tmp_path: Path, address: str) -> None:
    repo = tmp_path / "repo"
    repository.create_cluster("c1", address, repo, PASSWORD)
    argv = etcd_member.command("etcd", Repository(repo), Repository(repo).load())
    host, port = identity.parse_address(address)
    assert f"--listen-peer-urls=https://{host}:{port}" in argv
    assert f"--listen-client-urls=https://{host}:{port + 2}" in argv
    assert "--client-cert-auth" in argv
    assert "--peer-client-cert-auth" in argv
    assert not any("0.0.0.0" in option or "http://" in option for option in argv)


def test_etcd_data_that_vanished_is_refused(tmp_path: Path, address: str) -> None:
    repo = Repository(tmp_path / "repo")
    repository.create_cluster("c1", address, repo.root, PASSWORD)
    etcd_member.check_data(repo)
    (repo.etcd_data / "member").mkdir(parents=True)
    etcd_member.check_data(repo)
    (repo.etcd_data / "member").rmdir()
    with pytest.raises(VstorError) as caught:
        etcd_member.check_data(repo)
    assert caught.value.code == ErrorCode.DAMAGED


def test_missing_etcd_is_one_line(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.create_cluster("c1", address, tmp_path / "repo", PASSWORD)
    monkeypatch.setattr(etcd_member.shutil, "which", lambda *args, **kwargs: None)
    assert etcd_member.main(["-r", str(tmp_path / "repo")]) == 2
    assert (
        capsys.readouterr().err
        == "vstor-etcd: etcd is not installed on this host; install the package etcd-server [CONFIG]\n"
    )
