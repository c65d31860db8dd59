"""From a path on a mount to the cluster and the path inside it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vstor.codes_gen import ErrorCode
from vstor.ctl.context import Context, check_cluster_name
from vstor.errors import VstorError

FSTYPE = "fuse.vstor"
SCHEME = "vstor://"


@dataclass(frozen=True)
class Mount:
    """A mounted cluster."""

    cluster: str
    mountpoint: str


@dataclass(frozen=True)
class ClusterPath:
    """`path` starts with / and is relative to the cluster's root."""

    cluster: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.cluster}{self.path}"


def parse_mounts(text: str) -> list[Mount]:
    """Mounts of vstor in the text of /proc/mounts (octal escapes of proc(5) undone)."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) >= 3 and fields[2] == FSTYPE and fields[0].startswith(SCHEME):
            found.append(Mount(_unescape(fields[0])[len(SCHEME) :].strip("/"), _unescape(fields[1])))
    return found


def mounts() -> list[Mount]:
    """Mounts of vstor on this node."""
    return parse_mounts(Path("/proc/self/mounts").read_text(errors="surrogateescape"))


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def find_on_mounts(path: str, known: list[Mount]) -> ClusterPath | None:
    """The deepest mount that holds the absolute path; a later mount over the same directory wins."""
    best: Mount | None = None
    for mount in known:
        root = mount.mountpoint.rstrip("/")
        if (path == root or path.startswith(root + "/") or root == "") and (
            best is None or len(root) >= len(best.mountpoint.rstrip("/"))
        ):
            best = mount
    if best is None:
        return None
    inside = path[len(best.mountpoint.rstrip("/")) :].strip("/")
    return ClusterPath(best.cluster, "/" + inside)


def resolve(ctx: Context, path: str) -> ClusterPath:
    """What PATH of a verb means: relative to the cluster with -p, else on a mount. vstor://C/path is taken as well.

    The last component is not followed when it is a symbolic link: attributes belong to the entry named.
    Raises: USAGE, WRONG_CLUSTER, INVALID.
    """
    if path.startswith(SCHEME):
        cluster, _, inside = path[len(SCHEME) :].partition("/")
        return _checked(ctx, ClusterPath(check_cluster_name(cluster), normalise("/" + inside)))
    if getattr(ctx.args, "in_cluster", False):
        return ClusterPath(ctx.cluster, normalise("/" + path))
    parent, name = os.path.split(os.path.abspath(path))
    absolute = os.path.join(os.path.realpath(parent), name) if name else "/"
    found = find_on_mounts(absolute, mounts())
    if found is None:
        raise VstorError(
            ErrorCode.USAGE,
            f"{path}: not on a mounted cluster — mount it first, or give -p and the path within the cluster (with -c NAME)",
        )
    return _checked(ctx, found)


def _checked(ctx: Context, found: ClusterPath) -> ClusterPath:
    wanted = ctx.cluster_or_none if getattr(ctx.args, "cluster", None) else None
    if wanted and wanted != found.cluster:
        raise VstorError(
            ErrorCode.WRONG_CLUSTER,
            f"the path belongs to cluster {found.cluster!r}, not to {wanted!r} — leave out -c or give -c {found.cluster}",
        )
    return found


def normalise(path: str) -> str:
    """One leading slash, no empty or dot components. Raises INVALID on a way above the root."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise VstorError(ErrorCode.INVALID, f"{path!r} leads out of the cluster — leave out ..")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
