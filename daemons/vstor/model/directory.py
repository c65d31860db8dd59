"""The entries of one directory, with pages in cookie order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from vstor.model.records import Dentry

FIRST_COOKIE = 16  # below: free for "." and ".." of the client


class Directory:
    """Entries by name, and, once somebody pages through it, by cookie.

    The cookie list is built at the first page and then kept up: cookies only grow, so a new entry goes to the end; entries removed
    stay in the list until they are half of it, and are skipped when read. So a page of a directory of any size is O(log n + page).
    """

    __slots__ = ("_cookies", "_names", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, Dentry] = {}
        self._cookies: list[int] | None = None  # ascending; parallel to _names
        self._names: list[bytes] = []

    def put(self, name: bytes, entry: Dentry) -> None:
        """Add or replace an entry."""
        self.entries[name] = entry
        if self._cookies is None:
            return
        if self._cookies and entry.cookie <= self._cookies[-1]:
            self._cookies = None  # a replay out of order: build again when needed
            return
        self._cookies.append(entry.cookie)
        self._names.append(name)

    def remove(self, name: bytes) -> None:
        """Remove an entry if it is there."""
        if self.entries.pop(name, None) is None or self._cookies is None:
            return
        if len(self._cookies) > 64 and len(self.entries) * 2 < len(self._cookies):
            self._cookies = None

    def after(self, cookie: int) -> Iterator[tuple[bytes, Dentry]]:
        """Entries with a larger cookie, in cookie order."""
        if self._cookies is None:
            order = sorted((entry.cookie, name) for name, entry in self.entries.items())
            self._cookies = [pair[0] for pair in order]
            self._names = [pair[1] for pair in order]
        for position in range(bisect_right(self._cookies, cookie), len(self._cookies)):
            name = self._names[position]
            entry = self.entries.get(name)
            if entry is not None and entry.cookie == self._cookies[position]:
                yield name, entry


EMPTY = Directory()
