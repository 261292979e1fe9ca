"""The data path of a Linux host, as the agent uses it.

Owns the order of things per container: what is made before what, what is adopted after a restart, what is collected; what
a host has once is host_side.py's. One
worker thread does all kernel work, so calls are serialised and the event loop never waits for the kernel. All
state is in the kernel; this object is a view of it that any later process can rebuild.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from overlace.model.family import is_six
from overlace.model.findings import Finding, Inject, OpenSockets, Sighting
from overlace.network.balancing import Balancing, Wish
from overlace.network.base import Inside
from overlace.network.counted import Held, Hit
from overlace.network.host_access import SANDBOX_PREFIX, HostAccess
from overlace.network.host_watch import Mended
from overlace.network.vfp.flows import TableFill, UnifiedFlow
from overlace.network.vfp.tables import Delta, Entry, LocalEndpoint, Tables

from . import audit, dns, figures, host_access, inject, listening, outside6, sockets, unified, veth
from .contents import Contents, merge
from .edges import PREFIX as EDGE_PREFIX
from .edges import AddressNews
from .host_side import LINKS, HostSide
from .loader import port_links
from .maps import TABLE_MAPS, decode_key
from .netlink import Netlink
from .netns import adopt_namespace, ensure_namespace, remove_namespace
from .offload import disable_tx_checksum
from .probe import ProbeSocket
from .underlay import Underlay

_T = TypeVar("_T")


class DataPath:
    """eBPF programs, maps, veths, namespaces and NAT of one daemon instance, in the network namespace it runs
    in.

    Every method is idempotent. Errors: LoadError and BuildError from open(), NftError, OSError naming what
    the kernel refused, ValueError for an address or MAC that is none.
    """

    def __init__(
        self,
        instance: str,
        state_dir: Path,
        underlay_address: str,
        vxlan_port: int = 4789,
        exec_dir: Path | None = None,
        balancing: Wish = "auto",
    ) -> None:
        self.instance = instance
        self.state_dir = state_dir
        self.exec_dir = exec_dir or Path("/run/overlace") / instance
        self._host = HostSide(instance, underlay_address, vxlan_port, balancing)
        self._pool = ThreadPoolExecutor(1, "overlace-datapath")
        self._contents = Contents(self._host.map, self._host.hosts)
        self._news: AddressNews | None = None

    async def _do(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # opening and closing

    async def open(self) -> None:
        """Settings, vxlan device, programs and maps (adopted when pinned), NAT table. Call reconcile()
        next."""
        self._news = await self._do(self._open)
        self._news.start()

    def _open(self) -> AddressNews:
        host = self._host
        news = AddressNews(self._follow_addresses)  # before the first look, which is then not older
        try:
            self._open_host(host)
        except BaseException:
            news.abandon()
            raise
        return news

    async def _follow_addresses(self) -> None:
        await self._do(self._host.follow_addresses)

    def _open_host(self, host: HostSide) -> None:
        host.open()
        self._contents.attached = veth.attachments(host.netlink().links(), self.instance)
        if not host.loader.is_switching:  # else reconcile() does, when the new maps are filled
            host.attach(self._interfaces())

    def _interfaces(self) -> dict[str, int]:
        return {endpoint_id: at.ifindex for endpoint_id, at in self._contents.attached.items()}

    async def close(self) -> None:
        """Let go; traffic continues."""
        await self._end_news()
        await self._do(self._host.close)
        self._end_worker()

    async def _end_news(self) -> None:
        if self._news is not None:
            await self._news.close()
            self._news = None

    def _end_worker(self) -> None:
        self._pool.shutdown()
        self._pool = ThreadPoolExecutor(1, "overlace-datapath")  # starts its thread when it is used

    async def destroy(self) -> None:
        """Remove everything of this instance: interfaces, programs, pins, vxlan device, NAT table, sandboxes.
        Works on an object that was never opened. Sysctls stay as they are."""
        await self._end_news()
        await self._do(self._destroy)
        self._end_worker()

    def _destroy(self) -> None:
        with Netlink() as netlink:
            for link in netlink.links():
                if veth.owner_of(link, self.instance) is not None:
                    netlink.delete_link(link.ifindex)
            for owner in host_access.ours(netlink.links(), self.instance):
                host_access.remove(netlink, self.instance, owner)
        self._host.destroy()
        for path in self._sandboxes():
            remove_namespace(path)

    def _sandboxes(self) -> list[Path]:
        folder = self.exec_dir / "netns"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    # tables

    async def apply(self, delta: Delta) -> None:
        """Put and remove entries: what is pointed at comes before what points at it, and goes after."""
        await self._do(lambda: self._apply(delta))

    def _apply(self, delta: Delta) -> None:
        self._contents.write(self._contents.change(delta.put, delta.remove))
        self._route(e for e in delta.put if isinstance(e, LocalEndpoint))
        if any(key[0] == "endpoint" for key in delta.remove):
            self._host.pools.keep({veth.host_name(i) for i in self._contents.local_ids})

    def _route(self, endpoints: Iterable[LocalEndpoint]) -> None:
        """Routes of the host to endpoints with outbound NAT or a host route: the way of the answers, and of the host's
        own questions. And their share of its ports."""
        netlink = self._host.netlink()
        for endpoint in endpoints:
            if not is_six(endpoint.address):
                self._host.pools.ensure(veth.host_name(endpoint.endpoint_id), endpoint.nat_ports)
            at = self._contents.attached.get(endpoint.endpoint_id)
            if at and (endpoint.outbound_nat or endpoint.host_route):
                with veth.unless_gone():
                    if is_six(endpoint.address):
                        outside6.ensure_forwarding(netlink)
                    veth.route_from_host(netlink, endpoint, at.ifindex)

    async def reconcile(self, desired: Tables) -> Delta:
        """Make the kernel's state equal to `desired` and return what differed. Interfaces and links of
        endpoints that are not in it are removed."""
        return await self._do(lambda: self._reconcile(desired))

    def _reconcile(self, desired: Tables) -> Delta:
        netlink, contents = self._host.netlink(), self._contents
        wanted = {e.endpoint_id for e in desired if isinstance(e, LocalEndpoint)}
        contents.attached = veth.attachments(netlink.links(), self.instance)
        for link in netlink.links():
            owner = veth.owner_of(link, self.instance)
            if owner is not None and owner not in wanted:
                netlink.delete_link(link.ifindex)
                self._host.pools.ensure(link.name, 0)
                contents.attached.pop(owner, None)
        keep = LINKS | sockets.links(self._host.level)
        keep |= {pin for owner in contents.attached for pin in port_links(veth.host_name(owner))}
        for name in self._host.loader.link_names() - keep:
            if not name.startswith(EDGE_PREFIX):  # those are followed apart
                self._host.loader.detach(name)
        if not self._host.loader.is_switching:
            for endpoint_id, at in contents.attached.items():
                name = veth.host_name(endpoint_id)
                with veth.unless_gone():
                    self._host.loader.ensure_port(netlink, at.ifindex, name)
            self._host.attach_sockets()
        changes, actual = contents.replace(desired)
        if self._host.loader.is_switching:
            self._host.switch(self._interfaces())
        self._route(e for e in desired if isinstance(e, LocalEndpoint))
        self._host.pools.keep({veth.host_name(i) for i in self._contents.local_ids})
        put: tuple[Entry, ...] = ()
        if any(changes.put.values()):
            written = changes.put
            put = tuple(
                e for e in contents.tables if any(r.key in written[r.map] for r in contents.encode(e))
            )
        stray = (
            decode_key(name, key, actual[name][key]) for name in TABLE_MAPS for key in changes.remove[name]
        )
        return Delta(put, tuple(key for key in stray if key is not None and desired.get(key) is None))

    # sandboxes and interfaces

    async def ensure_sandbox(self, sandbox_id: str, netns: Path | None = None) -> Path:
        """A named network namespace with lo up, `netns` itself when given; returns its file."""
        path = self.exec_dir / "netns" / sandbox_id
        return await self._do(lambda: adopt_namespace(path, netns) if netns else ensure_namespace(path))

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Let go of a sandbox; its interfaces go with its last process."""
        await self._do(lambda: remove_namespace(self.exec_dir / "netns" / sandbox_id))

    async def attach(
        self,
        endpoint: LocalEndpoint,
        sandbox: Path,
        ifname: str,
        default_route: bool,
        gateway: str,
        mtu: int,
        routes: tuple[str, ...] = (),
        *,
        six: LocalEndpoint | None = None,
        gateway6: str = "",
        through: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Give the sandbox an interface `ifname` that is `endpoint`, and enter the endpoint into the tables; `routes`:
        CIDRs it reaches directly, `through`: by a router, each with its address; `six`: its IPv6 address, of the same id
        and MAC, and `gateway6` the router that says what leads nowhere."""
        wanted = veth.Wanted(ifname, default_route, gateway, mtu, routes, through, six, gateway6)
        await self._do(lambda: self._attach(endpoint, sandbox, wanted))

    def _attach(self, endpoint: LocalEndpoint, sandbox: Path, wanted: veth.Wanted) -> None:
        netlink = self._host.netlink()
        at = veth.create(netlink, self.instance, endpoint, sandbox, wanted)
        self._host.loader.ensure_port(netlink, at.ifindex, veth.host_name(endpoint.endpoint_id))
        entries = (endpoint,) if wanted.six is None else (endpoint, wanted.six)
        before = self._contents.change(
            (), [e.key for e in entries]
        )  # their rows may name an earlier interface
        self._contents.attached[endpoint.endpoint_id] = at
        after = self._contents.change(entries, ())
        self._contents.write(merge(before, after))
        for entry in entries:
            if (why := self._contents.refused.get(entry.key)) is not None:
                raise ValueError(why)
        veth.configure_inside(endpoint, sandbox, wanted)
        self._route(entries)

    async def detach(self, endpoint_id: str) -> None:
        """Remove an endpoint's interface. Its entry stays until it is removed by apply()."""
        await self._do(lambda: self._detach(endpoint_id))

    def _detach(self, endpoint_id: str) -> None:
        netlink = self._host.netlink()
        name = veth.host_name(endpoint_id)
        link = netlink.link(name)
        if link is not None:
            netlink.delete_link(link.ifindex)
        self._host.loader.detach_port(name)
        self._host.pools.ensure(name, 0)
        contents = self._contents
        entries = contents.local(endpoint_id)
        before = contents.change((), [e.key for e in entries])
        contents.attached.pop(endpoint_id, None)
        contents.write(merge(before, contents.change(entries, ())))

    async def ensure_host_access(self, access: HostAccess) -> str:
        """The host's own routes into an attached endpoint's network. Returns why it cannot have them, else ""."""
        return await self._do(lambda: host_access.ensure(self._host.netlink(), self.instance, access))

    async def keep_host_access(self, endpoint_ids: frozenset[str]) -> None:
        """Remove what there is of others than these: routes, interfaces, sandboxes."""
        await self._do(lambda: self._keep_host_access(endpoint_ids))

    def _keep_host_access(self, endpoint_ids: frozenset[str]) -> None:
        netlink, folder = self._host.netlink(), self.exec_dir / "netns"
        for owner in host_access.stray(folder, netlink.links(), self.instance, endpoint_ids):
            host_access.remove(netlink, self.instance, owner)
            self._detach(owner)
            remove_namespace(folder / f"{SANDBOX_PREFIX}{owner}")

    async def free_ifname(self, sandbox: Path, mac: str) -> str:
        """The name of the sandbox's interface with this MAC, else the first of eth0, eth1, … it has not."""
        return await self._do(lambda: veth.free_ifname(sandbox, mac))

    def port_counters(self, sandbox: Path, mac: str) -> dict[str, int]:
        """Bytes, packets and drops of the sandbox's interface with this MAC."""
        return veth.port_counters(sandbox, mac)

    async def bind_dns(
        self, sandbox: Path, upstream: str = "127.0.0.11"
    ) -> tuple[socket.socket, socket.socket]:
        """(UDP, listening TCP) sockets inside the sandbox; `upstream`:53 leads to them there."""
        return await self._do(lambda: dns.bind_dns(sandbox, upstream))

    async def client_socket(self, sandbox: Path, tcp: bool) -> socket.socket:
        """An IPv4 socket inside the sandbox, not connected."""
        return await self._do(lambda: dns.client_socket(sandbox, socket.AF_INET, tcp=tcp))

    # paths to other hosts

    async def open_probe(self) -> ProbeSocket:
        """The socket for probes; the programs bring it what is meant for it from now on. The caller closes it."""
        return await self._do(self._host.open_probe)

    async def set_paths(self, mtus: Mapping[str, int]) -> None:
        """What the way to each host takes, in bytes of the outer IP packet, by underlay address; to one not named: what
        the device takes."""
        await self._do(lambda: self._host.set_paths(mtus))

    async def use_slow_path(self, on: bool) -> None:
        """Have everything for other hosts leave through the kernel's vxlan device, as what the programs cannot send does:
        to measure and to test that way. Not kept by a restart."""
        await self._do(lambda: self._host.use_slow_path(on))

    async def use_packet_level(self, on: bool) -> None:
        """Balance services at the packet level alone, or again as told: to measure and to test. Not kept by a restart."""
        await self._do(lambda: self._host.use_packet_level(on))

    async def look_at_underlay(self) -> Underlay:
        """As it is now: its MTU may have been changed since open()."""
        return await self._do(self._host.look_at_underlay)

    async def resize(self, endpoint_id: str, sandbox: Path, ifname: str, mtu: int) -> None:
        """Another MTU for an attached endpoint's interface. Its routes follow the device's MTU. An endpoint that is not
        attached is none to resize."""
        await self._do(lambda: veth.resize(self._host.netlink(), endpoint_id, sandbox, ifname, mtu))

    async def leave_checksums_to_the_kernel(self) -> bool:
        """Take transmit checksums away from the underlay's network card; False: it does not let us."""
        return await self._do(lambda: disable_tx_checksum(self.underlay().ifname))

    async def drops(self) -> dict[tuple[int, str], int]:
        """Packets dropped, by VNI of the network they were read on (0: none) and reason."""
        return await self._do(lambda: figures.drops(self._host.map("drops")))

    async def held(self, inside: Iterable[Inside]) -> Held:
        """What the tables hold and the containers' interfaces carried."""
        inside = list(inside)
        return await self._do(lambda: self._held(inside))

    def _held(self, inside: list[Inside]) -> Held:
        carried = figures.carried(inside)
        fill = figures.fill(self._host.loader.maps, self._contents.rows.counts())
        return Held(tuple(carried), figures.drops(self._host.map("drops")), fill)

    # looking closely

    async def audit(self, inside: Iterable[Inside]) -> list[Finding]:
        """What is not as it should be; `inside`: the containers' interfaces to look at."""
        inside = list(inside)
        return await self._do(lambda: self._audit(inside))

    def _audit(self, inside: list[Inside]) -> list[Finding]:
        netlink, actual = self._host.netlink(), self._contents.dump()
        found = list(audit.explain_rows(self._contents.rows.difference(actual), actual))
        found += audit.explain_refused(self._contents.refused)
        found += audit.explain_fill(figures.table_fill(self._host.loader.maps))
        links = netlink.links()
        found += audit.explain_links(links, self._contents.attached, self.underlay().ifindex)
        found += self._host.explain(self._interfaces())
        for one in inside:
            for entry in self._contents.local(one.endpoint_id):
                found += audit.explain_inside(entry, one.sandbox, one.ifname, default_route=one.default_route)
        return found

    async def listening(self, sandboxes: Mapping[str, Path], protocol: int) -> list[OpenSockets]:
        """At which ports the programs in these sandboxes (by task) listen. In a thread of its own: it reads /proc."""
        return await asyncio.to_thread(listening.of_sandboxes, sandboxes, protocol)

    async def mend(self) -> Mended:
        """Look whether everything stands that traffic needs besides the tables' rows, and make again what does not. Cheap
        where all is well: some calls for each interface."""
        return await self._do(self._mend)

    def _mend(self) -> Mended:
        host = self._host
        if host.loader.is_switching or not (before := host.explain(self._interfaces())):
            return Mended()
        host.mend(self._interfaces())
        left = host.explain(self._interfaces())
        still = {finding.what for finding in left}
        return Mended(tuple(f.what for f in before if f.what not in still), tuple(left))

    async def arm(self, mark: int) -> None:
        """Have packets with this mark recorded."""
        await self._do(lambda: inject.arm((self._host.map("traces"), self._host.map("traces6")), mark))

    async def collect(self, mark: int) -> list[Sighting]:
        """What was recorded of it."""
        return await self._do(
            lambda: inject.collect(
                (self._host.map("traces"), self._host.map("traces6")),
                mark,
                {x.ifindex: x.name for x in self._host.netlink().links()},
            )
        )

    async def inject(self, sandbox: Path | None, ask: Inject) -> str:
        """Send a marked packet; the answer, empty when none came. In a thread of its own: it waits."""
        return await asyncio.to_thread(inject.inject, sandbox, ask)

    # looking

    def underlay(self) -> Underlay:
        """The underlay as found by open()."""
        return self._host.underlay()

    def balancing(self) -> Balancing:
        """Where connections from containers to services are given their backends."""
        return self._host.level

    async def counters(self) -> dict[str, int]:
        """Packets by what became of them, since the maps were made."""
        return await self._do(lambda: figures.counters(self._host.map("counters")))

    async def hits(self) -> list[Hit]:
        """What counted for rules of access lists, of endpoints that are attached."""
        return await self._do(self._hits)

    def _hits(self) -> list[Hit]:
        names = {at.ifindex: endpoint_id for endpoint_id, at in self._contents.attached.items()}
        found = [
            *figures.hits(self._host.map("hits")),
            *unified.uncounted(self._host.map("unified_flows")),
            *unified.uncounted(self._host.map("unified_flows6")),
        ]
        return [msgspec.structs.replace(h, endpoint_id=names[h.ifindex]) for h in found if h.ifindex in names]

    async def flows(self) -> list[UnifiedFlow]:
        """Every unified flow, with the GUIDs of local endpoints; in no order. For two minutes after this, connections are
        remembered from their first packet on."""
        return await self._do(self._flows)

    def _flows(self) -> list[UnifiedFlow]:
        def vni_of(endpoint_id: str) -> int:
            return next((e.vni for e in self._contents.local(endpoint_id)), 0)

        unified.watch(self._host.map("watched"))
        names = {at.ifindex: endpoint_id for endpoint_id, at in self._contents.attached.items()}
        return unified.named(self._host.loader.maps, names, vni_of)

    async def watched(self) -> int:
        """Seconds to come in which every connection is remembered from its first packet on; 0: short ones are not."""
        return await self._do(lambda: unified.watched(self._host.map("watched")))

    async def fill(self) -> list[TableFill]:
        """How full each table is. Counting reads a table whole: not for every second."""
        return await self._do(self._fill)

    def _fill(self) -> list[TableFill]:
        return figures.table_fill(self._host.loader.maps)
