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
  id:
    description: Only the one with this id, as vstorctl list-services shows it.
    type: str
  state:
    description:
      - Wanted state. V(restarted) always restarts what runs and starts the rest.
      - V(absent) stops them and takes them out of the list of this host; their data stay.
    type: str
    choices: [started, stopped, restarted, absent]
    default: started
  enabled:
    description: Whether they start at boot. Left out, that is left alone.
    type: bool
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
    enabled: true
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


def describe(services):
    """State of each service, for comparison and diff."""
    return {
        "%s-%s" % (item.get("kind"), item.get("id")): "%s, %s"
        % (item.get("state"), "enabled" if item.get("enabled") else "disabled")
        for item in services
    }


def plan(services, state, enabled):
    """Verbs of vstorctl service that are needed."""
    if state == "absent":
        return ["forget"] if services else []
    verbs = []
    if enabled is not None and any(bool(item.get("enabled")) != enabled for item in services):
        verbs.append("enable" if enabled else "disable")
    running = [item for item in services if is_running(item)]
    if state == "restarted" and services:
        verbs.append("restart")
    elif state == "started" and len(running) != len(services):
        verbs.append("start")
    elif state == "stopped" and running:
        verbs.append("stop")
    return verbs


def goal(services, state, enabled):
    """The services as they will be."""
    if state == "absent":
        return []
    word = "stopped" if state == "stopped" else "running"
    return [dict(item, state=word, enabled=item.get("enabled") if enabled is None else enabled) for item in services]


def main():
    module = make_module(
        {
            "kind": {"type": "str", "choices": ["mds", "cs", "mount", "all"], "required": True},
            "state": {"type": "str", "choices": ["started", "stopped", "restarted", "absent"], "default": "started"},
            "enabled": {"type": "bool"},
            "id": {"type": "str"},
        }
    )
    params = module.params
    # A host without the program has no services: nothing needs to be stopped there.
    ctl = VstorCtl(module, required=params["state"] not in ("stopped", "absent"))

    def mine():
        return [
            item
            for item in ctl.services()
            if item.get("kind") in KINDS[params["kind"]] and params["id"] in (None, str(item.get("id")))
        ]

    services = mine()
    words = [params["kind"]] if params["id"] is None else [item["name"] for item in services]
    before = describe(services)
    verbs = plan(services, params["state"], params["enabled"])
    if not module.check_mode:
        for verb in verbs:
            ctl.call("service", verb, *words)
        if verbs:
            services = mine()
    after = goal(services, params["state"], params["enabled"]) if module.check_mode else services
    finish(module, bool(verbs), before, describe(after), services=services)


if __name__ == "__main__":
    main()
