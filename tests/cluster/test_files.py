"""Files on a real mount, as programs use them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import random
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster

CHUNK = 64 << 20


def on_b(cluster: Cluster, path: Path) -> Path:
    """The same file through mount b."""
    return cluster.mounts["b"] / path.relative_to(cluster.mounts["a"])


def test_mount_is_shown_as_a_vstor_file_system(shared_cluster: Cluster) -> None:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mine = [line for line in lines if line[1] == str(shared_cluster.mounts["a"])]
    assert [(line[0], line[2]) for line in mine] == [("vstor://test", "fuse.vstor")]


def test_what_was_written_is_read_back(mnt: Path) -> None:
    data = random.Random(1).randbytes(3_000_001)
    (mnt / "f").write_bytes(data)
    assert (mnt / "f").read_bytes() == data
    assert (mnt / "f").stat().st_size == len(data)


def test_write_on_one_mount_read_on_the_other_in_turn(shared_cluster: Cluster, mnt: Path) -> None:
    a, b = mnt / "f", on_b(shared_cluster, mnt / "f")
    for turn in range(20):
        writer, reader = (a, b) if turn % 2 == 0 else (b, a)
        data = random.Random(turn).randbytes(10_000 + turn * 777)
        writer.write_bytes(data)
        assert reader.read_bytes() == data, turn
        assert reader.stat().st_size == len(data)


def test_open_files_on_two_mounts_see_each_other(shared_cluster: Cluster, mnt: Path) -> None:
    with (mnt / "f").open("w+b", buffering=0) as fa, on_b(shared_cluster, mnt / "f").open("r+b", buffering=0) as fb:
        for turn in range(30):
            one, other = (fa, fb) if turn % 2 else (fb, fa)
            text = f"turn {turn:08d}".encode()
            os.pwrite(one.fileno(), text, turn * 5)
            assert os.pread(other.fileno(), len(text), turn * 5) == text
            assert os.fstat(other.fileno()).st_size == turn * 5 + len(text)


def test_names_appear_and_vanish_on_the_other_mount(shared_cluster: Cluster, mnt: Path) -> None:
    there = on_b(shared_cluster, mnt)
    for i in range(10):
        name = f"n{i}"
        assert not (there / name).exists()
        (mnt / name).write_bytes(b"x")
        assert (there / name).exists()
        os.rename(there / name, there / (name + "r"))
        assert not (mnt / name).exists()
        (mnt / (name + "r")).unlink()
        assert list(there.iterdir()) == []


def test_random_writes_match_a_model(mnt: Path) -> None:
    rng = random.Random(7)
    size = 2 * CHUNK + 12_345
    positions = [rng.randrange(0, size - 70_000) for _ in range(150)] + [CHUNK - 3, CHUNK - 5000, 2 * CHUNK - 1]
    model: dict[int, int] = {}
    pieces = []
    with (mnt / "f").open("w+b", buffering=0) as f:
        for pos in positions:
            data = rng.randbytes(rng.choice([1, 13, 511, 4096, 4097, 65_536, 69_999]))
            assert os.pwrite(f.fileno(), data, pos) == len(data)
            pieces.append((pos, data))
        expected = bytearray(max(p + len(d) for p, d in pieces))
        for pos, data in pieces:
            expected[pos : pos + len(data)] = data
        os.fsync(f.fileno())
    del model
    got = (mnt / "f").read_bytes()
    assert len(got) == len(expected)
    assert hashlib.sha256(got).digest() == hashlib.sha256(expected).digest()


def test_direct_io(mnt: Path) -> None:
    fd = os.open(mnt / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    buf = mmap.mmap(-1, 1 << 20)
    data = random.Random(3).randbytes(1 << 20)
    buf[:] = data
    assert os.pwrite(fd, buf, 4096) == 1 << 20
    buf[:] = bytes(1 << 20)
    assert os.preadv(fd, [buf], 4096) == 1 << 20
    assert buf[:] == data
    os.close(fd)
    assert (mnt / "f").read_bytes()[4096:] == data


def test_mmap_shared(mnt: Path) -> None:
    (mnt / "f").write_bytes(bytes(100_000))
    with (mnt / "f").open("r+b") as f, mmap.mmap(f.fileno(), 100_000) as m:
        m[5000:5010] = b"0123456789"
        m.flush()
        assert os.pread(f.fileno(), 10, 5000) == b"0123456789"
    assert (mnt / "f").read_bytes()[5000:5010] == b"0123456789"


def test_append_from_two_descriptors(mnt: Path) -> None:
    fds = [os.open(mnt / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    for i in range(50):
        os.write(fds[i % 2], f"{i:03d}\n".encode())
    for fd in fds:
        os.close(fd)
    assert (mnt / "f").read_text().split() == [f"{i:03d}" for i in range(50)]


def test_append_from_two_mounts(shared_cluster: Cluster, mnt: Path) -> None:
    fds = [os.open(p, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for p in (mnt / "f", on_b(shared_cluster, mnt / "f"))]
    for i in range(20):
        os.write(fds[i % 2], f"{i:03d}\n".encode())
    for fd in fds:
        os.close(fd)
    assert (mnt / "f").read_text().split() == [f"{i:03d}" for i in range(20)]


def test_sparse_and_large(mnt: Path) -> None:
    with (mnt / "f").open("w+b", buffering=0) as f:
        os.pwrite(f.fileno(), b"end", 1 << 41)
        assert os.fstat(f.fileno()).st_size == (1 << 41) + 3
        assert os.pread(f.fileno(), 4096, 1 << 40) == bytes(4096)
        assert os.pread(f.fileno(), 10, 1 << 41) == b"end"


def test_truncate_down_and_up_reads_zeros(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"x" * 200_000)
    os.truncate(mnt / "f", 5_001)
    os.truncate(mnt / "f", 150_000)
    assert (mnt / "f").read_bytes() == b"x" * 5_001 + bytes(150_000 - 5_001)
    os.truncate(mnt / "f", 0)
    assert (mnt / "f").read_bytes() == b""


def test_truncate_on_the_other_mount(shared_cluster: Cluster, mnt: Path) -> None:
    (mnt / "f").write_bytes(b"y" * 100_000)
    with (mnt / "f").open("rb", buffering=0) as f:
        assert os.fstat(f.fileno()).st_size == 100_000
        os.truncate(on_b(shared_cluster, mnt / "f"), 10)
        assert os.fstat(f.fileno()).st_size == 10
        assert f.read(100) == b"y" * 10


def test_fallocate_and_punch_hole(mnt: Path) -> None:
    path = mnt / "f"
    path.write_bytes(b"z" * 300_000)
    subprocess.run(["fallocate", "-p", "-o", "4096", "-l", "100000", path], check=True)
    assert path.read_bytes() == b"z" * 4096 + bytes(100_000) + b"z" * (300_000 - 104_096)
    subprocess.run(["fallocate", "-l", "400000", path], check=True)
    assert path.stat().st_size == 400_000
    subprocess.run(["fallocate", "-n", "-l", "900000", path], check=True)
    assert path.stat().st_size == 400_000


def test_rename_replaces_and_unlinked_files_stay_readable(mnt: Path) -> None:
    (mnt / "a").write_bytes(b"A")
    (mnt / "b").write_bytes(b"B")
    with (mnt / "b").open("rb") as old:
        os.rename(mnt / "a", mnt / "b")
        assert old.read() == b"B"
    assert (mnt / "b").read_bytes() == b"A"
    with (mnt / "b").open("r+b", buffering=0) as f:
        (mnt / "b").unlink()
        f.write(b"still here")
        f.seek(0)
        assert f.read() == b"still here"
        assert os.fstat(f.fileno()).st_nlink == 0


def test_rename_rules(mnt: Path) -> None:
    (mnt / "d1/sub").mkdir(parents=True)
    (mnt / "d2").mkdir()
    with pytest.raises(OSError) as exc:
        os.rename(mnt / "d1", mnt / "d1/sub/x")
    assert exc.value.errno == errno.EINVAL
    with pytest.raises(OSError) as exc:
        os.rename(mnt / "d2", mnt / "d1")
    assert exc.value.errno == errno.ENOTEMPTY
    os.rename(mnt / "d1/sub", mnt / "d2")
    assert sorted(p.name for p in mnt.iterdir()) == ["d1", "d2"]


def test_links_symlinks_special_files(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"1")
    os.link(mnt / "f", mnt / "g")
    assert (mnt / "g").stat().st_ino == (mnt / "f").stat().st_ino
    assert (mnt / "f").stat().st_nlink == 2
    (mnt / "f").unlink()
    assert (mnt / "g").stat().st_nlink == 1
    os.symlink("g", mnt / "s")
    assert os.readlink(mnt / "s") == "g"
    assert (mnt / "s").read_bytes() == b"1"
    os.mkfifo(mnt / "p")
    assert stat.S_ISFIFO((mnt / "p").stat().st_mode)


def test_attributes_and_xattrs(mnt: Path) -> None:
    path = mnt / "f"
    path.write_bytes(b"")
    os.chmod(path, 0o4751)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4751
    os.chown(path, 1234, 4321)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    os.setxattr(path, "user.k", b"v" * 1000)
    assert os.getxattr(path, "user.k") == b"v" * 1000
    assert os.listxattr(path) == ["user.k"]
    os.removexattr(path, "user.k")
    with pytest.raises(OSError) as exc:
        os.getxattr(path, "user.k")
    assert exc.value.errno == errno.ENODATA


def test_names(mnt: Path) -> None:
    (mnt / ("n" * 255)).write_bytes(b"1")
    with pytest.raises(OSError) as exc:
        (mnt / ("n" * 256)).write_bytes(b"1")
    assert exc.value.errno == errno.ENAMETOOLONG
    odd = os.fsencode(mnt) + b"/\xff\x01 odd"
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
    assert b"\xff\x01 odd" in os.listdir(os.fsencode(mnt))
    deep = mnt
    for i in range(60):
        deep = deep / f"level{i}"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    assert (deep / "f").read_bytes() == b"deep"


def test_directory_of_many_entries_while_it_changes(mnt: Path) -> None:
    names = {f"entry-{i:05d}" for i in range(3000)}
    for name in names:
        os.close(os.open(mnt / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(mnt)) == names
    with os.scandir(mnt) as entries:
        seen = set()
        for i, entry in enumerate(entries):
            seen.add(entry.name)
            if i == 10:
                os.unlink(mnt / "entry-02999")
    assert names - {"entry-02999"} <= seen | {"entry-02999"}
    assert len(os.listdir(mnt)) == 2999


def test_locks_conflict_across_mounts(shared_cluster: Cluster, mnt: Path) -> None:
    (mnt / "f").write_bytes(b"x" * 100)
    with (mnt / "f").open("r+b") as fa, on_b(shared_cluster, mnt / "f").open("r+b") as fb:
        fcntl.flock(fa, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fb, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fa, fcntl.LOCK_UN)
        fcntl.flock(fb, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fa, fcntl.LOCK_EX, 10, 0)
        code = f"import fcntl,sys; f=open({str(on_b(shared_cluster, mnt / 'f'))!r},'r+b'); fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB, 10, int(sys.argv[1]))"
        assert subprocess.run(["python3", "-c", code, "5"], capture_output=True).returncode != 0
        assert subprocess.run(["python3", "-c", code, "10"], capture_output=True).returncode == 0


def test_sqlite(mnt: Path) -> None:
    db = sqlite3.connect(mnt / "db")
    db.execute("pragma journal_mode=wal")
    db.execute("create table t(i integer primary key, v text)")
    for i in range(200):
        db.execute("insert into t(v) values (?)", (f"value {i}" * 20,))
        if i % 20 == 0:
            db.commit()
    db.commit()
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()
    again = sqlite3.connect(mnt / "db")
    assert again.execute("select count(*) from t").fetchone() == (200,)
    again.close()


def test_tar_out_and_in(mnt: Path) -> None:
    source = Path("/usr/include/linux")
    tar = subprocess.run(["tar", "-C", str(source), "-cf", str(mnt / "t.tar"), "."], check=True)
    assert tar.returncode == 0
    (mnt / "out").mkdir()
    subprocess.run(["tar", "-C", str(mnt / "out"), "-xf", str(mnt / "t.tar")], check=True)
    subprocess.run(["diff", "-r", str(source), str(mnt / "out")], check=True)


def test_git(mnt: Path) -> None:
    env = dict(
        os.environ,
        GIT_CONFIG_GLOBAL="/dev/null",
        GIT_AUTHOR_NAME="t",
        GIT_AUTHOR_EMAIL="t@e",
        GIT_COMMITTER_NAME="t",
        GIT_COMMITTER_EMAIL="t@e",
    )

    def git(*args: str) -> None:
        subprocess.run(["git", *args], check=True, env=env, capture_output=True, timeout=120)

    git("init", "-q", str(mnt / "r"))
    for i in range(100):
        path = mnt / "r" / f"dir{i % 7}" / f"file{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {i}\n" * 50)
    git("-C", str(mnt / "r"), "add", "-A")
    git("-C", str(mnt / "r"), "commit", "-qm", "one")
    git("clone", "-q", str(mnt / "r"), str(mnt / "c"))
    git("-C", str(mnt / "c"), "fsck", "--full", "--strict")
    git("-C", str(mnt / "c"), "gc", "-q")
    git("-C", str(mnt / "c"), "fsck", "--full", "--strict")


@pytest.mark.parametrize(
    ("rw", "direct", "bs"),
    [("randwrite", 1, "4k"), ("randwrite", 0, "4k-64k"), ("write", 1, "1m"), ("write", 0, "128k")],
)
def test_fio_verify(mnt: Path, rw: str, direct: int, bs: str) -> None:
    size = "32m"
    done = subprocess.run(
        ["fio", "--name=v", f"--directory={mnt}", f"--rw={rw}", f"--direct={direct}", f"--{'bsrange' if '-' in bs else 'bs'}={bs}", f"--size={size}",
         "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--end_fsync=1", "--randseed=5"],
        capture_output=True, text=True, timeout=180, cwd=mnt,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_statfs_tells_real_space(mnt: Path) -> None:
    vfs = os.statvfs(mnt)
    assert vfs.f_namemax == 255
    assert 0 < vfs.f_bavail * vfs.f_frsize < os.statvfs("/").f_blocks * os.statvfs("/").f_frsize


def test_holes_are_found_by_chunks(shared_cluster: Cluster, mnt: Path, tmp_path: Path) -> None:
    """SEEK_DATA and SEEK_HOLE, what was written a moment ago included; and what programs make of it."""
    chunk = 64 << 20

    def seek(fd: int, offset: int, whence: int) -> int | None:
        try:
            return os.lseek(fd, offset, whence)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return None

    with (mnt / "f").open("w+b", buffering=0) as f, on_b(shared_cluster, mnt / "f").open("rb") as far:
        os.pwrite(f.fileno(), b"x", chunk + 5)
        os.ftruncate(f.fileno(), (1 << 40) + 1)
        os.pwrite(f.fileno(), b"x", 300 * chunk)  # the next GetMap
        for fd in (f.fileno(), far.fileno(), f.fileno()):
            assert [seek(fd, at, os.SEEK_DATA) for at in (0, chunk + 7, 2 * chunk, 301 * chunk, 1 << 41)] == [
                chunk, chunk + 7, 300 * chunk, None, None,
            ]  # fmt: skip
            assert [seek(fd, at, os.SEEK_HOLE) for at in (0, 9, chunk, 300 * chunk + 1, 1 << 40, 1 << 41)] == [
                0, 9, 2 * chunk, 301 * chunk, 1 << 40, None,
            ]  # fmt: skip
        os.ftruncate(f.fileno(), 301 * chunk)
        assert seek(f.fileno(), 300 * chunk, os.SEEK_HOLE) == 301 * chunk
    subprocess.run(["cp", "--sparse=auto", mnt / "f", tmp_path / "f"], check=True, timeout=60)
    assert (tmp_path / "f").stat().st_blocks * 512 <= 2 * chunk
    assert (tmp_path / "f").stat().st_size == 301 * chunk
