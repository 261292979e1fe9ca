"""The embedded runtime: containers from images, by way of an OCI runtime under conmon.

Owns every container's state from create to remove, across its own death: it finds its containers again, and
what became of them meanwhile. Must not know swarm objects or networks; the network namespace of a container
is made by the caller. One asyncio loop; per container one lock for create, start, remove and the end of a
run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
)
from overlace.runtime.base import (
    Container,
    ContainerConfig,
    HealthStatus,
    Image,
    LogLine,
    LogOptions,
    Platform,
    RegistryAuth,
)
from overlace.runtime.oci import health, prepare
from overlace.runtime.oci.changes import ChangeFeed
from overlace.runtime.oci.files import write_atomically
from overlace.runtime.oci.images import ImageStore
from overlace.runtime.oci.images import User as ImageUser
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.logs import SHIM_MAX, read_log, rotate_if_large
from overlace.runtime.oci.mounts import unmount
from overlace.runtime.oci.platforms import normal
from overlace.runtime.oci.records import Places, Record, ids_below, load, save
from overlace.runtime.oci.shim import (
    Shim,
    StartRefused,
    choose_runtime,
    kill_shim,
    oom_killed,
    open_shim,
    read_exit,
    swap_limit_supported,
)
from overlace.runtime.oci.spec import container_path, resolve, runtime_spec, signal_number
from overlace.runtime.oci.volumes import VolumeStore
from overlace.runtime.oci.watch import FolderWatch

log = structlog.get_logger(__name__)
PARALLEL_STARTS = 4  # containers being made at once: more only queue for the same cores and disk
_ROTATE_SECONDS = 10.0
_KILL_SECONDS = 30.0


class _Slot:
    """A container in memory."""

    def __init__(self, record: Record, places: Places) -> None:
        self.record = record
        self.places = places
        self.stopped = asyncio.Event()  # not running (created, exited, gone)
        self.ended = asyncio.Event()  # ran and ended, or gone: log followers stop
        self.shim_fd = -1
        self.health: asyncio.Task[None] | None = None
        self.reaper: asyncio.Task[None] | None = None
        self.settle()

    @property
    def container(self) -> Container:
        return self.record.container

    def settle(self) -> None:
        """Make the events agree with the status."""
        status = self.container.status
        (self.stopped.clear if status == "running" else self.stopped.set)()
        (self.ended.set if status in ("exited", "dead") else self.ended.clear)()


class OciRuntime:
    """`Runtime` for this host. `cgroup_parent` is an absolute cgroup path (`/overlace/1a2b3c4d`); `platform`
    this host's.

    With `platform.os == "windows"` the host is an emulated Windows host: Windows images are chosen by build
    and their payload is run as Linux processes, with `C:\\` as the root folder.
    """

    def __init__(
        self,
        data_root: Path,
        exec_root: Path,
        *,
        cgroup_parent: str,
        insecure_registries: Sequence[str] = (),
        platform: Platform,
    ) -> None:
        self._data_root, self._exec_root = Path(data_root).absolute(), Path(exec_root).absolute()
        self._cgroup_parent = "/" + cgroup_parent.strip("/")
        self._platform = normal(platform)
        self._windows = self._platform.os == "windows"
        self._images = ImageStore(self._data_root / "images", insecure_registries, self._image_users)
        self._volumes = VolumeStore(self._data_root / "volumes")
        self._slots: dict[str, _Slot] = {}
        self._creating: dict[str, tuple[str, str]] = {}  # id -> (name, image id)
        self._locks = KeyedLocks()
        self._making = asyncio.Semaphore(PARALLEL_STARTS)
        self._changes = ChangeFeed()
        self._watch = FolderWatch()
        self._shim: Shim | None = None
        self._unfit: OverlaceError | None = None
        self._rotator: asyncio.Task[None] | None = None
        self._swap_limit = False

    # ---- opening and closing ----

    async def open(self) -> None:
        """See `Runtime.open`. Succeeds where no runtime works, so that a host can still manage: create then
        says why.
        """
        for root in (self._data_root, self._exec_root):
            if ":" in str(root) or "," in str(root):
                raise InvalidArgument(f"{root}: data root and exec root must not contain ':' or ','")
            root.mkdir(parents=True, exist_ok=True)
        try:
            runtime = await choose_runtime(self._exec_root, self._cgroup_parent)
            self._shim = Shim(runtime, self._exec_root)
        except OverlaceError as error:
            self._unfit = error
            log.error("no container can run on this host", reason=error.message)
        self._swap_limit = swap_limit_supported()
        await self._find_containers()
        await self._images.open()
        self._rotator = asyncio.create_task(self._rotate_logs(), name="rotate container logs")

    async def _find_containers(self) -> None:
        known = set(ids_below(self._data_root / "containers"))
        for container_id in known | set(ids_below(self._exec_root / "bundles")):
            places = self._places(container_id)
            record = load(places)
            if record is None:
                log.warning("removing a half-created container", id=container_id)
                if self._shim is not None:
                    await self._shim.discard(container_id, places.bundle)
                await prepare.remove_places(places)
                continue
            self._slots[container_id] = slot = _Slot(record, places)
            if self._shim is not None:
                await self._find_again(slot)

    async def _find_again(self, slot: _Slot) -> None:
        """Bring one container's record up to what really is."""
        container, places = slot.container, slot.places
        descriptor = open_shim(places.bundle, container.config.id)
        if descriptor is not None:
            status = await self._require_shim().status(container.config.id)
            if container.status == "running" or status == "running":
                if container.status != "running":  # we died between the start and the note of it
                    started = (places.bundle / "pid").stat().st_mtime_ns
                    pid = int((places.bundle / "pid").read_text())
                    self._note(
                        slot, status="running", pid=pid, started_at=started, health=self._first_health(slot)
                    )
                self._run(slot, descriptor, resumed=True)
                return
            os.close(descriptor)
            await self._require_shim().discard(container.config.id, places.bundle)
            unmount(places.rootfs)
        elif container.status == "running" or read_exit(places.bundle, container.config.id) is not None:
            if container.status == "running" or container.status == "created":
                await self._end(slot)

    async def close(self) -> None:
        """Let go of everything without stopping any container."""
        tasks = [
            task for slot in self._slots.values() for task in (slot.health, slot.reaper) if task is not None
        ]
        if self._rotator is not None:
            tasks.append(self._rotator)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._images.close()
        for slot in self._slots.values():
            self._unwatch(slot)
            slot.stopped.set()
            slot.ended.set()
        self._watch.close()
        self._changes.close()

    async def version(self) -> dict[str, str]:
        """Tools and their versions; a host where none works has `error` instead."""
        if self._shim is None:
            return {"error": self._unfit.message if self._unfit else "not open"}
        return await self._shim.version()

    # ---- images ----

    async def pull(
        self, reference: str, platform: Platform | None = None, auth: RegistryAuth | None = None
    ) -> Image:
        """See `Runtime.pull`; `platform` None means this host's."""
        return await self._images.pull(reference, platform or self._platform, auth)

    async def images(self) -> list[Image]:
        return self._images.all()

    async def image(self, name: str) -> Image:
        return self._images.find(name)

    async def remove_image(self, name: str, force: bool = False) -> list[str]:
        """As `docker image rm`; returns its lines (`Untagged: X`, `Deleted: sha256:…`)."""
        return await self._images.remove(name, force)

    def _image_users(self, image_id: str) -> list[ImageUser]:
        using = [
            ImageUser(container_id, slot.container.status == "running")
            for container_id, slot in self._slots.items()
            if slot.container.image_id == image_id
        ]
        return using + [ImageUser(i, False) for i, (_, image) in self._creating.items() if image == image_id]

    # ---- create ----

    async def create(self, config: ContainerConfig) -> Container:
        """Prepare a container. NotFound for an image not pulled; Conflict for an id or name in other use."""
        shim = self._require_shim()
        async with self._locks.hold(config.id):
            bare = msgspec.structs.replace(config, files=())
            existing = self._slots.get(config.id)
            if existing is not None:
                if existing.container.config == bare:
                    return existing.container
                raise Conflict(
                    f"container {config.id} exists already with another configuration: remove it first"
                )
            image = self._images.find(config.image)
            resolve(config, image.config, windows=self._windows)
            self._check_name(config)
            self._creating[config.id] = (config.name, image.id)
            places = self._places(config.id)
            anonymous: list[str] = []
            try:
                async with self._making:
                    await shim.discard(config.id, places.bundle)
                    await prepare.remove_places(places)  # left by a create whose clean-up failed
                    record = await self._prepare(config, bare, image, places, anonymous)
                    save(places, record)
            except BaseException:
                await asyncio.shield(self._undo_create(places, anonymous))
                raise
            finally:
                del self._creating[config.id]
            self._slots[config.id] = _Slot(record, places)
        self._changes.put(config.id)
        return record.container

    def _check_name(self, config: ContainerConfig) -> None:
        names = [(i, slot.container.config.name) for i, slot in self._slots.items()]
        names += [(i, name) for i, (name, _) in self._creating.items()]
        holder = next((i for i, name in names if config.name and name == config.name), None)
        if holder is not None:
            raise Conflict(
                f'Conflict. The container name "/{config.name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    async def _prepare(
        self,
        config: ContainerConfig,
        bare: ContainerConfig,
        image: Image,
        places: Places,
        anonymous: list[str],
    ) -> Record:
        resolved = resolve(config, image.config, windows=self._windows)
        image_root = await self._images.ensure_rootfs(image.id)
        user = prepare.user_of(resolved, config, image_root, windows=self._windows)
        prepare.make_folders(places, image_root)
        taken = frozenset(container_path(mount.target, self._windows) for mount in config.mounts)
        binds = prepare.etc_binds(places, config, resolved, taken)
        own, made = await prepare.mount_binds(
            config, resolved, self._volumes, image_root, windows=self._windows
        )
        anonymous += made
        files, has_secrets = prepare.file_binds(places, config.files, windows=self._windows)
        if config.init:
            files.append(prepare.init_bind())
        container = Container(
            config=bare, status="created", image_id=image.id, created_at=time.time_ns(), argv=resolved.argv
        )
        return Record(container, resolved, user, (*binds, *own, *files), tuple(anonymous), has_secrets)

    async def _undo_create(self, places: Places, anonymous: Sequence[str]) -> None:
        try:
            await prepare.remove_places(places)
            for name in anonymous:
                await self._volumes.remove(name)
        except OverlaceError as error:  # the first error is the one to tell; open() removes what is left
            log.warning("left something of a failed create", id=places.data.name, reason=error.message)

    # ---- start ----

    async def start(self, container_id: str) -> Container:
        """Run it. InvalidArgument when its program cannot be run (the container then tells exit code 126 or
        127).
        """
        shim = self._require_shim()
        async with self._locks.hold(container_id):
            slot = self._slot(container_id)
            if slot.container.status == "running":
                return slot.container
            if slot.record.secrets and not os.path.ismount(slot.places.secrets):
                raise FailedPrecondition(
                    f"container {container_id[:12]} cannot start: its secrets were in memory only and are gone "
                    "(this host restarted); create it again"
                )
            async with self._making:
                try:
                    await self._start(slot, shim)
                except OverlaceError as error:
                    code = error.exit_code if isinstance(error, StartRefused) else 128
                    with contextlib.suppress(OverlaceError):
                        self._note(slot, error=error.message, exit_code=code)
                    raise
        self._changes.put(container_id)
        return slot.container

    async def _start(self, slot: _Slot, shim: Shim) -> None:
        record, places, config = slot.record, slot.places, slot.container.config
        image_root = await self._images.ensure_rootfs(slot.container.image_id)
        places.rootfs.mkdir(parents=True, exist_ok=True)  # gone after this host restarted
        document = runtime_spec(
            config,
            record.resolved,
            record.user,
            rootfs=str(places.rootfs),
            cgroup_path=self._cgroup(config.id),
            binds=record.binds,
            init=config.init,
            swap_limit=self._swap_limit,
            windows=self._windows,
        )
        write_atomically(places.bundle / "config.json", msgspec.json.encode(document))
        try:
            prepare.mount_root(places, image_root)
            running = await shim.create(
                config.id, places.bundle, places.log, SHIM_MAX, tty=config.tty, stdin=config.open_stdin
            )
            prepare.write_hosts(places, config, record.resolved, running.pid)
            await shim.start(config.id)
            descriptor = open_shim(places.bundle, config.id)
            fresh = msgspec.structs.replace(
                slot.container,
                status="running",
                pid=running.pid,
                started_at=time.time_ns(),
                finished_at=0,
                exit_code=0,
                error="",
                oom_killed=False,
                health=self._first_health(slot),
                failing_streak=0,
                health_log=(),
            )
            self._put(slot, msgspec.structs.replace(record, container=fresh))
        except BaseException:
            await asyncio.shield(self._undo_start(slot, shim))
            raise
        self._run(slot, descriptor)

    async def _undo_start(self, slot: _Slot, shim: Shim) -> None:
        try:
            await shim.discard(slot.container.config.id, slot.places.bundle)
            unmount(slot.places.rootfs)
        except OverlaceError as error:
            log.warning("left something of a failed start", id=slot.container.config.id, reason=error.message)

    def _first_health(self, slot: _Slot) -> HealthStatus | None:
        return "starting" if slot.record.resolved.healthcheck is not None else None

    def _run(self, slot: _Slot, descriptor: int | None, *, resumed: bool = False) -> None:
        """Watch over a container that runs: its shim's end, its health."""
        if descriptor is None:  # so short-lived that its shim is gone already
            self._reap(slot)
            return
        slot.shim_fd = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._reap, slot)
        if slot.record.resolved.healthcheck is not None:
            slot.health = asyncio.create_task(
                self._check_health(slot, resumed), name=f"health {slot.container.config.id[:12]}"
            )

    # ---- end of a run ----

    def _unwatch(self, slot: _Slot) -> None:
        if slot.shim_fd >= 0:
            asyncio.get_running_loop().remove_reader(slot.shim_fd)
            os.close(slot.shim_fd)
            slot.shim_fd = -1

    def _reap(self, slot: _Slot) -> None:
        self._unwatch(slot)
        slot.reaper = asyncio.create_task(self._ended(slot), name=f"reap {slot.container.config.id[:12]}")

    async def _ended(self, slot: _Slot) -> None:
        try:
            async with self._locks.hold(slot.container.config.id):
                await self._end(slot)
        except OverlaceError as error:
            log.warning(
                "cleaning up after a container failed", id=slot.container.config.id, reason=error.message
            )

    async def _end(self, slot: _Slot) -> None:
        """Note how a run ended, then free what it held. The log is complete: the shim is gone."""
        container, places = slot.container, slot.places
        container_id = container.config.id
        if slot.health is not None:
            slot.health.cancel()
            slot.health = None
        ended = read_exit(places.bundle, container_id)
        oom = oom_killed(self._cgroup(container_id)) or (places.bundle / "oom").exists()
        if ended is not None:
            code, at, error = ended.code, ended.at, ""
        else:
            # Its first process may live on without anybody to tell its end: bring it down with its shim.
            await self._require_shim().delete(container_id)
            present = (places.bundle / "config.json").exists()
            code, at = 137, time.time_ns()
            error = (
                "the container's shim was killed"
                if present
                else "this host restarted while the container ran"
            )
        try:
            self._note(
                slot, status="exited", pid=0, exit_code=code, finished_at=at, oom_killed=oom, error=error
            )
        finally:
            self._changes.put(container_id)
            await self._require_shim().delete(container_id)
            unmount(places.rootfs)

    async def stop(self, container_id: str, grace: int | None = None) -> Container:
        """Stop signal, then SIGKILL after `grace` ns (default: the container's own)."""
        slot = self._slot(container_id)
        if slot.container.status == "running":
            shim = self._require_shim()
            await shim.kill(container_id, slot.record.resolved.stop_signal)
            seconds = (slot.container.config.stop_grace if grace is None else grace) / 1e9
            try:
                await asyncio.wait_for(slot.stopped.wait(), max(seconds, 0))
            except TimeoutError:
                await self._kill_now(slot)
        return slot.container

    async def _kill_now(self, slot: _Slot) -> None:
        container_id = slot.container.config.id
        await self._require_shim().kill(container_id, 9)
        try:
            await asyncio.wait_for(slot.stopped.wait(), _KILL_SECONDS)
        except TimeoutError:
            # The first process is gone or cannot go (uninterruptible sleep); a stuck shim must not hold the
            # container.
            if slot.shim_fd >= 0:
                kill_shim(slot.shim_fd)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.stopped.wait(), _KILL_SECONDS)
                return
            raise Internal(f"container {container_id[:12]} did not end on SIGKILL") from None

    async def kill(self, container_id: str, signal: str) -> None:
        """Send a signal. Conflict in Docker's words when it does not run."""
        slot = self._slot(container_id)
        number = signal_number(signal)
        if slot.container.status != "running":
            raise Conflict(f"Cannot kill container: {container_id}: Container {container_id} is not running")
        await self._require_shim().kill(container_id, number)

    async def remove(self, container_id: str, force: bool = False) -> None:
        """Remove with its writable layer, secrets, logs and anonymous volumes. Absent: no error."""
        slot = self._slots.get(container_id)
        if slot is None:
            return
        if slot.container.status == "running":
            if not force:
                raise Conflict(
                    f"You cannot remove a running container {container_id}. Stop the container before "
                    "attempting removal or force remove"
                )
            await self._kill_now(slot)
        async with self._locks.hold(container_id):
            if self._slots.get(container_id) is not slot:
                return
            if slot.container.status == "running":
                raise Conflict(f"container {container_id} was started while it was being removed: try again")
            await self._require_shim().discard(container_id, slot.places.bundle)
            try:
                await prepare.remove_places(slot.places)
                for name in slot.record.anonymous_volumes:
                    await self._volumes.remove(name)
            except OverlaceError as error:
                dead = msgspec.structs.replace(slot.container, status="dead", error=error.message)
                slot.record = msgspec.structs.replace(slot.record, container=dead)
                slot.settle()
                raise
            del self._slots[container_id]
            slot.stopped.set()
            slot.ended.set()
        self._changes.put(container_id)

    # ---- looking ----

    async def inspect(self, container_id: str) -> Container:
        return self._slot(container_id).container

    async def list(self) -> list[Container]:
        return [slot.container for slot in self._slots.values()]

    async def wait(self, container_id: str) -> Container:
        """Return when the container is not running (at once if so)."""
        slot = self._slot(container_id)
        await slot.stopped.wait()
        return slot.container

    def changes(self) -> AsyncIterator[str]:
        """See `Runtime.changes`. Ids waiting to be read are told once, however often they changed."""
        return self._changes.subscribe()

    def logs(self, container_id: str, options: LogOptions) -> AsyncIterator[LogLine]:
        """See `Runtime.logs`; NotFound at once."""
        slot = self._slot(container_id)
        return read_log(slot.places.log, options, self._watch, slot.ended.is_set, slot.ended)

    # ---- housekeeping ----

    async def _check_health(self, slot: _Slot, resumed: bool) -> None:
        """Probe again and again while the container runs."""
        check, container_id = slot.record.resolved.healthcheck, slot.container.config.id
        assert check is not None
        argv = self._require_shim().exec_argv(
            container_id, health.probe_argv(check), slot.places.bundle / "health.pid"
        )
        # After a restart of ours all containers would probe at the same moment, for ever: spread them by
        # their ids.
        share = (zlib.crc32(container_id.encode()) % 1000 + 1) / 1000 if resumed else 1.0
        while True:
            await asyncio.sleep(share * health.next_delay(slot.container, check, time.time_ns()) / 1e9)
            share = 1.0
            probe = await health.run_probe(argv, slot.places.bundle / "health.pid", check.timeout)
            if slot.container.status != "running":
                return
            before = slot.container.health
            after = health.record_probe(slot.container, check, probe)
            try:
                self._put(slot, msgspec.structs.replace(slot.record, container=after))
            except OverlaceError as error:
                log.warning("cannot note a container's health", id=container_id, reason=error.message)
            if after.health != before:
                self._changes.put(container_id)

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(_ROTATE_SECONDS)
            for slot in list(self._slots.values()):
                if slot.container.status == "running":
                    rotate_if_large(slot.places.log, slot.places.bundle / "ctl")

    def _places(self, container_id: str) -> Places:
        return Places(self._data_root, self._exec_root, container_id)

    def _cgroup(self, container_id: str) -> str:
        return f"{self._cgroup_parent}/{container_id}"

    def _require_shim(self) -> Shim:
        if self._shim is None:
            raise self._unfit or Internal("the runtime is not open")
        return self._shim

    def _slot(self, container_id: str) -> _Slot:
        slot = self._slots.get(container_id)
        if slot is None:
            raise NotFound(f"No such container: {container_id}")
        return slot

    def _put(self, slot: _Slot, record: Record) -> None:
        """Change a container: memory first (the truth of what runs), then disk. Raises Internal when the disk
        is full.
        """
        slot.record = record
        slot.settle()
        save(slot.places, record)

    def _note(self, slot: _Slot, **changed: object) -> None:
        self._put(
            slot,
            msgspec.structs.replace(
                slot.record, container=msgspec.structs.replace(slot.container, **changed)
            ),
        )
