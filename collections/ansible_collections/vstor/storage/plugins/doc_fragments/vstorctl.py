# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations


class ModuleDocFragment:
    """Options that all modules share."""

    DOCUMENTATION = r"""
options:
  cluster:
    description: Name of the cluster. Letters, digits, dash and underscore.
    type: str
    required: true
  executable:
    description:
      - Name or path of the tool.
      - Where it is missing, check mode reports what would be done on a host that has nothing yet.
    type: str
    default: vstorctl
attributes:
  check_mode:
    description: Reads the present state, says what would change, and writes nothing.
    support: full
  diff_mode:
    description: Returns the state before and after.
    support: full
"""
