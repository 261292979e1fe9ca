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


def six_addresses(table: Path = Path("/proc/self/net/if_inet6")) -> set[str]:
    """All IPv6 addresses of this host (proc(5), net/if_inet6); none where the kernel has no IPv6."""
    try:
        lines = table.read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {str(IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines}
