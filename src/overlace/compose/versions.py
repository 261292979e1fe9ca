"""Secrets and configs as versions of one name: a swarm's never change, a file's content does.

Owns their names. The first version has the name the docker CLI gives it (STACK_key), so that either can take over; a
later one gets a suffix made from its content and a label with the base name, and is found again by both. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

import msgspec

from overlace.model.specs import ConfigSpec, SecretSpec

VERSION_OF = "com.overlace.stack.version-of"
NAMESPACE = "com.docker.stack.namespace"
MAX_NAME = 64
_DIGITS = 12


class Stored(msgspec.Struct, frozen=True):
    """A secret or config the swarm has."""

    id: str
    name: str
    version: int
    labels: dict[str, str] = {}


class Wish(msgspec.Struct, frozen=True):
    """A secret or config a stack should have; `spec.name` is the base name."""

    kind: str  # secret | config
    key: str  # in the file
    spec: SecretSpec | ConfigSpec
    rotates: bool = True  # not with a driver: its content is not here


class Choice(msgspec.Struct, frozen=True):
    """Which version serves a wish: one there is, or one to create."""

    wish: Wish
    name: str
    stored: Stored | None


def suffix(wish: Wish) -> str:
    """From the content. A secret's is slow to compute (RFC 7914): a name, which many may read, must not make guessing
    a password quick."""
    salt = f"{wish.kind}:{wish.spec.name}".encode()
    if wish.kind == "secret":
        found = hashlib.scrypt(wish.spec.data, salt=salt, n=2**14, r=8, p=1, dklen=16)
    else:
        found = hashlib.sha256(salt + b"\0" + wish.spec.data).digest()
    return found.hex()[:_DIGITS]


def versioned_name(wish: Wish) -> str:
    tail = f"-{suffix(wish)}"
    return wish.spec.name[: MAX_NAME - len(tail)] + tail


def versions_of(wish: Wish, stack: str, stored: Iterable[Stored]) -> list[Stored]:
    """Every version of the wish's base name that belongs to the stack, and whoever has the base name itself."""
    base = wish.spec.name
    return [
        one
        for one in stored
        if one.name == base or (one.labels.get(VERSION_OF) == base and one.labels.get(NAMESPACE) == stack)
    ]


def choose(wish: Wish, versions: Collection[Stored], same: Mapping[str, bool]) -> Choice:
    """`same` says by id whose content is the wish's."""
    plain = next((one for one in versions if one.name == wish.spec.name), None)
    if plain is not None and (not wish.rotates or same.get(plain.id, False)):
        return Choice(wish, plain.name, plain)
    name = versioned_name(wish) if versions else wish.spec.name
    there = next((one for one in versions if one.name != wish.spec.name and same.get(one.id, False)), None)
    return Choice(wish, there.name if there else name, there)


def labels_of(choice: Choice) -> dict[str, str]:
    """The labels a version should have."""
    base = choice.wish.spec.name
    return choice.wish.spec.labels | ({} if choice.name == base else {VERSION_OF: base})
