"""A vstorctl whose cluster is a table of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vstor.ctl.main import main
from vstor.errors import VstorError
from vstor.proto import messages


@dataclass
class FakeCluster:
    """Answers by the type of request: a value (sent as JsonReply), a VstorError (raised), a function of the request, or Ok."""

    answers: dict[type, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def call(self, cluster: str, body: Any, bootstrap: list[str] | None = None, deadline_s: float = 0) -> Any:
        self.asked.append((cluster, body))
        answer = self.answers.get(type(body), messages.Ok())
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, VstorError):
            raise answer
        if isinstance(answer, messages.Ok):
            return answer
        return messages.JsonReply(json.dumps(answer).encode())


@dataclass
class Result:
    """Of one command line."""

    code: int
    out: str
    err: str


Ctl = Callable[..., Result]


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of vstor's directories below one temporary one, no cluster named."""
    for name in ("ETC", "RUN", "LOG", "STATE"):
        monkeypatch.setenv(f"VSTOR_{name}", str(tmp_path / name.lower()))
    for name in ("VSTOR_NAME", "PSTORAGE_NAME", "VSTOR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VSTOR_SERVICE_MANAGER", "supervisor")
    return tmp_path


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def ctl(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """vstorctl ARGS…"""

    def run(*argv: str) -> Result:
        code = main(list(argv), call=cluster.call)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def status() -> dict[str, Any]:
    """A status object with every field of the schema in use."""
    path = Path(__file__).with_name("status.json")
    value: dict[str, Any] = json.loads(path.read_text())
    return value
