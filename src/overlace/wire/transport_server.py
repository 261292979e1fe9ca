"""The manager's side of the port: an HTTPS server that asks for client certificates but serves some routes
without.

Owns routes, refusals and the life of websockets. Must not know what a join or a session does: those are the
services it is given. A certificate of a foreign CA never gets this far: the TLS handshake fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
import structlog
from aiohttp import web

from overlace.model.errors import Internal, InvalidArgument, OverlaceError, Unauthenticated, Unavailable
from overlace.wire.messages import AgentMessage, ManagerMessage, decode_agent
from overlace.wire.transport import (
    ENGINE,
    MAX_FRAME,
    REASON_HEADER,
    Certificate,
    Done,
    Failure,
    JoinRequest,
    ManagerChannel,
    ManagerEntry,
    ManagerJoin,
    ManagerLeave,
    RenewRequest,
    WebSocketChannel,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")
# What a stranger may hold a connection (some 300 KB of TLS buffers) for, in seconds: each step has its own time.
HANDSHAKE_SECONDS = 5.0
REQUEST_SECONDS = 10.0  # to the first request's end of headers; likewise for a body
MAX_FORWARDED = 8 << 20  # bytes of an Engine API request; that API has its own, lower limit
IDLE_SECONDS = 15.0  # between requests


class Peer(Protocol):
    """The holder of a verified client certificate."""

    @property
    def node_id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def cluster_id(self) -> str: ...
    @property
    def serial(self) -> str: ...


ServeEngine = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
P = TypeVar("P", bound=Peer, contravariant=True)


class Enrolment(Protocol[P]):
    """Who may be here, and with which certificate."""

    def ca(self) -> str:
        """The root certificate, PEM. Raises Unavailable before there is a swarm."""

    async def join(self, request: JoinRequest, address: str) -> Certificate: ...

    async def renew(self, peer: P, request: RenewRequest) -> Certificate: ...

    def admit(self, peer: P) -> None:
        """Raises PermissionDenied when this node is not (any more) in the swarm."""

    def admit_manager(self, peer: P) -> None:
        """Raises PermissionDenied when this node is no manager of the swarm."""

    async def join_managers(self, peer: P, request: ManagerJoin) -> ManagerEntry: ...

    async def leave_managers(self, peer: P, request: ManagerLeave) -> Done: ...


class TransportServer:
    """`serve_session(peer, address, channel)` runs one agent's session until it ends; `peer_of` reads a
    peer's certificate (`ssl.SSLObject.getpeercert()` form; None: there is none, or it is no node's)."""

    def __init__(
        self,
        enrolment: Enrolment[Any],
        serve_session: Callable[[Any, str, ManagerChannel], Awaitable[None]],
        tls: ssl.SSLContext,
        peer_of: Callable[[dict[str, Any] | None], Peer | None],
        serve_engine: ServeEngine | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._serve_session = serve_session
        self._tls = tls
        self._peer_of = peer_of
        self._serve_engine = serve_engine
        self._sockets: set[web.WebSocketResponse] = set()
        self._silent: dict[
            asyncio.BaseProtocol, asyncio.TimerHandle
        ] = {}  # connections without a request yet
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen (port 0: any free one, see `port`). Raises Unavailable when the address cannot be had."""
        app = web.Application(client_max_size=1 << 20, middlewares=[self._heard])
        app.router.add_get("/v1/ca", self._ca)
        app.router.add_post("/v1/join", self._join)
        app.router.add_post("/v1/renew", self._renew)
        app.router.add_get("/v1/session", self._session)
        app.router.add_post("/v1/manager/join", self._join_managers)
        app.router.add_post("/v1/manager/leave", self._leave_managers)
        app.router.add_route("*", ENGINE + "{path:/.*}", self._engine)
        app.on_shutdown.append(self._close_sockets)
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=2.0,
            handle_signals=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=1.0,
        )
        await runner.setup()
        assert runner.server is not None
        accept = runner.server
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: self._watched(accept()),
                None if host == "::" else host,  # asyncio's :: is IPv6 alone; who says it means every address
                port,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                backlog=128,
                reuse_address=True,
            )
        except OSError as e:
            await runner.cleanup()
            raise Unavailable(f"cannot listen on {host}:{port}: {e.strerror or e}") from e
        self._runner = runner
        self.port = self._listener.sockets[0].getsockname()[1]

    def _watched(self, connection: web.RequestHandler) -> web.RequestHandler:
        """A new connection; it ends when no request comes over it in time."""

        def end() -> None:
            self._silent.pop(connection, None)
            if connection.transport is not None:
                connection.transport.abort()

        self._silent[connection] = asyncio.get_running_loop().call_later(REQUEST_SECONDS, end)
        return connection

    @web.middleware
    async def _heard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        timer = self._silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        return await handler(request)

    async def close(self) -> None:
        """End all sessions and stop listening."""
        runner, self._runner = self._runner, None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()
        if runner is not None:
            await runner.cleanup()

    async def _close_sockets(self, _: web.Application) -> None:
        await asyncio.gather(*(s.close(code=1001) for s in list(self._sockets)), return_exceptions=True)

    # -- routes ----------------------------------------------------------------------------------------

    async def _ca(self, request: web.Request) -> web.Response:
        try:
            return web.Response(text=self._enrolment.ca(), content_type="application/x-pem-file")
        except OverlaceError as e:
            return _refusal(e)

    async def _join(self, request: web.Request) -> web.Response:
        async def join() -> Certificate:
            document = await _document(request, JoinRequest)
            return await self._enrolment.join(document, _address(request))

        return await self._answer(join)

    async def _renew(self, request: web.Request) -> web.Response:
        async def renew() -> Certificate:
            peer = self._peer(request)
            return await self._enrolment.renew(peer, await _document(request, RenewRequest))

        return await self._answer(renew)

    async def _join_managers(self, request: web.Request) -> web.Response:
        async def join() -> ManagerEntry:
            peer = self._manager(request)
            return await self._enrolment.join_managers(peer, await _document(request, ManagerJoin))

        return await self._answer(join)

    async def _leave_managers(self, request: web.Request) -> web.Response:
        async def leave() -> Done:
            peer = self._manager(request)
            return await self._enrolment.leave_managers(peer, await _document(request, ManagerLeave))

        return await self._answer(leave)

    async def _engine(self, request: web.Request) -> web.StreamResponse:
        """Another manager passes on what one of its clients asked."""
        try:
            self._manager(request)
            if self._serve_engine is None:
                raise Unavailable("this manager serves no forwarded requests")
        except OverlaceError as e:
            return _refusal(e)
        whole = request.clone(client_max_size=MAX_FORWARDED)
        return await self._serve_engine(whole, request.match_info["path"])

    async def _session(self, request: web.Request) -> web.StreamResponse:
        try:
            peer = self._peer(request)
        except OverlaceError as e:
            return _refusal(e)
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_FRAME, heartbeat=None, timeout=2.0, writer_limit=64 * 1024
        )
        await socket.prepare(request)
        channel: WebSocketChannel[ManagerMessage, AgentMessage] = WebSocketChannel(socket, decode_agent)
        self._sockets.add(socket)
        try:
            await self._serve_session(peer, _address(request), channel)
        except OverlaceError as e:
            log.info("session ended", node=peer.node_id, reason=e.message)
        except Exception:
            log.exception("session broke", node=peer.node_id)
        finally:
            self._sockets.discard(socket)
            await channel.close()
            if request.transport is not None:
                # whatever a peer that stopped reading has not taken; asyncio's TLS transport has no protocol left to
                # abort (AttributeError) when the peer ended the connection a moment ago
                with contextlib.suppress(AttributeError):
                    request.transport.abort()
        return socket

    # -- helpers ---------------------------------------------------------------------------------------

    def _peer(self, request: web.Request) -> Peer:
        transport = request.transport
        peer = self._peer_of(transport.get_extra_info("peercert") if transport is not None else None)
        if peer is None:
            raise Unauthenticated(
                f"{request.path} needs a node certificate of this swarm: join the swarm first"
            )
        self._enrolment.admit(peer)
        return peer

    def _manager(self, request: web.Request) -> Peer:
        peer = self._peer(request)
        self._enrolment.admit_manager(peer)
        return peer

    async def _answer(self, work: Callable[[], Awaitable[msgspec.Struct]]) -> web.Response:
        try:
            answer = await work()
        except OverlaceError as e:
            return _refusal(e)
        except Exception:
            log.exception("request failed")
            return _refusal(Internal("the manager failed to answer; its log says why"))
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


async def _document(request: web.Request, kind: type[T]) -> T:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            body = await request.read()
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise InvalidArgument(f"{request.path}: the request's body did not come in time") from None
    except msgspec.DecodeError as e:
        raise InvalidArgument(f"{request.path}: {e}") from e


def _refusal(error: OverlaceError) -> web.Response:
    reason = error.message.replace("\r", " ").replace("\n", " ")
    return web.Response(
        status=error.status,
        body=msgspec.json.encode(Failure(error.message, error.code)),
        content_type="application/json",
        headers={REASON_HEADER: reason.encode("ascii", "replace").decode()},
    )


def _address(request: web.Request) -> str:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else ""
