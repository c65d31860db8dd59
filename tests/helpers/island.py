"""A network name space with an address of its own, that can be cut off: a host, as far as the network goes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator


def _run(*argv: str, stdin: str = "") -> None:
    subprocess.run(argv, input=stdin, check=True, capture_output=True, text=True, timeout=30)


class Island:
    """Attributes: outside, inside: addresses of this machine and of the island. prefix: command that runs another one on the island (network only)."""

    def __init__(self) -> None:
        number = os.getpid() % 200
        self.name = f"vsti{os.getpid()}"
        self.outside, self.inside = f"10.211.{number}.1", f"10.211.{number}.2"
        self.prefix = ("nsenter", f"--net=/run/netns/{self.name}")
        _run("ip", "netns", "add", self.name)
        link = f"{self.name[:12]}o"
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "address", "add", f"{self.outside}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        for argv in (
            ("address", "add", f"{self.inside}/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _run(*self.prefix, "ip", *argv)

    @contextlib.contextmanager
    def cut_off(self, ports: list[int] | None = None) -> Iterator[None]:
        """Meanwhile drop everything that comes and goes, or only what has one of these TCP ports on either side. Silently, as a dead switch does."""
        match = "" if ports is None else "tcp {} {{ " + ", ".join(map(str, ports)) + " }}"
        rules = [match.format(side) for side in ("sport", "dport")] if match else [""]
        lines = [f"    {rule} drop" for rule in rules]
        chains = [
            f"  chain {hook} {{\n    type filter hook {hook} priority 0;\n    {side} lo accept\n"
            + "\n".join(lines)
            + "\n  }"
            for hook, side in (("input", "iifname"), ("output", "oifname"))
        ]
        _run(*self.prefix, "nft", "-f", "-", stdin="table inet cut {\n" + "\n".join(chains) + "\n}\n")
        try:
            yield
        finally:
            _run(*self.prefix, "nft", "delete", "table", "inet", "cut")

    def destroy(self) -> None:
        """What runs on it must have ended."""
        _run("ip", "netns", "delete", self.name)
