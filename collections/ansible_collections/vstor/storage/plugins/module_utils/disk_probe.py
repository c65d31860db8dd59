# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""Facts about the disks of this host, for disk_plan. Opens disks for reading only.

DESIGN: sysfs for what the kernel knows, mountinfo and swaps for what is in use, libblkid (wipefs --no-act, blkid --probe) for what is on the
disk, an exclusive open for users that none of these shows (a mount in a container). No udev is needed: containers have none. A probe that
fails is a fact too, and one that refuses the disk. Only devices whose node exists in /dev are looked at: in a container sysfs shows
those of the whole machine.
"""

from __future__ import annotations

import errno
import json
import os
import stat

EDGE_BYTES = 1 << 20  # what is read at either end, to tell a blank disk
SYSTEM_MOUNTS = ("/", "/boot", "/boot/efi", "/usr", "/var", "/home")
SECTOR_BYTES = 512  # of sysfs, whatever the disk has


def read_text(path, default=""):
    """First line of a small file of sysfs or procfs; `default` when it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def unescape(field):
    """A path of /proc/self/mountinfo, /proc/swaps and fstab: octal for blanks."""
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, char)
    return field


def parse_mountinfo(text):
    """{(major, minor): [mount points]}, and the sources by mount point."""
    places, sources = {}, {}
    for line in text.splitlines():
        left, _dash, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 2:
            continue
        major, _colon, minor = fields[2].partition(":")
        point = unescape(fields[4])
        places.setdefault((int(major), int(minor)), []).append(point)
        sources[point] = unescape(tail[1])
    return places, sources


def parse_swaps(text):
    """Files and devices that are swapped to."""
    return [unescape(line.split()[0]) for line in text.splitlines()[1:] if line.split()]


def parse_fstab(text):
    """Mount points with a line in fstab."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {unescape(fields[1]) for fields in lines if len(fields) >= 2}


def kind_of(name, sysfs):
    """disk, multipath, loop, or what else makes it unfit; empty for devices that are of no interest to anybody."""
    if name.startswith(("ram", "zram", "sr", "fd", "nbd")):
        return ""
    if name.startswith("loop"):
        # Attached to nothing it is no disk. Attached it serves as one where it has a stable name: in the lab.
        return "disk" if os.path.isdir("%s/%s/loop" % (sysfs, name)) else ""
    if name.startswith("dm-"):
        uuid = read_text("%s/%s/dm/uuid" % (sysfs, name))
        return "multipath" if uuid.startswith("mpath-") else "device-mapper"
    if name.startswith("md"):
        return "RAID"
    return "disk"


class Prober:
    """Looks at the disks of a host.

    Args:
        run: a function (argv) -> (exit code, stdout, stderr).
        id_directory: where the stable names are.
        fstab, state_directory: where mounts and begun work are written down.
    """

    def __init__(self, run, id_directory="/dev/disk/by-id", fstab="/etc/fstab", state_directory="/var/lib/vstor/disks"):
        self._run = run
        self._id_directory = id_directory
        self._state_directory = state_directory
        self._sysfs = "/sys/block"
        self._places, self._sources = parse_mountinfo(read_text("/proc/self/mountinfo"))
        self._swaps = {os.path.realpath(path) for path in parse_swaps(read_text("/proc/swaps"))}
        self._fstab = parse_fstab(read_text(fstab))

    # --- which ---------------------------------------------------------------------------------------------------

    def stable_names(self):
        """{device node: [stable names]}; ata- and nvme- names before wwn- and others, as people read them on the label."""
        found = {}
        try:
            names = sorted(os.listdir(self._id_directory))
        except OSError:
            return {}
        for name in names:
            path = os.path.join(self._id_directory, name)
            found.setdefault(os.path.realpath(path), []).append(path)
        for paths in found.values():
            paths.sort(key=lambda path: (os.path.basename(path).startswith(("wwn-", "nvme-eui.", "dm-name-")), path))
        return found

    def probe_disks(self):
        """Facts of every disk whose node is in /dev, and of whatever else has a stable name (so that naming it is refused with its kind)."""
        stable = self.stable_names()
        system = self._system_devices()
        found = []
        for name in sorted(os.listdir(self._sysfs)):
            node = "/dev/" + name.replace("!", "/")
            kind = kind_of(name, self._sysfs)
            if kind == "" or not is_block(node) or (name.startswith("loop") and node not in stable):
                continue
            if kind == "disk" and not int(read_text("%s/%s/size" % (self._sysfs, name), "0") or 0):
                continue
            found.append(self.facts(name, node, kind, stable.get(node, []), system.get(name, [])))
            found += self._named_partitions(name, stable, system)
        mark_twins(found)
        return found

    def _named_partitions(self, name, stable, system):
        """Partitions of a disk that have stable names: only to be refused with the right word."""
        found = []
        for part in self._partitions(name):
            node = "/dev/" + part.replace("!", "/")
            if node in stable and is_block(node):
                facts = self.facts(
                    name, "/dev/" + name.replace("!", "/"), "partition", stable[node], system.get(name, [])
                )
                facts["device"] = node
                found.append(facts)
        return found

    def _partitions(self, name):
        base = "%s/%s" % (self._sysfs, name)
        return sorted(entry for entry in os.listdir(base) if os.path.exists("%s/%s/partition" % (base, entry)))

    # --- one -----------------------------------------------------------------------------------------------------

    def facts(self, name, node, kind, ids, system):
        """All that is known of one disk."""
        base = "%s/%s" % (self._sysfs, name)
        parts = self._partitions(name)
        disk = {
            "device": node,
            "ids": ids,
            "kind": kind,
            "size_bytes": int(read_text(base + "/size", "0")) * SECTOR_BYTES,
            "rotational": read_text(base + "/queue/rotational", "1") != "0",
            "read_only": read_text(base + "/ro", "0") != "0",
            "zoned": read_text(base + "/queue/zoned"),
            "model": read_text(base + "/device/model"),
            "serial": read_text(base + "/device/serial") or vpd_serial(base + "/device/vpd_pg80"),
            "wwid": read_text(base + "/wwid") or read_text(base + "/device/wwid"),
            "partitions": parts,
            "holders": self._holders(name, parts, node),
            "mounts": self._mounts(name, parts),
            "swaps": sorted(path for path in self._swaps if os.path.basename(path) in [name, *parts]),
            "system": system,
            "signatures": [],
            "unknown_data": False,
            "problems": [],
            "twins": [],
        }
        disk["in_fstab"] = bool(disk["mounts"]) and set(disk["mounts"]) <= self._fstab
        disk["unfinished"] = self.begun(disk) is not None
        self._look_inside(disk)
        return disk

    def _holders(self, name, parts, node):
        base = "%s/%s" % (self._sysfs, name)
        found = sorted(os.listdir(base + "/holders"))
        for part in parts:
            found += sorted(os.listdir("%s/%s/holders" % (base, part)))
        # A loop device on a disk is no holder for the kernel.
        for other in sorted(os.listdir(self._sysfs)):
            backing = read_text("%s/%s/loop/backing_file" % (self._sysfs, other))
            if backing and os.path.realpath(backing) in {node, *("/dev/" + part for part in parts)}:
                found.append(other)
        return sorted(set(found))

    def _mounts(self, name, parts):
        found = []
        for device in [name, *("%s/%s" % (name, part) for part in parts)]:
            major, _colon, minor = read_text("%s/%s/dev" % (self._sysfs, device)).partition(":")
            if minor:
                found += self._places.get((int(major), int(minor)), [])
        # btrfs mounts have device numbers of their own.
        nodes = {"/dev/" + part for part in [name, *parts]}
        found += [point for point, source in self._sources.items() if os.path.realpath(source) in nodes]
        return sorted(set(found))

    def _system_devices(self):
        """{disk: [mount points of the system on it]}, through partitions, LVM, RAID and LUKS."""
        found = {}
        points = {place: device for device, places in self._places.items() for place in places}
        for point in SYSTEM_MOUNTS:
            # /var and the like count when they are mounts of their own; "/" always is one.
            if point not in points:
                continue
            sources = ["/sys/dev/block/%d:%d" % points[point]]
            source = self._sources.get(point, "")
            if source.startswith("/dev/"):
                sources.append("/sys/class/block/" + os.path.basename(os.path.realpath(source)))
            for path in sources:
                for disk in under(path):
                    if point not in found.setdefault(disk, []):
                        found[disk].append(point)
        return found

    # --- what is on it -------------------------------------------------------------------------------------------

    def _look_inside(self, disk):
        node = disk["device"]
        rc, out, err = self._run(["wipefs", "--no-act", "--json", node])
        if rc != 0:
            disk["problems"].append("cannot be probed: wipefs: %s" % (err.strip() or "exit code %d" % rc))
        else:
            disk["signatures"] = parse_wipefs(out)
        rc, out, err = self._run(["blkid", "--probe", "--output", "export", node])
        if rc == 8 and disk["signatures"]:
            pass  # several signatures at once: wipefs has named them
        elif rc not in (0, 2):
            disk["problems"].append("cannot be probed: blkid: %s" % (err.strip() or "exit code %d" % rc))
        elif rc == 0 and not disk["signatures"]:
            values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
            kind = values.get("TYPE") or values.get("PTTYPE") or "unknown"
            disk["signatures"] = [{"type": kind, "label": values.get("LABEL", ""), "uuid": values.get("UUID", "")}]
        try:
            disk["unknown_data"] = has_data(node, disk["size_bytes"])
        except OSError as exc:
            disk["problems"].append("cannot be read: %s" % exc.strerror)
        try:
            disk["busy"] = is_busy(node)
        except OSError as exc:
            disk["busy"] = True
            disk["problems"].append("cannot be opened: %s" % exc.strerror)

    def begun(self, disk):
        """The note of work on this disk that was interrupted, or None."""
        for name in disk["ids"]:
            try:
                with open(self.note(name), encoding="utf-8") as file:
                    note = json.load(file)
            except (OSError, ValueError):
                continue
            if note.get("size_bytes") == disk["size_bytes"] and note.get("serial") == disk["serial"]:
                return note
        return None

    def note(self, stable_id):
        """File that holds the note."""
        return os.path.join(self._state_directory, os.path.basename(stable_id) + ".json")


def is_block(node):
    """The node exists and is a block device."""
    try:
        return stat.S_ISBLK(os.stat(node).st_mode)
    except OSError:
        return False


def is_busy(node):
    """Somebody has the device exclusively: a mount (of any namespace), RAID, LVM, swap."""
    try:
        handle = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return True
        raise
    os.close(handle)
    return False


def has_data(node, size_bytes):
    """Either end of the device holds something else than one byte repeated (zeros, or what flash gives when it is empty)."""
    with open(node, "rb", buffering=0) as file:
        for offset in (0, max(0, size_bytes - EDGE_BYTES)):
            file.seek(offset)
            data = file.read(min(EDGE_BYTES, size_bytes))
            if data and data.count(data[0]) != len(data):
                return True
            if data and data[0] not in (0, 0xFF):
                return True
    return False


def parse_wipefs(text):
    """Signatures of wipefs --json, each with type, label and uuid."""
    if not text.strip():
        return []
    return [
        {"type": item.get("type") or "unknown", "label": item.get("label") or "", "uuid": item.get("uuid") or ""}
        for item in json.loads(text).get("signatures", [])
    ]


def vpd_serial(path):
    """Serial number of a SCSI disk, from its page 0x80."""
    try:
        with open(path, "rb") as file:
            return file.read(256)[4:].decode("ascii", "replace").strip("\0 ")
    except OSError:
        return ""


def under(path):
    """Names of the whole disks below a block device of sysfs, and of everything on the way."""
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        return []
    if os.path.exists(real + "/partition"):
        return under(os.path.dirname(real))
    found = [os.path.basename(real)]
    slaves = real + "/slaves"
    for name in sorted(os.listdir(slaves)) if os.path.isdir(slaves) else []:
        found += under(os.path.join(slaves, name))
    return found


def mark_twins(disks):
    """Tell disks that have one and the same identity: two paths to one disk without multipath."""
    by_wwid = {}
    for disk in disks:
        if disk["wwid"] and disk["kind"] == "disk":
            by_wwid.setdefault(disk["wwid"], []).append(disk)
    for same in by_wwid.values():
        for disk in same:
            disk["twins"] = [other["device"] for other in same if other is not disk]
