"""Names: lookup, creation, links, removal, renaming. Every handler checks first, then settles its demands, then changes."""

from __future__ import annotations

import stat

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import attrs, files, opens
from vstor.model.directory import FIRST_COOKIE
from vstor.model.leases import Demand, Kind
from vstor.model.records import Dentry, Inode
from vstor.model.step import Step
from vstor.proto.messages import (
    CACHE,
    EXCLUSIVE,
    NAME_BYTES_MAX,
    NONE,
    ROOT_INO,
    SYMLINK_BYTES_MAX,
    Attr,
    Create,
    EntryReply,
    Link,
    Lookup,
    Ok,
    OpenReply,
    Rename,
    Rmdir,
    Unlink,
)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# A file that another one has replaced is there a little longer for who has just looked up its name: a program that opens a name
# which is replaced again and again must not hear ESTALE (the kernel looks once more, no more).
REPLACED_KEPT_MS = 2000
LINKS_MAX = 65_000  # names of one file, as ext4
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK)


def need_inode(s: Step, ino: int) -> Inode:
    """The inode, not to be changed. Raises BAD_HANDLE."""
    inode = s.tx.peek(ino)
    if inode is None:
        raise VstorError(ErrorCode.BAD_HANDLE)
    return inode


def need_dir(s: Step, ino: int) -> Inode:
    """The directory's inode, not to be changed. Raises BAD_HANDLE, NOT_DIR."""
    inode = need_inode(s, ino)
    if not stat.S_ISDIR(inode.mode):
        raise VstorError(ErrorCode.NOT_DIR)
    return inode


def check_name(name: bytes) -> bytes:
    """A name to look for or to make. Raises NAME_TOO_LONG, INVALID."""
    if len(name) > NAME_BYTES_MAX:
        raise VstorError(ErrorCode.NAME_TOO_LONG)
    if not name or b"/" in name or b"\0" in name:
        raise VstorError(ErrorCode.INVALID, "a name is not empty and holds neither / nor NUL")
    return name


def need_entry(s: Step, parent: int, name: bytes) -> Dentry:
    """An entry that exists. Raises NOT_FOUND and what need_dir and check_name do."""
    need_dir(s, parent)
    entry = s.tx.entry(parent, check_name(name))
    if entry is None:
        raise VstorError(ErrorCode.NOT_FOUND)
    return entry


def cached_attr(s: Step, inode: Inode) -> Attr:
    """Attributes for a reply; the session may cache them when it can be given CACHE."""
    leases = s.core.leases
    cacheable = leases.may_cache(s.session_id, inode.ino) and leases.grant(s.session_id, inode.ino, CACHE)
    return attrs.attr(inode, cacheable)


def _known_attr(s: Step, ino: int) -> Attr | None:
    """Attributes of a directory that was changed, for a session that caches it: it need not ask."""
    leases = s.core.leases
    inode = s.tx.peek(ino)
    if inode is None or leases.mode(s.session_id, ino) == NONE or not leases.may_cache(s.session_id, ino):
        return None
    return attrs.attr(inode, True)


def lookup(s: Step, body: Lookup) -> EntryReply:
    """Find an entry. "." (of any inode) and ".." are for exports, whose handles outlive the kernel's caches."""
    s.need_session()
    if body.name == b".":
        target: int | None = need_inode(s, body.parent).ino
    elif body.name == b"..":
        target = need_dir(s, body.parent).parent
    else:
        need_dir(s, body.parent)
        entry = s.tx.entry(body.parent, check_name(body.name))
        target = entry.ino if entry else None
    demands = [Demand(body.parent, Kind.ENTER)]
    if target is not None:
        demands.append(Demand(target, Kind.TELL))
    s.settle(demands)
    parent_cached = s.core.leases.grant(s.session_id, body.parent, CACHE)
    reply = attrs.no_entry() if target is None else cached_attr(s, need_inode(s, target))
    reply.cacheable = reply.cacheable and parent_cached
    return EntryReply(reply)


def create(s: Step, body: Create) -> EntryReply | OpenReply:
    """Make a node of any type, or open an existing file (exclusive=False)."""
    session_id = s.need_session()
    parent = need_dir(s, body.parent)
    if body.name in (b".", b".."):
        raise VstorError(ErrorCode.EXISTS)
    kind = stat.S_IFMT(body.mode) or stat.S_IFREG
    existing = s.tx.entry(body.parent, check_name(body.name))
    if existing is not None:
        return _existing(s, body, kind, existing)
    _check_new(body, kind, parent)
    s.settle([Demand(body.parent, Kind.INVALIDATE, (body.name,))])
    inode = _new_inode(s, body, kind, parent)
    opened = body.open and kind == stat.S_IFREG
    if opened:
        inode.writer = session_id
    _add_entry(s, body.parent, body.name, inode)
    s.core.leases.grant(session_id, inode.ino, EXCLUSIVE if opened else CACHE)
    if not opened:
        return EntryReply(attrs.attr(inode, True), _known_attr(s, body.parent))
    s.core.opens.add(session_id, inode.ino)
    s.core.maps.writing(inode.ino, known=True)
    chunks, servers = s.core.maps.first(s, inode) if body.first_chunk else ([], [])
    return OpenReply(
        attrs.attr(inode, True),
        EXCLUSIVE,
        files.policy(inode).chunk_bytes,
        chunks,
        servers,
        True,
        _known_attr(s, body.parent),
    )


def _existing(s: Step, body: Create, kind: int, entry: Dentry) -> EntryReply | OpenReply:
    if body.exclusive or kind != stat.S_IFREG or entry.type != stat.S_IFREG >> 12:
        raise VstorError(
            ErrorCode.IS_DIR if entry.type == stat.S_IFDIR >> 12 and not body.exclusive else ErrorCode.EXISTS
        )
    if body.open:
        return opens.open_file(s, entry.ino, EXCLUSIVE, truncate=False)
    s.settle([Demand(body.parent, Kind.ENTER), Demand(entry.ino, Kind.TELL)])
    s.core.leases.grant(s.session_id, body.parent, CACHE)
    return EntryReply(cached_attr(s, need_inode(s, entry.ino)))


def _check_new(body: Create, kind: int, parent: Inode) -> None:
    if kind not in _TYPES:
        raise VstorError(ErrorCode.INVALID, f"unknown file type {kind:o}")
    if kind == stat.S_IFLNK:
        if len(body.target) > SYMLINK_BYTES_MAX:
            raise VstorError(ErrorCode.NAME_TOO_LONG)
        if not body.target or b"\0" in body.target:
            raise VstorError(ErrorCode.INVALID, "a symlink needs a target without NUL")
    if not (0 <= body.uid < 1 << 32 and 0 <= body.gid < 1 << 32 and 0 <= body.rdev < 1 << 32):
        raise VstorError(ErrorCode.INVALID, "uid, gid and rdev are 32 bits")
    if parent.nlink == 0:
        raise VstorError(ErrorCode.NOT_FOUND)


def _new_inode(s: Step, body: Create, kind: int, parent: Inode) -> Inode:
    is_dir = kind == stat.S_IFDIR
    permissions, gid = body.mode & 0o7777, body.gid
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        permissions |= stat.S_ISGID if is_dir else 0
    ino = s.tx.new_id("ino")
    target = body.target if kind == stat.S_IFLNK else b""
    return s.tx.add_inode(
        Inode(
            ino=ino,
            generation=1,  # numbers are never reused
            mode=kind | permissions,
            nlink=2 if is_dir else 1,
            uid=body.uid,
            gid=gid,
            size=len(target),
            atime_ns=s.now_ns,
            mtime_ns=s.now_ns,
            ctime_ns=s.now_ns,
            policy=parent.policy,
            rdev=body.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            parent=parent.ino if is_dir else 0,
            next_cookie=FIRST_COOKIE if is_dir else 0,
            target=target,
        )
    )


def _add_entry(s: Step, parent_ino: int, name: bytes, inode: Inode) -> None:
    parent = s.tx.inode(parent_ino)
    s.tx.put_entry(parent, name, inode.ino, stat.S_IFMT(inode.mode) >> 12)
    if stat.S_ISDIR(inode.mode):
        parent.nlink += 1
    _touch(s, parent)


def _touch(s: Step, directory: Inode) -> None:
    directory.mtime_ns = directory.ctime_ns = s.stamp(directory)


def link(s: Step, body: Link) -> EntryReply:
    """Another name for a file."""
    s.need_session()
    inode = need_inode(s, body.ino)
    if stat.S_ISDIR(inode.mode):
        raise VstorError(ErrorCode.PERM)
    if need_dir(s, body.parent).nlink == 0 or inode.nlink == 0:
        raise VstorError(ErrorCode.NOT_FOUND)
    if body.name in (b".", b"..") or s.tx.entry(body.parent, check_name(body.name)) is not None:
        raise VstorError(ErrorCode.EXISTS)
    if inode.nlink >= LINKS_MAX:
        raise VstorError(ErrorCode.MANY_LINKS)
    s.settle([
        Demand(body.parent, Kind.INVALIDATE, (body.name,)),
        Demand(body.ino, Kind.INVALIDATE),
        Demand(body.ino, Kind.TELL),
    ])  # fmt: skip
    inode = s.tx.inode(body.ino)
    inode.nlink += 1
    inode.ctime_ns = s.stamp(inode)
    _add_entry(s, body.parent, body.name, inode)
    return EntryReply(cached_attr(s, inode), _known_attr(s, body.parent))


def unlink(s: Step, body: Unlink) -> Ok:
    """Remove a name; the file goes with its last name and its last open."""
    session_id = s.need_session()
    if body.name in (b".", b".."):
        raise VstorError(ErrorCode.IS_DIR)
    entry = need_entry(s, body.parent, body.name)
    if entry.type == stat.S_IFDIR >> 12:
        raise VstorError(ErrorCode.IS_DIR)
    s.settle([Demand(body.parent, Kind.INVALIDATE, (body.name,)), Demand(entry.ino, Kind.INVALIDATE)])
    parent = s.tx.inode(body.parent)
    s.tx.remove_entry(parent, body.name)
    _touch(s, parent)
    closed = body.closes > 0 and _only_open_by(s, session_id, entry.ino)
    if closed:
        s.core.opens.remove(session_id, entry.ino, body.closes)
    _drop_link(s, entry.ino)
    return Ok(_known_attr(s, body.parent), closed)


def _only_open_by(s: Step, session_id: int, ino: int) -> bool:
    """The last name of the file is about to go, and nobody but the session has it open."""
    inode = s.tx.peek(ino)
    return inode is not None and inode.nlink == 1 and set(s.core.opens.by_ino.get(ino, ())) <= {session_id}


def _drop_link(s: Step, ino: int, kept_ms: int = 0) -> None:
    inode = s.tx.inode(ino)
    inode.nlink -= 1
    inode.ctime_ns = s.stamp(inode)
    if inode.nlink == 0:
        opens.bury(s, ino, kept_ms)


def rmdir(s: Step, body: Rmdir) -> Ok:
    """Remove an empty directory."""
    s.need_session()
    if body.name == b".":
        raise VstorError(ErrorCode.INVALID)
    if body.name == b"..":
        raise VstorError(ErrorCode.NOT_EMPTY)
    entry = need_entry(s, body.parent, body.name)
    if entry.type != stat.S_IFDIR >> 12:
        raise VstorError(ErrorCode.NOT_DIR)
    if s.state.directory(entry.ino).entries:
        raise VstorError(ErrorCode.NOT_EMPTY)
    s.settle([Demand(body.parent, Kind.INVALIDATE, (body.name,)), Demand(entry.ino, Kind.INVALIDATE)])
    parent = s.tx.inode(body.parent)
    s.tx.remove_entry(parent, body.name)
    parent.nlink -= 1
    _touch(s, parent)
    _remove_dir(s, entry.ino)
    return Ok(_known_attr(s, body.parent))


def _remove_dir(s: Step, ino: int) -> None:
    s.tx.remove_inode(ino)
    s.core.leases.drop_inode(ino, s.out)


def _is_inside(s: Step, ino: int, ancestor: int) -> bool:
    """`ino` is `ancestor` or a directory below it."""
    while ino != ancestor:
        if ino == ROOT_INO:
            return False
        ino = need_dir(s, ino).parent
    return True


def rename(s: Step, body: Rename) -> Ok:
    """Move an entry, replacing or exchanging what is at the target, all at once."""
    s.need_session()
    if body.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise VstorError(ErrorCode.INVALID, f"rename flags {body.flags}")
    if {body.name, body.new_name} & {b".", b".."}:
        raise VstorError(ErrorCode.INVALID)
    old = need_entry(s, body.parent, body.name)
    target_dir = need_dir(s, body.new_parent)
    new = s.tx.entry(body.new_parent, check_name(body.new_name))
    if target_dir.nlink == 0:
        raise VstorError(ErrorCode.NOT_FOUND)
    _check_rename(s, body, old, new)
    if new is not None and new.ino == old.ino:
        return Ok()  # two names of one file: POSIX says nothing happens
    demands = [Demand(old.ino, Kind.INVALIDATE)]
    if body.parent == body.new_parent:
        demands.append(Demand(body.parent, Kind.INVALIDATE, (body.name, body.new_name)))
    else:
        demands.append(Demand(body.parent, Kind.INVALIDATE, (body.name,)))
        demands.append(Demand(body.new_parent, Kind.INVALIDATE, (body.new_name,)))
    if new is not None:
        demands.append(Demand(new.ino, Kind.INVALIDATE))
    s.settle(demands)
    if new is not None and body.flags == RENAME_EXCHANGE:
        _place(s, body.parent, body.new_parent, body.new_name, old)
        _place(s, body.new_parent, body.parent, body.name, new)
    else:
        if new is not None:
            _clear_target(s, body, new)
        s.tx.remove_entry(s.tx.inode(body.parent), body.name)
        _place(s, body.parent, body.new_parent, body.new_name, old)
    _touch(s, s.tx.inode(body.parent))
    _touch(s, s.tx.inode(body.new_parent))
    return Ok(_known_attr(s, body.parent) if body.parent == body.new_parent else None)


def _check_rename(s: Step, body: Rename, old: Dentry, new: Dentry | None) -> None:
    folder = stat.S_IFDIR >> 12
    if old.type == folder and _is_inside(s, body.new_parent, old.ino):
        raise VstorError(ErrorCode.INVALID, "a directory cannot move into itself")
    if body.flags == RENAME_EXCHANGE:
        if new is None:
            raise VstorError(ErrorCode.NOT_FOUND)
        if new.type == folder and _is_inside(s, body.parent, new.ino):
            raise VstorError(ErrorCode.INVALID, "a directory cannot move into itself")
        return
    if new is None or (new.ino == old.ino and body.flags == 0):
        return
    if body.flags == RENAME_NOREPLACE:
        raise VstorError(ErrorCode.EXISTS)
    if old.type == folder and new.type != folder:
        raise VstorError(ErrorCode.NOT_DIR)
    if old.type != folder and new.type == folder:
        raise VstorError(ErrorCode.IS_DIR)
    if new.type == folder and s.state.directory(new.ino).entries:
        raise VstorError(ErrorCode.NOT_EMPTY)


def _clear_target(s: Step, body: Rename, new: Dentry) -> None:
    """What the target name stood for loses it; the entry itself is about to be replaced."""
    if new.type == stat.S_IFDIR >> 12:
        s.tx.inode(body.new_parent).nlink -= 1
        _remove_dir(s, new.ino)
    else:
        _drop_link(s, new.ino, REPLACED_KEPT_MS)


def _place(s: Step, from_dir: int, to_dir: int, name: bytes, entry: Dentry) -> None:
    """Put an existing inode under a name, moving its ".." and the parents' link counts when it is a directory."""
    s.tx.put_entry(s.tx.inode(to_dir), name, entry.ino, entry.type)
    inode = s.tx.inode(entry.ino)
    inode.ctime_ns = s.stamp(inode)
    if stat.S_ISDIR(inode.mode) and from_dir != to_dir:
        inode.parent = to_dir
        s.tx.inode(from_dir).nlink -= 1
        s.tx.inode(to_dir).nlink += 1
