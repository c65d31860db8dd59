#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_auth
short_description: Authenticate this host in a vstor cluster
version_added: 0.1.0
description:
  - Proves the cluster's password to an MDS and receives the certificate of this host.
  - Does nothing when the host has a certificate of the cluster.
options:
  password:
    description: Password of the cluster, handed over on standard input. Needed when the host is not authenticated yet.
    type: str
  bootstrap:
    description: Addresses of the cluster's MDSs (C(IP) or C(IP:PORT)), written to the bootstrap list of this host.
    type: list
    elements: str
    default: []
  verify:
    description:
      - On a host that is authenticated, prove the password again, so that a wrong one is told before it is needed elsewhere. Changes nothing.
      - A cluster that does not answer is no failure.
    type: bool
    default: false
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Let this host into the cluster
  vstor.storage.vstor_auth:
    cluster: vstor
    bootstrap:
      - 10.30.100.101
    password: "{{ vault_vstor_password }}"
"""

RETURN = r"""
authenticated:
  description: The host holds a certificate of the cluster.
  type: bool
  returned: always
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


WRONG_PASSWORD_EXIT = 4


def verify(module, ctl):
    """Ends the module when the password is not that of the cluster."""
    rc, _data, message = ctl.run("auth-node", "-P", stdin=module.params["password"])
    if rc == WRONG_PASSWORD_EXIT:
        module.fail_json(
            msg="vstor_cluster_password is not the password of the running cluster %s (%s); nothing was changed"
            % (ctl.cluster, message)
        )


def main():
    module = make_module(
        {
            "password": {"type": "str", "no_log": True},
            "bootstrap": {"type": "list", "elements": "str", "default": []},
            "verify": {"type": "bool", "default": False},
        }
    )
    params = module.params
    ctl = VstorCtl(module)
    before = {"authenticated": ctl.authenticated()}
    after = {"authenticated": True}
    if before == after:
        if params["verify"] and params["password"]:
            verify(module, ctl)
        finish(module, False, before, after, authenticated=True)
    if module.check_mode:
        finish(module, True, before, after, authenticated=False)
    if not params["password"]:
        module.fail_json(msg="password is needed to authenticate this host in cluster %s" % params["cluster"])
    argv = ["auth-node", "-P"]
    for address in params["bootstrap"]:
        argv += ["-b", address]
    ctl.call(*argv, stdin=params["password"])
    finish(module, True, before, after, authenticated=ctl.authenticated())


if __name__ == "__main__":
    main()
