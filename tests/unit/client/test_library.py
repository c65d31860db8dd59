"""The blocking library on a fake engine and the real state machine."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from vstor.client import Client
from vstor.client.volume import Volume

from tests.helpers.fakeengine import Disk, FakeNative
from tests.helpers.fakemds import FakeMds, FakeRpc


@pytest.fixture
def client() -> Iterator[Client]:
    mds: list[FakeMds] = []

    def make_volume() -> Volume:
        mds.append(FakeMds(config={"fs.failure_domain": "disk"}))

        def make_rpc(on_push: Callable[[Any], None], on_connect: Any) -> FakeRpc:
            return FakeRpc(mds[0], "c" * 16, on_push, on_connect)

        disk = Disk()
        return Volume(make_rpc, lambda mode: FakeNative(disk, mode), name="library", host_id="c" * 16, host="h")

    with Client("test", make_volume=make_volume) as built:
        yield built
        built.call(mds[0].close())


def test_files(client: Client) -> None:
    client.mkdir("/d")
    with client.open("/d/f", "x+b") as f:
        assert f.pwrite(b"hello", 3) == 5
        assert f.append(b"!") == 1
        assert f.size == 9
        f.sync()
        assert f.pread(100, 0) == b"\0\0\0hello!"
        f.punch(3, 2)
        assert f.pread(9, 0) == b"\0\0\0\0\0llo!"
        f.truncate(4)
        assert f.pread(100, 0) == bytes(4)
    assert client.stat("/d/f").size == 4
    with client.open("/d/f") as f, pytest.raises(OSError, match="not open for writing") as caught:
        f.pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    with client.open("/d/f", "ab") as f:
        f.pwrite(b"end", 0)
    with client.open("/d/f", "r+b") as f:
        assert f.pread(100, 0) == bytes(4) + b"end"
    with client.open("/d/f", os.O_RDWR | os.O_TRUNC) as f:
        assert f.size == 0


def test_names(client: Client) -> None:
    client.mkdir("/a", 0o700)
    client.mkdir("/a/b")
    client.open("/a/b/f", "wb").close()
    client.symlink("b/../b/f", "/a/l")
    client.symlink("/a/l", "/ll")
    assert client.readlink("/a/l") == b"b/../b/f"
    assert client.stat("/ll").ino == client.lstat("/a/b/f").ino
    assert stat.S_ISLNK(client.lstat("/ll").mode)
    client.link("/a/b/f", "/a/g")
    assert client.stat("/a/g").nlink == 2
    client.rename("/a/g", "/a/h")
    assert sorted(client.listdir("/a")) == [b"b", b"h", b"l"]
    assert not client.exists("/a/g")
    assert client.stat("/a/b/../h").ino == client.stat("/a/h").ino
    for path in ("/a/h", "/a/b/f", "/a/l", "/ll"):
        client.unlink(path)
    client.rmdir("/a/b")
    client.rmdir("/a")
    assert client.listdir() == []
    assert client.statfs().total_bytes > 0


def test_attributes(client: Client) -> None:
    client.open("/f", "wb").close()
    attr = client.setattr("/f", mode=0o600, uid=5, mtime_ns=77)
    assert (stat.S_IMODE(attr.mode), attr.uid, attr.mtime_ns) == (0o600, 5, 77)
    client.truncate("/f", 12)
    assert client.stat("/f").size == 12
    client.setxattr("/f", b"user.a", b"1")
    assert (client.getxattr("/f", b"user.a"), client.listxattr("/f")) == (b"1", [b"user.a"])
    client.removexattr("/f", b"user.a")
    assert client.listxattr("/f") == []


def test_errors_are_those_of_the_system(client: Client) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        client.stat("/missing")
    assert caught.value.filename == "/missing"
    client.mkdir("/d")
    with pytest.raises(FileExistsError):
        client.mkdir("/d")
    with pytest.raises(IsADirectoryError):
        client.open("/d", "r+b")
    with pytest.raises(IsADirectoryError):
        client.unlink("/d")
    client.open("/f", "xb").close()
    with pytest.raises(FileExistsError):
        client.open("/f", "xb")
    with pytest.raises(NotADirectoryError):
        client.stat("/f/x")
    with pytest.raises(OSError, match="absolute"):
        client.stat("relative")
    client.symlink("loop", "/loop")
    with pytest.raises(OSError, match="symbolic links") as loop:
        client.stat("/loop")
    assert loop.value.errno == errno.ELOOP


def test_a_client_that_cannot_start_says_why_and_leaves_no_thread() -> None:
    class Unreachable(Volume):
        async def start(self, deadline_s: float | None = None) -> None:
            raise OSError(errno.EHOSTUNREACH, "nobody there")

        async def close(self) -> None:
            await asyncio.sleep(0)

    def make() -> Volume:
        return Unreachable(lambda _p, _c: None, FakeNative, name="x", host_id="", host="")  # type: ignore[arg-type,return-value]

    import threading

    with pytest.raises(OSError, match="nobody there"):
        Client("test", make_volume=make)
    assert not [thread for thread in threading.enumerate() if thread.name == "vstor-test"]


def test_an_unknown_mode_is_named(client: Client) -> None:
    with pytest.raises(ValueError, match="'r' is not one of rb"):
        client.open("/f", "r")
