"""Networks, secrets, configs, nodes, the swarm: what is refused and what is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from control_kit import Kit, ports, spec, words

from overlace.manager.control import Control
from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfSequence,
    OverlaceError,
)
from overlace.model.objects import (
    Cluster,
    Config,
    Network,
    NetworkAttachment,
    Node,
    Secret,
    Subnet,
    Task,
    TaskStatus,
)
from overlace.model.specs import (
    MTU_OPTION,
    ConfigSpec,
    NetworkSpec,
    NodeSpec,
    SecretSpec,
    SwarmSpec,
    TaskSpec,
)
from overlace.model.specs import VNI_OPTION as VXLAN
from overlace.model.states import NodeState, TaskState
from overlace.security.ca import CertificateAuthority
from overlace.store.base import Put

RPC = "rpc error: code = "


def network(**members: Any) -> NetworkSpec:
    return msgspec.convert({"Name": "net", **members}, NetworkSpec)


def six(**config: Any) -> dict[str, Any]:
    return {"EnableIPv6": True, "IPAM": ipam(**config)}


def ipam(**config: Any) -> dict[str, Any]:
    return {"Config": [config]}


# -- networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members,status,text",
    [
        ({"Name": "a b"}, 400, RPC + "InvalidArgument desc = name must be valid as a DNS name component"),
        ({"Driver": "macvlan"}, 501, "network driver macvlan is not supported yet"),
        (
            {"Ingress": True, "Attachable": True},
            400,
            RPC + "InvalidArgument desc = ingress network cannot be attachable",
        ),
        ({"Options": {"encrypted": ""}}, 501, "would cross the underlay in clear"),
        ({"Options": {MTU_OPTION: "575"}}, 400, "'575' is not an MTU; give a number between 576 and 65485"),
        ({"Options": {MTU_OPTION: "jumbo"}}, 400, "'jumbo' is not an MTU"),
        ({"Options": {"overlace.multicast": "yes"}}, 400, "'yes': write true or false"),
        ({"Options": {"overlace.host-access": "1"}}, 400, "'1': write true or false"),
        (
            {"Options": {"overlace.multicast": "true", "overlace.multicast.rate": "0"}},
            400,
            "packets per second, from 1 to 1000000",
        ),
        ({"Options": {"overlace.multicast.rate": "5"}}, 400, "needs overlace.multicast=true"),
        ({"Options": {"foo": "1"}}, 400, "unknown option foo"),
        ({"Options": {VXLAN: "256"}}, 400, "VNI 256 cannot be used: Windows hosts need 4096 or more"),
        ({"Options": {VXLAN: "abc"}}, 400, "'abc' is not a VNI"),
        ({"IPAM": {"Driver": "dhcp"}}, 501, "IPAM driver dhcp"),
        ({"IPAM": ipam(Subnet="10.9.0.0")}, 400, "invalid subnet 10.9.0.0"),
        ({"IPAM": ipam(Subnet="10.9.0.5/24")}, 400, "invalid subnet 10.9.0.5/24: it should be 10.9.0.0/24"),
        ({"IPAM": ipam(Subnet="10.9.0.0/31")}, 400, "prefix length"),
        ({"IPAM": ipam(Subnet="224.0.0.0/24")}, 400, "use a private range"),
        ({"IPAM": ipam(Subnet="fd00::/64")}, 400, "the network has no IPv6; create it with --ipv6"),
        (six(Subnet="fd00::5/64"), 400, "invalid subnet fd00::5/64: it should be fd00::/64"),
        (six(Subnet="fd00::"), 400, "a prefix length is missing"),
        (six(Subnet="fd00::/127"), 400, "its prefix length must be between 16 and 125"),
        (six(Subnet="fd00::/8"), 400, "its prefix length must be between 16 and 125"),
        (six(Subnet="fe80::/64"), 400, "use a private range"),
        (six(Subnet="ff02::/64"), 400, "use a private range"),
        (six(Subnet="::ffff:a00:0/120"), 400, "use a private range"),
        (six(Subnet="fd00::/64", Gateway="fd01::1"), 400, "does not contain gateway fd01::1"),
        (six(Subnet="fd00::/64", Gateway="10.0.0.1"), 400, "does not contain gateway 10.0.0.1"),
        (six(Subnet="fd00::/64", Gateway="fd00::"), 400, "first or last address"),
        (six(Subnet="fd00::/64", IPRange="10.8.0.0/25"), 400, "does not contain range 10.8.0.0/25"),
        (six(Subnet="fd00::/64", IPRange="fd00::/48"), 400, "does not contain range fd00::/48"),
        (six(Subnet="10.9.0.0/24", Gateway="fd00::1"), 400, "does not contain gateway fd00::1"),
        (
            {"EnableIPv6": True, "IPAM": {"Config": [{"Subnet": "fd00::/64"}, {"Subnet": "fd00::/80"}]}},
            400,
            "subnets fd00::/64 and fd00::/80 of the network overlap",
        ),
        ({"IPAM": ipam(Subnet="10.9.0.0/24", Gateway="10.8.0.1")}, 400, "does not contain gateway 10.8.0.1"),
        ({"IPAM": ipam(Subnet="10.9.0.0/24", Gateway="x")}, 400, "invalid gateway x"),
        ({"IPAM": ipam(Subnet="10.9.0.0/24", Gateway="10.9.0.255")}, 400, "first or last address"),
        (
            {"IPAM": ipam(Subnet="10.9.0.0/24", IPRange="10.8.0.0/25")},
            400,
            "does not contain range 10.8.0.0/25",
        ),
        ({"IPAM": ipam(Gateway="10.9.0.1")}, 400, "needs a subnet"),
        (
            {"IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}, {"Subnet": "10.9.0.128/25"}]}},
            400,
            "subnets 10.9.0.0/24 and 10.9.0.128/25 of the network overlap",
        ),
        ({"IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}, {}]}}, 400, "each must be given"),
    ],
)
async def test_bad_network(members: dict[str, Any], status: int, text: str) -> None:
    kit = Kit()
    with pytest.raises(OverlaceError) as caught:
        await kit.control.create_network(network(**members))
    assert caught.value.status == status
    assert text in words(caught.value)
    assert list(kit.store.view().all(Network)) == []


async def test_a_networks_policy_changes_and_nothing_else_of_it() -> None:
    kit = Kit()
    await kit.control.create_network(network(Labels={"mine": "1", "overlace.policy.allow-to": "internet"}))
    await kit.control.set_network_policy("net", {"overlace.policy.allow-from": "none"})
    (found,) = kit.store.view().all(Network)
    assert found.spec.labels == {"mine": "1", "overlace.policy.allow-from": "none"}
    for labels, text in (
        ({"mine": "2"}, "label mine is no policy"),
        ({"overlace.policy.allow-from": "db:tpc"}, "'tpc' is no protocol"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await kit.control.set_network_policy("net", labels)
        assert text in words(caught.value)
    version = found.version
    await kit.control.set_network_policy("net", {"overlace.policy.allow-from": "none"})
    assert next(iter(kit.store.view().all(Network))).version == version, "what changes nothing writes nothing"


async def test_an_option_that_does_nothing_on_some_hosts_is_told() -> None:
    kit = Kit()
    asked = {"Options": {"overlace.host-access": "true"}}
    await kit.node("n1")
    assert (await kit.control.create_network(network(**asked)))[1] == ""
    node = await kit.node("n2", hostname="win-1")
    assert node.description is not None
    windows = msgspec.structs.replace(node.description, os="windows")
    await kit.store.commit([Put(msgspec.structs.replace(node, description=windows))])
    _, warning = await kit.control.create_network(network(Name="two", **asked))
    assert warning == "option overlace.host-access does nothing on Windows hosts: win-1"
    assert (await kit.control.create_network(network(Name="three")))[1] == ""


async def test_a_taken_network_name() -> None:
    kit = Kit()
    await kit.control.create_network(network())
    with pytest.raises(Conflict) as caught:
        await kit.control.create_network(network())
    assert words(caught.value) == "network with name net already exists"


async def test_overlapping_subnets_are_refused_with_both_names() -> None:
    kit = Kit()
    await kit.control.create_network(network(IPAM=ipam(Subnet="10.77.0.0/16")))
    with pytest.raises(Conflict) as caught:
        await kit.control.create_network(network(Name="two", IPAM=ipam(Subnet="10.77.5.0/24")))
    assert words(caught.value) == (
        "Pool overlaps with other one on this address space: subnet 10.77.5.0/24 of network two"
        " overlaps subnet 10.77.0.0/16 of network net"
    )
    allocated = Network(
        id="x", spec=NetworkSpec(name="auto"), subnets=(Subnet("10.0.3.0/24", "10.0.3.1"),), vni=4099
    )
    await kit.store.commit([Put(allocated)])
    with pytest.raises(Conflict, match="of network auto"):
        await kit.control.create_network(network(Name="three", IPAM=ipam(Subnet="10.0.0.0/16")))
    with pytest.raises(Conflict, match="VNI 4099 is network auto's"):
        await kit.control.create_network(network(Name="three", Options={VXLAN: "4099"}))
    await kit.control.create_network(
        network(Name="three", IPAM=ipam(Subnet="10.78.0.0/24"), Options={VXLAN: "5000"})
    )


@pytest.mark.parametrize("mtu", ["576", "1400", "65485"])
async def test_an_mtu_a_network_asks_for_is_kept(mtu: str) -> None:
    kit = Kit()
    id, _ = await kit.control.create_network(network(Options={MTU_OPTION: mtu}))
    assert Control.find(kit.store.view(), Network, id).spec.options == {MTU_OPTION: mtu}


async def test_one_ingress_network() -> None:
    kit = Kit()
    await kit.ingress()
    with pytest.raises(Conflict) as caught:
        await kit.control.create_network(network(Ingress=True))
    assert words(caught.value) == RPC + "AlreadyExists desc = ingress network (ingress) is already present"
    id, _ = await kit.control.create_service(
        spec(EndpointSpec=ports({"TargetPort": 80, "PublishedPort": 80}))
    )
    with pytest.raises(FailedPrecondition) as caught2:
        await kit.control.remove_network("ingress")
    assert words(caught2.value) == (
        RPC
        + f"FailedPrecondition desc = ingress network cannot be removed because service {id} depends on it"
    )
    await kit.control.remove_service(id)
    await kit.control.remove_network("ingress")


async def test_a_network_in_use() -> None:
    kit = Kit()
    id, _ = await kit.control.create_network(network())
    service, _ = await kit.control.create_service(spec(template={"Networks": [{"Target": "net"}]}))
    with pytest.raises(FailedPrecondition) as caught:
        await kit.control.remove_network("net")
    assert (
        words(caught.value) == RPC + f"FailedPrecondition desc = network {id} is in use by service {service}"
    )
    leaving = Task(
        id="t",
        service_id=service,
        spec=TaskSpec(),
        status=TaskStatus(state=TaskState.RUNNING),
        networks=(NetworkAttachment(network_id=id, addresses=()),),
    )
    await kit.store.commit([Put(leaving)])
    await kit.control.remove_service(service)
    await kit.control.remove_network("net")  # as stack rm does, while its tasks are still stopping
    with pytest.raises(NotFound, match=r"^network net not found$"):
        await kit.control.remove_network("net")


# -- secrets and configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made,text",
    [
        (
            SecretSpec(name="-x", data=b"x"),
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start",
        ),
        (SecretSpec(name="x" * 65, data=b"x"), "invalid name, only 64"),
        (SecretSpec(name="x\n", data=b"x"), "invalid name, only 64"),
        (SecretSpec(name="x"), "secret data must be larger than 0 and less than 512000 bytes"),
        (
            SecretSpec(name="x", data=b"x" * 512000),
            "secret data must be larger than 0 and less than 512000 bytes",
        ),
        (
            ConfigSpec(name="x", data=b"x" * 1024000),
            "config data must be larger than 0 and less than 1024000 bytes",
        ),
    ],
)
async def test_bad_secret_or_config(made: SecretSpec | ConfigSpec, text: str) -> None:
    kit = Kit()
    with pytest.raises(InvalidArgument) as caught:
        if isinstance(made, SecretSpec):
            await kit.control.create_secret(made)
        else:
            await kit.control.create_config(made)
    assert words(caught.value).startswith(RPC + "InvalidArgument desc = " + text)


async def test_secret_life() -> None:
    kit = Kit()
    id = await kit.control.create_secret(SecretSpec(name="s1", data=b"x"))
    with pytest.raises(Conflict) as caught:
        await kit.control.create_secret(SecretSpec(name="s1", data=b"y"))
    assert words(caught.value) == RPC + "AlreadyExists desc = secret s1 already exists"
    version = kit.control.find(kit.store.view(), Secret, "s1").version
    with pytest.raises(InvalidArgument) as caught2:
        await kit.control.update_secret(id, version, SecretSpec(name="s1", data=b"other"))
    assert words(caught2.value) == RPC + "InvalidArgument desc = only updates to Labels are allowed"
    await kit.control.update_secret(id, version, SecretSpec(name="s1", labels={"a": "b"}))
    changed = kit.control.find(kit.store.view(), Secret, id)
    assert (changed.spec.labels, changed.spec.data) == ({"a": "b"}, b"x")
    with pytest.raises(OutOfSequence):
        await kit.control.update_secret(id, version, SecretSpec(name="s1"))
    file = {"Name": "s1", "UID": "0", "GID": "0", "Mode": 292}
    used = {"container": {"Secrets": [{"SecretID": id, "SecretName": "s1", "File": file}]}}
    await kit.control.create_service(spec(Name="usesec", **used))
    with pytest.raises(InvalidArgument) as caught3:
        await kit.control.remove_secret("s1")
    assert words(caught3.value) == (
        RPC + "InvalidArgument desc = secret 's1' is in use by the following service: usesec"
    )
    await kit.control.remove_service("usesec")
    await kit.control.remove_secret("s1")


async def test_config_life() -> None:
    kit = Kit()
    id = await kit.control.create_config(ConfigSpec(name="c1", data=b"x"))
    file = {"Name": "/c1", "UID": "0", "GID": "0", "Mode": 292}
    used: dict[str, Any] = {"container": {"Configs": [{"ConfigID": id, "ConfigName": "c1", "File": file}]}}
    await kit.control.create_service(spec(Name="b", **used))
    await kit.control.create_service(spec(Name="a", **used))
    with pytest.raises(InvalidArgument, match="config 'c1' is in use by the following services: a, b"):
        await kit.control.remove_config(id)
    version = kit.control.find(kit.store.view(), Config, id).version
    await kit.control.update_config(id, version, ConfigSpec(labels={"x": ""}))
    assert kit.control.find(kit.store.view(), Config, id).spec.labels == {"x": ""}


# -- nodes ---------------------------------------------------------------------------------------------------


async def test_node_update() -> None:
    kit = Kit()
    node = await kit.node("n1", role="manager")
    with pytest.raises(InvalidArgument, match=r'^invalid Availability: "foo"$'):
        await kit.control.update_node("n1", node.version, NodeSpec(role="manager", availability="foo"))
    with pytest.raises(FailedPrecondition) as caught:
        await kit.control.update_node("n1", node.version, NodeSpec(role="worker"))
    assert words(caught.value) == (
        RPC + "FailedPrecondition desc = attempting to demote the last manager of the swarm"
    )
    await kit.control.update_node(
        "n1", node.version, NodeSpec(role="manager", availability="drain", labels={"a": "b"})
    )
    with pytest.raises(OutOfSequence):
        await kit.control.update_node("n1", node.version, NodeSpec(role="manager"))
    assert kit.control.find(kit.store.view(), Node, "n1").spec.availability == "drain"


async def test_node_removal_orphans_its_tasks_at_once() -> None:
    kit = Kit()
    await kit.node("m", role="manager")
    await kit.node("w")
    running = Task(
        id="t1", service_id="s", node_id="w", spec=TaskSpec(), status=TaskStatus(state=TaskState.RUNNING)
    )
    failed = Task(
        id="t2", service_id="s", node_id="w", spec=TaskSpec(), status=TaskStatus(state=TaskState.FAILED)
    )
    await kit.store.commit([Put(running), Put(failed)])
    with pytest.raises(
        FailedPrecondition, match="node m is a cluster manager and is a member of the raft cluster"
    ):
        await kit.control.remove_node("m", force=True)
    with pytest.raises(FailedPrecondition, match="node w is not down and can't be removed"):
        await kit.control.remove_node("w")
    await kit.control.remove_node("w", force=True)
    view = kit.store.view()
    with pytest.raises(NotFound, match=r"^node w not found$"):
        kit.control.find(view, Node, "w")
    assert [n.id for n in kit.control.list_nodes(view, {})] == ["m"]
    states = {t.id: t.status.state for t in view.tasks_of_node("w")}
    assert states == {"t1": TaskState.ORPHANED, "t2": TaskState.FAILED}
    tombstone = view.get(Node, "w")
    assert tombstone is not None and tombstone.removed, "its certificate must go on being refused"


async def test_a_down_node_needs_no_force() -> None:
    kit = Kit()
    await kit.node("w", state=NodeState.DOWN)
    await kit.control.remove_node("w")


# -- the swarm -----------------------------------------------------------------------------------------------


async def test_swarm_update_and_tokens() -> None:
    kit = Kit()
    pem = CertificateAuthority.create(1_700_000_000_000_000_000).cert_pem
    old = Cluster(id="c", ca_cert_pem=pem, worker_token="SWMTKN-1-x-y", manager_token="SWMTKN-1-x-z")
    await kit.store.commit([Put(old)])

    def cluster() -> Cluster:
        found = kit.store.view().get(Cluster, "c")
        assert found is not None
        return found

    short = msgspec.convert({"CAConfig": {"NodeCertExpiry": 60}}, SwarmSpec)
    with pytest.raises(InvalidArgument) as caught:
        await kit.control.update_swarm(1, short, False, False)
    assert words(caught.value) == RPC + "InvalidArgument desc = minimum certificate expiry time is: 1h0m0s"
    for refused in (
        {"EncryptionConfig": {"AutoLockManagers": True}},
        {"CAConfig": {"ExternalCAs": [{"URL": "x"}]}},
        {"CAConfig": {"ForceRotate": 1}},
        {"TaskDefaults": {"LogDriver": {"Name": "syslog"}}},
    ):
        with pytest.raises(OverlaceError, match="is not supported yet"):
            await kit.control.update_swarm(1, msgspec.convert(refused, SwarmSpec), False, False)
    with pytest.raises(OutOfSequence):
        await kit.control.update_swarm(9, SwarmSpec(), True, True)
    changed = msgspec.convert({"Orchestration": {"TaskHistoryRetentionLimit": 6}}, SwarmSpec)
    await kit.control.update_swarm(1, changed, True, False)
    now = cluster()
    assert now.spec.orchestration.task_history_retention_limit == 6
    assert now.worker_token.startswith("SWMTKN-1-") and now.worker_token != old.worker_token
    assert now.manager_token == old.manager_token


async def test_a_windows_host_is_not_promoted() -> None:
    kit = Kit()
    kit.control._check_promotion = lambda: None
    node = await kit.node("n1", hostname="windows-1")
    assert node.description is not None
    windows = msgspec.structs.replace(node.description, os="windows", can_manage=False)
    await kit.store.commit([Put(msgspec.structs.replace(node, description=windows))])
    node = kit.store.view().get(Node, "n1")
    assert node is not None
    with pytest.raises(FailedPrecondition, match="node windows-1 is a Windows host and can only be a worker"):
        await kit.control.update_node("n1", node.version, NodeSpec(role="manager"))
    assert kit.store.view().get(Node, "n1") == node
