"""What each host of the swarm was told, as the HNS documents it makes of it.

Owns the way from the store's view to one host's documents (pure). Must not follow packets.
"""

from __future__ import annotations

import msgspec

from overlace.manager.netviews import plan_view, takes_part
from overlace.manager.trace.places import as_containers
from overlace.model.capabilities import CLIENT_ADDRESS
from overlace.model.netview import NetView
from overlace.model.objects import Node, Task
from overlace.model.states import NodeState
from overlace.network.base import TaskNetwork
from overlace.network.endpoints import LocalTask
from overlace.network.hns.documents import Guid, HostComputeEndpoint
from overlace.network.hns.plan import plan_hns
from overlace.network.hns.service import HnsService
from overlace.network.hns.state import State
from overlace.network.overlay import OverlayPlanner
from overlace.network.overlay_documents import guid_of
from overlace.store.base import View


class Host(msgspec.Struct, frozen=True):
    """One node as its network is programmed."""

    node: Node
    view: NetView
    state: State
    refused: tuple[str, ...]  # documents HNS does not take, in its words
    tasks: dict[Guid, Task]  # by endpoint

    @property
    def name(self) -> str:
        d = self.node.description
        return d.hostname if d is not None and d.hostname else self.node.id

    @property
    def address(self) -> str:
        return self.node.description.underlay_address if self.node.description is not None else ""

    @property
    def up(self) -> bool:
        return self.node.status.state == NodeState.READY

    def endpoint(self, guid: Guid) -> HostComputeEndpoint | None:
        return self.state.get(guid, HostComputeEndpoint)


def task_network(task: Task) -> TaskNetwork:
    """The task's wish as its agent states it."""
    return TaskNetwork.of(task, task.status.port_status or task.ports)


def plan_host(view: View, node: Node) -> Host:
    """The documents `node` has when it has done what it was told."""
    description = node.description
    windows = description is not None and description.os == "windows"
    address = description.underlay_address if description is not None else ""
    net_view = NetView(plan_view(view, node.id))
    direct = description is None or CLIENT_ADDRESS not in description.lacks
    planner = OverlayPlanner(node.id, address, windows=windows, direct=direct)
    found = as_containers(t for t in view.tasks_of_node(node.id) if takes_part(t))
    tasks = {
        # which address a task without networks has is the host's own business: any will do here
        t.id: LocalTask(task=task_network(t), local_address=f"172.17.{i // 250}.{i % 250 + 2}/16")
        for i, t in enumerate(found)
    }
    planner.refresh(net_view, None, tasks, tasks)
    hns = HnsService(strict_windows=windows)
    refused = hns.apply(plan_hns({}, planner.documents))
    by_endpoint = {
        guid_of("endpoint", network_id, t.id): t for t in found for network_id, _ in tasks[t.id].placements
    }
    return Host(node, net_view, hns.state, tuple(str(e) for _, e in refused), by_endpoint)


class Hosts:
    """Hosts made when they are first asked for."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._made: dict[str, Host] = {}
        self._nodes = sorted(
            (n for n in view.all(Node) if not n.removed and n.description is not None),
            key=lambda n: (n.description.hostname if n.description else "", n.id),
        )

    @property
    def view(self) -> View:
        return self._view

    @property
    def nodes(self) -> list[Node]:
        """Nodes that have described themselves, by name."""
        return self._nodes

    def get(self, node_id: str) -> Host | None:
        if node_id not in self._made:
            node = self._view.get(Node, node_id)
            if node is None or node.removed or node.description is None:
                return None
            self._made[node_id] = plan_host(self._view, node)
        return self._made[node_id]

    def at(self, address: str) -> Host | None:
        """The host with that underlay address."""
        for node in self._nodes:
            if node.description is not None and node.description.underlay_address == address:
                return self.get(node.id)
        return None
