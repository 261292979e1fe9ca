"""Network namespaces of the stand-in's containers, and what Windows in a container does with its endpoints.

A container's namespace is the file DIR/ID from its start to its end: that is the rule by which `overlace hns serve
--containers DIR` finds the container an endpoint is attached to. Windows' DNS client takes name servers from the
endpoint's Dns document; here they are written as the payload's resolv.conf, when HNS tells that something was attached.
Must not know HTTP nor images.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from overlace.network.linux.netns import ensure_namespace, remove_namespace

log = structlog.get_logger(__name__)
_ATTACHED, _DETACHED = 0x9, 0x10  # HCN_NOTIFICATIONS, computenetwork.h
_PAUSE = 0.5  # seconds before an HNS that does not answer is asked again
_QUERY = '{"SchemaVersion":{"Major":2,"Minor":0}}'


class Namespaces:
    """The files in `folder`, one for each container that runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, container_id: str) -> Path:
        return self.folder / container_id

    async def ensure(self, container_id: str) -> Path:
        return await asyncio.to_thread(ensure_namespace, self.path(container_id))

    async def remove(self, container_id: str) -> None:
        await asyncio.to_thread(remove_namespace, self.path(container_id))

    async def keep_only(self, running: Iterable[str]) -> None:
        """After a restart: those of containers that ended meanwhile go."""
        if self.folder.is_dir():
            for left in {p.name for p in self.folder.iterdir()} - set(running):
                await self.remove(left)


async def _ask(
    port: int, operation: str, handle: int = 0, guid: str = "-", document: str | None = None
) -> tuple[int, str]:
    """One call (docs/hns.md): its handle and result. Raises OSError, ValueError for a refusal."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        _send(writer, operation, handle, guid, document)
        return await _reply(reader, operation)
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, operation: str, handle: int, guid: str, document: str | None) -> None:
    data = b"" if document is None else document.encode()
    length = -1 if document is None else len(data)
    writer.write(f"{operation} {handle} {guid} {length}\n".encode() + data)


async def _reply(reader: asyncio.StreamReader, operation: str) -> tuple[int, str]:
    hr, handle, *sizes = (await reader.readline()).decode().split() or ["", "0", "-1", "-1"]
    parts = [await reader.readexactly(int(n)) if int(n) >= 0 else b"" for n in sizes]
    if hr != "00000000":
        raise ValueError(f"{operation}: {hr or 'no answer'} {parts[1].decode()}")
    return int(handle), parts[0].decode()


async def _documents(port: int, kind: str, many: str) -> AsyncIterator[dict[str, Any]]:
    _, ids = await _ask(port, f"Enumerate{many}", document=_QUERY)
    for guid in msgspec.json.decode(ids):
        try:
            handle, _ = await _ask(port, f"Open{kind}", guid=guid)
            try:
                yield msgspec.json.decode((await _ask(port, f"Query{kind}", handle, document=""))[1])
            finally:
                await _ask(port, f"Close{kind}", handle)
        except ValueError:
            continue  # deleted meanwhile


async def name_servers(port: int) -> dict[str, str]:
    """Container id -> resolv.conf, as the endpoints that are attached say. Raises OSError, ValueError."""
    endpoints = {str(e["ID"]).lower(): e async for e in _documents(port, "Endpoint", "Endpoints")}
    found: dict[str, str] = {}
    async for namespace in _documents(port, "Namespace", "Namespaces"):
        resources = namespace.get("Resources") or ()
        inside = [str(r["Data"]["Id"]) for r in resources if r["Type"] == "Container"]
        attached = [str(r["Data"]["Id"]).lower() for r in resources if r["Type"] == "Endpoint"]
        text = resolv_conf([endpoints[e].get("Dns") or {} for e in attached if e in endpoints])
        found |= {container: text for container in inside}
    return found


def resolv_conf(documents: Iterable[Mapping[str, Any]]) -> str:
    """The Dns members of a container's endpoints, in their order, as resolv.conf(5). Pure."""
    servers: dict[str, None] = {}
    search: dict[str, None] = {}
    for dns in documents:
        servers |= dict.fromkeys(dns.get("ServerList") or ())
        search |= dict.fromkeys([*([dns["Domain"]] if dns.get("Domain") else ()), *(dns.get("Search") or ())])
    lines = [f"nameserver {server}" for server in servers]
    return "\n".join([*lines, *([f"search {' '.join(search)}"] if search else [])]) + "\n"


class DnsClient:
    """Keeps resolv.conf of running containers as HNS on `port` says; `place(id)` is where that file is, None: not now."""

    def __init__(self, port: int, place: Callable[[str], Path | None]) -> None:
        self._port = port
        self._place = place
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="follow HNS")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Bring every file up to what HNS says; an HNS that is away changes nothing."""
        try:
            found = await name_servers(self._port)
        except (OSError, EOFError, ValueError) as error:
            log.debug("HNS did not say", error=str(error))
            return
        for container_id, text in found.items():
            path = self._place(container_id)
            with contextlib.suppress(OSError):
                if path is not None and path.read_text() != text:
                    path.write_text(text)  # in place: it is mounted

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, ValueError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    _send(writer, "RegisterServiceCallback", 0, "-", None)
                    await _reply(reader, "RegisterServiceCallback")
                    await self.look()
                    while head := (await reader.readline()).split():
                        await reader.readexactly(int(head[1]))
                        if int(head[0]) in (_ATTACHED, _DETACHED):
                            await self.look()
                finally:
                    writer.close()
            await asyncio.sleep(_PAUSE)
