"""Services over their life: defaults, versions, updates, rollback, ports, images."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from control_kit import FakeFacts, FakeResolver, Kit, ports, spec, words

from overlace.manager.loop import ManagerLoop
from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfSequence,
    Unavailable,
    Unimplemented,
)
from overlace.model.objects import Cluster, Endpoint, Node, Service
from overlace.model.specs import NetworkSpec, NodeSpec, Platform, PortConfig, ServiceSpec
from overlace.runtime import base as runtime
from overlace.store.base import Put

DIGEST = "sha256:" + "d" * 64


def replicas(service: Service) -> int | None:
    return service.spec.mode.replicated.replicas if service.spec.mode.replicated else None


def scaled(given: ServiceSpec, count: int) -> ServiceSpec:
    return msgspec.convert(
        {**msgspec.to_builtins(given), "Mode": {"Replicated": {"Replicas": count}}}, ServiceSpec
    )


async def test_defaults() -> None:
    kit = Kit()
    id, warnings = await kit.control.create_service(spec())
    assert (replicas(kit.service(id)), warnings) == (1, [])
    id, _ = await kit.control.create_service(spec(Name=""))
    adjective, _, surname = kit.service(id).spec.name.partition("_")
    assert adjective and surname


async def test_a_service_that_needs_nothing_allocated_keeps_its_version() -> None:
    """docker-py scales what it has just created without looking again."""
    kit = Kit()
    plain, _ = await kit.control.create_service(spec())
    held = {"Ports": [{"TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]}
    host, _ = await kit.control.create_service(spec(Name="host", EndpointSpec=held))
    before = {id: kit.service(id).version for id in (plain, host)}
    loop = ManagerLoop(kit.store)
    for _ in range(50):
        if not await loop.step():
            break
    assert kit.store.view().tasks_of_service(plain), "the manager has looked at it"
    assert {id: kit.service(id).version for id in (plain, host)} == before
    endpoint = kit.service(host).endpoint
    assert endpoint is not None and endpoint.ports[0].published_port == 8080


async def test_a_taken_name() -> None:
    kit = Kit()
    await kit.control.create_service(spec())
    with pytest.raises(Conflict) as caught:
        await kit.control.create_service(spec())
    assert words(caught.value) == (
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists"
    )


async def test_the_same_name_twice_at_once_makes_one() -> None:
    kit = Kit()
    results = await asyncio.gather(
        *(kit.control.create_service(spec()) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(r, tuple) for r in results) == 1
    assert len(list(kit.store.view().all(Service))) == 1


async def test_a_published_port_in_use() -> None:
    kit = Kit()
    with pytest.raises(FailedPrecondition, match="no ingress network is present"):
        await kit.control.create_service(spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 8081})))
    await kit.ingress()
    first, _ = await kit.control.create_service(
        spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 8081}))
    )
    with pytest.raises(InvalidArgument) as caught:
        await kit.control.create_service(
            spec(Name="two", EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 8081}))
        )
    assert words(caught.value) == (
        f"rpc error: code = InvalidArgument desc = port '8081' is already in use by service 'web' ({first})"
        " as an ingress port"
    )
    udp = ports({"TargetPort": 80, "PublishedPort": 8081, "Protocol": "udp"})
    await kit.control.create_service(spec(Name="udp", EndpointSpec=udp))


async def test_the_swarms_own_ports_are_no_services() -> None:
    kit = Kit()
    await kit.ingress()
    await kit.store.commit([Put(Cluster(id="c", data_path_port=5789))])
    for port, words_ in (
        (
            {"TargetPort": 80, "PublishedPort": 2377},
            "PublishedPort 2377/tcp: managers are reached at this port; use another",
        ),
        ({"TargetPort": 80, "PublishedPort": 2377, "PublishMode": "host"}, "PublishedPort 2377/tcp"),
        ({"TargetPort": 80, "PublishedPort": 5789, "Protocol": "udp"}, "5789/udp: the tunnels"),
    ):
        with pytest.raises(InvalidArgument, match=words_):
            await kit.control.create_service(spec(EndpointSpec=ports(port)))
    for fine in (
        {"PublishedPort": 4789, "Protocol": "udp"},
        {"PublishedPort": 2377, "Protocol": "udp"},
        {"PublishedPort": 2380},
    ):
        await kit.control.create_service(
            spec(Name=f"s{fine['PublishedPort']}", EndpointSpec=ports({"TargetPort": 80, **fine}))
        )


async def test_where_managers_keep_their_state_is_no_services_once_a_second_one_is_on_its_way() -> None:
    kit = Kit()
    await kit.ingress()
    kit.control._check_promotion = lambda: None
    for id in ("n1", "n2"):
        await kit.node(id)
    etcd = spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 2380}))
    service, _ = await kit.control.create_service(etcd)

    async def promote(id: str) -> None:
        node = kit.store.view().get(Node, id)
        assert node is not None
        await kit.control.update_node(id, node.version, NodeSpec(role="manager"))

    with pytest.raises(FailedPrecondition, match=r"2380/tcp.*by service web: .*--publish-rm 80 web"):
        await promote("n1")
    await kit.control.remove_service(service)
    await promote("n1")
    await promote("n2")
    with pytest.raises(InvalidArgument, match="2380/tcp: managers keep their state together"):
        await kit.control.create_service(etcd)


async def test_a_service_may_keep_a_port_of_the_swarms() -> None:
    """One from before this was refused is not in the way of its own update."""
    kit = Kit()
    await kit.ingress()
    id, _ = await kit.control.create_service(
        spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 5789, "Protocol": "udp"}))
    )
    await kit.store.commit([Put(Cluster(id="c", data_path_port=5789))])
    same = spec(
        Labels={"a": "b"}, EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 5789, "Protocol": "udp"})
    )
    await kit.control.update_service(id, kit.service(id).version, same)


async def test_a_port_of_one_address_is_no_services() -> None:
    kit = Kit()
    await kit.ingress()
    with pytest.raises(InvalidArgument, match=r"HostIP 127\.0\.0\.1"):
        await kit.control.create_service(
            spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 81, "HostIP": "127.0.0.1"}))
        )


async def test_host_ports_may_repeat_but_not_against_ingress() -> None:
    kit = Kit()
    await kit.ingress()
    host = ports({"TargetPort": 80, "PublishedPort": 80, "PublishMode": "host"})
    await kit.control.create_service(spec(Name="a", EndpointSpec=host))
    await kit.control.create_service(spec(Name="b", EndpointSpec=host))
    with pytest.raises(InvalidArgument, match="as a host-published port"):
        await kit.control.create_service(
            spec(Name="c", EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 80}))
        )


async def test_a_port_the_allocator_gave_out_is_in_use_too() -> None:
    kit = Kit()
    await kit.ingress()
    id, _ = await kit.control.create_service(spec(EndpointSpec=ports({"TargetPort": 80})))
    given = Endpoint(ports=(PortConfig(target_port=80, published_port=30000),))
    await kit.store.commit([Put(msgspec.structs.replace(kit.service(id), endpoint=given))])
    with pytest.raises(InvalidArgument, match="'30000' is already in use"):
        await kit.control.create_service(
            spec(Name="two", EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 30000}))
        )


async def test_update_needs_the_version_it_saw() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    seen = kit.service(id)
    await kit.control.update_service(id, seen.version, scaled(seen.spec, 3))
    with pytest.raises(OutOfSequence) as caught:
        await kit.control.update_service(id, seen.version, scaled(seen.spec, 4))
    assert words(caught.value) == "rpc error: code = Unknown desc = update out of sequence"
    assert caught.value.status == 500
    assert replicas(kit.service(id)) == 3


async def test_scaling_keeps_tasks_and_a_new_template_does_not() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    first = kit.service(id)
    await kit.control.update_service(id, first.version, scaled(first.spec, 3))
    second = kit.service(id)
    assert second.spec_version == first.spec_version
    assert second.previous_spec == first.spec
    await kit.control.update_service(id, second.version, spec(container={"Env": ["A=1"]}))
    third = kit.service(id)
    assert third.spec_version > second.spec_version
    assert third.previous_spec == second.spec


async def test_saying_nothing_in_another_way_changes_no_task() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    first = kit.service(id)
    empty = spec(
        EndpointSpec={"Mode": "vip", "Ports": []},
        template={"Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "Runtime": "container"},
        container={"Privileges": {}, "DNSConfig": {}},
    )
    await kit.control.update_service(id, first.version, empty)
    second = kit.service(id)
    assert second.spec_version == first.spec_version
    assert second.spec.task_template == first.spec.task_template
    stopping = spec(container={"StopGracePeriod": 0})
    await kit.control.update_service(id, second.version, stopping)
    assert kit.service(id).spec_version > first.spec_version, "0 is not nothing"


async def test_rollback_swaps() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    first = kit.service(id)
    with pytest.raises(FailedPrecondition) as caught:
        await kit.control.update_service(id, first.version, first.spec, rollback="previous")
    assert words(caught.value) == (
        f"rpc error: code = FailedPrecondition desc = service {id} does not have a previous spec"
    )
    await kit.control.update_service(id, first.version, spec(container={"Env": ["A=1"]}))
    second = kit.service(id)
    await kit.control.update_service(id, second.version, second.spec, rollback="previous")
    third = kit.service(id)
    assert (third.spec, third.previous_spec) == (first.spec, second.spec)
    assert third.spec_version > second.spec_version
    assert third.update_status is not None
    assert (third.update_status.state, third.update_status.spec_version) == (
        "rollback_started",
        third.spec_version,
    )
    assert third.update_status.started_at == 77
    with pytest.raises(InvalidArgument, match="unrecognized rollback option foo"):
        await kit.control.update_service(id, third.version, third.spec, rollback="foo")


async def test_what_update_cannot_change() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    version = kit.service(id).version
    with pytest.raises(Unimplemented) as caught:
        await kit.control.update_service(id, version, spec(Name="other"))
    assert words(caught.value) == "rpc error: code = Unimplemented desc = renaming services is not supported"
    with pytest.raises(Unimplemented) as caught:
        await kit.control.update_service(id, version, spec(Mode={"Global": {}}))
    assert words(caught.value) == "rpc error: code = Unimplemented desc = service mode change is not allowed"


async def test_credentials_stay_unless_new_ones_come() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec(), registry_auth="e30=")
    await kit.control.update_service(id, kit.service(id).version, spec())
    assert kit.service(id).registry_auth == "e30="
    await kit.control.update_service(id, kit.service(id).version, spec(), registry_auth="e30")
    assert kit.service(id).registry_auth == "e30"


async def test_remove() -> None:
    kit = Kit()
    id, _ = await kit.control.create_service(spec())
    await kit.control.remove_service("web")
    with pytest.raises(NotFound, match=f"^service {id} not found$"):
        await kit.control.remove_service(id)


async def test_the_older_place_of_networks_counts() -> None:
    kit = Kit()
    net, _ = await kit.control.create_network(NetworkSpec(name="net"))
    id, _ = await kit.control.create_service(spec(Networks=[{"Target": "net"}]))
    stored = kit.service(id).spec
    assert ([n.target for n in stored.task_template.networks], stored.networks) == ([net], [])


# -- images --------------------------------------------------------------------------------------------------


def image(service: Service) -> str:
    assert service.spec.task_template.container_spec is not None
    return service.spec.task_template.container_spec.image


def platforms(service: Service) -> list[Platform]:
    placement = service.spec.task_template.placement
    return placement.platforms if placement else []


MIXED = FakeFacts(
    DIGEST,
    (
        runtime.Platform("linux", "amd64"),
        runtime.Platform("linux", "arm", variant="v7"),
        runtime.Platform("windows", "amd64", "10.0.17763.1"),
        runtime.Platform("windows", "amd64", "10.0.20348.2"),
    ),
)


async def test_the_image_is_pinned_and_its_platforms_kept() -> None:
    kit = Kit(FakeResolver({"reg:5000/web": MIXED}))
    id, warnings = await kit.control.create_service(spec(container={"Image": "reg:5000/web"}))
    service = kit.service(id)
    assert warnings == []
    assert image(service) == f"reg:5000/web:latest@{DIGEST}"
    assert platforms(service) == [
        Platform("amd64", "linux"),
        Platform("", "linux"),
        Platform("amd64", "windows", "10.0.17763.1"),
        Platform("amd64", "windows", "10.0.20348.2"),
    ]


async def test_what_the_cli_leaves_out_is_added() -> None:
    """The docker CLI pins the image itself and sends platforms without the Windows build."""
    pinned = f"web:1@{DIGEST}"
    kit = Kit(FakeResolver({pinned: MIXED}))
    sent = [{"OS": "windows", "Architecture": "amd64"}]
    id, _ = await kit.control.create_service(
        spec(container={"Image": pinned}, template={"Placement": {"Platforms": sent}})
    )
    assert image(kit.service(id)) == pinned
    assert [p.os_version for p in platforms(kit.service(id))] == ["10.0.17763.1", "10.0.20348.2"]


async def test_scaling_with_the_cli_neither_asks_nor_changes_the_task() -> None:
    """The CLI sends back what it inspected, without the Windows build it does not know."""
    pinned = f"web:1@{DIGEST}"
    resolver = FakeResolver({pinned: MIXED})
    kit = Kit(resolver)
    id, _ = await kit.control.create_service(spec(container={"Image": pinned}))
    first = kit.service(id)
    asked = len(resolver.asked)
    sent = msgspec.to_builtins(scaled(first.spec, 4))
    for platform in sent["TaskTemplate"]["Placement"]["Platforms"]:
        platform.pop("OSVersion", None)
    await kit.control.update_service(id, first.version, msgspec.convert(sent, ServiceSpec))
    second = kit.service(id)
    assert len(resolver.asked) == asked
    assert second.spec.task_template == first.spec.task_template
    assert second.spec_version == first.spec_version


async def test_a_silent_registry_is_a_warning() -> None:
    resolver = FakeResolver({"web:1": Unavailable("registry docker.io did not answer within 5 s")})
    kit = Kit(resolver)
    id, warnings = await kit.control.create_service(spec())
    [warning] = warnings
    assert warning.startswith(
        "image web:1 could not be accessed on a registry to record its digest. Each node will access web:1"
        " independently, possibly leading to different nodes running different versions of the image."
    )
    assert "did not answer within 5 s" in warning
    service = kit.service(id)
    assert (image(service), service.image_warning) == ("web:1", warning)
    assert await kit.control.update_service(id, service.version, scaled(service.spec, 2)) == []
    assert len(resolver.asked) == 1, "the same image is not asked for again"


async def test_a_new_image_is_resolved_on_update_with_the_services_credentials() -> None:
    auth = "eyJ1c2VybmFtZSI6ICJhIiwgInBhc3N3b3JkIjogImIifQ=="  # {"username": "a", "password": "b"}
    resolver = FakeResolver({"web:1": FakeFacts(), "web:2": MIXED})
    kit = Kit(resolver)
    id, _ = await kit.control.create_service(spec(), registry_auth=auth)
    await kit.control.update_service(id, kit.service(id).version, spec(container={"Image": "web:2"}))
    assert image(kit.service(id)) == f"web:2@{DIGEST}"
    assert resolver.asked[-1] == ("web:2", runtime.RegistryAuth("a", "b"))


async def test_a_service_removed_while_the_registry_is_asked() -> None:
    """The answer of a slow registry must not bring back, or overwrite, what changed meanwhile."""

    class Slow(FakeResolver):
        async def inspect(self, reference: str, auth: runtime.RegistryAuth | None = None) -> FakeFacts:
            if reference == "web:2":
                await kit.control.remove_service("web")
            return FakeFacts()

    kit = Kit(Slow())
    id, _ = await kit.control.create_service(spec())
    with pytest.raises(NotFound):
        await kit.control.update_service(id, kit.service(id).version, spec(container={"Image": "web:2"}))
    assert list(kit.store.view().all(Service)) == []


async def test_a_spec_read_and_sent_back_with_a_new_scale_changes_no_task() -> None:
    """What `docker service scale` does: Runtime comes back as `container`, the endpoint mode as `vip`."""
    from overlace.manager.control.service_spec import may_change_tasks, normalise
    from overlace.model.specs import ContainerSpec, EndpointSpec, ServiceSpec, TaskSpec

    sent = ServiceSpec(name="web", task_template=TaskSpec(container_spec=ContainerSpec(image="web:1")))
    back = msgspec.structs.replace(
        sent,
        task_template=msgspec.structs.replace(sent.task_template, runtime="container"),
        endpoint_spec=EndpointSpec(mode="vip"),
    )
    assert not may_change_tasks(normalise(sent), normalise(back))


def test_references_to_one_secret_in_another_order_change_no_task() -> None:
    """`docker stack deploy` sorts them by the secret's name alone, from a Go map."""
    from itertools import permutations

    from overlace.manager.control.service_spec import may_change_tasks, normalise
    from overlace.model.specs import ContainerSpec, FileTarget, SecretReference, ServiceSpec, TaskSpec

    def sent(secrets: Any) -> ServiceSpec:
        container = ContainerSpec(image="web:1", secrets=list(secrets))
        return normalise(ServiceSpec(name="web", task_template=TaskSpec(container_spec=container)))

    refs = [SecretReference("s1", "key", FileTarget(name)) for name in ("again", "key", "other")]
    kept = sent(refs).task_template.container_spec
    assert kept is not None and kept.secrets == refs
    assert not any(may_change_tasks(sent(refs), sent(order)) for order in permutations(refs))
    others = [SecretReference("s2", "b", FileTarget("x")), SecretReference("s1", "a", FileTarget("y"))]
    first = sent(others).task_template.container_spec
    assert first is not None and first.secrets == others  # those of different secrets stay as given


@pytest.mark.parametrize("network", ["host", "none", "bridge"])
async def test_a_hosts_own_network_needs_nothing_allocated(network: str) -> None:
    kit = Kit()
    await kit.ingress()
    id, _ = await kit.control.create_service(spec(template={"Networks": [{"Target": network}]}))
    stored = kit.service(id)
    assert [n.target for n in stored.spec.task_template.networks] == [network]
    assert stored.endpoint is not None and not stored.endpoint.virtual_ips
