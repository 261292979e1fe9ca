"""A compose project from texts in memory, and the plan of deploying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from overlace.compose.desired import encode, file_wishes
from overlace.compose.load import Loader, Source
from overlace.compose.plan import Actual, Plan, StoredNetwork, StoredService, plan_stack
from overlace.compose.problems import ComposeError, Problems
from overlace.compose.project import FileDef, Project
from overlace.compose.read import Reading, read_project
from overlace.compose.versions import Choice, Stored, labels_of
from overlace.compose.words import Words, service_words
from overlace.model.specs import ServiceSpec


class Memory:
    """Files by their path; /project is where compose files are."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def text(self, path: str) -> str:
        try:
            return self._files[path]
        except KeyError:
            raise FileNotFoundError(f"no such file: {path}") from None

    def exists(self, path: str) -> bool:
        return path in self._files


def read(
    *texts: str,
    env: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    profiles: Sequence[str] = (),
    leave_out: bool = False,
) -> tuple[Project, Problems]:
    """Raises ComposeError."""
    problems = Problems()
    memory = Memory(files or {})
    loader = Loader(memory, env or {}, problems, profiles)
    names = ["compose.yml", *(f"override{n}.yml" for n in range(1, len(texts)))]
    root = loader.load([Source(name, text, "/project") for name, text in zip(names, texts, strict=True)])
    project = read_project(root, Reading(problems, memory, loader.lookup, leave_out))
    problems.check()
    return project, problems


def one(body: str, **more: object) -> Words:
    """The words of the one service `web`, from the lines under it."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    tail = (
        "networks: {n: {}}\nvolumes: {v: {}}\nsecrets: {s: {external: true}}\nconfigs: {c: {external: true}}"
    )
    project, _ = read(f"services:\n  web:\n    image: app\n{indented}\n{tail}\n", **more)  # type: ignore[arg-type]
    return words(project)["web"]


def refused(text: str, **more: object) -> list[str]:
    with pytest.raises(ComposeError) as caught:
        read(text, **more)  # type: ignore[arg-type]
    return caught.value.message.splitlines()


def refused_in_service(body: str, **more: object) -> list[str]:
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return refused(f"services:\n  web:\n    image: app\n{indented}\n", **more)


def data_of(kind: str, key: str, definition: FileDef) -> bytes:
    return f"{kind} {key} {definition.file} {definition.content}".encode()


def choices_of(project: Project, stack: str = "st") -> list[Choice]:
    return [Choice(w, w.spec.name, None) for w in file_wishes(stack, project, data_of, Problems())]


def planned(project: Project, actual: Actual | None = None, choices: Sequence[Choice] | None = None) -> Plan:
    return plan_stack(
        "st", project, choices_of(project) if choices is None else choices, [], actual or Actual(), {}
    )


def words(project: Project) -> dict[str, Words]:
    return {
        action.key: service_words(action.service, {})
        for action in planned(project).actions
        if action.service is not None
    }


def deployed(plan: Plan) -> tuple[Actual, list[Choice]]:
    """The swarm after a plan for an empty one was carried out, as its API would show it."""
    networks, services, choices = {}, {}, []
    for number, action in enumerate(plan.actions):
        id = f"id{number}"
        if action.network is not None:
            document = {**encode(action.network), "Options": {**action.network.options, "vni": "4097"}}
            document.setdefault("IPAM", {}).setdefault(
                "Config", [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]
            )
            networks[action.name] = StoredNetwork(id, action.name, "swarm", action.network.labels, document)
        elif action.choice is not None:
            stored = Stored(id, action.name, 1, labels_of(action.choice))
            choices.append(Choice(action.choice.wish, action.name, stored))
    ids = {choice.name: choice.stored.id for choice in choices if choice.stored is not None}
    for action in plan.actions:
        if action.service is not None:
            document = _with_ids(encode(action.service), ids, {n.name: n.id for n in networks.values()})
            services[action.name] = StoredService(action.name, 1, msgspec.convert(document, ServiceSpec))
    return Actual(services=services, networks=networks), choices


def _with_ids(document: dict, files: Mapping[str, str], networks: Mapping[str, str]) -> dict:
    template = document["TaskTemplate"]
    for kind in ("Secret", "Config"):
        for reference in template["ContainerSpec"].get(f"{kind}s", []):
            reference[f"{kind}ID"] = files.get(reference[f"{kind}Name"], "")
    for attachment in template["Networks"]:
        attachment["Target"] = networks[attachment["Target"]]
    return document
