"""Typed access to a mapping of the tree: each key is taken once, what is left over is named.

Owns the wording of type errors and of unknown keys. A wrong value becomes a problem and the default, so that reading
goes on. Must not know which keys there are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from overlace.compose.merge import as_list, as_mapping
from overlace.compose.problems import Mark, Problems
from overlace.compose.shorthand import BadValue, parse_cpus, parse_duration, parse_size
from overlace.compose.tree import Node, go_text, mapping_node

T = TypeVar("T")

# what yaml.org/type/bool has, as text: yaml.v3 leaves it text, compose casts it where a boolean belongs
_WORDS = {"y": True, "yes": True, "true": True, "on": True, "1": True}
_WORDS |= {"n": False, "no": False, "false": False, "off": False, "0": False}


class Reader:
    """A mapping at `path`. A value that is nothing (`key:`) counts as not given."""

    def __init__(self, node: Node, path: str, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self.mark = node.mark
        self._taken: set[str] = set()
        if not isinstance(node.value, dict):
            if node.value is not None:
                problems.error(node.mark, path, f"a mapping belongs here, not {node.kind}")
            node = mapping_node({}, node.mark)
        self.root = node

    def __contains__(self, key: str) -> bool:
        return key in self.root.mapping

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def where(self, key: str) -> Mark:
        return self.root.keys.get(key, self.mark)

    def node(self, key: str) -> Node | None:
        self._taken.add(key)
        found = self.root.mapping.get(key)
        return None if found is None or found.value is None else found

    def error(self, key: str, text: str) -> None:
        node = self.root.mapping.get(key)
        self.problems.error(node.mark if node is not None else self.mark, self.at(key), text)

    def warn(self, key: str, text: str) -> None:
        node = self.root.mapping.get(key)
        self.problems.warn(node.mark if node is not None else self.mark, self.at(key), text)

    def left(self) -> list[str]:
        """Keys nobody asked for, without extensions (x-…)."""
        return [key for key in self.root.mapping if key not in self._taken and not key.startswith("x-")]

    def done(self, known: Collection[str] = ()) -> None:
        """Name every key left over; `known` are more words a typo may be meant for."""
        for key in self.left():
            self.unknown(key, known)

    def unknown(self, key: str, known: Collection[str] = ()) -> None:
        near = difflib.get_close_matches(key, [*self._taken, *known], 1, 0.7)
        hint = (
            f"; did you mean {near[0]}?" if near else "; remove it, or write it as x-… to keep it as a note"
        )
        self.problems.error(self.where(key), self.at(key), f"unknown key{hint}")

    # -- scalars --

    def text(self, key: str, default: str = "") -> str:
        node = self.node(key)
        return default if node is None else self.as_text(node, self.at(key), default)

    def as_text(self, node: Node, path: str, default: str = "") -> str:
        if isinstance(node.value, str):
            return node.value
        quoted = f'; quote it: "{node.text}"' if not isinstance(node.value, dict | list) else ""
        self.problems.error(node.mark, path, f"text belongs here, not {node.kind}{quoted}")
        return default

    def choice(self, key: str, words: Collection[str], default: str = "") -> str:
        found = self.text(key, default)
        if found and found not in words:
            self.error(key, f'"{found}" is none of {", ".join(words)}')
            return default
        return found

    def integer(self, key: str, *, least: int = 0) -> int | None:
        node = self.node(key)
        return None if node is None else self.as_integer(node, self.at(key), least)

    def as_integer(self, node: Node, path: str, least: int = 0) -> int | None:
        value = node.value
        if isinstance(value, str):
            try:
                value = int(value, 10)
            except ValueError:
                pass
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.error(node.mark, path, f"a whole number belongs here, not {node.kind}")
            return None
        if value < least:
            self.problems.error(node.mark, path, f"{value} is too small; the least is {least}")
            return None
        return value

    def number(self, key: str) -> float:
        node = self.node(key)
        if node is None:
            return 0.0
        try:
            if isinstance(node.value, bool | dict | list):
                raise ValueError
            return float(node.value or 0)
        except ValueError:
            self.error(key, f"a number belongs here, not {node.kind}")
            return 0.0

    def boolean(self, key: str) -> bool | None:
        node = self.node(key)
        if node is None or isinstance(node.value, bool):
            return None if node is None else bool(node.value)
        if isinstance(node.value, str) and node.value.lower() in _WORDS:
            return _WORDS[node.value.lower()]
        self.error(key, f"true or false belongs here, not {node.kind}")
        return None

    def duration(self, key: str) -> int | None:
        return self._parsed(key, parse_duration, "a duration with its unit, like 10s,")

    def size(self, key: str) -> int | None:
        node = self.node(key)
        if node is not None and isinstance(node.value, int) and not isinstance(node.value, bool):
            return node.value
        return self._parsed(key, parse_size, "a size like 512m")

    def cpus(self, key: str) -> int | None:
        return self._parsed(key, parse_cpus, "a number of CPUs like 0.5", numbers=True)

    def _parsed(self, key: str, parse: Callable[[str], T], what: str, numbers: bool = False) -> T | None:
        node = self.node(key)
        if node is None:
            return None
        number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        if not isinstance(node.value, str) and not (numbers and number):
            self.error(key, f"{what} belongs here, not {node.kind}")
            return None
        try:
            return parse(str(node.value))
        except BadValue as error:
            self.error(key, str(error))
            return None

    # -- lists and mappings --

    def items(self, key: str) -> Iterator[tuple[str, Node]]:
        """The entries of a list, each with its path."""
        node = self.node(key)
        if node is None:
            return
        if not isinstance(node.value, list):
            self.error(key, f"a list belongs here, not {node.kind}")
            return
        for number, item in enumerate(node.value):
            yield f"{self.at(key)}[{number}]", item

    def texts(self, key: str, *, or_one: bool = False, numbers: bool = False) -> list[str]:
        """A list of texts; with `or_one` a single one too, with `numbers` numbers too."""
        node = self.node(key)
        if node is not None and or_one:
            node = as_list(node)
        if node is None:
            return []
        if not isinstance(node.value, list):
            self.error(key, f"a list belongs here, not {node.kind}")
            return []
        found = []
        for number, item in enumerate(node.value):
            if numbers and isinstance(item.value, int | float) and not isinstance(item.value, bool):
                found.append(go_text(item.value))
            else:
                found.append(self.as_text(item, f"{self.at(key)}[{number}]"))
        return found

    def pairs(self, key: str) -> dict[str, str | None]:
        """`{KEY: value}` or `[KEY=value]`; a key alone has None. Numbers become text as in the docker CLI."""
        node = self.node(key)
        if node is None:
            return {}
        node = as_mapping(node)
        if not isinstance(node.value, dict):
            self.error(key, f"a mapping, or a list of KEY=VALUE, belongs here, not {node.kind}")
            return {}
        return {name: self._pair(child, f"{self.at(key)}.{name}") for name, child in node.value.items()}

    def _pair(self, node: Node, path: str) -> str | None:
        if isinstance(node.value, bool | dict | list):
            quoted = f'; quote it: "{node.text}"' if isinstance(node.value, bool) else ""
            self.problems.error(
                node.mark, path, f"text, a number or nothing belongs here, not {node.kind}{quoted}"
            )
            return None
        if node.value is None or isinstance(node.value, str):
            return node.value
        text = go_text(node.value)
        if node.text and text != node.text:
            self.problems.warn(
                node.mark, path, f'{node.text} is a number, read as {text}; quote it to keep "{node.text}"'
            )
        return text

    def labels(self, key: str) -> dict[str, str]:
        return {name: value or "" for name, value in self.pairs(key).items()}

    def sub(self, key: str) -> Reader | None:
        node = self.node(key)
        return None if node is None else Reader(node, self.at(key), self.problems)

    def subs(self, key: str) -> Iterator[tuple[str, Reader]]:
        """The members of a mapping of mappings; a member without a value is an empty mapping."""
        inner = self.sub(key)
        if inner is None:
            return
        for name, node in inner.root.mapping.items():
            if name.startswith("x-") and key not in ("services", "networks"):
                continue
            yield name, Reader(node, inner.at(name), self.problems)
