"""What a swarm has, as far as a stack is concerned, and the plan of a deploy made from it.

Owns the reading calls of the Engine API. Changes nothing: even whether a secret's content is the file's is asked by an
update that names a version which never is, so the swarm answers and does nothing (swarmkit compares the data first).
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import msgspec

from overlace.cli.compose_files import Stack
from overlace.cli.context import docker_config
from overlace.cli.engine import Engine, EngineError
from overlace.cli.registry_login import auth_header
from overlace.compose.desired import IMAGE, scoped, used_networks
from overlace.compose.plan import (
    Actual,
    Note,
    Pinned,
    Plan,
    StoredNetwork,
    StoredService,
    missing_networks,
    plan_stack,
)
from overlace.compose.versions import NAMESPACE, Choice, Stored, Wish, choose, versions_of
from overlace.model.errors import FailedPrecondition, NotFound, OverlaceError
from overlace.model.reference import parse_reference
from overlace.model.specs import Platform, ServiceSpec

Json = dict[str, Any]
ALWAYS, CHANGED, NEVER = "always", "changed", "never"
_OVER = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")
_NEVER_A_VERSION = 0
_ASK_AT_ONCE = 8


def filtered(url: str, **filters: str) -> str:
    return f"{url}?filters={urllib.parse.quote(json.dumps({key: {value: True} for key, value in filters.items()}))}"


class Swarm:
    """The reading half of a deploy. `warn` is told what is worth knowing."""

    def __init__(self, engine: Engine, *, registry_auth: bool = False) -> None:
        self.engine = engine
        self._config = docker_config() if registry_auth else None
        self.warnings: list[str] = []

    def get(self, url: str) -> Any:
        """Raises OverlaceError in the daemon's own words."""
        try:
            return self.engine.call("GET", url, timeout=60)
        except EngineError as error:
            raise OverlaceError(error.text or error.message) from None

    def auth(self, image: str) -> str:
        return auth_header(image, self._config) if self._config is not None else ""

    def check_manager(self) -> None:
        """Raises FailedPrecondition in the docker CLI's words."""
        if not (self.get("/info").get("Swarm") or {}).get("ControlAvailable"):
            raise FailedPrecondition(
                'this node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this'
                " node to swarm and try again"
            )

    def plan(self, stack: Stack, *, prune: bool = False, resolve_image: str = ALWAYS) -> Plan:
        """Raises OverlaceError: no manager, or something the stack needs is not there."""
        self.check_manager()
        stored = {kind: self._stored(kind) for kind in ("secret", "config")}
        actual = self._actual(stack, stored)
        missing = list(missing_networks(used_networks(stack.project), actual))
        missing += list(_missing_files(stack, actual))
        if missing:
            raise NotFound("\n".join(sentence for _, sentence in missing))
        choices, older = self._choices(stack, stored)
        superseded, notes = self._superseded(stack, older)
        pinned = self._pinned(stack, actual, resolve_image)
        plan = plan_stack(stack.name, stack.project, choices, superseded, actual, pinned, prune=prune)
        return msgspec.structs.replace(plan, notes=[*plan.notes, *notes])

    # -- what there is --

    def _stored(self, kind: str) -> list[Json]:
        found: list[Json] = self.get(f"/{kind}s") or []
        return found

    def _actual(self, stack: Stack, stored: dict[str, list[Json]]) -> Actual:
        services = self.get(filtered("/services", label=f"{NAMESPACE}={stack.name}")) or []
        networks = self.get("/networks") or []
        return Actual(
            services={one["Spec"]["Name"]: stored_service(one) for one in services},
            networks={
                one["Name"]: StoredNetwork(
                    one["Id"], one["Name"], one.get("Scope", ""), one.get("Labels") or {}, one
                )
                for one in sorted(
                    networks, key=lambda n: n.get("Scope") == "swarm"
                )  # the swarm's hide a host's own
            },
            external={
                (kind, one["Spec"]["Name"]): _stored(one) for kind, listed in stored.items() for one in listed
            },
        )

    def _choices(
        self, stack: Stack, stored: dict[str, list[Json]]
    ) -> tuple[list[Choice], list[tuple[Choice, Stored]]]:
        """The version that serves each secret and config, and the other ones."""
        choices, older = [], []
        for wish in stack.wishes:
            documents = {one["ID"]: one for one in stored[wish.kind]}
            versions = versions_of(wish, stack.name, map(_stored, documents.values()))
            same = {one.id: wish.rotates and self._same(wish, documents[one.id]) for one in versions}
            choice = choose(wish, versions, same)
            choices.append(choice)
            older += [
                (choice, one) for one in versions if choice.stored is None or one.id != choice.stored.id
            ]
        return choices, older

    def _same(self, wish: Wish, document: Json) -> bool:
        """Whether a stored version has the wish's content."""
        spec = document["Spec"]
        templating = wish.spec.templating.name if wish.spec.templating is not None else ""
        if ((spec.get("Templating") or {}).get("Name") or "") != templating:
            return False
        data = base64.b64encode(wish.spec.data).decode()
        if wish.kind == "config":
            return bool(spec.get("Data") == data)
        question = {"Name": spec["Name"], "Labels": spec.get("Labels") or {}, "Data": data}
        try:
            self.engine.call("POST", f"/secrets/{document['ID']}/update?version={_NEVER_A_VERSION}", question)
        except EngineError as error:
            if "only updates to Labels are allowed" in error.text:
                return False
            if "update out of sequence" in error.text:
                return True
            raise OverlaceError(error.text or error.message) from None
        raise OverlaceError(
            f"the daemon took an update of secret {spec['Name']} with version {_NEVER_A_VERSION}"
        )

    # -- old versions --

    def _superseded(
        self, stack: Stack, older: list[tuple[Choice, Stored]]
    ) -> tuple[list[tuple[Choice, Stored]], list[Note]]:
        """Old versions a deploy removes; the others are noted."""
        if not older:
            return [], []
        ours = {scoped(stack.name, key) for key in stack.project.services}
        users = self.users_of_files()
        found, notes = [], []
        for choice, old in older:
            by = users.get(old.id, set())
            if by <= ours:  # they have moved on, or will
                found.append((choice, old))
            else:
                why = f"stays while {', '.join(sorted(by))} uses it; a later deploy removes it"
                notes.append(
                    Note(f"{choice.wish.kind}s.{choice.wish.key}", f"the old version {old.name} {why}")
                )
        return found, notes

    def users_of_files(self) -> dict[str, set[str]]:
        """Services that need a secret or config, by its id: their spec, a task that is not over, or the
        spec an update may go back to."""
        found: dict[str, set[str]] = {}
        services = self.get("/services") or []
        names = {service["ID"]: service["Spec"]["Name"] for service in services}
        for service in services:
            specs = [service["Spec"]]
            state = (service.get("UpdateStatus") or {}).get("State", "completed")
            if not state.endswith("completed") and service.get("PreviousSpec"):
                specs.append(service["PreviousSpec"])
            for spec in specs:
                for id in _file_ids(spec.get("TaskTemplate") or {}):
                    found.setdefault(id, set()).add(service["Spec"]["Name"])
        for task in self.get("/tasks") or []:
            if task["Status"]["State"] not in _OVER:
                for id in _file_ids(task.get("Spec") or {}):
                    found.setdefault(id, set()).add(names.get(task.get("ServiceID", ""), task["ID"]))
        return found

    # -- images --

    def _pinned(self, stack: Stack, actual: Actual, resolve_image: str) -> dict[str, Pinned]:
        """What the registries say of the images, as docker stack deploy asks them."""
        wanted: dict[str, None] = {}
        for key, service in stack.project.services.items():
            there = actual.services.get(scoped(stack.name, key))
            image = service.container.image
            if resolve_image == NEVER:
                continue
            if resolve_image == CHANGED and there is not None and there.spec.labels.get(IMAGE) == image:
                continue
            wanted[image] = None
        with ThreadPoolExecutor(_ASK_AT_ONCE) as pool:  # a registry that does not answer takes its time
            answers = list(pool.map(self._ask_registry, wanted))
        return {image: pinned for image, pinned in zip(wanted, answers, strict=True) if pinned is not None}

    def _ask_registry(self, image: str) -> Pinned | None:
        try:
            reference = parse_reference(image)
            auth = self.auth(image)
            headers = {"X-Registry-Auth": auth} if auth else {}
            url = f"/distribution/{urllib.parse.quote(image, safe='/:@')}/json"
            answer = self.engine.call("GET", url, headers=headers, timeout=60)
            digest = answer["Descriptor"]["digest"]
        except EngineError as error:
            self.warnings.append(
                f"image {image} could not be accessed on a registry to record its digest. Each node will access"
                f" {image} independently, possibly leading to different nodes running different versions of the"
                f" image. ({error.text})"
            )
            return None
        platforms = [
            Platform("" if p.get("architecture") == "arm" else p.get("architecture", ""), p.get("os", ""))
            for p in answer.get("Platforms") or []
            if p.get("os") not in (None, "", "unknown")
        ]
        return Pinned(reference.with_digest(digest).familiar, list(dict.fromkeys(platforms)))


def stored_service(document: Json) -> StoredService:
    spec = msgspec.convert(document["Spec"], ServiceSpec, strict=False)
    return StoredService(document["ID"], document["Version"]["Index"], spec)


def _stored(document: Json) -> Stored:
    spec = document["Spec"]
    return Stored(document["ID"], spec["Name"], document["Version"]["Index"], spec.get("Labels") or {})


def _missing_files(stack: Stack, actual: Actual) -> Iterator[tuple[str, str]]:
    for kind, definitions in (("secret", stack.project.secrets), ("config", stack.project.configs)):
        for key, definition in definitions.items():
            if definition.external and (kind, definition.name) not in actual.external:
                yield (
                    key,
                    (
                        f'{kind} "{definition.name}" is declared as external, but could not be found. Create it with'
                        f" `docker {kind} create` before the stack is deployed"
                    ),
                )


def _file_ids(template: Json) -> Iterator[str]:
    container = template.get("ContainerSpec") or {}
    for member, id in (("Secrets", "SecretID"), ("Configs", "ConfigID")):
        for reference in container.get(member) or []:
            yield reference.get(id, "")


def tell(warnings: Iterable[object]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
