"""A control over a memory store, with the pieces its tests write again and again."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from overlace.manager.control import Control
from overlace.model.errors import OverlaceError, rpc_text
from overlace.model.objects import Network, Node, NodeDescription, NodeStatus, Service, Subnet
from overlace.model.specs import NetworkSpec, NodeSpec, ServiceSpec
from overlace.model.states import NodeState
from overlace.runtime.base import Platform, RegistryAuth
from overlace.store.base import Put
from overlace.store.memory import MemoryStore


def spec(**members: Any) -> ServiceSpec:
    """A service as a client's JSON would make it; `container` adds to the ContainerSpec, `template` to the template."""
    container = {"Image": "web:1", **members.pop("container", {})}
    template = {"ContainerSpec": container, **members.pop("template", {})}
    return msgspec.convert({"Name": "web", "TaskTemplate": template, **members}, ServiceSpec)


def ports(*ports: dict[str, Any], mode: str = "vip") -> dict[str, Any]:
    return {"Mode": mode, "Ports": list(ports)}


class FakeFacts(msgspec.Struct, frozen=True):
    digest: str = "sha256:" + "d" * 64
    platforms: tuple[Platform, ...] = (Platform("linux", "amd64"),)


class FakeResolver:
    """Answers from a table; anything else raises what it is given."""

    def __init__(self, answers: dict[str, Any] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[tuple[str, RegistryAuth | None]] = []

    async def inspect(self, reference: str, auth: RegistryAuth | None = None) -> FakeFacts:
        self.asked.append((reference, auth))
        answer = self.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, FakeFacts)
        return answer


class Kit:
    def __init__(self, resolver: FakeResolver | None = None) -> None:
        self.store = MemoryStore()
        self.ids = (f"id{n}" for n in itertools.count(1))
        self.control = Control(self.store, new_id=lambda: next(self.ids), clock=lambda: 77, resolver=resolver)

    async def ingress(self) -> None:
        network = Network(
            id="ingress",
            spec=NetworkSpec(name="ingress", ingress=True),
            vni=4096,
            subnets=(Subnet("10.0.0.0/24", "10.0.0.1"),),
        )
        await self.store.commit([Put(network)])

    async def node(self, id: str, **members: Any) -> Node:
        about = NodeDescription(hostname=members.pop("hostname", id), os="linux", architecture="x86_64")
        status = NodeStatus(state=members.pop("state", NodeState.READY))
        made = Node(id=id, description=about, status=status, spec=NodeSpec(**members))
        await self.store.commit([Put(made)])
        found = self.store.view().get(Node, id)
        assert found is not None
        return found

    def service(self, ref: str = "web") -> Service:
        return Control.find(self.store.view(), Service, ref)


def words(error: OverlaceError) -> str:
    """What a client reads."""
    return rpc_text(error) if error.swarm else error.message
