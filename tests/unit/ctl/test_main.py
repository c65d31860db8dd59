"""The command line: where options may stand, exit codes, one line for every error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.ctl import main as main_module
from vstor.ctl.main import COMMANDS, MENDS, build_parser, main, one_line
from vstor.errors import VstorError
from vstor.proto import messages

from tests.unit.ctl.conftest import Ctl, FakeCluster

VERBS = {
    "make-mds", "backup", "restore", "change-password", "list-nodes", "revoke-node",
    "rm-mds", "auth-node", "check", "deploy", "discover", "make-cs", "configure-cs", "rm-cs",
    "maintenance", "status", "top", "get-event", "get-attr", "set-attr",
    "get-config", "set-config", "file-info", "list-chunks", "get-leases", "revoke", "list-services", "service", "mount", "umount", "report",
}  # fmt: skip


def test_every_verb_is_there_once() -> None:
    names = [name for c in COMMANDS for name in (c.name, *c.aliases)]
    assert sorted(names) == sorted({*VERBS, "stat"})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_help(command: main_module.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command.name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vstorctl {command.name} ")


@pytest.mark.parametrize("argv", [["-c", "abc", "status"], ["status", "-c", "abc"], ["status", "--cluster=abc"]])
def test_cluster_before_or_after_the_verb(argv: list[str]) -> None:
    assert build_parser().parse_args(argv).cluster == "abc"


def test_a_part_that_is_not_installed_names_its_package(
    ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vstor.cs.repository", None)
    result = ctl("-c", "c", "make-cs", "-r", str(tmp_path / "cs"))
    assert result.code == ERRORS[ErrorCode.CONFIG].exit_code
    assert result.err == "vstorctl: vstor-chunk-server is not installed on this node — install that package\n"


@pytest.mark.parametrize("variable", ["VSTOR_NAME", "PSTORAGE_NAME"])
def test_cluster_from_the_environment(
    variable: str, ctl: Ctl, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answers[messages.GetConfig] = {}
    monkeypatch.setenv(variable, "from_env")
    assert ctl("get-config").code == 0
    assert cluster.asked[0][0] == "from_env"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "which verb?"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["status"], "which cluster? — give -c NAME"),
        (["-c", "c", "make-cs"], "required: -r/--repository — see vstorctl make-cs --help"),
        (["-c", "c", "make-cs", "-r", "/x", "-t", "4"], "argument -t/--tier"),
        (["-c", "c", "make-cs", "-r", "/x", "-s", "1"], "journal size '1' does not do"),
        (["-c", "c", "make-mds", "-a", "1.2.3.4", "-r", "/x", "-p", "-P"], "not allowed with argument"),
        (["-c", "c", "rm-cs", "x"], "'x' is no server id"),
        (["-c", "c", "rm-cs", "--force", "--cancel", "1"], "not allowed with argument"),
        (["-c", "c", "rm-cs", "--accept-loss", "1"], "give --force too"),
        (["-c", "c", "stat", "--form", "json"], "unrecognized arguments"),
        (["-c", "a/b", "status"], "'a/b' is no cluster name"),
        (["-c", "x" * 64, "status"], "at most 63 characters"),
        (["-c", "", "status"], "which cluster?"),
        (["-c", "c", "make-mds", "-a", "host", "-r", "/x"], "'host' is no address"),
        (["-c", "c", "make-mds", "-a", "1.2.3.4:65534", "-r", "/x"], "use 1 to 65533"),
        (["-c", "c", "make-mds", "-a", "1.2.3.4", "-r", "/x", "-P"], "belong to -I"),
        (
            ["-c", "c", "make-mds", "-I", "-a", "1.2.3.4", "-r", "/x", "--etcd", "ftp://x"],
            "'ftp://x' is no etcd address",
        ),
        (["-c", "c", "set-config", "x"], "'x' sets nothing"),
        (["-c", "c", "get-event", "--since", "yesterday"], "--since 'yesterday' is no time"),
        (["-c", "c", "get-event", "--limit", "0"], "--limit 0"),
        (["service", "start", "mds"], "no mds service on this node"),
        (["service", "start", "1025"], "no service '1025' on this node"),
        (["service", "exec", "cs"], "service exec needs a kind"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], words: str, ctl: Ctl, cluster: FakeCluster) -> None:
    result = ctl(*argv)
    assert result.code in (2, 3)
    assert result.out == ""
    assert result.err.startswith("vstorctl: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert " — " in result.err
    assert cluster.asked == []


@pytest.mark.parametrize("code", [c for c in ErrorCode if c != ErrorCode.OK])
def test_exit_code_of_every_error(code: ErrorCode, ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetStatus] = VstorError(code)
    result = ctl("-c", "c", "status")
    assert result.code == ERRORS[code].exit_code
    assert result.err.startswith(f"vstorctl: {ERRORS[code].text}")
    assert result.err.count("\n") == 1


def test_programming_mistakes_show_no_traceback(ctl: Ctl, cluster: FakeCluster) -> None:
    def broken(_body: object) -> object:
        raise RuntimeError("two\nlines")

    cluster.answers[messages.GetStatus] = broken
    result = ctl("-c", "c", "status")
    assert result.code == 70
    assert result.err.count("\n") == 1
    assert "RuntimeError: two lines" in result.err


def test_interrupt(ctl: Ctl, cluster: FakeCluster) -> None:
    def interrupt(_body: object) -> object:
        raise KeyboardInterrupt

    cluster.answers[messages.GetStatus] = interrupt
    assert ctl("-c", "c", "status").code == 130


def test_root_is_wanted(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module.os, "geteuid", lambda: 1000)
    result = ctl("-c", "c", "make-cs", "-r", "/x")
    assert result.code == 77
    assert result.err == "vstorctl: make-cs must be run as root — run it as root\n"


def test_units_run_service_exec_as_another_user(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module.os, "geteuid", lambda: 1000)
    assert "no service cs 1025" in ctl("service", "exec", "cs", "c.1025").err
    assert ctl("service", "start", "cs").code == 77


def test_mend_is_added_only_where_the_message_has_none() -> None:
    assert one_line(VstorError(ErrorCode.UNREACHABLE, "none")) == f"vstorctl: none — {MENDS[ErrorCode.UNREACHABLE]}"
    for message in ("it is so — do that", "it is so; do that", "not here; run: vstorctl -c c auth-node"):
        assert one_line(VstorError(ErrorCode.UNREACHABLE, message)) == f"vstorctl: {message}"


def test_bootstrap_is_split(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def call(cluster: str, body: object, bootstrap: list[str] | None, deadline_s: float) -> object:
        asked.append((bootstrap, deadline_s))
        return messages.JsonReply(b"{}")

    assert (
        main(["-c", "c", "--timeout", "5", "get-config", "-b", "10.0.0.1,[::1]:9", "-b", "10.0.0.2:7"], call=call) == 0
    )
    assert asked == [(["10.0.0.1:2510", "[::1]:9", "10.0.0.2:7"], 5.0)]
