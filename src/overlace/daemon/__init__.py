"""The composition root: the only room that wires the others together, and what `overlace daemon` runs.

Owns the process: its log, pid file, signals, the Engine API's life. Must not hold any rule of the product.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from overlace.cli.daemon import DaemonOptions
from overlace.model.errors import Conflict, InvalidArgument, Unavailable

log = structlog.get_logger(__name__)
DESCRIPTORS = 65536


def run(options: DaemonOptions) -> None:
    """Run until SIGTERM or SIGINT. Containers and traffic go on afterwards.

    Raises OverlaceError when it cannot start: the caller prints it and exits with 1.
    """
    _log_to_stderr(options.log_level)
    _take_descriptors()
    for option, folder in (("--data-root", options.data_root), ("--exec-root", options.exec_root)):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o711)
        except OSError as e:
            raise InvalidArgument(f"cannot use {option} {folder}: {e.strerror}; choose another folder") from e
    with _only_one(Path(options.data_root)), _pidfile(options.pidfile):
        asyncio.run(_serve(options))


async def _serve(options: DaemonOptions) -> None:
    from overlace.api.server import ApiServer
    from overlace.daemon.engine import Engine
    from overlace.daemon.metrics import MetricsServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = Engine(options)
    server = ApiServer(engine)
    engine.serve_api = server.serve
    metrics = MetricsServer(options.hostname, lambda: engine.parts)
    try:
        await engine.open()
        await server.start(options.hosts)
        if options.metrics_addr:
            await metrics.start(options.metrics_addr)
        log.info("serving", hosts=list(options.hosts), swarm=engine.swarm().state)
        await stop.wait()
    finally:
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
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _take_descriptors() -> None:
    """Each container costs two descriptors; the usual soft limit, 1024, is for programs that use select(2).

    No more than needed: containers inherit it, and some programs close every descriptor they might have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _only_one(data_root: Path) -> Iterator[None]:
    """Two daemons on one data root would undo each other's work."""
    try:
        lock = (data_root / "daemon.lock").open("a")
    except OSError as e:
        raise Unavailable(f"cannot write to --data-root {data_root}: {e.strerror}") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"another overlace daemon uses {data_root}: stop it, or give this one another --data-root"
            ) from None
        yield


@contextlib.contextmanager
def _pidfile(path: str) -> Iterator[None]:
    if not path:
        yield
        return
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{os.getpid()}\n")
    except OSError as e:
        raise InvalidArgument(f"cannot write --pidfile {path}: {e.strerror}; choose another place") from e
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text().strip() == str(os.getpid()):
                file.unlink()
