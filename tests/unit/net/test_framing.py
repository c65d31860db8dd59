"""Frames in every cut."""

from __future__ import annotations

import pytest
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.net import framing
from vstor.proto import messages as m


def test_every_cut_gives_the_same_messages() -> None:
    sent = [
        m.Request(1, m.GetStatus()),
        m.Reply(2, m.BytesReply(b"x" * 300)),
        m.Failure(3, 32, "no"),
        m.Push(m.Recall(1, 0, 4)),
    ]
    data = b"".join(framing.pack(e) for e in sent)
    for size in (1, 2, 3, 5, 7, 64, len(data)):
        reader = framing.FrameReader()
        got = [e for i in range(0, len(data), size) for e in reader.feed(data[i : i + size])]
        assert got == sent


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\x7f",
        b"\0\0\0\0",
        b"\x01\0\0\0\xc1",
        framing.pack(m.Failure(1, 2, "x"))[:-1] + b"\xc1",
    ],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(VstorError):
        framing.FrameReader().feed(data)
    with pytest.raises(VstorError):
        feed_bytewise(framing.FrameReader(), data)


def feed_bytewise(reader: framing.FrameReader, data: bytes) -> None:
    for i in range(len(data)):
        reader.feed(data[i : i + 1])


def test_pack_bound() -> None:
    with pytest.raises(VstorError) as caught:
        framing.pack(m.Reply(1, m.BytesReply(b"\0" * m.FRAME_BYTES_MAX)))
    assert caught.value.code == ErrorCode.TOO_LARGE
