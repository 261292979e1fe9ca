"""What daemon and resolver say to each other, and one resolver to its successor: messages with descriptors, over a unix
stream socket.

Owns the messages, their framing and the passing of descriptors (unix(7), SCM_RIGHTS). Must not act on any. A resolver and
a daemon of different versions meet here: fields may be added, with defaults; what a message means never changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Union

import msgspec

from overlace import model, network

SOCKET = "resolver.sock"  # in the daemon's folder for what runs
_HEAD = struct.Struct("IB")  # octets of the message, descriptors that come with it
_MOST = 64 << 20  # octets of one message
_READ, _DESCRIPTORS = 1 << 18, 8
# What decides how questions are answered: another content of these files is another version of the resolver.
_SOURCES = (
    "dns.py",
    "dns_message.py",
    "names.py",
    "linux/dns.py",
    "linux/netns.py",
    "linux/resolver/channel.py",
    "linux/resolver/process.py",
)


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Asked by a daemon: who are you? Answered by `State`."""


class Served(msgspec.Struct, frozen=True):
    """A task whose questions are answered. `sandbox`: its namespace's number (netns.namespace_number)."""

    networks: tuple[str, ...]
    nameservers: tuple[str, ...]
    sandbox: int


class State(msgspec.Struct, frozen=True, tag="state"):
    """The resolver's answer to a daemon's `Hello`: its version, and the tasks it serves."""

    build: str
    served: dict[str, Served]


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Nameservers for what is no name of the swarm: ADDRESS or ADDRESS:PORT."""

    upstreams: tuple[str, ...]


class Names(msgspec.Struct, frozen=True, tag="names"):
    """Entries of the network view (NetworkEntry, ServiceEntry, EndpointEntry), each encoded by itself, so that one which
    the other version does not know costs only itself. From `first` to `last`: all there are, others go."""

    put: list[msgspec.Raw]
    remove: list[str] = []
    first: bool = False
    last: bool = False


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """With descriptors: UDP socket, listening TCP socket, the task's network namespace. Answered by `Done`."""

    task_id: str
    served: Served


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The answer to `Serve`; `error`: why it does not serve the task, empty when it does."""

    task_id: str
    error: str = ""


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """A task is gone: close its sockets."""

    task_id: str


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """The node leaves: end."""


class HandOver(msgspec.Struct, frozen=True, tag="hand-over"):
    """Asked by a successor. Answered by Configure, Names, a Serve per task, then `Ready`; from the question on this
    resolver reads no questions more, unless the connection ends before `Taken`."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """That was all. Without `Names` among it, names were never told."""


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The successor answers from now on: end."""


Message = Union[Hello, State, Configure, Names, Serve, Done, Drop, Quit, HandOver, Ready, Taken]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


@cache
def build() -> str:
    """Names this version of the resolver."""
    folder = Path(network.__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in (*(folder / name for name in _SOURCES), Path(model.__file__).parent / "netview.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Closed(ConnectionError):
    """The other side is gone, or says what is no message."""


class Channel:
    """One end of a connection. Sending may be shared by tasks, receiving not."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._sending = asyncio.Lock()
        self._data = bytearray()
        self._descriptors: deque[int] = deque()

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Raises Closed. The descriptors stay the caller's."""
        body = _encoder.encode(message)
        data = memoryview(_HEAD.pack(len(body), len(descriptors)) + body)
        async with self._sending:
            try:
                sent = 0
                while not sent:
                    try:
                        sent = socket.send_fds(self._socket, [data], list(descriptors))
                    except BlockingIOError:
                        await self._writable()
                await asyncio.get_running_loop().sock_sendall(self._socket, data[sent:])
            except OSError as e:
                raise Closed(str(e)) from e

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._ready(loop.add_writer, loop.remove_writer)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._ready(loop.add_reader, loop.remove_reader)

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[[socket.socket], bool]) -> None:
        ready = asyncio.Event()
        watch(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            unwatch(self._socket)

    async def receive(self) -> tuple[Message, list[int]]:
        """The next message and its descriptors, which are the caller's then. Raises Closed."""
        while len(self._data) < _HEAD.size:
            await self._more()
        length, count = _HEAD.unpack_from(self._data)
        if length > _MOST:
            raise Closed(f"a message of {length} octets")
        while len(self._data) < _HEAD.size + length:
            await self._more()
        body = bytes(self._data[_HEAD.size : _HEAD.size + length])
        del self._data[: _HEAD.size + length]
        if len(self._descriptors) < count:
            raise Closed("descriptors are missing")
        descriptors = [self._descriptors.popleft() for _ in range(count)]
        try:
            return _decoder.decode(body), descriptors
        except msgspec.MsgspecError as e:
            close_all(descriptors)
            raise Closed(f"not understood: {e}") from e

    async def _more(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._socket, _READ, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._readable()
            except OSError as e:
                raise Closed(str(e)) from e
        self._descriptors.extend(descriptors)
        if not data:
            raise Closed("the other side has gone")
        self._data += data

    def close(self) -> None:
        close_all(self._descriptors)
        self._descriptors.clear()
        self._socket.close()


def close_all(descriptors: Sequence[int] | deque[int]) -> None:
    """Close what nobody took; one that is closed already is fine."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _at(folder: Path, name: str) -> tuple[int, str]:
    """A descriptor to close, and a path short enough for a unix socket's address (108 octets)."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return descriptor, f"/proc/self/fd/{descriptor}/{name}"


def connect(folder: Path) -> socket.socket:
    """To the resolver of this folder. Raises OSError when there is none."""
    descriptor, path = _at(folder, SOCKET)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.connect(path)
    except BaseException:
        made.close()
        raise
    finally:
        os.close(descriptor)
    return made


def listen(folder: Path) -> socket.socket:
    """Be the one who is found in this folder from now on; who was before is not any more."""
    name = f"{SOCKET}.{os.getpid()}"
    (folder / name).unlink(missing_ok=True)
    descriptor, path = _at(folder, name)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        os.chmod(folder / name, 0o600)
        made.listen(8)
        made.setblocking(False)
        os.rename(folder / name, folder / SOCKET)
    except BaseException:
        made.close()
        raise
    finally:
        os.close(descriptor)
    return made
