"""What a deploy would do: desired against actual, one action per object, field by field.

Owns the decisions: create, update, replace (what cannot be changed in place), remove, leave. `cli/` shows the plan or
carries it out; both see the same. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from overlace.compose.desired import (
    IMAGE,
    FileRef,
    encode,
    network_name,
    network_spec,
    scoped,
    service_spec,
    used_networks,
)
from overlace.compose.order import start_order
from overlace.compose.project import NetworkDef, Project
from overlace.compose.versions import MAX_NAME, Choice, Stored, labels_of
from overlace.compose.words import Words, mode_word, service_words
from overlace.model.errors import InvalidArgument
from overlace.model.reference import parse_reference
from overlace.model.specs import NetworkSpec, Placement, Platform, ServiceSpec

CREATE, UPDATE, REPLACE, REMOVE = "create", "update", "replace", "remove"


class Change(msgspec.Struct, frozen=True):
    path: str  # "services.web.deploy.replicas"
    before: Any = None  # None: not there
    after: Any = None


class Action(msgspec.Struct, frozen=True, kw_only=True):
    verb: str
    kind: str  # network | secret | config | service
    key: str  # in the file; the name where it is in no file
    name: str  # in the swarm
    why: str = ""
    changes: list[Change] = []
    id: str = ""  # of the object there is
    version: int = 0
    network: NetworkSpec | None = None  # what is to be there
    choice: Choice | None = None
    service: ServiceSpec | None = None
    before: ServiceSpec | None = None  # of the service there is


class Note(msgspec.Struct, frozen=True):
    """What a deploy leaves as it is although one might expect otherwise."""

    path: str
    text: str


class Plan(msgspec.Struct, frozen=True):
    stack: str
    actions: list[Action]
    notes: list[Note] = []
    order: list[str] = []  # services of the file, each after those it waits for

    @property
    def changes_anything(self) -> bool:
        return bool(self.actions)


class StoredService(msgspec.Struct, frozen=True):
    id: str
    version: int
    spec: ServiceSpec


class StoredNetwork(msgspec.Struct, frozen=True):
    id: str
    name: str
    scope: str
    labels: dict[str, str]
    document: dict[str, Any]  # as the Engine API lists it


class Actual(msgspec.Struct, frozen=True):
    """The swarm, as far as a stack is concerned."""

    services: dict[str, StoredService] = {}  # of the stack, by name
    networks: dict[str, StoredNetwork] = {}  # all, by name
    external: dict[
        tuple[str, str], Stored
    ] = {}  # (kind, name) -> secrets and configs that are not the stack's


class Pinned(msgspec.Struct, frozen=True):
    """What a registry says of an image."""

    image: str  # with its digest
    platforms: list[Platform] = []


def plan_stack(
    stack: str,
    project: Project,
    choices: Sequence[Choice],
    superseded: Iterable[tuple[Choice, Stored]],
    actual: Actual,
    pinned: Mapping[str, Pinned],
    *,
    prune: bool = False,
) -> Plan:
    """`choices`: the version that serves each secret and config; `superseded`: old versions nobody needs after it, each
    with what it was replaced by; `pinned`: by image, what the registry said (images that were not asked for stay as they
    are)."""
    actions: list[Action] = []
    notes: list[Note] = []
    for key, definition in used_networks(project).items():
        if not definition.external:
            name = network_name(stack, key, project.networks)
            action = _network(key, network_spec(stack, key, definition), actual.networks.get(name), notes)
            actions += [action] if action is not None else []
    actions += [action for choice in choices if (action := _file(choice)) is not None]
    refs = _references(project, choices, actual)
    order = start_order({name: service.depends_on for name, service in project.services.items()})
    names = {network.id: network.name for network in actual.networks.values()}
    for key in order:
        spec = service_spec(stack, project, project.services[key], refs["secret"], refs["config"])
        there = actual.services.get(spec.name)
        service = _service(key, _with_image(spec, there, pinned), there, names)
        actions += [service] if service is not None else []
    wanted = {scoped(stack, key) for key in project.services}
    for name, service_there in sorted(actual.services.items()):
        if name in wanted:
            continue
        if prune:
            actions.append(
                Action(
                    verb=REMOVE,
                    kind="service",
                    key=name,
                    name=name,
                    id=service_there.id,
                    why="not in the file",
                )
            )
        else:
            notes.append(Note(name, "in the stack, not in the file; it stays (--prune removes it)"))
    for choice, old in superseded:
        why = f"replaced by {choice.name}"
        kind, key = choice.wish.kind, choice.wish.key
        actions.append(Action(verb=REMOVE, kind=kind, key=key, name=old.name, id=old.id, why=why))
    return Plan(stack, actions, notes, order)


# -- networks --


def _network(key: str, wanted: NetworkSpec, there: StoredNetwork | None, notes: list[Note]) -> Action | None:
    if there is None:
        words = {"driver": wanted.driver, **_network_words(encode(wanted))}
        changes = [Change(f"networks.{key}.{path}", None, value) for path, value in words.items()]
        return Action(verb=CREATE, kind="network", key=key, name=wanted.name, network=wanted, changes=changes)
    after = _network_words(encode(wanted))
    before = {
        word: value
        for word, value in _network_words(there.document).items()
        if word in after
        or word.startswith("labels.")  # options and subnets nobody asked for are the swarm's choice
    }
    for change in _differences(f"networks.{key}", before, after):
        shown = f"{show(change.before)} -> {show(change.after)}"
        notes.append(
            Note(
                change.path,
                f"{shown}: a network cannot be changed, it stays as it is; remove the stack, or rename it",
            )
        )
    return None


def _network_words(document: Mapping[str, Any]) -> Words:
    """Of a network, as listed or as asked for."""
    found: Words = {"driver": document.get("Driver", "overlay")}
    for word, member in (
        ("internal", "Internal"),
        ("attachable", "Attachable"),
        ("enable_ipv6", "EnableIPv6"),
    ):
        found[word] = bool(document.get(member))
    found |= {f"labels.{key}": value for key, value in (document.get("Labels") or {}).items()}
    found |= {f"driver_opts.{key}": value for key, value in (document.get("Options") or {}).items()}
    configs = (document.get("IPAM") or {}).get("Config") or []
    for six in (False, True):  # a family nobody asked for is the swarm's choice, and IPv4 comes first there
        mine = [config for config in configs if (":" in config.get("Subnet", "")) == six]
        for number, config in enumerate(mine):
            for word, member in (("subnet", "Subnet"), ("ip_range", "IPRange"), ("gateway", "Gateway")):
                if config.get(member):
                    place = f"ipam.config[{number}{', IPv6' if six else ''}].{word}"
                    found[place] = _spelled(config[member])
    return found


def _spelled(text: str) -> str:
    """An address or prefix as the swarm shows it: IPv6 has many spellings."""
    try:
        return str(ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        return text


def missing_networks(networks: Mapping[str, NetworkDef], actual: Actual) -> Iterator[tuple[str, str]]:
    """External networks that are not there: (key, sentence), in the docker CLI's words."""
    for key, definition in networks.items():
        if not definition.external or definition.name in ("host", "bridge", "none"):
            continue
        there = actual.networks.get(definition.name)
        if there is None:
            yield (
                key,
                (
                    f'network "{definition.name}" is declared as external, but could not be found. You need to create a'
                    " swarm-scoped network before the stack is deployed"
                ),
            )
        elif there.scope != "swarm":
            yield (
                key,
                (
                    f'network "{definition.name}" is declared as external, but it is not in the right scope:'
                    f' "{there.scope}" instead of "swarm"'
                ),
            )


# -- secrets and configs --


def _file(choice: Choice) -> Action | None:
    wish, stored = choice.wish, choice.stored
    labels = labels_of(choice)
    path = f"{wish.kind}s.{wish.key}"
    if stored is None:
        rotated = choice.name != wish.spec.name
        return Action(
            verb=REPLACE if rotated else CREATE, kind=wish.kind, key=wish.key, name=choice.name, choice=choice,
            why=f"the content changed: a new version of {wish.spec.name[:MAX_NAME]}" if rotated else "",
        )  # fmt: skip
    changes = list(_differences(f"{path}.labels", stored.labels, labels))
    if not changes:
        return None
    return Action(
        verb=UPDATE, kind=wish.kind, key=wish.key, name=choice.name, choice=choice, id=stored.id, version=stored.version,
        changes=changes,
    )  # fmt: skip


def _references(project: Project, choices: Sequence[Choice], actual: Actual) -> dict[str, dict[str, FileRef]]:
    found: dict[str, dict[str, FileRef]] = {"secret": {}, "config": {}}
    for choice in choices:
        found[choice.wish.kind][choice.wish.key] = (choice.stored.id if choice.stored else "", choice.name)
    for kind, definitions in (("secret", project.secrets), ("config", project.configs)):
        for key, definition in definitions.items():
            if definition.external:
                stored = actual.external.get((kind, definition.name))
                found[kind][key] = (stored.id if stored else "", definition.name)
    return found


# -- services --


def _with_image(spec: ServiceSpec, there: StoredService | None, pinned: Mapping[str, Pinned]) -> ServiceSpec:
    """The image as it will be run: pinned to what the registry said, else to what it was pinned to for the same
    image."""
    template = spec.task_template
    container = template.container_spec
    assert container is not None
    fresh = pinned.get(container.image)
    image, platforms = _tagged(container.image), []
    if (
        there is not None
        and there.spec.labels.get(IMAGE) == container.image
        and there.spec.task_template.container_spec
    ):
        image = there.spec.task_template.container_spec.image
        platforms = there.spec.task_template.placement.platforms if there.spec.task_template.placement else []
    if fresh is not None and fresh.image != image:
        image, platforms = fresh.image, fresh.platforms
    return msgspec.structs.replace(
        spec,
        task_template=msgspec.structs.replace(
            template,
            container_spec=msgspec.structs.replace(container, image=image),
            placement=msgspec.structs.replace(template.placement or Placement(), platforms=platforms),
            force_update=there.spec.task_template.force_update if there is not None else 0,
        ),
    )


def _tagged(image: str) -> str:
    """With the tag `latest` where none is given, as Docker's client sends it."""
    try:
        return parse_reference(image).with_default_tag().familiar
    except InvalidArgument:
        return image  # refused by the swarm, in its own words


def _service(
    key: str, spec: ServiceSpec, there: StoredService | None, networks: Mapping[str, str]
) -> Action | None:
    after = service_words(spec, networks)
    path = f"services.{key}"
    if there is None:
        told = {word: value for word, value in after.items() if not _goes_without_saying(word, value)}
        changes = list(_differences(path, {}, told))
        return Action(verb=CREATE, kind="service", key=key, name=spec.name, service=spec, changes=changes)
    before = service_words(there.spec, networks)
    changes = [
        change for change in _differences(path, before, after) if not _is_derived(change, before, after, path)
    ]
    if not changes:
        return None
    replaced = mode_word(there.spec.mode) != mode_word(spec.mode)
    return Action(
        verb=REPLACE if replaced else UPDATE, kind="service", key=key, name=spec.name, id=there.id, version=there.version,
        service=spec, changes=changes, before=there.spec,
        why="the mode of a service cannot be changed: it is removed and made anew" if replaced else "",
    )  # fmt: skip


def _goes_without_saying(word: str, value: Any) -> bool:
    """Of a new service: what is the same for every one."""
    return (word.startswith(("deploy.update_config.", "deploy.rollback_config.")) and value in (
        1, "0s", "pause", "5s", 0.0, "stop-first",
    )) or ".com.docker.stack." in word  # fmt: skip


def _is_derived(change: Change, before: Words, after: Words, path: str) -> bool:
    """Follows from another line: the label with the image's name, and the id of a secret or config whose name
    changes."""
    word = change.path.removeprefix(f"{path}.")
    if word == f"deploy.labels.{IMAGE}":
        return before.get("image") != after.get("image")
    if word.startswith(("secrets.", "configs.")) and word.endswith(".id"):
        name = word.removesuffix(".id")
        return before.get(name) != after.get(name)
    return False


def _differences(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for word in [*after, *(word for word in before if word not in after)]:
        if before.get(word) != after.get(word):
            yield Change(f"{path}.{word}", before.get(word), after.get(word))


def show(value: Any) -> str:
    """A value in one line."""
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(show(member) for member in value) + "]"
    return str(value)
