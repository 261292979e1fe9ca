"""What a service's image is: the digest it is pinned to and the platforms it offers, asked of its registry.

Owns when to ask and what to take over. A registry that does not know, refuses or does not answer is a
warning: the service goes on with the image as written (Docker's behaviour). What was learnt once is kept
while the image stays the same, so that scaling never changes a task.
"""

from __future__ import annotations

import msgspec

from overlace.manager.control.base import Core
from overlace.model.errors import OverlaceError
from overlace.model.reference import parse_reference
from overlace.model.specs import Placement, Platform, ServiceSpec
from overlace.runtime import base as runtime
from overlace.runtime.auth import decode_auth


class Images(Core):
    async def _with_image(
        self, spec: ServiceSpec, current: ServiceSpec | None, registry_auth: str
    ) -> tuple[ServiceSpec, str]:
        """The spec with its image pinned and its platforms filled in, and a warning ("" when all is well).

        Raises InvalidArgument for registry credentials that cannot be read.
        """
        image = image_of(spec)
        auth = decode_auth(registry_auth)
        if current is not None and image_of(current) == image:
            return _with_platforms(spec, _carried_over(platforms_of(spec), platforms_of(current))), ""
        if self._resolver is None or not needs_facts(spec):
            return spec, ""
        reference = parse_reference(image)
        try:
            facts = await self._resolver.inspect(image, auth)
        except OverlaceError as error:
            if reference.pinned:
                return spec, f"the platforms of image {image} could not be learnt from its registry: {error}"
            return spec, (
                f"image {image} could not be accessed on a registry to record its digest. Each node will"
                f" access {image} independently, possibly leading to different nodes running different"
                f" versions of the image. ({error})"
            )
        if not reference.pinned:
            spec = _with_pin(spec, reference.with_digest(facts.digest).familiar)
        return _with_platforms(spec, enrich(platforms_of(spec), facts.platforms)), ""


def image_of(spec: ServiceSpec) -> str:
    container = spec.task_template.container_spec
    return container.image if container is not None else ""


def platforms_of(spec: ServiceSpec) -> list[Platform]:
    placement = spec.task_template.placement
    return placement.platforms if placement is not None else []


def needs_facts(spec: ServiceSpec) -> bool:
    """Whether the registry has something to say: digest, platforms, or the Windows builds docker CLI leaves
    out."""
    platforms = platforms_of(spec)
    return (
        not parse_reference(image_of(spec)).pinned
        or not platforms
        or any(platform.os == "windows" and not platform.os_version for platform in platforms)
    )


def enrich(asked: list[Platform], offered: tuple[runtime.Platform, ...]) -> list[Platform]:
    """The image's platforms for placement; of those the client named, with what it could not say (the Windows
    build).

    The architecture of 32-bit ARM is left open, as docker CLI does: its variants are not told apart by a
    host.
    """
    known = [
        Platform(
            "" if p.architecture == "arm" else p.architecture, p.os, p.os_version if p.os == "windows" else ""
        )
        for p in offered
        if p.os not in ("", "unknown")
    ]
    known = list(dict.fromkeys(known))
    if not asked:
        return known
    found: list[Platform] = []
    for platform in asked:
        alike = [k for k in known if _alike(k, platform)] if not platform.os_version else []
        found += alike or [platform]
    return list(dict.fromkeys(found))


def _alike(a: Platform, b: Platform) -> bool:
    return (a.os, a.architecture) == (b.os, b.architecture)


def _carried_over(asked: list[Platform], known: list[Platform]) -> list[Platform]:
    """What is known of the same image already, unless the client asks for other platforms than before."""
    same = {(p.os, p.architecture) for p in asked} == {(p.os, p.architecture) for p in known}
    return known if same or not asked else asked


def _with_platforms(spec: ServiceSpec, platforms: list[Platform]) -> ServiceSpec:
    if platforms == platforms_of(spec):
        return spec
    template = spec.task_template
    placement = msgspec.structs.replace(template.placement or Placement(), platforms=platforms)
    return msgspec.structs.replace(spec, task_template=msgspec.structs.replace(template, placement=placement))


def _with_pin(spec: ServiceSpec, image: str) -> ServiceSpec:
    template = spec.task_template
    assert template.container_spec is not None
    container = msgspec.structs.replace(template.container_spec, image=image)
    return msgspec.structs.replace(
        spec, task_template=msgspec.structs.replace(template, container_spec=container)
    )
