"""YAML as a tree that knows where everything was written.

Owns the reading of scalars as the docker CLI and compose have it (Go's yaml.v3): only `true` and `false` are
booleans, `yes` and `on` are text, `22:22` is text and never a number to the base of 60, `0777` and `0o777` are
octal. A key given twice, a key that is no text and an alias inside itself are refused. Must not know compose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import yaml

from overlace.compose.problems import ComposeError, Mark, Problem

MAX_NODES = 200_000  # with aliases followed: a few lines can stand for billions
MAX_DEPTH = 100
_MAX_DIGITS = 310  # what a float holds
_BASE: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_PLAIN, _TEXT = "plain", "tag:yaml.org,2002:str"
_STANDARD = "tag:yaml.org,2002:"
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_OCTAL = re.compile(r"([-+]?)0o?([0-7_]+)")
_HEX = re.compile(r"([-+]?)0x([0-9a-fA-F_]+)")
_BINARY = re.compile(r"([-+]?)0b([01_]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. `text` is a scalar as it was written."""

    value: dict[str, Node] | list[Node] | Scalar
    mark: Mark
    text: str = ""
    tag: str = ""  # "!reset" or "!override" (compose's merge rules)
    keys: dict[str, Mark] = field(default_factory=dict)  # of a mapping: where each key stands

    @property
    def mapping(self) -> dict[str, Node]:
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        return self.value if isinstance(self.value, list) else []

    @property
    def kind(self) -> str:
        """What it is, for people."""
        match self.value:
            case dict():
                return "a mapping"
            case list():
                return "a list"
            case None:
                return "nothing"
            case bool():
                return f"the boolean {self.text or self.value}"
            case int() | float():
                return f"the number {self.text or self.value}"
            case _:
                return f'the text "{self.value}"'

    def with_value(self, value: Any) -> Node:
        return replace(self, value=value)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def text_node(text: str, mark: Mark) -> Node:
    return Node(text, mark, text)


def mapping_node(value: dict[str, Node], mark: Mark) -> Node:
    return Node(value, mark, keys={key: node.mark for key, node in value.items()})


class _Loader(_BASE):  # type: ignore[misc]  # PyYAML has no types
    """Leaves the meaning of plain scalars to `_scalar`."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return _STANDARD + ("seq" if kind is yaml.SequenceNode else "map")


def parse(text: str, file: str) -> Node:
    """A file with one document, whose top is a mapping. Raises ComposeError."""
    loader = _Loader(text)
    try:
        _check_depth(text, file)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(file, at.line + 1, at.column + 1) if at is not None else Mark(file, 1, 1)
        words = ", ".join(filter(None, (error.context, error.problem)))
        raise ComposeError([Problem(mark, "", f"this is not YAML: {words}")]) from None
    except yaml.YAMLError as error:  # a character YAML does not allow
        raise ComposeError([Problem(Mark(file, 1, 1), "", f"this is not YAML: {error}")]) from None
    finally:
        loader.dispose()
    if root is None:
        raise ComposeError([Problem(Mark(file, 1, 1), "", "the file is empty")])
    found = _Builder(file).build(root, "")
    if not isinstance(found.value, dict):
        raise ComposeError([Problem(found.mark, "", f"a compose file is a mapping, this is {found.kind}")])
    return found


def _check_depth(text: str, file: str) -> None:
    """What composes nodes recurses in C, and ends the process where the stack does; events come one by one."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                at = Mark(file, event.start_mark.line + 1, event.start_mark.column + 1)
                raise ComposeError([Problem(at, "", f"values are nested more than {MAX_DEPTH} deep")])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._inside: set[int] = set()
        self._left = MAX_NODES

    def build(self, node: Any, path: str) -> Node:
        mark = self._mark(node)
        self._left -= 1
        if self._left < 0:
            raise ComposeError([Problem(mark, path, f"the file stands for more than {MAX_NODES} values")])
        if id(node) in self._inside:
            raise ComposeError([Problem(mark, path, "an anchor is used inside itself")])
        self._inside.add(id(node))
        try:
            tag = node.tag if node.tag in ("!reset", "!override") else ""
            if isinstance(node, yaml.ScalarNode):
                return Node(self._scalar(node, mark, path), mark, node.value, tag)
            self._check_tag(node, mark, path)
            if isinstance(node, yaml.SequenceNode):
                return Node([self.build(n, f"{path}[{i}]") for i, n in enumerate(node.value)], mark, "", tag)
            return self._mapping(node, mark, path, tag)
        finally:
            self._inside.discard(id(node))

    def _mark(self, node: Any) -> Mark:
        return Mark(self._file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _check_tag(self, node: Any, mark: Mark, path: str) -> None:
        if not node.tag.startswith(_STANDARD) and node.tag not in ("!reset", "!override"):
            raise ComposeError(
                [Problem(mark, path, f"unknown tag {node.tag}; compose has !reset and !override")]
            )

    def _mapping(self, node: Any, mark: Mark, path: str, tag: str) -> Node:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            at = self._mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ComposeError([Problem(at, path, "a key must be text")])
            key = key_node.value
            if key == "<<" and key_node.tag == _PLAIN:
                for name, value, where in self._merged(self.build(value_node, path), path):
                    merged.setdefault(name, value)
                    keys.setdefault(name, where)
                continue
            if key_node.tag == _PLAIN and not isinstance(_plain(key), str):
                raise ComposeError([Problem(at, path, f'the key {key} is not text; quote it: "{key}"')])
            if key in own:
                first = keys[key]
                raise ComposeError(
                    [Problem(at, _join(path, key), f"given twice, first at line {first.line}; keep one")]
                )
            own[key] = self.build(value_node, _join(path, key))
            keys[key] = at
        return Node({**merged, **own}, mark, "", tag, keys)

    def _merged(self, source: Node, path: str) -> Iterator[tuple[str, Node, Mark]]:
        """What `<<: *anchor` or `<<: [*a, *b]` brings; the earlier wins (yaml.org/type/merge)."""
        for one in source.items or [source]:
            if not isinstance(one.value, dict):
                raise ComposeError([Problem(one.mark, path, f"<< takes mappings, not {one.kind}")])
            for key, value in one.value.items():
                yield key, value, one.keys[key]

    def _scalar(self, node: Any, mark: Mark, path: str) -> Scalar:
        if node.tag == _PLAIN or (node.tag in ("!reset", "!override") and not node.style):
            return _plain(node.value)
        if node.tag in ("!reset", "!override"):
            return str(node.value)
        if node.tag == _TEXT:
            return str(node.value)
        short = node.tag.removeprefix(_STANDARD)
        if short in ("int", "float", "bool", "null"):
            return _plain(node.value)
        raise ComposeError([Problem(mark, path, f"unknown tag {node.tag}; compose has !reset and !override")])


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _plain(text: str) -> Scalar:
    """A scalar without quotes (YAML 1.2's core schema with 1.1's octals, as yaml.v3 resolves it)."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in "+-.0123456789" or len(text) > _MAX_DIGITS:
        return text
    number: int | None = None
    for pattern, base in ((_OCTAL, 8), (_HEX, 16), (_BINARY, 2)):
        match = pattern.fullmatch(text)
        if match is not None and match[2].replace("_", ""):
            number = int(match[1] + match[2].replace("_", ""), base)
    if number is None and _DECIMAL.fullmatch(text):
        number = int(text.replace("_", ""))
    if number is not None:
        return number if -(2**63) <= number < 2**64 else float(number) if abs(number) < 1e300 else text
    if text.lower() in _SPECIAL:
        return float(_SPECIAL[text.lower()])
    if _FLOAT.fullmatch(text):
        found = float(text.replace("_", "")) if text.replace("_", "").strip("+-.") else None
        return found if found is not None and abs(found) != float("inf") else text
    return text


def go_text(value: Scalar) -> str:
    """A scalar as Go prints it with %v, which is how the docker CLI makes text of numbers: 1.0 -> 1, 1e6 -> 1e+06."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) + exponent - 1
    minus = "-" if sign else ""
    if value and (power < -4 or power >= 6):  # strconv.FormatFloat's rule for the shortest form
        rest = "".join(map(str, digits[1:]))
        return f"{minus}{digits[0]}{'.' + rest if rest else ''}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return f"{Decimal(repr(value)):f}".removesuffix(".0")
