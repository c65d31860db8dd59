"""mount.fuse.vstor: lets mount(8) and /etc/fstab mount a cluster.

mount(8) calls `/sbin/mount.fuse.vstor SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type]`. A line of fstab:

    vstor://test_cluster  /pcs  fuse.vstor  rw,nosuid,nodev,_netdev,nofail  0 0
"""

from __future__ import annotations

import os
import sys

from vstor.codes_gen import ErrorCode
from vstor.ctl.clusterpath import SCHEME
from vstor.ctl.context import check_cluster_name
from vstor.ctl.programs import program
from vstor.errors import VstorError

USAGE_EXIT = 1  # mount(8): incorrect invocation or permissions
# Said to the boot process or to mount(8) itself, not to the file system.
NOT_FOR_US = frozenset(
    {
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "_netdev",
        "nofail",
        "defaults",
        "dev",
        "suid",
        "exec",
        "async",
        "rw",
        "loud",
    }
)
SHORT = {"cache": "-C", "cachesize": "-R"}


def parse(argv: list[str]) -> list[str] | None:
    """Arguments for vstor-mount, None when only a fake run (-f) is asked for. Raises USAGE, INVALID."""
    words, options, fake = [], [], False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-o", "-t", "-N"):
            if not rest:
                raise VstorError(ErrorCode.USAGE, f"{word} needs a value")
            value = rest.pop(0)
            if word == "-N":
                raise VstorError(ErrorCode.USAGE, "-N is not supported: mount from within the name space")
            options += value.split(",") if word == "-o" else []
        elif word.startswith("-") and len(word) > 1:
            if not set(word[1:]) <= set("sfnv"):
                raise VstorError(ErrorCode.USAGE, f"unknown option {word}")
            fake = fake or "f" in word
        else:
            words.append(word)
    if len(words) != 2:
        raise VstorError(ErrorCode.USAGE, f"usage: mount.fuse.vstor {SCHEME}CLUSTER DIR [-o options]")
    source, point = words
    if not source.startswith(SCHEME):
        raise VstorError(ErrorCode.USAGE, f"{source!r} is no cluster — write {SCHEME}CLUSTER")
    cluster = check_cluster_name(source[len(SCHEME) :].rstrip("/"))
    return None if fake else [*_translate(cluster, options), point]


def _translate(cluster: str, options: list[str]) -> list[str]:
    """-c and the options vstor-mount has a letter for; the others stay together in -o."""
    out, kept = ["-c", cluster], []
    for option in options:
        name, _, value = option.partition("=")
        if name in SHORT:
            out += [SHORT[name], value]
        elif option and name not in NOT_FOR_US and not name.startswith(("x-", "comment")):
            kept.append(option)
    return out + (["-o", ",".join(kept)] if kept else [])


def main() -> int:
    """Become vstor-mount, which returns when the file system is mounted."""
    try:
        arguments = parse(sys.argv[1:])
        if arguments is not None:
            command = program("mount")
            os.execvp(command[0], command + arguments)
    except VstorError as exc:
        print(f"mount.fuse.vstor: {exc.message}", file=sys.stderr)
        return USAGE_EXIT
    except OSError as exc:
        print(f"mount.fuse.vstor: cannot run vstor-mount: {exc.strerror}", file=sys.stderr)
        return USAGE_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
