"""HCN documents against the published schema: every member is known, whatever is read is written the same."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.network.hns import policies as p
from overlace.network.hns.documents import KINDS, RESOURCES, encode, parse, parse_modify
from overlace.network.hns.errors import TEXTS, Code, HcnError

from .hcn_documents import BASE, ENUMS, SETTINGS, STRUCTS, policy, struct

OBJECTS = {
    "network": "HostComputeNetwork", "endpoint": "HostComputeEndpoint", "namespace": "HostComputeNamespace",
    "loadbalancer": "HostComputeLoadBalancer", "sdnroute": "HostComputeRoute",
}  # fmt: skip
UNIONS = {
    "NetworkPolicyType": p.NetworkPolicy,
    "EndpointPolicyType": p.EndpointPolicy,
    "SubnetPolicyType": p.SubnetPolicy,
}
quick = settings(deadline=None, suppress_health_check=list(HealthCheck))


def members(kind: type[msgspec.Struct]) -> set[str]:
    return {f.encode_name for f in msgspec.structs.fields(kind)}


def test_every_member_of_the_schemas_objects_is_typed() -> None:
    for kind, name in OBJECTS.items():
        assert {f for f, _ in STRUCTS[name]} <= members(KINDS[kind]), name


@pytest.mark.parametrize("enum", UNIONS)
def test_every_policy_of_the_schema_is_typed_in_its_order(enum: str) -> None:
    kinds = get_args(UNIONS[enum])
    tags = [k.__struct_config__.tag for k in kinds]
    assert tags[: len(ENUMS[enum])] == ENUMS[enum]
    for kind, tag in zip(kinds, ENUMS[enum], strict=False):
        if SETTINGS[tag]:
            held = {f.name: f.type for f in msgspec.structs.fields(kind)}["settings"]
            assert {f for f, _ in STRUCTS[SETTINGS[tag]]} <= members(held), tag


def test_every_resource_of_a_modify_request_is_typed_in_its_order() -> None:
    for kind, enum in (("network", "NetworkResourceType"), ("endpoint", "EndpointResourceType"),
                       ("namespace", "NamespaceResourceType")):  # fmt: skip
        assert [k.__struct_config__.tag for k in RESOURCES[kind]] == ENUMS[enum]


@pytest.mark.parametrize("kind", OBJECTS)
@quick
@given(data=st.data())
def test_what_is_read_is_written_the_same(kind: str, data: st.DataObject) -> None:
    document = data.draw(struct(OBJECTS[kind]))
    d = parse(kind, json.dumps(document))
    assert parse(kind, encode(d)) == d
    told = json.loads(encode(d))
    for name, value in document.items():
        if isinstance(value, str) and name not in ("Type", "Flags", "State"):
            assert told.get(name, "") == value, name


@pytest.mark.parametrize("kind", OBJECTS)
@quick
@given(data=st.data())
def test_members_come_in_any_case_and_unknown_ones_do_no_harm(kind: str, data: st.DataObject) -> None:
    document = data.draw(struct(OBJECTS[kind]))
    d = parse(kind, json.dumps(document))
    shouted = {name.upper(): value for name, value in document.items()}
    assert parse(kind, json.dumps({**shouted, "Moon": {"Phase": 3}})) == d


@quick
@given(
    policies=st.lists(policy("EndpointPolicyType"), min_size=1, max_size=3),
    request=st.sampled_from(ENUMS["ModifyRequestType"]),
)
def test_a_modify_request_carries_what_was_written(policies: list[dict[str, Any]], request: str) -> None:
    body = {"resourceType": "policy", "RequestType": ENUMS["ModifyRequestType"].index(request),
            "Settings": {"Policies": policies}}  # fmt: skip
    read = parse_modify("endpoint", json.dumps(body))
    assert read.request_type == request
    again = parse_modify("endpoint", encode(read))
    assert again == read and len(read.settings.policies) == len(policies)  # type: ignore[union-attr]


@quick
@given(data=st.data(), wrong=st.sampled_from([{"a": 1}, ["x"], True, 1.5, "\x00nonsense"]))
def test_a_wrong_value_is_refused_with_its_path(data: st.DataObject, wrong: Any) -> None:
    kind = data.draw(st.sampled_from(sorted(OBJECTS)))
    name, of = data.draw(
        st.sampled_from([f for f in STRUCTS[OBJECTS[kind]] if f[1] != "Any" and f[0] not in BASE])
    )
    text = of in ("string", "Guid")
    if of == "<string> array" and isinstance(wrong, list):
        return
    if (text and isinstance(wrong, str)) or (of in STRUCTS and isinstance(wrong, dict)) or of == "bool":
        return
    with pytest.raises(HcnError) as e:
        parse(kind, json.dumps({name: wrong}))
    assert f"$.{name}" in str(e.value)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (
            "sdnroute",
            {"Setting": [{"DestinationPrefix": "10.0.0.0/8"}]},
            {"Routes": [{"DestinationPrefix": "10.0.0.0/8"}]},
        ),
        ("loadbalancer", {"VirtualIPs": ["10.0.0.1"]}, {"FrontendVIPs": ["10.0.0.1"]}),
        (
            "endpoint",
            {"Policies": [{"Type": "L4Proxy", "Settings": {"Exceptions": ["a"], "OutboundNAT": True}}]},
            {"Policies": [{"Type": "L4Proxy", "Settings": {"ExceptionList": ["a"], "OutboundNat": True}}]},
        ),
        (
            "network",
            {"Policies": [{"Type": "VxlanPort", "Data": {"Port": 4789}}], "Ipams": None},
            {"Policies": [{"Type": "VxlanPort", "Settings": {"Port": 4789}}]},
        ),
    ],
)
def test_both_names_of_a_member_are_read(kind: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    assert parse(kind, json.dumps(one)) == parse(kind, json.dumps(other))
    assert parse(kind, json.dumps(other | one)) == parse(kind, json.dumps(other))


def test_every_code_has_its_words_and_its_record() -> None:
    assert set(TEXTS) == set(Code)
    for code in Code:
        record = HcnError(code, "what is wrong").record()
        assert record["ErrorCode"] == code and str(record["Error"]).startswith(TEXTS[code] + " ")
    assert {int(c) & 0xFFFF for c in Code if int(c) >> 16 == 0x803B} == set(range(1, 0x38))
