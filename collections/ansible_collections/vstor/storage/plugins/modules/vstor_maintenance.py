#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_maintenance
short_description: Announce that chunk servers go away for a short time
version_added: 0.2.0
description:
  - While a chunk server is in maintenance its data are not copied elsewhere. The cluster ends it by itself after C(mds.wd.maintenance_tout).
options:
  ids:
    description: Ids of chunk servers. Left out, those that are made on this host.
    type: list
    elements: int
  state:
    description: Whether they are in maintenance.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: The chunk servers of this host go away for a moment
  vstor.storage.vstor_maintenance:
    cluster: vstor
"""

RETURN = r"""
ids:
  description: The chunk servers.
  type: list
  elements: int
  returned: always
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module


def main():
    module = make_module(
        {
            "ids": {"type": "list", "elements": "int"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        }
    )
    ctl = VstorCtl(module)
    ids = module.params["ids"]
    if ids is None:
        ids = [int(item["id"]) for item in ctl.services("cs")]
    wanted = module.params["state"] == "present"
    status = ctl.status()
    if status is None:
        if module.check_mode or not ids:
            finish(module, False, {}, {}, ids=ids)
        module.fail_json(msg="cluster %s does not answer: no chunk server was announced" % ctl.cluster, ids=ids)
    known = {item["id"]: item.get("admin", "normal") for item in status["cs"]}
    # One that is being released or has failed stays what it is.
    from_state = "normal" if wanted else "maintenance"
    todo = [cs_id for cs_id in ids if known.get(cs_id) == from_state]
    for cs_id in todo if not module.check_mode else []:
        ctl.call("maintenance", "on" if wanted else "off", str(cs_id))
    before = {"CS#%d" % cs_id: known.get(cs_id, "unknown") for cs_id in ids}
    after = dict(before, **{"CS#%d" % cs_id: "maintenance" if wanted else "normal" for cs_id in todo})
    finish(module, bool(todo), before, after, ids=ids)


if __name__ == "__main__":
    main()
