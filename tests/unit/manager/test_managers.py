"""Which etcd members there should be, and what the nodes say of their managers."""

from __future__ import annotations

import pytest

from overlace.manager.managers import (
    Promote,
    Remove,
    StepDown,
    check_demotion,
    plan_members,
    plan_status,
)
from overlace.model.errors import FailedPrecondition
from overlace.model.objects import ManagerStatus, Node, NodeStatus
from overlace.model.specs import NodeSpec
from overlace.model.states import NodeState
from overlace.store.etcd.client import EtcdMember


def node(number: int, role: str = "manager", standing: str = "reachable", **more: object) -> Node:
    status = ManagerStatus(leader=False, reachability=standing, addr=f"10.0.0.{number}:2377")
    values: dict[str, object] = {"status": NodeStatus(NodeState.READY)}
    return Node(
        id=f"n{number}",
        spec=NodeSpec(role=role),
        manager_status=status if standing else None,
        **(values | more),  # type: ignore[arg-type]
    )


def member(number: int, *, learner: bool = False, started: bool = True) -> EtcdMember:
    return EtcdMember(number, f"n{number}" if started else "", (f"https://10.0.0.{number}:2380",), learner)


def test_members_follow_the_roles_one_change_at_a_time() -> None:
    three = [node(1), node(2), node(3)]
    members = [member(1), member(2), member(3)]
    assert plan_members("n1", members, three) is None
    # demoted, removed, unknown: gone
    for gone in (
        [node(1), node(2, "worker"), node(3)],
        [node(1), node(2, removed=True), node(3)],
        [node(1), node(3)],
    ):
        step = plan_members("n1", members, gone)
        assert isinstance(step, Remove) and step.member == 2
    # a learner gets its vote, unless nobody is waiting for it any more
    assert plan_members("n1", [member(1), member(2, learner=True)], [node(1), node(2)]) == Promote(2)
    fresh = member(2, learner=True, started=False)
    assert plan_members("n1", [member(1), fresh], [node(1), node(2)]) == Promote(2)
    for nodes, stale in (([node(1), node(2, "worker")], ()), ([node(1), node(2)], (2,)), ([node(1)], ())):
        step = plan_members("n1", [member(1), fresh], nodes, frozenset(stale))
        assert isinstance(step, Remove) and step.member == 2
    # who is to be removed first leaves the room to the others
    both = [node(1, "worker"), node(2)]
    assert plan_members("n1", [member(1), member(2)], both) == StepDown()
    assert plan_members("n2", [member(1), member(2)], both) == Remove(1, "its node is no manager any more")
    assert plan_members("n1", [member(1)], [node(1, "worker")]) is None, "the last one stays"


def test_what_the_nodes_say() -> None:
    nodes = [
        node(1),
        node(2, status=NodeStatus(NodeState.DOWN)),
        node(3, "worker"),
        node(4, standing="unreachable", status=NodeStatus(NodeState.UNKNOWN)),
        node(5, "worker", standing=""),
    ]
    members = [member(1), member(2), member(4, learner=True)]
    changed = {n.id: n.manager_status for n in plan_status("n1", members, nodes)}
    assert changed == {
        "n1": ManagerStatus(True, "reachable", "10.0.0.1:2377"),
        "n2": ManagerStatus(False, "unreachable", "10.0.0.2:2377"),
        "n3": None,
    }
    # right after a change of leaders nobody has been heard yet: what was known stays
    unheard = node(2, status=NodeStatus(NodeState.UNKNOWN))
    assert plan_status("n1", [member(2)], [unheard]) == []


def test_a_demotion_must_leave_a_quorum() -> None:
    with pytest.raises(FailedPrecondition, match="attempting to demote the last manager of the swarm"):
        check_demotion(node(1), [node(1), node(2, "worker", standing="")])
    check_demotion(node(1), [node(1), node(2)])
    lost = node(2, standing="unreachable")
    with pytest.raises(FailedPrecondition, match="this would result in a loss of quorum"):
        check_demotion(node(1), [node(1), lost, node(3)])
    check_demotion(lost, [node(1), lost, node(3)])
