"""One client of one cluster: session, engine, table and what works on them, put together and taken apart in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from vstor.client.datapath import DataPath
from vstor.client.engine import Engine
from vstor.client.files import FLUSH_S_MAX, Files
from vstor.client.inodes import InodeTable
from vstor.client.kept import EngineKept, Kept
from vstor.client.kernel import KernelCache, NoKernel
from vstor.client.leases import Leases
from vstor.client.locks import Locks
from vstor.client.names import Names
from vstor.client.session import MakeRpc, Session
from vstor.client.tasks import Tasks
from vstor.net.identity import host_id as read_host_id
from vstor.net.identity import hostname, load_identity
from vstor.net.rpc_client import MdsClient
from vstor.proto import messages as m

log = logging.getLogger(__name__)


class Volume:
    """Concurrency: one event loop; made and used in it."""

    def __init__(
        self,
        make_rpc: MakeRpc,
        make_native: Callable[[int], Any],
        *,
        name: str,
        host_id: str,
        host: str,
        make_kernel: Callable[[Engine], KernelCache] | None = None,
        wait_for_space: bool = True,
    ) -> None:
        """make_native(auth_mode): the C engine. make_kernel(engine): what hears of invalid caches; none for the library."""
        self.engine = Engine(make_native)
        kept = EngineKept(self.engine) if make_kernel else Kept()
        self.table, self.tasks = InodeTable(kept), Tasks()
        self.kernel: KernelCache = make_kernel(self.engine) if make_kernel else NoKernel()
        self.session = Session(make_rpc, self, name=name, host_id=host_id, hostname=host)
        self.leases = Leases(self.table, self.session, self.engine, self.kernel, self.tasks)
        if isinstance(kept, EngineKept):
            kept.on_given = self.leases.name_given
        self.data = DataPath(
            self.table, self.session, self.engine, self.leases, self.tasks, wait_for_space=wait_for_space
        )
        self.files = Files(self.table, self.session, self.engine, self.leases, self.data, self.tasks)
        self.names = Names(self.table, self.session, self.leases, self.files, self.tasks)
        self.locks = Locks(self.session, self._posix_locked)
        self.on_posix_lock: Callable[[int], None] | None = None

    async def start(self, deadline_s: float | None = None) -> None:
        """Session open, engine up. Raises VstorError."""
        await self.session.start(deadline_s)
        self.engine.start(self.session.auth_mode, self.session.valid_until_ms)
        self.tasks.spawn(self.files.commit_forever(), "commit")

    async def close(self, flush_s: float = FLUSH_S_MAX, cut_off: Callable[[], None] = lambda: None) -> None:
        """Flush, commit, give everything back, disconnect. Bounded, also when the cluster does not answer.

        flush_s: for what was not synced. cut_off: called when nothing more can be saved, to end what still waits in the kernel.
        """
        await self.files.close_all(flush_s)
        cut_off()
        await self.session.close()
        await self.tasks.close()
        await self.engine.close()
        self.kernel.close()

    # --- Hooks of the session

    def push(self, body: m.PushBody) -> None:
        self.leases.push(body)

    def held(self) -> tuple[list[tuple[int, int]], list[m.LockRange], list[tuple[int, int]]]:
        opens = [(i.ino, i.opened) for i in self.table.inodes.values() if i.opened]
        return self.table.leased(), self.locks.book.all(), opens

    def lost(self) -> None:
        self.leases.lost()
        if self.locks.book.count:
            log.error("locks are lost with the session count=%s", self.locks.book.count)
        self.locks.book.clear()
        for inode in self.table.inodes.values():
            if inode.handles:
                self.tasks.spawn(self._open_again(inode.ino), f"reopen-{inode.ino}")

    async def _open_again(self, ino: int) -> None:
        """Handles go on under the new session: the MDS is to know that the file is open (it must not be deleted)."""
        inode = self.table.need(ino)
        mode = m.EXCLUSIVE if inode.writers else m.SHARED
        await self.files.ensure_open(inode, mode, False)

    def valid_until(self, boottime_ms: int) -> None:
        if self.engine.native is not None:
            self.engine.native.set_lease_until(boottime_ms)

    def expired(self) -> None:
        self.leases.drop_everything()

    def _posix_locked(self, ino: int) -> None:
        if self.on_posix_lock is not None:
            self.on_posix_lock(ino)

    def describe(self) -> list[str]:
        """What is going on, for people who look for a hang: one line each."""
        out = [
            f"session={self.session.id} remaining_ms={self.session.remaining_ms()} counters={self.engine.native.counters()}"
        ]
        for inode in self.table.inodes.values():
            if (
                inode.recalling
                or inode.negotiating
                or inode.acquire_lock.locked()
                or inode.recall_lock.locked()
                or inode.handles
            ):
                out.append(
                    f"ino={inode.ino} lease={inode.lease} opened={inode.opened} handles={len(inode.handles)} writers={inode.writers}"
                    f" recalling={inode.recalling} negotiating={inode.negotiating} acquiring={inode.acquire_lock.locked()}"
                    f" releasing={inode.recall_lock.locked()} committing={inode.commit_lock.locked()} pages={inode.pages}"
                    f" size={inode.file.size if inode.file is not None else None}"
                )
        return out + [f"task={task.get_name()} at={_where(task)}" for task in asyncio.all_tasks()]


def _where(task: asyncio.Task[Any]) -> str:
    """Innermost line of a waiting task, through the chain of coroutines."""
    coro: Any = task.get_coro()
    place = "?"
    while coro is not None:
        frame = getattr(coro, "cr_frame", None)
        if frame is not None:
            place = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        coro = getattr(coro, "cr_await", None)
    return place


def connect_to(cluster: str, bootstrap: list[str] | None = None) -> MakeRpc:
    """RPC client of this node's identity. Raises DENIED when the node is not authenticated."""
    identity = load_identity(cluster)

    def make(on_push: Any, on_connect: Any) -> Any:
        return MdsClient(identity, "client", on_push=on_push, on_connect=on_connect, bootstrap=bootstrap)

    return make


def open_volume(
    cluster: str,
    name: str,
    *,
    make_kernel: Callable[[Engine], KernelCache] | None = None,
    bootstrap: list[str] | None = None,
    wait_for_space: bool = True,
) -> Volume:
    """A volume on the real engine and the real network, not started yet. Raises VstorError."""
    from vstor.native import cl  # the C module: only where the real engine is wanted

    return Volume(
        connect_to(cluster, bootstrap),
        lambda auth_mode: cl.Client(auth_mode=auth_mode, no_space_fails=not wait_for_space),
        name=name,
        host_id=read_host_id(),
        host=hostname(),
        make_kernel=make_kernel,
        wait_for_space=wait_for_space,
    )
