"""/_ping, /version, /info, /events, /auth."""

from __future__ import annotations

import contextlib
import platform
import sys

from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Route, answer
from overlace.api.info import describe
from overlace.api.version import API_VERSION, MIN_API_VERSION, SERVER_VERSION, version_text
from overlace.model.architecture import fold_architecture
from overlace.model.errors import Unimplemented

EVENT_FILTERS = frozenset(
    (
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    )
)


def architecture() -> str:
    """Go's name of this machine's architecture."""
    return fold_architecture(platform.machine())


async def ping(call: Call) -> web.StreamResponse:
    swarm = call.backend.swarm()
    role = swarm.state
    if role == "active":
        role = "active/manager" if swarm.control_available else "active/worker"  # type: ignore[assignment]
    head = call.request.method == "HEAD"
    return web.Response(
        body=None if head else b"OK",
        content_type="text/plain",
        charset="utf-8",
        headers={
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Builder-Version": "1",  # no BuildKit here: `docker build` then says so itself
            "Swarm": role,
            **({"Content-Length": "0"} if head else {}),
        },
    )


async def version(call: Call) -> web.StreamResponse:
    options = call.backend.options
    tools = {name: text for name, text in (await call.tools()).items() if name != "error"}
    started = codec.rfc3339(options.started_at)
    go = f"none (Python {platform.python_version()}, {sys.implementation.name})"
    details = {
        "ApiVersion": version_text(API_VERSION),
        "MinAPIVersion": version_text(MIN_API_VERSION),
        "GitCommit": "",
        "GoVersion": go,
        "Os": options.os,
        "Arch": architecture(),
        "BuildTime": "",
        "Experimental": "false",
        "KernelVersion": platform.release(),
        "PythonVersion": platform.python_version(),
        "Started": started,
    }
    if options.os_version:
        details["OsVersion"] = options.os_version
    if options.emulated:
        details["Emulated"] = f"{options.os}, on {options.kernel}"
    return answer(
        {
            "Platform": {"Name": "Overlace"},
            "Components": [
                {"Name": "Engine", "Version": SERVER_VERSION, "Details": details},
                *({"Name": name, "Version": text, "Details": {}} for name, text in sorted(tools.items())),
            ],
            "Version": SERVER_VERSION,
            "ApiVersion": version_text(API_VERSION),
            "MinAPIVersion": version_text(MIN_API_VERSION),
            "GitCommit": "",
            "GoVersion": go,
            "Os": options.os,
            "Arch": architecture(),
            "KernelVersion": platform.release(),
            "BuildTime": "",
        }
    )


async def info(call: Call) -> web.StreamResponse:
    return answer(await describe(call.backend, await call.tools(), call.shared.events.listeners))


async def events(call: Call) -> web.StreamResponse:
    filters = call.filters(EVENT_FILTERS)
    since = codec.parse_time(call.text("since"), "since")
    until = codec.parse_time(call.text("until"), "until")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    async with contextlib.aclosing(call.shared.events.stream(since, until, filters)) as stream:
        await response.prepare(call.request)
        try:
            async for event in stream:
                await response.write(codec.encode(event.document()))
        except ConnectionError:
            return response
        await response.write_eof()
    return response


async def auth(call: Call) -> web.StreamResponse:
    raise Unimplemented(
        "checking a login with the registry is not supported yet; credentials are used as sent with pull and"
        " service create"
    )


async def session(call: Call) -> web.StreamResponse:
    raise Unimplemented(
        "build sessions are not supported: build images elsewhere and push them to a registry"
    )


ROUTES = [
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/events", events, streams=True),
    Route("POST", "/auth", auth),
    Route("POST", "/session", session),
]
