"""The Windows driver against an HNS in this process: whatever happens in between, HNS comes to hold what is wanted, and
what others made stays."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from overlace.model.errors import Conflict, InvalidArgument, OverlaceError, Unavailable
from overlace.model.findings import Arm, Examine
from overlace.model.netview import Entry, NetView
from overlace.model.policy import Allowed
from overlace.network.base import TaskNetwork
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.state import State
from overlace.network.hns.versions import LATEST, HnsVersion
from overlace.network.overlay_documents import OWNER, guid_of
from overlace.network.windows.driver import WindowsDriver
from overlace.network.windows.host import WindowsHost, canonical, twin
from overlace.network.windows.library import NULL_GUID, Hcn

from .direct_hns import DirectHcn, Killed
from .world import ME, NETS, OTHER, PA, endpoint, node, port, service, task

HERE = "127.0.0.1"  # the resolver can be bound to it
VERSIONS: tuple[HnsVersion, ...] = (LATEST, (13, 2), (11, 0), (10, 1), (9, 2))


def free_port() -> int:
    """For UDP and TCP."""
    while True:
        with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind((HERE, 0))
            try:
                tcp.bind((HERE, udp.getsockname()[1]))
            except OSError:
                continue
            return int(udp.getsockname()[1])


class Host:
    """One host: its HNS, what it was told, and the driver of the moment."""

    def __init__(self, folder: Path, version: HnsVersion = LATEST) -> None:
        self.hcn = DirectHcn(HERE, version)
        self.folder = folder
        self.lives = itertools.count()
        self.state = folder / "0"
        self.view = NetView()
        self.tasks: dict[str, tuple[TaskNetwork, Path | None]] = {}
        self.hcn.on_cut = self.keep
        self.kept: Path | None = None
        theirs = {"Name": "nat", "Type": "NAT", "Owner": "docker", "Ipams": [{"Subnets": [
            {"IpAddressPrefix": "172.30.0.0/16", "Routes": [{"NextHop": "172.30.0.1", "DestinationPrefix": "0.0.0.0/0"}]}
        ]}]}  # fmt: skip
        self.hcn.create("Network", json.dumps(theirs))

    async def start(self) -> WindowsDriver:
        hcn: Hcn = self.hcn  # type: ignore[assignment]
        self.driver = WindowsDriver(
            hcn, self.state, HERE, dns_port=free_port(), upstreams=("192.0.2.53",), listening=set, patience=0
        )
        await self.driver.open(ME)
        return self.driver

    def keep(self) -> None:
        """What is on disk as the daemon is killed."""
        self.kept = self.folder / f"life{next(self.lives)}"
        if self.state.exists():
            shutil.copytree(self.state, self.kept)

    async def killed(self) -> None:
        """The daemon is started again."""
        assert self.kept is not None
        self.state, self.kept = self.kept, None
        self.hcn.mend()
        old = self.driver
        await old.close()
        await self.start()

    async def tell(self, *put: Entry, remove: tuple[str, ...] = ()) -> None:
        for key in remove:
            self.view.remove(key)
        for e in put:
            self.view.put(e)
        await self.driver.apply_view(self.view, {e.key for e in put} | set(remove))

    async def run(self, t: TaskNetwork, container: str = "") -> None:
        where = Path(container) if container else None
        self.tasks[t.task_id] = (t, where)
        await self.driver.attach(t, where)

    async def stop(self, task_id: str) -> None:
        self.tasks.pop(task_id, None)
        await self.driver.detach(task_id)

    async def settle(self) -> None:
        """As the agent does after a start, and as the driver does by itself in time."""
        await self.driver.apply_view(self.view, None)
        await self.driver.keep_only(set(self.tasks))
        for t, where in self.tasks.values():
            try:
                await self.driver.attach(t, where)
            except Unavailable:  # what somebody deleted is noticed, and made by the next try
                await self.driver.attach(t, where)
        await self.driver.reconcile()

    def ours(self) -> dict[str, Document]:
        return {g: d for g, d in self.hcn.service.documents.items() if d.owner == OWNER}

    async def check(self, folder: Path) -> None:
        """HNS holds what one that was wiped and filled at once holds, and the tasks are where they should be."""
        fresh = Host(folder, self.hcn.service.version)
        if self.state.exists():
            shutil.copytree(self.state, fresh.state)
        await fresh.start()
        fresh.view, fresh.tasks = self.view, self.tasks
        await fresh.settle()
        assert fresh.driver.describe()["refused"] == []
        told = WindowsHost(fresh.hcn)  # type: ignore[arg-type]
        told.refresh()
        mine = WindowsHost(self.hcn)  # type: ignore[arg-type]
        mine.refresh()
        # (the host's own network stays once a task needed it)
        local = guid_of("network", "bridge")
        assert [op for op in mine.plan(told.documents) if getattr(op, "id", "") != local] == []
        assert {canonical(g) for g in self.ours()} - {local} == {canonical(g) for g in fresh.ours()} - {local}
        assert self.containers() == fresh.containers()
        theirs = [d.name for d in self.hcn.service.documents.values() if d.owner == "docker"]
        assert theirs == ["nat"]
        await fresh.driver.close()

    def containers(self) -> dict[str, list[str]]:
        """Task -> the containers its endpoints are in."""
        out: dict[str, list[str]] = {}
        for task_id, (t, where) in self.tasks.items():
            for a in t.attachments:
                body = json.loads(
                    self.hcn.hns_call("GET", f"/endpoints/{guid_of('endpoint', a.network_id, task_id)}")
                )
                if where is not None:
                    out.setdefault(task_id, []).extend(body["Output"]["SharedContainers"])
        return out


@pytest.fixture
async def host(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Host(tmp_path)
    await made.start()
    yield made
    await made.driver.close()


ENTRIES: tuple[Entry, ...] = (
    node(ME, HERE, ingress="10.0.0.2", back="10.0.1.2"),
    node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
    *NETS,
)
WEB = service("web", "back", "10.0.1.100")
PUBLISHED = service("web", "ingress", "", port(80, 8080))
T1 = task("t1", ("back", "10.0.1.10/24"), ("ingress", "10.0.0.10/24"), ports=(port(80, 9090, "host"),))


def of(host: Host, kind: type[Document]) -> list[Document]:
    return [d for d in host.ours().values() if isinstance(d, kind)]


async def test_a_task_gets_its_endpoints_and_everything_goes_with_it(host: Host) -> None:
    await host.tell(*ENTRIES, WEB, PUBLISHED, endpoint("t1", "back", ME, "10.0.1.10"))
    prepared = await host.driver.prepare(T1)
    assert prepared.sandbox is None and of(host, HostComputeNamespace) == []
    attached = await host.driver.attach(T1, Path("c1"))
    assert attached.sandbox == Path("c1") and attached.host_ports[0].published_port == 9090
    assert attached.addresses == {"back": "10.0.1.10/24", "ingress": "10.0.0.10/24"}
    assert attached.gateways == {"back": "10.0.1.1", "ingress": "10.0.0.1"}
    assert attached.resolv_conf == f"nameserver {HERE}\noptions ndots:0\n"
    host.tasks["t1"] = (T1, Path("c1"))
    assert host.containers() == {"t1": ["c1", "c1"]}
    assert host.hcn.service.state.by_host_port[6, 9090] == guid_of("endpoint", "back", "t1")
    await host.stop("t1")
    left = {d.name for d in of(host, HostComputeEndpoint) if not getattr(d, "remote", False)}
    assert left == {"ingress-node-me", "back-node-me"}
    await host.driver.leave()
    assert host.ours() == {} and len(host.hcn.service.documents) == 1


async def test_a_task_without_an_engine_gets_a_namespace_whose_first_endpoint_is_its_way_out(
    host: Host,
) -> None:
    await host.tell(*ENTRIES)
    await host.run(task("t1", ("hidden", "10.0.2.10/24"), ("back", "10.0.1.10/24")))
    (namespace,) = of(host, HostComputeNamespace)
    assert isinstance(namespace, HostComputeNamespace)
    assert namespace.endpoints == (guid_of("endpoint", "back", "t1"), guid_of("endpoint", "hidden", "t1"))


async def test_containers_ask_the_host_for_names_also_behind_a_policy_and_on_internal_networks(
    host: Host,
) -> None:
    closed = msgspec.structs.replace(WEB, allowed_to=(Allowed(services=("db",)),))
    await host.tell(*ENTRIES, closed, endpoint("t1", "back", ME, "10.0.1.10"))
    await host.run(task("t1", ("back", "10.0.1.10/24"), ("hidden", "10.0.2.10/24")), "c1")
    back = host.ours()[guid_of("endpoint", "back", "t1")]
    hidden = host.ours()[guid_of("endpoint", "hidden", "t1")]
    assert isinstance(back, HostComputeEndpoint) and isinstance(hidden, HostComputeEndpoint)
    assert back.dns.server_list == hidden.dns.server_list == (HERE,)
    first = sorted((x.settings for x in back.policies if isinstance(x, p.Acl)), key=lambda s: s.priority)[:2]
    assert [(s.action, s.direction, s.protocols, s.remote_addresses, s.remote_ports) for s in first] == [
        ("Allow", "Out", "6", HERE, "53"),
        ("Allow", "Out", "17", HERE, "53"),
    ]
    assert p.policy_of(hidden.policies, p.OutBoundNat).settings.destinations == (f"{HERE}/32",)
    network = host.ours()[guid_of("network", "back")]
    assert isinstance(network, HostComputeNetwork)
    assert p.policy_of(network.policies, p.HostRoute) is not None


async def test_an_hns_that_restarts_is_compared_and_mended(host: Host) -> None:
    await host.tell(*ENTRIES, WEB, endpoint("t1", "back", ME, "10.0.1.10"))
    await host.run(T1, "c1")
    host.hcn.away = True
    with pytest.raises(Unavailable):
        await host.driver.attach(task("t2", ("back", "10.0.1.12/24")), Path("c2"))
    await host.tell(
        endpoint("t9", "back", OTHER, "10.0.1.19")
    )  # nobody fails: it is followed when HNS is back
    victim = guid_of("endpoint", "back", "t1")
    host.hcn.away = False
    for lb in of(host, HostComputeLoadBalancer):
        host.hcn.delete("LoadBalancer", uuid.UUID(lb.id))
    host.hcn.delete("Endpoint", uuid.UUID(victim))
    host.hcn.restart()
    await host.driver.reconcile()
    assert host.containers() == {"t1": ["c1", "c1"]}
    (lb,) = of(host, HostComputeLoadBalancer)
    assert isinstance(lb, HostComputeLoadBalancer) and len(lb.host_compute_endpoints) == 2


async def test_a_change_of_policies_makes_nothing_anew(host: Host) -> None:
    await host.tell(
        *ENTRIES, WEB, endpoint("t1", "back", ME, "10.0.1.10"), endpoint("t2", "back", OTHER, "10.0.1.20")
    )
    await host.run(task("t1", ("ingress", "10.0.0.10/24"), ("back", "10.0.1.10/24")), "c1")
    deleted: list[str] = []
    plain = host.hcn.delete
    host.hcn.delete = lambda kind, guid: (deleted.append(kind), plain(kind, guid))[1]  # type: ignore[method-assign]
    await host.tell(node(OTHER, "172.28.1.99", ingress="10.0.0.3", back="10.0.1.3"))  # it moved
    await host.tell(node("third", "172.28.1.98", ingress="10.0.0.4", back="10.0.1.4"))
    await host.tell(msgspec.structs.replace(WEB, allowed=(Allowed(services=("db",)),), egress=10_000))
    assert deleted == []
    hosts = {}
    for node_id in (OTHER, "third"):  # containers answer to them: a route would leave their ARP unanswered
        e = host.ours()[guid_of("node", "back", node_id)]
        assert isinstance(e, HostComputeEndpoint) and e.remote
        hosts[e.address] = p.policy_of(e.policies, p.ProviderAddress).settings.provider_address
    assert hosts == {"10.0.1.3": "172.28.1.99", "10.0.1.4": "172.28.1.98"}
    mine = host.ours()[guid_of("endpoint", "back", "t1")]
    assert isinstance(mine, HostComputeEndpoint) and p.policy_of(mine.policies, p.Qos) is not None
    await host.tell(remove=("node/third",))
    assert (
        guid_of("node", "back", "third") not in host.ours() and guid_of("node", "back", OTHER) in host.ours()
    )


async def test_what_somebody_deleted_is_noticed_by_the_next_change_of_it(host: Host) -> None:
    await host.tell(*ENTRIES, endpoint("t2", "back", OTHER, "10.0.1.20"))
    guid = guid_of("endpoint", "back", "t2")
    host.hcn.delete("Endpoint", uuid.UUID(guid))
    await host.tell(node(OTHER, "172.28.1.99", ingress="10.0.0.3", back="10.0.1.3"))
    assert guid not in host.ours() and host.driver.describe()["refused"] != []
    await host.driver.reconcile(False)
    assert guid in host.ours() and host.driver.describe()["refused"] == []


async def test_hns_says_that_it_ends_and_the_driver_looks_by_itself(host: Host) -> None:
    await host.tell(*ENTRIES)
    await host.run(T1, "c1")
    host.hcn.delete("Endpoint", uuid.UUID(guid_of("endpoint", "back", "t1")))
    loop, back = asyncio.get_running_loop(), asyncio.Event()
    host.hcn.on_register = lambda: loop.call_soon_threadsafe(back.set)  # type: ignore[assignment, return-value]
    host.hcn.restart()
    await back.wait()
    assert host.containers() == {"t1": ["c1", "c1"]}


async def test_a_driver_that_starts_before_hns_goes_on_when_it_comes(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.hcn.away = True
    await host.start()
    await host.tell(*ENTRIES)
    with pytest.raises(Unavailable):
        await host.run(T1, "c1")
    host.hcn.away = False
    await host.settle()
    await host.check(tmp_path / "fresh")
    await host.driver.close()


async def test_one_refused_backend_does_not_cost_a_service_the_others(host: Host) -> None:
    squatter = {"Name": "theirs", "IpConfigurations": [{"IpAddress": "10.0.1.20", "PrefixLength": 24}], "Flags": 1,
                "MacAddress": "02-42-0A-00-01-14", "Policies": [
                    {"Type": "ProviderAddress", "Settings": {"ProviderAddress": PA}}]}  # fmt: skip
    await host.tell(*ENTRIES, WEB)
    handle = host.hcn.open("Network", uuid.UUID(guid_of("network", "back")))
    made = host.hcn.create("Endpoint", json.dumps(squatter), network=handle)
    await host.tell(endpoint("t2", "back", OTHER, "10.0.1.20"), endpoint("t3", "back", OTHER, "10.0.1.21"))
    (lb,) = of(host, HostComputeLoadBalancer)
    assert isinstance(lb, HostComputeLoadBalancer)
    assert lb.host_compute_endpoints == (guid_of("endpoint", "back", "t3"),)
    assert len(host.driver.describe()["refused"]) == 1  # type: ignore[arg-type]
    said = await host.driver.ask(Examine())
    assert any("10.0.1.20" in f.what and "HNS refuses" in f.what for f in said.findings)
    host.hcn.delete("Endpoint", uuid.UUID(json.loads(host.hcn.query("Endpoint", made))["ID"]))
    assert not await host.driver.reconcile(False)  # only what was refused is tried again
    (lb,) = of(host, HostComputeLoadBalancer)
    assert isinstance(lb, HostComputeLoadBalancer) and len(lb.host_compute_endpoints) == 2
    assert (await host.driver.ask(Examine())).findings == ()
    assert "cannot be marked" in (await host.driver.ask(Arm(7))).error


async def test_host_ports_are_refused_in_dockers_words(host: Host) -> None:
    await host.tell(*ENTRIES)
    await host.run(T1, "c1")
    with pytest.raises(Conflict, match="port is already allocated"):
        await host.driver.attach(
            task("t2", ("back", "10.0.1.12/24"), ports=(port(80, 9090, "host"),)), Path("c2")
        )
    with pytest.raises(InvalidArgument, match="no network host"):
        await host.driver.attach(msgspec.structs.replace(T1, mode="host"), Path("c3"))
    with pytest.raises(Unavailable, match="not known on this node yet"):
        await host.driver.attach(task("t4", ("nosuch", "10.9.0.2/24")), Path("c4"))
    assert host.driver.describe()["tasks"] == 1


async def test_a_container_that_comes_after_another_gets_the_endpoint(host: Host) -> None:
    await host.tell(*ENTRIES)
    await host.run(T1, "c1")
    await host.run(T1, "c2")
    assert host.containers() == {"t1": ["c2", "c2"]}


async def test_where_hns_takes_one_nat_network_tasks_without_any_share_the_hosts_own(tmp_path: Path) -> None:
    def one_nat(d: Document, state: State) -> None:
        others = [x for x in state.documents.values() if isinstance(x, HostComputeNetwork) and x.id != d.id]
        if isinstance(d, HostComputeNetwork) and d.type == "NAT" and any(x.type == "NAT" for x in others):
            raise HcnError(Code.BAD_PARAMETER, "there is one")

    host = Host(tmp_path)
    host.hcn.restrict(one_nat)
    await host.start()
    await host.tell(*ENTRIES)
    lonely = TASKS["t3"]
    attached = await host.driver.attach(lonely, Path("c3"))
    theirs = next(d for d in host.hcn.service.documents.values() if d.owner == "docker")
    (mine,) = [d for d in of(host, HostComputeEndpoint) if d.name == lonely.task_name]
    assert isinstance(mine, HostComputeEndpoint) and mine.host_compute_network == theirs.id
    assert attached.addresses == {"bridge": f"{mine.address}/16"} and attached.gateways == {
        "bridge": "172.30.0.1"
    }
    assert host.driver.describe()["refused"] == []
    assert not await host.driver.reconcile()  # and stays there
    await host.driver.close()
    await host.start()
    await host.tell(*ENTRIES)
    made = host.hcn.count
    assert await host.driver.attach(lonely, Path("c3")) == attached
    assert mine in of(host, HostComputeEndpoint) and host.hcn.count - made < 5
    await host.driver.detach("t3")
    await host.driver.leave()
    assert [d.name for d in host.hcn.service.documents.values()] == ["nat"]


# -- load balancers before HNS 15.4 --------------------------------------------------------------------------


class Lenient(DirectHcn):
    """Takes a second load balancer for a frontend, as some Windows builds do."""

    made: list[str]

    def create(self, kind: str, settings: str, guid: uuid.UUID = NULL_GUID, network: int = 0) -> int:
        if kind != "LoadBalancer":
            return super().create(kind, settings, guid, network)
        self.made.append(str(guid).upper())
        state = self.service.state
        by_vip, state.by_vip = state.by_vip, {}
        try:
            return super().create(kind, settings, guid, network)
        finally:
            state.by_vip = {**by_vip, **state.by_vip}


async def test_a_load_balancer_is_made_before_its_predecessor_breaks_where_hns_takes_two(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path, (13, 2))
    host.hcn.__class__ = Lenient
    hcn = host.hcn
    assert isinstance(hcn, Lenient)
    hcn.made = []
    await host.start()
    await host.tell(*ENTRIES, WEB, endpoint("t2", "back", OTHER, "10.0.1.20"))
    guid = guid_of("vip", "back", "web")
    for n, wanted in ((21, twin(guid)), (22, guid)):
        await host.tell(endpoint(f"t{n}", "back", OTHER, f"10.0.1.{n}"))
        assert hcn.made[-1] == wanted
        (lb,) = of(host, HostComputeLoadBalancer)
        assert isinstance(lb, HostComputeLoadBalancer) and lb.id == wanted
        assert len(lb.host_compute_endpoints) == n - 19
    # killed between the two calls, both stand: the next start keeps one
    last = hcn.count
    for cut in itertools.count():
        hcn.cut(cut, after=True)
        with pytest.raises(Killed):
            await host.tell(endpoint(f"t{30 + cut}", "back", OTHER, f"10.0.1.{30 + cut}"))
        both = len(of(host, HostComputeLoadBalancer)) == 2
        await host.killed()
        await host.settle()
        assert len(of(host, HostComputeLoadBalancer)) == 1
        if both:
            break
    assert hcn.count > last
    await host.driver.close()


async def test_where_hns_takes_no_second_one_the_old_one_goes_first(tmp_path: Path) -> None:
    host = Host(tmp_path, (13, 2))
    await host.start()
    await host.tell(*ENTRIES, WEB, endpoint("t2", "back", OTHER, "10.0.1.20"))
    await host.tell(endpoint("t3", "back", OTHER, "10.0.1.21"))
    (lb,) = of(host, HostComputeLoadBalancer)
    assert isinstance(lb, HostComputeLoadBalancer)
    assert lb.id == guid_of("vip", "back", "web") and len(lb.host_compute_endpoints) == 2
    await host.driver.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_version_gets_documents_it_takes(tmp_path: Path, version: HnsVersion) -> None:
    host = Host(tmp_path, version)
    await host.start()
    sticky = msgspec.structs.replace(WEB, affinity=60, allowed=(Allowed(services=("db",)),))
    await host.tell(*ENTRIES, sticky, PUBLISHED, endpoint("t1", "back", ME, "10.0.1.10"),
                    endpoint("t1", "ingress", ME, "10.0.0.10"))  # fmt: skip
    await host.run(T1, "c1")
    assert host.driver.describe()["refused"] == []
    assert len(of(host, HostComputeLoadBalancer)) == 2
    told = host.driver.describe()["lacks"]
    assert isinstance(told, dict)
    assert "client-address" in told, "no HNS answers clients through another node"
    assert ("session-affinity" in told) == (version < (12, 0))
    assert ("direct-return" in told) == (version in ((9, 2), (10, 1)))
    for lb in of(host, HostComputeLoadBalancer):
        assert isinstance(lb, HostComputeLoadBalancer)
        direct = bool(lb.frontend_vips) and version not in ((9, 2), (10, 1))
        assert bool(lb.flags & 1) == direct
        assert lb.port_mappings[0].distribution_type == (2 if version >= (12, 0) and lb.frontend_vips else 0)
    await host.driver.close()


# -- any order of changes, killed anywhere -------------------------------------------------------------------

TASKS = {
    "t1": T1,
    "t2": task("t2", ("back", "10.0.1.12/24"), service="db"),
    "t3": task("t3", service="lonely"),
}
CHANGES: dict[str, Callable[[], tuple[Entry, ...]]] = {
    "remote": lambda: (endpoint("t5", "back", OTHER, "10.0.1.15"), endpoint("t5", "ingress", OTHER, "10.0.0.15")),
    "remote db": lambda: (endpoint("t6", "back", OTHER, "10.0.1.16", "db"),),
    "local": lambda: (endpoint("t1", "back", ME, "10.0.1.10"), endpoint("t1", "ingress", ME, "10.0.0.10")),
    "moved": lambda: (node(OTHER, "172.28.1.99", ingress="10.0.0.3", back="10.0.1.3"),),
    "home": lambda: (node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),),
    "web": lambda: (WEB, PUBLISHED),
    "closed": lambda: (msgspec.structs.replace(WEB, allowed=(Allowed(services=("db",)),)),),
    "sticky": lambda: (msgspec.structs.replace(WEB, affinity=100),),
    "db": lambda: (service("db", "back", "10.0.1.101"),),
}  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(sorted(CHANGES))),
    st.tuples(st.just("remove"), st.sampled_from(["remote", "remote db", "web", "db"])),
    st.tuples(st.just("run"), st.sampled_from(sorted(TASKS))),
    st.tuples(st.just("contain"), st.sampled_from(sorted(TASKS))),
    st.tuples(st.just("stop"), st.sampled_from(sorted(TASKS))),
    st.tuples(st.just("kill"), st.integers(0, 40)),
    st.tuples(st.just("kill after"), st.integers(0, 40)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("vandal"), st.integers(0, 30)),
)


async def step(host: Host, what: str, which: object) -> None:
    match what:
        case "put":
            await host.tell(*CHANGES[str(which)]())
        case "remove":
            await host.tell(
                remove=tuple(e.key for e in CHANGES[str(which)]() if host.view.get(e.key) is not None)
            )
        case "run" if str(which) not in host.tasks:
            await host.run(TASKS[str(which)])
        case "contain":
            await host.run(TASKS[str(which)], f"container-of-{which}")
        case "stop":
            await host.stop(str(which))
        case "kill" | "kill after":
            assert isinstance(which, int)
            host.hcn.cut(which, after=what == "kill after")
        case "restart":
            host.hcn.restart()
        case "away":
            host.hcn.away = bool(which)
        case "vandal":
            assert isinstance(which, int)
            mine = sorted(host.ours())
            if mine and not host.hcn.away:
                victim = host.ours()[mine[which % len(mine)]]
                kind = {"network": "Network", "endpoint": "Endpoint", "namespace": "Namespace",
                        "loadbalancer": "LoadBalancer"}[victim.kind]  # fmt: skip
                host.hcn.delete(kind, uuid.UUID(victim.id))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@example(version=(15, 4), steps=[("run", "t1"), ("away", True), ("put", "closed"), ("remove", "web")])
@example(version=LATEST, steps=[("kill", 22), ("contain", "t1"), ("stop", "t1"), ("run", "t1")])
@example(
    version=LATEST, steps=[("contain", "t1"), ("away", True), ("stop", "t1"), ("away", False), ("run", "t1")]
)
@given(version=st.sampled_from(VERSIONS), steps=st.lists(STEPS, max_size=14))
@example(version=LATEST, steps=[("put", "closed"), ("away", True), ("run", "t1"), ("remove", "web")])
def test_whatever_happens_hns_comes_to_what_is_wanted(
    tmp_path_factory: pytest.TempPathFactory, version: HnsVersion, steps: list[tuple[str, object]]
) -> None:
    note(f"HNS {version}: {steps}")

    async def story() -> None:
        folder = tmp_path_factory.mktemp("story")
        host = Host(folder, version)
        await host.start()
        await host.tell(*ENTRIES)
        for what, which in steps:
            try:
                await step(host, what, which)
            except OverlaceError:
                pass  # refused or away: the end is what counts
            except Killed:
                await host.killed()
        host.hcn.away = False
        if host.hcn.was_cut:
            await host.killed()
        host.hcn.mend()
        await host.settle()
        await host.check(folder / "fresh")
        await host.driver.close()
        shutil.rmtree(folder)

    asyncio.run(story())
