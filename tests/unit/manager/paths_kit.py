"""Two hosts and an ingress network in a store, for tests of paths and traces."""

from __future__ import annotations

import msgspec

from overlace.model.objects import Network, Node, NodeDescription, NodeStatus
from overlace.model.paths import PathState
from overlace.model.specs import NetworkSpec
from overlace.model.states import NodeState
from overlace.store.base import Put
from overlace.store.memory import MemoryStore

INGRESS = Network(id="net1", spec=NetworkSpec(name="ingress", ingress=True), vni=4096)


def host(name: str, last: int, **changes: object) -> Node:
    described = NodeDescription(
        hostname=name, os="linux", architecture="x86_64", underlay_address=f"172.28.1.{last}"
    )
    node = Node(id=name.ljust(25, "0"), description=described, status=NodeStatus(NodeState.READY))
    return msgspec.structs.replace(node, **changes)


A, B = host("alpha", 1), host("beta", 2)


async def made(*nodes: Node) -> MemoryStore:
    store = MemoryStore()
    await store.commit([Put(INGRESS, 0), *(Put(n, 0) for n in nodes or (A, B))])
    return store


def path(to: Node, **changes: object) -> PathState:
    assert to.description is not None
    base = PathState(node=to.id, address=to.description.underlay_address, state="ok", rtt=210, mtu=1500)
    return msgspec.structs.replace(base, **changes)
