"""What a container on a Docker Engine is doing: its processes, and what it uses.

Owns those two questions. Must not know records of containers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from overlace.model.errors import Conflict, Internal, InvalidArgument
from overlace.runtime.base import Interface, Usage
from overlace.runtime.docker import convert
from overlace.runtime.docker.client import EngineClient

Table = tuple[list[str], list[list[str]]]


async def top(engine: EngineClient, docker_id: str, arguments: str) -> Table:
    """See `Runtime.top`."""
    params = {"ps_args": arguments} if arguments else {}
    try:
        found = await engine.call("GET", f"/containers/{docker_id}/top", params=params)
    except Internal as error:  # the engine's 500: it does not run, or ps did not like the arguments
        kind = Conflict if "is not running" in error.message else InvalidArgument
        raise kind(error.message) from error
    return list(found["Titles"]), [list(row) for row in found["Processes"]]


async def usage(
    engine: EngineClient, docker_id: str, interfaces: Callable[[], tuple[Interface, ...] | None]
) -> Usage | None:
    """What the container uses, and what its `interfaces` say then; None when it ends meanwhile."""
    params = {"stream": "0", "one-shot": "1"}
    found = await engine.call("GET", f"/containers/{docker_id}/stats", params=params)
    counted = interfaces()
    if counted is None:
        return None
    if "privateworkingset" in (found.get("memory_stats") or {}):
        return convert.windows_usage_of(found, counted, time.monotonic_ns() * (found.get("num_procs") or 1))
    return convert.usage_of(found, counted)
