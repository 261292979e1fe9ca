"""What the data path has once on a host: its programs, the underlay and vxlan devices, NAT table, configuration.

Owns the order in which they are made, adopted after a restart and taken away. Must not know endpoints: what is there
once per container is datapath.py's. Synchronous, for one thread.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import structlog

from overlace.model.findings import Finding
from overlace.network.balancing import Balancing, Wish

from . import bpf_syscall as bpf
from . import carry, nft, sockets, unified
from .bpf_syscall import Map
from .edges import Edges
from .family import V6, family_of
from .host_access import is_pair
from .loader import AT_EGRESS, PORT_PROGRAMS, Loader, port_links
from .maps import config_value, path_rows
from .netlink import Link, Netlink
from .netns import read_sysctl, write_sysctl
from .probe import ProbeSocket
from .standing import SETTINGS, Program, Standing, explain_standing
from .underlay import Underlay, find_underlay
from .veth import host_name, is_ours, unless_gone

VXLAN_DEVICE = "vxlan-overlace"
LINKS = frozenset({"underlay", "vxlan", "lo"})  # pins of the links every host has
_LO = 1
_TAKES_IPV6 = "overlace over IPv6"  # alias of the vxlan device
_log = structlog.get_logger(__name__)


class HostSide:
    """Of one daemon instance, in the network namespace it runs in. Every method is idempotent. Errors: as DataPath."""

    def __init__(self, instance: str, underlay_address: str, vxlan_port: int, wish: Wish) -> None:
        self.instance = instance
        self.address = underlay_address
        self.hosts = family_of(underlay_address)
        self.loader = Loader(instance, hosts=self.hosts)
        self.edges = Edges(self.loader)
        self.pools = nft.PortPools(instance)
        self.level = Balancing("packet", "the data path is not open")
        self._vxlan_port = vxlan_port
        self._netlink: Netlink | None = None
        self._underlay: Underlay | None = None
        self._vxlan_ifindex = 0
        self._paths: dict[str, int] = {}
        self._slow = False
        self._table_seen = 0  # the generation of the nft rules in which the table was whole
        self._wish: Wish = wish

    def map(self, name: str) -> Map:
        """A map of the programs."""
        return self.loader.maps[name]

    def netlink(self) -> Netlink:
        """The socket to the kernel. Raises RuntimeError before open()."""
        if self._netlink is None:
            raise RuntimeError("data path is not open: call open() first")
        return self._netlink

    def underlay(self) -> Underlay:
        """As found last. Raises RuntimeError before open()."""
        if self._underlay is None:
            raise RuntimeError("data path is not open: call open() first")
        return self._underlay

    def open(self) -> None:
        """Settings, vxlan device, programs and maps (adopted when pinned), NAT table. Then attach(), unless
        `loader.is_switching`: then switch(), when the new maps are filled."""
        self._netlink = netlink = Netlink()
        self._underlay = find_underlay(netlink, self.address)
        self._ensure_devices()
        self._ensure_table()
        for drop in nft.foreign_forward_drops():
            _log.warning(
                "a foreign nft chain drops forwarded packets: containers' outbound traffic may stop",
                chain=f"{drop.family} {drop.table} {drop.chain}",
                remedy=f"let it accept iifgroup {nft.PORT_GROUP}",
            )
        self.loader.open()
        self.level = sockets.load(self.loader, self._wish)
        self._configure()
        unified.renew(self.map("generation"))

    def _ensure_devices(self) -> None:
        for name, value in SETTINGS.items():
            write_sysctl(name, value)
        netlink = self.netlink()
        netlink.set_link(_LO, up=True)
        for link in netlink.links():  # one may be of a version whose rules went by names
            group = nft.PORT_GROUP if is_ours(link) else nft.ACCESS_GROUP if is_pair(link) else link.group
            if group != link.group:
                with unless_gone():
                    netlink.set_link(link.ifindex, group=group)
        vxlan = self._ensure_vxlan(netlink)
        write_sysctl(f"ipv6/conf/{VXLAN_DEVICE}/disable_ipv6", "1")
        netlink.set_link(vxlan.ifindex, up=True, mtu=65485)
        self._vxlan_ifindex = vxlan.ifindex

    def _ensure_table(self) -> None:
        nft.run_nft(nft.host_table(self.instance))
        self.pools.renew()

    def _ensure_vxlan(self, netlink: Netlink) -> Link:
        """The kernel's vxlan device. One of a version that knew IPv4 underlays alone drops what comes over IPv6."""
        old = netlink.link(VXLAN_DEVICE)
        if old is not None and old.alias != _TAKES_IPV6 and self.hosts is V6:
            netlink.delete_link(old.ifindex)
            old = None
        if old is None:
            netlink.add_vxlan(VXLAN_DEVICE, self._vxlan_port)
        vxlan = netlink.link(VXLAN_DEVICE)
        assert vxlan is not None
        if old is None:
            netlink.set_link(vxlan.ifindex, alias=_TAKES_IPV6)
        return vxlan

    def attach(self, endpoints: Mapping[str, int]) -> None:
        """Have every program where it belongs; `endpoints`: interfaces of containers, by endpoint id."""
        netlink = self.netlink()
        for endpoint_id, ifindex in endpoints.items():
            with unless_gone():
                self.loader.ensure_port(netlink, ifindex, host_name(endpoint_id))
        self.loader.ensure_attached(netlink, self._vxlan_ifindex, "from_vxlan", "vxlan")
        self.loader.ensure_attached(netlink, self.underlay().ifindex, "from_underlay", "underlay")
        self.loader.ensure_attached(netlink, _LO, "from_host", "lo")
        self.edges.attach(netlink)
        self.attach_sockets()

    def attach_sockets(self) -> None:
        """Have the socket level's programs where load() said they can be."""
        self.level = sockets.attach(self.loader, self._wish, self.level)

    def switch(self, endpoints: Mapping[str, int]) -> None:
        """Go over to the programs and maps of a new layout, filled by now. A crash in here: all of it again."""
        self.loader.carry_connections()
        self.attach(endpoints)
        self.loader.carry_connections()
        self.loader.finish_switch()
        for name, why in self.loader.left.items():
            _log.warning(
                "the data path has a new layout, and a map of the old one could not be taken over",
                map=name,
                reason=why,
                consequence=carry.LOST[name.removesuffix("6")],
            )
        if not self.loader.left:
            _log.info("the data path has a new layout; its connections were carried over")

    def _configure(self) -> None:
        under = self.underlay()
        value = config_value(
            under.ifindex,
            under.client_address,
            under.client_prefix,
            under.mtu,
            self._vxlan_ifindex,
            _LO,
            self._vxlan_port,
            narrow=any(mtu < under.mtu for mtu in self._paths.values()),
            slow=self._slow,
            tunnels=(under.address, under.prefix) if self.hosts is V6 else None,
        )
        self.map("config").update(struct.pack("I", 0), value)
        self._follow_addresses()

    def _follow_addresses(self) -> None:
        """The host's own addresses may have changed since the last look."""
        under = self.underlay()
        if self.edges.follow(self.netlink(), under.ifindex, under.client_address):
            unified.renew(self.map("generation"))

    def follow_addresses(self) -> None:
        """Published ports are at the addresses this host has now."""
        self._follow_addresses()
        if not self.loader.is_switching:
            self.edges.attach(self.netlink())

    def close(self) -> None:
        """Let go; traffic continues."""
        self.loader.close()
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    def destroy(self) -> None:
        """Remove programs, pins, vxlan device and NAT table; works on an object that was never opened."""
        netlink = self._netlink or Netlink()
        for link in netlink.links():
            if link.name == VXLAN_DEVICE:
                netlink.delete_link(link.ifindex)
        if not self.loader.tcx:
            for link in netlink.links():
                netlink.remove_clsact_filter(link.ifindex)
        self.loader.destroy()
        nft.run_nft(nft.remove_table(nft.table_name(self.instance)))
        netlink.close()
        self._netlink = None

    def open_probe(self) -> ProbeSocket:
        """The socket for probes; the programs bring it what is meant for it from now on. The caller closes it."""
        probe = ProbeSocket(self.address, self._vxlan_port)
        try:
            self.map("prober_of").update(struct.pack("I", 0), struct.pack(">HH", probe.port, 0))
        except BaseException:
            probe.close()
            raise
        return probe

    def set_paths(self, mtus: Mapping[str, int]) -> None:
        """As DataPath.set_paths."""
        want, table = path_rows(mtus, self.hosts), self.map("paths")
        have = dict(table.items())
        table.put_many({k: v for k, v in want.items() if have.get(k) != v})
        table.delete_many(k for k in have if k not in want)
        self._paths = dict(mtus)
        self._configure()

    def use_slow_path(self, on: bool) -> None:
        """As DataPath.use_slow_path."""
        self._slow = on
        self._configure()

    def use_packet_level(self, on: bool) -> None:
        """As DataPath.use_packet_level."""
        level = Balancing("packet", "to measure") if on else sockets.load(self.loader, self._wish)
        self.level = sockets.attach(self.loader, self._wish, level)

    def look_at_underlay(self) -> Underlay:
        """As it is now: its MTU may have been changed since open(), or its interface be another one."""
        before, now = self.underlay(), find_underlay(self.netlink(), self.address)
        if now != before:
            self._underlay = now
            self._configure()
            unified.renew(self.map("generation"))  # flows remember its MAC
        self.follow_addresses()
        return now

    # looking after itself

    def explain(self, endpoints: Mapping[str, int]) -> list[Finding]:
        """What of all this does not stand as it should; `endpoints` as in attach()."""
        netlink = self.netlink()
        links = {link.ifindex: link for link in netlink.links()}
        places = {"underlay": ("from_underlay", self.underlay().ifindex), "lo": ("from_host", _LO)}
        places["vxlan"] = ("from_vxlan", self._vxlan_ifindex)
        ids: dict[str, str] = {}
        for id, ifindex in endpoints.items():
            if ifindex in links:
                ids |= dict.fromkeys(port_links(host_name(id)), id)
                places |= {host_name(id) + tail: (name, ifindex) for name, tail in PORT_PROGRAMS.items()}
        places |= {name: ("from_edge", at) for name, at in self.edges.links().items() if at in links}
        have = {name: Program(*at) for name, at in self.loader.look().items()}
        if not self.loader.tcx:
            have |= {
                name: Program(netlink.clsact_program(at, egress=program in AT_EGRESS), at)
                for name, (program, at) in places.items()
            }
        places |= sockets.places(self.level)
        numbers = {
            name: bpf.program_id(self.loader.programs[name]) for name in {p for p, _ in places.values()}
        }
        want = Standing(
            underlay=self._underlay,
            vxlan=self._vxlan_ifindex,
            programs={name: Program(numbers[program], at) for name, (program, at) in places.items()},
            settings=SETTINGS,
        )
        try:
            underlay = find_underlay(netlink, self.address)
        except OSError:
            underlay = None
        up = (link.ifindex for link in links.values() if link.name == VXLAN_DEVICE and link.up)
        settings = {name: read_sysctl(name) for name in SETTINGS}
        seen = Standing(underlay, next(up, 0), have, settings, tuple(self._lost_of_table()))
        return list(explain_standing(want, seen, self.address, ids))

    def _lost_of_table(self) -> list[str]:
        """Rules are only read when somebody has changed any since the last look."""
        now = nft.generation()
        if now == self._table_seen:
            return []
        lost = nft.lost(self.instance, self.pools.known())
        if not lost:
            self._table_seen = now
        return lost

    def mend(self, endpoints: Mapping[str, int]) -> None:
        """Make again what explain() misses. What it makes of programs and devices changes nothing where they stand."""
        self._ensure_devices()
        if self._lost_of_table():
            self._ensure_table()
        try:
            self._underlay = find_underlay(self.netlink(), self.address)
        except OSError:
            return  # without its address there is nothing to attach to; the next look tries again
        self._configure()
        self.attach(endpoints)
        unified.renew(self.map("generation"))
