"""status, top: text against a golden page, JSON against the schema."""

from __future__ import annotations

import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pexpect
import pytest
from vstor.codes_gen import ErrorCode
from vstor.ctl import top_cmd
from vstor.ctl.status_text import COLUMN_SETS, SORT_FIELDS, View, parse_sort, render_status
from vstor.ctl.top_cmd import press
from vstor.errors import VstorError
from vstor.proto import messages

from tests.unit.ctl.conftest import Ctl, FakeCluster

GOLDEN = Path(__file__).parents[2] / "golden" / "ctl" / "status.txt"
SCHEMA: dict[str, Any] = json.loads(resources.files("vstor.ctl").joinpath("status.schema.json").read_text())
MINIMAL: dict[str, Any] = {
    "cluster": {"name": "c", "id": "0", "state": "unknown"},
    "mds": [{"id": 1, "state": "avail", "leader": True, "address": "127.0.0.1:2510"}],
    "cs": [],
    "chunks": {"healthy": 0, "degraded": 0, "urgent": 0, "blocked": 0, "offline": 0, "replicating": 0},
    "space": {"logical_used_bytes": 0, "allocatable_bytes": 0},
}


def test_page_is_the_golden_one(ctl: Ctl, cluster: FakeCluster, status: dict[str, Any]) -> None:
    """Re-record with VSTOR_GOLDEN=1."""
    cluster.answers[messages.GetStatus] = status
    result = ctl("-c", "test_cluster", "stat")
    if os.environ.get("VSTOR_GOLDEN"):
        GOLDEN.write_text(result.out)
    assert result.out == GOLDEN.read_text()
    assert (result.code, result.err) == (0, "")


def test_words_that_scripts_look_for(status: dict[str, Any]) -> None:
    text = render_status(status)
    assert "MDS nodes: 2 of 3," in text
    assert "CS nodes:  2 of 3 (" in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[:1] == ["CSID"]] == ["CSID"]


def test_json_is_what_the_mds_sent(ctl: Ctl, cluster: FakeCluster, status: dict[str, Any]) -> None:
    cluster.answers[messages.GetStatus] = status
    result = ctl("status", "-c", "test_cluster", "--format", "json")
    assert json.loads(result.out) == status


@pytest.mark.parametrize("value", [MINIMAL, None], ids=["minimal", "full"])
def test_schema_takes_what_the_page_takes(value: dict[str, Any] | None, status: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(value or status, SCHEMA)
    assert render_status(value or status)


@pytest.mark.parametrize("drop", ["cluster", "mds", "cs", "chunks", "space"])
def test_schema_wants_every_part(drop: str, status: dict[str, Any]) -> None:
    del status[drop]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(status, SCHEMA)


def test_schema_wants_words_of_the_vocabulary(status: dict[str, Any]) -> None:
    status["cs"][0]["state"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(status, SCHEMA)


@pytest.mark.parametrize(
    ("used", "allocatable", "word"),
    [(0, 0, "NONE"), (1, 99, "OK"), (80, 20, "WARN"), (95, 5, "FULL"), (100, 0, "FULL")],
)
def test_space_word(used: int, allocatable: int, word: str) -> None:
    value = {**MINIMAL, "space": {"logical_used_bytes": used, "allocatable_bytes": allocatable}}
    assert f"Space: [{word}]" in render_status(value)


def test_numeric_sizes(status: dict[str, Any]) -> None:
    assert "allocatable 1230000000000 of 1310530636800" in render_status(status, View(numeric=True))


def test_xml(ctl: Ctl, cluster: FakeCluster, status: dict[str, Any]) -> None:
    status["clients"][0]["name"] = "a < b"
    cluster.answers[messages.GetStatus] = status
    root = ElementTree.fromstring(ctl("-c", "c", "stat", "-X").out.encode())
    assert root.findtext("cluster/state") == "degraded"
    assert root.findtext("clients/item/name") == "a < b"
    assert [e.text for e in root.findall("cs/item/id")] == ["1025", "1026", "1027"]


def test_top_goes_on_over_an_outage(
    ctl: Ctl, cluster: FakeCluster, status: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([status, VstorError(ErrorCode.UNREACHABLE, "no MDS answers"), status])
    cluster.answers[messages.GetStatus] = lambda _body: next(answers)
    cluster.answers[messages.GetEvents] = [{"id": 1, "time_ms": 0, "sys": "MDS", "sev": "info", "message": "hello"}]
    monkeypatch.setattr(top_cmd.time, "sleep", lambda _s: None)
    result = ctl("-c", "test_cluster", "top", "--iterations", "3")
    assert result.code == 0
    assert result.out.count("Cluster 'test_cluster': degraded") == 2
    assert result.out.count("Cluster 'test_cluster': unknown\nno MDS answers") == 1
    assert "MDS  info  hello" in result.out


def test_top_ends_when_there_never_was_an_answer(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.answers[messages.GetStatus] = VstorError(ErrorCode.UNREACHABLE)
    assert ctl("-c", "test_cluster", "top").code == 10


def test_sorting(ctl: Ctl, cluster: FakeCluster, status: dict[str, Any]) -> None:
    cluster.answers[messages.GetStatus] = status

    def order(*options: str) -> list[str]:
        lines = ctl("-c", "c", "stat", *options).out.splitlines()
        return [line.split()[0] for line in lines if line.startswith("10")]

    assert order() == ["1025", "1026", "1027"]
    assert order("-S", "csid=inv") == ["1027", "1026", "1025"]
    assert order("-S", "iowait=inv") == ["1026", "1025", "1027"], "what is not known comes last"
    assert order("-S", "tier") == ["1025", "1027", "1026"]
    refused = ctl("-c", "c", "stat", "-S", "colour")
    assert refused.code == 2
    assert "columns are csid, status" in refused.err
    for table, fields in SORT_FIELDS.items():
        for column in fields:
            assert render_status(status, View(sort={table: parse_sort(table, f"{column}=inv")}))


def test_keys_of_top() -> None:
    view = View()
    assert press(view, "m").tables == ("mds",)
    assert press(press(view, "c"), "a").tables == ("mds", "cs", "clients")
    assert not press(view, "v").details
    assert [press(view, "x"), press(view, "\x1b")] == [view, view]
    for _ in COLUMN_SETS:
        view = press(view, "i")
    assert view == View()


TOP = """
import json, sys
from vstor.ctl.main import main
from vstor.proto import messages as m
status = json.load(open(sys.argv[1]))
events = [{"id": 1, "time_ms": 0, "sys": "MDS", "sev": "info", "message": "x" * 200}]
def call(cluster, body, bootstrap=None, deadline_s=0):
    return m.JsonReply(json.dumps(status if isinstance(body, m.GetStatus) else events).encode())
sys.exit(main(["-c", "test_cluster", "top", "-T", "600000"], call=call))
"""


def test_top_on_a_terminal_of_80_columns() -> None:
    """A real terminal; each key brings the next page at once, though the interval is ten minutes."""
    # LINES and COLUMNS outrank the terminal.
    env = {key: value for key, value in os.environ.items() if key not in ("LINES", "COLUMNS")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[3] / "daemons"), "TERM": "vt100"}
    argv = ["-c", TOP, str(Path(__file__).with_name("status.json"))]
    child = pexpect.spawn(sys.executable, argv, env=env, dimensions=(40, 80), timeout=30, encoding="utf-8")

    def page() -> list[str]:
        child.expect_exact("\x1b[H\x1b[2J")
        child.expect_exact("q quit")
        return [line.rstrip("\r") for line in child.before.split("\n")]

    first = page()
    assert max(map(len, first)) <= 80
    assert first[0] == "Cluster 'test_cluster': degraded"
    assert any(line.startswith("CSID STATUS   SPACE    FREE/AVAIL REPLICAS UNIQUE TIER HOST") for line in first)
    child.send("i")
    header = ["CSID", "STATUS", "IOWAIT", "IOLAT(ms)", "QDEPTH", "JRN_FULL", "FLAGS", "HOST"]
    assert any(line.split() == header for line in page())
    child.send("m")
    text = "\n".join(page())
    assert "MDSID" in text
    assert "CSID STATUS" not in text
    child.send("v")
    assert not any(line.startswith("Space:") for line in page())
    child.send("q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
