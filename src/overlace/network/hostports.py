"""Which ports of the host are taken: by listening sockets, by tasks, by published services.

Owns the check and Docker's words for it. Reads /proc of the daemon's own network namespace; must not change
anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import msgspec

from overlace.model.errors import Conflict, InvalidArgument
from overlace.model.protocols import WITH_PORTS
from overlace.model.specs import PortConfig
from overlace.network.socket_tables import read_sctp, read_table

PROC_NET = Path("/proc/thread-self/net")  # `self` is the main thread's, which may stand elsewhere
DYNAMIC = range(32768, 61000)  # Docker takes unnamed host ports from the kernel's ephemeral range
_LISTEN, _UNCONNECTED = "0A", "07"  # proc(5)
HostPort = tuple[str, int, int]  # address, "" for every one of the host; protocol number; port


def at(address: str) -> str:
    """An address as HostPort has it: "" for those that mean any, IPv4 where IPv6 names it."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return "" if parsed.is_unspecified else str(parsed)


def listening(proc_net: Path = PROC_NET) -> dict[HostPort, int]:
    """Where there is a listening TCP or SCTP or an unconnected UDP socket, and its inode."""
    out: dict[HostPort, int] = {}
    for name, protocol, state in (
        ("tcp", 6, _LISTEN),
        ("tcp6", 6, _LISTEN),
        ("udp", 17, _UNCONNECTED),
        ("udp6", 17, _UNCONNECTED),
        ("sctp/eps", 132, ""),
    ):
        try:
            text = (proc_net / name).read_text()
        except FileNotFoundError:
            continue  # this kernel has no IPv6, or no SCTP
        for found, inode in read_table(text, state) if state else read_sctp(text):
            out[(at(found.address), protocol, found.port)] = inode
    return out


def own_addresses() -> tuple[str, ...]:
    """Of the calling thread's namespace, those that a published port can be at."""
    from overlace.network.linux.netlink import Netlink  # a Windows host has no use for it

    with Netlink() as netlink:
        there = [a.address for f in (socket.AF_INET, socket.AF_INET6) for a in netlink.addresses(f)]
    return tuple(dict.fromkeys(a for a in there if a != "::1" and not ip_address(a).is_link_local))


def holder_of(inode: int, proc: Path = Path("/proc")) -> str:
    """The program that has the socket, as `sshd (pid 712)`; "" when nobody here shows it."""
    wanted = f"socket:[{inode}]"
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            with os.scandir(folder / "fd") as entries:
                holds = any(os.readlink(entry.path) == wanted for entry in entries)
            if holds:
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
        except OSError:
            continue  # it ended, or is not ours to look at
    return ""


def is_own(address: str) -> bool:
    """Whether a socket of this host may have the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def taker(port: HostPort, there: Iterable[HostPort]) -> HostPort | None:
    """The first of `there` that leaves `port` no room: same protocol and port, and an address they share."""
    address, protocol, number = port
    for other in there:
        if other[1:] == (protocol, number) and (not address or not other[0] or other[0] == address):
            return other
    return None


def plan_host_ports(
    task_name: str, wanted: Iterable[PortConfig], taken: Mapping[HostPort, str], sockets: Iterable[HostPort]
) -> tuple[PortConfig, ...]:
    """`wanted` with published numbers filled in. `taken`: ports of tasks and services and whose they are.

    Raises Conflict in Docker's words; InvalidArgument for a protocol or port number that is none.
    """
    out: list[PortConfig] = []
    used: dict[tuple[int, int], set[HostPort]] = {}
    listened: dict[tuple[int, int], set[HostPort]] = {}
    for index, there in ((used, taken), (listened, sockets)):
        for key in there:
            index.setdefault(key[1:], set()).add(key)
    for p in wanted:
        protocol = WITH_PORTS.get(p.protocol)
        if protocol is None:
            raise InvalidArgument(f"port protocol {p.protocol!r}: use tcp, udp or sctp")
        if not 0 < p.target_port < 65536 or not 0 <= p.published_port < 65536:
            raise InvalidArgument(
                f"port {p.published_port}:{p.target_port}/{p.protocol}: ports are from 1 to 65535"
            )

        def clashes(number: int, index: dict[tuple[int, int], set[HostPort]], p: PortConfig = p) -> bool:
            key = (WITH_PORTS[p.protocol], number)
            return taker((p.host_ip, *key), index.get(key, ())) is not None

        number, shown = p.published_port, _shown(p.host_ip)
        if number == 0:
            number = next((n for n in DYNAMIC if not clashes(n, used) and not clashes(n, listened)), 0)
            if number == 0:
                raise Conflict(f"no free {p.protocol} port left between {DYNAMIC[0]} and {DYNAMIC[-1]}")
        elif clashes(number, used):
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {task_name}: "
                f"Bind for {shown}:{number} failed: port is already allocated"
            )
        elif clashes(number, listened):
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {task_name}: "
                f"failed to bind port {shown}:{number}/{p.protocol}: "
                f"listen {p.protocol}{6 if ':' in shown else 4} {shown}:{number}: bind: address already in use"
            )
        used.setdefault((protocol, number), set()).add((p.host_ip, protocol, number))
        out.append(msgspec.structs.replace(p, published_port=number))
    return tuple(out)


def check_addresses(task_name: str, wanted: Iterable[PortConfig]) -> None:
    """That this host has the addresses it shall publish at. Raises Conflict in Docker's words."""
    for p in wanted:
        if p.host_ip and not is_own(p.host_ip):
            shown = _shown(p.host_ip)
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {task_name}: "
                f"failed to bind port {shown}:{p.published_port}/{p.protocol}: listen {p.protocol}"
                f"{6 if ':' in shown else 4} {shown}:{p.published_port}: bind: cannot assign requested address"
            )


def _shown(host_ip: str) -> str:
    return f"[{host_ip}]" if ":" in host_ip else host_ip or "0.0.0.0"
