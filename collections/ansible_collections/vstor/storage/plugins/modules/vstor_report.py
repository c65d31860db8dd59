#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_report
short_description: Write a bundle of logs, configuration and status of a host, without secrets
version_added: 0.2.0
description:
  - Runs vstorctl report. Works with the cluster down; what does not answer is noted in the bundle.
  - In check mode nothing is written.
options:
  path:
    description: File to write, which must not exist.
    type: path
    required: true
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: What this host has to say
  vstor.storage.vstor_report:
    cluster: vstor
    path: /root/report.tar.gz
"""

RETURN = r"""
path:
  description: The bundle.
  type: str
  returned: always
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def main():
    module = make_module({"path": {"type": "path", "required": True}})
    ctl = VstorCtl(module)
    path = module.params["path"]
    if not module.check_mode:
        ctl.call("report", "-o", path)
    finish(module, True, {}, {"path": path}, path=path)


if __name__ == "__main__":
    main()
