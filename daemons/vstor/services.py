"""Registry of what runs on this node: one small JSON file for each repository or mount, written by make-mds, make-cs and mount."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

KINDS = ("etcd", "mds", "cs", "mount")  # start order; stop in reverse


@dataclass(frozen=True)
class Service:
    """One instance. `path`: repository (mount: the mount point). `extra`: options of its command line."""

    cluster: str
    kind: str
    id: str
    path: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Instance name for service managers and files, e.g. cs-vstor-1025."""
        return f"{self.kind}-{self.cluster}-{self.id}"


def register(cluster: str, kind: str, id: str | int, path: str, **extra: Any) -> Service:
    """Add or replace an entry. Durable on return; the same entry again writes nothing."""
    service = Service(cluster, kind, str(id), str(path), extra)
    file = paths.cluster_dir(cluster) / "services" / f"{kind}-{id}.json"
    data = (
        json.dumps({"format": 1, "kind": kind, "id": str(id), "path": str(path), "extra": extra}, indent=1).encode()
        + b"\n"
    )
    if not file.exists() or file.read_bytes() != data:
        paths.write_atomic(file, data)
    return service


def unregister(cluster: str, kind: str, id: str | int) -> None:
    """Forget an entry; nothing happens to the repository."""
    (paths.cluster_dir(cluster) / "services" / f"{kind}-{id}.json").unlink(missing_ok=True)


def list_services(cluster: str | None = None) -> list[Service]:
    """Entries of one cluster or of all, in start order. Raises DAMAGED naming a file that cannot be read."""
    root = paths.etc_dir() / "clusters"
    names = [cluster] if cluster else sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    found = []
    for name in names:
        for file in sorted((root / name / "services").glob("*.json")):
            try:
                item = json.loads(file.read_bytes())
                found.append(Service(name, item["kind"], item["id"], item["path"], item.get("extra", {})))
            except (ValueError, KeyError, TypeError) as exc:
                raise VstorError(
                    ErrorCode.DAMAGED,
                    f"{file}: not a service entry ({exc}); remove it and run make-mds or make-cs again for its directory",
                ) from exc
    return sorted(found, key=lambda s: (KINDS.index(s.kind) if s.kind in KINDS else 9, s.cluster, s.id))
