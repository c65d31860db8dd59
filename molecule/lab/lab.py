#!/usr/bin/env python3
"""Hosts to test on, in name spaces of this machine: real systemd, sshd, addresses and disks of their own. See README.md beside this file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from vstorlab import base, faults, hosts, snapshot, supervise
from vstorlab.spec import LabError, parse_size, parse_spec
from vstorlab.state import Lab, labs


def _spec_text(source: str) -> str:
    return sys.stdin.read() if source == "-" else Path(source).read_text()


def create(args: argparse.Namespace) -> None:
    """Make a lab from a spec and wait until its hosts can be reached."""
    lab = hosts.create(args.name, parse_spec(_spec_text(args.spec)))
    print(lab.inventory)


def show(args: argparse.Namespace) -> None:
    """Print what a program wants to know of a lab."""
    print(json.dumps(Lab.load(args.name).describe(), indent=1))


def list_labs(_args: argparse.Namespace) -> None:
    """One line a lab."""
    for name in labs():
        lab = Lab.load(name)
        print(
            f"{name}  {lab.network}  "
            + " ".join(f"{h}{'' if supervise.running(lab, h) else ' (off)'}" for h in lab.hosts)
        )


def _on(action):
    def run(args: argparse.Namespace) -> None:
        lab = Lab.load(args.name)
        for host in args.hosts:
            lab.host(host)
        action(lab, args.hosts or list(lab.hosts))

    return run


def _names(text: str) -> list[str]:
    return [n for n in text.split(",") if n]


def main() -> int:
    """Parse the command line and do it. Exit 1 with one line when it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, *arguments, lab=True, help=None):
        sub = verbs.add_parser(name, help=help or (function.__doc__ or "").splitlines()[0])
        if lab:
            sub.add_argument("name", help="name of the lab")
        for flags, options in arguments:
            sub.add_argument(*flags, **options)
        sub.set_defaults(function=function)

    some_hosts = (("hosts",), {"nargs": "*", "help": "none: all"})
    a_host = (("host",), {})
    a_disk = (("disk",), {"type": int, "help": "its number, from 1"})
    verb(
        "base",
        lambda a: print(base.ensure(a.variant, a.rebuild)),
        (("variant",), {"choices": base.VARIANTS}),
        (("--rebuild",), {"action": "store_true"}),
        lab=False,
        help="build the cached root file system",
    )
    verb("list", list_labs, lab=False)
    verb("create", create, (("spec",), {"help": "a file of YAML, - for standard input"}))
    verb(
        "destroy", lambda a: hosts.destroy(a.name), help="stop and remove everything of a lab, also of one that crashed"
    )
    verb("show", show)
    verb(
        "ssh",
        lambda a: sys.exit(hosts.ssh_interactive(Lab.load(a.name), a.host, a.command)),
        a_host,
        (("command",), {"nargs": argparse.REMAINDER}),
        help="a shell or a command on a host",
    )
    verb("power-off", _on(hosts.power_off), some_hosts, help="kill hosts, as if the power was cut")
    verb("power-on", _on(hosts.power_on), some_hosts, help="boot hosts that are off, wait until they can be reached")
    verb("reboot", _on(hosts.reboot), some_hosts, help="orderly reboot, wait until they can be reached")
    verb("shutdown", _on(hosts.shutdown), some_hosts, help="orderly shutdown, wait until they are off")
    verb(
        "partition",
        lambda a: faults.partition(Lab.load(a.name), _names(a.here), _names(a.there), a.one_way),
        (("here",), {"help": "hosts, with commas"}),
        (("there",), {"help": "hosts, with commas; all: all others"}),
        (("--one-way",), {"action": "store_true", "help": "drop only what goes from HERE to THERE"}),
        help="drop what goes between two sets of hosts; SSH from this machine still works",
    )
    verb("heal", lambda a: faults.heal(Lab.load(a.name)), help="end all partitions")
    verb(
        "fill",
        lambda a: faults.fill(Lab.load(a.name), a.host, a.path, parse_size(a.leave)),
        a_host,
        (("path",), {}),
        (("--leave",), {"default": "0", "help": "bytes to leave free"}),
        help="fill a file system of a host; the file is PATH/lab-fill",
    )
    verb(
        "slow-disk",
        lambda a: faults.slow_disk(Lab.load(a.name), a.host, a.disk, parse_size(a.bps), a.iops),
        a_host,
        a_disk,
        (("--bps",), {"default": "0", "help": "bytes a second each way; 0: no limit"}),
        (("--iops",), {"type": int, "default": 0, "help": "requests a second each way; 0: no limit"}),
        help="throttle a disk of a host until its next boot",
    )
    verb(
        "pull-disk",
        lambda a: faults.pull_disk(Lab.load(a.name), a.host, a.disk),
        a_host,
        a_disk,
        help="take a disk out of a running host: its file system fails with EIO, the device is gone",
    )
    verb(
        "insert-disk",
        lambda a: print(faults.insert_disk(Lab.load(a.name), a.host, parse_size(a.size))),
        a_host,
        (("size",), {}),
        help="put a new disk into a host; prints its number",
    )
    verb(
        "remember",
        lambda a: snapshot.take(Lab.load(a.name), tuple(a.besides)),
        (
            ("besides",),
            {"nargs": "*", "help": "paths of hosts to leave out, as var/lib/vstor; disks: what is on the disks"},
        ),
        help="remember the files and disks of hosts for the verb unchanged",
    )
    verb(
        "unchanged",
        lambda a: snapshot.compare(Lab.load(a.name)),
        help="fail when files or disks of hosts are not what they were when the lab was made, or remembered; asked once",
    )
    # Started by power-on: one process a host, which boots it again when it reboots.
    verb("supervise", lambda a: supervise.main(Lab.load(a.name), a.host), a_host, help=argparse.SUPPRESS)

    args = parser.parse_args()
    try:
        args.function(args)
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
