"""Our plans against a Windows host's HNS, through the DLL: it comes to what is wanted, is mended after drift, and what
others made stays."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from overlace.model.errors import Unavailable
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeLoadBalancer, HostComputeNamespace
from overlace.network.hns.plan import Create, Delete, Replace, ReplacePolicies
from overlace.network.windows.host import WindowsHost
from overlace.network.windows.library import Hcn

from .served_hns import Hns
from .world import (
    HOST,
    ME,
    NETS,
    OTHER,
    PA,
    World,
    endpoint,
    node,
    port,
    service,
    task,
)


@pytest.fixture
def hns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hns]:
    made = Hns(monkeypatch)
    yield made
    made.close()


def wish() -> World:
    """Two networks, a task here and one elsewhere, a service with VIP and port."""
    world = World(
        node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"),
        node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
        *NETS[:2],
        endpoint("t1", "back", ME, "10.0.1.10"),
        endpoint("t2", "back", OTHER, "10.0.1.11"),
        endpoint("t2", "ingress", OTHER, "10.0.0.11"),
        service("web", "back", "10.0.1.100"),
        service("web", "ingress", "", port(80, 8080)),
        windows=True,
    )
    world.run(task("t1", ("back", "10.0.1.10/24")))
    return world


def converge(host: WindowsHost, world: World) -> list[object]:
    operations = host.plan(world.planner.documents)
    assert host.apply(operations) == []
    return list(operations)


def test_a_host_comes_to_what_is_wanted_and_then_nothing_is_left_to_do(hns: Hns) -> None:
    world, host = wish(), WindowsHost(hns.hcn)
    host.refresh()
    assert converge(host, world)
    assert {d.id for d in hns.service.documents.values()} == set(world.planner.documents)
    assert converge(host, world) == []
    again = WindowsHost(hns.hcn)  # the agent's next start
    again.refresh()
    assert converge(again, world) == []
    sandbox = next(d for d in hns.service.documents.values() if isinstance(d, HostComputeNamespace))
    assert len(sandbox.endpoints) == 1


def test_changes_are_modifications_not_new_objects(hns: Hns) -> None:
    world, host = wish(), WindowsHost(hns.hcn)
    converge(host, world)
    world.change(put=(endpoint("t3", "back", OTHER, "10.0.1.12"),))
    done = converge(host, world)
    assert {type(x) for x in done} == {Create, Replace}
    world.stop("t1")
    world.change(remove=("endpoint/back/t1",))
    done = converge(host, world)
    assert any(isinstance(x, Delete) and x.kind == "namespace" for x in done)
    assert {d.id for d in hns.service.documents.values()} == set(world.planner.documents)
    world.run(task("t4", ("back", "10.0.1.14/24")))
    converge(host, world)
    world.run(task("t4", ("back", "10.0.1.14/24"), ports=(port(80, 9090, "host"),)))
    assert any(isinstance(x, ReplacePolicies) for x in converge(host, world))
    assert converge(host, world) == []


def test_drift_is_mended_and_what_others_made_stays(hns: Hns) -> None:
    world, host = wish(), WindowsHost(hns.hcn)
    foreign = hns.hcn.create("Network", json.dumps({"Name": "nat", "Type": "NAT", "Owner": "docker"}))
    hns.hcn.close("Network", foreign)
    converge(host, world)
    lbs = [d.id for d in hns.service.documents.values() if isinstance(d, HostComputeLoadBalancer)]
    for guid in lbs:
        hns.hcn.delete("LoadBalancer", uuid.UUID(guid))
    victim = next(
        d for d in hns.service.documents.values() if isinstance(d, HostComputeEndpoint) and not d.remote
    )
    hns.hcn.delete("Endpoint", uuid.UUID(victim.id))
    host.refresh()
    assert converge(host, world)
    host.refresh()
    assert converge(host, world) == []
    assert set(world.planner.documents) < set(hns.service.documents)
    assert [d.name for d in hns.service.documents.values() if d.owner == "docker"] == ["nat"]


def test_what_is_refused_comes_back_and_the_rest_is_done(hns: Hns) -> None:
    world, host = wish(), WindowsHost(hns.hcn)
    taken = {"Name": "theirs", "Type": "Overlay", "Ipams": [{"Subnets": [
        {"IpAddressPrefix": "10.9.0.0/24", "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4097}}],
         "Routes": [{"NextHop": "10.9.0.1", "DestinationPrefix": "0.0.0.0/0"}]}]}]}  # fmt: skip
    hns.hcn.close("Network", hns.hcn.create("Network", json.dumps(taken)))
    refused = host.apply(host.plan(world.planner.documents))
    assert "VSID IsolationId 4097 is taken" in str(refused[0][1])
    kept = [d for d in hns.service.documents.values() if d.name == "ingress"]
    assert len(kept) == 1
    hns.hcn.delete("Network", next(g for g in hns.hcn.enumerate("Network") if str(g).upper() != kept[0].id))
    converge(host, world)  # what stood in the way is gone
    assert converge(host, world) == []


def test_an_older_hns_gets_its_load_balancers_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Hns(monkeypatch, (13, 2))
    try:
        world, host = wish(), WindowsHost(old.hcn)
        converge(host, world)
        world.change(put=(endpoint("t3", "back", OTHER, "10.0.1.12"),))
        converge(host, world)
        assert converge(host, world) == []
    finally:
        old.close()


class Late:
    """A library's end that fills the provider address in after some reads."""

    def __init__(self, after: int) -> None:
        self.after, self.reads = after, 0

    def open(self, kind: str, guid: uuid.UUID) -> int:
        return 1

    def close(self, kind: str, handle: int) -> None:
        pass

    opened = Hcn.opened

    def query(self, kind: str, handle: int, query: str = "") -> str:
        self.reads += 1
        policies = []
        if self.reads > self.after:
            policies = [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.0.2.7"}}]
        return json.dumps({"ID": str(uuid.UUID(int=5)), "Name": "n", "Type": "Overlay", "Policies": policies})


def test_the_provider_address_is_waited_for() -> None:
    pauses: list[int] = []
    guid = str(uuid.UUID(int=5))
    host = WindowsHost(Late(3), pause=lambda: pauses.append(1))  # type: ignore[arg-type]
    assert host.provider_address(guid) == "192.0.2.7"
    assert len(pauses) == 3
    with pytest.raises(Unavailable, match="no provider address"):
        WindowsHost(Late(99), pause=lambda: None).provider_address(guid)  # type: ignore[arg-type]
