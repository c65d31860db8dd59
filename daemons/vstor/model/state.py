"""Everything durable, in memory. `apply` is its only writer, on leader and standby, in replay and in tests."""

from __future__ import annotations

from collections.abc import Iterable


class State:
    """The metadata of a cluster, decoded. Empty when made; then `load` once, then `apply` for each commit."""

    def load(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over a snapshot, in any order. Raises VstorError: NEWER_FORMAT, DAMAGED."""
        raise NotImplementedError

    def apply(self, mutations: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Take over the mutations of one or more Outcomes, in commit order. Keys that are not the model's are ignored."""
        raise NotImplementedError
