"""vstor-csd: the chunk server daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vstor import native, paths
from vstor.clock import boottime_ms, unix_ms
from vstor.codes_gen import ErrorCode
from vstor.cs import inventory, repository, stats
from vstor.cs.engine import EngineHost
from vstor.cs.orders import OrderRunner
from vstor.cs.replicator import Replicator
from vstor.cs.repository import CsIdentity
from vstor.cs.scrubber import Scrubber
from vstor.cs.service import CsService, Options
from vstor.cs.sources import Sources
from vstor.daemon import Readiness, complain, drop_privileges, raise_limits, run, serve_metrics, wait_for_signal
from vstor.errors import VstorError
from vstor.logs import LEVELS, setup_logging
from vstor.net import discovery
from vstor.net.identity import Identity, format_address, parse_address, read_bs_list
from vstor.net.rpc_client import MdsClient

log = logging.getLogger(__name__)

PROGRAM = "vstor-csd"
RESERVE_BYTES_MAX = 1 << 30  # kept free on the disk for deletes, metadata and recovery
RESERVE_PART = 50  # or this part of it (2 %), whichever is less
WHOLE_REPLICA = (
    1 << 64
) - 1  # offset of a CORRUPT event: header or table is damaged, the engine has put the file aside
EVENT_KINDS = {
    # engine event: (kind of the report, error letter)
    "CORRUPT": ("corrupt", stats.LETTER_CHECKSUM),
    "IO_ERROR": ("io_error", stats.LETTER_IO_ERROR),
    "NO_SPACE": ("no_space", ""),
    "JOURNAL_ERROR": ("journal_error", stats.LETTER_JOURNAL),
}


def build_parser() -> argparse.ArgumentParser:
    """Command line; the manual page is made from it."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Serve the chunks of one directory or disk.")
    parser.add_argument("-r", "--repository", required=True, type=Path, metavar="DIR", help="made by vstorctl make-cs")
    parser.add_argument("-u", "--user", metavar="USER", help="become this user before anything is opened")
    parser.add_argument("-l", "--log", metavar="FILE", help="log file (default: standard error)")
    parser.add_argument(
        "-d", "--level", choices=LEVELS, default="info", help="least level that is logged (default: info)"
    )
    parser.add_argument("--no-uring", action="store_true", help="use the event loop for kernels that forbid io_uring")
    parser.add_argument("--show-config", action="store_true", help="print what would be used, as JSON, and end")
    return parser


async def address_towards_mds(cluster: str) -> str:
    """The local address from which the cluster is reached. Raises CONFIG or UNREACHABLE when no MDS is known."""
    known = await discovery.addresses(cluster)
    for address in known:
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect((host, port))  # a datagram socket: nothing is sent, the kernel picks the route
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise VstorError(ErrorCode.UNREACHABLE, f"no route to any MDS of cluster {cluster} ({', '.join(known)})")


def read_location() -> str:
    """room.row.rack of this host, "" when not set."""
    try:
        return (paths.etc_dir() / "location").read_text().strip()[:256]
    except FileNotFoundError:
        return ""


def instance_name(identity: CsIdentity) -> str:
    """As the service is called: cs-CLUSTER-ID."""
    return f"cs-{identity.cluster}-{identity.cs_id}"


def show_config(args: argparse.Namespace, identity: CsIdentity) -> None:
    """--show-config."""
    shown = asdict(identity) | {
        "repository": str(args.repository),
        "user": args.user or "",
        "log": args.log or "",
        "level": args.level,
        "socket": str(paths.run_dir() / f"{instance_name(identity)}.sock"),
        "metrics_socket": str(paths.run_dir() / f"{instance_name(identity)}.metrics.sock"),
        "mds": read_bs_list(identity.cluster),
    }
    print(json.dumps(shown, indent=1))


def open_engine(args: argparse.Namespace, identity: CsIdentity, incarnation: int) -> Any:
    """The chunk store, replayed and ready to listen. Raises IN_USE, DAMAGED, NEWER_FORMAT, IO_ERROR, naming file and reason."""
    from vstor.native.cs import CsEngine

    usage = shutil.disk_usage(args.repository)
    return CsEngine.open(
        dir=str(args.repository),
        journal=identity.journal or None,
        journal_bytes=identity.journal_mb << 20,
        cluster_id=bytes.fromhex(identity.cluster_id),
        cs_id=identity.cs_id,
        incarnation=incarnation,
        reserve_bytes=min(RESERVE_BYTES_MAX, usage.total // RESERVE_PART),
        no_uring=args.no_uring,
    )


async def listen(engine: Any, identity: CsIdentity) -> list[str]:
    """Listen on TCP and on the unix socket; the addresses in order of preference for clients of the same host. Raises IN_USE, CONFIG."""
    host, port = identity.host_and_port()
    host = host or await address_towards_mds(identity.cluster)
    bound = engine.listen(host, port)
    sock = paths.run_dir() / f"{instance_name(identity)}.sock"
    sock.parent.mkdir(parents=True, exist_ok=True)
    engine.listen(f"unix:{sock}", 0)
    return [f"unix:{sock}", format_address(host, bound)]


async def serve(args: argparse.Namespace, identity: CsIdentity, node: Identity) -> None:
    """Everything after the checks that need no event loop."""
    # 1. open the store
    incarnation = secrets.randbits(63) | 1
    engine = await asyncio.to_thread(open_engine, args, identity, incarnation)
    try:
        addresses = await listen(engine, identity)
    except BaseException:
        engine.close()
        raise
    options = Options(
        identity=identity,
        node=node,
        repo=args.repository,
        incarnation=incarnation,
        addresses=addresses,
        location=read_location(),
        direct=engine.direct,
        journal_clean=engine.counters()["replayed_records"] == 0,
    )
    # 2. put the parts together
    sources = Sources()
    host = EngineHost(engine, lambda event: on_event(service, event))
    scrubber = Scrubber(host, args.repository, unix_ms)
    service = CsService(options, host, scrubber, sources)
    replicator = Replicator(host, sources.open)
    service.orders = OrderRunner(host, replicator, scrubber.scrub_chunk, service.report_order)
    client = MdsClient(node, "cs", on_push=service.on_push, on_connect=service.on_connect)
    service.client = client
    readiness = Readiness(instance_name(identity))
    # 3. serve until told to stop
    host.start()
    metrics = await serve_metrics(
        paths.run_dir() / f"{instance_name(identity)}.metrics.sock",
        service.metrics,
        {"/inventory": lambda query: inventory.answer(host, args.repository, query)},
    )
    log.info("serving cs=%d repository=%s addresses=%s", identity.cs_id, args.repository, " ".join(addresses))
    try:
        await run_until_signal(service, client, host, scrubber, readiness)
    finally:
        # 4. no more orders, then the engine (it answers what is in flight and empties its journal), then the rest
        readiness.stopping()
        metrics.close()
        await asyncio.to_thread(sources.stop)
        await service.orders.stop()
        await client.close()
        await host.stop()
        await asyncio.to_thread(sources.close)
        (paths.run_dir() / f"{instance_name(identity)}.sock").unlink(missing_ok=True)
        (paths.run_dir() / f"{instance_name(identity)}.metrics.sock").unlink(missing_ok=True)
        log.info("stopped cs=%d", identity.cs_id)


async def run_until_signal(
    service: CsService, client: MdsClient, host: EngineHost, scrubber: Scrubber, readiness: Readiness
) -> None:
    """Returns at SIGTERM or SIGINT; raises when the engine ends, or when the MDS refuses this CS for good at the first registration."""

    async def announce() -> None:
        await client.wait_connected()
        readiness.ready()

    async def watch_engine() -> None:
        await host.wait_stopped()
        raise VstorError(ErrorCode.IO_ERROR, "the data engine has stopped; see the log for the reason")

    async def scrub() -> None:
        await service.registered.wait()  # until then its configuration is not known
        await scrubber.run_forever()

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(work)
            for work in (
                announce(),
                watch_engine(),
                service.heartbeat_forever(),
                service.report_forever(),
                scrub(),
            )
        ]
        signal = await wait_for_signal()
        log.info("stopping signal=%s", signal.name)
        for task in tasks:
            task.cancel()


def on_event(service: CsService, event: Any) -> None:
    """An event of the engine: log it, tell the MDS, remember the letter."""
    if event.kind == "FATAL":
        log.error("engine stops chunk=%d errno=%d", event.chunk_id, event.error)
        return
    kind, letter = EVENT_KINDS.get(event.kind, ("", ""))
    if not kind:
        log.warning("unknown engine event kind=%s", event.kind)
        return
    log.error("%s chunk=%d offset=%d errno=%d", kind, event.chunk_id, event.offset, event.error)
    if letter:
        service.health.note(letter, boottime_ms())
    if kind == "corrupt" and event.offset == WHOLE_REPLICA:
        service.report("lost", event.chunk_id)
    else:
        service.report(kind, event.chunk_id, event.offset, event.error)


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status."""
    args = build_parser().parse_args(argv)
    args.repository = args.repository.absolute()
    try:
        if args.show_config:
            show_config(args, repository.read_identity(args.repository))
            return 0
        raise_limits()
        discovery.preload()
        if args.user:
            drop_privileges(args.user)
        setup_logging(PROGRAM, args.level, args.log)
        identity, node = repository.load(args.repository)
        log.info("starting cs=%d checksum=%s", identity.cs_id, native.self_test())
    except VstorError as exc:
        return complain(PROGRAM, exc)
    except OSError as exc:
        return complain(PROGRAM, VstorError(ErrorCode.CONFIG, f"cannot start: {exc}"))
    return run(PROGRAM, lambda: serve(args, identity, node))


if __name__ == "__main__":
    sys.exit(main())
