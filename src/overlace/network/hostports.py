"""Which ports of the host are taken: by listening sockets, by tasks, by published services.

Owns the check and Docker's words for it. Reads /proc of the daemon's own network namespace; must not change
anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from overlace.model.errors import Conflict, InvalidArgument
from overlace.model.protocols import WITH_PORTS
from overlace.model.specs import PortConfig

PROC_NET = Path("/proc/thread-self/net")  # `self` is the main thread's, which may stand elsewhere
DYNAMIC = range(32768, 61000)  # Docker takes unnamed host ports from the kernel's ephemeral range
_LISTEN, _UNCONNECTED = "0A", "07"
HostPort = tuple[int, int]  # protocol number, port


def listening(proc_net: Path = PROC_NET) -> set[HostPort]:
    """Ports with a listening TCP or unconnected UDP socket, on whatever address."""
    out: set[HostPort] = set()
    for name, protocol, state in (
        ("tcp", 6, _LISTEN),
        ("tcp6", 6, _LISTEN),
        ("udp", 17, _UNCONNECTED),
        ("udp6", 17, _UNCONNECTED),
    ):
        try:
            lines = (proc_net / name).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # no IPv6 in this kernel
        for line in lines:
            words = line.split()
            if words[3] == state:
                out.add((protocol, int(words[1].rpartition(":")[2], 16)))
    return out


def plan_host_ports(
    task_name: str, wanted: Iterable[PortConfig], taken: Mapping[HostPort, str], sockets: set[HostPort]
) -> tuple[PortConfig, ...]:
    """`wanted` with published numbers filled in. `taken`: ports of tasks and services and whose they are.

    Raises Conflict in Docker's words; InvalidArgument for a protocol or port number that is none.
    """
    out: list[PortConfig] = []
    used: set[HostPort] = set(taken)
    for p in wanted:
        protocol = WITH_PORTS.get(p.protocol)
        if protocol is None:
            raise InvalidArgument(f"port protocol {p.protocol!r}: use tcp, udp or sctp")
        if not 0 < p.target_port < 65536 or not 0 <= p.published_port < 65536:
            raise InvalidArgument(
                f"port {p.published_port}:{p.target_port}/{p.protocol}: ports are from 1 to 65535"
            )
        number = p.published_port
        if number == 0:
            free = (n for n in DYNAMIC if (protocol, n) not in used and (protocol, n) not in sockets)
            number = next(free, 0)
            if number == 0:
                raise Conflict(f"no free {p.protocol} port left between {DYNAMIC[0]} and {DYNAMIC[-1]}")
        elif (protocol, number) in used:
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {task_name}: "
                f"Bind for 0.0.0.0:{number} failed: port is already allocated"
            )
        elif (protocol, number) in sockets:
            raise Conflict(
                f"driver failed programming external connectivity on endpoint {task_name}: "
                f"failed to bind port 0.0.0.0:{number}/{p.protocol}: "
                f"listen {p.protocol}4 0.0.0.0:{number}: bind: address already in use"
            )
        used.add((protocol, number))
        out.append(msgspec.structs.replace(p, published_port=number))
    return tuple(out)
