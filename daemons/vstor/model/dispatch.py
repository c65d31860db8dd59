"""Which function does which request, who may ask, and which outcomes are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vstor.model import admin, attributes, csops, leaseops, locks, maps, namespace, opens, removal, sessions, status
from vstor.proto import messages as m

HANDLERS: dict[type, Callable[..., Any]] = {
    m.SessionOpen: sessions.session_open,
    m.SessionRenew: sessions.session_renew,
    m.SessionResume: sessions.session_resume,
    m.SessionClose: sessions.session_close,
    m.Lookup: namespace.lookup,
    m.Create: namespace.create,
    m.Link: namespace.link,
    m.Unlink: namespace.unlink,
    m.Rmdir: namespace.rmdir,
    m.Rename: namespace.rename,
    m.GetAttr: attributes.get_attr,
    m.SetAttr: attributes.set_attr,
    m.ReadDir: attributes.read_dir,
    m.ReadLink: attributes.read_link,
    m.GetXattr: attributes.get_xattr,
    m.SetXattr: attributes.set_xattr,
    m.ListXattr: attributes.list_xattr,
    m.RemoveXattr: attributes.remove_xattr,
    m.StatFs: status.stat_fs,
    m.Open: opens.handle_open,
    m.Close: opens.handle_close,
    m.LeaseAcquire: leaseops.acquire,
    m.LeaseRelease: leaseops.release,
    m.Commit: leaseops.commit,
    m.InvalidateDone: leaseops.invalidate_done,
    m.GetMap: maps.get_map,
    m.ReplicaFailed: maps.handle_replica_failed,
    m.BadBlock: maps.bad_block,
    m.GetCsAccess: maps.get_cs_access,
    m.LockGet: locks.get,
    m.LockSet: locks.set_lock,
    m.LockCancel: locks.cancel,
    m.CsCreate: csops.create,
    m.CsRegister: csops.register,
    m.CsHeartbeat: csops.heartbeat,
    m.CsInventory: csops.inventory,
    m.CsReport: csops.report,
    m.CsOrderDone: csops.order_done,
    m.GetStatus: status.get_status,
    m.GetEvents: admin.get_events,
    m.GetConfig: admin.get_config,
    m.SetConfig: admin.set_config,
    m.GetPathAttr: admin.get_path_attr,
    m.SetPathAttr: admin.set_path_attr,
    m.FileInfo: admin.file_info,
    m.RemoveCs: removal.remove_cs,
    m.CsMaintenance: removal.maintenance,
    m.GetLeases: admin.get_leases,
    m.RevokeLeases: admin.revoke_leases,
    m.ListChunks: admin.list_chunks,
    m.BackupDone: admin.backup_done,
    m.RestoreFinish: admin.restore_finish,
}

_CS = ("cs",)
_CTL = ("ctl",)
ROLES: dict[type, tuple[str, ...]] = {
    m.CsCreate: ("cs", "ctl"),
    m.CsRegister: _CS,
    m.CsHeartbeat: _CS,
    m.CsInventory: _CS,
    m.CsReport: _CS,
    m.CsOrderDone: _CS,
    m.BackupDone: _CTL,
    m.RestoreFinish: _CTL,
}

# Changes: the outcome is kept in the session record, in the same commit, until the client acknowledges it.
PERSIST = frozenset({
    m.SetAttr, m.Create, m.Link, m.Unlink, m.Rmdir, m.Rename, m.SetXattr, m.RemoveXattr, m.Commit, m.LeaseRelease, m.Open,
})  # fmt: skip
# Of these also the outcomes under a former session count.
NAMES = frozenset({m.Create, m.Link, m.Unlink, m.Rmdir, m.Rename, m.SetXattr, m.RemoveXattr})
# Counts in the leader's memory: a repeated request must not count twice.
MEMO = frozenset({m.Open, m.Close, m.Create})

# What goes on while sessions of the time before this leader have not come back: nothing that grants or changes what they may hold.
GRACE_FREE = frozenset({
    m.SessionOpen, m.SessionRenew, m.SessionResume, m.SessionClose, m.InvalidateDone, m.Commit, m.LeaseRelease, m.GetMap,
    m.ReplicaFailed, m.BadBlock, m.GetCsAccess, m.LockGet, m.LockCancel, m.StatFs, m.CsCreate, m.CsRegister, m.CsHeartbeat,
    m.CsInventory, m.CsReport, m.CsOrderDone, m.GetStatus, m.GetEvents, m.GetConfig, m.SetConfig, m.GetPathAttr, m.FileInfo,
    m.RemoveCs, m.CsMaintenance, m.GetLeases, m.ListChunks, m.BackupDone, m.RestoreFinish,
})  # fmt: skip
