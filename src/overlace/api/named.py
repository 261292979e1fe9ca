"""Finding what a client means by an id, a name or the start of an id, as Docker does everywhere. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def matches(things: Iterable[T], ref: str, id_of: Callable[[T], str], name_of: Callable[[T], str]) -> list[T]:
    """Those whose full id is `ref`; without one those of that name; without one those whose id starts so."""
    there = list(things)
    tests: tuple[Callable[[T], bool], ...] = (
        lambda thing: id_of(thing) == ref,
        lambda thing: name_of(thing) == ref,
        lambda thing: id_of(thing).startswith(ref),
    )
    for test in tests:
        found = [thing for thing in there if test(thing)]
        if found:
            return found
    return []
