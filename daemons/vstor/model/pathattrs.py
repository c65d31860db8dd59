"""Attributes of paths: replicas, failure domain, tier, chunk size, client SSD cache. New files inherit them from the directory."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.model import paths
from vstor.model.config import parse_replicas
from vstor.model.records import DOMAINS, Inode, Policy, unpack_policy
from vstor.model.step import Step
from vstor.proto.wire_gen import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN

CHANGES_PER_STEP = 1000  # inodes one commit changes


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise VstorError(ErrorCode.INVALID, f"{name}={value}: want one of {', '.join(allowed)}")
    return allowed.index(value)


def _set(policy: Policy, name: str, value: str) -> Policy:
    if name == "replicas":
        normal, minimum = parse_replicas(value)
        return policy._replace(normal=normal, minimum=minimum)
    if name == "failure-domain":
        return policy._replace(domain=_choice(name, value, DOMAINS))
    if name == "tier":
        return policy._replace(tier=_choice(name, value, ("0", "1", "2", "3")))
    if name == "client-ssd-cache":
        return policy._replace(ssd_cache=_choice(name, value, ("0", "1")))
    if name == "chunk-size":
        size = int(value) if value.isdecimal() else 0
        if size & (size - 1) or not CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX:
            raise VstorError(
                ErrorCode.INVALID,
                f"chunk-size={value}: want a power of two, {CHUNK_BYTES_MIN}..{CHUNK_BYTES_MAX} bytes",
            )
        return policy._replace(chunk_shift=size.bit_length() - 1)
    raise VstorError(
        ErrorCode.INVALID,
        f"no attribute {name}; there are replicas, failure-domain, tier, chunk-size, client-ssd-cache",
    )


def show(inode: Inode) -> dict[str, str]:
    """Attributes as get-attr prints them."""
    policy = unpack_policy(inode.policy)
    return {
        "type": "directory" if stat.S_ISDIR(inode.mode) else "file",
        "client-ssd-cache": str(policy.ssd_cache),
        "replicas": f"{policy.normal}:{policy.minimum}",
        "failure-domain": DOMAINS[policy.domain],
        "tier": str(policy.tier),
        "chunk-size": str(policy.chunk_bytes),
    }


def change(s: Step, path: str, recursive: bool, attributes: dict[str, str]) -> bool:
    """Set attributes. False: a bounded part of a large tree is done, call again after the commit.

    The size of chunks of a file that has any cannot change: asked for such a file it is refused, in a recursive change it stays.
    """
    top = paths.resolve(s.state, path)
    if not attributes:
        raise VstorError(ErrorCode.INVALID, "no attributes given")
    if (
        not recursive
        and _changed(s, top, attributes).chunk_shift != unpack_policy(top.policy).chunk_shift
        and _has_chunks(s, top)
    ):
        raise VstorError(ErrorCode.INVALID, "chunk-size of a file with data cannot be changed")
    for changed, (inode, policy) in enumerate(_targets(s, top, recursive, attributes)):
        if changed == CHANGES_PER_STEP:
            return False
        s.tx.inode(inode.ino).policy = policy.pack()
    return True


def _has_chunks(s: Step, inode: Inode) -> bool:
    return bool(s.state.extents.get(inode.ino)) or (
        stat.S_ISREG(inode.mode) and inode.ino in s.core.leases.holders and inode.size > 0
    )


def _changed(s: Step, inode: Inode, attributes: dict[str, str]) -> Policy:
    policy = unpack_policy(inode.policy)
    for name, value in attributes.items():
        policy = _set(policy, name, value)
    return policy


def _targets(s: Step, top: Inode, recursive: bool, attributes: dict[str, str]) -> Iterator[tuple[Inode, Policy]]:
    for inode in paths.below(s.state, top) if recursive else [top]:
        policy = _changed(s, inode, attributes)
        if _has_chunks(s, inode):
            policy = policy._replace(chunk_shift=unpack_policy(inode.policy).chunk_shift)
        if policy.pack() != inode.policy:
            yield inode, policy
