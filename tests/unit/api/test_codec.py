"""Requests as real clients write them are understood, and what is wrong is named."""

from __future__ import annotations

import pytest

from overlace.api import codec
from overlace.model.errors import InvalidArgument
from overlace.model.specs import ServiceSpec


def refused(raw: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        codec.decode(raw.encode(), ServiceSpec)
    return caught.value.message


def test_nulls_of_go_clients_count_as_absent() -> None:
    spec = codec.decode(
        b'{"Name":"a","Labels":null,"TaskTemplate":{"ContainerSpec":{"Image":"x","Env":null,"Mounts":null},'
        b'"Networks":null,"Placement":{"Platforms":null}},"Mode":{"Replicated":{"Replicas":2},"Global":null}}',
        ServiceSpec,
    )
    assert spec.labels == {} and spec.mode.replicated is not None and spec.mode.replicated.replicas == 2
    assert spec.mode.global_ is None
    assert spec.task_template.container_spec is not None and spec.task_template.container_spec.env == []


def test_member_names_in_any_case_as_go_takes_them() -> None:
    """docker-py sends Mode.replicated."""
    spec = codec.decode(
        b'{"name":"a","Mode":{"replicated":{"replicas":2}},"labels":{"Name":"x"},'
        b'"endpointspec":{"ports":[{"targetport":80}]},"TASKTEMPLATE":{"forceupdate":1,"ForceUpdate":2}}',
        ServiceSpec,
    )
    assert spec.name == "a" and spec.labels == {"Name": "x"}
    assert spec.mode.replicated is not None and spec.mode.replicated.replicas == 2
    assert spec.endpoint_spec is not None and spec.endpoint_spec.ports[0].target_port == 80
    assert spec.task_template.force_update == 2


def test_unknown_members_are_ignored_as_docker_does() -> None:
    assert codec.decode(b'{"Name":"a","Future":{"x":1}}', ServiceSpec).name == "a"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("", "invalid JSON: got EOF"),
        ("{bad}", "invalid JSON: "),
        ("[]", "expected an object"),
        ('{"Name":1}', "Name: expected str, got int (1)"),
        (
            '{"TaskTemplate":{"ContainerSpec":{"Env":["A=1",2]}}}',
            "TaskTemplate.ContainerSpec.Env[1]: expected str, got int (2)",
        ),
        ('{"Labels":{"a":1}}', "Labels"),
        (
            '{"Mode":{"Replicated":{"Replicas":-1}}}',
            "cannot unmarshal number -1 into field Mode.Replicated.Replicas of type uint64",
        ),
        ('{"EndpointSpec":{"Ports":[{"TargetPort":4294967296}]}}', "EndpointSpec.Ports[0].TargetPort"),
        ("[" * 100_000, "invalid JSON"),
    ],
)
def test_bad_bodies_name_field_and_value(raw: str, words: str) -> None:
    message = refused(raw)
    assert message.startswith("invalid JSON: ")
    assert words in message


@pytest.mark.parametrize(
    "raw",
    ['{"label":{"a=b":true},"name":{"x":true}}', '{"label":["a=b"],"name":["x"]}'],
    ids=["docker CLI", "docker-py"],
)
def test_both_forms_of_filters(raw: str) -> None:
    assert codec.filters(raw) == {"label": ["a=b"], "name": ["x"]}


@pytest.mark.parametrize("raw", ["{", "[]", '{"a":1}', '{"a":[1]}', '"x"'])
def test_bad_filters(raw: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid filter"):
        codec.filters(raw)


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", " TRUE "])
def test_true(text: str) -> None:
    assert codec.flag(text)


@pytest.mark.parametrize("text", ["", "0", "false", "False", "no", "none"])
def test_false(text: str) -> None:
    assert not codec.flag(text)


def test_versions_are_refused_in_go_words() -> None:
    assert codec.version_number("12", "service") == 12
    with pytest.raises(InvalidArgument) as caught:
        codec.version_number("", "service")
    assert (
        caught.value.message == "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax"
    )
    for text in ("-1", "x", "1.5", "²", str(2**64)):
        with pytest.raises(InvalidArgument):
            codec.version_number(text, "node")


def test_times_as_go_prints_them() -> None:
    assert codec.rfc3339(0) == "0001-01-01T00:00:00Z"
    assert codec.rfc3339(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"
    assert codec.rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert codec.rfc3339_padded(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.120000000Z"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("", 0),
        ("0", 0),
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.000000123", 1_700_000_000_000_000_123),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500_000_000),
    ],
)
def test_since(text: str, ns: int) -> None:
    assert codec.parse_time(text, "since") == ns


@pytest.mark.parametrize("text", ["yesterday", "-5", "1.2.3", "2023-99-99T00:00:00Z", "9" * 40])
def test_bad_since_names_the_parameter(text: str) -> None:
    with pytest.raises(InvalidArgument, match="since"):
        codec.parse_time(text, "since")
