"""kill -9 of a chunk server under load, many times on the same directory: every acknowledged write is there, every block old or new.

Each write stamps its blocks with its own number. For each block the model keeps what it may hold: the last state known to be in force,
then everything sent after it. An acknowledgement removes what is older. (Power cuts need a disk that forgets: tests/cluster.)
"""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest
from vstor.proto.wire_gen import FrameType

from tests.helpers.csprocess import CsProcess
from tests.helpers.dataclient import MIB, DataClient

BLOCK = 4096
CHUNK = 4 * MIB
BLOCKS = CHUNK // BLOCK
CHUNK_IDS = (0x101, 0x202, 0x303)
DEPTH = 24
ROUNDS = 10


def stamped(stamp: int) -> bytes:
    return struct.pack("<Q", stamp) * (BLOCK // 8)


class Model:
    def __init__(self) -> None:
        self.may: dict[int, list[list[int]]] = {c: [[0] for _ in range(BLOCKS)] for c in CHUNK_IDS}
        self.stamp = 0
        self.sent: dict[int, tuple[int, int, int, int]] = {}  # request id -> chunk, first block, end, stamp

    def send(self, client: DataClient, rng: random.Random) -> None:
        chunk_id = rng.choice(CHUNK_IDS)
        count = rng.choice((1, 1, 1, 2, 7, 15, 15, 16, 64, 256))
        first = rng.randrange(BLOCKS - count + 1)
        handle = CHUNK_IDS.index(chunk_id)
        if rng.random() < 0.1:
            stamp = 0
            request = client.send(FrameType.PUNCH, **client.fields(handle, first * BLOCK, count * BLOCK))
        else:
            self.stamp += 1
            stamp = self.stamp
            data = stamped(stamp) * count
            request = client.send_write(handle, first * BLOCK, data, durable=rng.random() < 0.2)
        self.sent[request] = (chunk_id, first, first + count, stamp)
        for states in self.may[chunk_id][first : first + count]:
            states.append(stamp)

    def acknowledged(self, request: int) -> None:
        if request not in self.sent:  # a SYNC
            return
        chunk_id, first, end, stamp = self.sent.pop(request)
        for states in self.may[chunk_id][first:end]:
            if stamp in states:
                del states[: states.index(stamp)]

    def compare(self, client: DataClient) -> None:
        """Every block against what it may hold; from now on it must stay so."""
        self.sent.clear()
        for handle, chunk_id in enumerate(CHUNK_IDS):
            for offset in range(0, CHUNK, MIB):
                data = client.read(handle, offset, MIB)
                assert isinstance(data, bytes), f"status {data} at chunk {chunk_id} offset {offset}"
                for i in range(MIB // BLOCK):
                    content = data[i * BLOCK : (i + 1) * BLOCK]
                    stamp = struct.unpack_from("<Q", content)[0]
                    block = offset // BLOCK + i
                    assert content == stamped(stamp), f"torn: chunk {chunk_id} block {block}"
                    states = self.may[chunk_id][block]
                    assert stamp in states, f"chunk {chunk_id} block {block} holds {stamp}, may be {states}"
                    states[:] = [stamp]


def connect(server: CsProcess) -> DataClient:
    client = server.connect()
    for handle, chunk_id in enumerate(CHUNK_IDS):
        assert client.open(handle, chunk_id, 1, CHUNK, create=True) == 0
    return client


def load(client: DataClient, model: Model, rng: random.Random, requests: int) -> None:
    """Send `requests`, DEPTH of them ahead; the last ones stay without an answer."""
    outstanding = 0
    for i in range(requests):
        if i % 100 == 99:
            client.send(FrameType.SYNC)
        else:
            model.send(client, rng)
        outstanding += 1
        if outstanding > DEPTH:
            reply = client.receive()
            assert reply.status == 0
            model.acknowledged(reply.frame.request_id)
            outstanding -= 1


@pytest.mark.parametrize("no_uring", [False, True], ids=["uring", "pool"])
def test_kill_under_load(tmp_path: Path, no_uring: bool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = Model()
    for _ in range(ROUNDS):
        server = CsProcess(tmp_path, no_uring=no_uring)
        try:
            if rng.random() < 0.3:  # also while it starts: replay must be repeatable
                time.sleep(rng.random() * 0.4)
                continue
            with connect(server) as client:
                model.compare(client)
                load(client, model, rng, rng.choice((1, 30, 200, 900)))
                if rng.random() < 0.2:
                    time.sleep(1.2)  # the checkpoint of an idle server is under way or done
        finally:
            server.kill()
    server = CsProcess(tmp_path, no_uring=no_uring)
    try:
        with connect(server) as client:
            model.compare(client)
    finally:
        server.kill()
