"""What a verb works with: parsed arguments, streams, the way to the cluster."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from vstor.codes_gen import ErrorCode
from vstor.ctl.address import split_bootstrap
from vstor.errors import VstorError
from vstor.proto import messages

CLUSTER_NAME_CHARS_MAX = 63
DEADLINE_S = 30.0

Call = Callable[..., Any]


def call_cluster(cluster: str, body: Any, bootstrap: list[str] | None = None, deadline_s: float = DEADLINE_S) -> Any:
    """One request to the leading MDS. Imported late: verbs about this node alone must work without the network stack."""
    from vstor.net.rpc_client import call_sync

    return call_sync(cluster, body, bootstrap=bootstrap, deadline_s=deadline_s)


def check_cluster_name(name: str) -> str:
    """The name, if it is one. Raises INVALID."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or len(name) > CLUSTER_NAME_CHARS_MAX:
        raise VstorError(
            ErrorCode.INVALID,
            f"{name!r} is no cluster name — use a-z, A-Z, 0-9, - and _, at most {CLUSTER_NAME_CHARS_MAX} characters",
        )
    return name


@dataclass
class Context:
    """Handed to each verb. `call_fn` and the streams are replaced in tests."""

    args: argparse.Namespace
    call_fn: Call = call_cluster
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    stdin: TextIO = field(default_factory=lambda: sys.stdin)

    @property
    def cluster(self) -> str:
        """The cluster meant. Raises USAGE when none is named."""
        name = self.cluster_or_none
        if name is None:
            raise VstorError(ErrorCode.USAGE, "which cluster? — give -c NAME before the verb, or set VSTOR_NAME")
        return name

    @property
    def cluster_or_none(self) -> str | None:
        """The cluster meant, None when none is named."""
        name = getattr(self.args, "cluster", None) or os.environ.get("VSTOR_NAME") or os.environ.get("PSTORAGE_NAME")
        return check_cluster_name(name) if name else None

    @property
    def bootstrap(self) -> list[str] | None:
        """-b as a list of IP:PORT, None when not given."""
        return split_bootstrap(getattr(self.args, "bootstrap", None))

    @property
    def json_wanted(self) -> bool:
        """--format json."""
        return getattr(self.args, "format", "text") == "json"

    @property
    def deadline_s(self) -> float:
        """--timeout."""
        return float(getattr(self.args, "timeout", None) or DEADLINE_S)

    def call(self, body: Any, cluster: str | None = None) -> Any:
        """Ask the leading MDS; the reply's body. Raises VstorError."""
        return self.call_fn(cluster or self.cluster, body, bootstrap=self.bootstrap, deadline_s=self.deadline_s)

    def call_json(self, body: Any, cluster: str | None = None) -> Any:
        """Ask for a JsonReply; its value."""
        reply = self.call(body, cluster)
        if not isinstance(reply, messages.JsonReply):
            raise VstorError(
                ErrorCode.UNSUPPORTED, f"the MDS answered {type(reply).__name__} — is it of another version?"
            )
        return json.loads(reply.json)

    def say(self, text: str) -> None:
        """Progress and confirmations; silent with -q and where a program reads the output."""
        if not getattr(self.args, "quiet", False) and not self.json_wanted:
            print(text, file=self.out, flush=True)

    def warn(self, text: str) -> None:
        """Something to know that is no failure."""
        print(f"vstorctl: {text}", file=self.err, flush=True)

    def emit(self, value: Any, text: str) -> None:
        """The result: `value` as JSON or `text`."""
        line = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) if self.json_wanted else text
        if line:
            print(line, file=self.out, flush=True)
