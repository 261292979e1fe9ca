"""The standalone containers of this host: the verbs people use on them, and following what happens to them.

Owns the order of effects (record before runtime, network before start, network given back after the end) and one lock
per container. Decisions are plan.py's. Each verb writes down what is wanted before it acts, so that a daemon that ends
anywhere is followed by one that finishes it (`open`). Must not know HTTP nor how an interface is made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from overlace.agent.standalone.persist import RETRY_SECONDS, persist
from overlace.agent.standalone.places import Places
from overlace.agent.standalone.plan import Next, Step, plan_end, plan_found
from overlace.agent.standalone.records import Joined, Record, Records, Restart, Wish
from overlace.agent.standalone.slot import Slot
from overlace.model.errors import (
    Conflict,
    Internal,
    InvalidArgument,
    NotFound,
    OverlaceError,
    PermissionDenied,
)
from overlace.network.base import Attached
from overlace.runtime.base import Container, ContainerConfig, Runtime, Sandboxes

log = structlog.get_logger(__name__)
KILL_SECONDS = 10.0  # for SIGKILL to end a container; the runtime has stronger means


class Keeper:
    """The standalone containers of one host; `places` puts them on networks."""

    def __init__(self, folder: Path, runtime: Runtime, places: Places) -> None:
        self._records = Records(folder)
        self._runtime = runtime
        self._sandboxes = runtime if isinstance(runtime, Sandboxes) else None
        self._places = places
        self._slots: dict[str, Slot] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._doing: set[asyncio.Task[None]] = set()
        # told when a container's place on a network comes or goes: (connect | disconnect, container id, network)
        self.on_network: Callable[[str, str, Joined], None] = lambda action, id, joined: None

    # -- life ----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Know the containers again; half-made ones go. While the runtime cannot say which there are, all are kept:
        `follow` looks at each once it can."""
        self._records.load()
        there: dict[str, str] | None = None
        try:
            there = {c.config.id: c.status for c in await self._runtime.list()}
        except OverlaceError as error:
            log.warning("containers cannot be looked at yet", error=error.message)
        for record in self._records:
            if there is not None and record.wish.id not in there:  # a crash while it was made, or removed
                self._records.remove(record.wish.id)
                continue
            self._slots[record.wish.id] = Slot(record)
            if record.wanted == "running" if there is None else there[record.wish.id] == "running":
                self._places.want(record.wish)

    def follow(self) -> None:
        """Look after them from now on: those whose policy says so start again."""
        self._watcher = asyncio.create_task(self._watch(), name="watch standalone containers")
        for slot in list(self._slots.values()):
            self._follow(slot, self._found)

    async def close(self) -> None:
        """Stop following; containers go on."""
        jobs = [*self._doing, *(s.pending for s in self._slots.values() if s.pending)]
        jobs += [self._watcher] if self._watcher is not None else []
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def network_changed(self) -> None:
        """The host has another network driver: containers that run are attached to it again."""
        for slot in list(self._slots.values()):
            self._follow(slot, self._reattach)

    # -- looking -------------------------------------------------------------------------------------------------

    def record(self, id: str) -> Record | None:
        """What is kept of a container; None: it is not one of ours."""
        slot = self._slots.get(id)
        return slot.record if slot is not None else None

    def records(self) -> list[Record]:
        """All of them."""
        return [slot.record for slot in self._slots.values()]

    def attached(self, id: str) -> Attached | None:
        """Its place on networks; None while it does not run."""
        slot = self._slots.get(id)
        return slot.attached if slot is not None else None

    def ids(self) -> set[str]:
        """Whose containers on this host are standalone ones."""
        return set(self._slots)

    def restarting(self, id: str) -> bool:
        """Whether it waits to be started again."""
        slot = self._slots.get(id)
        return slot is not None and slot.pending is not None and not slot.pending.done()

    # -- verbs ---------------------------------------------------------------------------------------------------

    async def create(self, wish: Wish) -> Container:
        """Make it, not started. Raises NotFound (image), Conflict (name), InvalidArgument."""
        slot = Slot(Record(wish=wish))
        async with slot.lock:
            self._records.put(slot.record)
            self._slots[slot.id] = slot
            try:
                return await self._runtime.create(self._config(wish))
            except BaseException:
                del self._slots[slot.id]
                self._records.remove(slot.id)
                raise

    def _config(self, wish: Wish) -> ContainerConfig:
        return self._places.config(wish, own_namespace=self._sandboxes is not None)

    async def start(self, id: str) -> bool:
        """Run it; False when it runs already. Raises NotFound, Conflict and InvalidArgument in Docker's words."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            if (await self._runtime.inspect(id)).status == "running":
                return False
            slot.forget_pending()
            self._note(slot, wanted="running", by_hand=False, restarts=0)
            try:
                await self._start(slot)
            except OverlaceError:
                self._note(slot, wanted="stopped")
                if slot.record.wish.auto_remove:
                    slot.exit_code = (await self._runtime.inspect(id)).exit_code
                    await self._remove(slot, volumes=True)
                raise
            return True

    async def stop(self, id: str, grace: int | None = None, signal: str = "") -> bool:
        """End it as `docker stop` does, `grace` in ns (negative: as long as it takes), with `signal` instead of its own;
        False when it does not run."""
        slot = self._slot(id)
        slot.forget_pending()
        async with slot.lock:
            self._check_there(slot)
            slot.forget_pending()
            running = (await self._runtime.inspect(id)).status == "running"
            self._note(slot, wanted="stopped", by_hand=True)
        if running:  # without the lock: it may take long, and `docker kill` must get through
            grace = 10**18 if grace is not None and grace < 0 else grace
            if signal:
                seconds = (slot.record.wish.config.stop_grace if grace is None else grace) / 1e9
                grace = 0
                with contextlib.suppress(Conflict, TimeoutError):  # it has ended; it does not end
                    await self._runtime.kill(id, signal)
                    await asyncio.wait_for(self._runtime.wait(id), seconds)
            await self._runtime.stop(id, grace)
            await self._settle(slot)
        return running

    async def restart(self, id: str, grace: int | None = None, signal: str = "") -> None:
        """Stop, then start; one that does not run is started."""
        slot = self._slot(id)
        slot.kept = True
        try:
            await self.stop(id, grace, signal)
        finally:
            slot.kept = False
        await self.start(id)

    async def kill(self, id: str, signal: str, *, ends: bool) -> None:
        """Send a signal; `ends`: it is meant to end the container, which is then not started again."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            if ends and (await self._runtime.inspect(id)).status == "running":
                self._note(slot, by_hand=True)
            await self._runtime.kill(id, signal)

    async def remove(self, id: str, *, force: bool, volumes: bool) -> None:
        """Raises Conflict in Docker's words while it runs and `force` is not given."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            container = await self._runtime.inspect(id)
            if container.status == "running" and not force:
                raise Conflict(
                    f'cannot remove container "{slot.record.wish.config.name}": container is running: '
                    "stop the container before removing or force remove"
                )
            slot.forget_pending()
            if container.status == "running":
                with contextlib.suppress(Conflict, TimeoutError):  # it has just ended; it does not end
                    await self._runtime.kill(id, "SIGKILL")
                    ended = await asyncio.wait_for(self._runtime.wait(id), KILL_SECONDS)
                    slot.exit_code = ended.exit_code
            await self._remove(slot, volumes=volumes)

    async def rename(self, id: str, name: str) -> None:
        """Another name, also on the swarm's networks. Raises Conflict when it is taken."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            await self._runtime.rename(id, name)
            config = msgspec.structs.replace(slot.record.wish.config, name=name)
            self._note(slot, wish=msgspec.structs.replace(slot.record.wish, config=config))
            if slot.attached is not None:  # its name on the swarm's networks
                self._places.want(slot.record.wish)

    async def set_restart(self, id: str, policy: Restart) -> None:
        """`docker update --restart`. Raises Conflict in Docker's words beside `--rm`."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            if slot.record.wish.auto_remove and policy.name != "no":
                raise Conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            self._note(slot, wish=msgspec.structs.replace(slot.record.wish, restart=policy))

    async def connect(self, id: str, joined: Joined) -> None:
        """Put it on one more network, also while it runs. Raises Conflict, PermissionDenied in Docker's words, and as
        `Attacher.given`."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            wish = slot.record.wish
            if wish.mode:
                raise InvalidArgument(
                    "container sharing network namespace with another container or host cannot be connected to any "
                    "other network"
                )
            if any(joined.target in (j.target, j.name, j.network_id) for j in wish.networks):
                raise PermissionDenied(
                    f"endpoint with name {wish.config.name} already exists in network {joined.name}"
                )
            self._note(slot, turns=slot.record.turns + 1)
            await self._rejoin(
                slot, (*wish.networks, msgspec.structs.replace(joined, turn=slot.record.turns))
            )

    async def disconnect(self, id: str, network: str) -> Joined:
        """Take it off a network named by name or id; returns which it was. Raises PermissionDenied in Docker's words."""
        slot = self._slot(id)
        async with slot.lock:
            self._check_there(slot)
            wish = slot.record.wish
            gone = next(
                (j for j in wish.networks if network in (j.name, j.target, j.network_id) and network), None
            )
            if gone is None:
                raise PermissionDenied(f"container {id} is not connected to network {network}")
            await self._rejoin(slot, tuple(j for j in wish.networks if j is not gone))
            self._places.drop(wish, slot.record.wish)
            return gone

    async def leave_swarm(self) -> None:
        """The node leaves: its containers are taken off the swarm's networks, and go on. Never raises."""
        for slot in list(self._slots.values()):
            async with slot.lock:
                wish = slot.record.wish
                stay = tuple(j for j in wish.networks if not j.target)
                if stay == wish.networks or self._slots.get(slot.id) is not slot:
                    continue
                try:
                    await self._rejoin(slot, stay)
                except (OverlaceError, OSError) as error:
                    log.warning(
                        "a container could not be taken off the swarm's networks",
                        id=slot.id,
                        error=str(error),
                    )

    async def _rejoin(self, slot: Slot, networks: tuple[Joined, ...]) -> None:
        """Other networks; what fails leaves it on those it had."""
        before = slot.record.wish
        self._note(slot, wish=msgspec.structs.replace(before, networks=networks))
        container = await self._runtime.inspect(slot.id)
        if container.status != "running":
            return
        netns = Path(f"/proc/{container.pid}/ns/net")
        try:
            slot.attached = await self._attach(slot, netns)
        except OverlaceError:
            tried = slot.record.wish
            self._note(slot, wish=before)
            with contextlib.suppress(OverlaceError):
                slot.attached = await self._attach(slot, netns)
            self._places.drop(tried, before)
            raise

    def wait(self, id: str, *, removed: bool) -> asyncio.Future[tuple[int, str]]:
        """(exit code, error) once the next run ends, or once the container is removed. Cancel it to give up."""
        return self._slot(id).wait(removed=removed)

    # -- one container -------------------------------------------------------------------------------------------

    async def _start(self, slot: Slot) -> None:
        """Network, then program. What it took is given back when it does not start."""
        turn = slot.record.turns + 1
        networks = tuple(msgspec.structs.replace(j, turn=turn) for j in slot.record.wish.networks)
        wish = msgspec.structs.replace(slot.record.wish, networks=networks)
        self._note(slot, wish=wish, turns=turn)
        try:
            if self._sandboxes is None:
                if not wish.mode:
                    slot.attached = await self._attach(slot, None)
                container = await self._runtime.start(slot.id)
            else:
                if not wish.mode:
                    slot.attached = await self._attach(slot, await self._sandboxes.hold(slot.id))
                container = await self._release(slot, self._sandboxes)
        except BaseException as error:
            await asyncio.shield(self._give_back(slot))
            if isinstance(
                error, Conflict
            ):  # a port: Docker's status for what goes wrong with the network is 500
                raise Internal(f"failed to set up container networking: {error.message}") from error
            raise
        self._note(slot, started=True)
        if wish.console is not None and container.status == "running":
            with contextlib.suppress(OverlaceError):
                await self._runtime.resize(slot.id, *wish.console)

    async def _release(self, slot: Slot, sandboxes: Sandboxes) -> Container:
        wish = slot.record.wish
        if wish.mode:
            await sandboxes.hold(slot.id)
        own = slot.attached.addresses.values() if slot.attached is not None else ()
        names = tuple((wish.config.hostname, a.split("/")[0]) for a in own)
        return await sandboxes.release(slot.id, self._places.resolv_conf(wish), (*wish.config.hosts, *names))

    async def _attach(self, slot: Slot, netns: Path | None) -> Attached | None:
        wish, attached = await self._places.attach(slot.record.wish, netns)
        self._note(slot, wish=wish)
        self._tell(slot, wish.networks if attached is not None else ())
        return attached

    def _tell(self, slot: Slot, now: tuple[Joined, ...]) -> None:
        for action, joined in slot.moved(now):
            self.on_network(action, slot.id, joined)

    async def _give_back(self, slot: Slot) -> None:
        if self._sandboxes is not None:  # it may be held, with nothing to run
            with contextlib.suppress(OverlaceError):
                await self._runtime.stop(slot.id, 0)
        await self._detach(slot)

    async def _detach(self, slot: Slot) -> None:
        await self._places.detach(slot.record.wish)
        slot.attached = None
        self._tell(slot, ())

    async def _reattach(self, slot: Slot) -> None:
        """Make its interfaces what they should be, from the driver there is now."""
        async with slot.lock:
            if self._slots.get(slot.id) is not slot or slot.record.wish.mode:
                return
            container = await self._runtime.inspect(slot.id)
            if container.status == "running" and container.pid:
                slot.told = slot.record.wish.networks  # it is on them already
                slot.attached = await self._attach(slot, Path(f"/proc/{container.pid}/ns/net"))

    async def _found(self, slot: Slot) -> None:
        """After a start of the daemon."""
        try:
            container = await self._runtime.inspect(slot.id)
        except NotFound:
            async with slot.lock:
                if self._slots.get(slot.id) is slot:
                    await self._detach(slot)
                    await self._forget(slot)
            return
        step = plan_found(slot.record, container)
        if step.action == Next.WATCH:
            await self._reattach(slot)
            return
        async with slot.lock:
            if container.finished_at != slot.record.handled:
                self._note(slot, handled=container.finished_at)
            await self._detach(slot)
            if step.action == Next.REMOVE:
                await self._remove(slot, volumes=True)
                return
            if step.action == Next.STAY and slot.record.wanted == "running":
                self._note(slot, wanted="stopped")
        if step.action == Next.START:
            self._note(slot, wanted="running", by_hand=False)
            self._start_later(slot, step)

    async def _settle(self, slot: Slot) -> None:
        """Deal with the end of a run, once."""
        async with slot.lock:
            if self._slots.get(slot.id) is not slot:
                return
            try:
                container = await self._runtime.inspect(slot.id)
            except NotFound:
                await self._forget(slot)  # removed behind our back
                return
            ended = container.finished_at
            if container.status == "running" or not ended or ended == slot.record.handled:
                return
            slot.exit_code = container.exit_code
            await self._detach(slot)
            step = Step(Next.STAY) if slot.kept else plan_end(slot.record, container)
            wanted = slot.record.wanted if step.action == Next.START else "stopped"
            more = 1 if step.action == Next.START else 0
            self._note(slot, handled=ended, wanted=wanted, restarts=slot.record.restarts + more)
            slot.answer(removed=False, error=container.error)
            if step.action == Next.REMOVE:
                await self._remove(slot, volumes=True)
            elif step.action == Next.START:
                self._start_later(slot, step)

    def _start_later(self, slot: Slot, step: Step) -> None:
        slot.forget_pending()
        slot.pending = asyncio.create_task(
            self._start_again(slot, step.pause / 1e9), name=f"restart {slot.id[:12]}"
        )

    async def _start_again(self, slot: Slot, pause: float) -> None:
        """Tried until it starts: a policy was asked for, and a port or a network may be back later."""
        retry, told = RETRY_SECONDS[0], ""
        while True:
            await asyncio.sleep(pause)
            async with slot.lock:
                if self._slots.get(slot.id) is not slot or slot.record.wanted != "running":
                    return
                try:
                    if (await self._runtime.inspect(slot.id)).status != "running":
                        await self._start(slot)
                    return
                except OverlaceError as error:
                    if error.message != told:
                        told = error.message
                        log.warning("a container could not be started again", id=slot.id, error=told)
            pause, retry = retry, min(2 * retry, RETRY_SECONDS[1])

    async def _remove(self, slot: Slot, *, volumes: bool) -> None:
        self._note(slot, wanted="removed")
        await self._detach(slot)
        await self._runtime.remove(slot.id, force=True, volumes=volumes)
        await self._forget(slot)

    async def _forget(self, slot: Slot) -> None:
        slot.forget_pending()
        if slot.attached is not None:
            await self._detach(slot)
        self._records.remove(slot.id)
        self._slots.pop(slot.id, None)
        slot.answer(removed=True, error="")

    # -- following -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for id in self._runtime.changes():
            slot = self._slots.get(id)
            if slot is not None:
                self._follow(slot, self._settle)

    def _follow(self, slot: Slot, look: Callable[[Slot], Awaitable[None]]) -> None:
        """Have `look` done in the background, again and again until it works or the container is gone."""

        looking = persist(slot, look, lambda: self._slots.get(slot.id) is slot)
        task = asyncio.create_task(looking, name=f"follow {slot.id[:12]}")
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    # -- helpers -------------------------------------------------------------------------------------------------

    def _slot(self, id: str) -> Slot:
        slot = self._slots.get(id)
        if slot is None:
            raise NotFound(f"No such container: {id}")
        return slot

    def _check_there(self, slot: Slot) -> None:
        if self._slots.get(slot.id) is not slot:
            raise NotFound(f"No such container: {slot.id}")

    def _note(self, slot: Slot, **changed: object) -> None:
        record = msgspec.structs.replace(slot.record, **changed)
        if record != slot.record:
            self._records.put(record)
            slot.record = record
