"""Calls to a Docker Engine over its unix socket, TCP or (on Windows) named pipe.

Owns the connection, the API version spoken and the one mapping from HTTP statuses to our errors. Must not know what the
calls mean. Docker Engine API 1.41 (Engine 20.10) and later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec

from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
    Unavailable,
)
from overlace.runtime.docker.pipes import open_pipe

OLDEST = (1, 41)
NEWEST = (1, 51)
CALL_SECONDS = 120.0
_ERRORS: dict[int, type[OverlaceError]] = {
    400: InvalidArgument,
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    503: Unavailable,
}


class EngineClient:
    """One engine at `host` (`unix:///…`, `tcp://…` or `npipe:////./pipe/…`).

    Made outside of a loop, used in one; `close` when done.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.version: tuple[int, int] = OLDEST  # of the API spoken, once `connect` returned
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            kind, _, rest = self.host.partition("://")
            connector: aiohttp.BaseConnector
            if kind == "unix":
                connector = aiohttp.UnixConnector(rest, limit=0)
            elif kind == "npipe":
                connector = aiohttp.NamedPipeConnector(rest.replace("/", "\\"), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def connect(self) -> dict[str, Any]:
        """What the engine says of itself (`GET /version`); sets the API version to speak. Raises Unavailable when it
        does not answer, FailedPrecondition when it is too old."""
        found: dict[str, Any] = await self.call("GET", "/version", versioned=False)
        text = str(found.get("ApiVersion", "")) if isinstance(found, dict) else ""
        try:
            major, minor = (int(part) for part in text.split("."))
        except ValueError:
            raise FailedPrecondition(f"{self.host} is no Docker Engine: API version {text!r}") from None
        if (major, minor) < OLDEST:
            raise FailedPrecondition(
                f"Docker Engine at {self.host} speaks API {text}; 1.41 (Engine 20.10) or later is needed"
            )
        self.version = min((major, minor), NEWEST)
        return found

    def _url(self, path: str, versioned: bool) -> str:
        base = (
            f"http://{self.host.partition('://')[2]}" if self.host.startswith("tcp://") else "http://docker"
        )
        return f"{base}/v{self.version[0]}.{self.version[1]}{path}" if versioned else f"{base}{path}"

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        archive: bytes = b"",
        headers: Mapping[str, str] | None = None,
        versioned: bool = True,
        timeout: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of a call, its status checked; what is sent is a JSON `body` or a tar `archive`. Raises our error
        of its status, in the engine's words; Unavailable when the engine does not answer, or stops in the middle."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if archive:
            sent = {"Content-Type": "application/x-tar"}
        try:
            async with self._open().request(
                method,
                self._url(path, versioned),
                params=params,
                data=msgspec.json.encode(body) if body is not None else archive or None,
                headers={**sent, **(headers or {})},
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                if response.status >= 400:
                    raise _ERRORS.get(response.status, Internal)(_message(await response.read(), response))
                yield response
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise self._away(error) from error

    async def hijack(self, path: str, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that the engine hands over after `POST path`. Raises as `stream`."""
        kind, _, rest = self.host.partition("://")
        payload = msgspec.json.encode(body)
        head = (
            f"POST /v{self.version[0]}.{self.version[1]}{path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\n"
            f"Upgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        try:
            if kind == "unix":
                reader, writer = await asyncio.open_unix_connection(rest)
            elif kind == "tcp":
                host, _, port = rest.rpartition(":")
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            else:
                reader, writer = await open_pipe(rest.replace("/", "\\"))
            writer.write(head.encode() + payload)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(answer.split(" ", 2)[1])
            if status >= 400:
                refusal = await reader.read()
                writer.close()
                raise _ERRORS.get(status, Internal)(
                    _words(refusal[refusal.find(b"{") : refusal.rfind(b"}") + 1])
                )
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise self._away(error) from error
        return reader, writer

    def _away(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"Cannot connect to the Docker daemon at {self.host}. Is the docker daemon running? ({_reason(error)})"
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        archive: bytes = b"",
        headers: Mapping[str, str] | None = None,
        versioned: bool = True,
        timeout: float | None = CALL_SECONDS,
    ) -> Any:
        """The JSON of a call's answer, None when it has none. Raises as `stream`."""
        async with self.stream(
            method,
            path,
            params=params,
            body=body,
            archive=archive,
            headers=headers,
            versioned=versioned,
            timeout=timeout,
        ) as response:
            raw = await response.read()
        try:
            return msgspec.json.decode(raw) if raw.strip() else None
        except msgspec.DecodeError as error:
            raise Internal(f"{method} {path}: the engine's answer is no JSON: {error}") from error


async def documents(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any], None]:
    """A response that is a stream of JSON documents, one a line."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield msgspec.json.decode(line, type=dict[str, Any])
    if rest.strip():
        yield msgspec.json.decode(rest, type=dict[str, Any])


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "it ended the connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _message(raw: bytes, response: aiohttp.ClientResponse) -> str:
    return _words(raw) or f"HTTP status {response.status}"


def _words(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return raw.decode(errors="replace").strip()
