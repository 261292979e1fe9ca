"""One run of a container, from start to end, and its health in between.

Owns the change from created to running to exited, also when the end, or half of a start, happened while no
daemon was there to see it. Must not create or remove containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import zlib

import msgspec
import structlog

from overlace.model.errors import FailedPrecondition, Internal, OverlaceError
from overlace.runtime.base import HealthStatus
from overlace.runtime.oci import health, prepare
from overlace.runtime.oci.changes import ChangeFeed
from overlace.runtime.oci.files import write_atomically
from overlace.runtime.oci.images import ImageStore
from overlace.runtime.oci.locks import KeyedLocks
from overlace.runtime.oci.logs import shim_max
from overlace.runtime.oci.mounts import unmount
from overlace.runtime.oci.records import Record, save
from overlace.runtime.oci.shim import (
    Shim,
    StartRefused,
    kill_shim,
    oom_killed,
    open_shim,
    read_exit,
    swap_limit_supported,
)
from overlace.runtime.oci.slots import Slot
from overlace.runtime.oci.spec import runtime_spec

log = structlog.get_logger(__name__)
_KILL_SECONDS = 30.0


class Runs:
    """Verbs on a slot. `locks` (by container id) and `making` (how many at once) are shared with create and
    remove.
    """

    def __init__(
        self,
        shim: Shim,
        images: ImageStore,
        locks: KeyedLocks,
        making: asyncio.Semaphore,
        changes: ChangeFeed,
        *,
        cgroup_parent: str,
        windows: bool,
    ) -> None:
        self.shim = shim
        self._images = images
        self._locks = locks
        self._making = making
        self._changes = changes
        self._cgroup_parent = cgroup_parent
        self._windows = windows
        self._swap_limit = swap_limit_supported()

    # ---- start ----

    async def start(self, slot: Slot) -> None:
        """Run it; running already is fine.

        Raises StartRefused when its program cannot be run (the container then tells exit code 126 or 127, as
        Docker's does), FailedPrecondition when its secrets are gone, Internal. What was half started is
        undone.
        """
        async with self._locks.hold(slot.id):
            if slot.container.status == "running":
                return
            if slot.record.secrets and not os.path.ismount(slot.places.secrets):
                raise FailedPrecondition(
                    f"container {slot.id[:12]} cannot start: its secrets were in memory only and are gone "
                    "(this host restarted); create it again"
                )
            async with self._making:
                try:
                    await self._start(slot)
                except OverlaceError as error:
                    self._note_failure(slot, error)
                    raise
                except OSError as error:
                    failure = Internal(f"cannot start container {slot.id[:12]}: {error}")
                    self._note_failure(slot, failure)
                    raise failure from error
        self._changes.put(slot.id)

    def _note_failure(self, slot: Slot, error: OverlaceError) -> None:
        slot.dismiss()
        code = error.exit_code if isinstance(error, StartRefused) else 128
        with contextlib.suppress(OverlaceError):
            self._note(slot, error=error.message, exit_code=code)

    async def _start(self, slot: Slot) -> None:
        record, places, config = slot.record, slot.places, slot.container.config
        image_root = await self._images.ensure_rootfs(slot.container.image_id)
        places.rootfs.mkdir(parents=True, exist_ok=True)  # gone after this host restarted
        document = runtime_spec(
            config,
            record.resolved,
            record.user,
            rootfs=str(places.rootfs),
            cgroup_path=self._cgroup(slot),
            binds=record.binds,
            init=config.init,
            swap_limit=self._swap_limit,
            windows=self._windows,
        )
        write_atomically(places.bundle / "config.json", msgspec.json.encode(document))
        try:
            prepare.mount_root(places, image_root)
            running = await self.shim.create(
                slot.id,
                places.bundle,
                places.log if config.log_driver != "none" else None,
                shim_max(config.log_max_size),
                tty=config.tty,
                stdin=config.open_stdin,
                once=config.stdin_once,
            )
            prepare.write_hosts(places, config, record.resolved, running.pid)
            await slot.greet()
            started_at = time.time_ns()  # before: a short-lived program ends before the runtime's answer
            await self.shim.start(slot.id)
            descriptor = open_shim(places.bundle, slot.id)
            fresh = msgspec.structs.replace(
                slot.container,
                status="running",
                pid=running.pid,
                started_at=started_at,
                finished_at=0,
                exit_code=0,
                error="",
                oom_killed=False,
                health=_first_health(record),
                failing_streak=0,
                health_log=(),
            )
            self._put(slot, msgspec.structs.replace(record, container=fresh))
        except BaseException:
            await asyncio.shield(self._undo_start(slot))
            raise
        self._watch(slot, descriptor)

    async def _undo_start(self, slot: Slot) -> None:
        if slot.container.status == "running":  # only its note on disk failed
            slot.record = msgspec.structs.replace(
                slot.record, container=msgspec.structs.replace(slot.container, status="created", pid=0)
            )
            slot.settle()
        try:
            await self.shim.discard(slot.id, slot.places.bundle)
            (slot.places.bundle / "exit" / slot.id).unlink(missing_ok=True)
            unmount(slot.places.rootfs)
        except (OverlaceError, OSError) as error:
            log.warning("left something of a failed start", id=slot.id, reason=str(error))

    # ---- found again after a restart ----

    async def find_again(self, slot: Slot) -> None:
        """Bring a slot read from disk up to what really is."""
        container, places = slot.container, slot.places
        descriptor = open_shim(places.bundle, slot.id)
        if descriptor is not None:
            if container.status != "running" and await self.shim.status(slot.id) == "running":
                # We died between the start and the note of it.
                pid_file = places.bundle / "pid"
                self._note(
                    slot,
                    status="running",
                    pid=int(pid_file.read_text()),
                    started_at=pid_file.stat().st_mtime_ns,
                    finished_at=0,
                    exit_code=0,
                    error="",
                    health=_first_health(slot.record),
                )
            if slot.container.status == "running":
                self._watch(slot, descriptor, resumed=True)
                return
            os.close(descriptor)
        ended = read_exit(places.bundle, slot.id)
        if container.status == "running" or (ended is not None and ended.at > container.finished_at):
            await self.end(slot)
        else:
            await self.shim.discard(slot.id, places.bundle)
            unmount(places.rootfs)

    # ---- while it runs ----

    def _watch(self, slot: Slot, descriptor: int | None, *, resumed: bool = False) -> None:
        """Wait for the shim's end without polling, and look after the container's health."""
        if descriptor is None:  # so short-lived that its shim is gone already
            self._reap(slot)
            return
        slot.shim_fd = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._reap, slot)
        if slot.record.resolved.healthcheck is not None:
            slot.health = asyncio.create_task(
                self._check_health(slot, resumed), name=f"health {slot.id[:12]}"
            )

    async def _check_health(self, slot: Slot, resumed: bool) -> None:
        """Probe again and again while the container runs."""
        check, pid_file = slot.record.resolved.healthcheck, slot.places.bundle / "health.pid"
        assert check is not None
        argv = self.shim.exec_argv(slot.id, health.probe_argv(check), pid_file)
        # After a restart of ours all containers would probe at one moment, for ever: spread them by their
        # ids.
        share = (zlib.crc32(slot.id.encode()) % 1000 + 1) / 1000 if resumed else 1.0
        while True:
            await asyncio.sleep(share * health.next_delay(slot.container, check, time.time_ns()) / 1e9)
            share = 1.0
            probe = await health.run_probe(argv, pid_file, check.timeout)
            if slot.container.status != "running":
                return
            before = slot.container.health
            after = health.record_probe(slot.container, check, probe)
            try:
                self._put(slot, msgspec.structs.replace(slot.record, container=after))
            except OverlaceError as error:
                log.warning("cannot note a container's health", id=slot.id, reason=error.message)
            if after.health != before:
                self._changes.put(slot.id)

    # ---- the end of a run ----

    def _unwatch(self, slot: Slot) -> None:
        if slot.shim_fd >= 0:
            asyncio.get_running_loop().remove_reader(slot.shim_fd)
            os.close(slot.shim_fd)
            slot.shim_fd = -1

    def _reap(self, slot: Slot) -> None:
        self._unwatch(slot)
        slot.reaper = asyncio.create_task(self._ended(slot), name=f"reap {slot.id[:12]}")

    async def _ended(self, slot: Slot) -> None:
        try:
            async with self._locks.hold(slot.id):
                await self.end(slot)
        except OverlaceError as error:
            log.warning("cleaning up after a container failed", id=slot.id, reason=error.message)

    async def end(self, slot: Slot) -> None:
        """Note how a run ended, then free what it held. The log is complete: the shim is gone."""
        places = slot.places
        if slot.health is not None:
            slot.health.cancel()
            slot.health = None
        ended = read_exit(places.bundle, slot.id)
        oom = oom_killed(self._cgroup(slot)) or (places.bundle / "oom").exists()
        if ended is not None:
            # A file time may lag the clock by a tick (4 ms).
            code, at, error = ended.code, max(ended.at, slot.container.started_at), ""
        else:
            # Its first process may live on without anybody to tell its end: bring it down with its shim.
            await self.shim.delete(slot.id)
            held = (places.bundle / "config.json").exists()
            code, at = 137, time.time_ns()
            error = (
                "the container's shim was killed" if held else "this host restarted while the container ran"
            )
        try:
            self._note(
                slot, status="exited", pid=0, exit_code=code, finished_at=at, oom_killed=oom, error=error
            )
        finally:
            self._changes.put(slot.id)
            await self.shim.delete(slot.id)
            unmount(places.rootfs)

    async def stop(self, slot: Slot, grace: int | None) -> None:
        """Stop signal, then SIGKILL after `grace` ns; not running is fine."""
        if slot.container.status != "running":
            return
        await self.shim.kill(slot.id, slot.record.resolved.stop_signal)
        seconds = (slot.container.config.stop_grace if grace is None else grace) / 1e9
        try:
            await asyncio.wait_for(slot.stopped.wait(), max(seconds, 0))
        except TimeoutError:
            await self.kill_now(slot)

    async def kill_now(self, slot: Slot) -> None:
        """SIGKILL and wait for the end. Raises Internal when even that does not end it."""
        await self.shim.kill(slot.id, 9)
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(slot.stopped.wait(), _KILL_SECONDS)
                return
            # Its first process is gone or cannot go (uninterruptible sleep): a stuck shim must not hold it.
            if slot.shim_fd >= 0:
                kill_shim(slot.shim_fd)
        raise Internal(f"container {slot.id[:12]} did not end on SIGKILL")

    async def let_go(self, slot: Slot) -> None:
        """Stop looking after a container; it goes on."""
        tasks = [task for task in (slot.health, slot.reaper) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._unwatch(slot)

    # ---- records ----

    def _cgroup(self, slot: Slot) -> str:
        return f"{self._cgroup_parent}/{slot.id}"

    def _put(self, slot: Slot, record: Record) -> None:
        """Change a container: memory first (the truth of what runs), then disk. Raises Internal on a full
        disk.
        """
        slot.record = record
        slot.settle()
        save(slot.places, record)

    def _note(self, slot: Slot, **changed: object) -> None:
        container = msgspec.structs.replace(slot.container, **changed)
        self._put(slot, msgspec.structs.replace(slot.record, container=container))


def _first_health(record: Record) -> HealthStatus | None:
    return "starting" if record.resolved.healthcheck is not None else None
