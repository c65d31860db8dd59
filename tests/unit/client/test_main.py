"""vstor-mount: what is refused before anything is mounted, each with its line and exit status."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vstor.client import main, mountpoint
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(mountpoint, "open_fuse", lambda: os.open(os.devnull, os.O_RDWR))
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def refusal(*argv: str | Path) -> VstorError:
    with pytest.raises(VstorError) as caught:
        main.configure(main.build_parser().parse_args([str(a) for a in argv]))
    assert "\n" not in caught.value.message
    return caught.value


def test_a_node_without_certificate_is_told_how_to_get_one(point: Path) -> None:
    error = refusal("-c", "prod", point)
    assert error.code == ErrorCode.DENIED
    assert "auth-node" in error.message


@pytest.mark.parametrize("name", ["", "has space", "../etc", "a" * 64])
def test_bad_cluster_names(point: Path, name: str) -> None:
    assert refusal("-c", name, point).exit_code == 2


def test_bad_mount_points(point: Path) -> None:
    assert refusal("-c", "prod", point / "missing").code == ErrorCode.NOT_FOUND
    (point / "file").write_bytes(b"")
    assert refusal("-c", "prod", point / "file").code == ErrorCode.NOT_DIR


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["-C", "/ssd/cache"], "not available yet"),
        (["-R", "100"], "not available yet"),
        (["-m", "9z"], "octal"),
        (["-u", "no-such-user"], "no user"),
        (["-g", "no-such-group"], "no group"),
        (["-o", "bogus"], "bogus"),
        (["-o", "nospace=maybe"], "nospace"),
        (["-o", "timeout=soon"], "timeout"),
        (["-o", "stop_timeout=101"], "stop_timeout"),
        (["-o", "max_background=0"], "max_background"),
    ],
)
def test_bad_options_are_named(point: Path, argv: list[str], word: str) -> None:
    assert word in refusal("-c", "prod", *argv, point).message


def test_without_root_or_device(point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("VSTOR_ETC", str(point / "etc"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = refusal("-c", "prod", point)
    assert (error.code, error.exit_code) == (ErrorCode.NOT_ROOT, 77)


def test_ids_of_mounts_are_those_vstorctl_gives() -> None:
    from vstor.ctl.service_files import mount_id

    for path in ("/mnt/vstor", "/", "/mnt/a-b", "/mnt/a b", "/" + "x" * 100):
        config = main.Config("prod", path, 0, None, True, 1, (None, None, None), True, None, "info")
        assert config.id == f"mount-prod-{mount_id(path)}"


def test_report_reaches_the_one_who_waits(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # the command that was called: forks the server, waits for its report
        report = main._into_background()
        report.done(7, "told")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7


def test_the_metrics_socket_has_a_path_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTOR_RUN", "/run/vstor")
    short = main.Config("prod", "/mnt/vstor", 0, None, True, 1, (None, None, None), True, None, "info")
    assert short.metrics_socket == Path("/run/vstor/mount-prod-mnt-vstor.metrics.sock")
    long = main.Config("prod", "/mnt/" + "x" * 90, 0, None, True, 1, (None, None, None), True, None, "info")
    assert len(str(long.metrics_socket)) <= main.UNIX_PATH_BYTES_MAX
    assert (
        long.metrics_socket
        != main.Config("prod", "/mnt/y", 0, None, True, 1, (None,) * 3, True, None, "").metrics_socket
    )
