"""Constraints as people write them."""

from __future__ import annotations

import pytest

from overlace.manager.schedule.constraint import first_unmet, parse_constraint, parse_constraints
from overlace.model.errors import InvalidArgument
from overlace.model.objects import Node, NodeDescription, NodeStatus
from overlace.model.specs import NodeSpec
from overlace.model.states import NodeState

NODE = Node(
    id="4ndmqzhmt7uuzqq7ar43ixoqt",
    spec=NodeSpec(labels={"zone": "East", "Rack": "7"}, role="manager"),
    description=NodeDescription(
        hostname="alpha", os="linux", architecture="x86_64", engine_labels={"com.example.disk": "ssd"}
    ),
    status=NodeStatus(NodeState.READY, addr="172.28.0.11"),
)
BARE = Node(id="bare")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node.role=manager", "constraint expected one operator from ==, !="),
        ("node.role", "constraint expected one operator from ==, !="),
        ("node.role > 1", "constraint expected one operator from ==, !="),
        ("1bad==x", "key '1bad' is invalid"),
        ("==x", "key '' is invalid"),
        ("node.labels.a b==x", "key 'node.labels.a b' is invalid"),
        ("node.labels.a==a>b", "value 'a>b' is invalid"),
        ("node.labels.a==", "value '' is invalid"),
        ("node.role!==manager", "key 'node.role!' is invalid"),
    ],
)
def test_bad_constraints_are_refused_in_dockers_words(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_constraint(text)
    assert error.value.message == message


def test_blanks_are_dropped_and_the_value_may_hold_any_pattern_character() -> None:
    parsed = parse_constraint("  node.labels.path !=  a/b:c (x)*  ")
    assert (parsed.key, parsed.equal, parsed.value) == ("node.labels.path", False, "a/b:c (x)*")


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("node.id==4ndmqzhmt7uuzqq7ar43ixoqt", True),
        ("node.id!=4ndmqzhmt7uuzqq7ar43ixoqt", False),
        ("node.hostname==ALPHA", True),
        ("NODE.Hostname == alpha", True),
        ("node.hostname!=alpha", False),
        ("node.hostname==alph*", False),
        ("node.role==manager", True),
        ("node.role==worker", False),
        ("node.platform.os==linux", True),
        ("node.platform.os!=windows", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", True),
        ("node.platform.arch!=AMD64", False),
        ("node.platform.arch==arm64", False),
        ("node.labels.zone==east", True),
        ("node.labels.Zone==east", False),
        ("node.labels.Rack==7", True),
        ("node.labels.none==x", False),
        ("node.labels.none!=x", True),
        ("engine.labels.com.example.disk==ssd", True),
        ("engine.labels.none!=ssd", True),
        ("node.ip==172.28.0.11", True),
        ("node.ip!=172.28.0.11", False),
        ("node.ip==172.28.0.0/16", True),
        ("node.ip!=172.28.0.0/16", False),
        ("node.ip==10.0.0.0/8", False),
        ("node.ip!=10.0.0.0/8", True),
        ("node.ip==172.28.0.300", False),
        ("node.ip!=172.28.0.300", False),
        ("node.unknown==x", False),
        ("node.unknown!=x", False),
        ("node.labels.!=x", False),
    ],
)
def test_every_documented_key(text: str, met: bool) -> None:
    assert (first_unmet(parse_constraints([text]), NODE) is None) is met


def test_arm_names_fold_both_ways() -> None:
    for own, asked in (("aarch64", "arm64"), ("arm64", "aarch64"), ("aarch64", "aarch64")):
        node = Node(id="n", description=NodeDescription(hostname="h", os="linux", architecture=own))
        assert first_unmet(parse_constraints([f"node.platform.arch=={asked}"]), node) is None


def test_a_node_that_said_nothing_yet_meets_only_inequalities() -> None:
    assert first_unmet(parse_constraints(["node.hostname!=alpha", "engine.labels.a!=b"]), BARE) is None
    assert first_unmet(parse_constraints(["node.platform.os==linux"]), BARE) is not None


def test_all_constraints_must_hold_and_the_first_unmet_is_named() -> None:
    unmet = first_unmet(parse_constraints(["node.role==manager", "node.labels.zone==west"]), NODE)
    assert str(unmet) == "node.labels.zone==west"
