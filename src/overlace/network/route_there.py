"""Whether this host's route table leads to another host.

Owns the question to the kernel, without a packet: connect(2) of a UDP socket looks the route up. Nothing here needs
Linux. Must not say what to do about the answer.
"""

from __future__ import annotations

import errno
import socket

from overlace.model.family import is_six

# what connect(2) makes of route types, Linux fib_props (net/ipv4/fib_semantics.c); WSAENETUNREACH is ENETUNREACH there
_WORDS = {
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "an unreachable route (ip route add unreachable)",
    errno.EACCES: "a prohibit route (ip route add prohibit)",
    errno.EINVAL: "a blackhole route (ip route add blackhole)",
}


def wrong_with_route(address: str, port: int) -> str:
    """What keeps packets to this address in the host; empty: nothing does."""
    family = socket.AF_INET6 if is_six(address) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
    except OSError as e:
        return _WORDS.get(e.errno or 0, "")
    return ""
