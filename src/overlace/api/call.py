"""One request as a handler sees it, and the table that finds the handler.

Owns routes (method, path pattern, handler), path matching and reading what a request carries. Must not know
nouns.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from overlace.api import codec
from overlace.api.backend import Backend, ManagerHandle
from overlace.api.swarm_requests import explain_no_manager
from overlace.manager.control.lookup import check_filters
from overlace.model.errors import InvalidArgument, OverlaceError, rpc_text

if TYPE_CHECKING:
    from overlace.api.convert.common import Rendered
    from overlace.api.events import EventHub
    from overlace.api.execs import Instances

T = TypeVar("T")

MAX_BODY = 4 << 20  # bytes; the largest document is a config of 1000 KiB in base64


class Services(msgspec.Struct):
    """What lives as long as the server. `tools`: names and versions of the runtime's programs, once known."""

    rendered: Rendered
    events: EventHub
    execs: Instances
    headers: dict[str, str]  # of every answer
    carry: Callable[[Coroutine[Any, Any, None]], None]  # work that goes on when its request is answered
    tools: dict[str, str] = {}


class Call:
    """A request, with the API version its path asks for and the path's arguments."""

    def __init__(
        self,
        request: web.Request,
        backend: Backend,
        shared: Services,
        version: tuple[int, int],
        args: dict[str, str],
    ) -> None:
        self.request = request
        self.backend = backend
        self.shared = shared
        self.version = version
        self.args = args

    def manager(self) -> ManagerHandle:
        """The manager on this node. Raises Unavailable in Docker's words when there is none."""
        manager = self.backend.manager
        if manager is None:
            raise explain_no_manager(self.backend.swarm())
        return manager

    def text(self, name: str, default: str = "") -> str:
        return self.request.query.get(name, default)

    def flag(self, name: str) -> bool:
        return codec.flag(self.request.query.get(name, ""))

    def filters(self, known: Collection[str] | None = None) -> dict[str, list[str]]:
        """`filters=`, with keys not in `known` refused (None: who uses them checks). Raises
        InvalidArgument."""
        found = codec.filters(self.request.query.get("filters", ""))
        if known is not None:
            check_filters(found, known)
        return found

    async def tools(self) -> dict[str, str]:
        """Versions of the programs the runtime calls; asked until there is an answer without `error`."""
        found = self.shared.tools
        if not found:
            found = await self.backend.runtime.version()
            if "error" not in found:
                self.shared.tools = found
        return found

    def object_version(self, what: str) -> int:
        return codec.version_number(self.request.query.get("version", ""), what)

    async def body(self, type: type[T]) -> T:
        """The JSON body. Raises InvalidArgument."""
        kind = self.request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
        if kind not in ("application/json", ""):
            raise InvalidArgument(f"unsupported Content-Type header ({kind}): must be 'application/json'")
        return codec.decode(await self.request.read(), type)


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True):
    """`path` holds `{name}` for one segment and `{name:*}` for any number, slashes included.

    `streams`: the handler may be cancelled when the client goes; every other one that writes is carried to
    its end.
    """

    method: str
    path: str
    handler: Handler
    streams: bool = False


class Router:
    """Finds a route by method and path; indexed by the first segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            pattern = re.sub(
                r"\{(\w+)(:\*)?\}", lambda m: f"(?P<{m[1]}>.+)" if m[2] else f"(?P<{m[1]}>[^/]+)", route.path
            )
            key = (route.method, route.path.split("/")[1])
            self._routes.setdefault(key, []).append((re.compile(pattern, re.DOTALL), route))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        first = path.split("/")[1] if path.startswith("/") else ""
        for pattern, route in self._routes.get((method, first), ()):
            match = pattern.fullmatch(path)
            if match:
                return route, match.groupdict()
        return None


def error_text(error: OverlaceError) -> str:
    """The words a client sees: the control API's errors pass through a local gRPC call in Docker."""
    return rpc_text(error) if getattr(error, "swarm", False) else error.message


# -- answers -------------------------------------------------------------------------------------------------


def answer(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=codec.encode(document), status=status, content_type="application/json")


def empty(status: int = 200) -> web.Response:
    return web.Response(status=status)
