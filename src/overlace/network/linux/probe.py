"""The daemon's socket for probes: what it sends on 127.0.0.1 leaves through the tunnel, and answers come back to it.

Owns the message (struct probe of bpf/probe.h) and the socket. Must not know when to send what. The programs on lo and
on the underlay do the rest, so that a probe goes the way a container's packet goes.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from ipaddress import IPv4Address

import msgspec

MAGIC = 0x6F76
ECHO, ECHOED, CHECK, CHECKED = 1, 2, 3, 4
_FORMAT = ">HBB4s4sI"  # and the nonce, in the host's order: nobody reads it in between
OVERHEAD = 20 + 8 + 8 + 14 + 20 + 8  # outer IP, UDP, VXLAN, inner Ethernet, IP, UDP
LEAST = OVERHEAD + struct.calcsize(_FORMAT) + 8  # bytes of the outer IP packet of the shortest probe
_SO_NO_CHECK = 11
_SO_TIMESTAMPNS = 35


class Arrived(msgspec.Struct, frozen=True):
    """`at`: ns since the epoch, when the kernel had it."""

    kind: int
    source: str
    nonce: int
    at: int


class ProbeSocket:
    """Two sockets on 127.0.0.1: one whose checksums are left to the device, one that sends none."""

    def __init__(self, underlay: str, vxlan_port: int) -> None:
        self._underlay = IPv4Address(underlay).packed
        self._to = ("127.0.0.1", vxlan_port)
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

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._plain.close()

    def send(
        self,
        kind: int,
        target: str,
        nonce: int,
        size: int = LEAST,
        *,
        checksum: bool = True,
        slow: bool = False,
    ) -> int:
        """Returns when, in ns since the epoch. `size`: bytes of the outer IP packet; `slow`: through the kernel's vxlan
        device, which may fragment it. A full queue is a lost packet."""
        head = struct.pack(_FORMAT, MAGIC, kind, slow, self._underlay, IPv4Address(target).packed, size)
        body = (head + struct.pack("Q", nonce)).ljust(size - OVERHEAD, b"\xa5")
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
            if len(data) < struct.calcsize(_FORMAT) + 8:
                continue
            magic, kind, _, source, _, _ = struct.unpack_from(_FORMAT, data)
            if magic != MAGIC:
                continue
            at = time.time_ns()
            for level, what, value in ancillary:
                if (level, what) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    seconds, nanoseconds = struct.unpack("qq", value)
                    at = seconds * 1_000_000_000 + nanoseconds
            (nonce,) = struct.unpack_from("Q", data, struct.calcsize(_FORMAT))
            return Arrived(kind, str(IPv4Address(source)), nonce, at)
