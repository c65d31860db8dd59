"""A small real DNS server over UDP on a loopback port, with the records of a zone file (RFC 1035 section 5)."""

from __future__ import annotations

import socket
import threading
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.zone


class DnsServer:
    """Context manager. `address` is "127.0.0.1:PORT"; `asked` holds what was asked for, as "NAME TYPE"."""

    def __init__(self, zone: str, origin: str = "vstor.test.") -> None:
        self.zone = dns.zone.from_text(zone, origin=origin, relativize=False, check_origin=False)
        self.asked: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="dns-server")

    def _serve(self) -> None:
        while True:
            data, peer = self._sock.recvfrom(4096)
            if not data:
                return
            self._sock.sendto(self._answer(dns.message.from_wire(data)).to_wire(), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA
        question = query.question[0]
        self.asked.append(f"{question.name} {question.rdtype.name}")
        if self.zone.get_node(question.name) is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif (found := self.zone.get_rrset(question.name, question.rdtype)) is not None:
            reply.answer.append(found)
        return reply

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # an empty datagram ends the thread
            sock.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()
