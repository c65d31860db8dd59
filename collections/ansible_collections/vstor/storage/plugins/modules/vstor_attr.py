#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_attr
short_description: Set attributes of files and directories of a vstor cluster
version_added: 0.1.0
description:
  - Sets replicas, failure domain, tier and other attributes. New files inherit those of their directory.
  - Works without a mount.
options:
  path:
    description: Path in the cluster, beginning with a slash.
    type: str
    default: /
  attributes:
    description: Attributes and their values, as vstorctl set-attr takes them.
    type: dict
    required: true
  recursive:
    description: Set them on everything below too. What is below is changed only when the attributes of O(path) differ.
    type: bool
    default: false
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Three copies on three hosts, writable with two
  vstor.storage.vstor_attr:
    cluster: vstor
    path: /
    attributes:
      replicas: "3:2"
      failure-domain: host
"""

RETURN = r"""
attributes:
  description: All attributes of the path afterwards.
  type: dict
  returned: when the cluster answers
  sample: {replicas: "3:2", failure-domain: host, tier: "0"}
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def read(ctl, path):
    """Attributes as text, by name."""
    data = ctl.call("get-attr", "-p", path)
    return {key: str(value) for key, value in data.get("attributes", data).items()}


def main():
    module = make_module(
        {
            "path": {"type": "str", "default": "/"},
            "attributes": {"type": "dict", "required": True},
            "recursive": {"type": "bool", "default": False},
        }
    )
    params = module.params
    ctl = VstorCtl(module)
    wanted = {key: str(value) for key, value in params["attributes"].items()}
    if module.check_mode and ctl.status() is None:
        finish(module, True, {}, wanted)
    present = read(ctl, params["path"])
    before = {key: present.get(key, "") for key in wanted}
    if before == wanted:
        finish(module, False, before, wanted, attributes=present)
    if module.check_mode:
        finish(module, True, before, wanted, attributes=present)
    pairs = ["%s=%s" % item for item in sorted(wanted.items()) if before[item[0]] != item[1]]
    ctl.call("set-attr", *(["-R"] if params["recursive"] else []), "-p", params["path"], *pairs)
    present = read(ctl, params["path"])
    finish(module, True, before, {key: present.get(key, "") for key in wanted}, attributes=present)


if __name__ == "__main__":
    main()
