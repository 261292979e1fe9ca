"""What people do to containers: /containers/create, start, stop, restart, kill, rename, update, remove, prune.

A standalone container's verbs are the keeper's. A service's container may be stopped, killed and removed too, as Docker
has it: its orchestrator sees that and starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from overlace.agent.standalone.records import BRIDGE, Joined, Wish
from overlace.api import codec
from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert import create as asked_for
from overlace.api.convert.create_request import CreateRequest, EndpointConfig, RestartPolicy, check_members
from overlace.api.convert.run_options import plan_restart
from overlace.api.events import verb_event
from overlace.api.routes.containers import find
from overlace.api.routes.images import platform
from overlace.api.routes.networks import label_matches
from overlace.manager.control.names import random_name
from overlace.model.errors import Conflict, InvalidArgument, NotFound, OverlaceError, Unimplemented
from overlace.model.specs import Doc
from overlace.model.system import ON_WINDOWS
from overlace.runtime.base import Container
from overlace.runtime.oci.spec import signal_number

_SECOND = 1_000_000_000
_PRUNE_FILTERS = frozenset(("label", "label!", "until"))


def _tell(call: Call, shown: Container, action: str, **more: str) -> None:
    call.shared.events.put(verb_event(shown, action, time.time_ns(), **more))


def _ours(call: Call, found: Container) -> bool:
    return call.backend.containers.record(found.config.id) is not None


# -- making --------------------------------------------------------------------------------------------------


async def create(call: Call) -> web.StreamResponse:
    asked = await call.body(CreateRequest)
    check_members(msgspec.json.decode(await call.request.read()))
    options = call.backend.options
    if ON_WINDOWS:
        raise Unimplemented(
            "docker run is not supported on a Windows host yet: make a service (docker service create --constraint "
            f"node.hostname=={options.hostname})"
        )
    name = asked_for.check_name(call.text("name")) if call.text("name") else await _free_name(call)
    image = await call.backend.runtime.image(asked.image)
    if call.text("platform"):
        wanted = platform(call, call.text("platform"))
        if (image.platform.os, image.platform.architecture) != (wanted.os, wanted.architecture):
            raise NotFound(
                f"image with reference {asked.image} was found but does not provide the specified platform "
                f"({wanted.os}/{wanted.architecture})"
            )
    exposed = [*asked.exposed_ports, *(image.config.get("ExposedPorts") or {})]  # type: ignore[misc]  # names by JSON
    id = secrets.token_hex(32)
    wish = asked_for.plan_wish(asked, id, name, options.os == "windows", options.hostname, exposed)
    wish = msgspec.structs.replace(wish, networks=_networks(call, asked, wish))
    await call.backend.containers.create(wish)
    return answer({"Id": id, "Warnings": []}, 201)


async def _free_name(call: Call) -> str:
    taken = {c.config.name for c in await call.backend.runtime.list()}
    for _ in range(20):
        name = random_name()
        if name not in taken:
            return name
    return f"{random_name()}{secrets.randbelow(10**6)}"


def _networks(call: Call, asked: CreateRequest, wish: Wish) -> tuple[Joined, ...]:
    """The networks asked for, as this host knows them. Raises NotFound, InvalidArgument, Unimplemented."""
    if wish.mode:
        return ()
    mode = asked.host_config.network_mode
    wanted = dict(asked.networking_config.endpoints_config)
    first = mode if mode not in ("", "default") else next(iter(wanted), BRIDGE)
    if first in ("default", BRIDGE):
        wanted = {
            BRIDGE: wanted.pop("default", None) or wanted.pop(BRIDGE, None) or EndpointConfig()
        } | wanted
    if first in wanted or not wanted:
        wanted = {first: wanted.get(first, EndpointConfig())} | wanted
    elif len(wanted) == 1:  # the mode by id, the endpoint by name
        first = next(iter(wanted))
    return tuple(asked_for.plan_joined(name, config) for name, config in wanted.items())


# -- running -------------------------------------------------------------------------------------------------


async def start(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    if _ours(call, found):
        return empty(204 if await call.backend.containers.start(found.config.id) else 304)
    if found.status == "running":
        return empty(304)
    raise Conflict(
        f"container {found.config.id[:12]} belongs to a service, which has replaced it: its task is over and does not "
        "start again"
    )


def _grace(call: Call) -> int | None:
    """`t=` in ns, negative for without end; None: the container's own. Raises InvalidArgument."""
    text = call.text("t")
    if not text:
        return None
    try:
        return int(text) * _SECOND
    except ValueError:
        raise InvalidArgument(f'invalid value for "t": {text!r}; use a number of seconds') from None


async def _stop(call: Call, found: Container) -> bool:
    grace, signal = _grace(call), call.text("signal")
    number = signal_number(signal) if signal else _stop_signal(found)
    if found.status == "running":
        _tell(call, found, "kill", signal=str(number))
    if _ours(call, found):
        stopped = await call.backend.containers.stop(found.config.id, grace, signal)
    elif stopped := found.status == "running":
        await call.backend.runtime.stop(found.config.id, grace)
    if stopped:
        _tell(call, found, "stop")
    return stopped


def _stop_signal(found: Container) -> int:
    return signal_number(found.config.stop_signal or "SIGTERM")


async def stop(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    return empty(204 if await _stop(call, found) else 304)


async def restart(call: Call) -> web.StreamResponse:
    """A service's container ends, and its service starts another in its place."""
    found = await find(call, call.args["id"])
    if not _ours(call, found):
        await _stop(call, found)
        return empty(204)
    await call.backend.containers.restart(found.config.id, _grace(call), call.text("signal"))
    _tell(call, found, "restart")
    return empty(204)


async def kill(call: Call) -> web.StreamResponse:
    """Any signal: HUP to reload. Also how the CLI passes on Ctrl-C."""
    found = await find(call, call.args["id"])
    signal = call.text("signal") or "SIGKILL"
    number = signal_number(signal)
    if _ours(call, found):
        ends = number in (9, _stop_signal(found))
        await call.backend.containers.kill(found.config.id, signal, ends=ends)
    else:
        await call.backend.runtime.kill(found.config.id, signal)
    _tell(call, found, "kill", signal=str(number))
    return empty(204)


async def wait(call: Call) -> web.StreamResponse:
    """Its exit code, once it has ended."""
    found = await find(call, call.args["id"])
    condition = call.text("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise InvalidArgument(f"invalid condition: {condition!r}")
    ours = _ours(call, found)
    if (
        not ours
        and condition != "not-running"
        and not (condition == "next-exit" and found.status == "running")
    ):
        raise Unimplemented(
            f"docker wait with condition {condition} is not supported for a service's container: it runs once; use "
            "not-running"
        )
    told: asyncio.Future[tuple[int, str]] | None = None
    if ours and (condition != "not-running" or found.status == "running"):
        told = call.backend.containers.wait(found.config.id, removed=condition == "removed")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    try:
        await response.prepare(call.request)  # before the end: clients wait for it (moby router/container)
        if told is not None:
            code, error = await told
        else:
            ended = await call.backend.runtime.wait(found.config.id)
            code, error = ended.exit_code, ""
    finally:
        if told is not None and not told.done():
            told.cancel()
    shown: dict[str, Any] = {"StatusCode": code}
    if error:
        shown["Error"] = {"Message": error}
    await response.write(codec.encode(shown))
    return response


# -- changing and removing -----------------------------------------------------------------------------------


async def rename(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    name = call.text("name")
    if not name:
        raise InvalidArgument("Neither old nor new names may be empty")
    name = asked_for.check_name(name)
    if name == found.config.name:
        raise InvalidArgument("Renaming a container with the same name as its current name")
    if not _ours(call, found):
        raise Conflict(f"container {found.config.name} belongs to a service: its name says which task it is")
    await call.backend.containers.rename(found.config.id, name)
    _tell(
        call, await call.backend.runtime.inspect(found.config.id), "rename", oldName=f"/{found.config.name}"
    )
    return empty(204)


class UpdateRequest(Doc, frozen=True):
    restart_policy: RestartPolicy | None = None


async def update(call: Call) -> web.StreamResponse:
    """The restart policy; the limits of a container stay what they were made with."""
    found = await find(call, call.args["id"])
    asked = await call.body(UpdateRequest)
    document = msgspec.json.decode(await call.request.read())
    for member, value in document.items():
        if member.lower() != "restartpolicy" and value not in (None, 0, "", False, [], {}):
            raise Unimplemented(
                f"{member} cannot be changed while a container is there: make it again with the value you want"
            )
    if not _ours(call, found):
        raise Conflict(f"container {found.config.name} belongs to a service: use docker service update")
    if asked.restart_policy is not None and asked.restart_policy.name:
        policy = plan_restart(asked.restart_policy, False)
        await call.backend.containers.set_restart(found.config.id, policy)
    _tell(call, found, "update")
    return answer({"Warnings": None})


async def remove(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    if call.flag("link"):
        raise Unimplemented("docker rm --link is not supported: there are no links")
    force, volumes = call.flag("force"), call.flag("v")
    if force and found.status == "running":
        _tell(call, found, "kill", signal="9")
    if _ours(call, found):
        await call.backend.containers.remove(found.config.id, force=force, volumes=volumes)
        return empty(204)
    if found.status == "running" and not force:
        raise Conflict(
            f'cannot remove container "{found.config.name}": container is running: '
            "stop the container before removing or force remove"
        )
    await call.backend.runtime.remove(found.config.id, force=force, volumes=volumes)
    return empty(204)


async def prune(call: Call) -> web.StreamResponse:
    """Standalone containers that do not run; a service's are its orchestrator's to remove."""
    filters = call.filters(_PRUNE_FILTERS)
    until = max((codec.parse_time(text, "until") for text in filters.get("until", ())), default=0)
    deleted: list[str] = []
    freed = 0
    for found in await call.backend.runtime.list():
        if found.status == "running" or not _ours(call, found) or not _prunable(found, filters, until):
            continue
        if call.backend.containers.restarting(found.config.id):
            continue
        with contextlib.suppress(OverlaceError):  # started or removed since
            size = await call.backend.runtime.layer_size(found.config.id)
            await call.backend.containers.remove(found.config.id, force=False, volumes=False)
            deleted.append(found.config.id)
            freed += size
    return answer({"ContainersDeleted": deleted or None, "SpaceReclaimed": freed})


def _prunable(found: Container, filters: dict[str, list[str]], until: int) -> bool:
    mine = found.config.labels
    without: Sequence[str] = filters.get("label!", ())
    return (
        label_matches(mine, filters.get("label", ()))
        and not any(label_matches(mine, [text]) for text in without)
        and not (until and found.created_at >= until)
    )


ROUTES = [
    Route("POST", "/containers/create", create),
    Route("POST", "/containers/prune", prune),
    Route("POST", "/containers/{id}/start", start),
    Route("POST", "/containers/{id}/stop", stop),
    Route("POST", "/containers/{id}/restart", restart),
    Route("POST", "/containers/{id}/kill", kill),
    Route("POST", "/containers/{id}/wait", wait, streams=True),
    Route("POST", "/containers/{id}/rename", rename),
    Route("POST", "/containers/{id}/update", update),
    Route("DELETE", "/containers/{id}", remove),
]
