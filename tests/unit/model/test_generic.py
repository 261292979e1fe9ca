"""Generic resources: what nodes may offer, and how it is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.manager.schedule.occupancy import NodeUse
from overlace.model.errors import InvalidArgument
from overlace.model.generic import (
    Claim,
    GenericResources,
    claim,
    environment,
    free,
    lacking,
    offered_documents,
    parse_node_resources,
)


def test_what_a_node_may_offer() -> None:
    offered = parse_node_resources(["gpu=UUID1", "gpu=UUID2,ssd=3"])
    assert offered == GenericResources({"gpu": ("UUID1", "UUID2")}, {"ssd": 3})
    assert offered_documents(offered) == [
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID1"}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID2"}},
        {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}},
    ]
    assert not parse_node_resources([])


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("gpu", "incorrect term 'gpu'"),
        ("=x", "incorrect term '=x'"),
        ("gpu=a b", "incorrect term"),
        ("gpu=-1", "a number of gpu is from 0 to 9223372036854775807"),
        ("gpu=9223372036854775808", "a number of gpu is from 0 to"),
        ("gpu=" + "9" * 5000, "a number of gpu is from 0 to"),
        ("gpu=x,gpu=3", "mixed discrete and named resources"),
        ("gpu=x,gpu=x", "gpu=x is given twice"),
        ("ssd=1,ssd=1", "ssd is given twice"),
    ],
)
def test_what_it_may_not(given_: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse_node_resources([given_])


def test_environment_of_a_task() -> None:
    claims = (Claim("gpu", "b"), Claim("gpu", "a"), Claim("ssd", count=2))
    assert environment(claims) == ("DOCKER_RESOURCE_GPU=b,a", "DOCKER_RESOURCE_SSD=2")


@given(st.lists(st.tuples(st.sampled_from(["gpu", "ssd"]), st.integers(1, 3)), max_size=12))
def test_nothing_is_given_twice_and_all_comes_back(wishes: list[tuple[str, int]]) -> None:
    offered = GenericResources({"gpu": ("a", "b", "c", "d")}, {"ssd": 5})
    use, held = NodeUse(), []
    for wish in wishes:
        if lacking(offered, use.generic, [wish]):
            continue
        got = claim(offered, use.generic, [wish])
        assert sum(1 if one.value else one.count for one in got) == wish[1]
        use.claim(got)
        held.append(got)
    names = [one.value for got in held for one in got if one.value]
    assert len(names) == len(set(names)) <= 4
    assert sum(one.count for got in held for one in got) <= 5
    for got in held:
        use.claim(got, -1)
    assert (
        not use.generic and free(offered, use.generic, "gpu") == 4 and free(offered, use.generic, "ssd") == 5
    )
