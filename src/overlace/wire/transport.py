"""The manager <-> agent port: its documents, its addresses and one message channel over a websocket.

Owns what travels outside the websocket (join, renew, errors) and the channel both sides use. Must not know
certificates' contents, stores or what messages mean. One TCP port (2377) serves it all over TLS:

    GET  /v1/ca        the root certificate, PEM; no client certificate needed (a joining node has none)
    POST /v1/join      JoinRequest -> Certificate
    POST /v1/renew     RenewRequest -> Certificate; mutual TLS
    GET  /v1/session   websocket of wire.messages frames; mutual TLS
    POST /v1/manager/join    ManagerJoin -> ManagerEntry; managers only, as is all below
    POST /v1/manager/leave   ManagerLeave -> Done
    *    /v1/engine/...      an Engine API request another manager forwards to the leader
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

import aiohttp
import msgspec
from aiohttp import web

from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NoLeader,
    NotFound,
    OverlaceError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from overlace.model.objects import SWARM_PORT, NodeDescription
from overlace.wire.messages import AgentMessage, ManagerMessage, encode

MAX_FRAME = 256 * 1024 * 1024  # a complete network view of a very large swarm fits many times
CLOSE_SECONDS = 3.0
ENGINE = "/v1/engine"
REVISION_HEADER = "Overlace-Revision"  # the store's, once a forwarded request has been answered
REASON_HEADER = "Overlace-Reason"  # a refused websocket upgrade has no body its client could read

S = TypeVar("S", contravariant=True)  # what this side sends
R = TypeVar("R", covariant=True)  # what it receives


class JoinRequest(msgspec.Struct, frozen=True):
    csr: str  # PEM
    token: str
    description: NodeDescription | None = None
    availability: str = "active"  # active | pause | drain
    addr: str = ""  # host:port the node would be reached at as a manager

    def __repr__(self) -> str:
        return "JoinRequest(...)"  # the token is a secret


class RenewRequest(msgspec.Struct, frozen=True):
    csr: str
    addr: str = ""  # host:port the node would be reached at as a manager


class Certificate(msgspec.Struct, frozen=True):
    """What a node gets: its certificate, the root that signed it, and who it now is."""

    certificate: str  # PEM
    node_id: str
    ca: str  # PEM
    role: str  # worker | manager
    manager_id: str = ""  # node id of the manager that answers


class ManagerJoin(msgspec.Struct, frozen=True):
    """A node that has a manager's certificate wants to keep the cluster's state, too."""

    node_id: str
    addr: str  # host:port its manager is reached at
    peer_url: str  # its etcd member, as the others reach it; it has no data yet


class ManagerEntry(msgspec.Struct, frozen=True):
    """What its etcd member starts with."""

    token: str
    cluster: tuple[tuple[str, str], ...]  # (name, peer URL), the new one too


class ManagerLeave(msgspec.Struct, frozen=True):
    node_id: str


class Done(msgspec.Struct, frozen=True):
    pass


class Failure(msgspec.Struct, frozen=True):
    message: str
    code: str = "Unknown"


_BY_CODE: dict[str, type[OverlaceError]] = {
    c.code: c
    for c in (
        InvalidArgument,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        Conflict,
        Internal,
        Unimplemented,
        Unavailable,
    )
}


def error_of(failure: Failure) -> OverlaceError:
    """The error the other side raised."""
    if failure.message == NoLeader().message:
        return NoLeader()
    return _BY_CODE.get(failure.code, OverlaceError)(failure.message)


class Channel(Protocol[S, R]):
    """Ordered messages both ways. Either side may close; the other then receives None."""

    async def send(self, message: S) -> None:
        """Waits while the peer reads slowly. Raises Unavailable when the channel is closed."""

    async def receive(self) -> R | None:
        """The next message; None once the channel is closed. Raises InvalidArgument for a frame that is
        none."""

    async def close(self) -> None:
        """Close both ways; what was sent is delivered if the peer still reads. No error when closed
        already."""


AgentChannel = Channel[AgentMessage, ManagerMessage]  # as the agent sees it
ManagerChannel = Channel[ManagerMessage, AgentMessage]  # as the manager sees it


class WebSocketChannel(Generic[S, R]):
    """A `Channel` over an open websocket, binary frames only."""

    def __init__(
        self,
        socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        decode: Callable[[bytes], R],
    ) -> None:
        self._socket = socket
        self._decode: Callable[[bytes], R] = decode

    async def send(self, message: S) -> None:
        try:
            await self._socket.send_bytes(encode(cast("AgentMessage | ManagerMessage", message)))
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as e:
            raise Unavailable(f"connection lost: {e}") from e

    async def receive(self) -> R | None:
        try:
            frame = await self._socket.receive()
        except RuntimeError:
            return None  # receive after close
        if frame.type == aiohttp.WSMsgType.BINARY:
            try:
                return self._decode(frame.data)
            except msgspec.DecodeError as e:
                raise InvalidArgument(f"a frame is no message: {e}") from e
        if frame.type == aiohttp.WSMsgType.TEXT:
            raise InvalidArgument("a frame is no message: text frames are not used here")
        return None

    async def close(self) -> None:
        # a peer that does not read would hold us for as long as TCP tries
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError, aiohttp.ClientError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close()


def parse_address(text: str, default_port: int = SWARM_PORT) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]` or `[v6]:port` -> (host, port). Raises InvalidArgument."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or (text.count(":") > 1 and not host.endswith("]")):
        host, port = text.strip(), str(default_port)  # no port; a bare IPv6 address has none either
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"invalid address {text!r}: use HOST:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
