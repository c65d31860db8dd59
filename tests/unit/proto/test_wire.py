"""Generated structs, tickets and keys against the golden files that the C tests read too."""

from __future__ import annotations

from pathlib import Path

import pytest
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.crc32c_py import crc32c
from vstor.errors import VstorError
from vstor.proto import tickets, wire_gen

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def golden(name: str) -> dict[str, bytes]:
    lines = (GOLDEN / name).read_text().splitlines()
    return {key: bytes.fromhex(value) for key, value in (line.split() for line in lines if not line.startswith("#"))}


@pytest.fixture(scope="module")
def session() -> dict[str, bytes]:
    return golden("session.hex")


def test_session_key_and_macs(session: dict[str, bytes]) -> None:
    hello = wire_gen.Hello.unpack(session["hello"])
    ack = wire_gen.HelloAck.unpack(session["hello_ack"])
    key = tickets.session_key(session["cs_key"], hello.session_id, hello.expiry_ms)
    assert key == session["session_key"]
    assert tickets.hello_ack_mac(key, hello, ack) == ack.mac
    assert tickets.prove_mac(key, hello, ack) == session["prove"]
    assert hello.pack() == session["hello"]
    assert ack.pack() == session["hello_ack"]


def make(session: dict[str, bytes]) -> bytes:
    return tickets.make_ticket(
        session["ticket_key"],
        3,
        session_id=0x1122334455667788,
        chunk_id=77,
        chunk_version=5,
        chunk_bytes=64 << 20,
        expiry_ms=1900000000000,
        write=True,
        create=True,
    )


def test_ticket_is_the_golden_one(session: dict[str, bytes]) -> None:
    assert make(session) == session["ticket"]
    ticket = tickets.verify_ticket({3: session["ticket_key"]}, session["ticket"], 0x1122334455667788, 1899999999999)
    assert (ticket.chunk_id, ticket.chunk_version, ticket.mode) == (77, 5, wire_gen.TicketMode.WRITE)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"session_id": 1}, ErrorCode.DENIED),
        ({"now_ms": 1900000000000}, ErrorCode.EXPIRED),
        ({"keys": {4: bytes(32)}}, ErrorCode.DENIED),
        ({"keys": {3: bytes(32)}}, ErrorCode.DENIED),
        ({"flip": 24}, ErrorCode.DENIED),
        ({"flip": 40}, ErrorCode.DENIED),
        ({"flip": 63}, ErrorCode.DENIED),
        ({"cut": True}, ErrorCode.DENIED),
    ],
)
def test_ticket_refusals(session: dict[str, bytes], change: dict[str, object], code: ErrorCode) -> None:
    data = bytearray(session["ticket"])
    if "flip" in change:
        data[int(str(change["flip"]))] ^= 1
    if "cut" in change:
        data = data[:63]
    keys = change.get("keys", {3: session["ticket_key"]})
    with pytest.raises(VstorError) as caught:
        tickets.verify_ticket(
            keys,  # type: ignore[arg-type]
            bytes(data),
            int(str(change.get("session_id", 0x1122334455667788))),
            int(str(change.get("now_ms", 0))),
        )
    assert caught.value.code is code


def test_frames_have_the_crc_of_their_header() -> None:
    for key, value in golden("frames.hex").items():
        if key.startswith("ok_"):
            frame = wire_gen.Frame.unpack(value)
            assert frame.magic == wire_gen.MAGIC
            assert frame.header_crc == crc32c(value[:60])
            assert frame.pack() == value


def test_reserved_and_length_are_checked(session: dict[str, bytes]) -> None:
    data = bytearray(session["hello"])
    data[21] = 1
    with pytest.raises(ValueError, match="reserved"):
        wire_gen.Hello.unpack(bytes(data))
    with pytest.raises(ValueError, match="56 bytes"):
        wire_gen.Hello.unpack(bytes(data[:-1]))


def test_every_error_has_a_row_and_an_exit_code() -> None:
    assert set(ERRORS) == set(ErrorCode)
    for code, info in ERRORS.items():
        assert ErrorCode(code).name == info.name
        assert (info.exit_code == 0) == (code == 0)
        assert VstorError(code).errno >= (code != 0)
