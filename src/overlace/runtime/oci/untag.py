"""What `docker image rm NAME` takes away: a name, all names, or the image itself. Pure.

Owns Docker's rules (moby daemon/images/image_delete.go). Must not touch the store.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from overlace.model.errors import Conflict
from overlace.model.reference import parse_reference
from overlace.runtime.base import Image


class User(msgspec.Struct, frozen=True):
    """A container that uses an image."""

    container_id: str
    running: bool


class Removal(msgspec.Struct, frozen=True):
    """What the image is left with, and the lines the client prints; `gone`: nothing holds it any more."""

    tags: tuple[str, ...]
    digests: tuple[str, ...]
    lines: tuple[str, ...]
    gone: bool = False


def is_hex(text: str) -> bool:
    """Whether this may be (the start of) an image's id."""
    return 1 <= len(text) <= 64 and all(c in "0123456789abcdef" for c in text)


def plan_removal(name: str, image: Image, users: Sequence[User], force: bool) -> Removal:
    """`name` is what the client called the image. With `force`, an image containers still use loses its names only.

    Raises Conflict in Docker's words.
    """
    bare = name.removeprefix("sha256:")
    if is_hex(bare) and image.id.removeprefix("sha256:").startswith(bare):
        _check_by_id(image, users, force)
    else:
        kept = _without(name, image)
        if kept.tags or kept.digests:
            return kept
        if users and not force:
            raise Conflict(
                f'conflict: unable to remove repository reference "{name}" (must force) - container '
                f"{users[0].container_id[:12]} is using its referenced image {_short(image)}"
            )
    lines = tuple(f"Untagged: {text}" for text in (*image.tags, *image.digests))
    if users:
        return Removal((), (), lines)
    return Removal((), (), (*lines, f"Deleted: {image.id}"), gone=True)


def _short(image: Image) -> str:
    return image.id.removeprefix("sha256:")[:12]


def _check_by_id(image: Image, users: Sequence[User], force: bool) -> None:
    prefix = f"conflict: unable to delete {_short(image)}"
    repositories = {tag.rpartition(":")[0] for tag in image.tags} | {d.split("@")[0] for d in image.digests}
    if len(repositories) > 1 and not force:
        raise Conflict(f"{prefix} (must be forced) - image is referenced in multiple repositories")
    for user in users:
        holder = user.container_id[:12]
        if user.running:
            raise Conflict(f"{prefix} (cannot be forced) - image is being used by running container {holder}")
        if not force:
            raise Conflict(f"{prefix} (must be forced) - image is being used by stopped container {holder}")


def _without(name: str, image: Image) -> Removal:
    """The image without that one name."""
    reference = parse_reference(name).with_default_tag()
    gone = reference.familiar_tag if not reference.digest else f"{reference.familiar_name}@{reference.digest}"
    tags = tuple(tag for tag in image.tags if tag != gone)
    digests = tuple(digest for digest in image.digests if digest != gone)
    lines = [f"Untagged: {gone}"]
    others = any(tag.rpartition(":")[0] == reference.familiar_name for tag in tags)
    if not others and not reference.digest:
        # the repository's last tag takes its digests along, as in Docker
        lines += [f"Untagged: {d}" for d in digests if d.split("@")[0] == reference.familiar_name]
        digests = tuple(d for d in digests if d.split("@")[0] != reference.familiar_name)
    return Removal(tags, digests, tuple(lines))
