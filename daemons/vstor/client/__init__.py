"""The client: FUSE mount (main.py) and Python library (library.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstor.client.library import Client, File

__all__ = ["Client", "File"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: the mount program does not need the library."""
    if name in __all__:
        from vstor.client import library

        return getattr(library, name)
    raise AttributeError(name)
