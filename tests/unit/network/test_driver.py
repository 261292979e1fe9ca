"""The driver over a data path in memory: order, batching, errors an agent sees, and a crash at any call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from overlace.model.errors import Conflict, InvalidArgument, Unavailable
from overlace.model.netview import NetView
from overlace.model.specs import HOST_ACCESS_OPTION, MTU_OPTION, PortConfig
from overlace.network import driver as driver_module
from overlace.network import host_watch
from overlace.network.balancing import Balancing
from overlace.network.base import TaskNetwork
from overlace.network.counted import Hit
from overlace.network.driver import OverlayDriver
from overlace.network.host_access import SANDBOX_PREFIX, HostAccess
from overlace.network.host_watch import Mended
from overlace.network.hostports import check_addresses, listening, plan_host_ports
from overlace.network.overlay_documents import guid_of
from overlace.network.records import LocalAddresses
from overlace.network.vfp.flows import TableFill, UnifiedFlow
from overlace.network.vfp.forward import forward_from_container
from overlace.network.vfp.model import Packet
from overlace.network.vfp.tables import Delta, Frontend, LocalEndpoint, Network, Tables

from .world import BACK6, HOST, ME, OTHER, both, endpoint, network, node, port, service, task, task6

PA = "172.28.1.12"


class Crash(Exception):
    pass


class Under(msgspec.Struct):
    address: str = HOST
    client_address: str = HOST
    mtu: int = 1500
    ifname: str = "eth0"


class Kernel:
    """What survives the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables = Tables()
        self.sandboxes: set[str] = set()
        self.interfaces: dict[str, tuple[str, str, bool, str, int]] = {}  # by endpoint id
        self.routes: dict[str, tuple[str, ...]] = {}
        self.six: dict[str, tuple[str, int, str]] = {}  # by endpoint id: address, prefix length, gateway
        self.paths: dict[str, int] = {}
        self.counted = asyncio.Event()
        self.accesses: dict[str, HostAccess] = {}
        self.conflict = ""


class Silence:
    """A probe socket that is never answered."""

    def listen(self, arrived: Callable[[], None]) -> None: ...

    def close(self) -> None: ...

    def send(
        self,
        kind: int,
        target: str,
        nonce: int,
        size: int = 102,
        *,
        checksum: bool = True,
        slow: bool = False,
    ) -> int:
        return 0

    def receive(self) -> None:
        return None


class MemoryDataPath:
    """`fail_at`: that many calls go well, the next one raises before it does anything."""

    def __init__(self, kernel: Kernel, fail_at: int = -1) -> None:
        self.kernel, self.left = kernel, fail_at
        self.calls: list[str] = []
        self.sockets: list[socket.socket] = []

    async def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.left == 0:
            raise Crash(name)
        self.left -= 1
        await asyncio.sleep(0)

    async def open(self) -> None:
        await self._step("open")

    async def close(self) -> None:
        pass

    async def destroy(self) -> None:
        self.kernel.__init__(self.kernel.folder)  # type: ignore[misc]

    async def apply(self, delta: Delta) -> None:
        await self._step("apply")
        self.kernel.tables.apply(delta)

    async def reconcile(self, desired: Tables) -> Delta:
        await self._step("reconcile")
        delta = self.kernel.tables.diff(desired)
        self.kernel.tables.apply(delta)
        wanted = {e.endpoint_id for e in desired if isinstance(e, LocalEndpoint)}
        for stray in set(self.kernel.interfaces) - wanted:
            del self.kernel.interfaces[stray]
        return delta

    async def ensure_sandbox(self, sandbox_id: str, netns: Path | None = None) -> Path:
        await self._step("ensure_sandbox")
        self.kernel.sandboxes.add(sandbox_id)
        return self.kernel.folder / sandbox_id

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._step("remove_sandbox")
        self.kernel.sandboxes.discard(sandbox_id)

    async def attach(
        self,
        e: LocalEndpoint,
        sandbox: Path,
        ifname: str,
        default_route: bool,
        gateway: str,
        mtu: int,
        routes: tuple[str, ...] = (),
        *,
        six: LocalEndpoint | None = None,
        gateway6: str = "",
    ) -> None:
        await self._step("attach")
        self.kernel.routes[e.endpoint_id] = routes
        if six is not None:
            assert (six.endpoint_id, six.mac) == (e.endpoint_id, e.mac), "one interface"
            self.kernel.six[six.endpoint_id] = (six.address, six.prefix, gateway6)
        self.kernel.interfaces[e.endpoint_id] = (sandbox.name, ifname, default_route, gateway, mtu)

    async def detach(self, endpoint_id: str) -> None:
        await self._step("detach")
        self.kernel.interfaces.pop(endpoint_id, None)

    async def ensure_host_access(self, access: HostAccess) -> str:
        await self._step("ensure_host_access")
        if self.kernel.conflict:
            return self.kernel.conflict
        self.kernel.accesses[access.endpoint_id] = access
        return ""

    async def keep_host_access(self, endpoint_ids: frozenset[str]) -> None:
        await self._step("keep_host_access")
        for sandbox in [s for s in self.kernel.sandboxes if s.startswith(SANDBOX_PREFIX)]:
            guid = sandbox.removeprefix(SANDBOX_PREFIX)
            if guid not in endpoint_ids:
                self.kernel.accesses.pop(guid, None)
                self.kernel.interfaces.pop(guid, None)
                self.kernel.sandboxes.discard(sandbox)

    async def bind_dns(self, sandbox: Path) -> tuple[socket.socket, socket.socket]:
        if sandbox.name not in self.kernel.sandboxes:
            raise FileNotFoundError(sandbox)
        await self._step("bind_dns")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for s in (udp, tcp):
            s.setblocking(False)
            s.bind(("127.0.0.1", 0))
        return udp, tcp

    async def open_probe(self) -> Silence:
        await self._step("open_probe")
        return Silence()

    async def set_paths(self, mtus: Mapping[str, int]) -> None:
        self.kernel.paths = dict(mtus)

    async def look_at_underlay(self) -> Under:
        return Under()

    async def resize(self, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None:
        found = self.kernel.interfaces.get(endpoint_id)
        if found is not None:
            self.kernel.interfaces[endpoint_id] = (*found[:4], mtu)

    async def leave_checksums_to_the_kernel(self) -> bool:
        return True

    async def drops(self) -> dict[tuple[int, str], int]:
        return {(4097, "drop_policy"): 2}

    async def counters(self) -> dict[str, int]:
        return {"delivered": 1}

    async def hits(self) -> list[Hit]:
        return []

    async def flows(self) -> list[UnifiedFlow]:
        return []

    async def fill(self) -> list[TableFill]:
        self.kernel.counted.set()
        return []

    async def mend(self) -> Mended:
        return Mended(("the vxlan device is gone",))

    async def watched(self) -> int:
        return 0

    def balancing(self) -> Balancing:
        return Balancing("socket", "/cgroup")

    def underlay(self) -> Under:
        return Under()


def view() -> NetView:
    return NetView(
        [
            node(ME, HOST, ingress="10.0.0.2", back="10.0.1.2"),
            node(OTHER, PA, ingress="10.0.0.3", back="10.0.1.3"),
            network("ingress", 4096, 0, ingress=True),
            network("back", 4097, 1),
            network("hidden", 4098, 2, internal=True),
            service("web", "back", "10.0.1.5"),
            service("web", "ingress", "10.0.0.5", port(80, 8080)),
            endpoint("far", "back", OTHER, "10.0.1.7"),
        ]
    )


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = Kernel(folder / "kernel")
        self.drivers: list[OverlayDriver] = []

    async def start(self, fail_at: int = -1, *, v: NetView | None = None, **more: str) -> OverlayDriver:
        self.path = MemoryDataPath(self.kernel, fail_at)
        d = OverlayDriver(self.path, self.folder / "state", resolv_conf=self.folder / "none", **more)  # type: ignore[arg-type]
        self.drivers.append(d)
        await d.open(ME)
        if v is not None:
            await d.apply_view(v, None)
        return d

    async def stop(self) -> None:
        while self.drivers:
            await self.drivers.pop().close()


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(driver_module, "listening", lambda: {("", 6, 22): 11})
    h = Host(tmp_path)
    yield h
    await h.stop()


def web(task_id: str = "t1", last: int = 9, **more: object) -> TaskNetwork:
    return task(task_id, ("back", f"10.0.1.{last}/24"), ("ingress", f"10.0.0.{last}/24"), **more)  # type: ignore[arg-type]


async def test_a_published_port_that_a_program_listens_on_stays_the_programs(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets: dict[tuple[str, int, int], int] = {("", 6, 8080): 0}
    monkeypatch.setattr(driver_module, "listening", lambda: sockets)
    d = await host.start(v=view())
    await d.attach(web())
    fronts = [e for e in host.kernel.tables if isinstance(e, Frontend) and not e.vni]
    assert not [e for e in fronts if e.port == 8080]
    refused = d.describe()["refused"]
    assert (
        isinstance(refused, list) and "port 8080/tcp is published, and a program of this host" in refused[0]
    )
    await d.apply_view(view(), None)
    assert not [e for e in host.kernel.tables if isinstance(e, Frontend) and (e.vni, e.port) == (0, 8080)]
    sockets.clear()
    await d._guard.look()
    assert [e for e in host.kernel.tables if isinstance(e, Frontend) and (e.vni, e.port) == (0, 8080)]
    assert d.describe()["refused"] == []


async def test_a_task_gets_its_interfaces_in_order_and_one_default_route(host: Host) -> None:
    d = await host.start(v=view())
    a = await d.attach(
        task("t1", ("hidden", "10.0.2.9/24"), ("ingress", "10.0.0.9/24"), ("back", "10.0.1.9/24"))
    )
    got = [host.kernel.interfaces[guid_of("endpoint", n, "t1")] for n in ("hidden", "ingress", "back")]
    assert got == [
        ("t1", "eth0", False, "10.0.2.1", 1450),
        ("t1", "eth1", False, "10.0.0.1", 1450),
        ("t1", "eth2", True, "10.0.1.1", 1450),
    ]
    assert a.macs["back"] == "02:42:0a:00:01:09" and a.sandbox == host.kernel.folder / "t1"
    assert (await d.attach(web("t2", 10))).addresses == {"back": "10.0.1.10/24", "ingress": "10.0.0.10/24"}
    only = await d.attach(task("t3", ("ingress", "10.0.0.11/24")))
    assert host.kernel.interfaces[guid_of("endpoint", "ingress", "t3")][2] and only.host_ports == ()


async def test_of_several_subnets_each_task_reaches_all_and_every_gateway_answers(host: Host) -> None:
    v = view()
    wide = msgspec.structs.replace(
        network("back", 4097, 1), subnets=("10.0.1.0/24", "10.9.0.0/24"), gateways=("10.0.1.1", "10.9.0.1")
    )
    v.put(wide)
    v.put(endpoint("t1", "back", ME, "10.9.0.9"))
    d = await host.start(v=v)
    a = await d.attach(task("t1", ("back", "10.9.0.9/24")))
    guid = guid_of("endpoint", "back", "t1")
    assert host.kernel.interfaces[guid][2:4] == (True, "10.9.0.1"), "out by the gateway of its own subnet"
    assert host.kernel.routes[guid] == ("10.0.1.0/24",) and a.addresses == {"back": "10.9.0.9/24"}
    entry = host.kernel.tables.get(("network", 4097))
    assert isinstance(entry, Network) and entry.gateways == ("10.0.1.1", "10.9.0.1")
    source = host.kernel.tables.get(("endpoint", 4097, "10.9.0.9"))
    assert isinstance(source, LocalEndpoint)

    def way(dst: str) -> str:
        packet = Packet("10.9.0.9", dst, 6, 4000, 80)
        return forward_from_container(host.kernel.tables, 4097, source, HOST, packet).action

    assert (way("10.0.1.7"), way("10.0.1.1"), way("10.9.0.1")) == ("encap", "answer", "answer")


async def test_an_interface_has_both_families_where_its_network_has(host: Host) -> None:
    v = view()
    more = (*BACK6.subnets, "10.9.0.0/24", "fd00:9::/64")
    wide = msgspec.structs.replace(BACK6, subnets=more, gateways=(*BACK6.gateways, "10.9.0.1", "fd00:9::1"))
    for entry in (
        wide,
        both(service("web", "back", "10.0.1.5")),
        both(endpoint("far", "back", OTHER, "10.0.1.7")),
    ):
        v.put(entry)
    d = await host.start(v=v)
    a = await d.attach(task6("t1", "back", "10.0.1.9"))
    guid = guid_of("endpoint", "back", "t1")
    assert a.addresses == {"back": "10.0.1.9/24"} and a.gateways == {"back": "10.0.1.1"}
    assert a.addresses6 == {"back": "fd00:1::9/64"} and a.gateways6 == {"back": "fd00:1::1"}
    assert a.ports6 == "back"
    assert host.kernel.six == {guid: ("fd00:1::9", 64, "fd00:1::1")}
    assert host.kernel.routes[guid] == ("10.9.0.0/24", "fd00:9::/64"), "the further subnets of both"
    restarted = await host.start(v=v)
    again = await restarted.attach(task6("t1", "back", "10.0.1.9"))
    assert (again.addresses6, again.gateways6) == (a.addresses6, a.gateways6)
    assert isinstance(host.kernel.tables.get(("endpoint", 4097, "fd00:1::9")), LocalEndpoint)
    four = await restarted.attach(task("t2", ("back", "10.0.1.12/24")))
    assert (four.addresses6, four.ports6) == ({}, "")
    assert host.kernel.routes[guid_of("endpoint", "back", "t2")] == ("10.9.0.0/24",)
    await restarted.detach("t1")
    assert host.kernel.tables.get(("endpoint", 4097, "fd00:1::9")) is None


async def test_the_mtu_fits_every_host_and_the_networks_wish(host: Host) -> None:
    v = view()
    v.put(msgspec.structs.replace(node(OTHER, PA), mtu=1400))
    d = await host.start(v=v)
    await d.attach(task("t1", ("back", "10.0.1.9/24")))
    assert host.kernel.interfaces[guid_of("endpoint", "back", "t1")][4] == 1350
    for asked, mtu in (("1200", 1200), ("9000", 1350), ("none", 1350)):
        v.put(msgspec.structs.replace(network("back", 4097, 1), driver_opts={MTU_OPTION: asked}))
        await d.apply_view(v, {"network/back"})
        await d.attach(task(f"m{asked}", ("back", f"10.0.1.{100 + ord(asked[0])}/24")))
        assert host.kernel.interfaces[guid_of("endpoint", "back", f"m{asked}")][4] == mtu


async def test_a_network_that_is_not_here_yet_is_waited_for(host: Host) -> None:
    d = await host.start()
    with pytest.raises(Unavailable, match="network back is not known on this node yet"):
        await d.attach(web())
    assert not host.kernel.sandboxes
    await d.apply_view(view(), None)
    await d.attach(web())
    v = view()
    v.remove("network/back")
    await d.apply_view(v, {"network/back"})
    with pytest.raises(Unavailable):
        await d.attach(web())
    await d.detach("t1")
    assert not host.kernel.sandboxes and not host.kernel.interfaces


async def test_fifty_tasks_share_passes(host: Host) -> None:
    d = await host.start(v=view())
    before = host.path.calls.count("apply")
    await asyncio.gather(*(d.attach(web(f"t{i}", i + 20)) for i in range(50)))
    assert host.path.calls.count("apply") - before <= 5
    assert len(host.kernel.interfaces) == 100
    await asyncio.gather(*(d.detach(f"t{i}") for i in range(50)))
    assert not host.kernel.interfaces and not host.kernel.sandboxes
    assert not any(isinstance(e, LocalEndpoint) for e in host.kernel.tables)


async def test_ports_are_refused_in_dockers_words_and_leave_nothing(host: Host) -> None:
    d = await host.start(v=view())
    one = PortConfig(target_port=80, published_port=9090, publish_mode="host")
    await d.attach(web("t1", 9, ports=(one,)))
    for number, words in (
        (9090, "Bind for 0.0.0.0:9090 failed: port is already allocated"),
        (8080, "Bind for 0.0.0.0:8080 failed: port is already allocated"),  # a published service's
        (22, "listen tcp4 0.0.0.0:22: bind: address already in use"),
    ):
        with pytest.raises(Conflict, match=words):
            await d.attach(web("t2", 10, ports=(msgspec.structs.replace(one, published_port=number),)))
    assert host.kernel.sandboxes == {"t1"} and not (host.folder / "state" / "tasks" / "t2.json").exists()
    await d.attach(web("t2", 10, ports=(msgspec.structs.replace(one, protocol="udp"),)))
    with pytest.raises(InvalidArgument, match="internal"):
        await d.attach(task("t3", ("hidden", "10.0.2.9/24"), ports=(one,)))


async def test_an_address_still_held_elsewhere_is_waited_for(host: Host) -> None:
    v = view()
    d = await host.start(v=v)
    with pytest.raises(Unavailable, match="belongs to endpoint"):
        await d.attach(task("t1", ("back", "10.0.1.7/24")))
    v.remove("endpoint/back/far")
    await d.apply_view(v, {"endpoint/back/far"})
    await d.attach(task("t1", ("back", "10.0.1.7/24")))
    entry = host.kernel.tables.get(("endpoint", 4097, "10.0.1.7"))
    assert isinstance(entry, LocalEndpoint)


async def test_the_local_network_gives_addresses_and_remembers_them(host: Host) -> None:
    d = await host.start(v=view())
    a, b = await d.attach(task("t1")), await d.attach(task("t2"))
    assert a.addresses == {"bridge": "172.17.0.2/16"} and b.addresses == {"bridge": "172.17.0.3/16"}
    assert a.gateways == {"bridge": "172.17.0.1"}
    assert host.kernel.interfaces[guid_of("endpoint", "bridge", "t1")] == (
        "t1",
        "eth0",
        True,
        "172.17.0.1",
        1500,
    )
    d = await host.start(v=view())
    assert (await d.attach(task("t2"))).addresses == b.addresses
    assert (await d.attach(task("t3"))).addresses == {"bridge": "172.17.0.4/16"}


async def test_a_data_path_failure_reaches_the_caller_and_is_mended_by_the_next_pass(host: Host) -> None:
    v = view()
    d = await host.start(v=v)
    host.path.left = 0
    v.put(endpoint("more", "back", OTHER, "10.0.1.50"))
    with pytest.raises(Crash):
        await d.apply_view(v, {"endpoint/back/more"})
    host.path.left = -1
    await d.apply_view(v, set())
    assert host.kernel.tables.get(("endpoint", 4097, "10.0.1.50")) is not None


async def test_a_restart_does_not_touch_what_runs(host: Host) -> None:
    d = await host.start(v=view())
    await d.attach(web())
    before = {e.key: e for e in host.kernel.tables}
    d = await host.start()
    assert {e.key: e for e in host.kernel.tables} == before  # before any view
    await d.apply_view(view(), None)
    await d.attach(web())
    assert {e.key: e for e in host.kernel.tables} == before
    await d.keep_only({"t1"})
    assert host.kernel.sandboxes == {"t1"}
    await d.keep_only(set())
    assert not host.kernel.sandboxes


async def test_leaving_forgets_everything(host: Host) -> None:
    d = await host.start(v=view())
    await d.attach(web())
    assert d.describe()["tasks"] == 1 and "LB_web" in str(await d.switch.layers("web.1"))
    await d.leave()
    assert not host.kernel.sandboxes and not len(host.kernel.tables)
    assert [p for p in (host.folder / "state").rglob("*") if p.is_file()] == []
    d = await host.start(v=view())
    assert d.describe()["tasks"] == 0


async def story(d: OverlayDriver, v: NetView) -> None:
    """Tasks come and go while the view changes."""
    await d.attach(web("t1", 9))
    v.put(endpoint("t1", "back", ME, "10.0.1.9"))
    await d.apply_view(v, {"endpoint/back/t1"})
    await d.attach(task("t2"))
    v.remove("endpoint/back/far")
    await d.apply_view(v, {"endpoint/back/far"})
    await d.detach("t2")
    await d.attach(web("t3", 10, ports=(port(80, 9090, "host"),)))
    await d.detach("t1")


@pytest.mark.parametrize("fail_at", range(45))
async def test_a_crash_at_any_call_is_repaired_after_the_restart(host: Host, fail_at: int) -> None:
    try:
        await story(await host.start(fail_at, v=view()), view())
        assert fail_at > 20, "the story has become shorter than the crashes"
    except Crash:
        pass
    v = view()
    v.put(endpoint("t3", "back", ME, "10.0.1.10"))
    d = await host.start(v=v)
    await d.keep_only({"t3"})
    await d.attach(web("t3", 10, ports=(port(80, 9090, "host"),)))
    other = Host(host.folder / "clean")
    clean = await other.start(v=v)
    await clean.attach(web("t3", 10, ports=(port(80, 9090, "host"),)))
    assert {e.key: e for e in host.kernel.tables} == {e.key: e for e in other.kernel.tables} | {
        k: e for k, e in ((e.key, e) for e in host.kernel.tables) if k == ("network", 1)
    }
    assert (
        host.kernel.interfaces == other.kernel.interfaces and host.kernel.sandboxes == other.kernel.sandboxes
    )
    await other.stop()


def test_ports_without_a_number_get_free_ones() -> None:
    wanted = (port(80, 0, "host"), port(81, 0, "host"), port(82, 0, "host", "udp"))
    got = plan_host_ports("t", wanted, {("", 6, 32768): "x"}, {("", 6, 32769)})
    assert [p.published_port for p in got] == [32770, 32771, 32768]


def at(host_ip: str, published: int, target: int = 80) -> PortConfig:
    return msgspec.structs.replace(port(target, published, "host"), host_ip=host_ip)


def test_a_port_of_one_address_and_who_is_in_its_way() -> None:
    sockets = {("192.0.2.1", 6, 22), ("", 6, 53)}
    taken = {("127.0.0.1", 6, 8080): "x", ("", 6, 9090): "y"}
    for fine in (at("127.0.0.1", 22), at("192.0.2.1", 8080), at("::1", 8080)):
        assert plan_host_ports("t", [fine], taken, sockets) == (fine,)
    both = (at("127.0.0.1", 8081), at("192.0.2.1", 8081))
    assert plan_host_ports("t", both, taken, sockets) == both
    for wrong, words in (
        (at("192.0.2.1", 22), r"listen tcp4 192\.0\.2\.1:22: bind: address already in use"),
        (at("", 22), r"0\.0\.0\.0:22: bind: address already in use"),
        (at("127.0.0.1", 53), r"127\.0\.0\.1:53: bind: address already in use"),
        (at("127.0.0.1", 8080), r"Bind for 127\.0\.0\.1:8080 failed: port is already allocated"),
        (at("", 8080), r"Bind for 0\.0\.0\.0:8080 failed"),
        (at("::1", 9090), r"Bind for \[::1\]:9090 failed"),
    ):
        with pytest.raises(Conflict, match=words):
            plan_host_ports("t", [wrong], taken, sockets)
    with pytest.raises(Conflict, match="port is already allocated"):
        plan_host_ports("t", [at("127.0.0.1", 8081), at("", 8081)], {}, ())
    free = plan_host_ports("t", [at("127.0.0.1", 0)], {("192.0.2.1", 6, 32768): "x"}, ())
    assert free[0].published_port == 32768


def test_a_port_of_an_address_that_is_not_the_hosts() -> None:
    check_addresses("t", [at("127.0.0.1", 80), at("", 80)])
    with pytest.raises(
        Conflict, match=r"listen tcp4 192\.0\.2\.77:80: bind: cannot assign requested address"
    ):
        check_addresses("t", [at("192.0.2.77", 80)])


def test_sockets_by_address_and_of_every_protocol(tmp_path: Path) -> None:
    (tmp_path / "sctp").mkdir()
    (tmp_path / "tcp6").write_text(
        "  sl  local_address\n"
        "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 11 1\n"
        "   1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 12 1\n"
    )
    (tmp_path / "sctp/eps").write_text(
        " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n"
        "ffff8880 ffff8881 2   10  29   3868    0 13 127.0.0.1 192.0.2.1 \n"
        "ffff8880 ffff8882 2   1   29   3869    0 14 127.0.0.1 \n"
    )
    assert listening(tmp_path) == {
        ("", 6, 22): 11,
        ("127.0.0.1", 6, 80): 12,
        ("127.0.0.1", 132, 3868): 13,
        ("192.0.2.1", 132, 3868): 13,
    }


def test_listening_sockets_are_found() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        assert ("127.0.0.1", 6, tcp.getsockname()[1]) not in listening()
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        one, two = ("127.0.0.1", 6, tcp.getsockname()[1]), ("127.0.0.1", 17, udp.getsockname()[1])
        assert {one, two} <= listening().keys()


def test_local_addresses_run_out_and_come_back() -> None:
    pool = LocalAddresses("172.17.0.0/29")
    taken: list[str] = []
    for _ in range(5):
        taken.append(pool.take(taken))
    assert taken == [f"172.17.0.{i}/29" for i in range(2, 7)]
    with pytest.raises(Unavailable, match="no address left"):
        pool.take(taken)
    taken.remove("172.17.0.3/29")
    assert pool.take(taken) == "172.17.0.3/29"


async def test_full_tables_are_looked_for_while_it_runs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "FILL_SECONDS", 0)
    monkeypatch.setattr(host_watch, "MEND_SECONDS", 0)
    d = await host.start()
    await asyncio.wait_for(host.kernel.counted.wait(), 5)
    assert ("repaired", "the vxlan device is gone") in [(n.action, n.id) for _, n in d.switch.notices(0)]
    await d.close()
    host.kernel.counted.clear()
    await asyncio.sleep(0)
    assert not host.kernel.counted.is_set()


def reached_from_hosts(v: NetView, **options: str) -> NetView:
    v.put(
        msgspec.structs.replace(network("back", 4097, 1), driver_opts=options or {HOST_ACCESS_OPTION: "true"})
    )
    return v


async def test_the_host_itself_reaches_a_network_while_its_option_says_so(host: Host) -> None:
    d = await host.start(v=reached_from_hosts(view()))
    guid = guid_of("node", "back", ME)
    [access] = host.kernel.accesses.values()
    assert (access.endpoint_id, access.network, access.subnets) == (guid, "back", ("10.0.1.0/24",))
    assert host.kernel.interfaces[guid] == (SANDBOX_PREFIX + guid, "eth0", False, "", 1450)
    assert isinstance(host.kernel.tables.get(("endpoint", 4097, "10.0.1.2")), LocalEndpoint)
    before = len(host.path.calls)
    await d.apply_view(reached_from_hosts(view()), {"endpoint/back/far"})
    assert "keep_host_access" not in host.path.calls[before:], "a task elsewhere changes nothing of it"
    again = await host.start(v=reached_from_hosts(view()))
    assert set(host.kernel.accesses) == {guid}, "a restarted daemon finds it again"
    await again.apply_view(reached_from_hosts(view(), other="1"), {"network/back"})
    assert not host.kernel.accesses and guid not in host.kernel.interfaces and not host.kernel.sandboxes
    assert host.kernel.tables.get(("endpoint", 4097, "10.0.1.2")) is None
    await again.apply_view(reached_from_hosts(view()), {"network/back"})
    assert set(host.kernel.accesses) == {guid}
    gone = view()
    gone.put(node(ME, HOST, ingress="10.0.0.2"))
    gone.remove("network/back")
    await again.apply_view(gone, None)
    assert not host.kernel.accesses and not host.kernel.sandboxes, "the host left the network"


async def test_a_route_of_the_hosts_own_stands_and_the_refusal_is_told(host: Host) -> None:
    host.kernel.conflict = "subnet 10.0.1.0/24 overlaps the host's own route to 10.0.0.0/8"
    d = await host.start(v=reached_from_hosts(view()))
    [text] = d.describe()["refused"]  # type: ignore[misc]
    assert "cannot reach network back" in text and "10.0.0.0/8" in text and "--subnet" in text
    assert (await d.attach(web())).addresses["back"] == "10.0.1.9/24", "tasks do not wait for it"
    host.kernel.conflict = ""
    await d.attach(web("t2", 10))
    assert set(host.kernel.accesses) == {guid_of("node", "back", ME)} and d.describe()["refused"] == []


async def test_an_emulated_windows_host_keeps_out(host: Host) -> None:
    await host.start(v=reached_from_hosts(view()), os="windows")
    assert not host.kernel.accesses


async def test_without_nameservers_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def warning(event: str, error: str, remedy: str) -> None:
        said.append(remedy)

    monkeypatch.setattr(driver_module, "log", SimpleNamespace(warning=warning))
    OverlayDriver(MemoryDataPath(Kernel(tmp_path)), tmp_path, resolv_conf=tmp_path / "none")
    OverlayDriver(
        MemoryDataPath(Kernel(tmp_path)), tmp_path, resolv_conf=tmp_path / "none", upstreams=["192.0.2.53"]
    )
    assert said == ["start the daemon with --dns"]
