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
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def remove(module, ctl):
    cs_id = module.params["id"]
    status = ctl.status()
    if status is None and not module.check_mode:
        module.fail_json(msg="cluster %s does not answer: nothing was removed" % ctl.cluster)
    known = [item["id"] for item in status["cs"] if item.get("state") != "dropped"] if status else []
    if cs_id not in known:
        finish(module, False, {"cs": known}, {"cs": known})
    if not module.check_mode:
        ctl.call("rm-cs", *(["--wait"] if module.params["wait"] else []), str(cs_id))
    finish(module, True, {"cs": known}, {"cs": [item for item in known if item != cs_id]})


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
