"""vstor_disk on loop devices: sixteen kinds of dirt and a dozen of other reasons, each refused with its name and not touched; and what it formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.dirtydisks import MIB, SIGNATURES, digest, ext4, foreign_cs, loop_device, mbr, put, run
from tests.unit.plugins.conftest import Host

SIZE = 512 * MIB
CLUSTER_ID = "0" * 32  # of the fake vstorctl
LABEL = "vs-000000000"


class Disks:
    """Loop devices with stable names on a host with a fake vstorctl."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base, self._stack = base, stack
        self.host = Host(base)
        self.host.authenticate()
        self.by_id = base / "by-id"
        self.by_id.mkdir()
        self.fstab = base / "fstab"
        self.fstab.write_text("# what was here\nproc /proc proc defaults 0 0\n")

    def file(self, name: str, size_bytes: int = SIZE) -> Path:
        """A blank disk to be, not attached yet."""
        path = self.base / f"{name}.img"
        path.touch()
        os.truncate(path, size_bytes)
        return path

    def attach(self, file: Path, *options: str) -> str:
        """Its stable name; the kernel has the device from now on."""
        node = self._stack.enter_context(loop_device(file, *options))
        link = self.by_id / f"lab-{file.stem}"
        link.symlink_to(node)
        return str(link)

    def run(self, *disks: dict[str, Any], check: bool = False, **arguments: Any) -> dict[str, Any]:
        """vstor_disk, with formatting allowed."""
        arguments = {"state": "present", "allow_format": True, "size_min": "300M", **arguments}
        return self.host.run(
            "vstor_disk",
            check,
            disks=list(disks),
            fstab=str(self.fstab),
            id_directory=str(self.by_id),
            state_directory=str(self.base / "state"),
            **arguments,
        )

    def wish(self, name: str, **more: Any) -> dict[str, Any]:
        """An entry of vstor_cs_disks that is mounted inside the test's directory, and unmounted after it."""
        path = self.base / "mnt" / Path(name).name
        self._stack.callback(unmount, path)
        return {"device": name, "path": str(path), **more}


def unmount(path: Path) -> None:
    if path.is_mount():
        run("umount", path)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    """Everything is unmounted and detached at the end."""
    with ExitStack() as stack:
        yield Disks(tmp_path, stack)


def refused(
    disks: Disks, name: str, file: Path, *words: str, unchanged_bytes: int | None = None, **arguments: Any
) -> str:
    """The run fails, names the disk and every word, and leaves disk (or its first bytes) and fstab as they are; its message."""
    before, fstab = digest(file, unchanged_bytes), disks.fstab.read_text()
    done = disks.run(disks.wish(name), **arguments)
    assert done.get("failed"), done
    message: str = done["msg"]
    for word in (name, *words):
        assert word in message, message
    assert digest(file, unchanged_bytes) == before
    assert disks.fstab.read_text() == fstab
    assert not (disks.base / "state").exists()
    return message


@pytest.mark.parametrize("kind", SIGNATURES)
def test_dirt_is_refused_by_name_and_not_touched(disks: Disks, kind: str) -> None:
    make, word = SIGNATURES[kind]
    file = disks.file(kind)
    make(file)
    name = disks.attach(file)
    message = refused(disks, name, file, word)
    assert f"vstor_disk_wipe: [{name}]" in message
    # Another disk named for wiping gives no leave for this one.
    other = disks.attach(disks.file("other"))
    refused(disks, name, file, word, wipe=[other])


@pytest.mark.parametrize("kind", ["gpt", "several", "foreign-cs", "raw-start"])
def test_dirt_named_once_more_is_wiped(disks: Disks, kind: str) -> None:
    file = disks.file(kind)
    SIGNATURES[kind][0](file)
    name = disks.attach(file)
    done = disks.run(disks.wish(name), wipe=[name])
    assert done["changed"] is True, done
    assert run("blkid", "-p", "-s", "LABEL", "-o", "value", os.path.realpath(name)).strip() == LABEL
    signatures = json.loads(run("wipefs", "--no-act", "--json", os.path.realpath(name)))["signatures"]
    assert [s["type"] for s in signatures] == ["xfs"]


# --- reasons that no leave overrides ------------------------------------------------------------------------------


def test_mounted(disks: Disks, tmp_path: Path) -> None:
    file = disks.file("mounted")
    ext4(file)
    name = disks.attach(file)
    place = tmp_path / "somewhere"
    place.mkdir()
    run("mount", "-o", "ro", os.path.realpath(name), place)
    try:
        refused(disks, name, file, f"is mounted at {place}", wipe=[name])
    finally:
        run("umount", place)


def test_swapped_to(disks: Disks) -> None:
    file = disks.file("swapped")
    SIGNATURES["swap"][0](file)
    name = disks.attach(file)
    # The kernel may swap to it while the test runs: what must stay is the header, in its first page.
    run("swapon", os.path.realpath(name))
    try:
        refused(disks, name, file, "is in use as swap space", wipe=[name], unchanged_bytes=4096)
    finally:
        run("swapoff", os.path.realpath(name))


def test_held_by_another_device(disks: Disks) -> None:
    file = disks.file("held")
    name = disks.attach(file)
    with loop_device(Path(os.path.realpath(name))) as holder:
        refused(disks, name, file, f"is held by {Path(holder).name}", wipe=[name])


def test_in_use_by_somebody_nothing_shows(disks: Disks) -> None:
    file = disks.file("busy")
    name = disks.attach(file)
    handle = os.open(os.path.realpath(name), os.O_RDONLY | os.O_EXCL)
    try:
        refused(disks, name, file, "is in use by the kernel or by another program", wipe=[name])
    finally:
        os.close(handle)


def test_read_only(disks: Disks) -> None:
    file = disks.file("readonly")
    name = disks.attach(file, "--read-only")
    refused(disks, name, file, "is read-only", wipe=[name])


def test_too_small(disks: Disks) -> None:
    file = disks.file("small", 100 * MIB)
    name = disks.attach(file)
    refused(disks, name, file, "has 100.0 MiB, less than 300.0 MiB", wipe=[name])


def with_partition(disks: Disks, file: Path) -> str:
    """A disk whose first partition the kernel knows (told by ioctl: not every kernel reads partition tables); its stable name."""
    mbr(file)
    whole = disks.attach(file, "--partscan")
    node = os.path.realpath(whole)
    if not Path(node + "p1").is_block_device():
        run("addpart", node, "1", "2048", "100000")
    return whole


def test_a_partition_and_its_disk(disks: Disks) -> None:
    file = disks.file("parts")
    whole = with_partition(disks, file)
    part = disks.by_id / "lab-parts-part1"
    part.symlink_to(os.path.realpath(whole) + "p1")
    assert part.is_block_device()
    refused(disks, str(part), file, "is a partition; name the whole disk", wipe=[str(part)])
    refused(disks, whole, file, "has partitions", "MBR")


def test_a_mounted_partition_forbids_wiping_its_disk(disks: Disks, tmp_path: Path) -> None:
    file = disks.file("parts")
    whole = with_partition(disks, file)
    part = os.path.realpath(whole) + "p1"
    run("mkfs.ext4", "-q", part)
    place = tmp_path / "somewhere"
    place.mkdir()
    run("mount", "-o", "ro", part, place)
    try:
        refused(disks, whole, file, f"is mounted at {place}", wipe=[whole])
    finally:
        run("umount", place)


def test_a_disk_that_cannot_be_read(disks: Disks) -> None:
    file = disks.file("failing")
    name = disks.attach(file)
    # The device keeps its size, and reading beyond the end of its file is an I/O error.
    os.truncate(file, 4096)
    refused(disks, name, file, "cannot be", wipe=[name])


def test_unstable_unknown_and_double_names(disks: Disks) -> None:
    file = disks.file("blank")
    name = disks.attach(file)
    before = digest(file)
    node = os.path.realpath(name)
    assert "is no stable name" in disks.run({"device": node})["msg"]
    assert "no such disk on this host" in disks.run({"device": str(disks.by_id / "gone")})["msg"]
    (disks.by_id / "wwn-1").symlink_to(node)
    assert "named twice" in disks.run({"device": name}, {"device": str(disks.by_id / "wwn-1")})["msg"]
    assert "device or filter" in disks.run({"tier": 1})["msg"]
    assert digest(file) == before


def test_one_refusal_stands_against_all_disks(disks: Disks) -> None:
    good, bad = disks.file("good"), disks.file("bad")
    ext4(bad)
    names = [disks.attach(good), disks.attach(bad)]
    before = [digest(good), digest(bad)]
    done = disks.run(*(disks.wish(name) for name in names))
    assert done["failed"]
    assert "ext4" in done["msg"]
    assert [digest(good), digest(bad)] == before


def test_formatting_must_be_allowed(disks: Disks) -> None:
    file = disks.file("blank")
    name = disks.attach(file)
    refused(disks, name, file, "vstor_disk_allow_format", allow_format=False)
    planned = disks.run(disks.wish(name), state="planned", allow_format=False)
    assert planned["permissions"]
    assert not planned["refusals"]


# --- what is formatted --------------------------------------------------------------------------------------------


def test_check_then_format_then_nothing(disks: Disks) -> None:
    file = disks.file("blank")
    name = disks.attach(file)
    wish = disks.wish(name, tier=2)
    before = digest(file)
    planned = disks.run(wish, state="planned")
    assert planned["changed"] is False
    assert planned["disks"][0]["state"] == "format"
    assert Path(name).name in planned["table"][1]
    assert disks.run(wish, check=True)["changed"] is True
    assert digest(file) == before
    assert not Path(wish["path"]).exists()

    done = disks.run(wish)
    assert done["changed"] is True, done
    row = done["disks"][0]
    assert (row["state"], row["tier"]) == ("ready", 2)
    assert Path(wish["path"]).is_mount()
    line = disks.fstab.read_text().splitlines()[-1].split()
    assert line[:3] == [f"UUID={row['uuid']}", wish["path"], "xfs"]
    assert disks.fstab.read_text().startswith("# what was here\nproc /proc proc defaults 0 0\n")
    assert list((disks.base / "state").iterdir()) == []
    Path(wish["path"], "data").write_text("kept")

    again = disks.run(wish)
    assert again["changed"] is False, again
    # Neither allow_format nor the path is needed any more, and naming it for wiping wipes nothing that is ours.
    again = disks.run({"device": name}, allow_format=False, wipe=[name])
    assert again["changed"] is False, again
    assert Path(wish["path"], "data").read_text() == "kept"


def test_what_a_reboot_or_an_interruption_left_is_made_whole(disks: Disks) -> None:
    name = disks.attach(disks.file("blank"))
    wish = disks.wish(name)
    uuid = disks.run(wish)["disks"][0]["uuid"]
    place = Path(wish["path"])
    (place / "data").write_text("kept")
    fstab = disks.fstab.read_text()
    for broken in ("not mounted", "no line"):
        if broken == "not mounted":
            run("umount", place)
        else:
            disks.fstab.write_text("")
        done = disks.run(wish, allow_format=False)
        assert done["changed"] is True, (broken, done)
        assert done["disks"][0]["uuid"] == uuid
        assert (place / "data").read_text() == "kept"
    assert disks.fstab.read_text() == fstab.splitlines()[-1] + "\n"


def test_an_interrupted_format_is_taken_up_again(disks: Disks) -> None:
    file = disks.file("blank")
    name = disks.attach(file)
    wish = disks.wish(name)
    # As after a power cut in mkfs: the note is there, and some of the file system.
    (disks.base / "state").mkdir()
    note = disks.base / "state" / f"{Path(name).name}.json"
    uuid = "11111111-2222-3333-4444-555555555555"
    note.write_text(json.dumps({"uuid": uuid, "size_bytes": SIZE, "serial": "", "path": wish["path"]}))
    put(file, 0, b"XFSB half a superblock")
    done = disks.run(wish)
    assert done["changed"] is True, done
    assert done["disks"][0]["uuid"] == uuid
    assert not note.exists()


def test_a_note_of_another_disk_gives_no_leave(disks: Disks) -> None:
    file = disks.file("blank")
    ext4(file)
    name = disks.attach(file)
    (disks.base / "state").mkdir()
    note = disks.base / "state" / f"{Path(name).name}.json"
    note.write_text(json.dumps({"uuid": "1", "size_bytes": SIZE - 512, "serial": "", "path": "/x"}))
    before = digest(file)
    assert "ext4" in disks.run(disks.wish(name))["msg"]
    assert digest(file) == before


def test_filter_shows_and_waits_for_the_name(disks: Disks) -> None:
    files = [disks.file(f"d{i}", size) for i, size in enumerate((SIZE, SIZE, 1024 * MIB))]
    ext4(files[0])
    names = [disks.attach(file) for file in files]
    before = [digest(file) for file in files]
    wanted = {"filter": {"size_max": "600M"}}
    planned = disks.run(wanted, state="planned")
    assert [(row["id"], row["state"]) for row in planned["disks"]] == [(names[1], "format"), (names[0], "skipped")]
    assert "ext4" in planned["disks"][1]["reasons"][0]
    done = disks.run(wanted)
    assert done["failed"]
    assert f"{names[1]}: was found by a filter" in done["msg"]
    assert "vstor_disk_named" in done["msg"]
    done = disks.run({"filter": {"size_max": "600M", "count": 2}})
    assert done["failed"]
    assert "1 of 2 disks found" in done["msg"]
    assert [digest(file) for file in files] == before


def test_giving_a_disk_up_keeps_its_data(disks: Disks) -> None:
    name = disks.attach(disks.file("blank"))
    wish = disks.wish(name)
    disks.run(wish)
    place = Path(wish["path"])
    (place / "data").write_text("kept")
    assert disks.run(state="absent", path=str(place), check=True)["changed"] is True
    assert place.is_mount()
    assert disks.run(state="absent", path=str(place))["changed"] is True
    assert not place.is_mount()
    assert disks.fstab.read_text() == "# what was here\nproc /proc proc defaults 0 0\n"
    assert disks.run(state="absent", path=str(place))["changed"] is False
    disks.run(wish, allow_format=False)
    assert (place / "data").read_text() == "kept"


def test_a_disk_of_this_cluster_for_another_use_or_place(disks: Disks) -> None:
    file = disks.file("ours")
    run("mkfs.xfs", "-q", "-L", LABEL, file)
    name = disks.attach(file)
    before = digest(file)
    assert "formatted as a cs disk" in disks.run(disks.wish(name, use="journal"))["msg"]
    assert digest(file) == before
    # On a host that is in no cluster it is somebody else's.
    (disks.base / "etc" / "clusters" / "vstor" / "node.crt").unlink()
    assert "another vstor cluster" in disks.run(disks.wish(name))["msg"]
    assert digest(file) == before


def test_the_disk_is_looked_at_once_more_before_the_first_write(disks: Disks, tmp_path: Path) -> None:
    """Between plan and format somebody makes a file system: the tool's own look again refuses it."""
    file = disks.file("race")
    name = disks.attach(file)
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from ansible_collections.vstor.storage.plugins.module_utils import disk_format, disk_probe\n"
        "import subprocess\n"
        "def run(argv):\n"
        "    done = subprocess.run(argv, capture_output=True, text=True)\n"
        "    return done.returncode, done.stdout, done.stderr\n"
        f"prober = disk_probe.Prober(run, {str(disks.by_id)!r}, {str(disks.fstab)!r}, {str(tmp_path / 'state')!r})\n"
        f"facts = next(d for d in prober.probe_disks() if {name!r} in d['ids'])\n"
        f"subprocess.run(['mkfs.ext4', '-q', '-F', facts['device']], check=True)\n"
        f"formatter = disk_format.Formatter(run, prober, {str(disks.fstab)!r}, lambda use: 'vs-000000000')\n"
        f"row = dict(id={name!r}, device=facts['device'], uuid='', state='format', use='cs', path='/nowhere')\n"
        "try:\n"
        "    formatter.apply(row, facts)\n"
        "except disk_format.FormatError as exc:\n"
        "    print(exc)\n"
    )
    collections = Path(__file__).resolve().parents[2] / "collections"
    env = {**os.environ, "PYTHONPATH": str(collections)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert "is not as it was a moment ago" in done.stdout, done.stderr
    assert "ext4" in run("blkid", "-p", "-o", "export", os.path.realpath(name))


def test_foreign_label_is_not_ours_by_a_prefix(disks: Disks) -> None:
    file = disks.file("foreign")
    foreign_cs(file)
    name = disks.attach(file)
    refused(disks, name, file, "vs-123456789")


def test_purge_leaves_a_blank_disk_that_can_be_given_again(disks: Disks) -> None:
    file = disks.file("blank")
    name = disks.attach(file)
    wish = disks.wish(name)
    disks.run(wish)
    before = digest(file)
    assert disks.run(state="purged", path=wish["path"], check=True)["changed"] is True
    assert Path(wish["path"]).is_mount()
    assert disks.run(state="purged", path=wish["path"])["changed"] is True
    assert digest(file) != before
    assert not Path(wish["path"]).exists()
    assert "vstor" not in disks.fstab.read_text()
    assert disks.run(state="purged", path=wish["path"])["changed"] is False
    # As a new disk: nothing has to be named for wiping.
    assert disks.run(wish)["changed"] is True


def test_purge_leaves_a_disk_of_somebody_else_alone(disks: Disks, tmp_path: Path) -> None:
    file = disks.file("foreign")
    foreign_cs(file)
    name = disks.attach(file)
    before = digest(file)
    place = tmp_path / "somewhere"
    place.mkdir()
    run("mount", "-o", "ro,norecovery", os.path.realpath(name), place)
    try:
        assert disks.run(state="purged", path=str(place))["changed"] is False
        assert place.is_mount()
    finally:
        run("umount", place)
    assert digest(file) == before
