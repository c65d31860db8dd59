# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""Carry out a disk plan: note, wipe, mkfs.xfs, line in fstab, mount.

DESIGN: the order makes an interrupted run converge. A note in the state directory, on stable storage before the disk is touched, says that
this disk was looked at and given; a run that finds it formats anew without asking again. It goes when the file system is there, with a label
that says whose it is; from then on only line and mount can be missing, and both are made when they are. Nothing of this runs with
a plan that has a refusal. The disk is looked at once more just before the first write to it.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid as uuids

from ansible_collections.vstor.storage.plugins.module_utils.disk_probe import EDGE_BYTES

# x-vstor marks the lines that are ours, and lets vstor-disks.service find them (mount --all --test-opts).
MARK = "x-vstor"
MOUNT_OPTIONS = "noatime,nodev,nosuid,noexec,nofail," + MARK
# No reflinks and no reverse map: chunks are never cloned by the file system, and both cost writes. Checksums of metadata are on.
MKFS_OPTIONS = ["-m", "crc=1,finobt=1,reflink=0,rmapbt=0"]


class FormatError(Exception):
    """One line: what failed on which disk."""


def escape(path):
    """A path as fstab wants it."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def fstab_line(uuid, path):
    """The line of one disk."""
    return "UUID=%s %s xfs %s 0 0" % (uuid, escape(path), MOUNT_OPTIONS)


def fields_of(line):
    """Fields of a line of fstab; empty for comments and blank lines."""
    return [] if line.lstrip().startswith("#") else line.split()


def with_mount(text, uuid, path):
    """fstab with the line of a disk: in place of ours for that disk or place, or at the end. Raises FormatError for somebody else's."""
    kept, place = [], None
    for line in text.splitlines():
        fields = fields_of(line)
        ours = len(fields) >= 4 and MARK in fields[3].split(",")
        if len(fields) >= 2 and (fields[0] == "UUID=" + uuid or fields[1] == escape(path)):
            if not ours:
                raise FormatError("fstab has another line for %s: %s; remove it" % (path, line.strip()))
            place = len(kept) if place is None else place
            continue
        kept.append(line)
    kept.insert(len(kept) if place is None else place, fstab_line(uuid, path))
    return "\n".join(kept) + "\n"


def without_mount(text, path):
    """fstab without our line for a place."""
    kept = []
    for line in text.splitlines():
        fields = fields_of(line)
        if len(fields) >= 4 and fields[1] == escape(path) and MARK in fields[3].split(","):
            continue
        kept.append(line)
    return "\n".join(kept) + "\n" if kept else ""


def write_durably(path, text, mode):
    """A crash leaves the old file or the new one."""
    directory = os.path.dirname(path)
    handle, name = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", dir=directory)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_directory(directory)


def sync_directory(directory):
    """Names in it on stable storage."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Formatter:
    """Does what a plan says.

    Args:
        run: a function (argv) -> (exit code, stdout, stderr).
        prober: for a last look, and for where notes are.
        fstab: the file.
        label: label of a use (cs or journal).
    """

    def __init__(self, run, prober, fstab, label):
        self._run = run
        self._prober = prober
        self._fstab = fstab
        self._label = label

    def _must(self, argv, what):
        rc, _out, err = self._run(argv)
        if rc != 0:
            lines = [line for line in err.splitlines() if line.strip()]
            raise FormatError("%s: %s" % (what, lines[-1] if lines else "%s ended with %d" % (argv[0], rc)))

    def apply(self, row, facts):
        """Bring one disk of the plan to the state ready; returns its uuid. `facts` are those the plan was made of."""
        uuid = row["uuid"]
        if row["state"] in ("format", "wipe and format"):
            uuid = self._format(row, facts)
        self._mount(row, uuid)
        return uuid

    def _format(self, row, facts):
        note = self._prober.note(row["id"])
        begun = self._prober.begun(facts)
        uuid = begun["uuid"] if begun else str(uuids.uuid4())
        if begun is None:
            self._look_again(row, facts)
            os.makedirs(os.path.dirname(note), mode=0o755, exist_ok=True)
            about = {"uuid": uuid, "size_bytes": facts["size_bytes"], "serial": facts["serial"], "path": row["path"]}
            write_durably(note, json.dumps(about) + "\n", 0o644)
        if row["state"] == "wipe and format":
            nodes = ["/dev/" + name.replace("!", "/") for name in facts["partitions"]]
            self._must(["wipefs", "--all", *nodes, row["device"]], "%s: cannot be wiped" % row["id"])
        argv = ["mkfs.xfs", "-q", *MKFS_OPTIONS, "-m", "uuid=" + uuid, "-L", self._label(row["use"]), row["device"]]
        self._must(argv, "%s: cannot be formatted" % row["id"])
        os.unlink(note)
        sync_directory(os.path.dirname(note))
        return uuid

    def _look_again(self, row, facts):
        """Raises FormatError when the disk is not as it was when the plan was made."""
        now = next((disk for disk in self._prober.probe_disks() if row["id"] in disk["ids"]), None)
        if now != facts:
            raise FormatError("%s: is not as it was a moment ago; nothing was written to it, run again" % row["id"])

    def _mount(self, row, uuid):
        path = row["path"]
        with open(self._fstab, encoding="utf-8") as file:
            before = file.read()
        after = with_mount(before, uuid, path)
        if after != before:
            write_durably(self._fstab, after, os.stat(self._fstab).st_mode & 0o777)
        if not os.path.ismount(path):
            os.makedirs(path, mode=0o755, exist_ok=True)
            if os.listdir(path):
                raise FormatError("%s: %s is not empty; nothing is mounted over files" % (row["id"], path))
            options = ",".join(word for word in MOUNT_OPTIONS.split(",") if word not in ("nofail", MARK))
            self._must(["mount", "-t", "xfs", "-o", options, row["device"], path], "%s: cannot be mounted" % row["id"])

    def uuid_at(self, path):
        """Of our line in fstab for a place; empty when there is none."""
        with open(self._fstab, encoding="utf-8") as file:
            lines = [fields_of(line) for line in file.read().splitlines()]
        ours = [line for line in lines if len(line) >= 4 and line[1] == escape(path) and MARK in line[3].split(",")]
        return ours[0][0].replace("UUID=", "", 1) if ours else ""

    def blank(self, path, disk):
        """Unmount a disk of this cluster and leave nothing on it that could be mistaken for something. Its data are lost."""
        if os.path.ismount(path):
            self._must(["umount", path], "%s: cannot be unmounted" % path)
        self._must(["wipefs", "--all", disk["device"]], "%s: cannot be wiped" % disk["device"])
        handle = os.open(disk["device"], os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        try:
            for offset in (0, max(0, disk["size_bytes"] - EDGE_BYTES)):
                os.pwrite(handle, bytes(EDGE_BYTES), offset)
            os.fsync(handle)
        finally:
            os.close(handle)

    def forget(self, path, dry_run):
        """Unmount a disk and take its line out of fstab; the disk keeps its data. Returns whether there was anything to do."""
        with open(self._fstab, encoding="utf-8") as file:
            before = file.read()
        after = without_mount(before, path)
        mounted = os.path.ismount(path)
        if not dry_run:
            if mounted:
                self._must(["umount", path], "%s: cannot be unmounted" % path)
            if after != before:
                write_durably(self._fstab, after, os.stat(self._fstab).st_mode & 0o777)
        return mounted or after != before
