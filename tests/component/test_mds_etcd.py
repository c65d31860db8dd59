"""vstor-etcd and vstor-mdsd as processes: creation, restart after kill -9, failover, join and remove, bad input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.mds.repository import create_cluster, join_cluster
from vstor.net import pki
from vstor.net.auth import auth_node
from vstor.net.identity import bs_list_path, load_identity
from vstor.net.rpc_client import CallNow, MdsClient, call_sync
from vstor.proto import messages as m

from tests.helpers.cluster import ROOT, Proc, free_base_port, wait_for

NAME = "comp"
PASSWORD = b"of the component test"
pytestmark = pytest.mark.timeout(240)


class Mdss:
    """MDSs of one cluster on this machine, each with an etcd member."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.env = {
            "PATH": "/usr/bin:/bin:/usr/sbin",
            "PYTHONPATH": str(ROOT / "daemons"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.env |= {f"VSTOR_{name}": str(base / name.lower()) for name in ("ETC", "RUN", "LOG", "STATE")}
        self.procs: dict[str, Proc] = {}
        self.addresses: dict[int, str] = {}

    def repo(self, mds_id: int) -> Path:
        return self.base / f"mds{mds_id}"

    def create(self) -> None:
        self.addresses[1] = f"127.0.0.1:{free_base_port('127.0.0.1')}"
        create_cluster(
            NAME,
            self.addresses[1],
            self.repo(1),
            PASSWORD,
            None,
            # long: these sessions are not renewed while the test starts a daemon
            {"mds.lease.ttl": "30000", "mds.lease.margin": "1000"},
        )

    def join(self, mds_id: int) -> dict[str, Any]:
        self.addresses[mds_id] = f"127.0.0.{mds_id}:{free_base_port(f'127.0.0.{mds_id}')}"
        return join_cluster(NAME, self.addresses[mds_id], self.repo(mds_id))

    def start(self, kind: str, mds_id: int, *, wait: bool = True) -> Proc:
        module = {"etcd": "vstor.mds.etcd_member", "mds": "vstor.mds.main"}[kind]
        name = f"{kind}-{mds_id}"
        proc = self.procs.get(name) or Proc(
            name, [sys.executable, "-m", module, "-r", str(self.repo(mds_id))], self.env, self.base / f"{name}.log"
        )
        self.procs[name] = proc
        ready = self.base / "run" / f"{kind}-{NAME}-{mds_id}.ready"
        ready.unlink(missing_ok=True)
        proc.start()

        def check() -> bool:
            assert proc.running, f"{name} ended: {proc.tail()}"
            return ready.exists() and int(ready.read_text()) == proc.pid

        if wait:
            wait_for(f"{name} to be ready: {proc.log}", check, 60)
        return proc

    def start_all(self, mds_id: int) -> None:
        self.start("etcd", mds_id)
        self.start("mds", mds_id)

    def status(self) -> dict[str, Any]:
        reply = call_sync(NAME, m.GetStatus(), deadline_s=60)
        assert isinstance(reply, m.JsonReply)
        found: dict[str, Any] = json.loads(reply.json)
        return found

    def mds(self, mds_id: int) -> dict[str, Any]:
        return next((item for item in self.status()["mds"] if item["id"] == mds_id), {"state": None, "leader": None})

    def stop_all(self) -> None:
        for name in sorted(self.procs, reverse=True):  # mds before etcd
            self.procs[name].kill()


@pytest.fixture
def mdss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mdss]:
    made = Mdss(tmp_path)
    for name in ("VSTOR_ETC", "VSTOR_RUN", "VSTOR_LOG", "VSTOR_STATE"):
        monkeypatch.setenv(name, made.env[name])
    try:
        yield made
    finally:
        made.stop_all()


class Session(MdsClient):
    """A client with a session that is opened once and resumed on later connections."""

    def __init__(self) -> None:
        super().__init__(load_identity(NAME), "client", on_connect=self._open)
        self.session_id = 0
        self.connections = 0

    async def _open(self, call: CallNow) -> None:
        self.connections += 1
        if self.session_id:
            await call(m.SessionResume(self.session_id, []))
            return
        reply = await call(m.SessionOpen("component test", 1, self.identity.host_id, "host"))
        assert isinstance(reply, m.SessionReply)
        self.session_id = reply.session_id

    async def close(self) -> None:
        await self.call(m.SessionClose(self.session_id), deadline_s=60)
        await super().close()

    async def make(self, name: bytes, mode: int = stat.S_IFREG | 0o644) -> int:
        reply = await self.call(m.Create(m.ROOT_INO, name, mode, 0, 0), deadline_s=60)
        assert isinstance(reply, m.EntryReply)
        return reply.attr.ino

    async def find(self, name: bytes, parent: int = m.ROOT_INO) -> int:
        reply = await self.call(m.Lookup(parent, name), deadline_s=60)
        assert isinstance(reply, m.EntryReply)
        return reply.attr.ino

    async def names(self) -> set[bytes]:
        reply = await self.call(m.ReadDir(m.ROOT_INO, 0, 4096), deadline_s=60)
        assert isinstance(reply, m.DirReply)
        return {entry.name for entry in reply.entries}


def test_everything_is_there_after_kill_9(mdss: Mdss) -> None:
    mdss.create()
    mdss.start_all(1)
    assert not (mdss.repo(1) / "bootstrap.json").exists()  # its secrets are in etcd now

    async def first() -> tuple[int, int]:
        client = Session()
        directory = await client.make(b"dir", stat.S_IFDIR | 0o755)
        file = await client.make(b"file")
        await client.call(m.Rename(m.ROOT_INO, b"file", directory, b"renamed"), deadline_s=60)
        await client.call(m.SetXattr(directory, b"user.x", b"value", 0), deadline_s=60)
        mdss.procs["mds-1"].kill()
        mdss.start("mds", 1, wait=False)
        await client.make(b"made during the restart")  # the same client goes on by itself
        assert client.connections == 2
        await client.close()
        return directory, file

    directory, file = asyncio.run(first())

    async def again() -> None:
        client = Session()
        assert await client.names() == {b"dir", b"made during the restart"}
        assert await client.find(b"renamed", directory) == file
        assert await client.find(b"file") == 0
        assert await client.call(m.GetXattr(directory, b"user.x")) == m.BytesReply(b"value")
        await client.close()

    asyncio.run(again())
    for name in ("mds-1", "etcd-1"):
        mdss.procs[name].kill()
    mdss.start_all(1)
    asyncio.run(again())
    assert mdss.procs["mds-1"].stop() == 0
    assert mdss.procs["etcd-1"].stop() in (
        0,
        -signal.SIGTERM,
    )  # etcd dies by the signal it was sent, after its clean-up
    assert "defect" not in mdss.procs["mds-1"].log.read_text()


def test_auth_node_on_another_node(mdss: Mdss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mdss.create()
    mdss.start_all(1)
    monkeypatch.setenv("VSTOR_ETC", str(tmp_path / "other"))
    with pytest.raises(VstorError, match="auth-node"):
        call_sync(NAME, m.GetStatus(), bootstrap=[mdss.addresses[1]])
    with pytest.raises(VstorError) as caught:
        auth_node(NAME, b"wrong", [mdss.addresses[1]])
    assert caught.value.code == ErrorCode.WRONG_PASSWORD
    assert auth_node(NAME, PASSWORD, [mdss.addresses[1]])
    assert not auth_node(NAME, PASSWORD)
    status = mdss.status()
    assert status["cluster"]["name"] == NAME
    assert [(item["id"], item["state"], item["leader"], item["address"]) for item in status["mds"]] == [
        (1, "avail", True, mdss.addresses[1])
    ]
    assert status["mds"][0]["pid"] == mdss.procs["mds-1"].pid


def test_the_client_rides_over_an_etcd_outage(mdss: Mdss) -> None:
    mdss.create()
    mdss.start_all(1)

    async def scenario() -> None:
        client = Session()
        await client.make(b"before")
        mdss.procs["etcd-1"].kill()
        pending = asyncio.create_task(client.make(b"during"))
        await asyncio.sleep(0.5)
        assert not pending.done()
        mdss.start("etcd", 1, wait=False)
        await pending
        assert await client.names() == {b"before", b"during"}
        await client.close()

    asyncio.run(scenario())


def test_failover_to_a_second_mds_and_back(mdss: Mdss) -> None:
    mdss.create()
    mdss.start_all(1)
    assert mdss.join(2)["mds_id"] == 2
    again = join_cluster(NAME, mdss.addresses[2], mdss.repo(2))
    assert (again["mds_id"], again["changed"]) == (2, False)
    mdss.start("etcd", 2)  # ready means: it is in step and votes
    mdss.start("mds", 2)
    wait_for("both MDSs to be there", lambda: all(item["state"] == "avail" for item in mdss.status()["mds"]), 60)

    async def scenario() -> None:
        client = Session()
        await client.make(b"by the first")
        mdss.procs["mds-1"].kill()
        await client.make(b"by the second")
        assert client.hello is not None
        assert client.hello.mds_id == 2
        assert await client.names() == {b"by the first", b"by the second"}
        mdss.start("mds", 1)  # as a standby
        assert (await client.call(m.GetStatus(), deadline_s=60)) is not None
        assert client.hello.mds_id == 2
        mdss.procs["mds-2"].stop()  # hands over at once
        await client.make(b"by the first again")
        assert client.hello.mds_id == 1
        await client.close()

    asyncio.run(scenario())
    asyncio.run(frozen_leader(mdss))
    wait_for("the stopped MDS to be missed", lambda: mdss.mds(2)["state"] == "unavail", 60)
    with pytest.raises(VstorError) as caught:
        call_sync(NAME, m.RemoveMds(1), deadline_s=60)  # it leads
    assert caught.value.code == ErrorCode.UNSAFE
    with pytest.raises(VstorError) as caught:
        call_sync(NAME, m.RemoveMds(9), deadline_s=60)
    assert caught.value.code == ErrorCode.NOT_MDS
    call_sync(NAME, m.RemoveMds(2, dry_run=True), deadline_s=60)
    assert mdss.mds(2)["state"] == "unavail"
    call_sync(NAME, m.RemoveMds(2), deadline_s=60)
    assert [item["id"] for item in mdss.status()["mds"]] == [1]
    mdss.procs["etcd-2"].kill()
    asyncio.run(use_once())  # one member is a quorum again
    with pytest.raises(VstorError) as caught:
        call_sync(NAME, m.RemoveMds(1), deadline_s=60)
    assert "only MDS" in caught.value.message


async def frozen_leader(mdss: Mdss) -> None:
    """The leader stands still; another takes over; when it goes on, it finds out and follows."""
    mdss.start("mds", 2)
    client = Session()
    await client.make(b"before the frost")
    mdss.procs["mds-1"].signal(signal.SIGSTOP)
    try:
        await client.make(b"in the frost")
        assert client.hello is not None
        assert client.hello.mds_id == 2
    finally:
        mdss.procs["mds-1"].signal(signal.SIGCONT)
    await client.make(b"after the frost")
    assert client.hello.mds_id == 2
    assert {b"before the frost", b"in the frost", b"after the frost"} <= await client.names()
    mdss.procs["mds-2"].stop()  # the thawed one leads again
    await client.make(b"thawed")
    assert client.hello.mds_id == 1
    await client.close()


async def use_once() -> None:
    client = Session()
    await client.make(b"used")
    await client.close()


def test_bad_input_is_one_line_and_the_daemon_stays_up(mdss: Mdss) -> None:
    mdss.create()
    etcd = mdss.start("etcd", 1)
    mds = mdss.start("mds", 1)
    host, _, port = mdss.addresses[1].rpartition(":")
    second = Proc("second", mds.argv, mdss.env, mdss.base / "second.log")
    second.start()
    assert second.popen is not None
    assert second.popen.wait(30) == 7
    assert second.tail().splitlines()[0] == f"vstor-mdsd: {mdss.repo(1)} is in use by another process [IN_USE]"
    copy = mdss.base / "copy"
    shutil.copytree(mdss.repo(1), copy, ignore=shutil.ignore_patterns("lock", "data"))
    third = Proc("third", [*mds.argv[:-1], str(copy)], mdss.env, mdss.base / "third.log")
    third.start()
    assert third.popen is not None
    assert third.popen.wait(30) == 7
    assert "cannot listen on" in third.tail()
    (copy / "mds.json").write_bytes(b"{")
    for argv, expected in ((third.argv, 11), ([*mds.argv[:-1], str(mdss.base / "nothing")], 3)):
        broken = Proc("broken", argv, mdss.env, mdss.base / "broken.log")
        broken.start()
        assert broken.popen is not None
        assert broken.popen.wait(30) == expected, broken.tail()
    for offset in (0, 1, 2):
        for garbage in (b"\0" * 100, b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 2000):
            with socket.create_connection((host, int(port) + offset), 5) as sock:
                sock.sendall(garbage)
    with (
        socket.create_connection((host, int(port) + 1), 5) as plain,
        pki.unverified_context().wrap_socket(plain, suppress_ragged_eofs=True) as sock,
    ):
        sock.sendall(b"\xff" * 4096)
        with contextlib.suppress(OSError):  # a reset or an end, both are fine
            sock.recv(1)
    assert mdss.status()["mds"][0]["pid"] == mds.pid
    assert etcd.running
    bs_list_path(NAME).write_text("no address\n")
    with pytest.raises(VstorError, match="line 1"):
        call_sync(NAME, m.GetStatus(), deadline_s=1)
