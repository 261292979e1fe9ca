"""/containers/{id}/stats: what a container uses, once or each second (moby daemon/stats, api/types/container)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Route, answer
from overlace.api.routes.containers import find
from overlace.model.errors import NotFound
from overlace.runtime.base import Container, Usage

_PAUSE = 1.0  # seconds between two samples


async def stats(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    streams = codec.flag(call.text("stream", "1"))
    if not streams:
        before = None if call.flag("one-shot") else await _sample(call, found.config.id)
        if before is not None and before[1] is not None:
            await asyncio.sleep(_PAUSE)
        return answer(_shown(call, found, before, await _sample(call, found.config.id)))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(call.request)
    before = None
    while True:
        try:
            now = await _sample(call, found.config.id)
            await response.write(codec.encode(_shown(call, found, before, now)))
        except (ConnectionError, NotFound):
            return response
        before = now
        await asyncio.sleep(_PAUSE)


Sample = tuple[int, Usage | None]  # when (ns), and what; None: it does not run


async def _sample(call: Call, container_id: str) -> Sample:
    return time.time_ns(), await call.backend.runtime.usage(container_id)


def _shown(call: Call, found: Container, before: Sample | None, now: Sample) -> dict[str, Any]:
    at, usage = now
    shown: dict[str, Any] = {
        "id": found.config.id,
        "name": f"/{found.config.name}",
        "read": codec.rfc3339(at if usage is not None else 0),
        "preread": codec.rfc3339(before[0] if before is not None and before[1] is not None else 0),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(usage),
        "precpu_stats": _cpu(before[1] if before is not None else None),
        "memory_stats": {},
        "pids_stats": {},
        "blkio_stats": _io(usage),
    }
    if usage is None:
        return shown
    shown["memory_stats"] = {
        "usage": usage.memory,
        "limit": usage.memory_limit or call.backend.options.memory,
        "stats": usage.memory_stats,
    }
    shown["pids_stats"] = {"current": usage.pids, **({"limit": usage.pids_limit} if usage.pids_limit else {})}
    if usage.interfaces:
        shown["networks"] = {
            one.name: {
                "rx_bytes": one.rx_bytes,
                "rx_packets": one.rx_packets,
                "rx_errors": one.rx_errors,
                "rx_dropped": one.rx_dropped,
                "tx_bytes": one.tx_bytes,
                "tx_packets": one.tx_packets,
                "tx_errors": one.tx_errors,
                "tx_dropped": one.tx_dropped,
            }
            for one in usage.interfaces
        }
    return shown


def _cpu(usage: Usage | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }
    if usage is not None:
        shown["cpu_usage"] = {
            "total_usage": usage.cpu_total,
            "usage_in_kernelmode": usage.cpu_kernel,
            "usage_in_usermode": usage.cpu_user,
        }
        shown["system_cpu_usage"] = usage.system
        shown["online_cpus"] = os.cpu_count() or 1
    return shown


def _io(usage: Usage | None) -> dict[str, Any]:
    entries = usage.io if usage is not None else ()
    return {
        "io_service_bytes_recursive": [
            {"major": major, "minor": minor, "op": what, "value": size}
            for major, minor, what, size in entries
        ]
        or None
    }


ROUTES = [Route("GET", "/containers/{id}/stats", stats, streams=True)]
