#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_mds
short_description: Add an MDS to a vstor cluster or remove one
version_added: 0.1.0
description:
  - Makes a metadata server on this host, which must be authenticated (M(vstor.storage.vstor_auth)), and lets it join the cluster.
  - Removes one by its id. The cluster refuses when it would become unusable.
options:
  state:
    description: Whether the MDS is part of the cluster.
    type: str
    choices: [present, absent]
    default: present
  address:
    description: Address of the MDS as C(IP) or C(IP:PORT). Needed with O(state=present).
    type: str
  repository:
    description: Directory of the MDS. Needed with O(state=present).
    type: path
  etcd:
    description: Client addresses of an etcd cluster to use. Empty for a member of vstor's own.
    type: list
    elements: str
    default: []
  id:
    description: Id of the MDS to remove. Needed with O(state=absent).
    type: int
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Second MDS
  vstor.storage.vstor_mds:
    cluster: vstor
    address: 10.30.100.102
    repository: /var/lib/vstor/mds/1

- name: Remove the MDS of a lost host
  vstor.storage.vstor_mds:
    cluster: vstor
    state: absent
    id: 2
"""

RETURN = r"""
mds:
  description: The MDS of this host, as vstorctl list-services shows it.
  type: dict
  returned: with O(state=present), when it exists
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def remove(module, ctl):
    mds_id = module.params["id"]
    status = ctl.status()
    known = [item["id"] for item in status["mds"]] if status else []
    if status is None and not module.check_mode:
        module.fail_json(msg="cluster %s does not answer: nothing was removed" % ctl.cluster)
    if mds_id not in known:
        finish(module, False, {"mds": known}, {"mds": known})
    after = {"mds": [item for item in known if item != mds_id]}
    if not module.check_mode:
        ctl.call("rm-mds", str(mds_id))
    finish(module, True, {"mds": known}, after)


def main():
    module = make_module(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "address": {"type": "str"},
            "repository": {"type": "path"},
            "etcd": {"type": "list", "elements": "str", "default": []},
            "id": {"type": "int"},
        },
        required_if=[("state", "present", ("address", "repository")), ("state", "absent", ("id",))],
    )
    params = module.params
    ctl = VstorCtl(module)
    if params["state"] == "absent":
        remove(module, ctl)
    wanted = {"repository": params["repository"], "address": params["address"]}
    mds = ctl.service_at("mds", params["repository"])
    if mds:
        finish(module, False, wanted, wanted, mds=mds)
    if not module.check_mode:
        etcd = ["--etcd", ",".join(params["etcd"])] if params["etcd"] else []
        ctl.call("make-mds", "-a", params["address"], "-r", params["repository"], *etcd)
        mds = ctl.service_at("mds", params["repository"])
    finish(module, True, {}, wanted, mds=mds)


if __name__ == "__main__":
    main()
