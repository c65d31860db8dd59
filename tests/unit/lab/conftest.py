"""The lab is a program beside its scenarios, no package of the product."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "molecule" / "lab"))
