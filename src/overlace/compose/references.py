"""Whether what services name is there: networks, volumes, secrets, configs, other services.

Owns these checks, and those of depends_on that need both services: circles, conditions that can never be met.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from overlace.compose.merge import as_mapping
from overlace.compose.order import find_circle
from overlace.compose.problems import Mark, Problems
from overlace.compose.project import COMPLETED, HEALTHY, Project, ServiceDef
from overlace.compose.tree import Node

DEFAULT_NETWORK = "default"


def check_references(root: Node, project: Project, problems: Problems) -> None:
    """`root` is the tree `project` was read from; it knows the places."""
    services = root.mapping.get("services")
    for name, service in project.services.items():
        node = services.mapping[name] if services is not None else Node({}, service.mark)
        path = f"services.{name}"
        networks = {*project.networks, DEFAULT_NETWORK}
        _check("network", service.networks, networks, node.mapping.get("networks"), path, problems)
        for kind in ("secret", "config"):
            there: Collection[str] = getattr(project, f"{kind}s")
            uses = [use.source for use in getattr(service, f"{kind}s") if use.source]
            _check(kind, uses, there, node.mapping.get(f"{kind}s"), path, problems)
        named = [use.mount.source for use in service.volumes if use.named]
        _check("volume", named, project.volumes, node.mapping.get("volumes"), path, problems)
        if service.credential_config:
            wanted = [service.credential_config]
            _check("config", wanted, project.configs, node.mapping.get("credential_spec"), path, problems)
        _check_dependencies(service, project, node.mapping.get("depends_on"), path, problems)
    circle = find_circle({name: service.depends_on for name, service in project.services.items()})
    if circle:
        problems.error(
            project.services[circle[0]].mark,
            f"services.{circle[0]}.depends_on",
            f"services wait for each other in a circle: {' -> '.join((*circle, circle[0]))}; break it",
        )


def _check(
    kind: str,
    names: Collection[str],
    there: Collection[str],
    node: Node | None,
    path: str,
    problems: Problems,
) -> None:
    for name in names:
        if name in there:
            continue
        near = difflib.get_close_matches(name, there, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; add it under {kind}s at the top level"
        problems.error(_place(node, name), f"{path}.{kind}s", f'undefined {kind} "{name}"{hint}')


def _place(node: Node | None, name: str) -> Mark | None:
    """Where `name` stands in a list or mapping of uses."""
    if node is None:
        return None
    if name in node.keys:
        return node.keys[name]
    for item in node.items:
        source = item.mapping.get("source")
        text = str(item.value) if source is None else str(source.value)
        if text == name or text.startswith(f"{name}:"):
            return item.mark
    return node.mark


def _check_dependencies(
    service: ServiceDef, project: Project, node: Node | None, path: str, problems: Problems
) -> None:
    places = as_mapping(node) if node is not None else None
    told = {problem.path for problem in problems.errors}  # of a profile that is not active
    for name, text in _impossible(service, project):
        if f"{path}.depends_on.{name}" in told:
            continue
        mark = places.keys.get(name, places.mark) if places is not None else service.mark
        problems.error(mark, f"{path}.depends_on.{name}", text)


def _impossible(service: ServiceDef, project: Project) -> Iterator[tuple[str, str]]:
    for name, dependency in service.depends_on.items():
        other = project.services.get(name)
        if other is None:
            if dependency.required:
                near = difflib.get_close_matches(name, project.services, 1, 0.6)
                yield name, f"there is no service {name}" + (f"; did you mean {near[0]}?" if near else "")
            continue
        if dependency.condition == COMPLETED and not _ends(other):
            yield (
                name,
                (
                    f"{name} never completes: it is restarted whenever it ends. Give it deploy.mode replicated-job, or"
                    " deploy.restart_policy.condition none or on-failure"
                ),
            )
        check = other.container.healthcheck
        if dependency.condition == HEALTHY and check is not None and check.test[:1] == ["NONE"]:
            yield name, f"{name} never becomes healthy: its healthcheck is disabled. Wait for service_started"


def _ends(service: ServiceDef) -> bool:
    mode, policy = service.service.mode, service.task.restart_policy
    return (
        mode.replicated_job is not None
        or mode.global_job is not None
        or (policy is not None and policy.condition in ("none", "on-failure"))
    )
