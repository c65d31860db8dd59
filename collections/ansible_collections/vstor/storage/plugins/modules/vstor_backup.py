#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_backup
short_description: Back up the metadata of a vstor cluster, or restore them after the loss of all MDSs
version_added: 0.2.0
description:
  - With O(state=present) writes a new backup on a host with an MDS, while the cluster runs. The file has mode 0600 and holds the keys of the cluster.
  - With O(state=restored) makes the repository of a new MDS from a backup. The tool refuses while an MDS of the cluster answers.
options:
  state:
    description: What to do.
    type: str
    choices: [present, restored]
    default: present
  path:
    description: The backup, on this host. With O(state=present) it must not exist.
    type: path
    required: true
  address:
    description: Address of the new MDS, C(IP) or C(IP:PORT). Needed with O(state=restored).
    type: str
  repository:
    description: New directory of the MDS. Needed with O(state=restored).
    type: path
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Metadata of today
  vstor.storage.vstor_backup:
    cluster: vstor
    path: /root/vstor-today.backup

- name: All MDSs are lost
  vstor.storage.vstor_backup:
    cluster: vstor
    state: restored
    path: /root/vstor-today.backup
    address: 10.30.100.101
    repository: /var/lib/vstor/mds/restored
"""

RETURN = r"""
answer:
  description: What the tool says.
  type: dict
  returned: when something was done
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def main():
    module = make_module(
        {
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "path": {"type": "path", "required": True},
            "address": {"type": "str"},
            "repository": {"type": "path"},
        },
        required_if=[("state", "restored", ("address", "repository"))],
    )
    params = module.params
    ctl = VstorCtl(module)
    if params["state"] == "present":
        argv, before, after = ["backup", params["path"]], {}, {"backup": params["path"]}
    else:
        # Restored already, by a run that was interrupted after it.
        after = {"repository": params["repository"]}
        before = after if ctl.service_at("mds", params["repository"]) else {}
        argv = ["restore", params["path"], "-a", params["address"], "-r", params["repository"]]
    if before == after:
        finish(module, False, before, after)
    answer = {} if module.check_mode else ctl.call(*argv)
    finish(module, True, before, after, answer=answer)


if __name__ == "__main__":
    main()
