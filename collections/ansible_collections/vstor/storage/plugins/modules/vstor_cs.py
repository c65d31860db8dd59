#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_cs
short_description: Add a chunk server to a vstor cluster or remove one
version_added: 0.1.0
description:
  - Makes a chunk server in a directory of this host, which must be authenticated (M(vstor.storage.vstor_auth)).
  - A directory with foreign data or with the chunk server of another cluster is refused; nothing in it is touched.
  - Removes one by its id, after its data has been replicated elsewhere. The cluster refuses when data would be lost.
options:
  state:
    description: Whether the chunk server is part of the cluster.
    type: str
    choices: [present, absent]
    default: present
  repository:
    description: Directory of the chunk server, on its own disk in production. Needed with O(state=present).
    type: path
  address:
    description: Address to listen on, C(IP) or C(IP:PORT). Left out, the address towards the MDS and a free port.
    type: str
  tier:
    description: Tier of the disk, 0 to 3.
    type: int
    choices: [0, 1, 2, 3]
    default: 0
  journal:
    description: Directory of the write journal, on a faster disk. Left out, the journal is in the repository. Looked at when the chunk server is made.
    type: path
  journal_mb:
    description: Size of the journal in MiB, at least 64.
    type: int
  id:
    description: Id of the chunk server to remove. Needed with O(state=absent).
    type: int
  wait:
    description: With O(state=absent), return only when the data has been moved.
    type: bool
    default: true
  stall_timeout:
    description: With O(wait), seconds without a replica moved after which the module fails. The chunk server stays in the state releasing.
    type: int
    default: 900
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Chunk server on the second disk
  vstor.storage.vstor_cs:
    cluster: vstor
    repository: /vstor/disk2
    tier: 1

- name: Empty and remove a chunk server
  vstor.storage.vstor_cs:
    cluster: vstor
    state: absent
    id: 1026
"""

RETURN = r"""
cs:
  description: The chunk server, as vstorctl list-services shows it.
  type: dict
  returned: with O(state=present), when it exists
plan:
  description: What would be moved and lost, as vstorctl rm-cs --dry-run says.
  type: dict
  returned: with O(state=absent) in check mode
"""

import time

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module

CANCELLED = 8  # what vstorctl rm-cs --wait exits with then


def remove(module, ctl):
    """Ends the module."""
    cs_id = module.params["id"]
    status = ctl.status()
    if status is None and not module.check_mode:
        module.fail_json(msg="cluster %s does not answer: nothing was removed" % ctl.cluster)
    known = [item["id"] for item in status["cs"] if item.get("state") != "dropped"] if status else []
    if cs_id not in known:
        finish(module, False, {"cs": known}, {"cs": known})
    after = {"cs": [item for item in known if item != cs_id]}
    if module.check_mode:
        finish(module, True, {"cs": known}, after, plan=ctl.call("rm-cs", "--dry-run", str(cs_id)))
    answer = ctl.call("rm-cs", str(cs_id))
    if module.params["wait"]:
        wait_until_dropped(module, ctl, answer)
    finish(module, True, {"cs": known}, after)


def wait_until_dropped(module, ctl, answer, clock=time.monotonic, sleep=time.sleep):
    """Look until it is dropped. Fails when somebody cancelled the release, and when nothing moves any more (or no MDS answers) for long."""
    cs_id, state, left, moved = module.params["id"], answer.get("state"), answer.get("replicas_left"), clock()
    while state == "releasing":
        if clock() - moved >= module.params["stall_timeout"]:
            module.fail_json(
                msg="CS#%d is %s, and none of its %s replicas was moved for %d s: see that other chunk servers in enough failure domains have room "
                "(vstorctl status), then run again; vstorctl rm-cs --cancel %d keeps it"
                % (cs_id, state, left, module.params["stall_timeout"], cs_id)
            )
        sleep(1)
        # Only the status is read: a second rm-cs would start anew what somebody has cancelled meanwhile.
        seen = [item for item in (ctl.status() or {}).get("cs", []) if item["id"] == cs_id]
        if seen:
            state = seen[0]["admin"]
            if seen[0]["replicas"] != left:
                left, moved = seen[0]["replicas"], clock()
    if state != "dropped":
        module.fail_json(
            msg="the release of CS#%d was cancelled by somebody: it is %s and keeps its %s replicas; vstorctl get-event tells more, run again to remove it"
            % (cs_id, state, left),
            rc=CANCELLED,
        )


def main():
    module = make_module(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "repository": {"type": "path"},
            "address": {"type": "str"},
            "tier": {"type": "int", "choices": [0, 1, 2, 3], "default": 0},
            "journal": {"type": "path"},
            "journal_mb": {"type": "int"},
            "id": {"type": "int"},
            "wait": {"type": "bool", "default": True},
            "stall_timeout": {"type": "int", "default": 900},
        },
        required_if=[("state", "present", ("repository",)), ("state", "absent", ("id",))],
    )
    params = module.params
    ctl = VstorCtl(module)
    if params["state"] == "absent":
        remove(module, ctl)
    wanted = {"repository": params["repository"], "tier": params["tier"]}
    cs = ctl.service_at("cs", params["repository"])
    if cs:
        finish(module, False, wanted, wanted, cs=cs)
    if not module.check_mode:
        argv = ["make-cs", "-r", params["repository"], "-t", str(params["tier"])]
        if params["address"]:
            argv += ["-a", params["address"]]
        if params["journal"]:
            argv += ["-j", params["journal"]]
        if params["journal_mb"]:
            argv += ["-s", str(params["journal_mb"])]
        ctl.call(*argv)
        cs = ctl.service_at("cs", params["repository"])
    finish(module, True, {}, wanted, cs=cs)


if __name__ == "__main__":
    main()
