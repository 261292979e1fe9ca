"""What a deploy would do: nothing is missed, nothing is invented."""

# ruff: noqa: E501  tables

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlace.compose.desired import encode
from overlace.compose.plan import Actual, Pinned, StoredNetwork, StoredService, plan_stack
from overlace.compose.words import service_words
from overlace.model.specs import (
    ContainerSpec,
    Doc,
    EndpointSpec,
    Healthcheck,
    Limits,
    Placement,
    ReplicatedService,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)

from . import kit

FILE = """\
services:
  web:
    image: app:1
    environment: {COLOR: red}
    configs: [settings]
    networks: [front]
    deploy: {replicas: 2}
  db: {image: "db:1"}
networks: {front: {internal: true}}
configs: {settings: {file: ./settings}}
"""


def deployed(text: str = FILE) -> tuple[Any, Any]:
    return kit.deployed(kit.planned(kit.read(text)[0]))


def changes(old: str, new: str) -> dict[str, tuple[Any, Any]]:
    actual, choices = deployed(old)
    plan = kit.planned(kit.read(new)[0], actual, choices)
    return {c.path: (c.before, c.after) for action in plan.actions for c in action.changes}


def test_a_new_stack() -> None:
    plan = kit.planned(kit.read(FILE)[0])
    assert [(a.verb, a.kind, a.name) for a in plan.actions] == [
        ("create", "network", "st_default"), ("create", "network", "st_front"), ("create", "config", "st_settings"),
        ("create", "service", "st_web"), ("create", "service", "st_db"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("replicas: 2", "replicas: 4", {"services.web.deploy.replicas": (2, 4)}),
        ("COLOR: red", "COLOR: blue, X: 1", {"services.web.environment.COLOR": ("red", "blue"), "services.web.environment.X": (None, "1")}),
        ("{COLOR: red}", "{}", {"services.web.environment.COLOR": ("red", None)}),
        ("app:1", "app:2", {"services.web.image": ("app:1", "app:2")}),
        ("[settings]", "[{source: settings, target: /s}]", {
            "services.web.configs./s": (None, "st_settings"), "services.web.configs./s.id": (None, "id2"),
            "services.web.configs.settings": ("st_settings", None), "services.web.configs.settings.id": ("id2", None)}),
        ("replicas: 2", "replicas: 2, mode: replicated, endpoint_mode: vip, update_config: {parallelism: 1}", {}),
        ("image: app:1", "image: app:1\n    stop_grace_period: 10s\n    read_only: false\n    isolation: default", {}),
        ("[front]", "{front: {aliases: [a]}}", {"services.web.networks.st_front": (["web"], ["a", "web"])}),
    ],
)  # fmt: skip
def test_fields(old: str, new: str, expected: dict[str, tuple[Any, Any]]) -> None:
    found = {p: c for p, c in changes(FILE, FILE.replace(old, new)).items() if not p.endswith(".id")}
    assert found == {p: c for p, c in expected.items() if not p.endswith(".id")}


def test_a_mode_is_replaced_and_what_is_gone_is_noted_or_pruned() -> None:
    actual, choices = deployed()
    text = FILE.replace("replicas: 2", "mode: global").replace('  db: {image: "db:1"}\n', "")
    project, _ = kit.read(text)
    plan = kit.planned(project, actual, choices)
    [action] = plan.actions
    assert (action.verb, action.name) == ("replace", "st_web") and "removed and made anew" in action.why
    assert [note.path for note in plan.notes] == ["st_db"]
    pruned = plan_stack("st", project, choices, [], actual, {}, prune=True)
    assert [(a.verb, a.name) for a in pruned.actions] == [("replace", "st_web"), ("remove", "st_db")]


def test_a_network_that_differs_is_noted_and_stays() -> None:
    actual, choices = deployed()
    text = FILE.replace("{internal: true}", "{ipam: {config: [{subnet: 10.5.0.0/24}]}}")
    plan = kit.planned(kit.read(text)[0], actual, choices)
    assert plan.actions == []
    assert [note.path for note in plan.notes] == [
        "networks.front.internal",
        "networks.front.ipam.config[0].subnet",
    ]


def test_a_network_of_both_families_is_as_asked_whatever_the_order_and_spelling() -> None:
    given = (
        "services: {web: {image: a, networks: [n]}}\nnetworks: {n: {enable_ipv6: true, ipam: {config: [%s]}}}"
    )

    def notes(asked: str, *there: dict[str, str]) -> list[str]:
        labels = {"com.docker.stack.namespace": "st"}
        document = {
            "Driver": "overlay",
            "EnableIPv6": True,
            "IPAM": {"Config": list(there)},
            "Labels": labels,
        }
        network = StoredNetwork("id", "st_n", "swarm", {}, document)
        plan = kit.planned(kit.read(given % asked)[0], Actual(networks={"st_n": network}))
        return [note.path for note in plan.notes]

    shown = (
        {"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"},
        {"Subnet": "fd00:9::/64", "Gateway": "fd00:9::1"},
    )
    assert notes("{subnet: 'FD00:9:0::/64', gateway: 'fd00:9::0:1'}", *shown) == []
    assert notes("{subnet: 'fd00:9::/64'}, {subnet: 10.9.0.0/24}", *shown) == []
    assert notes("", *shown) == []
    assert notes("{subnet: 'fd00:8::/64'}", *shown) == ["networks.n.ipam.config[0, IPv6].subnet"]


def test_external_networks_need_not_be_made() -> None:
    text = "services: {web: {image: a, networks: [n]}}\nnetworks: {n: {external: true, name: theirs}}"
    there = StoredNetwork("id", "theirs", "swarm", {}, {})
    plan = kit.planned(kit.read(text)[0], Actual(networks={"theirs": there}))
    assert [(a.kind, a.name) for a in plan.actions] == [("service", "st_web")]


def test_a_pinned_image_stays_until_its_registry_says_otherwise() -> None:
    project, _ = kit.read("services: {web: {image: 'app:1'}}")
    first, second = (Pinned(f"app:1@sha256:{digit * 64}") for digit in "12")
    plan = plan_stack("st", project, [], [], Actual(), {"app:1": first})
    actual, _ = kit.deployed(plan)
    assert plan_stack("st", project, [], [], actual, {"app:1": first}).actions == []
    assert plan_stack("st", project, [], [], actual, {}).actions == [], "not asked, or no answer"
    [action] = plan_stack("st", project, [], [], actual, {"app:1": second}).actions
    assert [(c.path, c.before, c.after) for c in action.changes] == [
        ("services.web.image", first.image, second.image),
    ]  # fmt: skip


def test_platforms_and_force_are_not_the_files() -> None:
    actual, choices = deployed("services: {web: {image: 'app:1'}}")
    there = actual.services["st_web"]
    task = msgspec.structs.replace(there.spec.task_template, force_update=3)
    spec = msgspec.structs.replace(there.spec, task_template=task)
    actual = msgspec.structs.replace(actual, services={"st_web": StoredService("st_web", 1, spec)})
    project, _ = kit.read("services: {web: {image: 'app:1', user: u}}")
    [action] = kit.planned(project, actual, choices).actions
    assert action.service is not None and action.service.task_template.force_update == 3


# -- every field of a spec has a word --

_DERIVED = {"name", "platforms", "force_update", "runtime", "plugin_spec", "network_attachment_spec", "mode"}
_FULL = ServiceSpec(
    task_template=TaskSpec(
        container_spec=ContainerSpec(healthcheck=Healthcheck()),
        resources=Resources(Limits(), Reservations()),
        restart_policy=RestartPolicy(),
        placement=Placement(),
    ),
    mode=ServiceMode(replicated=ReplicatedService(1)),
    update_config=UpdateConfig(parallelism=1),
    rollback_config=UpdateConfig(parallelism=1),
    endpoint_spec=EndpointSpec(),
)
_OTHER: dict[str, Any] = {
    "labels": {"a": "b"}, "sysctls": {"a": "b"}, "driver_opts": {"a": "b"}, "env": ["A=b"],
    "privileges": {"NoNewPrivileges": True}, "generic_resources": [{"DiscreteResourceSpec": {"Kind": "k", "Value": 1}}],
    "mounts": [{"Type": "volume", "Target": "/t"}], "secrets": [{"SecretName": "s", "File": {"Name": "f"}}],
    "configs": [{"ConfigName": "s", "File": {"Name": "f"}}], "ulimits": [{"Name": "core", "Soft": 1, "Hard": 1}],
    "networks": [{"Target": "n"}], "dns_config": {"Nameservers": ["192.0.2.1"]}, "log_driver": {"Name": "x"},
    "ports": [{"TargetPort": 80}], "preferences": [{"Spread": {"SpreadDescriptor": "node.labels.a"}}],
    "condition": "none", "endpoint_mode": "dnsrr", "failure_action": "continue", "order": "start-first",
}  # fmt: skip


def _variants(doc: Doc) -> list[tuple[str, Any]]:
    """The document once for every field in it, with that field changed."""
    found: list[tuple[str, Any]] = []
    for field in msgspec.structs.fields(doc):
        value = getattr(doc, field.name)
        if field.name in _DERIVED:
            continue
        if isinstance(value, Doc):
            found += [
                (f"{field.name}.{name}", msgspec.structs.replace(doc, **{field.name: inner}))
                for name, inner in _variants(value)
            ]
            continue
        kind = field.type
        if field.name in _OTHER:
            other = msgspec.convert(_OTHER[field.name], kind)
        elif kind is bool or kind == (bool | None):
            other = True
        elif kind in (int, float) or kind == (int | None):
            other = kind(1) * 1 if kind is float else 77
        elif kind is str:
            other = "other"
        else:
            other = ["other"]
        found.append((field.name, msgspec.structs.replace(doc, **{field.name: other})))
    return found


@pytest.mark.parametrize(("field", "spec"), _variants(_FULL), ids=lambda v: v if isinstance(v, str) else "")
def test_no_field_can_change_unnoticed(field: str, spec: ServiceSpec) -> None:
    assert service_words(spec, {}) != service_words(_FULL, {})


def test_specs_travel_as_json() -> None:
    for _, spec in _variants(_FULL):
        assert service_words(msgspec.convert(encode(spec), ServiceSpec), {}) == service_words(spec, {})


_TEXT = st.text(alphabet="ab1.-/", min_size=1, max_size=6)
_SERVICE = st.fixed_dictionaries(
    {"image": st.sampled_from(["app", "app:1", "registry.example/app:2"])},
    optional={
        "command": st.lists(_TEXT, max_size=3), "environment": st.dictionaries(_TEXT, st.none() | _TEXT, max_size=3),
        "labels": st.dictionaries(_TEXT, _TEXT, max_size=2), "init": st.booleans(), "tty": st.booleans(),
        "ports": st.lists(st.integers(1, 65535).map(str), max_size=3, unique=True), "cap_add": st.lists(_TEXT),
        "stop_grace_period": st.integers(0, 10**6).map(lambda n: f"{n}ms"), "dns": st.lists(_TEXT, max_size=2),
        "tmpfs": st.lists(_TEXT.map(lambda t: "/" + t), max_size=2, unique=True),
        "healthcheck": st.sampled_from([{"disable": True}, {"test": "x", "interval": "1m1s"}, {"test": ["CMD", "a"]}]),
        "deploy": st.fixed_dictionaries({}, optional={
            "replicas": st.integers(0, 9), "labels": st.dictionaries(_TEXT, _TEXT, max_size=2),
            "resources": st.just({"limits": {"cpus": "0.1", "memory": "5m", "pids": 3}}),
            "update_config": st.fixed_dictionaries({}, optional={
                "parallelism": st.integers(0, 3), "order": st.sampled_from(["start-first", "stop-first"]),
                "max_failure_ratio": st.floats(0, 1), "delay": st.just("1s")}),
            "restart_policy": st.sampled_from([{}, {"condition": "any"}, {"delay": "0s"}, {"window": "1m"}]),
        }),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(["a", "b", "c-d"]), _SERVICE, min_size=1), st.data())
def test_deploying_twice_changes_nothing_and_a_change_touches_its_service_alone(
    services: dict[str, Any], data: st.DataObject
) -> None:
    text = msgspec.json.encode({"services": services}).decode()
    project, _ = kit.read(text)
    actual, choices = kit.deployed(kit.planned(project))
    assert kit.planned(project, actual, choices).actions == []
    name = data.draw(st.sampled_from(sorted(services)))
    other = {**services, name: data.draw(_SERVICE)}
    plan = kit.planned(kit.read(msgspec.json.encode({"services": other}).decode())[0], actual, choices)
    assert {action.key for action in plan.actions} <= {name}
