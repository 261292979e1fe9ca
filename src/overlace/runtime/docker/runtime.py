"""The containers of a Docker Engine on this host, as a `Runtime` that makes its own sandboxes.

Owns which of the engine's containers are ours (a label, and a record on disk), their gates and their secrets. What is
not labelled as ours is never touched. Must not know swarm objects or networks: between `hold` and `release` the agent
attaches them. Survives its own death and the engine's: everything is looked up again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    Unavailable,
)
from overlace.runtime.base import (
    Container,
    ContainerConfig,
    ExecConfig,
    LogLine,
    LogOptions,
    Platform,
    Usage,
)
from overlace.runtime.docker import convert, look
from overlace.runtime.docker.client import EngineClient, documents
from overlace.runtime.docker.execs import DockerAttach, DockerExec
from overlace.runtime.docker.output import LogReader, log_params
from overlace.runtime.docker.stock import Stock
from overlace.runtime.docker.system import Asked, System
from overlace.runtime.oci.changes import ChangeFeed
from overlace.runtime.oci.files import write_atomically
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.records import Places, ids_below

log = structlog.get_logger(__name__)
_PAUSES = (0.2, 5.0)  # shortest and longest wait before looking for an engine that went away
_TOLD = ("create", "start", "die", "oom", "destroy", "health_status", "pause", "unpause")


class Record(msgspec.Struct, frozen=True):
    """What is kept of a container across our own death; written once the engine has it."""

    config: ContainerConfig  # without the content of its files
    argv: tuple[str, ...]
    docker_id: str


class DockerRuntime(Stock):
    """`Runtime` and `Sandboxes` on the engine at `host`, which must run on this machine: namespaces, mounts and files are
    shared with it. `data_root` must not be mounted noexec."""

    def __init__(self, host: str, data_root: Path, exec_root: Path, *, platform: Platform) -> None:
        super().__init__(EngineClient(host), platform)
        self._data_root, self._exec_root = Path(data_root).absolute(), Path(exec_root).absolute()
        self._system = _system_of(platform)
        self._records: dict[str, Record] = {}
        self._locks = KeyedLocks()
        self._changes = ChangeFeed()
        self._watcher: asyncio.Task[None] | None = None
        self._unfit: OverlaceError | None = None

    # ---- opening and closing ----

    async def open(self) -> None:
        """See `Runtime.open`. Succeeds when the engine does not answer (yet): every verb then says so."""
        for container_id in ids_below(self._data_root / "containers"):
            try:
                raw = (self._places(container_id).data / "docker.json").read_bytes()
                self._records[container_id] = msgspec.json.decode(raw, type=Record)
            except (OSError, msgspec.DecodeError):
                log.info("half a container found", id=container_id)
        try:
            await self._connect()
        except OverlaceError as error:
            self._unfit = error
            log.error("no container can run on this host", reason=error.message)
        self._watcher = asyncio.create_task(self._watch(), name="watch the docker engine")

    async def _connect(self) -> None:
        """Speak to the engine and look at what it has of ours. Raises Unavailable, FailedPrecondition."""
        found = await self._engine.connect()
        if found.get("Os") != self._platform.os:
            raise FailedPrecondition(
                f"the Docker Engine at {self._engine.host} runs {found.get('Os')} containers, this host is "
                f"{self._platform.os}"
            )
        await self._tidy()
        self._unfit = None

    async def _tidy(self) -> None:
        """Containers of ours and records of them that a crash left without the other."""
        there = {c["Id"] for c in await self._list()}
        known = {r.docker_id for r in self._records.values()}
        for docker_id in there - known:
            log.warning("removing a half-created container", docker_id=docker_id)
            await self._delete(docker_id)
        for container_id in set(ids_below(self._data_root / "containers")):
            record = self._records.get(container_id)
            if record is None or record.docker_id not in there:
                self._records.pop(container_id, None)
                await self._system.remove_places(self._places(container_id))

    async def _list(self) -> list[dict[str, Any]]:
        """Those labelled as ours and, because one engine may serve several of us, with their files in our folder."""
        wanted = {"label": [f"{convert.OWNER_LABEL}={self._data_root}"]}
        found: list[dict[str, Any]] = await self._engine.call(
            "GET", "/containers/json", params={"all": "1", "filters": _json(wanted)}
        )
        return found

    async def close(self) -> None:
        """Let go of everything without stopping any container. Log followers end."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self._changes.close()
        await self._engine.close()

    async def version(self) -> dict[str, str]:
        """The engine's parts and their versions; `error` when it does not answer."""
        try:
            found = await self._engine.connect()
        except OverlaceError as error:
            return {"error": error.message}
        parts = {str(c["Name"]).lower(): str(c["Version"]) for c in found.get("Components") or ()}
        return {"docker": str(found.get("Version", "")), **{n: v for n, v in parts.items() if n != "engine"}}

    async def _watch(self) -> None:
        """Tell who listens what changed; what happened while there was no engine is told as: all of them."""
        pause, told = _PAUSES[0], self._unfit.message if self._unfit else ""
        filters = _json(
            {
                "type": ["container"],
                "event": list(_TOLD),
                "label": [f"{convert.OWNER_LABEL}={self._data_root}"],
            }
        )
        lost = self._unfit is not None
        while True:
            try:
                if lost:
                    await self._connect()
                    lost = False
                    log.info("the docker engine answers", host=self._engine.host)
                async with self._engine.stream("GET", "/events", params={"filters": filters}) as response:
                    pause, told = _PAUSES[0], ""
                    self._tell_all()  # from here on nothing is missed
                    async for event in documents(response):
                        self._changes.put(event["Actor"]["Attributes"].get(convert.ID_LABEL, ""))
                reason = f"the Docker Engine at {self._engine.host} ended its events"
            except OverlaceError as error:
                reason = error.message
                if lost:
                    self._unfit = error
            except Exception as error:  # an answer in a shape unheard of must not end the watching
                reason = f"the Docker Engine at {self._engine.host}: {error!r}"
            if lost and reason != told:
                told = reason
                log.warning("the docker engine does not answer", reason=told)
            self._tell_all()
            if lost:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSES[1])
            lost = True

    def _tell_all(self) -> None:
        for container_id in self._records:
            self._changes.put(container_id)

    # ---- create ----

    async def create(self, config: ContainerConfig) -> Container:
        """Prepare a container; on Linux it is held when started. See `Runtime.create`."""
        self._check_fit()
        bare = msgspec.structs.replace(config, files=(), resolv_conf="")
        async with self._locks.hold(config.id):
            existing = self._records.get(config.id)
            if existing is not None:
                if existing.config != bare:
                    raise Conflict(
                        f"container {config.id} exists already with another configuration: remove it first"
                    )
                return await self.inspect(config.id)
            image = await self.image(config.image)
            places, docker_id = self._places(config.id), ""
            try:
                await self._system.remove_places(places)  # left by a create whose clean-up failed
                asked = Asked(config, image, places, str(self._data_root), self._engine.version)
                made = self._system.make(asked)
                params = {"name": config.name} if config.name else {}
                path = "/containers/create"
                answer = await self._engine.call("POST", path, params=params, body=made.body)
                docker_id = answer["Id"]
                if made.archive:
                    path = f"/containers/{docker_id}/archive"
                    await self._engine.call("PUT", path, params={"path": "C:\\"}, archive=made.archive)
                self._keep(Record(bare, made.argv, docker_id))
            except BaseException:
                await asyncio.shield(self._undo(places, docker_id))
                raise
        self._changes.put(config.id)
        return await self.inspect(config.id)

    def _keep(self, record: Record) -> None:
        path = self._places(record.config.id).data / "docker.json"
        write_atomically(path, msgspec.json.encode(record))
        self._records[record.config.id] = record

    async def _undo(self, places: Places, docker_id: str) -> None:
        try:
            if docker_id:
                await self._delete(docker_id)
            await self._system.remove_places(places)
        except (
            OverlaceError
        ) as error:  # the first error is the one to tell; the next open removes what is left
            log.warning("left something of a failed create", id=places.data.name, reason=error.message)

    # ---- running ----

    @property
    def gated(self) -> bool:
        """See `Sandboxes.gated`."""
        return self._system.gated

    async def hold(self, container_id: str) -> Path | None:
        """See `Sandboxes.hold`."""
        record, places = self._record(container_id), self._places(container_id)
        async with self._locks.hold(container_id):
            found = await self._find(record)
            if not found["State"]["Running"]:
                if not self.gated and found["State"]["Status"] != "created":
                    return None  # it ran, and has ended
                self._system.before_start(places)
                try:
                    await self._engine.call("POST", f"/containers/{record.docker_id}/start")
                except Internal as error:  # the engine's 500 is about the container: its user, its mounts
                    raise InvalidArgument(error.message) from error
                found = await self._find(record)
            if not found["State"]["Running"]:
                if not self.gated:
                    return None
                raise Internal(
                    f"container {container_id} ended while it was held: {found['State'].get('Error')}"
                )
            folders = [self._places(i).data for i in self._records]
            return self._system.sandbox(record.docker_id, found, folders)

    async def release(
        self, container_id: str, resolv_conf: str, hosts: Sequence[tuple[str, str]]
    ) -> Container:
        """See `Sandboxes.release`."""
        record, places = self._record(container_id), self._places(container_id)
        if not self._system.is_released(places):
            found = await self._find(record)
            self._system.release(places, record.argv, found, resolv_conf, hosts)
            self._changes.put(container_id)
        return await self.inspect(container_id)

    async def start(self, container_id: str) -> Container:
        """Run it with no network but loopback. With one: `hold`, attach, `release`."""
        await self.hold(container_id)
        return await self.release(container_id, "", ())

    async def stop(self, container_id: str, grace: int | None = None) -> Container:
        """Stop signal, then SIGKILL after `grace` ns (default: the container's own)."""
        record = self._record(container_id)
        allowed = convert.seconds(record.config.stop_grace if grace is None else grace)
        path = f"/containers/{record.docker_id}/stop"
        with contextlib.suppress(NotFound):
            await self._engine.call("POST", path, params={"t": str(allowed)}, timeout=allowed + 60)
        return await self.inspect(container_id)

    async def kill(self, container_id: str, signal: str) -> None:
        """Send a signal. Conflict in Docker's words when it does not run."""
        record = self._record(container_id)
        params = {"signal": self._system.signal(signal)}
        await self._engine.call("POST", f"/containers/{record.docker_id}/kill", params=params)

    async def exec(self, container_id: str, config: ExecConfig) -> DockerExec:
        """See `Runtime.exec`."""
        record = await self._running(container_id)
        return await DockerExec.start(self._engine, record.docker_id, config)

    async def attach(self, container_id: str, early: bool = False) -> DockerAttach:
        """See `Runtime.attach`; the engine connects an early one when it starts."""
        record = self._record(container_id) if early else await self._running(container_id)
        query = "stream=1&stdin=1&stdout=1&stderr=1"
        streams = await self._engine.hijack(f"/containers/{record.docker_id}/attach?{query}", {})

        async def ended() -> int:
            return (await self.wait(container_id)).exit_code

        async def resized(height: int, width: int) -> None:
            with contextlib.suppress(OverlaceError):  # it has ended
                await self.resize(container_id, height, width)

        return DockerAttach(record.config.tty, streams, ended, resized)

    async def resize(self, container_id: str, height: int, width: int) -> None:
        """See `Runtime.resize`."""
        record = await self._running(container_id)
        if not record.config.tty:
            raise Conflict(f"container {container_id} has no terminal: create it with one (-t)")
        params = {"h": str(height), "w": str(width)}
        await self._engine.call("POST", f"/containers/{record.docker_id}/resize", params=params)

    async def usage(self, container_id: str) -> Usage | None:
        """See `Runtime.usage`."""
        container = await self.inspect(container_id)
        if container.status != "running":
            return None
        docker_id = self._record(container_id).docker_id
        return await look.usage(self._engine, docker_id, lambda: self._system.interfaces(container.pid))

    async def erase_files(self, container_id: str) -> None:
        """See `Runtime.erase_files`."""
        if container_id not in self._records:
            return
        async with self._locks.hold(container_id):
            if (await self.inspect(container_id)).status == "running":
                raise Conflict(f"container {container_id} runs: its secrets and configs are in use")
            await self._system.erase_files(self._places(container_id))

    async def _running(self, container_id: str) -> Record:
        if (await self.inspect(container_id)).status != "running":
            raise Conflict(f"Container {container_id} is not running")
        return self._record(container_id)

    async def rename(self, container_id: str, name: str) -> None:
        """See `Runtime.rename`."""
        async with self._locks.hold(container_id):
            record = self._record(container_id)
            await self._engine.call("POST", f"/containers/{record.docker_id}/rename", params={"name": name})
            record = msgspec.structs.replace(record, config=msgspec.structs.replace(record.config, name=name))
            self._keep(record)
        self._changes.put(container_id)

    async def remove(self, container_id: str, force: bool = False, volumes: bool = True) -> None:
        """See `Runtime.remove`."""
        async with self._locks.hold(container_id):
            record = self._records.get(container_id)
            if record is None:
                return
            await self._delete(record.docker_id, force, volumes)
            await self._system.remove_places(self._places(container_id))
            self._records.pop(container_id, None)
        self._changes.put(container_id)

    async def _delete(self, docker_id: str, force: bool = True, volumes: bool = True) -> None:
        params = {"force": str(int(force)), "v": str(int(volumes))}
        try:
            await self._engine.call("DELETE", f"/containers/{docker_id}", params=params)
        except NotFound:
            return
        except Conflict as error:
            if "already in progress" not in error.message:  # somebody else's removal of it: as good as ours
                raise

    # ---- looking ----

    async def inspect(self, container_id: str) -> Container:
        record = self._record(container_id)
        return self._container(container_id, record, await self._find(record))

    def _container(self, container_id: str, record: Record, found: dict[str, Any]) -> Container:
        held = not self._system.is_released(self._places(container_id))
        return convert.container_of(found, record.config, record.argv, held)

    async def list(self) -> list[Container]:
        found = []
        for container_id in list(self._records):
            with contextlib.suppress(NotFound):
                found.append(await self.inspect(container_id))
        return found

    async def top(self, container_id: str, arguments: str) -> look.Table:
        """See `Runtime.top`."""
        return await look.top(self._engine, self._record(container_id).docker_id, arguments)

    async def layer_size(self, container_id: str) -> int:
        """See `Runtime.layer_size`."""
        record = self._record(container_id)
        found = await self._engine.call("GET", f"/containers/{record.docker_id}/json", params={"size": "1"})
        return int(found.get("SizeRw") or 0)

    async def wait(self, container_id: str) -> Container:
        """Return when the container is not running (at once if so)."""
        return await self._wait_for(container_id, lambda c: c.status != "running")

    async def _wait_for(self, container_id: str, wanted: Callable[[Container], bool]) -> Container:
        """The container once it is as wanted. Raises NotFound when it goes first, Unavailable when we are closed."""
        changes = self._changes.subscribe()
        try:
            while True:
                with contextlib.suppress(Unavailable):  # an engine that is away will be back
                    container = await self.inspect(container_id)
                    if wanted(container):
                        return container
                async for changed in changes:
                    if changed == container_id:
                        break
                else:
                    raise Unavailable("the runtime was closed")
        finally:
            await changes.aclose()

    def changes(self) -> AsyncIterator[str]:
        """See `Runtime.changes`. Ids waiting to be read are told once, however often they changed."""
        return self._changes.subscribe()

    def logs(self, container_id: str, options: LogOptions) -> AsyncIterator[LogLine]:
        """See `Runtime.logs`; NotFound at once."""
        return self._logs(self._record(container_id), options)

    async def _logs(self, record: Record, options: LogOptions) -> AsyncIterator[LogLine]:
        if options.follow:  # the engine's ends at once for one that has not started
            await self._wait_for(record.config.id, lambda c: c.status != "created")
        reader = LogReader(record.config.tty)
        path = f"/containers/{record.docker_id}/logs"
        async with self._engine.stream("GET", path, params=log_params(options)) as response:
            async for piece in response.content.iter_any():
                for line in reader.feed(piece):
                    yield line
            for line in reader.end():
                yield line

    # ---- helpers ----

    async def _find(self, record: Record) -> dict[str, Any]:
        """The engine's inspection. Raises NotFound in our own words (with our id), Unavailable."""
        self._check_fit()
        try:
            found: dict[str, Any] = await self._engine.call("GET", f"/containers/{record.docker_id}/json")
        except NotFound:
            raise NotFound(f"No such container: {record.config.id}") from None
        return found

    def _check_fit(self) -> None:
        if self._unfit is not None:
            raise type(self._unfit)(
                self._unfit.message
            )  # anew: an exception raised often grows with every frame

    def _places(self, container_id: str) -> Places:
        return Places(self._data_root, self._exec_root, container_id)

    def _record(self, container_id: str) -> Record:
        record = self._records.get(container_id)
        if record is None:
            raise NotFound(f"No such container: {container_id}")
        return record


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _system_of(platform: Platform) -> System:
    """That of the engine's host. Linux' half is imported on Linux alone."""
    if platform.os == "windows":
        from overlace.runtime.docker.on_windows import Windows

        return Windows(platform)
    from overlace.runtime.docker.on_linux import Linux

    return Linux()
