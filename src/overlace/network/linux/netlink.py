"""Rtnetlink by hand: links, addresses, routes, neighbours, clsact (rtnetlink(7), <linux/if_link.h>,
<linux/rtnetlink.h>).

Owns message encoding. One socket belongs to the namespace it was opened in, for good; opening it elsewhere is
netns.py's work. Hand-packed because attaching a container is a dozen messages and a daemon starts many
containers at once.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 20, 22, 24, 26, 28
_NEWQDISC, _DELQDISC, _NEWTFILTER, _GETTFILTER = 36, 37, 44, 46
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 1, 4, 0x100, 0x200, 0x400, 0x300
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_GROUP, _IFLA_NET_NS_FD = (
    1,
    3,
    4,
    18,
    20,
    27,
    28,
)
_IFF_UP = 1
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR of linux/netlink.h: entries may be missing or there twice
_DUMPS = 20
_ROUTE_PROTOCOL = 0x6F  # marks our routes in `ip route`: proto 111


class Link(msgspec.Struct, frozen=True):
    """One interface."""

    ifindex: int
    name: str
    mtu: int
    mac: str
    alias: str
    up: bool
    kind: str
    hardware: int = 1  # ARPHRD_* of linux/if_arp.h; 1: Ethernet
    group: int = 0


class Address(msgspec.Struct, frozen=True):
    """One address of an interface."""

    ifindex: int
    address: str
    prefix: int
    flags: int = 0  # IFA_F_* of linux/if_addr.h, the lower eight bits


class Route(msgspec.Struct, frozen=True):
    """One route of the main table. `ours`: a data path made it."""

    ifindex: int  # 0: none, or several
    destination: str
    prefix: int
    ours: bool


def _packed(address: str) -> tuple[int, bytes]:
    """(address family, octets). Raises ValueError for what is no address."""
    parsed = ip_address(address)
    return (socket.AF_INET if parsed.version == 4 else socket.AF_INET6), parsed.packed


def _attr(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attr(kind, text.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack("I", value))


def _attrs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += length + (-length % 4)


def _link_header(ifindex: int = 0, flags: int = 0, mask: int = 0) -> bytes:
    return struct.pack("BxHiII", 0, 0, ifindex, flags, mask)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


def _read_link(body: bytes) -> Link:
    _, hardware, ifindex, flags, _ = struct.unpack_from("BxHiII", body)
    name, mtu, mac, alias, kind, group = "", 0, "", "", "", 0
    for attribute, value in _attrs(body[16:]):
        if attribute == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode()
        elif attribute == _IFLA_MTU:
            (mtu,) = struct.unpack("I", value)
        elif attribute == _IFLA_ADDRESS:
            mac = value.hex(":")
        elif attribute == _IFLA_GROUP:
            (group,) = struct.unpack("I", value)
        elif attribute == _IFLA_IFALIAS:
            alias = value.rstrip(b"\0").decode(errors="replace")
        elif attribute == _IFLA_LINKINFO:
            kind = next((v.rstrip(b"\0").decode() for k, v in _attrs(value) if k == 1), "")
    return Link(ifindex, name, mtu, mac, alias, bool(flags & _IFF_UP), kind, hardware, group)


class Netlink:
    """A route socket of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(30)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self, kind: int, flags: int, payload: bytes, what: str, *, accept: tuple[int, ...] = ()
    ) -> None:
        """One request and its acknowledgement. `accept`: errno values that mean the state is already as
        wanted. Raises OSError naming `what`."""
        self._sequence += 1
        header = struct.pack("IHHII", len(payload) + 16, kind, _REQUEST | _ACK | flags, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(65536)
            _, answer, _, sequence, _ = struct.unpack_from("IHHII", data)
            if sequence != self._sequence or answer != 2:
                continue
            (error,) = struct.unpack_from("i", data, 16)
            if error and -error not in accept:
                raise OSError(-error, f"{what}: {os.strerror(-error)}")
            return

    def _dump(self, kind: int, payload: bytes) -> Iterator[bytes]:
        """Of one state: what changed while it was read is read again. Raises OSError."""
        for _ in range(_DUMPS):
            bodies, interrupted = self._dump_once(kind, payload)
            if not interrupted:
                return iter(bodies)
        raise OSError(errno.EAGAIN, f"netlink dump: what is read changed meanwhile, {_DUMPS} times")

    def _dump_once(self, kind: int, payload: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        header = struct.pack("IHHII", len(payload) + 16, kind, _REQUEST | _DUMP, self._sequence, 0)
        self._socket.send(header + payload)
        bodies: list[bytes] = []
        interrupted = False
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, answer, flags, sequence, _ = struct.unpack_from("IHHII", data, at)
                if sequence == self._sequence:
                    interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                    if answer == 3:  # done
                        return bodies, interrupted
                    if answer == 2:
                        (error,) = struct.unpack_from("i", data, at + 16)
                        raise OSError(-error, f"netlink dump: {os.strerror(-error)}")
                    bodies.append(data[at + 16 : at + length])
                at += length + (-length % 4)

    def links(self) -> list[Link]:
        """Every interface of the namespace."""
        return [_read_link(body) for body in self._dump(_GETLINK, _link_header())]

    def link(self, name: str) -> Link | None:
        """The interface of that name."""
        self._sequence += 1
        payload = _link_header() + _text(_IFLA_IFNAME, name)
        header = struct.pack("IHHII", len(payload) + 16, _GETLINK, _REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(65536)
            length, answer, _, sequence, _ = struct.unpack_from("IHHII", data)
            if sequence != self._sequence:
                continue
            if answer == _NEWLINK:
                return _read_link(data[16:length])
            (error,) = struct.unpack_from("i", data, 16)
            if error == -19:  # ENODEV
                return None
            raise OSError(-error, f"interface {name}: {os.strerror(-error)}")

    def addresses(self, family: int = socket.AF_INET) -> list[Address]:
        """Every address of the namespace in a family, IPv4 unless it says otherwise."""
        found = []
        for body in self._dump(_GETADDR, struct.pack("BBBBi", family, 0, 0, 0, 0)):
            _, prefix, flags, _, ifindex = struct.unpack_from("BBBBi", body)
            values = dict(_attrs(body[8:]))
            raw = values.get(2) or values.get(1)  # IFA_LOCAL, IFA_ADDRESS
            if raw:
                text = str(IPv4Address(raw) if family == socket.AF_INET else IPv6Address(raw))
                found.append(Address(ifindex, text, prefix, flags))
        return found

    def add_veth(
        self, name: str, peer: str, peer_mac: str, mtu: int, peer_namespace: int, group: int = 0
    ) -> None:
        """A veth pair, `name` in the interface group; `peer` appears in the namespace open as descriptor
        `peer_namespace`. Raises FileExistsError when either name is taken."""
        inner = (
            _link_header()
            + _text(_IFLA_IFNAME, peer)
            + _attr(_IFLA_ADDRESS, mac_bytes(peer_mac))
            + _u32(_IFLA_MTU, mtu)
            + _u32(_IFLA_NET_NS_FD, peer_namespace)
        )
        info = _text(1, "veth") + _attr(2, _attr(1, inner))  # IFLA_INFO_KIND, IFLA_INFO_DATA{VETH_INFO_PEER}
        body = _link_header() + _text(_IFLA_IFNAME, name) + _u32(_IFLA_MTU, mtu) + _u32(_IFLA_GROUP, group)
        body += _attr(_IFLA_LINKINFO, info)
        self._request(_NEWLINK, _CREATE | _EXCL, body, f"veth {name} - {peer}")

    def add_vxlan(self, name: str, port: int) -> None:
        """A vxlan device in external (collect_md) mode; there already is fine."""
        # collect_md, port, learning; UDP over IPv6 without checksum is received (RFC 6935)
        data = _attr(25, b"\1") + _attr(15, struct.pack(">H", port)) + _attr(7, b"\0") + _attr(20, b"\1")
        info = _text(1, "vxlan") + _attr(2, data)
        body = _link_header() + _text(_IFLA_IFNAME, name) + _attr(_IFLA_LINKINFO, info)
        self._request(_NEWLINK, _CREATE | _EXCL, body, f"vxlan device {name}", accept=(17,))

    def set_link(
        self,
        ifindex: int,
        *,
        up: bool = False,
        alias: str | None = None,
        mtu: int | None = None,
        group: int | None = None,
    ) -> None:
        """Change an interface."""
        body = _link_header(ifindex, _IFF_UP if up else 0, _IFF_UP if up else 0)
        if alias is not None:
            body += _attr(_IFLA_IFALIAS, alias.encode())
        if mtu is not None:
            body += _u32(_IFLA_MTU, mtu)
        if group is not None:
            body += _u32(_IFLA_GROUP, group)
        self._request(_NEWLINK, 0, body, f"change interface {ifindex}")

    def delete_link(self, ifindex: int) -> None:
        """Remove an interface; gone already is fine."""
        self._request(_DELLINK, 0, _link_header(ifindex), f"remove interface {ifindex}", accept=(19,))

    def add_address(self, ifindex: int, address: str, prefix: int) -> None:
        """Give an interface an address, usable at once (IFA_F_NODAD: whoever gives it knows that nobody else has it);
        there already is fine."""
        family, raw = _packed(address)
        header = struct.pack("BBBBi", family, prefix, 0 if family == socket.AF_INET else 2, 0, ifindex)
        body = header + _attr(2, raw) + _attr(1, raw)
        self._request(_NEWADDR, _CREATE | _REPLACE, body, f"address {address}/{prefix}", accept=(17,))

    def add_route(
        self, ifindex: int, destination: str = "0.0.0.0", prefix: int = 0, gateway: str = ""
    ) -> None:
        """A route through an interface, replacing one to the same destination."""
        family, to = _packed(destination)
        scope = 0 if gateway or family == socket.AF_INET6 else 253  # global, link
        flags = 4 if gateway else 0  # RTNH_F_ONLINK
        body = struct.pack("BBBBBBBBI", family, prefix, 0, 0, 254, _ROUTE_PROTOCOL, scope, 1, flags)
        if prefix:
            body += _attr(1, to)
        body += _u32(4, ifindex)
        if gateway:
            body += _attr(5, _packed(gateway)[1])
        self._request(_NEWROUTE, _CREATE | _REPLACE, body, f"route {destination}/{prefix} {gateway}".rstrip())

    def routes(self) -> list[Route]:
        """The IPv4 routes of the main table (RT_TABLE_MAIN), where a host's administrator and its daemons have theirs."""
        found = []
        for body in self._dump(_GETROUTE, struct.pack("BBBBBBBBI", socket.AF_INET, *[0] * 8)):
            _, prefix, _, _, table, protocol, _, _, _ = struct.unpack_from("BBBBBBBBI", body)
            values = dict(_attrs(body[12:]))
            to = values.get(1, bytes(4))  # RTA_DST
            (ifindex,) = struct.unpack("I", values.get(4, bytes(4)))  # RTA_OIF
            if table == 254:
                found.append(Route(ifindex, str(IPv4Address(to)), prefix, protocol == _ROUTE_PROTOCOL))
        return found

    def add_neighbour(self, ifindex: int, address: str, mac: str) -> None:
        """A permanent neighbour entry, replacing another."""
        family, raw = _packed(address)
        header = struct.pack("BxHiHBB", family, 0, ifindex, 0x80, 0, 0)
        body = header + _attr(1, raw) + _attr(2, mac_bytes(mac))
        self._request(_NEWNEIGH, _CREATE | _REPLACE, body, f"neighbour {address}")

    def ensure_clsact(self, ifindex: int, program: int, name: str, *, egress: bool = False) -> None:
        """Attach a program by the older way: clsact ingress or egress, direct action, replacing ours."""
        tc = struct.pack("BxHiIII", 0, 0, ifindex, 0xFFFF0000, 0xFFFFFFF1, 0)
        self._request(
            _NEWQDISC, _CREATE | _EXCL, tc + _text(1, "clsact"), f"clsact on {ifindex}", accept=(17,)
        )
        info = (0x6F << 16) | socket.htons(3)  # priority 111, ETH_P_ALL
        parent = 0xFFFFFFF3 if egress else 0xFFFFFFF2
        tc = struct.pack("BxHiIII", 0, 0, ifindex, 1, parent, info)
        options = _u32(6, program) + _text(7, name) + _u32(8, 1)  # TCA_BPF_FD, NAME, FLAGS=direct action
        body = tc + _text(1, "bpf") + _attr(2, options)
        self._request(_NEWTFILTER, _CREATE | _REPLACE, body, f"bpf filter on {ifindex}")

    def clsact_program(self, ifindex: int, *, egress: bool = False) -> int:
        """The id of the program that ensure_clsact attached there, 0: none."""
        request = struct.pack("BxHiIII", 0, 0, ifindex, 0, 0xFFFFFFF3 if egress else 0xFFFFFFF2, 0)
        try:
            bodies = self._dump(_GETTFILTER, request)
        except OSError:  # no such interface, or no qdisc at it
            return 0
        for body in bodies:
            (info,) = struct.unpack_from("I", body, 16)
            options = dict(_attrs(body[20:])).get(2, b"")
            id = dict(_attrs(options)).get(11)  # TCA_BPF_ID
            if info >> 16 == 0x6F and id:
                return int(struct.unpack("I", id)[0])
        return 0

    def remove_clsact_filter(self, ifindex: int) -> None:
        """Remove what ensure_clsact attached; absent is fine. The qdisc stays: others may use it."""
        info = (0x6F << 16) | socket.htons(3)
        tc = struct.pack("BxHiIII", 0, 0, ifindex, 0, 0xFFFFFFF2, info)
        self._request(45, 0, tc, f"bpf filter on {ifindex}", accept=(2, 19, 22))
