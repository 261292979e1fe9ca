"""The Engine API over HTTP: sockets, versions, headers, errors.

Owns what every request has in common (moby daemon/server and its version middleware). Must not know nouns:
routes do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import stat
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from overlace.api import routes
from overlace.api.backend import Backend
from overlace.api.call import MAX_BODY, Call, Route, Router, Services, answer, error_text
from overlace.api.convert.common import Rendered
from overlace.api.events import EventHub
from overlace.api.execs import Instances
from overlace.api.forward import pass_on
from overlace.api.version import API_VERSION, MIN_API_VERSION, SERVER_VERSION, version_text
from overlace.model.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    NotLeading,
    OverlaceError,
    Unavailable,
)
from overlace.model.system import ON_WINDOWS

log = structlog.get_logger(__name__)

_VERSIONED = re.compile(r"/v(\d{1,4})\.(\d{1,4})(/.*)", re.DOTALL)
_SHUTDOWN = 2.0  # seconds a handler gets when the daemon stops


def split_path(path: str) -> tuple[tuple[int, int], str]:
    """(API version asked for, path without it). Raises InvalidArgument for a version we do not speak."""
    match = _VERSIONED.fullmatch(path)
    if match is None:
        return API_VERSION, path
    version = (int(match[1]), int(match[2]))
    if version > API_VERSION:
        raise InvalidArgument(
            f"client version {version_text(version)} is too new. "
            f"Maximum supported API version is {version_text(API_VERSION)}"
        )
    if version < MIN_API_VERSION:
        raise InvalidArgument(
            f"client version {version_text(version)} is too old. Minimum supported API version is "
            f"{version_text(MIN_API_VERSION)}, please upgrade your client to a newer version"
        )
    return version, match[3]


def error_answer(error: OverlaceError) -> web.Response:
    return answer({"message": error_text(error)}, error.status)


_BACKLOG = 4096  # clients at once; a unix socket refuses more (EAGAIN), it does not have them wait


class ApiServer:
    """Serves `backend` on any number of addresses. `start`, then `close`. `product` is the Server header."""

    def __init__(self, backend: Backend, table: Sequence[Route] = routes.ALL, product: str = "") -> None:
        self._backend = backend
        self._router = Router(table)
        self._runner: web.AppRunner | None = None
        self._kept: set[asyncio.Task[web.StreamResponse]] = set()
        self._carried: set[asyncio.Future[None]] = set()
        self._reading: set[asyncio.Task[Any]] = set()
        self._sockets: list[tuple[Path, tuple[int, int]]] = []
        options = backend.options
        self._headers = {
            "Api-Version": version_text(API_VERSION),
            "Ostype": options.os,
            "Docker-Experimental": "false",
            "Server": product or f"Overlace/{SERVER_VERSION} ({options.os})",
        }
        self._shared = Services(
            rendered=Rendered(),
            events=EventHub(backend),
            execs=Instances(),
            headers=self._headers,
            carry=self._carry,
        )

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route(
            "*", r"/{path:[\s\S]*}", self._serve
        )  # line ends too: those paths are not found by us
        app.on_response_prepare.append(self._add_headers)
        return app

    async def start(self, hosts: Sequence[str]) -> None:
        """Listen on each `unix:///path` and `tcp://IP:PORT`, on Windows on each `npipe:////./pipe/NAME` and `tcp://IP:PORT`.

        Raises Conflict when another daemon answers there, Unavailable when the address cannot be used.
        """
        self._shared.events.start()
        self._runner = web.AppRunner(
            self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN
        )
        await self._runner.setup()
        try:
            for host in hosts:
                if host.startswith("npipe://"):
                    await self._listen_pipe(self._runner, host)
                else:
                    await web.SockSite(self._runner, self._listen(host), backlog=_BACKLOG).start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, end streams, let writes in hand finish."""
        for path, identity in self._sockets:
            try:
                found = path.lstat()
                if (found.st_dev, found.st_ino) == identity:  # not a later daemon's
                    path.unlink()
            except FileNotFoundError:
                pass
        self._sockets.clear()
        await self._shared.events.close()
        for task in [*self._reading, *self._carried]:
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._kept:
            _, late = await asyncio.wait(self._kept, timeout=_SHUTDOWN)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- one request -----------------------------------------------------------------------------------------

    async def _add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        return await self.serve(request, request.path)

    async def serve(self, request: web.Request, whole_path: str) -> web.StreamResponse:
        """Answer a request for `whole_path` (with its version), from a socket of ours or from another manager."""
        try:
            try:
                return await self._answer(request, whole_path)
            except NotLeading:
                manager = self._backend.manager
                if manager is None:
                    raise
                return await pass_on(request, manager, lambda: self._answer(request, whole_path))
        except OverlaceError as error:
            return error_answer(error)
        except web.HTTPRequestEntityTooLarge:
            response = error_answer(
                InvalidArgument(f"request body too large: at most {MAX_BODY} bytes are taken")
            )
            response.set_status(413)
            return response
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:
            log.exception("request failed", method=request.method, path=request.path)
            failed = OverlaceError(f"internal error: {type(error).__name__}: {error}")
            return error_answer(failed)

    def _carry(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._carried.add(task)
        task.add_done_callback(self._carried.discard)

    async def _answer(self, request: web.Request, whole_path: str) -> web.StreamResponse:
        version, path = split_path(whole_path)
        found = self._router.find(request.method, path)
        if found is None:
            raise NotFound("page not found")
        route, args = found
        call = Call(request, self._backend, self._shared, version, args)
        if route.streams or request.method in ("GET", "HEAD"):
            return await self._read(route, call)
        # a client that goes away must not stop a change half-way
        task = asyncio.ensure_future(route.handler(call))
        self._kept.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _read(self, route: Route, call: Call) -> web.StreamResponse:
        """Changes nothing here: ended with its client, and when the server closes."""
        task = asyncio.current_task()
        assert task is not None
        self._reading.add(task)
        try:
            return await route.handler(call)
        finally:
            self._reading.discard(task)

    def _done(self, task: asyncio.Task[web.StreamResponse]) -> None:
        self._kept.discard(task)
        if not task.cancelled():
            task.exception()  # answered, or its client is gone

    # -- sockets ---------------------------------------------------------------------------------------------

    async def _listen_pipe(self, runner: web.AppRunner, host: str) -> None:
        """A named pipe. Its access list is Windows' default: administrators, the system and its maker may write to it."""
        path = host.removeprefix("npipe://").replace("/", "\\")
        if os.path.exists(path):
            raise Conflict(f"cannot listen on {host}: another daemon answers there")
        try:
            await web.NamedPipeSite(runner, path).start()
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}: {error.strerror or error}") from error

    def _listen(self, host: str) -> socket.socket:
        kind, _, rest = host.partition("://")
        if kind == "unix":
            return self._listen_unix(Path(rest), host)
        address, _, port = rest.rpartition(":")
        address = address.strip("[]")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if not ON_WINDOWS:  # there it would let two listen on one address
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, int(port)))
        except OSError as error:
            listener.close()
            raise Unavailable(f"cannot listen on {host}: {error.strerror or error}") from error
        return listener

    def _listen_unix(self, path: Path, host: str) -> socket.socket:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path, host)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)  # 0660 from the first moment
        try:
            listener.bind(str(path))
        except OSError as error:
            listener.close()
            raise Unavailable(f"cannot listen on {host}: {error.strerror or error}") from error
        finally:
            os.umask(before)
        import grp

        try:
            os.chown(path, -1, grp.getgrnam("docker").gr_gid)
        except (KeyError, PermissionError):
            pass  # no such group: root only
        found = path.lstat()
        self._sockets.append((path, (found.st_dev, found.st_ino)))
        return listener


def _clear_stale(path: Path, host: str) -> None:
    """Remove a socket nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Conflict(f"cannot listen on {host}: {path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise Conflict(f"cannot listen on {host}: {error}") from error
            path.unlink(missing_ok=True)
            return
    raise Conflict(f"cannot listen on {host}: another daemon answers there")
