#!/usr/bin/python
# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
---
module: vstor_disk
short_description: Plan, format and mount disks for chunk servers and journals
version_added: 0.2.0
description:
  - Looks at the disks of the host, says what would be done with which (O(state=planned)), and does it (O(state=present)) - an XFS file system with
    the cluster's label, a line in fstab by UUID, and the mount.
  - Any doubt is a refusal that names disk and reason, and a refusal stands against the whole host. Refused are disks that are mounted or in use,
    have partitions, any signature (file system, LVM, RAID, LUKS, partition table, swap, bcache, ZFS, a chunk server of another cluster) or
    data of unknown make, are held by another device, lie under the system, are read-only, zoned or too small, have a second path without multipath, or
    cannot be probed.
  - A disk is formatted only when it is named and O(allow_format) is set; one that is not blank only when it is named once more in O(wipe).
  - A disk that this cluster has formatted is mounted, or left alone, whatever else is set.
options:
  state:
    description:
      - V(planned) only looks. V(present) formats and mounts.
      - V(absent) unmounts what is at O(path) and takes its line out of fstab; the disk keeps its data.
      - V(purged) does the same and leaves the disk blank, if it is one of this cluster; any other is left alone.
    type: str
    choices: [planned, present, absent, purged]
    default: planned
  disks:
    description: Wanted disks.
    type: list
    elements: dict
    default: []
    suboptions:
      device:
        description: Stable name of a disk, below O(id_directory). This or O(disks[].filter).
        type: path
      filter:
        description: Conditions that choose disks. Disks found so are formatted only when O(named) has them.
        type: dict
        suboptions:
          rotational:
            description: Rotating disks, or those that do not.
            type: bool
          size_min:
            description: Least size, such as C(500G).
            type: str
          size_max:
            description: Largest size.
            type: str
          model:
            description: Pattern of the model, with C(*) and C(?), upper and lower case alike.
            type: str
          count:
            description: How many. Left out, all that fit.
            type: int
      use:
        description: What for, chunk server or journals of several.
        type: str
        choices: [cs, journal]
        default: cs
      path:
        description: Mount point. Left out, C(/vstor/) with the last part of the stable name.
        type: path
      tier:
        description: Tier of the chunk server.
        type: int
        choices: [0, 1, 2, 3]
        default: 0
      journal:
        description: Directory of the chunk server's journal, on another disk. Passed through to the result.
        type: path
      journal_mb:
        description: Size of the journal in MiB. Passed through.
        type: int
      address:
        description: Address of the chunk server. Passed through.
        type: str
  allow_format:
    description: Formatting is allowed.
    type: bool
    default: false
  named:
    description: Stable names of disks found by filters that may be formatted.
    type: list
    elements: path
    default: []
  wipe:
    description: Stable names of disks that are not blank and may lose all they hold.
    type: list
    elements: path
    default: []
  size_min:
    description: Least size of a disk.
    type: str
    default: 1G
  path:
    description: Mount point to give up, with O(state=absent) and O(state=purged).
    type: path
  cluster_id:
    description: Id of the cluster, where the host may not know it yet. Left out, that of the host's cluster.
    type: str
  fstab:
    description: File of the mounts.
    type: path
    default: /etc/fstab
  id_directory:
    description: Directory of the stable names.
    type: path
    default: /dev/disk/by-id
  state_directory:
    description: Directory of the notes on formatting that has begun.
    type: path
    default: /var/lib/vstor/disks
extends_documentation_fragment:
  - vstor.storage.vstorctl
author:
  - The vstor engineers (@vstor)
"""

EXAMPLES = r"""
- name: Show what would be done
  vstor.storage.vstor_disk:
    cluster: vstor
    disks:
      - filter: {rotational: true, size_min: 1T}

- name: Two disks for chunk servers
  vstor.storage.vstor_disk:
    cluster: vstor
    state: present
    allow_format: true
    disks:
      - device: /dev/disk/by-id/ata-ST4000NM0035_ZC18A0XY
      - device: /dev/disk/by-id/ata-ST4000NM0035_ZC18A1AB
        path: /vstor/disk2
"""

RETURN = r"""
disks:
  description: The plan, one entry a disk, with id, device, size_bytes, model, serial, use, path, tier, state (ready, mount, format, wipe and format,
    refused, skipped), reasons and uuid.
  type: list
  elements: dict
  returned: with O(state=planned) and O(state=present)
table:
  description: The plan as lines of text.
  type: list
  elements: str
  returned: with O(state=planned) and O(state=present)
refusals:
  description: Why nothing will be done; one line each.
  type: list
  elements: str
  returned: with O(state=planned) and O(state=present)
permissions:
  description: What has to be set before the plan may be carried out.
  type: list
  elements: str
  returned: with O(state=planned) and O(state=present)
"""

import os

from ansible_collections.vstor.storage.plugins.module_utils import disk_plan
from ansible_collections.vstor.storage.plugins.module_utils.disk_format import FormatError, Formatter
from ansible_collections.vstor.storage.plugins.module_utils.disk_probe import Prober
from ansible_collections.vstor.storage.plugins.module_utils.vstorctl import VstorCtl, finish, make_module

FILTER = {
    "rotational": {"type": "bool"},
    "size_min": {"type": "str"},
    "size_max": {"type": "str"},
    "model": {"type": "str"},
    "count": {"type": "int"},
}
DISK = {
    "device": {"type": "path"},
    "filter": {"type": "dict", "options": FILTER},
    "use": {"type": "str", "choices": ["cs", "journal"], "default": "cs"},
    "path": {"type": "path"},
    "tier": {"type": "int", "choices": [0, 1, 2, 3], "default": 0},
    "journal": {"type": "path"},
    "journal_mb": {"type": "int"},
    "address": {"type": "str"},
}
NAMES = {"type": "list", "elements": "path", "default": []}


def states(rows):
    """What each disk is or becomes, for the diff."""
    return {row["id"]: "%s at %s" % (row["state"], row["path"]) for row in rows if row["state"] != disk_plan.SKIPPED}


def run_quietly(module):
    """The runner that the module_utils want; a tool that is missing is exit code 127."""

    def run(argv):
        if module.get_bin_path(argv[0]) is None:
            return 127, "", "%s is not installed (packages util-linux, mount and xfsprogs)" % argv[0]
        return module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"})

    return run


def main():
    module = make_module(
        {
            "state": {"type": "str", "choices": ["planned", "present", "absent", "purged"], "default": "planned"},
            "disks": {"type": "list", "elements": "dict", "default": [], "options": DISK},
            "allow_format": {"type": "bool", "default": False},
            "named": NAMES,
            "wipe": NAMES,
            "size_min": {"type": "str", "default": disk_plan.SIZE_MIN_DEFAULT},
            "path": {"type": "path"},
            "cluster_id": {"type": "str"},
            "fstab": {"type": "path", "default": "/etc/fstab"},
            "id_directory": {"type": "path", "default": disk_plan.ID_DIRECTORY},
            "state_directory": {"type": "path", "default": "/var/lib/vstor/disks"},
        },
        required_if=[("state", "absent", ("path",)), ("state", "purged", ("path",))],
    )
    params = module.params
    run = run_quietly(module)
    prober = Prober(run, params["id_directory"], params["fstab"], params["state_directory"])
    cluster_id = params["cluster_id"] or VstorCtl(module, required=False).cluster_id()
    formatter = Formatter(run, prober, params["fstab"], lambda use: disk_plan.own_label(cluster_id, use))
    try:
        if params["state"] == "absent":
            changed = formatter.forget(params["path"], module.check_mode)
            finish(module, changed, {"path": params["path"] if changed else ""}, {"path": ""})
        if params["state"] == "purged":
            purge(module, prober, formatter, cluster_id)
        plan_or_apply(module, prober, formatter, cluster_id)
    except (disk_plan.DiskError, FormatError) as exc:
        module.fail_json(msg=str(exc))


def purge(module, prober, formatter, cluster_id):
    """Ends the module."""
    path = module.params["path"]
    uuid = formatter.uuid_at(path)
    ours = [disk for disk in prober.probe_disks() if disk_plan.own_use(disk, cluster_id)]
    found = [disk for disk in ours if path in disk["mounts"] or (uuid and disk["signatures"][0].get("uuid") == uuid)]
    for disk in found if not module.check_mode else []:
        formatter.blank(path, disk)
    changed = bool(found)
    if found or uuid:
        changed = formatter.forget(path, module.check_mode) or changed
        if not module.check_mode and os.path.isdir(path) and not os.listdir(path):
            os.rmdir(path)
    finish(module, changed, {"path": path if changed else ""}, {"path": ""})


def plan_or_apply(module, prober, formatter, cluster_id):
    """Ends the module."""
    params = module.params
    policy = {
        "cluster_id": cluster_id,
        "size_min": disk_plan.parse_size(params["size_min"]),
        "allow_format": params["allow_format"],
        "named": params["named"],
        "wipe": params["wipe"],
        "id_directory": params["id_directory"],
    }
    facts = prober.probe_disks()
    wishes = [{key: value for key, value in wish.items() if value is not None} for wish in params["disks"]]
    rows, refusals = disk_plan.make_plan(facts, wishes, policy)
    permissions = [] if refusals else disk_plan.permission_refusals(rows, policy)
    result = {"disks": rows, "table": disk_plan.table(rows), "refusals": refusals, "permissions": permissions}
    before = states(rows)
    todo = [row for row in rows if row["state"] in (disk_plan.MOUNT, disk_plan.FORMAT, disk_plan.WIPE)]
    if params["state"] == "planned":
        finish(module, False, before, before, **result)
    if refusals or permissions:
        module.fail_json(msg="no disk was touched: " + " || ".join(refusals or permissions), **result)
    after = dict(before, **{row["id"]: "%s at %s" % (disk_plan.READY, row["path"]) for row in todo})
    if module.check_mode:
        finish(module, bool(todo), before, after, **result)
    if todo and not cluster_id:
        module.fail_json(
            msg="no disk was touched: this host is not in the cluster yet, run the role vstor_cs", **result
        )
    for row in todo:
        row["uuid"] = formatter.apply(row, next(disk for disk in facts if row["id"] in disk["ids"]))
        row["state"] = disk_plan.READY
    finish(module, bool(todo), before, after, **result)


if __name__ == "__main__":
    main()
