"""What `deploy` shows of a playbook run. Pure: events of ansible-runner in, lines out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

HOSTS_SHOWN_MAX = 8
REASON_CHARS_MAX = 400
RESULTS = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}
BAD = ("failed", "unreachable")


@dataclass
class Progress:
    """Feed every event; `hosts` and `failed` are the outcome.

    Attributes:
        hosts: host -> ok, changed, skipped, failed, unreachable -> tasks.
        failed: what went wrong, in order: host, task, result, reason.
    """

    hosts: dict[str, Counter[str]] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    _begin: datetime | None = None
    _now: datetime | None = None
    _task: str = ""
    _results: dict[str, list[str]] = field(default_factory=dict)

    def feed(self, event: dict[str, Any]) -> list[str]:
        """Lines to print now."""
        kind, data = event.get("event", ""), event.get("event_data") or {}
        self._clock(event.get("created", ""))
        if kind == "playbook_on_play_start":
            return [*self._end_task(), f"{self._elapsed()} {data.get('play') or data.get('name') or 'play'}"]
        if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            lines = self._end_task()
            self._task = data.get("task") or data.get("name") or "task"
            return lines
        if kind == "playbook_on_stats":
            return self._end_task()
        if kind in RESULTS:
            return self._result(RESULTS[kind], data)
        return []

    def _result(self, result: str, data: dict[str, Any]) -> list[str]:
        host, res = data.get("host", "?"), data.get("res") or {}
        task = data.get("task") or self._task
        if result == "failed" and data.get("ignore_errors"):
            result = "ok"
        elif result == "ok" and res.get("changed"):
            result = "changed"
        self.hosts.setdefault(host, Counter())[result] += 1
        self._results.setdefault(result, []).append(host)
        if result not in BAD:
            return []
        reason = reason_of(res)
        self.failed.append({"host": host, "task": task, "result": result, "reason": reason})
        return [f"{self._elapsed()}   {host}: {task}: {result.upper()}: {reason}"]

    def _end_task(self) -> list[str]:
        task, results = self._task, self._results
        self._task, self._results = "", {}
        if not task or not results or set(results) == {"skipped"}:
            return []
        words = []
        for result in ("ok", "changed", "skipped", *BAD):
            hosts = results.get(result, [])
            # Who is as expected needs no name.
            if hosts:
                words.append(f"{len(hosts)} {result}" + (f" ({_names(hosts)})" if result in ("changed", *BAD) else ""))
        return [f"{self._elapsed()}   {task}: {', '.join(words)}"]

    def _clock(self, created: str) -> None:
        try:
            self._now = datetime.fromisoformat(created)
        except ValueError:
            return
        self._begin = self._begin or self._now

    def _elapsed(self) -> str:
        if self._begin is None or self._now is None:
            return "00:00"
        seconds = int((self._now - self._begin).total_seconds())
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    def summary(self) -> list[str]:
        """A line for each host."""
        return [
            f"{host}: "
            + (", ".join(f"{n} {r}" for r in ("ok", "changed", *BAD) if (n := counts[r])) or "nothing to do")
            for host, counts in sorted(self.hosts.items())
        ]


def _names(hosts: list[str]) -> str:
    shown = sorted(hosts)[:HOSTS_SHOWN_MAX]
    return " ".join(shown) + (f" and {len(hosts) - len(shown)} more" if len(hosts) > len(shown) else "")


def reason_of(res: dict[str, Any]) -> str:
    """One line of why a task failed; the output of a task with no_log stays hidden."""
    if "censored" in res:
        return "hidden, as the task has no_log"
    bad = next((r for r in res.get("results") or [] if isinstance(r, dict) and r.get("failed")), None)
    if bad is not None:
        return reason_of(bad)
    text = res.get("msg") or res.get("stderr") or res.get("module_stderr") or res.get("reason") or "no reason given"
    return " ".join(str(text).split())[:REASON_CHARS_MAX]
