#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_config
short_description: Set cluster-wide settings of a vstor cluster
version_added: 0.1.0
description:
  - Sets variables of the cluster configuration (vstorctl set-config). Settings that are not named are left alone.
options:
  settings:
    description: Names and values.
    type: dict
    required: true
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Start re-replication after ten minutes
  vstor.storage.vstor_config:
    cluster: vstor
    settings:
      mds.wd.offline_tout: 600000
"""

RETURN = r"""
settings:
  description: The named settings afterwards.
  type: dict
  returned: when the cluster answers
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def text(value):
    """As vstorctl prints it: booleans in lower case, everything else as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(ctl):
    """All settings as text, by name."""
    data = ctl.call("get-config")
    return {key: text(value) for key, value in data.get("settings", data).items()}


def main():
    module = make_module({"settings": {"type": "dict", "required": True}})
    ctl = VstorCtl(module)
    wanted = {key: text(value) for key, value in module.params["settings"].items()}
    if not wanted:
        finish(module, False, {}, {}, settings={})
    if module.check_mode and ctl.status() is None:
        finish(module, True, {}, wanted)
    present = read(ctl)
    unknown = sorted(set(wanted) - set(present))
    if unknown:
        module.fail_json(msg="no such setting: %s; vstorctl get-config lists them" % ", ".join(unknown))
    before = {key: present[key] for key in wanted}
    if before == wanted:
        finish(module, False, before, wanted, settings=before)
    if module.check_mode:
        finish(module, True, before, wanted, settings=before)
    ctl.call("set-config", *["%s=%s" % item for item in sorted(wanted.items()) if before[item[0]] != item[1]])
    present = read(ctl)
    after = {key: present.get(key, "") for key in wanted}
    finish(module, True, before, after, settings=after)


if __name__ == "__main__":
    main()
