"""/containers: looking at this host's containers, those of services and those of docker run."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from aiohttp import web

from overlace.api.backend import ContainerAddress
from overlace.api.call import Call, Handler, Route, answer
from overlace.api.codec import flag
from overlace.api.convert import container as show
from overlace.api.convert import single
from overlace.api.logs import Line, closing, details, parameters, stream_lines
from overlace.api.named import matches
from overlace.api.routes.networks import label_matches
from overlace.model import labels
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError, Unimplemented
from overlace.model.specs import PortConfig
from overlace.runtime.base import Container

FILTERS = frozenset(
    (
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    )
)
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_STATUS = frozenset(("created", "restarting", "running", "removing", "paused", "exited", "dead"))


async def find(call: Call, ref: str) -> Container:
    """By full id, then name, then id prefix. Raises NotFound, InvalidArgument (ambiguous)."""
    there = await call.backend.runtime.list()
    found = matches(there, ref.removeprefix("/"), lambda c: c.config.id, lambda c: c.config.name)
    if len(found) > 1:
        raise InvalidArgument(f"multiple IDs found with provided prefix: {ref}")
    if found:
        return found[0]
    raise NotFound(f"No such container: {ref}")


async def list_containers(call: Call) -> web.StreamResponse:
    filters = call.filters(FILTERS)
    for value in filters.get("status", ()):
        if value not in _STATUS:
            raise InvalidArgument(f"invalid filter 'status={value}'")
    for value in filters.get("exited", ()):
        if not _NUMBER.fullmatch(value):
            raise InvalidArgument(f"invalid filter 'exited={value}'")
    limit = call.text("limit")
    if limit and not _NUMBER.fullmatch(limit):
        raise InvalidArgument(f"invalid limit {limit!r}: use a number")
    everything = call.flag("all") or "status" in filters or "exited" in filters or int(limit or 0) > 0
    there = sorted(await call.backend.runtime.list(), key=lambda c: c.created_at, reverse=True)
    before = [(await find(call, v)).created_at for v in filters.get("before", ())]
    since = [(await find(call, v)).created_at for v in filters.get("since", ())]
    ancestors = set()
    for value in filters.get("ancestor", ()):
        try:
            ancestors.add((await call.backend.runtime.image(value)).id)
        except NotFound:
            ancestors.add(value)
    shown = []
    now = time.time_ns()
    for container in there:
        if not everything and container.status != "running":
            continue
        if before and container.created_at >= min(before):
            continue
        if since and container.created_at <= max(since):
            continue
        if ancestors and not {container.image_id, container.config.image} & ancestors:
            continue
        if not _kept(container, filters):
            continue
        ports = await call.backend.container_ports(container.config.id)
        image = await image_config(call, container)
        if not _ports_kept(show.exposed_ports(image, ports), ports, filters):
            continue
        addresses = await call.backend.container_addresses(container.config.id)
        if "network" in filters and not any(
            v in (a.network, a.network_id) for a in addresses for v in filters["network"]
        ):
            continue
        line = show.summary(container, addresses, now, ports, image)
        record = call.backend.containers.record(container.config.id)
        if record is not None:
            restarting = call.backend.containers.restarting(container.config.id)
            line |= single.summary(record, container, now, restarting=restarting)
        if call.flag("size"):
            line |= await sizes(call, container)
        shown.append(line)
        if 0 < int(limit or 0) <= len(shown):
            break
    return answer(shown)


def name_matches(pattern: str, name: str) -> bool:
    """The filter `name`: any part of the name; of Docker's regular expressions the anchors `^` and `$`, with or without
    the slash names begin with there."""
    wanted = pattern.removeprefix("^").removeprefix("/?").removeprefix("/").removesuffix("$")
    start, end = pattern.startswith(("^", "/")), pattern.endswith("$")
    if start and end:
        return name == wanted
    return name.startswith(wanted) if start else name.endswith(wanted) if end else wanted in name


def _kept(container: Container, filters: dict[str, list[str]]) -> bool:
    config = container.config
    tests: dict[str, Any] = {
        "exited": lambda v: container.status == "exited" and container.exit_code == int(v),
        "health": lambda v: (container.health or "none") == v,
        "id": lambda v: config.id.startswith(v),
        "is-task": lambda v: (labels.TASK in config.labels) == flag(v),
        "name": lambda v: name_matches(v, config.name),
        "status": lambda v: container.status == v,
        "volume": lambda v: (
            any(v in (m.source, m.target) for m in config.mounts)
            or any(v in (m.name, m.target) for m in container.volumes)
        ),
        "isolation": lambda v: v in ("", "default", "process"),
    }
    for key, values in filters.items():
        if key == "label":
            if not label_matches(config.labels, values):
                return False
        elif key in tests and values and not any(tests[key](v) for v in values):
            return False
    return True


def _ports_kept(exposed: list[str], ports: Sequence[PortConfig], filters: dict[str, list[str]]) -> bool:
    """The filters `expose` and `publish`: `80`, `80/tcp`, `8000-8080/tcp` (moby daemon/list.go)."""
    published = [f"{p.published_port}/{p.protocol}" for p in ports]
    for key, there in (("expose", exposed), ("publish", published)):
        wanted = [_port_range(key, value) for value in filters.get(key, ())]
        numbers = [(int(number), protocol) for number, _, protocol in (t.partition("/") for t in there)]
        if wanted and not any(n in among and p == protocol for among, protocol in wanted for n, p in numbers):
            return False
    return True


def _port_range(key: str, value: str) -> tuple[range, str]:
    numbers, _, protocol = value.partition("/")
    first, _, last = numbers.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or protocol not in ("", "tcp", "udp", "sctp"):
        raise InvalidArgument(
            f"invalid filter '{key}={value}': use PORT, PORT/PROTOCOL or FIRST-LAST/PROTOCOL"
        )
    return range(int(first), int(last or first) + 1), protocol or "tcp"


async def image_config(call: Call, found: Container) -> dict[str, Any]:
    """The config of a container's image; empty when it was removed by force since."""
    try:
        return dict((await call.backend.runtime.image(found.image_id)).config)
    except OverlaceError:
        return {}


async def sizes(call: Call, found: Container) -> dict[str, int]:
    """What `--size` shows: the container's own layer, and that on top of its image."""
    try:
        own = await call.backend.runtime.layer_size(found.config.id)
    except NotFound:
        own = 0  # gone since
    try:
        image = (await call.backend.runtime.image(found.image_id)).size
    except NotFound:
        image = 0  # removed by force since
    return {"SizeRw": own, "SizeRootFs": own + image}


async def inspect(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    image = await image_config(call, found)
    ports = await call.backend.container_ports(found.config.id)
    shown = show.inspect(found, await _addresses(call, found), call.backend.options.os, image, ports)
    record = call.backend.containers.record(found.config.id)
    if record is not None:
        restarting = call.backend.containers.restarting(found.config.id)
        shown = single.inspect(shown, record, restarting=restarting)
    if call.flag("size"):
        shown |= await sizes(call, found)
    return answer(shown)


async def _addresses(call: Call, found: Container) -> list[ContainerAddress]:
    return list(await call.backend.container_addresses(found.config.id))


async def logs(call: Call) -> web.StreamResponse:
    options = parameters(call)
    found = await find(call, call.args["id"])
    about = details({})

    async def lines() -> AsyncGenerator[Line, None]:
        async with closing(call.backend.runtime.logs(found.config.id, options)) as source:
            async for line in source:
                yield line.timestamp, line.stream, line.data, about

    return await stream_lines(call, lines(), found.config.tty)


async def top(call: Call) -> web.StreamResponse:
    found = await find(call, call.args["id"])
    titles, rows = await call.backend.runtime.top(found.config.id, call.text("ps_args") or "-ef")
    return answer({"Titles": titles, "Processes": rows})


# -- what is not there yet -----------------------------------------------------------------------------------


def refused(reason: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        if "id" in call.args:
            await find(call, call.args["id"])
        raise Unimplemented(reason)

    return refuse


_LATER = "is not supported yet"

ROUTES = [
    Route("GET", "/containers/json", list_containers),
    Route("GET", "/containers/{id}/json", inspect),
    Route("GET", "/containers/{id}/logs", logs, streams=True),
    Route("GET", "/containers/{id}/attach/ws", refused(f"docker attach {_LATER}")),
    Route("GET", "/containers/{id}/top", top),
    Route("GET", "/containers/{id}/changes", refused(f"docker diff {_LATER}")),
    Route("GET", "/containers/{id}/export", refused(f"docker export {_LATER}")),
    Route("GET", "/containers/{id}/archive", refused(f"docker cp {_LATER}")),
    Route("HEAD", "/containers/{id}/archive", refused(f"docker cp {_LATER}")),
    Route("PUT", "/containers/{id}/archive", refused(f"docker cp {_LATER}")),
    *(
        Route("POST", f"/containers/{{id}}/{verb}", refused(f"docker {verb} {_LATER}"))
        for verb in ("pause", "unpause")
    ),
    Route(
        "POST",
        "/commit",
        refused("docker commit is not supported: build images elsewhere and push them to a registry"),
    ),
]
