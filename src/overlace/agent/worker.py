"""Drives every assigned task to where the manager wants it, one runner per task.

Owns which tasks this node has, their last status and the order of effects: network before container, drain before
stop, network given back before the container goes. Decisions come from `task.plan_step`; must not talk to the
manager (session does) nor know how a container or an interface is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import structlog

from overlace.agent.container import container_id, plan_container
from overlace.agent.state import AgentState
from overlace.agent.task import Action, failed, plan_step, rejected
from overlace.model import labels
from overlace.model.errors import Conflict, FailedPrecondition, NotFound, OverlaceError, Unavailable
from overlace.model.objects import Config, Secret, Task, TaskStatus
from overlace.model.states import TaskState
from overlace.model.template import Context
from overlace.network.base import Attached, NetworkDriver, Prepares, TaskNetwork
from overlace.runtime.auth import decode_auth
from overlace.runtime.base import Container, ContainerConfig, Platform, Runtime, Sandboxes
from overlace.wire.messages import Assignments

log = structlog.get_logger(__name__)
T = TypeVar("T")

# How long every data path has to learn that a task takes no new connections before its stop signal is sent: the
# dispatcher batches changes for a tenth of a second (swarm's own VIP goes on sending there: moby#38841).
DRAIN_SECONDS = 0.6
RETRY_SECONDS = 1.0
RETRY_MOST_SECONDS = 30.0


class NodeFacts(msgspec.Struct, frozen=True):
    """What templates and images need to know of this node."""

    node_id: str
    hostname: str
    os: str
    architecture: str
    platform: Platform


class _Slot:
    """One task on this node. `runner` owns every effect on it; others only change `task` and set `wake`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.status: TaskStatus = task.status
        self.wake = asyncio.Event()
        self.runner: asyncio.Task[None] | None = None
        self.attached: Attached | None = None
        self.released = False
        self.removing = False
        self.drained = False
        self.failures = 0  # steps failed in a row
        self.stumbled = ""  # over what, said once


class Worker:
    """`report(task_id, status)` is called for each new status, on the loop; it must not block. `others()`: ids of
    containers that are no task's."""

    def __init__(
        self,
        facts: NodeFacts,
        runtime: Runtime,
        network: NetworkDriver,
        state: AgentState,
        report: Callable[[str, TaskStatus], None],
        clock: Callable[[], int] = time.time_ns,
        others: Callable[[], set[str]] = set,
    ) -> None:
        self._others = others
        self._facts = facts
        self._runtime = runtime
        self._sandboxes = runtime if isinstance(runtime, Sandboxes) else None
        self._network = network
        self._state = state
        self._report_out = report
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._by_container: dict[str, str] = {}
        self._secrets: dict[str, Secret] = {}
        self._configs: dict[str, Config] = {}
        self._auth: dict[str, str] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._swept = False

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Go on with the tasks an earlier process left. What belongs to none of them is left alone until the manager
        has said which tasks this node has: our own list may be the thing that was lost."""
        self._watcher = asyncio.create_task(self._watch())
        for task in self._state.tasks():
            self._start(task)

    async def _sweep(self) -> None:
        """Collect containers, sandboxes and endpoints of tasks this node no longer has."""
        live = {i for i, s in self._slots.items() if not s.status.state.terminal}
        others = self._others()
        await self._network.keep_only(live | others)
        for c in await self._runtime.list():
            left = c.config.labels.get(labels.TASK_ID) and c.config.id not in self._by_container
            if left and c.config.id not in others:
                await self._quietly(
                    self._runtime.remove(c.config.id, force=True), "remove a leftover container"
                )

    async def close(self) -> None:
        """Stop driving; containers go on."""
        runners = [s.runner for s in self._slots.values() if s.runner] + (
            [self._watcher] if self._watcher else []
        )
        for r in runners:
            r.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def remove_all(self) -> None:
        """Stop and remove every task (the node leaves the swarm)."""
        for slot in list(self._slots.values()):
            slot.removing = True
            slot.wake.set()
        await asyncio.gather(*(s.runner for s in self._slots.values() if s.runner), return_exceptions=True)

    def view_changed(self) -> None:
        """A network view arrived: tasks that wait for a network of theirs try again."""
        for slot in self._slots.values():
            if slot.attached is None and not slot.status.state.terminal:
                slot.wake.set()

    def task(self, task_id: str) -> Task | None:
        slot = self._slots.get(task_id)
        return slot.task if slot else None

    def attached(self, container: str) -> tuple[Task, Attached] | None:
        """The task of a container on this host and where its interfaces live, while it has any."""
        slot = self._slots.get(self._by_container.get(container, ""))
        return (slot.task, slot.attached) if slot is not None and slot.attached is not None else None

    def all_attached(self) -> list[tuple[Task, Attached]]:
        """Every task with interfaces on this host."""
        return [(s.task, s.attached) for s in self._slots.values() if s.attached is not None]

    # -- assignments ---------------------------------------------------------------------------------------------

    async def assign(self, message: Assignments) -> None:
        """Follow the manager's wish. Raises Unavailable when it cannot be kept on disk (it will be sent again)."""
        gone = set(message.remove_tasks)
        if message.complete:
            gone |= self._slots.keys() - {t.id for t in message.tasks}
            self._secrets.clear()
            self._configs.clear()
            self._auth.clear()
        self._auth.update(message.registry_auth)
        self._secrets.update({s.id: s for s in message.secrets})
        self._configs.update({c.id: c for c in message.configs})
        kept = [self._merged(t) for t in message.tasks]
        self._state.put_tasks(kept)
        for task in kept:
            slot = self._slots.get(task.id)
            if slot is None:
                self._start(task)
                continue
            slot.task = task
            slot.wake.set()
        for task in message.tasks:  # what the manager has not heard of (reports lost with an earlier process)
            slot = self._slots[task.id]
            if slot.status.state > task.status.state:
                self._report_out(task.id, slot.status)
        for task_id in gone:
            slot = self._slots.get(task_id)
            if slot is not None:
                slot.removing = True
                slot.wake.set()
        for i in message.remove_secrets:
            self._secrets.pop(i, None)
        for i in message.remove_configs:
            self._configs.pop(i, None)
        if message.complete and not self._swept:
            await self._sweep()
            self._swept = True

    def _merged(self, task: Task) -> Task:
        """The manager's task with our status, which is the truth about it, unless the manager's says more."""
        slot = self._slots.get(task.id)
        if slot is None or slot.status.state < task.status.state:
            return task
        return msgspec.structs.replace(task, status=slot.status)

    def _start(self, task: Task) -> None:
        slot = _Slot(task)
        self._slots[task.id] = slot
        self._by_container[container_id(task.id)] = task.id
        slot.runner = asyncio.create_task(self._run(slot), name=f"task {task.id}")

    # -- one task ------------------------------------------------------------------------------------------------

    async def _run(self, slot: _Slot) -> None:
        while True:
            slot.wake.clear()
            try:
                if slot.removing:
                    await self._remove(slot)
                    return
                await self._step(slot)
            except asyncio.CancelledError:
                raise
            except Exception as e:
                await self._stumble(slot, e)
            else:
                self._recovered(slot)

    async def _stumble(self, slot: _Slot, error: Exception) -> None:
        """An effect failed: say so once, and try again later and later."""
        reason = error.message if isinstance(error, OverlaceError) else f"{type(error).__name__}: {error}"
        if reason != slot.stumbled:
            slot.stumbled = reason
            expected = isinstance(error, OverlaceError)
            log.warning(
                "task step failed, will retry", task=slot.task.id, error=reason, exc_info=not expected
            )
            if not slot.status.state.terminal:
                self._report(slot, msgspec.structs.replace(slot.status, timestamp=self._clock(), err=reason))
        slot.failures = min(slot.failures + 1, 6)
        await self._nap(slot, min(RETRY_SECONDS * 2 ** (slot.failures - 1), RETRY_MOST_SECONDS))

    def _recovered(self, slot: _Slot) -> None:
        """What failed before works again: its task no longer tells of it."""
        slot.failures = 0
        if slot.stumbled and slot.status.err == slot.stumbled and not slot.status.state.terminal:
            self._report(slot, msgspec.structs.replace(slot.status, timestamp=self._clock(), err=""))
        slot.stumbled = ""

    async def _step(self, slot: _Slot) -> None:
        container = await self._container(slot)
        if container is not None and slot.attached is None and not slot.status.state.terminal:
            # after a restart of the daemon: DNS and endpoint are found again before anything else
            if self._sandboxes is None:
                slot.attached = await self._network.attach(TaskNetwork.of(slot.task, slot.task.ports))
            elif container.status == "running":
                await self._attach_held(slot, self._sandboxes)
        step = plan_step(slot.task, slot.status, container, self._clock())
        self._report(slot, step.status)
        match step.action:
            case Action.WAIT:
                self._recovered(slot)
                await slot.wake.wait()
            case Action.PREPARE:
                await self._prepare(slot)
            case Action.START:
                await self._start_container(slot)
            case Action.STOP:
                await self._stop(slot)
            case Action.KILL_UNHEALTHY:
                await self._kill_unhealthy(slot)
            case Action.RELEASE:
                await self._release(slot)
                await slot.wake.wait()

    async def _prepare(self, slot: _Slot) -> None:
        """Image, network, container. A host that cannot do it rejects the task; what is only late is waited for."""
        task = slot.task
        try:
            await self._interruptible(slot, self._prepare_all(slot))
        except Unavailable as e:
            if slot.status.err != e.message:  # seen in `docker service ps` for as long as it lasts
                log.info("task waits", task=task.id, reason=e.message)
                waits = msgspec.structs.replace(slot.status, timestamp=self._clock(), err=e.message)
                self._report(slot, waits)
            await self._nap(slot, RETRY_SECONDS)
        except OverlaceError as e:
            if isinstance(e, Conflict) and self._giving_back(slot):
                # most likely its predecessor's port, which this host is about to take back
                await self._nap(slot, RETRY_SECONDS)
                return
            self._report(slot, rejected(slot.status, self._clock(), e.message))

    def _giving_back(self, slot: _Slot) -> bool:
        """Whether another task with host ports is over, or told to stop, and has not given its network back yet."""
        return any(
            other.task.ports and not other.released
            for other in self._slots.values()
            if other is not slot
            and (
                other.removing
                or other.status.state.terminal
                or other.task.desired_state >= TaskState.SHUTDOWN
            )
        )

    async def _prepare_all(self, slot: _Slot) -> None:
        task = slot.task
        spec = task.spec.container_spec
        if spec is not None:
            await self._image(task, spec.image)
        network = TaskNetwork.of(task, task.ports)
        outside = network.mode if network.mode == "host" else ""
        if self._sandboxes is not None:  # its namespace, and so its network, comes with its start
            names: tuple[tuple[str, str], ...] = ()
            if not self._sandboxes.gated and isinstance(self._network, Prepares):
                names = _own_names(task, await self._network.prepare(network))
            await self._runtime.create(self._config(task, outside, "", names))
            return
        attached = slot.attached = await self._network.attach(network)
        own_names = _own_names(task, attached)
        netns = str(attached.sandbox or outside)
        await self._runtime.create(self._config(task, netns, attached.resolv_conf, own_names))

    def _config(
        self, task: Task, netns: str, resolv_conf: str, own_names: tuple[tuple[str, str], ...]
    ) -> ContainerConfig:
        return plan_container(
            task,
            self._context(task),
            self._facts.node_id,
            self._secrets,
            self._configs,
            netns,
            resolv_conf,
            own_names,
        )

    async def _attach_held(self, slot: _Slot, sandboxes: Sandboxes) -> Attached | None:
        """None: it has ended already, by itself; what it ended with is what counts."""
        container = container_id(slot.task.id)
        sandbox = await sandboxes.hold(container)
        if sandbox is None:
            return None
        try:
            slot.attached = await self._network.attach(TaskNetwork.of(slot.task, slot.task.ports), sandbox)
        except OverlaceError:
            if not sandboxes.gated and (await self._runtime.inspect(container)).status != "created":
                return None
            raise
        return slot.attached

    async def _image(self, task: Task, image: str) -> None:
        """Pull; a registry that does not answer is no reason to fail when the image is here.

        What fails otherwise rejects the task, in the registry's words: another host may have better luck.
        """
        try:
            await self._runtime.pull(
                image, self._facts.platform, decode_auth(self._auth.get(task.service_id, ""))
            )
        except OverlaceError as e:
            with contextlib.suppress(OverlaceError):
                await self._runtime.image(image)
                log.info("registry did not give the image; using the local one", image=image, error=e.message)
                return
            if isinstance(e, Unavailable):
                raise FailedPrecondition(e.message) from e
            raise

    async def _start_container(self, slot: _Slot) -> None:
        try:
            if self._sandboxes is None:
                await self._runtime.start(container_id(slot.task.id))
            else:
                await self._start_sandboxed(slot, self._sandboxes)
        except Unavailable:
            raise  # late, not wrong: a network of its that is not known here yet, an engine that is away
        except OverlaceError as e:
            if isinstance(e, Conflict) and slot.attached is None and self._giving_back(slot):
                await self._nap(slot, RETRY_SECONDS)
                return
            self._report(slot, failed(slot.status, self._clock(), f"starting container failed: {e.message}"))

    async def _start_sandboxed(self, slot: _Slot, sandboxes: Sandboxes) -> None:
        attached = await self._attach_held(slot, sandboxes)
        if attached is None:
            return
        config = self._config(slot.task, "", attached.resolv_conf, _own_names(slot.task, attached))
        await sandboxes.release(container_id(slot.task.id), config.resolv_conf, config.hosts)

    async def _stop(self, slot: _Slot) -> None:
        if not slot.drained and slot.status.state == TaskState.RUNNING:
            slot.drained = True
            await asyncio.sleep(DRAIN_SECONDS)
        await self._runtime.stop(container_id(slot.task.id))

    async def _kill_unhealthy(self, slot: _Slot) -> None:
        container = await self._runtime.stop(container_id(slot.task.id))
        self._report(slot, failed(slot.status, self._clock(), "task: unhealthy container", container))

    async def _release(self, slot: _Slot) -> None:
        """A terminal task gives its addresses and ports back, and what it was told in secret; its container stays for
        logs until the task is removed."""
        if slot.released:
            return
        container = await self._container(slot)
        if container is not None and container.status in ("running", "created"):  # created: it may be held
            await self._runtime.stop(container_id(slot.task.id))
        await self._network.detach(slot.task.id)
        await self._runtime.erase_files(container_id(slot.task.id))
        slot.released, slot.attached = True, None

    async def _remove(self, slot: _Slot) -> None:
        cid = container_id(slot.task.id)
        container = await self._container(slot)
        if container is not None and container.status == "running":
            await self._stop(slot)
        await self._network.detach(slot.task.id)
        await self._runtime.remove(cid, force=True)
        self._state.put_tasks((), remove=(slot.task.id,))
        self._slots.pop(slot.task.id, None)
        self._by_container.pop(cid, None)

    # -- helpers -------------------------------------------------------------------------------------------------

    def _report(self, slot: _Slot, status: TaskStatus) -> None:
        if status == slot.status:
            return
        if status.state == TaskState.RUNNING and slot.attached is not None and slot.attached.host_ports:
            status = msgspec.structs.replace(status, port_status=slot.attached.host_ports)
            if status == slot.status:
                return
        slot.status = status
        slot.task = msgspec.structs.replace(slot.task, status=status)
        self._state.put_tasks((slot.task,))
        self._report_out(slot.task.id, status)

    async def _container(self, slot: _Slot) -> Container | None:
        try:
            return await self._runtime.inspect(container_id(slot.task.id))
        except NotFound:
            return None

    async def _interruptible(self, slot: _Slot, work: Coroutine[Any, Any, T]) -> T | None:
        """Run `work`, but give it up when the task shall stop or go."""
        doing = asyncio.ensure_future(work)
        try:
            while not doing.done():
                woken = asyncio.ensure_future(slot.wake.wait())
                await asyncio.wait({doing, woken}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if doing.done():
                    break
                slot.wake.clear()
                if slot.removing or slot.task.desired_state >= TaskState.SHUTDOWN:
                    doing.cancel()
                    await asyncio.gather(doing, return_exceptions=True)
                    slot.wake.set()
                    return None
            return doing.result()
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)

    async def _nap(self, slot: _Slot, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(slot.wake.wait(), seconds)

    async def _quietly(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except OverlaceError as e:
            log.warning(f"could not {what}", error=e.message)

    async def _watch(self) -> None:
        async for cid in self._runtime.changes():
            slot = self._slots.get(self._by_container.get(cid, ""))
            if slot is not None:
                slot.wake.set()

    def _context(self, task: Task) -> Context:
        f = self._facts
        return Context(
            service_id=task.service_id,
            service_name=task.service_name,
            service_labels=task.service_labels,
            node_id=f.node_id,
            node_hostname=f.hostname,
            node_os=f.os,
            node_architecture=f.architecture,
            task_id=task.id,
            task_name=task.name,
            task_slot=task.slot_word,
        )


def _own_names(task: Task, attached: Attached) -> tuple[tuple[str, str], ...]:
    """The container's own hostname on each of its addresses, as Docker writes /etc/hosts."""
    spec = task.spec.container_spec
    name = (spec.hostname if spec else "") or container_id(task.id)[:12]
    addresses = (*attached.addresses.values(), *attached.addresses6.values())
    return tuple((name, a.split("/")[0]) for a in addresses) if "{{" not in name else ()
