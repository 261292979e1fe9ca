"""The agent's side of the port: download the root, ask for a certificate, open the session's websocket.

Owns turning what goes wrong on the way into words a person can act on. Must not know tokens, files or when to
retry. Every function takes the address as `host:port`; `tls` contexts come from the caller, who decides what
is verified.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket as sockets
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from overlace.model.errors import (
    Internal,
    NotReached,
    OverlaceError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from overlace.wire.messages import AgentMessage, ManagerMessage, decode_manager
from overlace.wire.transport import (
    ENGINE,
    MAX_FRAME,
    REASON_HEADER,
    AgentChannel,
    Certificate,
    Done,
    Failure,
    JoinRequest,
    ManagerEntry,
    ManagerJoin,
    ManagerLeave,
    RenewRequest,
    WebSocketChannel,
    error_of,
    join_address,
    parse_address,
)

TIMEOUT = 10.0  # seconds for one request, or to open a session
MANAGER_TIMEOUT = 60.0  # the leader may have to move its state to etcd first
CONNECT_SECONDS = 3.0  # a host without power does not answer at all, and there are other managers to ask
SILENT_MS = 4000  # a manager whose host lost power is noticed after this, whatever the heartbeats' period
T = TypeVar("T")
SERVER_NAME = "swarm-manager"  # a name only managers' certificates carry
_MAX_CA = 64 * 1024


async def download_ca(address: str, tls: ssl.SSLContext) -> str:
    """The root certificate the manager there shows, PEM. `tls` verifies nothing: check the digest."""
    async with (
        _explained(address),
        asyncio.timeout(TIMEOUT),
        aiohttp.ClientSession() as session,
        session.get(_url(address, "/v1/ca"), ssl=tls) as answer,
    ):
        if answer.status != 200:
            raise await _failure(answer)
        return (await answer.content.read(_MAX_CA)).decode(errors="replace")


async def request_certificate(address: str, request: JoinRequest, tls: ssl.SSLContext) -> Certificate:
    """Join. Raises what the manager raised, or Unavailable."""
    return await _post(address, "/v1/join", request, tls, Certificate)


async def renew_certificate(address: str, request: RenewRequest, tls: ssl.SSLContext) -> Certificate:
    """A new certificate for the same node. Raises what the manager raised, or Unavailable."""
    return await _post(address, "/v1/renew", request, tls, Certificate)


@contextlib.asynccontextmanager
async def open_session(address: str, tls: ssl.SSLContext) -> AsyncIterator[AgentChannel]:
    """The session's channel. Raises Unavailable (no contact), PermissionDenied or Unauthenticated
    (refused)."""
    async with contextlib.AsyncExitStack() as stack:
        async with _explained(address):
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=_NO_TOTAL))
            try:
                async with asyncio.timeout(TIMEOUT):
                    socket = await session.ws_connect(
                        _url(address, "/v1/session"),
                        ssl=tls,
                        server_hostname=SERVER_NAME,
                        compress=0,
                        heartbeat=None,
                        max_msg_size=MAX_FRAME,
                        timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                    )
            except aiohttp.WSServerHandshakeError as e:
                raise _refused(address, e) from e
        _notice_silence(socket)
        channel: WebSocketChannel[AgentMessage, ManagerMessage] = WebSocketChannel(socket, decode_manager)
        stack.push_async_callback(channel.close)
        yield channel


def _notice_silence(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Let the kernel ask an idle peer whether it is there (tcp(7)): a host without power sends no reset."""
    tcp = socket.get_extra_info("socket")
    if tcp is None or not hasattr(sockets, "TCP_USER_TIMEOUT"):
        return
    tcp.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, 1)
    tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, 1)
    tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPCNT, 3)
    tcp.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, SILENT_MS)


# -- helpers -------------------------------------------------------------------------------------------


def _url(address: str, path: str) -> str:
    return f"https://{join_address(*parse_address(address))}{path}"


_NO_TOTAL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


@contextlib.asynccontextmanager
async def _explained(address: str, timeout: float = TIMEOUT) -> AsyncIterator[None]:
    """Every failure to reach the manager becomes an Unavailable that says where and why."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        raise Unavailable(_explain(address, e, timeout)) from e


async def join_managers(address: str, request: ManagerJoin, tls: ssl.SSLContext) -> ManagerEntry:
    """Become one that keeps the state. Raises what the manager raised, or Unavailable."""
    return await _post(address, "/v1/manager/join", request, tls, ManagerEntry, timeout=MANAGER_TIMEOUT)


async def leave_managers(address: str, request: ManagerLeave, tls: ssl.SSLContext) -> None:
    """Keep the state no longer. Raises what the manager raised, or Unavailable."""
    await _post(address, "/v1/manager/leave", request, tls, Done)


@contextlib.asynccontextmanager
async def ask_engine(
    address: str, tls: ssl.SSLContext, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The leader's answer to an Engine API request; `path` with its query.

    Raises NotReached when nothing was sent, Unavailable when it may have been."""
    async with aiohttp.ClientSession(timeout=_NO_TOTAL, auto_decompress=False) as session:
        async with _explained(address):
            response = await _request(
                session,
                address,
                method,
                URL(f"{_url(address, ENGINE)}{path}", encoded=True),
                data=io.BytesIO(body) if body else None,
                headers=headers,
                ssl=tls,
                server_hostname=SERVER_NAME,
                allow_redirects=False,
            )
        async with response:
            yield response


async def _request(
    session: aiohttp.ClientSession, address: str, method: str, url: URL, **options: Any
) -> aiohttp.ClientResponse:
    try:
        return await session.request(method, url, **options)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
        raise NotReached(_explain(address, e, CONNECT_SECONDS)) from e


async def _post(
    address: str,
    path: str,
    document: msgspec.Struct,
    tls: ssl.SSLContext,
    answers: type[T],
    timeout: float = TIMEOUT,
) -> T:
    async with (
        _explained(address, timeout),
        asyncio.timeout(timeout),
        aiohttp.ClientSession() as session,
        session.post(
            _url(address, path),
            data=msgspec.json.encode(document),
            headers={"Content-Type": "application/json"},
            ssl=tls,
            server_hostname=SERVER_NAME,
        ) as answer,
    ):
        if answer.status != 200:
            raise await _failure(answer)
        try:
            return msgspec.json.decode(await answer.read(), type=answers)
        except msgspec.DecodeError as e:
            what = "a certificate" if answers is Certificate else f"a {answers.__name__}"
            raise Internal(f"the manager at {address} answered something else than {what}: {e}") from e


async def _failure(answer: aiohttp.ClientResponse) -> OverlaceError:
    body = await answer.read()
    try:
        return error_of(msgspec.json.decode(body, type=Failure))
    except msgspec.DecodeError:
        return Unavailable(
            f"{answer.url.host}:{answer.url.port} is no overlace manager: HTTP {answer.status}"
        )


def _refused(address: str, error: aiohttp.WSServerHandshakeError) -> OverlaceError:
    reason = error.headers.get(REASON_HEADER, "") if error.headers else ""
    if reason and error.status == 401:
        return Unauthenticated(reason)
    if reason and error.status == 403:
        return PermissionDenied(reason)
    return Unavailable(f"the manager at {address} refused the session: {reason or f'HTTP {error.status}'}")


def _explain(address: str, error: BaseException, timeout: float = TIMEOUT) -> str:
    """Why there is no contact, in words. TLS alerts arrive as the text OpenSSL gives them."""
    manager = f"the manager at {address}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        verify = inner.verify_message if isinstance(inner, ssl.SSLCertVerificationError) else str(inner)
        if "expired" in verify or "not yet valid" in verify:
            return f"the certificate of {manager} is out of date ({verify}): check the hosts' clocks"
        if "mismatch" in verify or "not valid for" in verify:
            return f"the node at {address} is not a manager of this swarm ({verify})"
        return f"{manager} belongs to another swarm: its certificate is not this swarm's ({verify})"
    if isinstance(error, (aiohttp.ServerDisconnectedError, ConnectionResetError)):
        # asyncio's server drops the TLS alert that would say why (it aborts before sending it)
        return (
            f"{manager} closed the connection without an answer: it is shutting down, or this node's certificate is "
            "not one it takes (expired, or another swarm's)"
        )
    if isinstance(error, TimeoutError):
        return f"cannot reach the manager at {address}: no answer within {timeout:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        inner_error = error.os_error
        # asyncio puts its own words into strerror; the number has the system's
        return f"cannot reach the manager at {address}: " + (
            os.strerror(inner_error.errno) if inner_error.errno else str(inner_error)
        )
    if isinstance(error, ssl.SSLError):
        return f"cannot reach the manager at {address}: TLS failed: {error.reason or error}"
    return f"cannot reach the manager at {address}: {error or type(error).__name__}"
