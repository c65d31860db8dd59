"""The bridge of a lab, and its way to Debian's packages: a proxy that knows no other place."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.parse
from pathlib import Path

from vstorlab import base
from vstorlab.spec import LabError
from vstorlab.state import Lab
from vstorlab.tools import is_program, kill, read_pid, run, wait_until

PROXY_PORT = 3128


def links() -> set[str]:
    """Names of the network interfaces of this machine."""
    return {i["ifname"] for i in json.loads(run("ip", "-j", "link"))}


def make_bridge(lab: Lab) -> None:
    """Make the bridge, with this machine's address on it."""
    if lab.bridge in links():
        return
    run("ip", "link", "add", lab.bridge, "type", "bridge")
    run("ip", "address", "add", f"{lab.gateway}/{lab.network.prefixlen}", "dev", lab.bridge)
    run("ip", "address", "add", f"{lab.network6[1]}/{lab.network6.prefixlen}", "dev", lab.bridge, "nodad")
    run("ip", "link", "set", lab.bridge, "up")


def remove_bridge(lab: Lab) -> None:
    """Remove the bridge and what is left of its ports."""
    left = links()
    for name in [*(lab.port(h) for h in lab.hosts), lab.bridge]:
        if name in left:
            run("ip", "link", "delete", name)


def unplug(lab: Lab, host: str) -> None:
    """Take a host off the bridge at once: nothing that it sends any more arrives, as at a power cut. Else the kernel keeps the port of a host that was
    killed until its connections have given up, and it could not boot again."""
    if lab.port(host) not in links():
        return
    try:
        run("ip", "link", "delete", lab.port(host))
    except LabError:
        if lab.port(host) in links():  # it may have gone by itself meanwhile
            raise


def start_proxy(lab: Lab) -> None:
    """Run tinyproxy on the bridge. It reaches the machines of this machine's apt sources and nothing else."""
    if proxy_pid(lab) is not None:
        return
    config = lab.directory / "tinyproxy.conf"
    allowed = lab.directory / "tinyproxy.filter"
    allowed.write_text("".join(f"^{re.escape(h)}$\n" for h in sorted(base.archive_hosts(Path(lab.base)))))
    lines = [
        f"Port {PROXY_PORT}", f"Listen {lab.gateway}", f"Allow {lab.network}", "Timeout 120", "LogLevel Warning", "MaxClients 100",
        f'Filter "{allowed}"', "FilterDefaultDeny Yes", "FilterExtended On", "ConnectPort 443",
    ]  # fmt: skip
    if upstream := base.apt_settings().get("Acquire::http::Proxy"):
        lines.append(f"Upstream http {urllib.parse.urlsplit(upstream).netloc}")
    config.write_text("\n".join(lines) + "\n")
    with (lab.directory / "tinyproxy.log").open("ab") as log:
        process = subprocess.Popen(
            ["tinyproxy", "-d", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    (lab.directory / "tinyproxy.pid").write_text(str(process.pid))


def proxy_pid(lab: Lab) -> int | None:
    """Process id of the lab's proxy when it runs."""
    pid = read_pid(lab.directory / "tinyproxy.pid")
    return pid if pid is not None and is_program(pid, ["-c", str(lab.directory / "tinyproxy.conf")]) else None


def stop_proxy(lab: Lab) -> None:
    """Stop it."""
    pid = proxy_pid(lab)
    if pid is not None:
        kill(pid, signal.SIGKILL)
        wait_until(lambda: proxy_pid(lab) is None, 10, "the proxy ends")


def apt_proxy(lab: Lab) -> str:
    """Setting of the hosts' apt: the proxy, or one that refuses, so that nothing waits for what is not there."""
    port = PROXY_PORT if lab.apt == "proxy" else 9
    proxies = [f'Acquire::{scheme}::Proxy "http://{lab.gateway}:{port}";' for scheme in ("http", "https")]
    # Hosts of the lab may have a repository themselves.
    return "\n".join([*proxies, *(f'Acquire::http::Proxy::{host} "DIRECT";' for host in lab.hosts)]) + "\n"


def cut(lab: Lab, pairs: list[tuple[str, str]]) -> None:
    """Drop every frame from the first to the second of each pair of hosts, besides what is dropped already."""
    rules = [
        f"add table bridge {lab.bridge}",
        f"add chain bridge {lab.bridge} cut {{ type filter hook forward priority 0; }}",
    ]
    for here, there in pairs:
        rules.append(f'add rule bridge {lab.bridge} cut iifname "{lab.port(here)}" oifname "{lab.port(there)}" drop')
    run("nft", "-f", "-", data="\n".join(rules) + "\n")


def mend(lab: Lab) -> None:
    """Drop nothing any more."""
    if any(
        t.get("table", {}).get("name") == lab.bridge for t in json.loads(run("nft", "-j", "list", "tables"))["nftables"]
    ):
        run("nft", "delete", "table", "bridge", lab.bridge)


def check_programs() -> None:
    """Say early what is missing. Raises LabError."""
    if os.geteuid() != 0:
        raise LabError("only root can make hosts: run this as root")
    for program in ("debootstrap", "systemd-nspawn", "ip", "nft", "losetup", "ssh-keygen", "tinyproxy"):
        if not any(Path(d, program).exists() for d in os.get_exec_path()):
            raise LabError(f"{program} is not installed: run make setup")
