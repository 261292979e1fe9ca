"""Several compose files as one, and a service on top of the one it extends (compose-spec, merge).

Owns the rules: mappings merge, lists are appended, a command replaces, ports and mounts and files are unique,
`!reset` removes and `!override` replaces. Must not know what keys mean beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from overlace.compose.shorthand import BadValue, parse_volume, split_port
from overlace.compose.tree import Node, go_text, mapping_node, text_node

_REPLACED = frozenset(("command", "entrypoint"))
_PAIRS = frozenset(("environment", "labels", "sysctls", "annotations", "args"))
_NAMES = frozenset(("networks", "depends_on"))
_LISTS = frozenset(("dns", "dns_search", "env_file", "tmpfs", "label_file"))


def merge_files(base: Node, over: Node) -> Node:
    """The top of two files."""
    found = _merge(base, over, _merge_section)
    return found or mapping_node({}, over.mark)


def merge_service(base: Node, over: Node) -> Node:
    return _merge(base, over, _merge_key) or mapping_node({}, over.mark)


Deeper = Callable[[str, Node, Node], Node | None]


def _merge(base: Node, over: Node, deeper: Deeper) -> Node | None:
    """None when `over` takes the value away."""
    if over.tag == "!reset":
        return None
    if over.tag == "!override":
        return replace(over, tag="")
    if over.value is None:
        return base
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        found = dict(base.value)
        for key, value in over.value.items():
            there = found.get(key)
            merged = _without_tags(value) if there is None else deeper(key, there, value)
            if merged is None:
                found.pop(key, None)
            else:
                found[key] = merged
        return replace(over, value=found, keys={**base.keys, **over.keys})
    if isinstance(base.value, list) and isinstance(over.value, list):
        return replace(over, value=[*base.value, *over.value])
    return over


def _without_tags(node: Node) -> Node | None:
    """A value that meets nothing to merge with: what it resets is just not there."""
    if node.tag == "!reset":
        return None
    node = replace(node, tag="") if node.tag else node
    if isinstance(node.value, dict):
        kept = {
            key: found for key, child in node.value.items() if (found := _without_tags(child)) is not None
        }
        return replace(node, value=kept)
    return node


def settle(root: Node) -> Node:
    """A file that nothing is merged into, without merge tags."""
    return _without_tags(root) or mapping_node({}, root.mark)


def _merge_section(section: str, base: Node, over: Node) -> Node | None:
    if section == "services":
        return _merge(base, over, lambda _, b, o: _merge(b, o, _merge_key))
    return _merge(base, over, _generic)


def _generic(key: str, base: Node, over: Node) -> Node | None:
    if key in _PAIRS:
        base, over = as_mapping(base), as_mapping(over)
    return _merge(base, over, _generic)


def _merge_key(key: str, base: Node, over: Node) -> Node | None:
    """One key of a service."""
    if over.tag:
        return _merge(base, over, _generic)
    if key in _REPLACED:
        return base if over.value is None else over
    if key in _PAIRS or key in _NAMES:
        return _merge(as_mapping(base), as_mapping(over), _merge_network if key == "networks" else _generic)
    if key == "extra_hosts":
        return _merge(as_list(base, ":"), as_list(over, ":"), _generic)
    if key in _LISTS:
        return _merge(as_list(base), as_list(over), _generic)
    if key == "healthcheck":
        return _merge(base, over, lambda k, b, o: o if k == "test" and not o.tag else _generic(k, b, o))
    if key == "logging":
        return _merge_logging(base, over)
    if key == "ulimits":
        return _merge(base, over, lambda _, b, o: None if o.tag == "!reset" else o)
    unique = _UNIQUE.get(key)
    if unique is not None and base.items and over.items:
        return _merge_unique(base, over, *unique)
    return _merge(base, over, _generic)


def _merge_network(name: str, base: Node, over: Node) -> Node | None:
    """A service's place on a network; the later file's aliases replace the earlier's (docker CLI)."""
    return _merge(base, over, lambda key, b, o: o if key == "aliases" and not o.tag else _generic(key, b, o))


def _merge_logging(base: Node, over: Node) -> Node | None:
    drivers = [node.mapping["driver"].value for node in (base, over) if "driver" in node.mapping]
    return over if len(drivers) == 2 and drivers[0] != drivers[1] else _merge(base, over, _generic)


def _merge_unique(base: Node, over: Node, key: Callable[[Node], str], ordered: bool) -> Node:
    found = {key(node): node for node in base.items}
    found |= {key(node): node for node in over.items}
    nodes = [found[k] for k in sorted(found)] if ordered else list(found.values())
    return replace(over, value=nodes)


def as_mapping(node: Node) -> Node:
    """A list of `KEY=VALUE` or of names as the mapping it stands for; anything else as it is."""
    if not isinstance(node.value, list) or not all(isinstance(n.value, str) for n in node.value):
        return node
    found: dict[str, Node] = {}
    for item in node.value:
        name, equals, value = str(item.value).partition("=")
        found[name] = text_node(value, item.mark) if equals else Node(None, item.mark)
    return replace(mapping_node(found, node.mark), tag=node.tag)


def as_list(node: Node, separator: str = "") -> Node:
    """A single text as a list of one; with `separator` a mapping as a list of `KEY<separator>VALUE`."""
    if isinstance(node.value, str):
        return replace(node, value=[node])
    if separator and isinstance(node.value, dict):
        rows: list[Node] = []
        for key, child in node.value.items():
            values = child.items if isinstance(child.value, list) else [child]
            rows += [text_node(f"{key}{separator}{v.text or v.value}", v.mark) for v in values if _scalar(v)]
        return replace(node, value=sorted(rows, key=lambda n: n.text), keys={})
    return node


def _scalar(node: Node) -> bool:
    return not isinstance(node.value, dict | list) and node.value is not None


def _text(node: Node, key: str) -> str:
    child = node.mapping.get(key)
    return "" if child is None or isinstance(child.value, dict | list) else go_text(child.value)


def _port_key(node: Node) -> str:
    if isinstance(node.value, dict):
        return "|".join(
            (
                _text(node, "host_ip"),
                _text(node, "published"),
                _text(node, "target"),
                _text(node, "protocol") or "tcp",
            )
        )
    return "|".join(split_port(node.text or str(node.value)))


def _volume_key(node: Node) -> str:
    if isinstance(node.value, dict):
        return _text(node, "target")
    try:
        return parse_volume(str(node.value)).target
    except BadValue:
        return str(node.value)


def _file_key(node: Node) -> str:
    if isinstance(node.value, dict):
        return _text(node, "source")
    return str(node.value)


# key of a service -> (what makes an entry of its list the same, whether the docker CLI sorts by it)
_UNIQUE: dict[str, tuple[Callable[[Node], str], bool]] = {
    "ports": (_port_key, False),
    "volumes": (_volume_key, True),
    "secrets": (_file_key, True),
    "configs": (_file_key, True),
}
