"""Requests about leases: acquire, release, commit of size, answers to invalidations, administration."""

from __future__ import annotations

import stat

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import files, opens
from vstor.model.leases import RANK, Demand, Kind
from vstor.model.namespace import cached_attr, need_inode
from vstor.model.step import Step
from vstor.proto.messages import (
    CACHE,
    EXCLUSIVE,
    NONE,
    SHARED,
    Commit,
    InvalidateDone,
    LeaseAcquire,
    LeaseRelease,
    LeaseReply,
    Ok,
)


def acquire(s: Step, body: LeaseAcquire) -> LeaseReply:
    """A lease, after conflicting holders have stepped down. Directories and special files know CACHE only."""
    s.need_session()
    inode = need_inode(s, body.ino)
    if body.mode == CACHE:
        s.settle([Demand(body.ino, Kind.TELL)])
    elif body.mode in (SHARED, EXCLUSIVE):
        files.need_file(s, body.ino)
        opens.take_lease(s, body.ino, body.mode)
    else:
        raise VstorError(ErrorCode.INVALID, f"lease mode {body.mode}")
    attr = cached_attr(s, s.tx.peek(body.ino) or inode)
    return LeaseReply(attr, s.core.leases.mode(s.session_id, body.ino))


def commit(s: Step, body: Commit) -> Ok:
    """Size and mtime from the holder of EXCLUSIVE; durable when answered."""
    session_id = s.need_session()
    need_inode(s, body.ino)
    if s.core.leases.mode(session_id, body.ino) != EXCLUSIVE:
        raise VstorError(ErrorCode.LEASE_LOST)
    files.commit_size(s, body.ino, body.size, body.mtime_ns, body.written)
    return Ok()


def release(s: Step, body: LeaseRelease) -> Ok:
    """A session gives back a lease, or answers a recall. Never refused: what it did not hold it cannot give back."""
    session_id = s.need_session()
    if body.mode not in RANK:
        raise VstorError(ErrorCode.INVALID, f"lease mode {body.mode}")
    leases = s.core.leases
    inode = s.tx.peek(body.ino)
    if inode is not None and leases.mode(session_id, body.ino) == EXCLUSIVE:
        if body.size >= 0:
            files.commit_size(s, body.ino, body.size, body.mtime_ns, body.written)
        if body.mode != EXCLUSIVE:
            s.tx.inode(body.ino).writer = 0
            s.core.maps.stop_writing(body.ino)
    leases.lower(session_id, body.ino, body.mode, s.out)
    leases.answer(body.seq, session_id, s.out)
    return Ok()


def invalidate_done(s: Step, body: InvalidateDone) -> Ok:
    """A session has forgotten what an Invalidate named. Entries of a directory other than those named stay cached."""
    session_id = s.need_session()
    asked = s.core.leases.asked.get(body.seq)
    inode = s.state.inodes.get(asked.ino) if asked is not None else None
    s.core.leases.answer(body.seq, session_id, s.out, entries=inode is not None and stat.S_ISDIR(inode.mode))
    return Ok()


def drop_writer(s: Step, session_id: int, ino: int) -> None:
    """A lease that ends without being given back: EXCLUSIVE means the file is fenced before anybody gets it."""
    if s.core.leases.mode(session_id, ino) == EXCLUSIVE or ino in s.state.writers.get(session_id, ()):
        s.core.fences.start(s, ino)
    s.core.leases.lower(session_id, ino, NONE, s.out)
