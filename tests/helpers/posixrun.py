"""Run the conformance cases of `posixcases.py` in a directory and describe what came of each step: one JSON line a case.

Usage: python -m tests.helpers.posixrun DIRECTORY [EVERY]. Must run as root: steps are done as several users. EVERY: one case of so many.
What differs between file systems by right is not described: inode numbers (only which names share one), atime, sizes of directories.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.posixcases import ROOT, USERS, Step, all_cases

_LIBC = ctypes.CDLL(None, use_errno=True)
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
CRC_BYTES_MAX = 1 << 20


class Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _with_fd(path: str, flags: int, work: Callable[[int], Any], mode: int = 0o600) -> Any:
    fd = os.open(path, flags, mode)
    try:
        return work(fd)
    finally:
        os.close(fd)


def _write(path: str, flags: int, data: bytes) -> None:
    if flags & os.O_DIRECT:
        with mmap.mmap(-1, len(data)) as buf:
            buf[:] = data
            _with_fd(path, flags, lambda fd: os.writev(fd, [buf]))
    else:
        _with_fd(path, flags, lambda fd: os.write(fd, data) if data else None)


def _utimens(path: str, atime: Any, mtime: Any) -> None:
    def spec(value: Any) -> Timespec:
        if value in ("now", "omit"):
            return Timespec(0, UTIME_NOW if value == "now" else UTIME_OMIT)
        return Timespec(*divmod(value, 10**9))

    times = (Timespec * 2)(spec(atime), spec(mtime))
    _check(_LIBC.utimensat(AT_FDCWD, os.fsencode(path), times, AT_SYMLINK_NOFOLLOW))


def _fallocate(path: str, mode: int, offset: int, length: int) -> None:
    call = _LIBC.fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    _with_fd(path, os.O_RDWR, lambda fd: _check(call(fd, mode, offset, length)))


def _renameat2(old: str, new: str, flags: int) -> None:
    _check(_LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def _unlinked(path: str) -> Any:
    """A file without a name is still a file."""

    def work(fd: int) -> Any:
        os.unlink(path)
        os.write(fd, b"0123456789")
        os.ftruncate(fd, 4)
        os.fchmod(fd, 0o604)
        st = os.fstat(fd)
        return [os.pread(fd, 10, 0).decode(), st.st_nlink, st.st_size, oct(st.st_mode)]

    return _with_fd(path, os.O_RDWR, work)


def _busy(path: str) -> Any:
    """A program that runs cannot be written (ETXTBSY), but replaced."""
    with subprocess.Popen([os.path.abspath(path), "60"]) as proc:
        out = []
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
            try:
                os.close(os.open(path, flags))
                out.append("opened")
            except OSError as exc:
                out.append(errno.errorcode[exc.errno or 0])
        try:
            os.truncate(path, 0)
        except OSError as exc:
            out.append(errno.errorcode[exc.errno or 0])
        proc.kill()
    return out


def _past_limit(path: str) -> Any:
    """RLIMIT_FSIZE, in a process of its own: EFBIG and what had room is written."""
    code = (
        "import os,resource,signal,sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\nfd=os.open(sys.argv[1], os.O_WRONLY)\n"
        "print(os.write(fd, b'x'*100))\ntry:\n  os.write(fd, b'x')\nexcept OSError as e: print(e.errno)\n"
        "try:\n  os.truncate(sys.argv[1], 11)\nexcept OSError as e: print(e.errno)\n"
    )
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True).stdout.split()


def _seek(path: str) -> Any:
    """What every file system must say of a file without holes."""

    def work(fd: int) -> Any:
        size = os.fstat(fd).st_size
        out: list[Any] = [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE) == size]
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            try:
                out.append(os.lseek(fd, size, whence))
            except OSError as exc:
                out.append(errno.errorcode[exc.errno or 0])
        return out

    return _with_fd(path, os.O_RDONLY, work)


CALLS: dict[str, Callable[..., Any]] = {
    "create": lambda p, mode: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)),
    "open": lambda p, flags, mode: os.close(os.open(p, flags, mode)),
    "write": _write,
    "read": lambda p, flags: _with_fd(p, flags, lambda fd: os.read(fd, 100).decode()),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "link": lambda a, b: os.link(a, b, follow_symlinks=False),
    "symlink": os.symlink,
    "readlink": os.readlink,
    "rename": os.rename,
    "renameat2": _renameat2,
    "mknod": lambda p, mode: os.mknod(p, mode, os.makedev(1, 3) if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0),
    "chmod": os.chmod,
    "chown": os.chown,
    "lchown": os.lchown,
    "truncate": os.truncate,
    "ftruncate": lambda p, size: _with_fd(p, os.O_RDWR, lambda fd: os.ftruncate(fd, size)),
    "ftruncate-ro": lambda p, size: _with_fd(p, os.O_RDONLY, lambda fd: os.ftruncate(fd, size)),
    "utime": lambda p, a, m: os.utime(p, ns=(a, m)),
    "utimens": _utimens,
    "umask": lambda mask: (os.umask(mask), None)[1],
    "stat": lambda p: stat.S_IFMT(os.stat(p).st_mode),
    "lstat": lambda p: stat.S_IFMT(os.lstat(p).st_mode),
    "statvfs": lambda p: os.statvfs(p).f_namemax,
    "listdir": lambda p: sorted(os.listdir(p)),
    "access": lambda p, mode: os.access(p, mode, effective_ids=True),
    "getxattr": lambda p, name: os.getxattr(p, name).decode(),
    "setxattr": os.setxattr,
    "lsetxattr": lambda p, name, value: os.setxattr(p, name, value, follow_symlinks=False),
    "removexattr": os.removexattr,
    "listxattr": lambda p: sorted(os.listxattr(p)),
    "fallocate": _fallocate,
    "copy": lambda a, b: (shutil.copyfile(a, b), None)[1],
    "unlinked": _unlinked,
    "busy": _busy,
    "past-limit": _past_limit,
    "seek": _seek,
}


def _become(user: str) -> None:
    os.seteuid(0)
    uid, gid, groups = USERS[user]
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)


def _do(step: Step) -> Any:
    user, call, *args = step
    _become(user)
    try:
        return CALLS[call](*args)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))
    finally:
        _become(ROOT)


def _describe(path: str, before: dict[str, tuple[int, int]], inodes: dict[int, int]) -> list[Any]:
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    out = [path, oct(st.st_mode), st.st_uid, st.st_gid, st.st_nlink, inodes.setdefault(st.st_ino, len(inodes))]
    old = before.get(path)
    before[path] = (st.st_mtime_ns, st.st_ctime_ns)
    out.append([] if old is None else [name for name, a, b in zip("mc", old, before[path], strict=True) if a != b])
    if kind in (stat.S_IFBLK, stat.S_IFCHR):
        out.append(st.st_rdev)
    elif kind == stat.S_IFLNK:
        out += [st.st_size, os.readlink(path)[:20]]
    elif kind == stat.S_IFREG:
        out.append(st.st_size)
        if st.st_size <= CRC_BYTES_MAX:
            out.append(zlib.crc32(Path(path).read_bytes()))
    return out


def _times(path: str, step: Step) -> Any:
    """What utimens set, exactly."""
    st = os.lstat(path)
    return [a if isinstance(w, int) else None for w, a in ((step[3], st.st_atime_ns), (step[4], st.st_mtime_ns))]


def _tree() -> list[str]:
    names = ["."]
    for top, dirs, files in os.walk("."):
        dirs.sort()
        names += [os.path.join(top, n) for n in sorted(dirs + files)]
    return names


def run_case(directory: Path, steps: list[Step]) -> list[Any]:
    """[[result, changed and present files] of each step]."""
    directory.mkdir()
    os.chdir(directory)
    before: dict[str, tuple[int, int]] = {}
    inodes: dict[int, int] = {}
    out = []
    for step in steps:
        result = _do(step)
        if step[1] == "utimens" and result is None:
            result = _times(step[2], step)
        entries = [_describe(path, before, inodes) for path in _tree()]
        before = {path: before[path] for path in (e[0] for e in entries)}
        out.append([result, entries])
    os.chdir("/")
    shutil.rmtree(directory)
    return out


def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.umask(0o022)
    base = Path(sys.argv[1]).resolve()
    every = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for i, (name, steps) in enumerate(all_cases()):
        if i % every == 0:
            print(json.dumps([name, run_case(base / f"case{i}", steps)]), flush=True)


if __name__ == "__main__":
    main()
