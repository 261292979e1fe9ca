"""A stand-in for Docker Engine on Windows: `python -m overlace.lab.windows.engine --listen 127.0.0.1:PORT …`.

A Linux program that speaks the Engine API as dockerd on Windows does, with its rules, refusals and shapes. It is no
Windows: a container is the image's Linux payload, run by overlace.runtime.oci in a network namespace of its own, into
which `overlace hns serve --containers DIR` puts the endpoints that are attached to it. `GET /info` says so. Every request
is written to the record, what is secret left out. Killed and started again it finds its containers running.

Owns the process and the containers' documents. What is taken and refused is engine_rules.py's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
from aiohttp import web

from overlace.api.backend import ContainerAddress, EngineOptions, LocalNetwork, LocalSwarm
from overlace.api.server import ApiServer
from overlace.lab.layout import WINDOWS_BUILD
from overlace.lab.windows import engine_routes
from overlace.lab.windows.engine_files import Hosts, put_archive
from overlace.lab.windows.engine_places import DnsClient, Namespaces
from overlace.lab.windows.engine_rules import Create, Drives, plan_config
from overlace.model.architecture import fold_architecture
from overlace.model.errors import InvalidArgument, NotFound, OverlaceError, Unavailable
from overlace.model.specs import PortConfig
from overlace.runtime.base import Container, Platform
from overlace.runtime.docker.gate import append_hosts
from overlace.runtime.oci.files import write_atomically
from overlace.runtime.oci.records import Places
from overlace.runtime.oci.runtime import OciRuntime
from overlace.runtime.oci.shim import StartRefused

log = structlog.get_logger(__name__)
HEADERS_KEPT_OUT = frozenset(("x-registry-auth", "x-registry-config", "authorization"))


class Kept(msgspec.Struct, frozen=True):
    """What is remembered of a container besides the runtime's own record."""

    asked: Create
    hosts: Hosts = ()


class NoneAlone:
    """Containers that a daemon keeps by itself, for `docker run`: the stand-in has none, its clients keep theirs."""

    def record(self, container_id: str) -> None:
        return None

    def restarting(self, container_id: str) -> bool:
        return False


class Backend:
    """What the API's routes ask of a daemon, and the containers' lives."""

    manager = None
    switch = None
    containers = NoneAlone()

    def __init__(
        self,
        data_root: Path,
        exec_root: Path,
        drives: Drives,
        options: EngineOptions,
        runtime: OciRuntime,
        hns: int,
    ) -> None:
        self._data_root, self._exec_root, self._drives = data_root, exec_root, drives
        self.options, self.runtime = options, runtime
        self.namespaces = Namespaces(exec_root / "namespaces")
        self._documents = data_root / "asked"
        self._dns = DnsClient(hns, self._resolv_conf) if hns else None
        self._watcher: asyncio.Task[None] | None = None
        self._running: dict[str, Path] = {}  # id -> the payload's resolv.conf

    async def open(self) -> None:
        self._documents.mkdir(parents=True, exist_ok=True)
        await self.runtime.open()
        there = await self.runtime.list()
        for container in there:
            if container.status == "running":
                await self._begun(container)
        await self.namespaces.keep_only(self._running)
        for left in {p.name for p in self._documents.iterdir()} - {c.config.id for c in there}:
            (self._documents / left).unlink()
        self._watcher = asyncio.create_task(self._watch(), name="watch containers end")
        if self._dns is not None:
            self._dns.open()

    async def close(self) -> None:
        if self._dns is not None:
            await self._dns.close()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self.runtime.close()

    async def _watch(self) -> None:
        """A container's namespace goes with its run."""
        async for container_id in self.runtime.changes():
            with contextlib.suppress(NotFound):
                if (await self.runtime.inspect(container_id)).status == "running":
                    continue
            if self._running.pop(container_id, None) is not None:
                await self.namespaces.remove(container_id)

    def _resolv_conf(self, container_id: str) -> Path | None:
        return self._running.get(container_id)

    async def _begun(self, container: Container) -> None:
        config, files = container.config, container.host_files
        self._running[config.id] = Path(files.resolv_conf)
        hosts = self._kept(config.id).hosts
        if hosts:
            append_hosts(Path(files.hosts), hosts)

    # -- containers --

    async def create(self, asked: Create, container_id: str, name: str) -> None:
        """Raises what the rules and the runtime do."""
        place = self.namespaces.path(container_id)
        config = plan_config(asked, container_id, name, place, self._drives, os.cpu_count() or 1)
        write_atomically(self._documents / container_id, msgspec.json.encode(Kept(asked)))
        try:
            await self.runtime.create(config)
        except BaseException:
            (self._documents / container_id).unlink()
            raise

    async def start(self, container: Container) -> None:
        container_id = container.config.id
        await self.namespaces.ensure(container_id)
        try:
            started = await self.runtime.start(container_id)
        except StartRefused as error:
            await self.namespaces.remove(container_id)
            raise InvalidArgument(
                "failed to create task for container: failed to create shim task: hcs::System::CreateProcess "
                f"{container_id}: The system cannot find the file specified. ({error.message})"
            ) from error
        except BaseException:
            await self.namespaces.remove(container_id)
            raise
        if started.status == "running":
            await self._begun(started)
            if self._dns is not None:
                await self._dns.look()
        else:
            await self.namespaces.remove(container_id)

    async def remove(self, container: Container, force: bool) -> None:
        container_id = container.config.id
        await self.runtime.remove(container_id, force)
        self._running.pop(container_id, None)
        await self.namespaces.remove(container_id)
        (self._documents / container_id).unlink(missing_ok=True)

    async def put_archive(self, container: Container, folder: str, archive: bytes) -> None:
        container_id = container.config.id
        places = Places(self._data_root, self._exec_root, container_id)
        root = self.runtime.image_root(container.image_id)
        hosts = await asyncio.to_thread(put_archive, places, root, folder, archive)
        if hosts:
            kept = msgspec.structs.replace(self._kept(container_id), hosts=hosts)
            write_atomically(self._documents / container_id, msgspec.json.encode(kept))

    def asked(self, container_id: str) -> Create:
        return self._kept(container_id).asked

    def _kept(self, container_id: str) -> Kept:
        try:
            return msgspec.json.decode((self._documents / container_id).read_bytes(), type=Kept)
        except OSError:
            return Kept(Create())

    # -- the rest of what routes ask --

    def swarm(self) -> LocalSwarm:
        return LocalSwarm()

    def local_networks(self) -> Sequence[LocalNetwork]:
        return ()

    async def container_addresses(self, container_id: str) -> Sequence[ContainerAddress]:
        return ()

    async def container_ports(self, container_id: str) -> Sequence[PortConfig]:
        return ()

    async def swarm_init(self, request: object) -> str:
        raise Unavailable("This node is not a swarm manager.")

    async def swarm_join(self, request: object) -> None:
        raise Unavailable("This node is not a swarm manager.")

    async def swarm_leave(self, force: bool) -> None:
        raise Unavailable("This node is not part of a swarm")


class Record:
    """One JSON document a line: what was asked, and how it was answered."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def put(self, method: str, path: str, query: dict[str, str], body: object, status: int) -> None:
        if self._path is not None:
            line = {
                "time": time.time(),
                "method": method,
                "path": path,
                "query": query,
                "body": body,
                "status": status,
            }
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")


def recorded_body(raw: bytes, kind: str) -> Any:
    """A body without secrets: JSON as it came, of anything else its size alone. Pure."""
    if kind.partition(";")[0].strip() in ("application/json", "") and raw:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(raw)
    return {"bytes": len(raw)} if raw else None


class EngineServer(ApiServer):
    """The API's server over this engine's routes, with the record."""

    def __init__(self, backend: Any, record: Record) -> None:
        super().__init__(backend, engine_routes.ROUTES, f"Docker-on-Windows-emulation ({backend.options.os})")
        self._record = record

    async def serve(self, request: web.Request, whole_path: str) -> web.StreamResponse:
        raw = await request.read() if request.body_exists else b""
        body = recorded_body(raw, request.headers.get("Content-Type", ""))
        status = 0  # it goes on: what streams is written down as it begins
        streams = request.method == "GET" and whole_path.endswith(("/events", "/logs", "/stats"))
        if streams or whole_path.endswith(("/attach", "/start", "/wait")):
            self._record.put(request.method, whole_path, dict(request.query), body, 0)
            return await super().serve(request, whole_path)
        response = await super().serve(request, whole_path)
        status = response.status
        self._record.put(request.method, whole_path, dict(request.query), body, status)
        return response


def read_drive(text: str) -> tuple[str, Path]:
    """`C=/folder`. Raises InvalidArgument."""
    letter, equals, folder = text.partition("=")
    if len(letter) != 1 or not letter.isalpha() or not equals or not folder.startswith("/"):
        raise InvalidArgument(f"--drive {text!r}: use LETTER=/FOLDER")
    return letter, Path(folder)


def _engine_id(data_root: Path) -> str:
    path = data_root / "id"
    with contextlib.suppress(OSError):
        return path.read_text()
    data_root.mkdir(parents=True, exist_ok=True)
    made = base64.b32encode(secrets.token_bytes(20)).decode()
    path.write_text(made)
    return made


@click.command()
@click.option("--listen", required=True, help="ADDRESS:PORT, on loopback.")
@click.option("--data-root", required=True)
@click.option("--exec-root", required=True)
@click.option("--hns", default=0, help="Port of the host's `overlace hns serve` (0: no names are resolved).")
@click.option("--record", help="File that every request is written to.")
@click.option("--drive", "drives", multiple=True, help="LETTER=/FOLDER: where a drive of the host is.")
@click.option("--build", default=WINDOWS_BUILD, show_default=True, help="Of the Windows it stands in for.")
@click.option("--insecure-registry", "registries", multiple=True)
@click.option("--cgroup-parent", default="/overlace-engine", show_default=True)
def main(
    listen: str, data_root: str, exec_root: str, hns: int, record: str | None, drives: tuple[str, ...], build: str,
    registries: tuple[str, ...], cgroup_parent: str,
) -> None:  # fmt: skip
    """Serve until SIGTERM; containers go on."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )  # stdout says where it serves
    data, run = Path(data_root).absolute(), Path(exec_root).absolute()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    platform = Platform("windows", fold_architecture(os.uname().machine), build)
    runtime = OciRuntime(
        data, run, cgroup_parent=cgroup_parent, insecure_registries=registries, platform=platform
    )
    options = EngineOptions(
        id=_engine_id(data), hostname=os.uname().nodename, data_root="C:\\ProgramData\\docker", os="windows",
        os_version=build, emulated=True, insecure_registries=registries, hosts=(f"tcp://{listen}",),
        started_at=time.time_ns(),
    )  # fmt: skip
    places = dict(read_drive(text) for text in drives)
    backend = Backend(data, run, Drives(places), options, runtime, hns)
    asyncio.run(_serve(backend, Record(Path(record) if record else None), listen))


async def _serve(backend: Backend, record: Record, listen: str) -> None:
    await backend.open()
    server = EngineServer(backend, record)
    try:
        await server.start([f"tcp://{listen}"])
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        click.echo(f"engine {listen}")
        await stop.wait()
    finally:
        await server.close()
        await backend.close()


if __name__ == "__main__":
    try:
        main()
    except OverlaceError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(1) from None
