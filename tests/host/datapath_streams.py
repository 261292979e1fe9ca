"""Traffic that goes on while something happens to a host: echoes over a connection, numbered datagrams whose loss is
counted; and floods.

Owns its threads and sockets. Must not know what happens meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from pathlib import Path

from datapath_bed import connect, echo, line

from overlace.network.linux.netns import run_inside

_ROOM = 128 << 20  # bytes of receive buffer: all of a stream, so that a slow reader loses nothing
_BURST = 32  # datagrams sent at once when the machine was busy meanwhile


class _Piece(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint32))


def flood(connected: socket.socket, data: bytes, times: int) -> None:
    """Send as fast as the kernel takes it: sendmmsg(2), a thousand datagrams a call."""
    most = 1000
    held = ctypes.create_string_buffer(data, len(data))
    piece = _Piece(ctypes.addressof(held), len(data))
    one = _Message(_Header(pieces=ctypes.addressof(piece), count=1))
    batch = (_Message * most)(*[one] * most)
    libc = ctypes.CDLL(None, use_errno=True)
    while times:
        sent = libc.sendmmsg(connected.fileno(), batch, min(times, most), 0)
        if sent < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        times -= sent


class Traffic:
    """Echoes small messages over one connection all the time; knows the longest silence."""

    def __init__(self, where: Path, address: str, port: int) -> None:
        self._connection = connect(where, address, port)
        line(self._connection)
        self.longest, self.count, self._stop = 0.0, 0, False
        self.broken = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop:
            began = time.monotonic()
            try:
                self.broken = not echo(self._connection, b"tick")
            except OSError:
                self.broken = True
            if self.broken:
                return
            self.longest = max(self.longest, time.monotonic() - began)
            self.count += 1
            time.sleep(0.002)

    def finish(self) -> None:
        self._stop = True
        self._thread.join(5)
        self._connection.close()


class Datagrams:
    """Numbered datagrams at a steady pace from one namespace to another, until told to end and `least` are sent."""

    def __init__(
        self, where: Path, address: str, port: int, there: Path, bound: str, at: int, least: int, rate: int
    ) -> None:
        """`address`, `port`: as the sender names the receiver; `bound`, `at`: as it names itself."""

        def receiver() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, 33, _ROOM)  # SO_RCVBUFFORCE
            made.bind((bound, at))
            return made

        def sender() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.connect((address, port))
            return made

        self._receiver, self._sender = run_inside(there, receiver), run_inside(where, sender)
        self._rate, self._least = rate, least
        self._end = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        last, due = time.monotonic(), 0.0
        while not self._end.is_set() or self.sent < self._least:
            time.sleep(0.001)
            now = time.monotonic()
            due, last = min(due + (now - last) * self._rate, _BURST), now
            while due >= 1:
                self._sender.send(struct.pack("Q", self.sent) + bytes(56))
                self.sent += 1
                due -= 1

    def finish(self) -> set[int]:
        """End; the numbers of the datagrams that did not arrive."""
        self._end.set()
        self._thread.join()
        missing = set(range(self.sent))
        self._receiver.settimeout(1)
        try:
            while missing:
                missing.discard(struct.unpack_from("Q", self._receiver.recv(128))[0])
        except TimeoutError:
            pass
        self._sender.close()
        self._receiver.close()
        return missing
