#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_service
short_description: Start, stop, restart and enable the vstor services of this host
version_added: 0.1.0
description:
  - Handles the services that make-mds, make-cs and M(vstor.storage.vstor_mount) registered on this host, under systemd or, where
    PID 1 is not systemd, under supervisord. vstorctl knows the difference.
options:
  kind:
    description: Which services. V(mds) includes the etcd member beside it.
    type: str
    choices: [mds, cs, mount, all]
    required: true
  state:
    description: Wanted state. V(restarted) always restarts what runs and starts the rest.
    type: str
    choices: [started, stopped, restarted]
    default: started
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Chunk servers run, now and after a reboot
  vstor.storage.vstor_service:
    cluster: vstor
    kind: cs
    state: started
"""

RETURN = r"""
services:
  description: The services of this host afterwards, as vstorctl list-services shows them.
  type: list
  elements: dict
  returned: always
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, is_running, make_module

KINDS = {"mds": ("etcd", "mds"), "cs": ("cs",), "mount": ("mount",), "all": ("etcd", "mds", "cs", "mount")}


def states(services):
    return {"%s-%s" % (item.get("kind"), item.get("id")): item.get("state") for item in services}


def main():
    module = make_module(
        {
            "kind": {"type": "str", "choices": ["mds", "cs", "mount", "all"], "required": True},
            "state": {"type": "str", "choices": ["started", "stopped", "restarted"], "default": "started"},
        }
    )
    params = module.params
    ctl = VstorCtl(module)

    def mine():
        return [item for item in ctl.services() if item.get("kind") in KINDS[params["kind"]]]

    services = mine()
    before = states(services)
    running = [item for item in services if is_running(item)]
    if params["state"] == "stopped":
        pending = bool(running)
        goal = dict.fromkeys(before, "stopped")
    elif params["state"] == "started":
        pending = len(running) != len(services)
        goal = dict.fromkeys(before, "running")
    else:
        pending = bool(services)
        goal = dict.fromkeys(before, "restarted")
    if not pending:
        finish(module, False, before, before, services=services)
    if module.check_mode:
        finish(module, True, before, goal, services=services)
    if params["state"] in ("stopped", "restarted"):
        ctl.call("service", "stop", params["kind"])
    if params["state"] in ("started", "restarted"):
        ctl.call("service", "start", params["kind"])
    services = mine()
    finish(module, True, before, states(services), services=services)


if __name__ == "__main__":
    main()
