"""The registry of MDSs: records of the shell in the store, beside the model's. Pure.

Keys: `m` + u32 big-endian id (the model ignores this kind). Ids are never used again: removed members stay as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.meta.store import Mutation

KIND = b"m"
IDS_MAX = 1024  # below the ids of chunk servers
MEMBERS_MAX = 7  # etcd's own bound of sense


@dataclass(frozen=True, slots=True)
class MdsRecord:
    """One MDS. etcd_name: of its etcd member, "" when it runs none."""

    mds_id: int
    address: str  # MDS-to-MDS, ip:port
    host_id: str
    hostname: str
    etcd_name: str
    etcd_urls: list[str]
    removed: bool = False


def key_of(mds_id: int) -> bytes:
    """Key of the record."""
    return KIND + mds_id.to_bytes(4, "big")


def encode(record: MdsRecord) -> Mutation:
    """The mutation that stores it."""
    return key_of(record.mds_id), json.dumps({"schema": 1, **asdict(record)}).encode()


class Members:
    """All records, kept up by `apply` like the State."""

    def __init__(self) -> None:
        self.records: dict[int, MdsRecord] = {}

    def apply(self, mutations: Iterable[Mutation]) -> bool:
        """Take over what concerns the registry; whether anything did. Raises DAMAGED, NEWER_FORMAT."""
        changed = False
        for key, data in mutations:
            if not key.startswith(KIND):
                continue
            changed = True
            if data is None:
                self.records.pop(int.from_bytes(key[1:], "big"), None)
                continue
            try:
                item = json.loads(data)
                schema = item.pop("schema")
                if schema > 1:
                    raise VstorError(
                        ErrorCode.NEWER_FORMAT, f"MDS record of schema {schema}; install the newer version"
                    )
                record = MdsRecord(**item)
            except (ValueError, KeyError, TypeError) as exc:
                raise VstorError(ErrorCode.DAMAGED, f"MDS record {key!r} in etcd is damaged") from exc
            self.records[record.mds_id] = record
        return changed

    def active(self) -> list[MdsRecord]:
        """Members that were not removed, by id."""
        return [r for _, r in sorted(self.records.items()) if not r.removed]

    def etcd_urls(self) -> list[str]:
        """Client endpoints of all etcd members."""
        return list(dict.fromkeys(url for r in self.active() for url in r.etcd_urls))

    def new_id(self) -> int:
        """The next id. Raises LIMIT."""
        mds_id = max(self.records, default=0) + 1
        if mds_id > IDS_MAX:
            raise VstorError(ErrorCode.LIMIT, f"no more than {IDS_MAX} MDSs can ever be made in one cluster")
        return mds_id

    def by_address(self, address: str) -> MdsRecord | None:
        """The active member with this address."""
        return next((r for r in self.active() if r.address == address), None)

    def removed(self, mds_id: int) -> Mutation:
        """The mutation that marks it removed. Raises NOT_MDS."""
        record = self.records.get(mds_id)
        if record is None or record.removed:
            raise VstorError(ErrorCode.NOT_MDS, f"no MDS with id {mds_id}")
        return encode(replace(record, removed=True))
