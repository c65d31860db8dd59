#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_info
short_description: Read the state of a vstor cluster and of this host's part in it
version_added: 0.1.0
description:
  - Returns the status of the cluster and the services of this host. Changes nothing, and does not fail when there is no cluster.
options:
  query_status:
    description: Ask the MDSs for the status. Without, only what is on this host is read, which takes no time when the cluster is down.
    type: bool
    default: true
  controller_time_s:
    description: Time of the controller in seconds since 1970, taken just before the task. Given, the clocks are compared.
    type: float
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: State of the cluster
  vstor.storage.vstor_info:
    cluster: vstor
  register: info
  until: info.status is not none and info.status.cluster.state == "healthy"
  retries: 30
  delay: 2
"""

RETURN = r"""
installed:
  description: vstorctl is installed on this host.
  type: bool
  returned: always
authenticated:
  description: This host holds a certificate of the cluster.
  type: bool
  returned: always
cluster_id:
  description: Id of the cluster that this host belongs to, empty when it does not.
  type: str
  returned: always
status:
  description: What vstorctl status prints, none when there is no cluster, no MDS answers, or O(query_status=false).
  type: dict
  returned: always
clock_ahead_s:
  description: Seconds that this host's clock is ahead of the controller's, with the time the task took to get here.
  type: float
  returned: with O(controller_time_s)
services:
  description: Services of the cluster on this host.
  type: list
  elements: dict
  returned: always
"""

import time

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, make_module


def main():
    module = make_module(
        {"query_status": {"type": "bool", "default": True}, "controller_time_s": {"type": "float"}},
    )
    clock = {}
    if module.params["controller_time_s"] is not None:
        clock["clock_ahead_s"] = time.time() - module.params["controller_time_s"]
    ctl = VstorCtl(module, required=False)
    module.exit_json(
        changed=False,
        installed=ctl.available,
        authenticated=ctl.authenticated(),
        cluster_id=ctl.cluster_id(),
        status=ctl.status() if module.params["query_status"] else None,
        services=ctl.services(),
        **clock,
    )


if __name__ == "__main__":
    main()
