"""Who of the MDSs is there: standbys report to the leader, the leader tells in the status object."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from vstor import __version__
from vstor.errors import VstorError
from vstor.mds.members import Members
from vstor.mds.process import Usage
from vstor.mds.quorum import Quorum
from vstor.mds.repo_files import MdsConfig
from vstor.mds.repository import etcd_url
from vstor.mds.term import Term
from vstor.net.identity import Identity
from vstor.net.rpc_client import MdsClient
from vstor.proto import messages as m

log = logging.getLogger(__name__)

REPORT_S = 2.0
REPORT_VALID_S = 7.0  # then a standby counts as unavailable


class Presence:
    """Lives as long as the process; what others reported is asked only while leading."""

    def __init__(self, config: MdsConfig, identity: Identity, applied_revision: Callable[[], int]) -> None:
        self._config = config
        self._identity = identity
        self._applied_revision = applied_revision
        self._usage = Usage()
        self._reports: dict[int, tuple[float, m.MdsReport]] = {}
        self._goals: dict[
            int, int
        ] = {}  # revision of the leader at a standby's last report: the next one must have reached it
        self._in_step: dict[int, bool] = {}
        self._loop = asyncio.get_running_loop()
        self._commits = (self._loop.time(), 0, 0)  # when sampled; commits and microseconds in them until then
        self._commit_rates = (0.0, 0.0)  # per second, percent of the time

    def report(self) -> m.MdsReport:
        """About this MDS."""
        cpu_percent, rss_bytes = self._usage.sample()
        config = self._config
        return m.MdsReport(
            config.mds_id, config.address, os.getpid(), __version__, cpu_percent, rss_bytes, self._applied_revision()
        )

    def heard(self, report: m.MdsReport, revision: int) -> None:
        """A standby has reported; the leader is at `revision`."""
        self._in_step[report.mds_id] = report.applied_revision >= self._goals.get(report.mds_id, revision)
        self._goals[report.mds_id] = revision
        self._reports[report.mds_id] = (self._loop.time(), report)

    def standby_revisions(self) -> list[int]:
        """Applied revisions of the standbys that report."""
        now = self._loop.time()
        return [report.applied_revision for seen, report in self._reports.values() if now - seen < REPORT_VALID_S]

    async def report_as_standby(self, members: Members) -> None:
        """To the leader, for ever."""
        addresses = [r.address for r in members.active()] or [self._config.address]
        client = MdsClient(self._identity, "mds", bootstrap=addresses)
        try:
            while True:
                await asyncio.sleep(REPORT_S)
                try:
                    await client.call(self.report(), deadline_s=REPORT_S, retry=False)
                except VstorError as exc:
                    log.debug("presence not reported reason=%s", exc.message)
        finally:
            await client.close()

    def status(self, members: Members, term: Term | None, quorum: Quorum | None) -> dict[str, Any]:
        """`mds` and `quorum` of the status object."""
        found = self._mds(members, term, quorum)
        return {"mds": found, "quorum": quorum.summary() if quorum is not None else Quorum(None).summary()}

    def _mds(self, members: Members, term: Term | None, quorum: Quorum | None) -> list[dict[str, Any]]:
        now = self._loop.time()
        found = []
        for record in members.active():
            own = record.mds_id == self._config.mds_id
            seen, report = (now, self.report()) if own else self._reports.get(record.mds_id, (0.0, None))
            alive = report is not None and now - seen < REPORT_VALID_S
            item: dict[str, Any] = {
                "id": record.mds_id,
                "state": "avail" if alive else "unavail",
                "leader": own and term is not None,
                "address": record.address,
                "host": record.hostname,
                "in_step": own or (alive and self._in_step.get(record.mds_id, False)),
            }
            member = quorum.of_peer(etcd_url(record.address)) if quorum is not None else None
            if member is not None:
                item["etcd"] = {
                    "name": member.name, "voter": member.voter, "alive": member.alive, "leader": member.leads,
                    "behind": member.behind, "in_step": member.in_step,
                }  # fmt: skip
            if alive and report is not None:
                item |= {
                    "pid": report.pid,
                    "version": report.version,
                    "cpu_percent": report.cpu_percent,
                    "rss_bytes": report.rss_bytes,
                    "applied_revision": term.revision if own and term else report.applied_revision,
                }
            if own:
                commits_s, commit_percent = self._sample_commits(term)
                item |= {
                    "uptime_s": self._usage.uptime_s(),
                    "commits_s": commits_s,
                    "commit_time_percent": commit_percent,
                }
            found.append(item)
        return found

    def _sample_commits(self, term: Term | None) -> tuple[float, float]:
        """(commits per second, percent of the time in which a commit was under way) over the last second or more."""
        count, spent_us = (term.counters["commits"], term.counters["commit_us"]) if term is not None else (0, 0)
        sampled, count_before, spent_before = self._commits
        elapsed = self._loop.time() - sampled
        if elapsed >= 1.0:
            self._commits = (self._loop.time(), count, spent_us)
            percent = min(100.0, max(spent_us - spent_before, 0) / (1e4 * elapsed))
            self._commit_rates = (round(max(count - count_before, 0) / elapsed, 1), round(percent, 1))
        return self._commit_rates
