"""The daemon's socket for probes: what it sends on 127.0.0.1 leaves through the tunnel, and answers come back to it.

Owns the socket. Must not know when to send what. The programs on lo and
on the underlay do the rest, so that a probe goes the way a container's packet goes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

from overlace.network.probe_message import PROGRAM, SLOW, Arrived, least, message, parse_message

_SO_NO_CHECK = 11
_SO_TIMESTAMPNS = 35


class ProbeSocket:
    """Two sockets on 127.0.0.1: one whose checksums are left to the device, one that sends none."""

    def __init__(self, underlay: str, vxlan_port: int) -> None:
        self._underlay = ip_address(underlay).packed
        self._to = ("127.0.0.1", vxlan_port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._plain.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        for one in (self._socket, self._plain):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)

    @property
    def port(self) -> int:
        """Where the programs bring answers and questions."""
        return int(self._socket.getsockname()[1])

    def listen(self, arrived: Callable[[], None]) -> None:
        """`arrived` is called when there is something to receive."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), arrived)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._plain.close()

    def send(
        self,
        kind: int,
        target: str,
        nonce: int,
        size: int = 0,
        *,
        checksum: bool = True,
        slow: bool = False,
    ) -> int:
        """Returns when, in ns since the epoch. `size`: bytes of the outer IP packet, at least what a probe takes; `slow`:
        through the kernel's vxlan device, which may fragment it. A full queue is a lost packet."""
        size = max(size, least(len(self._underlay)))
        body = message(kind, SLOW if slow else PROGRAM, self._underlay, target, nonce, size)
        at = time.time_ns()
        try:
            (self._socket if checksum else self._plain).sendto(body, self._to)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.ENETUNREACH):
                raise
        return at

    def receive(self) -> Arrived | None:
        """The next message that waits; None: there is none."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65536, 64)
            except BlockingIOError:
                return None
            at = time.time_ns()
            for level, what, value in ancillary:
                if (level, what) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = struct.unpack("qq", value)
                    at = seconds * 1_000_000_000 + nanoseconds
            found = parse_message(data, at, len(self._underlay))
            if found is not None:
                return found
