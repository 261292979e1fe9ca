"""Generic resources: what a node has besides CPUs and memory (GPUs, licences), and what a task takes of it.

Owns their grammar, counting and the environment a task sees them in (swarmkit api/genericresource, design/
generic_resources.md). A kind is either named (a set of values, each for one task) or discrete (a number). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from overlace.model.errors import InvalidArgument

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VALUE = re.compile(r"[^\s,=]+")


class Claim(msgspec.Struct, frozen=True, order=True):
    """One named resource (`value`), or `count` of a discrete kind, that a task has on its node."""

    kind: str
    value: str = ""
    count: int = 0

    @property
    def text(self) -> str:
        return self.value or str(self.count)


class GenericResources(msgspec.Struct, frozen=True):
    """What one node offers."""

    named: dict[str, tuple[str, ...]] = {}
    discrete: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.named or self.discrete)


Taken = Mapping[tuple[str, str], int]
"""What is claimed on a node: (kind, value) of named ones, (kind, "") with a number of discrete ones."""


def parse_node_resources(given: Iterable[str]) -> GenericResources:
    """`gpu=UUID1`, `gpu=UUID2`, `ssd=3`; several may stand in one text, separated by commas, as in dockerd's
    node-generic-resources. Raises InvalidArgument."""
    named: dict[str, list[str]] = {}
    discrete: dict[str, int] = {}
    for term in (term.strip() for text in given for term in text.split(",")):
        kind, equals, value = term.partition("=")
        if not equals or not _KIND.fullmatch(kind) or not _VALUE.fullmatch(value):
            raise InvalidArgument(
                f"incorrect term {term!r}: use KIND=NAME or KIND=NUMBER, such as gpu=UUID1 or ssd=3"
            )
        if re.fullmatch(r"-?[0-9]+", value):
            if len(value) > 19 or not 0 <= int(value) < 1 << 63:
                raise InvalidArgument(
                    f"incorrect term {term[:80]!r}: a number of {kind} is from 0 to {(1 << 63) - 1}"
                )
            if kind in discrete:
                raise InvalidArgument(f"generic resource {kind} is given twice: say its number once")
            discrete[kind] = int(value)
        elif value in named.setdefault(kind, []):
            raise InvalidArgument(f"generic resource {kind}={value} is given twice")
        else:
            named[kind].append(value)
        if kind in named and kind in discrete:
            raise InvalidArgument(
                f"mixed discrete and named resources in expression '{term}': {kind} is one or the other"
            )
    return GenericResources({kind: tuple(values) for kind, values in named.items()}, discrete)


def parse_reservation(entries: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    """(kind, number) of a service's reservation: a number of either sort. Raises InvalidArgument naming the entry."""
    wanted: dict[str, int] = {}
    for number, entry in enumerate(entries):
        where = f"Resources.Reservations.GenericResources[{number}]"
        spec = entry.get("DiscreteResourceSpec") if isinstance(entry, Mapping) else None
        if not isinstance(spec, Mapping) or set(entry) != {"DiscreteResourceSpec"}:
            raise InvalidArgument(
                f'{where}: reserve a number, not names: {{"DiscreteResourceSpec": {{"Kind": …, "Value": …}}}}'
            )
        kind, value = spec.get("Kind"), spec.get("Value")
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise InvalidArgument(f"{where}: Kind {kind!r} is no name of a resource")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgument(f"{where}: Value of {kind} is {value!r}; reserve 1 or more")
        if kind in wanted:
            raise InvalidArgument(f"{where}: {kind} is reserved twice")
        wanted[kind] = value
    return tuple(sorted(wanted.items()))


def free(offered: GenericResources, taken: Taken, kind: str) -> int:
    """How many of a kind nobody has."""
    if kind in offered.named:
        return sum(1 for value in offered.named[kind] if not taken.get((kind, value)))
    return offered.discrete.get(kind, 0) - taken.get((kind, ""), 0)


def total(offered: GenericResources, kind: str) -> int:
    return len(offered.named.get(kind, ())) + offered.discrete.get(kind, 0)


def lacking(
    offered: GenericResources, taken: Taken, wanted: Iterable[tuple[str, int]]
) -> list[tuple[str, int, int]]:
    """(kind, wanted, free) of what a node has too little of."""
    return [(kind, count, left) for kind, count in wanted if (left := free(offered, taken, kind)) < count]


def claim(offered: GenericResources, taken: Taken, wanted: Iterable[tuple[str, int]]) -> tuple[Claim, ...]:
    """What a task gets of a node that has enough: named ones in the node's order."""
    claims: list[Claim] = []
    for kind, count in wanted:
        if kind in offered.named:
            left = [value for value in offered.named[kind] if not taken.get((kind, value))]
            claims += [Claim(kind, value) for value in left[:count]]
        else:
            claims.append(Claim(kind, count=count))
    return tuple(claims)


def environment(claims: Iterable[Claim]) -> tuple[str, ...]:
    """`DOCKER_RESOURCE_GPU=UUID1,UUID2` (swarmkit genericresource.EnvFormat)."""
    values: dict[str, list[str]] = {}
    for one in claims:
        values.setdefault(f"DOCKER_RESOURCE_{one.kind.upper()}", []).append(one.text)
    return tuple(f"{name}={','.join(texts)}" for name, texts in sorted(values.items()))


def documents(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """As the Engine API has them."""
    return [
        {"NamedResourceSpec": {"Kind": one.kind, "Value": one.value}}
        if one.value
        else {"DiscreteResourceSpec": {"Kind": one.kind, "Value": one.count}}
        for one in claims
    ]


def offered_documents(offered: GenericResources) -> list[dict[str, Any]]:
    """All a node has, as the Engine API has it."""
    named = [Claim(kind, value) for kind, values in offered.named.items() for value in values]
    return documents([*named, *(Claim(kind, count=count) for kind, count in offered.discrete.items())])
