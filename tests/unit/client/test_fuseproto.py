"""fuseproto against <linux/fuse.h>, and parsing of what the kernel sends."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from vstor.client import fuseproto as fp
from vstor.proto.messages import Attr

SIZES = {
    "fuse_in_header": fp.IN_HEADER.size,
    "fuse_out_header": fp.OUT_HEADER.size,
    "fuse_attr": fp.ATTR.size,
    "fuse_entry_out": fp.ENTRY_OUT_BYTES,
    "fuse_attr_out": fp.ATTR_HEAD.size + fp.ATTR.size,
    "fuse_open_out": fp.OPEN_OUT.size,
    "fuse_setattr_in": fp.SETATTR_IN.size,
    "fuse_statfs_out": fp.STATFS_OUT.size,
    "fuse_lk_in": fp.LK_IN.size,
    "fuse_lk_out": fp.LK_OUT.size,
    "fuse_write_in": fp.WRITE_IN.size,
    "fuse_read_in": fp.READ_IN.size,
    "fuse_fallocate_in": fp.FALLOCATE_IN.size,
    "fuse_lseek_in": fp.LSEEK_IN.size,
    "fuse_release_in": fp.RELEASE_IN.size,
    "fuse_flush_in": fp.FLUSH_IN.size,
    "fuse_fsync_in": fp.FSYNC_IN.size,
    "fuse_getattr_in": fp.GETATTR_IN.size,
    "fuse_create_in": fp.CREATE_IN.size,
    "fuse_open_in": fp.OPEN_IN.size,
    "fuse_mknod_in": fp.MKNOD_IN.size,
    "fuse_mkdir_in": fp.MKDIR_IN.size,
    "fuse_rename2_in": fp.RENAME2_IN.size,
    "fuse_getxattr_in": fp.GETXATTR.size,
    "fuse_forget_one": fp.FORGET_ONE.size,
    "fuse_notify_inval_inode_out": fp.INVAL_INODE_OUT.size,
    "fuse_write_out": fp.WRITE_OUT.size,
}
OFFSETS = {
    ("fuse_setattr_in", "mode"): 4 + 4 + 6 * 8 + 3 * 4,
    ("fuse_setattr_in", "gid"): 4 + 4 + 6 * 8 + 6 * 4,
    ("fuse_attr", "mode"): 60,
    ("fuse_attr", "blksize"): 80,
    ("fuse_lk_in", "lk.type"): 32,
    ("fuse_lk_in", "lk_flags"): 40,
    ("fuse_write_in", "flags"): 32,
    ("fuse_release_in", "release_flags"): 12,
    ("fuse_direntplus", "dirent"): fp.ENTRY_OUT_BYTES,
}
ATTR = Attr(7, 3, stat.S_IFREG | 0o640, 2, 11, 12, 13, 5000, 16, 1_500_000_001, -1, 2_000_000_000_000_000_003)


def test_layouts_are_those_of_the_kernel_header(tmp_path: Path) -> None:
    lines = [f'printf("%zu\\n", sizeof(struct {name}));' for name in SIZES]
    lines += [f'printf("%zu\\n", offsetof(struct {name}, {field}));' for name, field in OFFSETS]
    lines += [f'printf("%d\\n", FUSE_{op.name});' for op in fp.Op if op is not fp.Op.STATX]
    source = tmp_path / "sizes.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\nint main(void){\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "sizes", source], check=True)
    got = [int(n) for n in subprocess.run([tmp_path / "sizes"], check=True, capture_output=True).stdout.split()]
    wanted = [*SIZES.values(), *OFFSETS.values(), *(int(op) for op in fp.Op if op is not fp.Op.STATX)]
    names = [*SIZES, *OFFSETS, *(op.name for op in fp.Op if op is not fp.Op.STATX)]
    assert dict(zip(map(str, names), got, strict=True)) == dict(zip(map(str, names), wanted, strict=True))


def message(opcode: int, body: bytes, nodeid: int = 1) -> bytes:
    return fp.IN_HEADER.pack(fp.IN_HEADER.size + len(body), opcode, 42, nodeid, 1000, 1001, 77, 0, 0) + body


def test_parse() -> None:
    request = fp.parse(message(fp.Op.LOOKUP, b"name\0", 5))
    assert (request.opcode, request.unique, request.nodeid) == (fp.Op.LOOKUP, 42, 5)
    assert (request.uid, request.gid, request.pid) == (1000, 1001, 77)
    assert fp.cstring(request.body) == b"name"


@pytest.mark.parametrize("bad", [b"", b"x" * 39, message(1, b"a\0")[:-1], message(1, b"a\0") + b"x"])
def test_parse_refuses_what_does_not_have_its_length(bad: bytes) -> None:
    with pytest.raises(ValueError, match="FUSE message"):
        fp.parse(bad)


def test_two_names_and_a_name_without_end() -> None:
    assert fp.two_cstrings(memoryview(b"12345678old\0new\0"), 8) == (b"old", b"new")
    with pytest.raises(ValueError, match="end"):
        fp.cstring(memoryview(b"abc"))


def test_extensions_are_cut_off() -> None:
    body = b"name\0\0\0\0" + b"E" * 8
    raw = fp.IN_HEADER.pack(fp.IN_HEADER.size + len(body), 1, 42, 1, 0, 0, 0, 1, 0) + body
    assert bytes(fp.parse(raw).body) == b"name\0\0\0\0"


def test_forgets() -> None:
    assert fp.forgets(fp.parse(message(fp.Op.FORGET, fp.U64.pack(3), 9))) == [(9, 3)]
    batch = fp.GETXATTR.pack(2, 0) + fp.FORGET_ONE.pack(9, 1) + fp.FORGET_ONE.pack(10, 4)
    assert fp.forgets(fp.parse(message(fp.Op.BATCH_FORGET, batch))) == [(9, 1), (10, 4)]


def test_attr_times_before_1970_and_nanoseconds() -> None:
    fields = fp.ATTR.unpack(fp.attr(ATTR))
    ino, size, blocks, atime, mtime, ctime, ansec, mnsec, cnsec, mode, nlink, uid, gid, rdev, blksize, flags = fields
    assert (ino, size, blocks, mode, nlink, uid, gid, rdev, flags) == (7, 5000, 16, ATTR.mode, 2, 11, 12, 13, 0)
    assert (atime, ansec) == (1, 500_000_001)
    assert (mtime, mnsec) == (2**64 - 1, 999_999_999)  # one ns before the epoch
    assert ctime * fp.NSEC + cnsec == ATTR.ctime_ns
    assert blksize == 4096


def test_entry_out_validity() -> None:
    raw = fp.entry_out(ATTR, 1500, -5)
    nodeid, generation, entry_s, attr_s, entry_ns, attr_ns = fp.ENTRY_HEAD.unpack_from(raw)
    assert (nodeid, generation) == (7, 3)
    assert (entry_s, entry_ns) == (1, 500_000_000)
    assert (attr_s, attr_ns) == (0, 0)


def test_dirents_are_padded_to_eight_bytes() -> None:
    for length in range(1, 20):
        name = b"n" * length
        one = fp.dirent(5, 16, stat.S_IFREG >> 12, name)
        plus = fp.direntplus(bytes(fp.ENTRY_OUT_BYTES), 5, 16, stat.S_IFREG >> 12, name)
        assert len(one) % 8 == 0
        assert len(plus) == fp.ENTRY_OUT_BYTES + len(one)
        assert fp.DIRENT.unpack_from(one) == (5, 16, length, 8)
        assert one[fp.DIRENT.size :].rstrip(b"\0") == name


def test_statfs_counts_blocks() -> None:
    fields = fp.STATFS_OUT.unpack(fp.statfs_out(1 << 40, 1 << 39, 10, 5))
    assert fields[:5] == (1 << 28, 1 << 27, 1 << 27, 10, 5)
    assert fields[5:8] == (4096, 255, 4096)
