#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_health
short_description: Wait until a vstor cluster is well enough for the next host
version_added: 0.2.0
description:
  - The gate between hosts of a rolling change. It waits for quorum and chunk states, and fails with the reasons when they do not come in time.
  - All MDSs must be available, led and caught up; no chunk offline, blocked, pending or urgent; none degraded or standby unless a chunk server is away on
    purpose; no chunk server failed, inactive, offline or ill; and the other hosts able to take the data of the largest one.
  - Scrubbing and balancing are no reasons to wait. In check mode it looks once, waits for nothing and fails for nothing.
options:
  timeout:
    description: Seconds to wait.
    type: int
    default: 600
  stall_timeout:
    description: Seconds without any progress after which waiting is given up, at most O(timeout).
    type: int
    default: 300
  interval:
    description: Seconds between two looks.
    type: float
    default: 2
  maintenance:
    description: Ids of chunk servers that are away on purpose.
    type: list
    elements: int
    default: []
  mds_expected:
    description: How many MDSs there should be. V(0) takes those that the cluster knows.
    type: int
    default: 0
  mds_lag_max:
    description: Revisions that a standby MDS may be behind.
    type: int
    default: 1000
  free_percent_min:
    description: Part of the space, in percent, that must be free after the data of the largest host have been taken over by the others.
    type: int
    default: 5
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Nothing is restarted before the last one is back
  vstor.storage.vstor_health:
    cluster: vstor
    timeout: 1800
"""

RETURN = r"""
reasons:
  description: What speaks against going on, empty when nothing does.
  type: list
  elements: str
  returned: always
waited_s:
  description: Seconds that it took.
  type: float
  returned: always
"""

import time

from ansible_collections.vstor.storage.plugins.module_utils import health
from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, make_module


def wait(ctl, params, clock=time.monotonic, sleep=time.sleep):
    """(reasons, seconds waited, what stopped the wait)."""
    start = moved = clock()
    last = None
    while True:
        status = ctl.status()
        found = health.reasons(
            status,
            params["maintenance"],
            params["mds_expected"],
            params["mds_lag_max"],
            params["free_percent_min"],
        )
        now = clock()
        if not found:
            return [], now - start, ""
        if health.progress(status) != last:
            last, moved = health.progress(status), now
        if now - start >= params["timeout"]:
            return found, now - start, "after %d s" % params["timeout"]
        if now - moved >= params["stall_timeout"]:
            return found, now - start, "without progress for %d s" % params["stall_timeout"]
        sleep(params["interval"])


def main():
    module = make_module(
        {
            "timeout": {"type": "int", "default": 600},
            "stall_timeout": {"type": "int", "default": 300},
            "interval": {"type": "float", "default": 2},
            "maintenance": {"type": "list", "elements": "int", "default": []},
            "mds_expected": {"type": "int", "default": 0},
            "mds_lag_max": {"type": "int", "default": 1000},
            "free_percent_min": {"type": "int", "default": 5},
        }
    )
    ctl = VstorCtl(module)
    params = dict(module.params, timeout=0) if module.check_mode else module.params
    found, waited_s, stopped = wait(ctl, params)
    if found and not module.check_mode:
        module.fail_json(
            msg="cluster %s is not well enough to go on, %s: %s. Nothing more was touched; mend it and run again"
            % (ctl.cluster, stopped, "; ".join(found)),
            reasons=found,
            waited_s=waited_s,
        )
    module.exit_json(changed=False, reasons=found, waited_s=waited_s)


if __name__ == "__main__":
    main()
