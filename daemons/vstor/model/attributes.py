"""Attributes of inodes, extended attributes, directory pages, symlinks."""

from __future__ import annotations

import stat

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import attrs, files
from vstor.model.leases import Demand, Kind
from vstor.model.namespace import cached_attr, need_dir, need_inode
from vstor.model.records import Inode
from vstor.model.step import Step
from vstor.proto.messages import (
    CACHE,
    DIR_ENTRIES_MAX,
    DROP_SUID,
    EXCLUSIVE,
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    TIME_NOW,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    AttrReply,
    BytesReply,
    DirEntry,
    DirReply,
    GetAttr,
    GetXattr,
    ListXattr,
    NamesReply,
    Ok,
    ReadDir,
    ReadLink,
    RemoveXattr,
    SetAttr,
    SetXattr,
)

XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_LIST_BYTES_MAX = 65_536  # XATTR_LIST_MAX of Linux: names of one inode with their NULs
XATTR_TOTAL_BYTES_MAX = 1 << 20  # values of one inode
DIR_REPLY_BYTES_MAX = 4 << 20  # of names and attributes, an estimate
_ENTRY_BYTES, _ATTR_BYTES = 24, 96


def get_attr(s: Step, body: GetAttr) -> AttrReply:
    """Attributes; a writer elsewhere tells its size first, and then they are not cacheable."""
    s.need_session()
    need_inode(s, body.ino)
    s.settle([Demand(body.ino, Kind.TELL)])
    return AttrReply(cached_attr(s, need_inode(s, body.ino)))


def set_attr(s: Step, body: SetAttr) -> AttrReply:
    """chmod, chown, truncate, utimens. A size needs EXCLUSIVE; a modification time takes EXCLUSIVE from others first."""
    s.need_session()
    inode = need_inode(s, body.ino)
    if body.mask & SET_SIZE:
        files.check_size(files.need_file(s, body.ino), body.size)
        if s.core.leases.mode(s.session_id, body.ino) != EXCLUSIVE:
            raise VstorError(ErrorCode.LEASE_LOST, "changing the size needs the EXCLUSIVE lease")
    if not all(-(1 << 63) <= ns < 1 << 63 for ns in (body.atime_ns, body.mtime_ns, body.ctime_ns)):
        raise VstorError(ErrorCode.INVALID, "times are 64 bits")
    if not (0 <= body.uid < 1 << 32 and 0 <= body.gid < 1 << 32):
        raise VstorError(ErrorCode.INVALID, "uid and gid are 32 bits")
    demands = [Demand(body.ino, Kind.INVALIDATE)]
    if body.mask & SET_MTIME and stat.S_ISREG(inode.mode):
        demands.append(Demand(body.ino, Kind.SHARE))
    else:
        demands.append(Demand(body.ino, Kind.TELL))
    s.settle(demands)
    if body.mask & SET_SIZE:
        files.resize(s, body.ino, body.size)
    inode = s.tx.inode(body.ino)
    _set_owner(inode, body)
    _set_times(s, inode, body)
    return AttrReply(cached_attr(s, inode))


def _set_owner(inode: Inode, body: SetAttr) -> None:
    if body.mask & SET_UID:
        inode.uid = body.uid
    if body.mask & SET_GID:
        inode.gid = body.gid
    if body.mask & SET_MODE:
        inode.mode = stat.S_IFMT(inode.mode) | body.mode & 0o7777
    elif body.mask & (SET_UID | SET_GID | DROP_SUID):
        inode.mode = attrs.without_suid(inode.mode)


def _set_times(s: Step, inode: Inode, body: SetAttr) -> None:
    now_ns = s.stamp(inode)
    if body.mask & SET_ATIME:
        inode.atime_ns = now_ns if body.atime_ns == TIME_NOW else body.atime_ns
    if body.mask & SET_MTIME:
        inode.mtime_ns = now_ns if body.mtime_ns == TIME_NOW else body.mtime_ns
    elif body.mask & SET_SIZE:
        inode.mtime_ns = now_ns
    inode.ctime_ns = body.ctime_ns if body.mask & SET_CTIME and body.ctime_ns != TIME_NOW else now_ns


def _check_xattr_name(name: bytes) -> None:
    if not name or b"\0" in name:
        raise VstorError(ErrorCode.INVALID, "bad name of an extended attribute")
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise VstorError(ErrorCode.RANGE)


def get_xattr(s: Step, body: GetXattr) -> BytesReply:
    """Value of an extended attribute."""
    s.need_session()
    need_inode(s, body.ino)
    value = s.state.xattrs.get(body.ino, {}).get(body.name)
    if value is None:
        raise VstorError(ErrorCode.NO_DATA)
    return BytesReply(value)


def list_xattr(s: Step, body: ListXattr) -> NamesReply:
    """Names of the extended attributes."""
    s.need_session()
    need_inode(s, body.ino)
    return NamesReply(sorted(s.state.xattrs.get(body.ino, ())))


def set_xattr(s: Step, body: SetXattr) -> Ok:
    """Set an extended attribute."""
    s.need_session()
    need_inode(s, body.ino)
    _check_xattr_name(body.name)
    if body.flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise VstorError(ErrorCode.INVALID)
    if len(body.value) > XATTR_VALUE_BYTES_MAX:
        raise VstorError(ErrorCode.RANGE)
    held = s.state.xattrs.get(body.ino, {})
    if body.flags == XATTR_CREATE and body.name in held:
        raise VstorError(ErrorCode.EXISTS)
    if body.flags == XATTR_REPLACE and body.name not in held:
        raise VstorError(ErrorCode.NO_DATA)
    others = {name: value for name, value in held.items() if name != body.name}
    names = sum(len(name) + 1 for name in others) + len(body.name) + 1
    if names > XATTR_LIST_BYTES_MAX or sum(map(len, others.values())) + len(body.value) > XATTR_TOTAL_BYTES_MAX:
        raise VstorError(ErrorCode.NO_SPACE, "the extended attributes of the inode are at their bound")
    s.settle([Demand(body.ino, Kind.INVALIDATE)])
    s.tx.put_xattr(body.ino, body.name, body.value)
    _changed(s, body.ino)
    return Ok()


def remove_xattr(s: Step, body: RemoveXattr) -> Ok:
    """Remove an extended attribute."""
    s.need_session()
    need_inode(s, body.ino)
    if body.name not in s.state.xattrs.get(body.ino, {}):
        raise VstorError(ErrorCode.NO_DATA)
    s.settle([Demand(body.ino, Kind.INVALIDATE)])
    s.tx.put_xattr(body.ino, body.name, None)
    _changed(s, body.ino)
    return Ok()


def _changed(s: Step, ino: int) -> None:
    inode = s.tx.inode(ino)
    inode.ctime_ns = s.stamp(inode)


def read_link(s: Step, body: ReadLink) -> BytesReply:
    """Target of a symlink."""
    s.need_session()
    inode = need_inode(s, body.ino)
    if not stat.S_ISLNK(inode.mode):
        raise VstorError(ErrorCode.INVALID)
    return BytesReply(inode.target)


def read_dir(s: Step, body: ReadDir) -> DirReply:
    """A page of a directory, which the session may cache. Attributes of files written elsewhere are as last told, not cacheable."""
    s.need_session()
    directory = need_dir(s, body.ino)
    s.settle([Demand(body.ino, Kind.ENTER)])
    s.core.leases.grant(s.session_id, body.ino, CACHE)
    limit = max(1, min(body.limit, DIR_ENTRIES_MAX))
    entries: list[DirEntry] = []
    room = DIR_REPLY_BYTES_MAX
    for name, entry in s.state.directory(body.ino).after(body.cookie):
        room -= len(name) + _ENTRY_BYTES + (_ATTR_BYTES if body.plus else 0)
        if len(entries) == limit or room < 0:
            return DirReply(entries, False, directory.parent)
        attr = cached_attr(s, need_inode(s, entry.ino)) if body.plus else None
        entries.append(DirEntry(name, entry.ino, entry.type, entry.cookie, attr))
    return DirReply(entries, True, directory.parent)
