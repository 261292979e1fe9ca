"""The addresses of this host's interfaces, read from its system.

Owns that one question. Must not change anything.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address
from pathlib import Path

from overlace.model.system import ON_WINDOWS
from overlace.network.windows.adapters import adapters

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def interface_addresses() -> dict[str, str]:
    """Interface name -> its primary IPv4 address (netdevice(7), GetAdaptersAddresses); those without one are left out."""
    if ON_WINDOWS:
        return {a.name: a.addresses[0] for a in adapters() if a.addresses}
    import fcntl

    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # no IPv4 address
            found[name] = socket.inet_ntoa(reply[20:24])
    return found


def six_addresses(table: Path = Path("/proc/self/net/if_inet6")) -> dict[str, str]:
    """All IPv6 addresses of this host and their interfaces (proc(5), net/if_inet6); none where the kernel has no IPv6."""
    try:
        lines = [line.split() for line in table.read_text().splitlines()]
    except FileNotFoundError:
        return {}
    return {str(IPv6Address(bytes.fromhex(line[0]))): line[-1] for line in lines}


def six_hosts(table: Path = Path("/proc/self/net/if_inet6")) -> dict[str, str]:
    """Those by which other hosts find this one: neither loopback nor good on one link only."""
    return {
        a: name
        for a, name in six_addresses(table).items()
        if not (IPv6Address(a).is_loopback or IPv6Address(a).is_link_local)
    }
