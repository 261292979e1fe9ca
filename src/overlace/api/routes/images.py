"""/images of this host, and /distribution, which asks a registry. Names hold slashes."""

from __future__ import annotations

import asyncio
import fnmatch
from typing import Any

from aiohttp import web

from overlace.api import codec
from overlace.api.call import Call, Handler, Route, answer
from overlace.api.convert import image as show
from overlace.api.routes.networks import label_matches
from overlace.api.routes.system import architecture
from overlace.model.errors import InvalidArgument, OverlaceError, Unimplemented
from overlace.model.reference import parse_reference
from overlace.runtime.auth import decode_auth
from overlace.runtime.base import Image, Platform, RegistryAuth

FILTERS = frozenset(("before", "dangling", "label", "label!", "reference", "since", "until"))


def _auth(call: Call) -> RegistryAuth | None:
    return decode_auth(call.request.headers.get("X-Registry-Auth", ""))


async def list_images(call: Call) -> web.StreamResponse:
    filters = call.filters(FILTERS)
    runtime = call.backend.runtime
    before = [show.created_at(await runtime.image(v)) for v in filters.get("before", ())]
    since = [show.created_at(await runtime.image(v)) for v in filters.get("since", ())]
    until = [codec.parse_time(v, "until") for v in filters.get("until", ())]
    shown = []
    for image in sorted(await runtime.images(), key=show.created_at, reverse=True):
        created = show.created_at(image)
        if (before and created >= min(before)) or (since and created <= max(since)):
            continue
        if (until and created >= max(until)) or not _kept(image, filters):
            continue
        shown.append(show.summary(image))
    return answer(shown)


def _kept(image: Image, filters: dict[str, list[str]]) -> bool:
    labels = image.config.get("Labels")
    labels = labels if isinstance(labels, dict) else {}
    if not label_matches(labels, filters.get("label", ())):
        return False
    if any(label_matches(labels, [v]) for v in filters.get("label!", ())):
        return False
    if filters.get("dangling") and not any((not image.tags) == codec.flag(v) for v in filters["dangling"]):
        return False
    wanted = filters.get("reference")
    return not wanted or any(_matches(tag, pattern) for tag in image.tags for pattern in wanted)


def _matches(tag: str, pattern: str) -> bool:
    """`repo`, `repo:tag`, with `*` (Go's path.Match, on the familiar name with and without tag)."""
    return fnmatch.fnmatchcase(tag, pattern) or fnmatch.fnmatchcase(tag.rpartition(":")[0], pattern)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(show.inspect(await call.backend.runtime.image(call.args["name"])))


async def remove(call: Call) -> web.StreamResponse:
    lines = await call.backend.runtime.remove_image(call.args["name"], call.flag("force"))
    shown = []
    for line in lines:
        kind, _, what = line.partition(": ")
        shown.append({kind: what})
    return answer(shown)


def platform(call: Call, text: str) -> Platform:
    """`platform=os[/arch[/variant]]`, or this host's. Raises InvalidArgument."""
    options = call.backend.options
    build = options.os_version if options.os == "windows" else ""
    if not text:
        return Platform(options.os, architecture(), build)
    parts = text.lower().split("/")
    if not all(parts) or len(parts) > 3:
        raise InvalidArgument(f"invalid platform {text!r}: use os/architecture[/variant]")
    os, arch, variant = [*parts, *("" for _ in range(3 - len(parts)))]
    return Platform(os, arch or architecture(), build if os == options.os else "", variant)


def reference(image: str, tag: str) -> str:
    """`fromImage` and `tag` as one reference; a digest may come as the tag."""
    if not tag:
        return image
    return f"{image}@{tag}" if ":" in tag else f"{image}:{tag}"


async def create(call: Call) -> web.StreamResponse:
    """`docker pull`: a stream of JSON lines, the last of which says how it ended.

    What fails before anything is fetched is told by the status (moby server/router/image: nothing written yet).
    """
    name = call.text("fromImage")
    if call.text("fromSrc"):
        raise Unimplemented("docker import is not supported: push the image to a registry")
    if not name:
        raise InvalidArgument("fromImage is missing: name an image")
    wanted = reference(name, call.text("tag"))
    where = platform(call, call.text("platform"))
    auth = _auth(call)
    runtime = call.backend.runtime
    try:
        before: str = (await runtime.image(wanted)).id
    except OverlaceError:
        before = ""
    told: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
    pull = asyncio.ensure_future(
        runtime.pull(wanted, where, auth, lambda layer, status: told.put_nowait((layer, status)))
    )
    pull.add_done_callback(lambda _: told.put_nowait(None))
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()

    async def say(document: dict[str, Any]) -> None:
        await response.write(codec.encode(document))

    try:
        line = await told.get()
        if line is None:
            await pull
        await response.prepare(call.request)
        tag = call.text("tag") or wanted.rpartition("/")[2].partition(":")[2] or "latest"
        await say({"status": f"Pulling from {parse_reference(wanted).path}", "id": tag})
        while line is not None:
            await say({"status": line[1], "progressDetail": {}, "id": line[0]})
            line = await told.get()
        image = await pull
        for digest in image.digests:
            await say({"status": f"Digest: {digest.partition('@')[2]}"})
        fresh = "Downloaded newer image for" if image.id != before else "Image is up to date for"
        await say(
            {"status": f"Status: {fresh} {wanted if ':' in wanted.rpartition('/')[2] else f'{wanted}:{tag}'}"}
        )
    except OverlaceError as error:
        if not response.prepared:
            raise
        await say({"errorDetail": {"message": error.message}, "error": error.message})
    except ConnectionError:
        return response
    finally:
        if not pull.done():
            pull.cancel()
    await response.write_eof()
    return response


async def distribution(call: Call) -> web.StreamResponse:
    """What the registry has under a name: the CLI pins the digest and takes the platforms from it."""
    found = await call.manager().resolver.inspect(call.args["name"], _auth(call))
    platforms = []
    for p in found.platforms:
        shown: dict[str, Any] = {"architecture": p.architecture, "os": p.os}
        if p.os_version:
            shown["os.version"] = p.os_version
        if p.variant:
            shown["variant"] = p.variant
        platforms.append(shown)
    return answer(
        {
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
            "Platforms": platforms,
        }
    )


def _refused(reason: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        if "name" in call.args:
            await call.backend.runtime.image(call.args["name"])
        raise Unimplemented(reason)

    return refuse


_ELSEWHERE = "is not supported: build images elsewhere and push them to a registry"

ROUTES = [
    Route("GET", "/images/json", list_images),
    Route("GET", "/images/search", _refused("docker search is not supported: ask the registry itself")),
    Route("GET", "/images/get", _refused("docker save is not supported yet")),
    Route("POST", "/images/create", create, streams=True),
    Route("POST", "/images/load", _refused(f"docker load {_ELSEWHERE}")),
    Route(
        "POST", "/images/prune", _refused("docker image prune is not supported yet: remove images by name")
    ),
    Route("GET", "/images/{name:*}/json", inspect),
    Route("GET", "/images/{name:*}/history", _refused("docker history is not supported yet")),
    Route("GET", "/images/{name:*}/get", _refused("docker save is not supported yet")),
    Route("POST", "/images/{name:*}/tag", _refused("docker tag is not supported yet")),
    Route("POST", "/images/{name:*}/push", _refused(f"docker push {_ELSEWHERE}")),
    Route("DELETE", "/images/{name:*}", remove),
    Route("GET", "/distribution/{name:*}/json", distribution),
    Route("POST", "/build", _refused(f"docker build {_ELSEWHERE}")),
    Route("POST", "/build/prune", _refused(f"docker build {_ELSEWHERE}")),
]
