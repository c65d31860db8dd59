"""vstor-mdsd: the metadata server of a repository."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import sys
from pathlib import Path

from vstor import daemon, logs, paths, services
from vstor.errors import VstorError
from vstor.mds import metrics
from vstor.mds.repo_files import ETCD_PORT_OFFSET, MdsConfig, Repository
from vstor.mds.repository import etcd_url
from vstor.mds.service import MdsService
from vstor.meta import etcd_pb
from vstor.meta.etcd import EtcdStore
from vstor.meta.etcd_client import parse_endpoint
from vstor.net import discovery

log = logging.getLogger(__name__)

NAME = "vstor-mdsd"
GC_THRESHOLD = 50_000  # the working set is large and hardly cyclic


def build_parser() -> argparse.ArgumentParser:
    """Options of vstor-mdsd."""
    parser = argparse.ArgumentParser(prog=NAME, description="Metadata server of a vstor cluster.")
    parser.add_argument("-r", "--repository", metavar="DIR", required=True, help="repository made by vstorctl make-mds")
    parser.add_argument("-u", "--user", metavar="USER", help="become this user")
    parser.add_argument("-l", "--log-file", metavar="LOGFILE", help="log there instead of standard error")
    parser.add_argument(
        "-d",
        "--log-level",
        metavar="LEVEL",
        choices=logs.LEVELS,
        default="info",
        help="debug, info, warning or error (default: %(default)s)",
    )
    parser.add_argument("--show-config", action="store_true", help="print the configuration as JSON and exit")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    args = build_parser().parse_args(argv)
    repository = Repository(Path(args.repository).absolute())
    try:
        if args.user:
            daemon.drop_privileges(args.user)
        config = repository.load()
        if args.show_config:
            print(json.dumps(dataclasses.asdict(config), indent=1))
            return 0
        logs.setup_logging(NAME, args.log_level, args.log_file)
        daemon.raise_limits()
        discovery.preload()
        lock = repository.lock("lock")
    except VstorError as exc:
        return daemon.complain(NAME, exc)
    with lock:
        return daemon.run(NAME, lambda: serve(repository, config))


async def serve(repository: Repository, config: MdsConfig) -> None:
    """Until SIGTERM or SIGINT. Raises VstorError for what makes serving impossible."""
    if etcd_pb.backend() == "python":
        log.warning("protobuf runs without its native backend: the MDS will be several times slower")
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    secure = any(parse_endpoint(url)[1] for url in config.etcd_urls)
    own = etcd_url(config.address, ETCD_PORT_OFFSET)
    urls = sorted(config.etcd_urls, key=lambda url: url != own)  # our own member first: it shares our fate
    store = EtcdStore(urls, repository.etcd_tls if secure else None, lease_file=repository.lease_path)
    name = services.Service(config.cluster, "mds", str(config.mds_id), str(repository.root)).name
    readiness = daemon.Readiness(name)
    service = MdsService(repository, config, store, readiness.ready)
    metrics_server = await daemon.serve_metrics(paths.run_dir() / f"{name}.metrics", lambda: metrics.render(service))
    stopped = asyncio.create_task(daemon.wait_for_signal(), name="signal")
    announced = contextlib.AsyncExitStack()
    await announced.enter_async_context(
        discovery.announced(config.cluster, config.cluster_id, config.mds_id, config.address)
    )
    running = asyncio.create_task(service.run(), name="service")
    try:
        await asyncio.wait({stopped, running}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            log.info("stopping signal=%s", stopped.result().name)
            readiness.stopping()
            await service.stop()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        else:
            await running
    finally:
        readiness.stopping()
        stopped.cancel()
        await announced.aclose()
        metrics_server.close()
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
