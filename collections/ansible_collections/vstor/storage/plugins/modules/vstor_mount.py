#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_mount
short_description: Mount a vstor cluster on this host
version_added: 0.1.0
description:
  - Registers a mount of the cluster as a service of this host, so that it comes back after a reboot, and mounts it.
  - The host must be authenticated (M(vstor.storage.vstor_auth)).
options:
  path:
    description: Mount point, made when it is missing.
    type: path
    required: true
  state:
    description:
      - V(mounted) registers and mounts, V(unmounted) unmounts and leaves the registration, V(absent) removes both.
    type: str
    choices: [mounted, unmounted, absent]
    default: mounted
  options:
    description: Mount options as in fstab.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: The cluster at /mnt/vstor
  vstor.storage.vstor_mount:
    cluster: vstor
    path: /mnt/vstor
"""

RETURN = r"""
mount:
  description: The mount, as vstorctl list-services shows it.
  type: dict
  returned: when it is registered
"""

from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, is_running, make_module


def options_of(mount):
    """Options of a registered mount: the words after -o, split at commas."""
    words = mount.get("extra", {}).get("options", [])
    values = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "-o"]
    return sorted(option for value in values for option in value.split(","))


def describe(mount):
    """State of a registered mount (or None) for comparison and diff."""
    if mount is None:
        return {"state": "absent"}
    return {
        "path": mount.get("path"),
        "state": "mounted" if is_running(mount) else "unmounted",
        "enabled": bool(mount.get("enabled")),
        "options": options_of(mount),
    }


def main():
    module = make_module(
        {
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["mounted", "unmounted", "absent"], "default": "mounted"},
            "options": {"type": "list", "elements": "str", "default": []},
        }
    )
    params = module.params
    path = params["path"].rstrip("/") or "/"
    ctl = VstorCtl(module)
    mount = ctl.service_at("mount", path)
    before = describe(mount)

    if params["state"] == "absent":
        wanted = {"state": "absent"}
    elif params["state"] == "unmounted":
        wanted = dict(before, state="unmounted") if mount else before
    else:
        wanted = {"path": path, "state": "mounted", "enabled": True, "options": sorted(params["options"])}
    if before == wanted:
        finish(module, False, before, wanted, mount=mount)
    if module.check_mode:
        finish(module, True, before, wanted, mount=mount)

    if params["state"] == "absent":
        ctl.call("umount", path)
    elif params["state"] == "unmounted":
        ctl.call("umount", "--keep", path)
    else:
        ctl.call("mount", path, *(["-o", ",".join(params["options"])] if params["options"] else []))
    mount = ctl.service_at("mount", path)
    finish(module, True, before, describe(mount), mount=mount)


if __name__ == "__main__":
    main()
