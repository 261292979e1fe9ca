"""`overlace policy`: who may speak to whom, of all services, as one file.

Owns the file's form and which services' labels an apply changes (`plan_changes`, pure). The labels are the truth
(docs/policy.md) and the manager judges them; this is a way to write many at once and to read them together.
"""

from __future__ import annotations

import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import yaml

from overlace.cli.asking import host_option
from overlace.cli.engine import Engine, EngineError
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, LABELS, STACK, parse_items
from overlace.model.traffic import AFFINITY, EGRESS, parse_affinity, parse_egress_limit

MEMBERS = {
    "allow-from": ALLOW_FROM,
    "allow-to": ALLOW_TO,
    "session-affinity": AFFINITY,
    "egress-limit": EGRESS,
}
LISTS = ("allow-from", "allow-to")
ATTEMPTS = 5
Wanted = dict[str, dict[str, str | None]]  # label values by service; None: the label goes


class Change(msgspec.Struct, frozen=True):
    """Labels of one service or network as they shall be."""

    service: str
    labels: dict[str, str]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def read_file(text: str, where: str = "the file") -> Wanted:
    """What the file says of services. Raises InvalidArgument naming the place and the remedy."""
    return _members(_document(text, where), "services", tuple(MEMBERS), where)


def names_networks(text: str, where: str = "the file") -> bool:
    """Whether it speaks of networks at all, be it to say that none has a policy. Raises InvalidArgument."""
    return "networks" in _document(text, where)


def read_networks(text: str, where: str = "the file") -> Wanted:
    """What it says of networks: for services on them that have no list of their own. Raises InvalidArgument."""
    return _members(_document(text, where), "networks", LISTS, where)


def _document(text: str, where: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as e:  # ValueError: a date or a number that cannot be
        raise InvalidArgument(f"{where}: {' '.join(str(e).split())}") from None
    except RecursionError:
        raise InvalidArgument(f"{where}: its values are nested too deeply") from None
    if not isinstance(document, dict) or not {"services", "networks"} & set(document):
        raise InvalidArgument(
            f"{where}: it must begin with services: or networks: and hold one member for each"
        )
    for other in document:
        if other not in ("services", "networks"):
            raise InvalidArgument(f"{where}: {other}: is not known; services and networks are")
    return document


def _members(document: dict[str, Any], kind: str, known: tuple[str, ...], where: str) -> Wanted:
    found = document.get(kind, {})
    if not isinstance(found, dict):
        raise InvalidArgument(f"{where}: {kind}: must hold one member for each")
    out: Wanted = {}
    for name, members in found.items():
        if not isinstance(members, dict):
            raise InvalidArgument(f"{where}: {kind}.{name}: give {', '.join(known)}")
        for member in members:
            if member not in known:
                raise InvalidArgument(f"{where}: {kind}.{name}.{member} is not known; {', '.join(known)} are")
        out[str(name)] = {
            MEMBERS[member]: _value(f"{where}: {kind}.{name}.{member}", member, value)
            for member, value in members.items()
        }
    return out


def _value(place: str, name: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list) and name in LISTS and all(isinstance(x, str) for x in value):
        text = ", ".join(value) or "none"
    elif isinstance(value, str):
        text = value
    else:
        form = "a text or a list of texts" if name in LISTS else "a text"
        raise InvalidArgument(f"{place}: {value!r} is neither {form} nor null")
    try:
        if name in LISTS:
            parse_items(MEMBERS[name], text)
        else:
            {"session-affinity": parse_affinity, "egress-limit": parse_egress_limit}[name](text)
    except InvalidArgument as e:
        raise InvalidArgument(f"{place}: {e.message}") from None
    return text


def plan_changes(
    wanted: Wanted, services: Mapping[str, Mapping[str, str]], *, prune: bool, kind: str = "service"
) -> list[Change]:
    """`services`: labels by name, or those of networks.
    A name may leave its stack's out when only one stack has it. `prune`: labels of
    services and members that `wanted` does not name go. Raises NotFound, InvalidArgument."""
    named: dict[str, dict[str, str | None]] = {}
    for text, labels in wanted.items():
        name = _find(text, services, kind)
        if name in named:
            raise InvalidArgument(f"{kind} {name} is named twice, once as {text}: keep one")
        named[name] = labels
    out = []
    for name, have in sorted(services.items()):
        asked = named.get(name, {})
        gone = {label for label, value in asked.items() if value is None}
        if prune:
            gone |= {label for label in MEMBERS.values() if label not in asked}
        after = {k: v for k, v in have.items() if k not in gone}
        after |= {label: value for label, value in asked.items() if value is not None}
        if after != have:
            added = tuple(f"{k}={v}" for k, v in sorted(after.items()) if have.get(k) != v)
            removed = tuple(sorted(k for k in have if k not in after))
            out.append(Change(name, after, added, removed))
    return out


def _find(text: str, services: Mapping[str, Mapping[str, str]], kind: str) -> str:
    if text in services:
        return text
    found = [
        name for name, labels in services.items() if STACK in labels and name == f"{labels[STACK]}_{text}"
    ]
    if not found:
        raise NotFound(f"{kind} {text} not found: make it first, its policy is part of it")
    if len(found) > 1:
        raise InvalidArgument(f"{kind} {text} is in several stacks: write {' or '.join(sorted(found))}")
    return found[0]


def show_policies(
    services: Mapping[str, Mapping[str, str]], networks: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """The document `apply` takes, of the labels there are."""
    of_networks = _shown(networks or {})
    return {"services": _shown(services)} | ({"networks": of_networks} if of_networks else {})


def _shown(services: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, labels in sorted(services.items()):
        members: dict[str, Any] = {}
        for member, label in MEMBERS.items():
            if label in labels:
                text = labels[label]
                split = (
                    [item.strip() for item in text.split(",")] if member in LISTS and text != "none" else text
                )
                members[member] = split
        if members:
            out[name] = members
    return out


def _services(engine: Engine) -> dict[str, dict[str, str]]:
    found = _call(engine, "GET", "/services")
    return {s["Spec"]["Name"]: dict(s["Spec"].get("Labels") or {}) for s in found}


def _networks(engine: Engine) -> dict[str, dict[str, str]]:
    """The swarm's own; the others have no policy."""
    found = _call(engine, "GET", "/networks")
    return {
        n["Name"]: dict(n.get("Labels") or {})
        for n in found
        if n["Scope"] == "swarm" and n["Driver"] == "overlay"
    }


def _call(engine: Engine, method: str, url: str, body: object = None) -> Any:
    try:
        return engine.call(method, url, body)
    except EngineError as error:
        raise OverlaceError(error.text or error.message) from None


def _set_labels(engine: Engine, change: Change) -> None:
    """Write the labels into the service's newest spec; somebody else may be changing it as well."""
    ours: Sequence[str] = tuple(MEMBERS.values())
    for attempt in range(ATTEMPTS):
        found = _call(engine, "GET", f"/services/{change.service}")
        spec = found["Spec"]
        kept = {k: v for k, v in (spec.get("Labels") or {}).items() if k not in ours}
        spec["Labels"] = kept | {k: v for k, v in change.labels.items() if k in ours}
        version = found["Version"]["Index"]
        try:
            engine.call("POST", f"/services/{found['ID']}/update?version={version}", spec)
            return
        except EngineError as error:
            if "out of sequence" not in error.text or attempt == ATTEMPTS - 1:
                raise OverlaceError(f"{change.service}: {error.text or error.message}") from None


def _set_policy(engine: Engine, change: Change) -> None:
    """Of a network: docker has no call for it."""
    labels = {k: v for k, v in change.labels.items() if k in LABELS}
    name = urllib.parse.quote(change.service, safe="")
    _call(engine, "POST", f"/overlace/v1/networks/{name}/policy", {"Labels": labels})


@click.group()
def policy() -> None:
    """Who may speak to whom: the overlace.policy labels of all services as one file."""


@policy.command("show")
@host_option
def show(host: str) -> None:
    """Print the policies there are, in the form `apply` takes."""
    engine = Engine.of_user(host)
    document = show_policies(_services(engine), _networks(engine))
    click.echo(yaml.safe_dump(document, sort_keys=False, default_flow_style=False), nl=False)


@policy.command("apply")
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="YAML; - reads standard input.")
@click.option("--prune", is_flag=True, help="Remove policies that the file does not name.")
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@host_option
def apply_file(path: str, prune: bool, dry_run: bool, host: str) -> None:
    """Give services and networks the policies of FILE. No task is restarted.

    The whole file is checked first; then services and networks change one by one. A member that is null goes.
    """
    if path == "-":
        text = sys.stdin.read()
    else:
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidArgument(f"{path}: {getattr(e, 'strerror', None) or e}") from None
    engine = Engine.of_user(host)
    wanted, defaults = read_file(text, path), read_networks(text, path)
    changes = plan_changes(wanted, _services(engine), prune=prune)
    # a file that speaks of services alone leaves networks as they are
    wide = plan_changes(
        defaults, _networks(engine), prune=prune and names_networks(text, path), kind="network"
    )
    for change in (*changes, *wide):
        is_network = change in wide
        if not dry_run:
            (_set_policy if is_network else _set_labels)(engine, change)
        for line in (*(f"+{a}" for a in change.added), *(f"-{r}" for r in change.removed)):
            click.echo(f"{'network ' if is_network else ''}{change.service}: {line}")
    if not changes and not wide:
        click.echo("nothing to change")
