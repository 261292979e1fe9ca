"""What a container on a Docker Engine is doing: its processes, and what it uses.

Owns those two questions. Must not know records of containers.
"""

from __future__ import annotations

from pathlib import Path

from overlace.model.errors import Conflict, Internal, InvalidArgument
from overlace.runtime.base import Usage
from overlace.runtime.docker import convert
from overlace.runtime.docker.client import EngineClient
from overlace.runtime.oci.stats import parse_interfaces

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


async def usage(engine: EngineClient, docker_id: str, pid: int) -> Usage | None:
    """What the container whose first process is `pid` uses; None when it ends meanwhile."""
    params = {"stream": "0", "one-shot": "1"}
    found = await engine.call("GET", f"/containers/{docker_id}/stats", params=params)
    try:
        interfaces = parse_interfaces(Path(f"/proc/{pid}/net/dev").read_text())
    except OSError:
        return None
    return convert.usage_of(found, interfaces)
