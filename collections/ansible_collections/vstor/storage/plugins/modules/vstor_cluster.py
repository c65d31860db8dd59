#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_cluster
short_description: Make a new vstor cluster with its first MDS
version_added: 0.1.0
description:
  - Makes the cluster, its certificate authority, the first metadata server and, unless O(etcd) is given, the etcd member beside it.
  - Does nothing when this host has the MDS at O(repository) already.
options:
  address:
    description: Address of the MDS as C(IP) or C(IP:PORT). PORT is the lower of three consecutive ports.
    type: str
    required: true
  repository:
    description: Directory of the MDS, made when it is missing.
    type: path
    required: true
  password:
    description:
      - Password of the cluster. Needed when the cluster is made; handed over on standard input, never in an argument.
    type: str
  etcd:
    description: Client addresses of an etcd cluster to use. Empty for a member of vstor's own.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Make the cluster
  vstor.storage.vstor_cluster:
    cluster: vstor
    address: 10.30.100.101
    repository: /var/lib/vstor/mds/1
    password: "{{ vault_vstor_password }}"
"""

RETURN = r"""
mds:
  description: The MDS of this host, as vstorctl list-services shows it.
  type: dict
  returned: when the cluster exists
  sample: {kind: mds, id: "1", path: /var/lib/vstor/mds/1, state: running}
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def main():
    module = make_module(
        {
            "address": {"type": "str", "required": True},
            "repository": {"type": "path", "required": True},
            "password": {"type": "str", "no_log": True},
            "etcd": {"type": "list", "elements": "str", "default": []},
        }
    )
    params = module.params
    ctl = VstorCtl(module)
    wanted = {"cluster": params["cluster"], "repository": params["repository"], "address": params["address"]}
    existing = ctl.services("mds")
    mds = ctl.service_at("mds", params["repository"])
    if mds:
        finish(module, False, wanted, wanted, mds=mds)
    if existing:
        module.fail_json(
            msg="cluster %s has an MDS at %s on this host already, not at %s: set repository to it, or choose a new cluster name"
            % (params["cluster"], existing[0].get("path"), params["repository"])
        )
    if module.check_mode:
        finish(module, True, {}, wanted)
    if not params["password"]:
        module.fail_json(msg="password is needed to make cluster %s" % params["cluster"])
    argv = ["make-mds", "-I", "-a", params["address"], "-r", params["repository"], "-P"]
    if params["etcd"]:
        argv += ["--etcd", ",".join(params["etcd"])]
    ctl.call(*argv, stdin=params["password"])
    finish(module, True, {}, wanted, mds=ctl.service_at("mds", params["repository"]))


if __name__ == "__main__":
    main()
