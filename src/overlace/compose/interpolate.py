"""`$VAR` and `${VAR…}` in the values of a compose file (compose-spec, interpolation).

Owns the grammar: `$$` is a dollar; `${V:-d}` and `${V-d}` fall back, `${V:?text}` and `${V?text}` insist,
`${V:+x}` and `${V+x}` replace; a default may hold variables. With a colon an empty value counts as unset. Must not
know where values come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from overlace.compose.problems import Problems
from overlace.compose.tree import Node

Lookup = Callable[[str], str | None]

_NAME = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*")
_OPERATOR = re.compile(r":?[-?+]")
_DEEPEST = 20  # defaults within defaults


class BadInterpolation(ValueError):
    """What is wrong with a `$…`, as a sentence."""


def substitute(text: str, lookup: Lookup, unset: Callable[[str], None] = lambda name: None) -> str:
    """`text` with its variables filled in; `unset` hears of those that became nothing. Raises BadInterpolation."""
    found, end = _until(text, 0, "", lookup, unset, 0)
    assert end == len(text)
    return found


def _until(
    text: str, at: int, closer: str, lookup: Lookup, unset: Callable[[str], None], depth: int
) -> tuple[str, int]:
    """The text from `at` to an unbalanced `closer` (or the end when that is ""), and where that stands."""
    if depth > _DEEPEST:
        raise BadInterpolation("defaults are nested too deeply")
    out: list[str] = []
    while at < len(text):
        char = text[at]
        if closer and char == closer:
            return "".join(out), at
        if char != "$":
            out.append(char)
            at += 1
            continue
        following = text[at + 1 : at + 2]
        if following == "$":
            out.append("$")
            at += 2
        elif following == "{":
            value, at = _braced(text, at, lookup, unset, depth)
            out.append(value)
        else:
            match = _NAME.match(text, at + 1)
            if match is None:
                raise BadInterpolation(
                    f'"{text[at : at + 12]}" names no variable; write $$ for a dollar sign'
                )
            out.append(_value(match[0], lookup, unset))
            at = match.end()
    if closer:
        raise BadInterpolation('a "${" is not closed; write $$ for a dollar sign')
    return "".join(out), at


def _value(name: str, lookup: Lookup, unset: Callable[[str], None]) -> str:
    value = lookup(name)
    if value is None:
        unset(name)
    return value or ""


def _braced(
    text: str, start: int, lookup: Lookup, unset: Callable[[str], None], depth: int
) -> tuple[str, int]:
    """`${…}` that begins at `start`: its value, and where the text goes on."""
    match = _NAME.match(text, start + 2)
    if match is None:
        raise BadInterpolation(f'"{text[start : start + 12]}" names no variable; write $$ for a dollar sign')
    name, at = match[0], match.end()
    if text[at : at + 1] == "}":
        return _value(name, lookup, unset), at + 1
    operator = _OPERATOR.match(text, at)
    if operator is None:
        raise BadInterpolation(
            f'after "${{{name}" comes "}}", or one of - ? + with or without a colon before it'
        )
    value = lookup(name)
    there = bool(value) if operator[0].startswith(":") else value is not None
    used = there if operator[0][-1] == "+" else not there
    silent: Lookup = lookup if used else (lambda _: "x")  # what is not used need not be set
    other, end = _until(text, operator.end(), "}", silent, unset if used else (lambda _: None), depth + 1)
    match operator[0][-1]:
        case "+":
            return (other if there else ""), end + 1
        case "-":
            return (value or "" if there else other), end + 1
        case _:
            if not there:
                how = "is not set" if value is None else "is empty"
                raise BadInterpolation(f"the variable {name} {how}: {other or 'it is required'}")
            return value or "", end + 1


def interpolate(node: Node, path: str, lookup: Lookup, problems: Problems) -> Node:
    """The tree with every text filled in; keys stay, and so does what has no `$`."""
    if isinstance(node.value, dict):
        return node.with_value(
            {
                key: interpolate(child, f"{path}.{key}" if path else key, lookup, problems)
                for key, child in node.value.items()
            }
        )
    if isinstance(node.value, list):
        return node.with_value(
            [interpolate(child, f"{path}[{i}]", lookup, problems) for i, child in enumerate(node.value)]
        )
    if not isinstance(node.value, str) or "$" not in node.value:
        return node

    def unset(name: str) -> None:
        problems.warn(node.mark, path, f"the variable {name} is not set; it is read as nothing")

    try:
        text = substitute(node.value, lookup, unset)
    except BadInterpolation as error:
        problems.error(node.mark, path, str(error))
        return node
    return Node(text, node.mark, text, node.tag)
