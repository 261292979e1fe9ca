"""Compose files gathered into one tree: `.env`, several `-c`, `include`, `extends`, `profiles`.

Owns the order in which they are applied and what relative paths are relative to. What is on disk is asked of a
`Files`. Must not know what the keys of a service mean beyond the paths in them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from overlace.compose.envfile import parse_dotenv
from overlace.compose.interpolate import Lookup, interpolate
from overlace.compose.merge import as_list, merge_files, merge_service, settle
from overlace.compose.problems import Problems
from overlace.compose.shorthand import is_absolute, is_path
from overlace.compose.tree import Node, mapping_node, parse, text_node

SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
_INCLUDE = ("path", "project_directory", "env_file")
_DEEPEST = 20  # includes within includes


class Files(Protocol):
    """The disk, as far as a compose file names it."""

    def text(self, path: str) -> str:
        """Raises OSError, and ValueError for what is no text."""
        ...

    def exists(self, path: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A file given with `-c`."""

    name: str  # as the user wrote it
    text: str
    directory: str  # absolute


@dataclass(slots=True)
class Loader:
    """Gathers; mistakes go to `problems`."""

    files: Files
    environment: Mapping[str, str]
    problems: Problems
    profiles: Collection[str] = ()
    lookup: Lookup = field(init=False)

    def __post_init__(self) -> None:
        self.lookup = self.environment.get

    def load(self, sources: Sequence[Source], env_files: Sequence[str] = ()) -> Node:
        """All files as one tree, with the services of the active profiles. Raises ComposeError when YAML is bad."""
        directory = sources[0].directory
        variables = self._dotenv(env_files or [posixpath.join(directory, ".env")], not env_files)
        self.lookup = _over(self.environment.get, variables)
        trees = [(source.name, parse(source.text, source.name)) for source in sources]
        root = self._join(trees, directory, self.lookup, 0)
        return self._of_active_profiles(self._extended(root))

    def _dotenv(
        self, paths: Sequence[str], may_be_absent: bool, lookup: Lookup | None = None
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        outer = lookup or self.environment.get
        for path in paths:
            if may_be_absent and not self.files.exists(path):
                continue
            try:
                text = self.files.text(path)
            except (OSError, ValueError) as error:
                self.problems.error(None, "", f"the file of variables {path} cannot be read: {error}")
                continue
            found |= parse_dotenv(text, path, _over(outer, found), self.problems)
        return found

    def _join(self, trees: Sequence[tuple[str, Node]], directory: str, lookup: Lookup, depth: int) -> Node:
        found: Node | None = None
        included: list[Node] = []
        for _, tree in trees:
            tree = interpolate(tree, "", lookup, self.problems)
            includes = tree.mapping.get("include")
            if includes is not None:
                included += self._included(includes, directory, lookup, depth)
                tree = tree.with_value({k: v for k, v in tree.mapping.items() if k != "include"})
            tree = _with_absolute_paths(tree, directory, lookup)
            found = tree if found is None else merge_files(found, tree)
        assert found is not None
        found = settle(found)
        for other in included:
            found = self._adopt(found, other)
        return found

    # -- include --

    def _included(self, node: Node, directory: str, lookup: Lookup, depth: int) -> list[Node]:
        if not isinstance(node.value, list):
            self.problems.error(node.mark, "include", f"a list of files belongs here, not {node.kind}")
            return []
        if depth > _DEEPEST:
            self.problems.error(node.mark, "include", "files include each other without end")
            return []
        found = []
        for number, entry in enumerate(node.value):
            one = self._include(entry, f"include[{number}]", directory, lookup, depth)
            found += [one] if one is not None else []
        return found

    def _include(self, entry: Node, path: str, directory: str, lookup: Lookup, depth: int) -> Node | None:
        long = entry.mapping if isinstance(entry.value, dict) else {"path": entry}
        for key in long.keys() - _INCLUDE:
            self.problems.error(
                long[key].mark, f"{path}.{key}", f"unknown key; include has {', '.join(_INCLUDE)}"
            )

        def paths(key: str) -> list[str]:
            named = self._texts(long.get(key), f"{path}.{key}", entry) if key in long or key == "path" else []
            return [posixpath.normpath(posixpath.join(directory, name)) for name in named]

        files, env_files = paths("path"), paths("env_file")
        if not files:
            return None
        place = next(iter(paths("project_directory")), posixpath.dirname(files[0]))
        variables = self._dotenv(env_files or [posixpath.join(place, ".env")], not env_files, lookup)
        trees = [(p, tree) for p in files if (tree := self._read(p, entry, path)) is not None]
        if len(trees) < len(files):
            return None
        return self._join(trees, place, _over(lookup, variables), depth + 1)

    def _texts(self, node: Node | None, path: str, near: Node) -> list[str]:
        listed = as_list(node) if node is not None else None
        if listed is None or not listed.items or not all(isinstance(n.value, str) for n in listed.items):
            self.problems.error((node or near).mark, path, "a path, or a list of paths, belongs here")
            return []
        return [str(n.value) for n in listed.items]

    def _read(self, path: str, near: Node, where: str) -> Node | None:
        try:
            return parse(self.files.text(path), path)
        except (OSError, ValueError) as error:
            self.problems.error(near.mark, where, f"{path} cannot be read: {error}")
            return None

    def _adopt(self, root: Node, other: Node) -> Node:
        """What an included file defines, beside what this one does."""
        found = dict(root.mapping)
        for section in SECTIONS:
            theirs = other.mapping.get(section)
            if theirs is None or not theirs.mapping:
                continue
            mine = found.get(section) or mapping_node({}, theirs.mark)
            for name in mine.mapping.keys() & theirs.mapping.keys():
                if mine.mapping[name].plain() != theirs.mapping[name].plain():
                    self.problems.error(
                        mine.keys.get(name, mine.mark),
                        f"{section}.{name}",
                        f"also defined in the included {theirs.keys[name]}; rename one, or extend it instead",
                    )
            joined = {**theirs.mapping, **mine.mapping}
            found[section] = replace(mine, value=joined, keys={**theirs.keys, **mine.keys})
        return root.with_value(found)

    # -- extends --

    def _extended(self, root: Node) -> Node:
        services = root.mapping.get("services")
        if services is None:
            return root
        done = {name: self._extend(name, node, services, "", ()) for name, node in services.mapping.items()}
        return root.with_value({**root.mapping, "services": services.with_value(done)})

    def _extend(
        self, name: str, node: Node, services: Node, file: str, trail: tuple[tuple[str, str], ...]
    ) -> Node:
        wish = node.mapping.get("extends")
        if wish is None:
            return node
        own = node.with_value({k: v for k, v in node.mapping.items() if k != "extends"})
        path = f"services.{name}.extends"
        if (file, name) in trail:
            names = " -> ".join(n for _, n in (*trail, (file, name)))
            self.problems.error(wish.mark, path, f"services extend each other in a circle: {names}")
            return own
        base_name, base_file = self._base_of(wish, path)
        if not base_name:
            return own
        if base_file and base_file != file:
            tree = self._read(base_file, wish, path)
            if tree is None:
                return own
            place = posixpath.dirname(base_file)
            tree = settle(
                _with_absolute_paths(interpolate(tree, "", self.lookup, self.problems), place, self.lookup)
            )
            services, file_of_base = tree.mapping.get("services") or mapping_node({}, wish.mark), base_file
        else:
            file_of_base = file
        base = services.mapping.get(base_name)
        if base is None:
            where = base_file or "these files"
            self.problems.error(wish.mark, path, f"there is no service {base_name} in {where}")
            return own
        base = self._extend(base_name, base, services, file_of_base, (*trail, (file, name)))
        base = base.with_value({k: v for k, v in base.mapping.items() if k != "profiles"})
        return merge_service(base, own)

    def _base_of(self, wish: Node, path: str) -> tuple[str, str]:
        if isinstance(wish.value, str):
            return wish.value, ""
        service, file = wish.mapping.get("service"), wish.mapping.get("file")
        for key in wish.mapping.keys() - {"service", "file"}:
            self.problems.error(wish.keys[key], f"{path}.{key}", "unknown key; extends has service and file")
        if service is None or not isinstance(service.value, str):
            self.problems.error(wish.mark, path, "name the service to extend: {service: NAME, file: FILE}")
            return "", ""
        return service.value, str(file.value) if file is not None and isinstance(file.value, str) else ""

    # -- profiles --

    def _of_active_profiles(self, root: Node) -> Node:
        services = root.mapping.get("services")
        if services is None:
            return root
        kept: dict[str, Node] = {}
        off: dict[str, list[str]] = {}
        for name, node in services.mapping.items():
            wish = node.mapping.get("profiles")
            if wish is None:
                kept[name] = node
                continue
            rest = node.with_value({k: v for k, v in node.mapping.items() if k != "profiles"})
            if not isinstance(wish.value, list) or not all(isinstance(p.value, str) for p in wish.value):
                self.problems.error(wish.mark, f"services.{name}.profiles", "a list of names belongs here")
                continue
            names = [str(p.value) for p in wish.value]
            if not names or "*" in self.profiles or set(names) & set(self.profiles):
                kept[name] = rest
            else:
                off[name] = names
        self._check_dependencies(kept, off)
        return root.with_value({**root.mapping, "services": services.with_value(kept)})

    def _check_dependencies(self, kept: Mapping[str, Node], off: Mapping[str, list[str]]) -> None:
        for name, node in kept.items():
            wish = node.mapping.get("depends_on")
            if wish is None:
                continue
            named = wish.mapping or {str(n.value): n for n in wish.items}
            for other, how in named.items():
                required = how.mapping.get("required")
                if other in off and not (required is not None and required.value is False):
                    self.problems.error(
                        how.mark,
                        f"services.{name}.depends_on.{other}",
                        f"the service {other} is not deployed; add --profile {off[other][0]}",
                    )


def _over(first: Lookup, second: Mapping[str, str]) -> Lookup:
    def find(name: str) -> str | None:
        value = first(name)
        return second.get(name) if value is None else value

    return find


# -- paths --


def _with_absolute_paths(root: Node, directory: str, lookup: Lookup) -> Node:
    """The tree with the paths that are relative to `directory` made absolute."""

    def absolute(node: Node) -> Node:
        if not isinstance(node.value, str) or not node.value:
            return node
        path = node.value
        if path.startswith("~") and (home := lookup("HOME")):
            path = home + path[1:]
        if not is_absolute(path):
            path = posixpath.normpath(posixpath.join(directory, path))
        return text_node(path, node.mark)

    found = dict(root.mapping)
    for section in ("secrets", "configs"):
        if section in found:
            found[section] = _each(found[section], lambda node: _at(node, "file", absolute))
    if "services" in found:
        found["services"] = _each(found["services"], lambda node: _service_paths(node, absolute))
    return root.with_value(found)


def _service_paths(node: Node, absolute: Callable[[Node], Node]) -> Node:
    node = _at(node, "extends", lambda n: _at(n, "file", absolute))
    node = _at(node, "label_file", lambda n: _items(as_list(n), absolute))
    node = _at(
        node,
        "env_file",
        lambda n: _items(as_list(n), lambda e: _at(e, "path", absolute) if e.mapping else absolute(e)),
    )
    return _at(node, "volumes", lambda n: _items(n, lambda v: _volume_path(v, absolute)))


def _volume_path(node: Node, absolute: Callable[[Node], Node]) -> Node:
    if isinstance(node.value, dict):
        kind = node.value.get("type")
        return _at(node, "source", absolute) if kind is not None and kind.value == "bind" else node
    if not isinstance(node.value, str):
        return node
    drive = 2 if len(node.value) > 2 and node.value[1] == ":" and node.value[0].isalpha() else 0
    source, colon, rest = node.value[drive:].partition(":")
    source = node.value[:drive] + source
    if not colon or not is_path(source):
        return node
    whole = f"{absolute(text_node(source, node.mark)).value}:{rest}"
    return text_node(whole, node.mark)


def _each(node: Node, change: Callable[[Node], Node]) -> Node:
    return (
        node.with_value({k: change(v) for k, v in node.mapping.items()})
        if isinstance(node.value, dict)
        else node
    )


def _items(node: Node, change: Callable[[Node], Node]) -> Node:
    return node.with_value([change(n) for n in node.value]) if isinstance(node.value, list) else node


def _at(node: Node, key: str, change: Callable[[Node], Node]) -> Node:
    if not isinstance(node.value, dict) or key not in node.value:
        return node
    return node.with_value({**node.value, key: change(node.value[key])})
