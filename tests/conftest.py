"""Shared by all rings. The rings: unit (no daemons), component (one daemon with its real neighbour), cluster (everything real)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for entry in (ROOT / "daemons", ROOT):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))
