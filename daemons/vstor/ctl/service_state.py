"""What is known about a service, the same words for every manager."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vstor.services import Service

RUNNING, STARTING, STOPPING, STOPPED, FAILED = "running", "starting", "stopping", "stopped", "failed"


@dataclass(frozen=True)
class ProcessInfo:
    """What the manager says.

    Attributes:
        exit_status: of the last end, 0 when there was none.
    """

    state: str
    pid: int | None = None
    exit_status: int = 0


@dataclass(frozen=True)
class ServiceState:
    """A service and how it is.

    Attributes:
        state: running (and ready), starting, stopping, stopped, failed.
        managed: under the service manager; else started by hand.
        enabled: starts at boot.
    """

    service: Service
    state: str
    pid: int | None
    enabled: bool
    managed: bool = True

    def to_json(self) -> dict[str, Any]:
        """For --format json."""
        value = asdict(self)
        service = value.pop("service")
        return {"name": self.service.name, **{k: service[k] for k in ("cluster", "kind", "id", "path")}, **value}
