"""The embedded runtime: containers from images, by way of an OCI runtime under conmon.

Owns every container's state from create to remove, across its own death: it finds its containers again, and
what became of them meanwhile. Must not know swarm objects or networks; the network namespace of a container
is made by the caller. One asyncio loop; per container one lock for create, start, remove and the end of a
run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import Conflict, Internal, InvalidArgument, NotFound, OverlaceError, Unimplemented
from overlace.runtime.base import (
    Container,
    ContainerConfig,
    ExecConfig,
    Image,
    LogLine,
    LogOptions,
    Platform,
    PullProgress,
    RegistryAuth,
    StoredVolume,
    Usage,
)
from overlace.runtime.oci import prepare
from overlace.runtime.oci.attach import OciAttach, attach, attach_early, resize_terminal
from overlace.runtime.oci.changes import ChangeFeed
from overlace.runtime.oci.execs import OciExec, start_exec
from overlace.runtime.oci.files import tree_size
from overlace.runtime.oci.images import ImageStore
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.logs import read_log, rotate_if_large
from overlace.runtime.oci.platforms import normal
from overlace.runtime.oci.records import Places, Record, ids_below, load, save
from overlace.runtime.oci.runs import Runs
from overlace.runtime.oci.shim import Shim, choose_runtime
from overlace.runtime.oci.slots import Slot
from overlace.runtime.oci.spec import container_path, resolve, signal_number
from overlace.runtime.oci.stats import read_usage
from overlace.runtime.oci.top import top
from overlace.runtime.oci.untag import User as ImageUser
from overlace.runtime.oci.volumes import VolumeStore
from overlace.runtime.oci.watch import FolderWatch

log = structlog.get_logger(__name__)
PARALLEL_STARTS = 4  # containers being made at once: more only queue for the same cores and disk
_ROTATE_SECONDS = (0.1, 2.0)  # shortest and longest pause between two looks at the sizes of logs


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
        self._slots: dict[str, Slot] = {}
        self._creating: dict[str, tuple[str, str]] = {}  # id -> (name, image id)
        self._mounting: dict[str, tuple[str, ...]] = {}  # id of a container being made -> its volumes
        self._locks = KeyedLocks()
        self._making = asyncio.Semaphore(PARALLEL_STARTS)
        self._changes = ChangeFeed()
        self._watch = FolderWatch()
        self._runs: Runs | None = None
        self._unfit: OverlaceError | None = None
        self._rotator: asyncio.Task[None] | None = None

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
        except OverlaceError as error:
            self._unfit = error
            log.error("no container can run on this host", reason=error.message)
        else:
            self._runs = Runs(
                Shim(runtime, self._exec_root),
                self._images,
                self._locks,
                self._making,
                self._changes,
                cgroup_parent=self._cgroup_parent,
                windows=self._windows,
            )
        await self._find_containers()
        await self._images.open()
        self._rotator = asyncio.create_task(self._rotate_logs(), name="rotate container logs")

    async def _find_containers(self) -> None:
        known = {*ids_below(self._data_root / "containers"), *ids_below(self._exec_root / "bundles")}
        for container_id in known:
            places = self._places(container_id)
            record = load(places)
            if record is not None:
                self._slots[container_id] = slot = Slot(record, places)
                if self._runs is not None:
                    await self._runs.find_again(slot)
                continue
            log.warning("removing a half-created container", id=container_id)
            if self._runs is not None:
                await self._runs.shim.discard(container_id, places.bundle)
            await prepare.remove_places(places)

    async def close(self) -> None:
        """Let go of everything without stopping any container. Log followers end."""
        if self._rotator is not None:
            self._rotator.cancel()
            await asyncio.gather(self._rotator, return_exceptions=True)
        for slot in self._slots.values():
            if self._runs is not None:
                await self._runs.let_go(slot)
            slot.ended.set()
        await self._images.close()
        self._watch.close()
        self._changes.close()

    async def version(self) -> dict[str, str]:
        """Tools and their versions; a host where none works has `error` instead."""
        if self._runs is None:
            return {"error": self._unfit.message if self._unfit else "not open"}
        return await self._runs.shim.version()

    # ---- images ----

    async def pull(
        self,
        reference: str,
        platform: Platform | None = None,
        auth: RegistryAuth | None = None,
        progress: PullProgress | None = None,
    ) -> Image:
        """See `Runtime.pull`; `platform` None means this host's."""
        return await self._images.pull(reference, platform or self._platform, auth, progress)

    async def images(self) -> list[Image]:
        return self._images.all()

    async def image(self, name: str) -> Image:
        return self._images.find(name)

    def image_root(self, image_id: str) -> Path:
        """The unpacked file system of an image that a container has."""
        return self._images.rootfs(image_id)

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
        shim = self._require_runs().shim
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
            self._mounting[config.id] = tuple(
                m.source for m in config.mounts if m.type == "volume" and m.source
            )
            places = self._places(config.id)
            anonymous: list[str] = []
            try:
                async with self._making:
                    await shim.discard(config.id, places.bundle)
                    await prepare.remove_places(places)  # left by a create whose clean-up failed
                    record = await self._prepare(config, bare, image, places, anonymous)
                    save(places, record)
                self._slots[config.id] = Slot(record, places)
            except BaseException:
                volumes = self._mounting.pop(config.id)
                await asyncio.shield(self._undo_create(places, anonymous, volumes))
                raise
            finally:
                del self._creating[config.id]
                self._mounting.pop(config.id, None)
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
        own, volumes, made = await prepare.mount_binds(
            config, resolved, self._volumes, image_root, windows=self._windows
        )
        anonymous += made
        files, has_secrets = prepare.file_binds(places, config.files, windows=self._windows)
        if config.init:
            files.append(prepare.init_bind())
        container = Container(
            config=bare,
            status="created",
            image_id=image.id,
            created_at=time.time_ns(),
            argv=resolved.argv,
            volumes=tuple(volumes),
            host_files=prepare.host_files(places, binds, config.log_driver),
        )
        return Record(container, resolved, user, (*binds, *own, *files), tuple(anonymous), has_secrets)

    async def _undo_create(self, places: Places, anonymous: Sequence[str], volumes: Sequence[str]) -> None:
        try:
            await prepare.remove_places(places)
            for name in anonymous:
                await self._volumes.remove(name)
            await self._release_volumes(volumes)
        except OverlaceError as error:  # the first error is the one to tell; open() removes what is left
            log.warning("left something of a failed create", id=places.data.name, reason=error.message)

    # ---- running ----

    async def start(self, container_id: str) -> Container:
        """Run it. InvalidArgument when its program cannot be run (the container then tells exit code 126 or
        127).
        """
        slot = self._slot(container_id)
        await self._require_runs().start(slot)
        return slot.container

    async def stop(self, container_id: str, grace: int | None = None) -> Container:
        """Stop signal, then SIGKILL after `grace` ns (default: the container's own)."""
        slot = self._slot(container_id)
        await self._require_runs().stop(slot, grace)
        return slot.container

    async def kill(self, container_id: str, signal: str) -> None:
        """Send a signal. Conflict in Docker's words when it does not run."""
        slot = self._slot(container_id)
        number = signal_number(signal)
        if slot.container.status != "running":
            raise Conflict(f"Cannot kill container: {container_id}: Container {container_id} is not running")
        await self._require_runs().shim.kill(container_id, number)

    async def exec(self, container_id: str, config: ExecConfig) -> OciExec:
        """See `Runtime.exec`."""
        slot = self._running_slot(container_id)
        return await start_exec(self._require_runs().shim, slot, config, windows=self._windows)

    async def attach(self, container_id: str, early: bool = False) -> OciAttach:
        """See `Runtime.attach`."""
        slot = self._slot(container_id)
        if early and slot.container.status != "running":
            return attach_early(slot)
        return await attach(self._running_slot(container_id))

    async def resize(self, container_id: str, height: int, width: int) -> None:
        """See `Runtime.resize`."""
        resize_terminal(self._running_slot(container_id), height, width)

    async def top(self, container_id: str, arguments: str) -> tuple[list[str], list[list[str]]]:
        """See `Runtime.top`."""
        self._running_slot(container_id)
        return await top(f"{self._cgroup_parent}/{container_id}", arguments)

    async def usage(self, container_id: str) -> Usage | None:
        """See `Runtime.usage`."""
        slot = self._slot(container_id)
        if slot.container.status != "running":
            return None
        return await asyncio.to_thread(
            read_usage, f"{self._cgroup_parent}/{container_id}", slot.container.pid
        )

    async def volumes(self) -> list[StoredVolume]:
        """Every volume of this host, by name."""
        return self._volumes.all()

    async def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> StoredVolume:
        """See `Runtime.create_volume`."""
        return await self._volumes.create(name, labels, options)

    async def _release_volumes(self, names: Iterable[str]) -> None:
        """Volumes a container gave up; those no other has are unmounted."""
        used = {v.name for slot in self._slots.values() for v in slot.container.volumes}
        for name in set(names) - used - {n for names in self._mounting.values() for n in names}:
            await self._volumes.release(name)

    async def remove_volume(self, name: str) -> int:
        """See `Runtime.remove_volume`. Raises NotFound; Conflict in Docker's words while a container has it."""
        if name not in {volume.name for volume in self._volumes.all()}:
            raise NotFound(f"get {name}: no such volume")
        users = [i for i, names in self._mounting.items() if name in names]
        users += [c.config.id for c in await self.list() if name in {v.name for v in c.volumes}]
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        return await self._volumes.remove(name)

    async def erase_files(self, container_id: str) -> None:
        """See `Runtime.erase_files`."""
        slot = self._slots.get(container_id)
        if slot is None:
            return
        async with self._locks.hold(container_id):
            if slot.container.status == "running":
                raise Conflict(f"container {container_id} runs: its secrets and configs are in use")
            await prepare.erase_files(slot.places)

    async def remove(self, container_id: str, force: bool = False, volumes: bool = True) -> None:
        """See `Runtime.remove`."""
        slot = self._slots.get(container_id)
        if slot is None:
            return
        if slot.container.status == "running":
            if not force:
                raise Conflict(
                    f"You cannot remove a running container {container_id}. Stop the container before "
                    "attempting removal or force remove"
                )
            await self._require_runs().kill_now(slot)
        async with self._locks.hold(container_id):
            if self._slots.get(container_id) is not slot:
                return
            if slot.container.status == "running":
                raise Conflict(f"container {container_id} was started while it was being removed: try again")
            await self._require_runs().shim.discard(container_id, slot.places.bundle)
            try:
                await prepare.remove_places(slot.places)
                for name in slot.record.anonymous_volumes if volumes else ():
                    await self._volumes.remove(name)
            except OverlaceError as error:
                dead = msgspec.structs.replace(slot.container, status="dead", error=error.message)
                slot.record = msgspec.structs.replace(slot.record, container=dead)
                slot.settle()
                raise
            del self._slots[container_id]
            slot.vanish()
            await self._release_volumes(volume.name for volume in slot.container.volumes)
        self._changes.put(container_id)

    async def rename(self, container_id: str, name: str) -> None:
        """See `Runtime.rename`."""
        slot = self._slot(container_id)
        async with self._locks.hold(container_id):
            config = msgspec.structs.replace(slot.container.config, name=name)
            self._check_name(config)
            container = msgspec.structs.replace(slot.container, config=config)
            slot.record = msgspec.structs.replace(slot.record, container=container)
            save(slot.places, slot.record)
        self._changes.put(container_id)

    # ---- looking ----

    async def inspect(self, container_id: str) -> Container:
        return self._slot(container_id).container

    async def list(self) -> list[Container]:
        return [slot.container for slot in self._slots.values()]

    async def layer_size(self, container_id: str) -> int:
        """See `Runtime.layer_size`; reads the whole layer's folders."""
        return await asyncio.to_thread(tree_size, self._slot(container_id).places.upper)

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
        if slot.container.config.log_driver == "none":
            raise Unimplemented("configured logging driver does not support reading")
        return read_log(slot.places.log, options, self._watch, slot.ended.is_set, slot.ended)

    # ---- housekeeping ----

    async def _rotate_logs(self) -> None:
        pause = _ROTATE_SECONDS[1]
        while True:
            await asyncio.sleep(pause)
            worst = 0.0
            for slot in list(self._slots.values()):
                if slot.container.status == "running" and slot.container.config.log_driver != "none":
                    config, control = slot.container.config, slot.places.bundle / "ctl"
                    over = rotate_if_large(
                        slot.places.log, control, config.log_max_size, config.log_max_files
                    )
                    worst = max(worst, over)
            # a flood overruns its limit between two looks: look more often while it lasts
            pause = min(max(pause / 2 if worst > 2 else pause * 2, _ROTATE_SECONDS[0]), _ROTATE_SECONDS[1])

    def _places(self, container_id: str) -> Places:
        return Places(self._data_root, self._exec_root, container_id)

    def _require_runs(self) -> Runs:
        if self._runs is None:
            raise self._unfit or Internal("the runtime is not open")
        return self._runs

    def _running_slot(self, container_id: str) -> Slot:
        slot = self._slot(container_id)
        if slot.container.status != "running":
            raise Conflict(f"container {container_id} is not running")
        return slot

    def _slot(self, container_id: str) -> Slot:
        slot = self._slots.get(container_id)
        if slot is None:
            raise NotFound(f"No such container: {container_id}")
        return slot
