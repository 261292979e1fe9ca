"""Measuring the way to other hosts from an ordinary program, where no program of ours is in the host's switch.

Owns the socket: the packets other hosts' programs know as probes, to their VXLAN port, never fragmented, and answers to
the port they came from. Must not know when to send what. Nothing here needs Windows: tests run it on Linux.
Source: IP_DONTFRAGMENT is 14 in ws2ipdef.h; IP_MTU_DISCOVER 10 and IP_PMTUDISC_PROBE 3 in Linux' in.h (ip(7)).
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from overlace.model.objects import VXLAN_PORT
from overlace.model.system import ON_WINDOWS
from overlace.network.probe_message import ECHO, LEAST, Arrived, answer, question

log = structlog.get_logger(__name__)
NEVER_FRAGMENT = (14, 1) if ON_WINDOWS else (10, 3)


class PlainProbeSocket:
    """Bound to `underlay`. A thread receives, so that an answer's time is not the event loop's. Raises OSError where the
    host has no such address."""

    def __init__(self, underlay: str, vxlan_port: int = VXLAN_PORT) -> None:
        self._underlay = underlay
        self._port = vxlan_port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((underlay, 0))
            self._socket.setsockopt(socket.IPPROTO_IP, *NEVER_FRAGMENT)
            self._socket.setblocking(False)
            self._end, self._ended = socket.socketpair()
        except BaseException:
            self._socket.close()
            raise
        self._arrived: deque[Arrived] = deque(maxlen=65536)
        self._thread: threading.Thread | None = None

    def listen(self, arrived: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._hear, args=(loop, arrived), name="path probes", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._end.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._ended.close()
        self._socket.close()

    def _hear(self, loop: asyncio.AbstractEventLoop, arrived: Callable[[], None]) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._ended], [], [])
            if self._ended in ready:
                return
            try:
                data, (sender, _) = self._socket.recvfrom(65536)
            except OSError:  # Windows: what ICMP said of an earlier question
                continue
            found = answer(data, sender, time.time_ns())
            if found is not None:
                self._arrived.append(found)
                loop.call_soon_threadsafe(arrived)

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
        """Returns when, in ns since the epoch. `size`: bytes of the outer IP packet. What the host does not send, as too
        large or without a route, is a lost packet. Only echoes: checksums and fragments are no program's to try here."""
        assert kind == ECHO
        data = question(self._underlay, target, self._port, nonce, size)
        at = time.time_ns()
        try:
            self._socket.sendto(data, (target, self._port))
        except OSError as e:  # or while HNS moves the adapter under a switch
            log.debug("a probe was not sent", to=target, size=size, error=str(e))
        return at

    def receive(self) -> Arrived | None:
        """The next answer that waits; None: there is none."""
        return self._arrived.popleft() if self._arrived else None
