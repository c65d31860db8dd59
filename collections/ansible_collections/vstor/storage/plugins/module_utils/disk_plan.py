# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""What is to be done with which disk: facts and wishes in, a plan or refusals out. No I/O, no clock.

DESIGN: a plan is all or nothing: one refusal and no disk of the host is touched. There are three kinds of reasons against a disk:
what never goes away by asking for it (mounted, held, the system's, read-only, too small, unreadable), what says that the disk is not
empty (signatures, partitions, data of unknown make), which `wipe` overrides disk by disk, and being this cluster's own already, which
is no reason at all: then it is mounted, or ready. A file system of ours is known by its label, which holds a part of the cluster's id.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re

ID_DIRECTORY = "/dev/disk/by-id"
MOUNT_ROOT = "/vstor"
SIZE_MIN_DEFAULT = "1G"
USES = {"cs": "vs-", "journal": "vj-"}
LABEL_DIGITS = 9  # an XFS label has 12 characters
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:i?B)?\Z", re.IGNORECASE)

# What a disk comes to. The last two are not touched.
READY, MOUNT, FORMAT, WIPE, REFUSED, SKIPPED = "ready", "mount", "format", "wipe and format", "refused", "skipped"

SIGNATURE_WORDS = {
    "LVM2_member": "an LVM physical volume",
    "linux_raid_member": "a member of a Linux RAID (mdraid)",
    "ddf_raid_member": "a member of a RAID",
    "isw_raid_member": "a member of a RAID",
    "crypto_LUKS": "an encrypted volume (LUKS)",
    "BitLocker": "an encrypted volume (BitLocker)",
    "swap": "swap space",
    "swsuspend": "a suspended system",
    "bcache": "a bcache device",
    "zfs_member": "a member of a ZFS pool",
    "ceph_bluestore": "a Ceph OSD (BlueStore)",
    "drbd": "a DRBD device",
    "gpt": "a partition table (GPT)",
    "PMBR": "a protective MBR",
    "dos": "a partition table (MBR)",
    "mpath_member": "a path of a multipath device",
}


class DiskError(Exception):
    """One line that says what is wrong with a wish, and the mend."""


def parse_size(text):
    """Bytes of "10G", "1.5T", 4096. Raises DiskError."""
    match = SIZE.match(str(text).strip())
    if not match:
        raise DiskError("size %r is not a number of bytes, with K, M, G, T or P after it if you like" % (text,))
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def show_size(size_bytes):
    """For people, as lsblk has it."""
    value, unit = float(size_bytes), "B"
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, name
    return "%d B" % size_bytes if unit == "B" else "%.1f %s" % (value, unit)


def own_label(cluster_id, use):
    """The label of a disk of this cluster; empty as long as the cluster is not known."""
    return USES[use] + cluster_id[:LABEL_DIGITS] if cluster_id else ""


def label_use(label):
    """cs or journal when the label is one of vstor's, of whatever cluster; otherwise an empty string."""
    for use, prefix in USES.items():
        if label.startswith(prefix) and re.match(r"[0-9a-f]{%d}\Z" % LABEL_DIGITS, label[len(prefix) :]):
            return use
    return ""


def default_path(stable_id):
    """Mount point of a disk: from its stable name, so that it does not depend on the order of disks."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(stable_id)).lstrip(".-")
    return "%s/%s" % (MOUNT_ROOT, name[:80] or hashlib.sha256(stable_id.encode()).hexdigest()[:16])


def stable_id(disk):
    """The name a disk is called by: its first one below by-id, else its kernel name, which is good for a table only."""
    return disk["ids"][0] if disk["ids"] else disk["device"]


# --- reasons ------------------------------------------------------------------------------------------------------


def hard_reasons(disk, size_min):
    """Why a disk must never be used, whatever is asked for. `mounts` of this cluster's own disks are told apart by the caller."""
    found = ["%s" % problem for problem in disk["problems"]]
    if disk["system"]:
        found.append("is the disk under %s" % ", ".join(disk["system"]))
    if disk["kind"] == "partition":
        found.append("is a partition; name the whole disk")
    elif disk["kind"] not in ("disk", "multipath"):
        found.append("is a %s device, not a disk" % disk["kind"])
    if disk["read_only"]:
        found.append("is read-only")
    if disk["zoned"] not in ("", "none", "host-aware"):
        found.append("is a zoned disk (%s), which cannot be written at will" % disk["zoned"])
    if disk["swaps"]:
        found.append("is in use as swap space (%s)" % ", ".join(disk["swaps"]))
    if disk["holders"]:
        found.append("is held by %s" % ", ".join(disk["holders"]))
    if disk["size_bytes"] < size_min:
        found.append(
            "has %s, less than %s (vstor_disk_size_min)" % (show_size(disk["size_bytes"]), show_size(size_min))
        )
    if disk["twins"]:
        found.append("is another path to the same disk as %s; set up multipath" % ", ".join(disk["twins"]))
    return found


def use_reasons(disk):
    """Why a disk that is not of this cluster is in use now."""
    if disk["mounts"]:
        return ["is mounted at %s" % ", ".join(disk["mounts"])]
    # Holders and swap are told by name already.
    if disk["busy"] and not disk["holders"] and not disk["swaps"]:
        return ["is in use by the kernel or by another program (perhaps mounted in a container)"]
    return []


def describe_signature(signature):
    """In words, with label and uuid, so that the owner can be found."""
    kind, label = signature["type"], signature.get("label") or ""
    if kind == "xfs" and label_use(label):
        return "a %s disk of another vstor cluster (%s)" % (
            "chunk server" if label_use(label) == "cs" else "journal",
            label,
        )
    text = SIGNATURE_WORDS.get(kind, "a file system or signature (%s)" % kind)
    named = " ".join("%s %s" % (key, signature[key]) for key in ("label", "uuid") if signature.get(key))
    return "%s%s" % (text, " with %s" % named if named else "")


def dirt(disk):
    """What is on the disk, in words; empty when it is blank."""
    found = ["has partitions (%s)" % ", ".join(disk["partitions"])] if disk["partitions"] else []
    words = []
    for signature in disk["signatures"]:
        if describe_signature(signature) not in words:
            words.append(describe_signature(signature))
    found += ["holds %s" % word for word in words]
    if not found and disk["unknown_data"]:
        found.append("is not blank: it holds data that no known signature explains")
    return found


def own_use(disk, cluster_id):
    """cs or journal when the disk is formatted for this cluster, as a whole and with nothing beside; otherwise an empty string."""
    kinds = {signature["type"] for signature in disk["signatures"]}
    if kinds != {"xfs"} or disk["partitions"] or not cluster_id:
        return ""
    label = disk["signatures"][0].get("label") or ""
    return label_use(label) if label in (own_label(cluster_id, "cs"), own_label(cluster_id, "journal")) else ""


# --- one disk -----------------------------------------------------------------------------------------------------


def judge(disk, wish, policy):
    """(state, reasons, path) for a disk that is wished for."""
    use = wish.get("use", "cs")
    path = wish.get("path") or ""
    reasons = hard_reasons(disk, policy["size_min"])
    own = own_use(disk, policy["cluster_id"])
    if own:
        return judge_own(disk, own, use, path, reasons, policy)
    path = path or default_path(stable_id(disk))
    reasons += use_reasons(disk)
    found = dirt(disk)
    names = set(disk["ids"]) | {disk["device"]}
    unfinished = disk["unfinished"]  # this module began to format it, and was interrupted
    wipe = bool(found) and (bool(names & set(policy["wipe"])) or unfinished)
    if found and not wipe:
        reasons += found
        if not reasons[: -len(found)]:
            reasons.append("if all of it may be lost, name the disk in vstor_disk_wipe: [%s]" % stable_id(disk))
    if reasons:
        return REFUSED, reasons, path
    return (WIPE if wipe else FORMAT), found if wipe else [], path


def judge_own(disk, own, use, path, reasons, policy):
    """As judge, for a disk with a file system of this cluster."""
    if own != use:
        reasons = [*reasons, "was formatted as a %s disk of this cluster, and is wished for as a %s disk" % (own, use)]
    if disk["mounts"]:
        path = path or disk["mounts"][0]
        if path not in disk["mounts"]:
            reasons = [*reasons, "is mounted at %s, not at %s" % (", ".join(disk["mounts"]), path)]
        state = READY if disk["in_fstab"] else MOUNT
    else:
        path = path or default_path(stable_id(disk))
        reasons = reasons + use_reasons(disk)
        state = MOUNT
    return (REFUSED, reasons, path) if reasons else (state, [], path)


def matches(disk, wanted):
    """A filter's conditions, without its count."""
    if wanted.get("rotational") is not None and bool(wanted["rotational"]) != disk["rotational"]:
        return False
    if wanted.get("size_min") and disk["size_bytes"] < parse_size(wanted["size_min"]):
        return False
    if wanted.get("size_max") and disk["size_bytes"] > parse_size(wanted["size_max"]):
        return False
    return not (wanted.get("model") and not fnmatch.fnmatchcase(disk["model"].lower(), wanted["model"].lower()))


# --- the plan -----------------------------------------------------------------------------------------------------


def find_disk(disks, name):
    """The disk with a stable name, or None."""
    return next((disk for disk in disks if name in disk["ids"]), None)


def row_of(disk, wish, state, reasons, path):
    """A line of the plan."""
    return {
        "id": stable_id(disk),
        "device": disk["device"],
        "size_bytes": disk["size_bytes"],
        "rotational": disk["rotational"],
        "model": disk["model"],
        "serial": disk["serial"],
        "use": wish.get("use", "cs"),
        "tier": wish.get("tier", 0),
        "journal": wish.get("journal", ""),
        "journal_mb": wish.get("journal_mb", 0),
        "address": wish.get("address", ""),
        "path": path,
        "state": state,
        "reasons": reasons,
        "uuid": disk["signatures"][0].get("uuid") or "" if state in (READY, MOUNT) else "",
        "named": bool(wish.get("device")),
    }


def refusal(disk, reasons):
    """One line: the disk by its stable name, size and serial number, and all reasons."""
    model = " ".join(word for word in (disk["model"], disk["serial"] and "serial %s" % disk["serial"]) if word)
    return "%s (%s, %s%s): %s" % (
        stable_id(disk),
        disk["device"],
        show_size(disk["size_bytes"]),
        ", %s" % model if model else "",
        "; ".join(reasons),
    )


def plan_named(disks, wish, policy, rows, refusals):
    """A wish that names its disk."""
    name = wish["device"]
    if not name.startswith(policy["id_directory"] + "/"):
        refusals.append(
            "%s: is no stable name; kernel names change from boot to boot, use one of %s/"
            % (name, policy["id_directory"])
        )
        return
    disk = find_disk(disks, name)
    if disk is None:
        refusals.append("%s: no such disk on this host" % name)
        return
    if any(row["device"] == disk["device"] for row in rows):
        refusals.append("%s: is named twice in vstor_cs_disks" % name)
        return
    state, reasons, path = judge(disk, wish, policy)
    rows.append(row_of(disk, wish, state, reasons, path))
    if state == REFUSED:
        refusals.append(refusal(disk, reasons))


def plan_filter(disks, wish, policy, rows, refusals):
    """A wish that describes its disks. What it cannot have is skipped and shown; too few of them are a refusal."""
    wanted = wish["filter"]
    taken = {row["device"] for row in rows}
    judged = []
    for disk in disks:
        if disk["device"] in taken or not disk["ids"] or not matches(disk, wanted):
            continue
        judged.append((disk, *judge(disk, wish, policy)))
    # What the cluster has already comes first, so that a second run chooses the same.
    order = {READY: 0, MOUNT: 0, FORMAT: 1, WIPE: 1, REFUSED: 2}
    judged.sort(key=lambda item: (order[item[1]], stable_id(item[0])))
    usable = [item for item in judged if item[1] != REFUSED]
    count = int(wanted.get("count") or 0) or len(usable)
    for disk, state, reasons, path in usable[:count]:
        rows.append(row_of(disk, wish, state, reasons, path))
    for disk, _state, reasons, path in judged:
        if disk["device"] not in {row["device"] for row in rows}:
            rows.append(row_of(disk, wish, SKIPPED, reasons or ["not needed"], path))
    if len(usable) < max(count, 1):
        told = [
            "%s %s" % (stable_id(disk), "; ".join(reasons))
            for disk, state, reasons, _path in judged
            if state == REFUSED
        ]
        refusals.append(
            "filter %s: %d of %d disks found%s"
            % (wanted, len(usable), max(count, 1), "; not usable: %s" % " | ".join(told) if told else "")
        )


def make_plan(disks, wishes, policy):
    """(rows, refusals).

    Args:
        disks: facts, as disk_probe.probe_disks gives them.
        wishes: entries of vstor_cs_disks: device or filter, and use, tier, path, journal, journal_mb, address.
        policy: cluster_id ("" before the host is in the cluster), size_min (bytes), allow_format, named, wipe, id_directory.
    A refusal stands against the whole plan: nothing is to be done then.
    """
    rows, refusals = [], []
    for wish in wishes:
        if bool(wish.get("device")) == (wish.get("filter") is not None):
            refusals.append("%s: give device or filter, one of the two" % {k: v for k, v in wish.items() if v})
    if refusals:
        return rows, refusals
    for wish in sorted(wishes, key=lambda item: not item.get("device")):
        (plan_named if wish.get("device") else plan_filter)(disks, wish, policy, rows, refusals)
    refusals += path_conflicts([row for row in rows if row["state"] not in (REFUSED, SKIPPED)])
    for name in policy["wipe"]:
        disk = find_disk(disks, name)
        if disk is not None and not any(row["device"] == disk["device"] for row in rows):
            refusals.append(
                "%s: is in vstor_disk_wipe and not in vstor_cs_disks; nothing is wiped that is not used" % name
            )
    return rows, refusals


def path_conflicts(rows):
    """Two disks with one mount point."""
    seen, found = {}, []
    for row in rows:
        if row["path"] in seen:
            found.append("%s and %s: have the same path %s" % (seen[row["path"]], row["id"], row["path"]))
        seen[row["path"]] = row["id"]
    return found


def permission_refusals(rows, policy):
    """Why a plan without refusals may not be carried out yet."""
    found = []
    for row in rows:
        if row["state"] not in (FORMAT, WIPE):
            continue
        if not policy["allow_format"]:
            found.append("%s: would be formatted; set vstor_disk_allow_format: true to allow it" % row["id"])
        elif not row["named"] and row["id"] not in policy["named"]:
            found.append(
                "%s: was found by a filter and would be formatted; name it in vstor_disk_named (or as device in vstor_cs_disks)"
                % row["id"]
            )
    return found


def table(rows):
    """The plan as lines of text."""
    head = ("DISK", "SIZE", "KIND", "USE", "DEVICE", "MODEL", "SERIAL", "WHAT HAPPENS")
    lines = [head]
    for row in rows:
        told = row["state"] if row["state"] == SKIPPED else "%s, %s" % (row["state"], row["path"])
        lines.append(
            (
                os.path.basename(row["id"]),
                show_size(row["size_bytes"]),
                "rotating" if row["rotational"] else "ssd",
                "journal" if row["use"] == "journal" else "cs, tier %s" % row["tier"],
                row["device"],
                row["model"] or "-",
                row["serial"] or "-",
                told if not row["reasons"] else "%s: %s" % (row["state"], "; ".join(row["reasons"])),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return ["  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines]
