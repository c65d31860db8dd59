"""Daemons run as their own user; what make-mds, make-cs and auth-node write as root must be theirs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from vstor import paths
from vstor.errors import from_os_error

DAEMON_USER = "vstor"


def daemon_user() -> pwd.struct_passwd | None:
    """The user daemons run as: $VSTOR_USER, else vstor; None (stay who we are) where there is none or when not root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(os.environ.get("VSTOR_USER", DAEMON_USER))
    except KeyError:
        return None
    return entry if entry.pw_uid != 0 else None


def give_to_daemons(repository: Path | None, cluster: str) -> None:
    """Make the repository, with all in it, and this node's key belong to the daemons' user. Symbolic links are not followed.

    The rest of the cluster's configuration stays root's: root's tools believe it, and daemons only read it.
    """
    user = daemon_user()
    if user is None:
        return
    places = [paths.cluster_dir(cluster) / "node.key"]
    if repository is not None:
        places.append(repository)
        places += [Path(where, name) for where, dirs, files in os.walk(repository) for name in dirs + files]
    for place in places:
        try:
            _chown(place, user)
        except FileNotFoundError:
            continue  # an MDS that joins has its own, a daemon may have removed a file of its own meanwhile
        except OSError as exc:
            raise from_os_error(exc, f"cannot give {place} to user {user.pw_name}") from exc


def let_daemons_make_files(directory: Path) -> bool:
    """Let the daemons' user make files in a directory that is not ours alone: it is given to them only if nothing is in it. False if they cannot."""
    user = daemon_user()
    if user is None or directory.stat().st_uid == user.pw_uid or directory.stat().st_mode & 0o002:
        return True
    if any(directory.iterdir()):
        return False
    _chown(directory, user)
    return True


def make_daemon_dir(path: Path) -> None:
    """A directory daemons write to ($VSTOR_RUN, $VSTOR_LOG), theirs."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        user = daemon_user()
        if user is not None:
            _chown(path, user)
    except OSError as exc:
        raise from_os_error(exc, f"cannot make {path}") from exc


def _chown(path: Path, user: pwd.struct_passwd) -> None:
    status = path.lstat()
    if (status.st_uid, status.st_gid) != (user.pw_uid, user.pw_gid):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
