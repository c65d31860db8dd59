"""mount(2) and umount2(2) for FUSE, and the options of mount(8). Needs root."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from dataclasses import dataclass, field

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

FS_TYPE = "fuse.vstor"
SOURCE = "vstor://"
MAX_READ_BYTES = 1 << 20
MNT_DETACH = 2
# The mount API of Linux 5.2 (<linux/mount.h>, <asm/unistd.h>): the same numbers on every architecture.
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6
# Options of mount(8) that are flags of mount(2) (<linux/mount.h>): what to set, what to clear.
FLAGS = {
    "ro": (1, 0), "rw": (0, 1), "nosuid": (2, 0), "suid": (0, 2), "nodev": (4, 0), "dev": (0, 4), "noexec": (8, 0), "exec": (0, 8),
    "sync": (16, 0), "async": (0, 16), "dirsync": (128, 0), "noatime": (1024, 0), "atime": (0, 1024), "nodiratime": (2048, 0),
    "diratime": (0, 2048), "relatime": (1 << 21, 0), "norelatime": (0, 1 << 21), "strictatime": (1 << 24, 0), "lazytime": (1 << 25, 0),
    "silent": (1 << 15, 0), "loud": (0, 1 << 15),
}  # fmt: skip
# For the boot process or mount(8), or what FUSE does anyway.
IGNORED = {
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "_netdev",
    "nofail",
    "defaults",
    "allow_other",
    "default_permissions",
}


@dataclass
class Options:
    """What -o said."""

    flags: int = 0
    own: dict[str, str] = field(default_factory=dict)  # options of vstor itself


OWN = {
    "nospace",  # block (default) or error: what a full cluster does to writers
    "max_background",
    "user", "group", "mode",  # as -u, -g, -m
    "timeout",  # seconds to wait for the cluster when mounting, 0: for ever
    "stop_timeout",  # seconds to wait at the end for what was not synced
    "log",
}  # fmt: skip


def parse_options(text: str) -> Options:
    """Comma-separated options of mount(8) and fstab(5). Raises USAGE for one that is not known."""
    out = Options()
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if word in FLAGS:
            on, off = FLAGS[word]
            out.flags = out.flags & ~off | on
        elif equals and name in OWN:
            out.own[name] = value
        elif name in IGNORED or name.startswith("x-") or name == "comment":
            continue
        else:
            raise VstorError(ErrorCode.USAGE, f"unknown mount option {word!r}")
    return out


def device_at(point: str, table: str = "/proc/self/mountinfo") -> str | None:
    """Device number of the vstor file system mounted exactly there, the topmost; None: there is none. proc_pid_mountinfo(5)."""
    found = None
    with open(table, encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split()
            path = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")
            if os.fsdecode(path) == point:
                found = fields[2] if fields[fields.index("-", 6) + 1] == FS_TYPE else None
    return found


def is_mounted(point: str) -> bool:
    """A vstor file system is mounted exactly there."""
    return device_at(point) is not None


def _clear_dead(path: str, point: str) -> None:
    """A vstor mount whose process died (nothing behind it can be reached any more) makes room for a new one."""
    if not is_mounted(point):
        raise VstorError(
            ErrorCode.IN_USE, f"mount point {path} is left over from a dead file system; free it with: umount {path}"
        )
    number = umount(point, lazy=True)
    if number:
        message = f"mount point {path} is left over from a mount whose process died, and cannot be freed: {os.strerror(number)}"
        raise VstorError(ErrorCode.IN_USE, message)


def check_point(path: str) -> str:
    """The absolute path of a usable mount point; what a dead mount left there is detached.

    Raises CONFIG, IN_USE, NOT_FOUND, NOT_DIR: one line each.
    """
    point = os.path.realpath(path)
    try:
        os.statvfs(point)  # asks the file system, where stat may be answered from a cache
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            _clear_dead(path, point)
    try:
        mode = os.stat(point).st_mode
    except FileNotFoundError:
        raise VstorError(
            ErrorCode.NOT_FOUND, f"mount point {path} does not exist; make it with: mkdir -p {path}"
        ) from None
    except OSError as exc:
        raise VstorError(ErrorCode.CONFIG, f"mount point {path}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise VstorError(ErrorCode.NOT_DIR, f"mount point {path} is not a directory")
    if is_mounted(point):
        raise VstorError(
            ErrorCode.IN_USE, f"a vstor cluster is already mounted at {path}; unmount it first with: umount {path}"
        )
    return point


def open_fuse() -> int:
    """A new connection to the kernel. Raises CONFIG, NOT_ROOT."""
    if os.geteuid() != 0:
        raise VstorError(ErrorCode.NOT_ROOT, "mounting needs root; run it with sudo")
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise VstorError(ErrorCode.CONFIG, "/dev/fuse is missing; load the kernel module with: modprobe fuse") from None
    except OSError as exc:
        hint = "; a container needs --device /dev/fuse" if exc.errno in (errno.EPERM, errno.EACCES) else ""
        raise VstorError(ErrorCode.CONFIG, f"/dev/fuse cannot be opened: {exc.strerror}{hint}") from exc


def mount(fd: int, cluster: str, point: str, flags: int) -> None:
    """mount(2). Raises CONFIG, IN_USE with the system's reason."""
    data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_READ_BYTES}"
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(
        f"{SOURCE}{cluster}".encode(), os.fsencode(point), FS_TYPE.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if result:
        number = ctypes.get_errno()
        hint = "; the process lacks CAP_SYS_ADMIN" if number == errno.EPERM else ""
        code = ErrorCode.IN_USE if number == errno.EBUSY else ErrorCode.CONFIG
        raise VstorError(code, f"cannot mount at {point}: {os.strerror(number)}{hint}")


def abort(device: str) -> int:
    """End the connection of the FUSE file system with this device number ("0:57"): 0 or a positive errno. It need not be mounted any more.

    As `umount -f`, for one that is detached. The control file system (fusectl) is taken unmounted, because not every container has it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fs = libc.syscall(SYS_FSOPEN, b"fusectl", FSOPEN_CLOEXEC)
    if fs < 0:
        return ctypes.get_errno()
    try:
        if libc.syscall(SYS_FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            return ctypes.get_errno()
        root = libc.syscall(SYS_FSMOUNT, fs, FSMOUNT_CLOEXEC, 0)
        if root < 0:
            return ctypes.get_errno()
    finally:
        os.close(fs)
    try:
        control = os.open(f"{device.partition(':')[2]}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
        try:
            os.write(control, b"1")
        finally:
            os.close(control)
    except FileNotFoundError:
        return 0  # it has ended
    except OSError as exc:
        return exc.errno or errno.EIO
    finally:
        os.close(root)
    return 0


def umount(point: str, *, lazy: bool = False) -> int:
    """umount2(2): 0 or a positive errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.umount2(os.fsencode(point), MNT_DETACH if lazy else 0) else 0
