"""Requests that Docker on Windows answers in its own way: containers' lives, stats, top, cp, info.

Owns those handlers and the shape of their answers; what is the same on both systems is the API's own (api.routes).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Handler, Route, answer
from overlace.api.convert import container as show
from overlace.api.info import describe
from overlace.api.routes import attach, containers, execs, images, system, volumes
from overlace.api.version import SERVER_VERSION
from overlace.lab.windows.engine_rules import Create
from overlace.model.errors import Conflict, InvalidArgument, NotFound, OverlaceError, Unimplemented
from overlace.runtime.base import Container, Usage

if TYPE_CHECKING:
    from overlace.lab.windows.engine import Backend

_PAUSE = 1.0  # seconds between two samples of stats


def engine(call: Call) -> Backend:
    """The stand-in's own half of the backend."""
    return cast("Backend", call.backend)


# -- a container's life --------------------------------------------------------------------------------------


def _check_platform(call: Call) -> None:
    platform = call.text("platform")
    if platform and images.platform(call, platform).os != "windows":
        raise InvalidArgument(f'invalid platform: "{platform}": operating system is not supported')


async def create(call: Call) -> web.StreamResponse:
    asked = await call.body(Create)
    _check_platform(call)
    if not asked.image:
        raise InvalidArgument("No image specified")
    container_id = secrets.token_hex(32)
    name = call.text("name").removeprefix("/") or f"emulated_{container_id[:12]}"
    await engine(call).create(asked, container_id, name)
    return answer({"Id": container_id, "Warnings": []}, 201)


async def start(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    if found.status == "running":
        return web.Response(status=304)
    await engine(call).start(found)
    return web.Response(status=204)


def _grace(call: Call) -> int | None:
    text = call.text("t")
    if not text:
        return None
    try:
        seconds = int(text)
    except ValueError:
        raise InvalidArgument(f'strconv.Atoi: parsing "{text}": invalid syntax') from None
    return (seconds if seconds >= 0 else 10**9) * 1_000_000_000  # negative: without end


async def stop(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    if found.status != "running":
        return web.Response(status=304)
    await call.backend.runtime.stop(found.config.id, _grace(call))
    return web.Response(status=204)


async def restart(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    if found.status == "running":
        found = await call.backend.runtime.stop(found.config.id, _grace(call))
    await engine(call).start(found)
    return web.Response(status=204)


async def kill(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    signal = call.text("signal") or "SIGKILL"
    if signal.upper().removeprefix("SIG") not in ("KILL", "TERM", "9", "15"):
        raise InvalidArgument(f"invalid signal: {signal}")  # moby sys/signal has two on Windows
    await call.backend.runtime.kill(found.config.id, signal)
    return web.Response(status=204)


async def wait(call: Call) -> web.StreamResponse:
    """Its exit code, once it has ended."""
    found = await containers.find(call, call.args["id"])
    condition = call.text("condition") or "not-running"
    if condition != "not-running" and not (condition == "next-exit" and found.status == "running"):
        raise Unimplemented(f"wait with condition {condition} is not played by this stand-in")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(call.request)
    ended = await call.backend.runtime.wait(found.config.id)
    await response.write(codec.encode({"StatusCode": ended.exit_code}))
    return response


async def remove(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    if found.status == "running" and not call.flag("force"):
        raise Conflict(
            f"You cannot remove a running container {found.config.id}. Stop the container before attempting removal or "
            "force remove"
        )
    await engine(call).remove(found, call.flag("force"))
    return web.Response(status=204)


async def put_archive(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    if found.status == "running":
        raise Unimplemented("docker cp into a running container is not played by this stand-in")
    await engine(call).put_archive(found, call.text("path") or "C:\\", await call.request.read())
    return web.Response()


# -- looking -------------------------------------------------------------------------------------------------


async def inspect(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    shown = show.inspect(found, (), "windows", await containers.image_config(call, found))
    shown = as_windows(shown, engine(call).asked(found.config.id), found)
    if call.flag("size"):
        shown |= await containers.sizes(call, found)
    return answer(shown)


def as_windows(shown: dict[str, Any], asked: Create, found: Container) -> dict[str, Any]:
    """A container's inspection as dockerd on Windows has it: paths of Windows, and no files of Linux."""
    sources = {m.get("Target"): m.get("Source") for m in asked.host_config.get("Mounts") or []}
    mounts = [
        m | {"Source": sources.get(m["Destination"]) or m["Source"], "Propagation": ""}
        for m in shown["Mounts"]
    ]
    host = {"Isolation": "process", "NetworkMode": "none", **asked.host_config}
    return shown | {
        "Driver": "windowsfilter",
        "GraphDriver": {"Name": "windowsfilter", "Data": {"dir": f"C:\\emulated\\{found.config.id}"}},
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "Mounts": mounts,
        "HostConfig": shown["HostConfig"] | host | {"Isolation": host["Isolation"] or "process"},
    }


async def info(call: Call) -> web.StreamResponse:
    shown = await describe(call.backend, await call.tools(), call.shared.events.listeners)
    build = call.backend.options.os_version
    return answer(
        shown
        | {
            "Driver": "windowsfilter",
            "DriverStatus": [["Windows", ""]],
            "KernelVersion": ".".join(build.split(".")[:2]) + f" {build.split('.')[2]} ({build}: emulated)",
            "Isolation": "process",
            "DefaultRuntime": "com.docker.hcsshim.v1",
            "Runtimes": {"com.docker.hcsshim.v1": {"path": ""}},
            "CgroupDriver": "",
            "CgroupVersion": "",
            "LiveRestoreEnabled": False,
            "ServerVersion": SERVER_VERSION,
        }
    )


async def top(call: Call) -> web.StreamResponse:
    """Windows knows no ps: four columns, whatever is asked for (moby daemon/top_windows.go)."""
    found = await containers.find(call, call.args["id"])
    _, rows = await call.backend.runtime.top(found.config.id, "-o comm=NAME,pid=PID,time=CPU,rss=SET")
    processes = [[row[0], row[1], f"{row[2]}.000", f"{int(row[3]) * 1024 / 1000:.4g}kB"] for row in rows]
    return answer({"Titles": ["Name", "PID", "CPU", "Private Working Set"], "Processes": processes})


async def stats(call: Call) -> web.StreamResponse:
    found = await containers.find(call, call.args["id"])
    runtime = call.backend.runtime
    before: dict[str, Any] | None = None
    if not codec.flag(call.text("stream", "1")):
        if not call.flag("one-shot"):
            before = windows_stats(found, await runtime.usage(found.config.id), None)
            await asyncio.sleep(_PAUSE)
        return answer(windows_stats(found, await runtime.usage(found.config.id), before))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(call.request)
    while True:
        try:
            before = windows_stats(found, await runtime.usage(found.config.id), before)
            await response.write(codec.encode(before))
        except (ConnectionError, NotFound):
            return response
        await asyncio.sleep(_PAUSE)


def windows_stats(found: Container, usage: Usage | None, before: dict[str, Any] | None) -> dict[str, Any]:
    """As HCS counts: times in 100 ns, a private working set (moby daemon/stats_windows.go)."""
    nothing = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}}
    shown: dict[str, Any] = {
        "id": found.config.id,
        "name": f"/{found.config.name}",
        "read": codec.rfc3339(time.time_ns() if usage is not None else 0),
        "preread": before["read"] if before is not None else codec.ZERO_TIME,
        "num_procs": os.cpu_count() or 1,
        "storage_stats": {},
        "cpu_stats": nothing,
        "precpu_stats": before["cpu_stats"] if before is not None else nothing,
        "memory_stats": {},
        "pids_stats": {},
        "blkio_stats": {},
    }
    if usage is None:
        return shown
    moved = {"read": 0, "write": 0}
    for _, _, what, size in usage.io:
        moved[what] = moved.get(what, 0) + size
    shown["cpu_stats"] = {
        "cpu_usage": {
            "total_usage": usage.cpu_total // 100,
            "usage_in_kernelmode": usage.cpu_kernel // 100,
            "usage_in_usermode": usage.cpu_user // 100,
        }
    }
    shown["memory_stats"] = {
        "commitbytes": usage.memory,
        "commitpeakbytes": usage.memory,
        "privateworkingset": usage.memory,
    }
    shown["storage_stats"] = {"read_size_bytes": moved["read"], "write_size_bytes": moved["write"]}
    return shown


async def pull(call: Call) -> web.StreamResponse:
    _check_platform(call)
    return await images.create(call)


def refused(reason: str) -> Handler:
    """A call that this engine answers with 500 and `reason` once it knows the container."""

    async def refuse(call: Call) -> web.StreamResponse:
        if "id" in call.args:
            await containers.find(call, call.args["id"])
        raise OverlaceError(reason)

    return refuse


_OWN = {
    ("POST", "/containers/create"), ("GET", "/containers/{id}/json"), ("GET", "/containers/{id}/top"),
    ("DELETE", "/containers/{id}"), ("PUT", "/containers/{id}/archive"), ("GET", "/info"),
    ("POST", "/images/create"),
    *(("POST", f"/containers/{{id}}/{verb}") for verb in ("start", "stop", "restart", "pause", "unpause")),
}  # fmt: skip
ROUTES = [
    Route("POST", "/containers/create", create),
    Route("POST", "/containers/{id}/start", start),
    Route("POST", "/containers/{id}/stop", stop),
    Route("POST", "/containers/{id}/restart", restart),
    Route("POST", "/containers/{id}/pause", refused("cannot pause Windows Server Containers")),
    Route("POST", "/containers/{id}/unpause", refused("cannot resume Windows Server Containers")),
    Route("POST", "/containers/{id}/kill", kill),
    Route("POST", "/containers/{id}/wait", wait, streams=True),
    Route("DELETE", "/containers/{id}", remove),
    Route("PUT", "/containers/{id}/archive", put_archive),
    Route("GET", "/containers/{id}/json", inspect),
    Route("GET", "/containers/{id}/top", top),
    Route("GET", "/containers/{id}/stats", stats, streams=True),
    Route("GET", "/info", info),
    Route("POST", "/images/create", pull, streams=True),
    *(
        route
        for module in (system, containers, attach, execs, images, volumes)
        for route in module.ROUTES
        if (route.method, route.path) not in _OWN
    ),
]
