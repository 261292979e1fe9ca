"""Sockets inside a sandbox for the containers' resolver.

Owns the sockets' birth and the redirect of 127.0.0.11:53 to them, so that a container may listen on port 53
itself. Must not know DNS.
"""

from __future__ import annotations

import socket
from pathlib import Path

from .netns import run_inside
from .nft import run_nft

_TABLE = "overlace_dns"


def bind_dns(sandbox: Path, address: str = "127.0.0.11") -> tuple[socket.socket, socket.socket]:
    """(UDP, listening TCP), non-blocking, on free ports of `address` in the sandbox; port 53 of it leads
    there. Calling again (after a daemon restart) moves the redirect to the new sockets."""

    def body() -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            udp.bind((address, 0))
            tcp.bind((address, 0))
            tcp.listen(64)
            udp.setblocking(False)
            tcp.setblocking(False)
            to_udp, to_tcp = udp.getsockname()[1], tcp.getsockname()[1]
            run_nft(f"""
add table ip {_TABLE}
delete table ip {_TABLE}
table ip {_TABLE} {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {address} udp dport 53 dnat to {address}:{to_udp}
    ip daddr {address} tcp dport 53 dnat to {address}:{to_tcp}
  }}
}}
""")
        except BaseException:
            udp.close()
            tcp.close()
            raise
        return udp, tcp

    return run_inside(sandbox, body)


def client_socket(sandbox: Path | int, family: int, *, tcp: bool) -> socket.socket:
    """A non-blocking socket of the sandbox (its file, or an open descriptor of it), to ask a nameserver from there."""

    def body() -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        made.setblocking(False)
        return made

    return run_inside(sandbox, body)
