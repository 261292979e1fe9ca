"""What a Docker Engine keeps for its containers: images and volumes.

Owns the verbs on them. Must not know containers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from overlace.model.errors import Internal, NotFound, Unavailable
from overlace.runtime.auth import encode_auth
from overlace.runtime.base import Image, Platform, PullProgress, RegistryAuth, StoredVolume
from overlace.runtime.docker import convert
from overlace.runtime.docker.client import EngineClient, documents
from overlace.runtime.oci.files import tree_size


class Stock:
    """That half of a `Runtime`."""

    def __init__(self, engine: EngineClient, platform: Platform) -> None:
        self._engine = engine
        self._platform = platform

    # ---- images ----

    async def pull(
        self,
        reference: str,
        platform: Platform | None = None,
        auth: RegistryAuth | None = None,
        progress: PullProgress | None = None,
    ) -> Image:
        """See `Runtime.pull`; `platform` None means this host's. Raises NotFound, Unavailable with the registry's
        words."""
        wanted = platform or self._platform
        if "@" in reference:
            with contextlib.suppress(NotFound):
                return await self.image(reference)
        params = {"fromImage": reference, "platform": f"{wanted.os}/{wanted.architecture}"}
        if "@" not in reference and ":" not in reference.rpartition("/")[2]:
            params["tag"] = "latest"
        headers = {"X-Registry-Auth": encode_auth(auth)} if auth is not None else {}
        try:
            async with self._engine.stream(
                "POST", "/images/create", params=params, headers=headers
            ) as response:
                async for line in documents(response):
                    if "error" in line:
                        raise Unavailable(f"pull of {reference}: {line['error']}")
                    if progress is not None and "id" in line:
                        progress(str(line["id"]), str(line.get("status", "")))
        except (
            Internal
        ) as error:  # the engine's 500 is about the registry: unreachable, refused, out of order
            raise Unavailable(f"pull of {reference}: {error.message}") from error
        return await self.image(reference)

    async def images(self) -> list[Image]:
        found = []
        for short in await self._engine.call("GET", "/images/json"):
            with contextlib.suppress(NotFound):
                found.append(await self.image(short["Id"]))
        return found

    async def image(self, name: str) -> Image:
        return convert.image_of(await self._engine.call("GET", f"/images/{name}/json"))

    async def remove_image(self, name: str, force: bool = False) -> list[str]:
        """As `docker image rm`; returns its lines (`Untagged: X`, `Deleted: sha256:…`)."""
        done = await self._engine.call("DELETE", f"/images/{name}", params={"force": str(int(force))})
        return [f"{word}: {what}" for step in done or () for word, what in step.items()]

    async def volumes(self) -> list[StoredVolume]:
        """Every volume of the engine, by name."""
        found = (await self._engine.call("GET", "/volumes")).get("Volumes") or ()
        return sorted((convert.volume_of(v) for v in found), key=lambda v: v.name)

    async def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> StoredVolume:
        """See `Runtime.create_volume`."""
        body = {"Name": name, "Driver": "local", "Labels": dict(labels), "DriverOpts": dict(options)}
        return convert.volume_of(await self._engine.call("POST", "/volumes/create", body=body))

    async def remove_volume(self, name: str) -> int:
        """See `Runtime.remove_volume`."""
        found = convert.volume_of(await self._engine.call("GET", f"/volumes/{name}"))
        size = await asyncio.to_thread(tree_size, Path(found.path))
        await self._engine.call("DELETE", f"/volumes/{name}")
        return size
