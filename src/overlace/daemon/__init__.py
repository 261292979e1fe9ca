"""The composition root: the only room that wires the others together, and what `overlace daemon` runs.

Owns the process: its log, pid file, signals, the Engine API's life. Must not hold any rule of the product.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import structlog

from overlace.cli.daemon import DaemonOptions
from overlace.daemon import process

log = structlog.get_logger(__name__)


def run(options: DaemonOptions) -> None:
    """Run until asked to stop (`process.stop_requests`). Containers and traffic go on afterwards.

    Raises OverlaceError when it cannot start: the caller prints it and exits with 1.
    """
    _log_to_stderr(options.log_level)
    process.take_descriptors()
    process.make_folder("--data-root", options.data_root)
    process.make_folder("--exec-root", options.exec_root)
    with process.only_one(Path(options.data_root)), process.pidfile(options.pidfile):
        asyncio.run(_serve(options))


async def _serve(options: DaemonOptions) -> None:
    from overlace.api.server import ApiServer
    from overlace.daemon.engine import Engine
    from overlace.daemon.flow_log import FlowLogger
    from overlace.daemon.metrics import MetricsServer

    stop = asyncio.Event()
    with process.stop_requests(stop.set):
        engine = Engine(options)
        server = ApiServer(engine)
        engine.serve_api = server.serve
        metrics = MetricsServer(options.hostname, lambda: engine.parts)
        flows = FlowLogger(Path(options.flow_log), lambda: engine.parts[0]) if options.flow_log else None
        try:
            if flows is not None:
                flows.start()
            await engine.open()
            await server.start(options.hosts)
            if options.metrics_addr:
                await metrics.start(options.metrics_addr)
            log.info("serving", hosts=list(options.hosts), swarm=engine.swarm().state)
            await stop.wait()
        finally:
            if flows is not None:
                await flows.stop()
            await metrics.close()
            await server.close()
            await engine.close()
    log.info("stopped; containers go on")


def _log_to_stderr(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_our_own_fault)


def _our_own_fault(record: logging.LogRecord) -> bool:
    """Whether an error of the HTTP server is worth a line: what a client sent (it was told: 400) is not."""
    from aiohttp.http_exceptions import HttpProcessingError  # here: a service of Windows has to answer soon

    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
