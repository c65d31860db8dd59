"""Names and attributes: lookups from the cache or the MDS, changes of directories, extended attributes.

DESIGN: results are entered in the table in the loop step in which they arrive (session.py); a change of ours updates the table by itself,
because the MDS invalidates only other sessions.
"""

from __future__ import annotations

from typing import Any

from vstor.client.files import Files
from vstor.client.inodes import Handle, Inode, InodeTable
from vstor.client.leases import Leases, collect
from vstor.client.session import Session
from vstor.client.tasks import Tasks
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto import messages as m
from vstor.proto.messages import NONE, ROOT_INO

XATTRS_KEPT_MAX = 8  # of one inode
XATTR_KEPT_BYTES_MAX = 256


def check_name(name: bytes) -> None:
    """Raises NAME_TOO_LONG, INVALID."""
    if len(name) > m.NAME_BYTES_MAX:
        raise VstorError(ErrorCode.NAME_TOO_LONG, f"a name may have {m.NAME_BYTES_MAX} bytes")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise VstorError(ErrorCode.INVALID, f"not a file name: {name!r}")


class Names:
    """Concurrency: one event loop."""

    def __init__(self, table: InodeTable, session: Session, leases: Leases, files: Files, tasks: Tasks) -> None:
        self.table, self.session, self.leases, self.files, self.tasks = table, session, leases, files, tasks
        self.lookups_cached = 0
        self.lookups_asked = 0

    # --- looking

    def cached(self, inode: Inode | None) -> bool:
        """Its attributes may be used without asking."""
        return inode is not None and inode.attr is not None and inode.attr_valid and self.session.remaining_ms() > 0

    async def lookup(self, parent: int, name: bytes) -> Inode:
        """Raises NOT_FOUND, which is cached as well, NAME_TOO_LONG."""
        if len(name) > m.NAME_BYTES_MAX:
            raise VstorError(ErrorCode.NAME_TOO_LONG)
        if self.session.remaining_ms() > 0:
            ino = self.table.entry(parent, name)
            if ino == 0:
                self.lookups_cached += 1
                raise VstorError(ErrorCode.NOT_FOUND)
            inode = self.table.get(ino) if ino is not None else None
            if inode is not None and self.cached(inode):
                self.lookups_cached += 1
                collect(inode)
                return inode
        self.lookups_asked += 1
        reply = await self.session.call(m.Lookup(parent, name))
        self.table.add_entry(parent, name, reply.attr.ino, granted=reply.attr.cacheable)
        if reply.attr.ino == 0:
            raise VstorError(ErrorCode.NOT_FOUND)
        return self.table.learn(reply.attr)

    async def getattr(self, ino: int) -> Inode:
        """The inode with current attributes. Raises BAD_HANDLE when it is gone."""
        inode = self.table.get(ino)
        if inode is not None and self.cached(inode):
            collect(inode)
            return inode
        reply = await self.session.call(m.GetAttr(ino))
        inode = self.table.learn(reply.attr)
        collect(inode)
        return inode

    async def parent_of(self, ino: int) -> int:
        """The directory above a directory."""
        reply = await self.session.call(m.ReadDir(ino, 0, 1))
        return reply.parent  # type: ignore[no-any-return]

    async def read_dir(self, ino: int, cookie: int, limit: int, *, plus: bool) -> m.DirReply:
        """One page of a directory; with `plus`, attributes are entered as by lookups."""
        reply: m.DirReply = await self.session.call(m.ReadDir(ino, cookie, min(limit, m.DIR_ENTRIES_MAX), plus))
        if plus:
            for entry in reply.entries:
                if entry.attr is not None:
                    self.table.add_entry(ino, entry.name, entry.ino, granted=entry.attr.cacheable)
                    self.table.learn(entry.attr)
        return reply

    async def read_link(self, ino: int) -> bytes:
        reply = await self.session.call(m.ReadLink(ino))
        return reply.data  # type: ignore[no-any-return]

    # --- changing

    async def make(self, request: m.Create) -> Inode:
        """A directory, device, fifo, socket, symlink or unopened file."""
        check_name(request.name)
        if len(request.target) > m.SYMLINK_BYTES_MAX:
            raise VstorError(ErrorCode.NAME_TOO_LONG, f"a symbolic link may have {m.SYMLINK_BYTES_MAX} bytes")
        connection = self.session.connections
        reply, sure = await self._change(request)
        self.table.changed_dir(request.parent, reply.parent)
        self.table.changed_entry(request.parent, request.name, reply.attr.ino, sure=sure)
        inode = self.table.learn(reply.attr)
        # New directories are empty. An answer that was lost and given again may be older than what others have done there since.
        inode.complete = inode.is_dir and inode.lease != NONE and self.session.connections == connection
        return inode

    async def _change(self, request: m.RequestBody) -> tuple[Any, bool]:
        """The reply, and whether it is of the session that is open now. One that outlived its session may be of a change done long ago."""
        session = self.session.sessions
        reply = await self.session.call(request)
        sure = self.session.sessions == session
        if isinstance(reply, m.EntryReply) and not sure:
            reply.attr.cacheable = False
        return reply, sure

    async def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int) -> tuple[Inode, Handle]:
        """Make and open a file; without O_EXCL an existing one is opened."""
        check_name(name)
        return await self.files.create(parent, name, mode, uid, gid, flags)

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        check_name(name)
        reply, sure = await self._change(m.Link(ino, parent, name))
        self.table.changed_dir(parent, reply.parent)
        self.table.changed_entry(parent, name, ino, sure=sure)
        return self.table.learn(reply.attr)

    async def unlink(self, parent: int, name: bytes, *, directory: bool = False) -> None:
        """Remove a name. A file that nobody has open any more is let go, so that the MDS can delete it."""
        check_name(name)
        ino = await self._behind(parent, name)
        inode = self.table.get(ino) if ino else None
        reply, session = None, self.session.sessions
        if not directory and inode is not None:
            reply = await self.files.unlink(inode, m.Unlink(parent, name))
        if reply is None:
            reply = await self.session.call(m.Rmdir(parent, name) if directory else m.Unlink(parent, name))
        self.table.changed_dir(parent, reply.parent)
        self.table.changed_entry(parent, name, 0, sure=self.session.sessions == session)
        self._one_link_less(ino, directory)

    async def _behind(self, parent: int, name: bytes) -> int | None:
        """The inode of a name that is about to go, None when there is none.

        The kernel may know names that this table has forgotten (it moves them along in a rename) and change them without a LOOKUP.
        Attributes of the inode would then stay as they are: the MDS invalidates only other sessions.
        """
        ino = self.table.entry(parent, name)
        if ino is not None:
            return ino or None
        try:
            return (await self.lookup(parent, name)).ino
        except VstorError as exc:
            if exc.code != ErrorCode.NOT_FOUND:
                raise
            return None

    def _one_link_less(self, ino: int | None, directory: bool) -> None:
        inode = self.table.get(ino) if ino else None
        if inode is None:
            return
        self.table.invalidate(inode)
        last = inode.attr is not None and (directory or inode.attr.nlink <= 1)
        if inode.attr is not None:
            inode.attr.nlink = 0 if directory else max(0, inode.attr.nlink - 1)
        if last and inode.opened and not inode.handles:
            self.tasks.spawn(self.files.let_go(inode), f"close-{inode.ino}")
        elif last and not inode.handles:
            self.table.drop(inode)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """flags as in renameat2(2); other than NOREPLACE and EXCHANGE: INVALID."""
        check_name(name)
        check_name(new_name)
        if flags & ~3:
            raise VstorError(ErrorCode.INVALID, f"rename flags {flags:#x} are not known")
        moved, replaced = await self._behind(parent, name), await self._behind(new_parent, new_name)
        reply, sure = await self._change(m.Rename(parent, name, new_parent, new_name, flags))
        self.table.changed_dir(parent, reply.parent)
        if new_parent != parent:
            self.table.changed_dir(new_parent, None)
        self._renamed(parent, name, new_parent, new_name, flags, sure=sure)
        for ino in (moved, replaced):
            inode = self.table.get(ino) if ino else None
            if inode is not None:
                self.table.invalidate(inode)  # ctime
        if moved and moved in self.table.inodes:
            self.table.inodes[moved].known_as = (new_parent, new_name)
        if not flags & 2 and replaced and replaced != moved:
            self._one_link_less(replaced, False)

    def _renamed(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, *, sure: bool) -> None:
        """What the names mean now, by what they mean here at this moment: they have not changed in between, or we would have been told."""
        here, there = self.table.entry(parent, name), self.table.entry(new_parent, new_name)
        if sure and here and here == there:
            return  # two names of one file: nothing happens
        if sure and here and (there or not flags & 2):
            self.table.add_entry(parent, name, there or 0 if flags & 2 else 0)
            self.table.add_entry(new_parent, new_name, here)
        else:
            self.table.drop_entry(parent, name)
            self.table.drop_entry(new_parent, new_name)

    def _touched(self, ino: int) -> None:
        """Times and size of a directory we changed are to be asked for."""
        inode = self.table.get(ino)
        if inode is not None:
            self.table.invalidate(inode)

    async def setattr(self, request: m.SetAttr) -> Inode:
        """Size goes through Files.truncate. Writes of ours are told first: the MDS is to see this change as the later one."""
        inode = self.table.need(request.ino)
        if request.mask & m.SET_SIZE:
            await self.files.truncate(request.ino, request.size, request)
            return inode
        if inode.ours and inode.file is not None:
            await self._tell_writes(inode)
        if request.mask & m.SET_MTIME:
            inode.pending.mtime_ns = 0
        reply = await self.session.call(request)
        return self.table.learn(reply.attr)

    async def _tell_writes(self, inode: Inode) -> None:
        try:
            await self.files.data.commit(inode)
        except VstorError as exc:
            if exc.code not in (ErrorCode.NO_SESSION, ErrorCode.LEASE_LOST):  # what is lost is said by fsync
                raise

    # --- extended attributes, file system

    async def get_xattr(self, ino: int, name: bytes) -> bytes:
        """Raises NO_DATA. Remembered with the attributes: ls and cp ask for the same names of each file."""
        inode = self.table.get(ino)
        if inode is not None and self.cached(inode) and name in inode.xattrs:
            value = inode.xattrs[name]
        else:
            try:
                value = (await self.session.call(m.GetXattr(ino, name))).data
            except VstorError as exc:
                if exc.code != ErrorCode.NO_DATA:
                    raise
                value = None
            self._remember_xattr(ino, name, value)
        if value is None:
            raise VstorError(ErrorCode.NO_DATA)
        return value

    def _remember_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        inode = self.table.get(ino)
        if (
            inode is not None
            and self.cached(inode)
            and len(inode.xattrs) < XATTRS_KEPT_MAX
            and len(value or b"") <= XATTR_KEPT_BYTES_MAX
        ):
            inode.xattrs[name] = value

    async def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """Raises RANGE for a name, TOO_LARGE for a value beyond the bounds."""
        if not name or len(name) > m.XATTR_NAME_BYTES_MAX:
            raise VstorError(ErrorCode.RANGE, f"names of extended attributes have 1 to {m.XATTR_NAME_BYTES_MAX} bytes")
        if len(value) > m.XATTR_VALUE_BYTES_MAX:
            raise VstorError(ErrorCode.NO_SPACE, f"an extended attribute may have {m.XATTR_VALUE_BYTES_MAX} bytes")
        await self.session.call(m.SetXattr(ino, name, value, flags))
        self._touched(ino)

    async def list_xattr(self, ino: int) -> list[bytes]:
        reply = await self.session.call(m.ListXattr(ino))
        return reply.names  # type: ignore[no-any-return]

    async def remove_xattr(self, ino: int, name: bytes) -> None:
        await self.session.call(m.RemoveXattr(ino, name))
        self._touched(ino)

    async def stat_fs(self, ino: int = ROOT_INO) -> m.StatFsReply:
        reply: m.StatFsReply = await self.session.call(m.StatFs(ino))
        return reply
