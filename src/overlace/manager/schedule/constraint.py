"""Placement constraints: the grammar and whether a node meets them.

Owns parsing (with Docker's words on errors) and matching. Must not know tasks, stores or ranking.
Grammar and keys: swarmkit manager/constraint; Engine API `TaskSpec.Placement.Constraints`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence

import msgspec

from overlace.model.architecture import fold_architecture
from overlace.model.errors import InvalidArgument
from overlace.model.objects import Node

OPERATORS = ("==", "!=")
_KEY = re.compile(r"^[a-z_][a-z0-9\-_.]+$", re.IGNORECASE)
_VALUE = re.compile(r"^[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$", re.IGNORECASE)
_NODE_LABEL = "node.labels."
_ENGINE_LABEL = "engine.labels."


class Constraint(msgspec.Struct, frozen=True):
    key: str
    equal: bool
    value: str

    def __str__(self) -> str:
        return f"{self.key}{'==' if self.equal else '!='}{self.value}"


def parse_constraint(text: str) -> Constraint:
    """`key == value` or `key != value`; blanks around both are dropped. Raises InvalidArgument."""
    operator = next((op for op in OPERATORS if op in text), None)
    if operator is None:
        raise InvalidArgument(f"constraint expected one operator from {', '.join(OPERATORS)}")
    left, _, right = text.partition(operator)
    key, value = left.strip(), right.strip()
    if not _KEY.match(key):
        raise InvalidArgument(f"key '{key}' is invalid")
    if not _VALUE.match(value):
        raise InvalidArgument(f"value '{value}' is invalid")
    return Constraint(key, operator == "==", value)


@functools.lru_cache(maxsize=4096)
def _parse_all(texts: tuple[str, ...]) -> tuple[Constraint, ...]:
    return tuple(parse_constraint(text) for text in texts)


def parse_constraints(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """All of a service's constraints (they are ANDed). Raises InvalidArgument for the first bad one."""
    return _parse_all(tuple(texts))


def node_value(node: Node, key: str) -> str | None:
    """What the node has for a constraint key, "" when it has nothing, None when the key is unknown.

    Keys are case-insensitive; label names after `node.labels.` and `engine.labels.` are not.
    """
    lower = key.lower()
    about = node.description
    match lower:
        case "node.id":
            return node.id
        case "node.hostname":
            return about.hostname if about else ""
        case "node.role":
            return node.spec.role
        case "node.ip":
            return node.status.addr
        case "node.platform.os":
            return about.os if about else ""
        case "node.platform.arch":
            return about.architecture if about else ""
    if lower.startswith(_NODE_LABEL) and len(key) > len(_NODE_LABEL):
        return node.spec.labels.get(key[len(_NODE_LABEL) :], "")
    if lower.startswith(_ENGINE_LABEL) and len(key) > len(_ENGINE_LABEL):
        return about.engine_labels.get(key[len(_ENGINE_LABEL) :], "") if about else ""
    return None


def meets(constraint: Constraint, node: Node) -> bool:
    """Whether the node meets one constraint. An unknown key and a malformed `node.ip` match no node.

    Unlike Docker's, `node.platform.arch` folds names (amd64 is x86_64, arm64 is aarch64), so either spelling
    works.
    """
    actual = node_value(node, constraint.key)
    if actual is None:
        return False
    key = constraint.key.lower()
    if key == "node.ip":
        same = _address_in(actual, constraint.value)
        return False if same is None else same == constraint.equal
    wanted = constraint.value
    if key == "node.platform.arch":
        actual, wanted = fold_architecture(actual), fold_architecture(wanted)
    return (actual.casefold() == wanted.casefold()) == constraint.equal


def _address_in(address: str, wanted: str) -> bool | None:
    """Whether an address is the wanted one or inside the wanted subnet; None when `wanted` is neither."""
    host = address
    if host.count(":") == 1:  # host:port, as a session's peer may be noted
        host = host.partition(":")[0]
    try:
        network = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return None
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False


def first_unmet(constraints: Sequence[Constraint], node: Node) -> Constraint | None:
    for constraint in constraints:
        if not meets(constraint, node):
            return constraint
    return None
