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
  - Removes one or several by their ids, after their data has been replicated elsewhere. The cluster refuses when data would be lost, or when the
    others are too few hosts (or whatever the failure domain of the files is) for the replicas; then none is removed.
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
    description: Ids of the chunk servers to remove. Needed with O(state=absent).
    type: list
    elements: int
  wait:
    description: With O(state=absent), return only when the data has been moved.
    type: bool
    default: true
  stall_timeout:
    description: With O(wait), seconds without a replica moved after which the module fails. The chunk servers stay in the state releasing.
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

- name: Empty and remove the chunk servers of a host
  vstor.storage.vstor_cs:
    cluster: vstor
    state: absent
    id: [1026, 1027]
"""

RETURN = r"""
cs:
  description: The chunk server, as vstorctl list-services shows it.
  type: dict
  returned: with O(state=present), when it exists
plan:
  description: What would be moved and lost, as vstorctl rm-cs --dry-run says of each.
  type: list
  elements: dict
  returned: with O(state=absent) in check mode
"""

import time

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module

CANCELLED = 8  # what vstorctl rm-cs --wait exits with then


def remove(module, ctl):
    """Ends the module."""
    status = ctl.status()
    if status is None and not module.check_mode:
        module.fail_json(msg="cluster %s does not answer: nothing was removed" % ctl.cluster)
    known = [item["id"] for item in status["cs"] if item.get("state") != "dropped"] if status else []
    gone = [item for item in known if item in module.params["id"]]
    if not gone:
        finish(module, False, {"cs": known}, {"cs": known})
    after = {"cs": [item for item in known if item not in gone]}
    words = [str(item) for item in gone]
    if module.check_mode:
        finish(module, True, {"cs": known}, after, plan=answers(ctl.call("rm-cs", "--dry-run", *words)))
    said = answers(ctl.call("rm-cs", *words))
    if module.params["wait"]:
        states = [(one.get("state"), one.get("replicas_left")) for one in said]
        wait_until_dropped(module, ctl, {item: states[number] for number, item in enumerate(gone)})
    finish(module, True, {"cs": known}, after)


def answers(data):
    """What rm-cs says: an object for one chunk server, a list of them for several."""
    return data if isinstance(data, list) else [data]


def wait_until_dropped(module, ctl, watched, clock=time.monotonic, sleep=time.sleep):
    """Look until all are dropped. Fails when somebody cancelled a release, and when nothing moves any more (or no MDS answers) for long.

    watched: id -> (state, replicas left).
    """
    moved = clock()
    while True:
        for cs_id, (state, left) in watched.items():
            if state not in ("releasing", "dropped"):
                module.fail_json(
                    msg="the release of CS#%d was cancelled by somebody: it is %s and keeps its %s replicas; vstorctl get-event tells more, "
                    "run again to remove it" % (cs_id, state, left),
                    rc=CANCELLED,
                )
        waiting = [cs_id for cs_id in watched if watched[cs_id][0] == "releasing"]
        if not waiting:
            return
        if clock() - moved >= module.params["stall_timeout"]:
            names = ", ".join("CS#%d" % cs_id for cs_id in waiting)
            module.fail_json(
                msg="%s: releasing, and none of the %s replicas was moved for %d s: see that other chunk servers in enough failure domains have room "
                "(vstorctl status), then run again; vstorctl rm-cs --cancel %s keeps it"
                % (
                    names,
                    sum(watched[n][1] or 0 for n in waiting),
                    module.params["stall_timeout"],
                    " ".join(map(str, waiting)),
                )
            )
        sleep(1)
        # Only the status is read: a second rm-cs would start anew what somebody has cancelled meanwhile.
        seen = {
            item["id"]: (item["admin"], item["replicas"])
            for item in (ctl.status() or {}).get("cs", [])
            if item["id"] in waiting
        }
        if any(seen[cs_id] != watched[cs_id] for cs_id in seen):
            moved = clock()
        watched.update(seen)


def main():
    module = make_module(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "repository": {"type": "path"},
            "address": {"type": "str"},
            "tier": {"type": "int", "choices": [0, 1, 2, 3], "default": 0},
            "journal": {"type": "path"},
            "journal_mb": {"type": "int"},
            "id": {"type": "list", "elements": "int"},
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
