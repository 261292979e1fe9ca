"""The worker against a runtime and a network that are late, broken or slow: what a person sees and what is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from overlace.agent.container import container_id
from overlace.agent.state import AgentState
from overlace.agent.worker import NodeFacts, Worker
from overlace.model.errors import Conflict, InvalidArgument, NotFound, Unavailable
from overlace.model.objects import Task, TaskStatus
from overlace.model.specs import ContainerSpec, PortConfig, TaskSpec
from overlace.model.states import TaskState
from overlace.network.base import Attached
from overlace.runtime.base import Container, Platform
from overlace.wire.messages import Assignments

FACTS = NodeFacts("node1", "host1", "linux", "x86_64", Platform("linux", "amd64"))


class FakeRuntime:
    def __init__(self):
        self.there: dict[str, Container] = {}
        self.pull_error = None
        self.wake = asyncio.Event()
        self.stopped: list[str] = []
        self.erased: list[str] = []

    async def pull(self, reference, platform, auth=None, *more):
        if self.pull_error:
            raise self.pull_error

    async def image(self, name):
        raise NotFound(f"No such image: {name}")

    async def create(self, config):
        c = Container(msgspec.structs.replace(config, files=()), "created", "sha256:0", 1)
        return self.there.setdefault(config.id, c)

    async def start(self, id):
        return self.now(id, status="running", pid=7)

    async def stop(self, id, grace=None):
        self.stopped.append(id)
        return self.now(id, status="exited", exit_code=143)

    async def remove(self, id, force=False):
        self.there.pop(id, None)

    async def erase_files(self, id):
        assert self.there[id].status != "running" if id in self.there else True
        self.erased.append(id)

    async def inspect(self, id):
        if id not in self.there:
            raise NotFound(f"No such container: {id}")
        return self.there[id]

    async def list(self):
        return list(self.there.values())

    async def changes(self):
        while True:
            await self.wake.wait()
            self.wake.clear()
            for id in list(self.there):
                yield id

    def now(self, id, **what):
        self.there[id] = msgspec.structs.replace(self.there[id], **what)
        self.wake.set()
        return self.there[id]


class FakeNetwork:
    def __init__(self):
        self.error: Exception | None = None
        self.attached: set[str] = set()

    async def keep_only(self, ids):
        self.attached &= ids

    async def attach(self, wish, netns=None):
        if self.error:
            raise self.error
        self.netns = netns
        self.attached.add(wish.task_id)
        return Attached(Path("/ns"), "nameserver 127.0.0.11\n", {}, {}, {})

    async def detach(self, id):
        self.attached.discard(id)


class Bed:
    def __init__(self, folder: Path):
        self.runtime, self.network = FakeRuntime(), FakeNetwork()
        self.reports: list[tuple[str, TaskStatus]] = []
        self.folder = folder

    async def open(self):
        self.state = AgentState(self.folder / "agent.db")
        self.worker = Worker(
            FACTS, self.runtime, self.network, self.state, lambda i, s: self.reports.append((i, s))
        )
        await self.worker.open()

    async def close(self):
        await self.worker.close()
        self.state.close()

    async def until(self, check):
        async with asyncio.timeout(5):
            while not check():  # noqa: ASYNC110  # the fakes have no event for everything
                await asyncio.sleep(0.005)

    def last(self):
        return self.reports[-1][1].state if self.reports else None

    def seen(self):
        return [s.state for _, s in self.reports]


def a_task(desired=TaskState.RUNNING, id="t1"):
    spec = TaskSpec(container_spec=ContainerSpec(image="web:1"))
    status = TaskStatus(TaskState.ASSIGNED)
    return Task(id=id, service_id="s1", spec=spec, name=f"web.1.{id}", desired_state=desired, status=status)


@pytest.fixture
async def bed(tmp_path, monkeypatch):
    monkeypatch.setattr("overlace.agent.worker.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("overlace.agent.worker.DRAIN_SECONDS", 0.0)
    b = Bed(tmp_path)
    await b.open()
    yield b
    await b.close()


async def test_a_task_goes_from_assigned_to_running_and_away_again(bed):
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: TaskState.RUNNING in bed.seen())
    assert bed.seen() == [TaskState.PREPARING, TaskState.STARTING, TaskState.RUNNING]
    await bed.worker.assign(Assignments(2, False, (a_task(TaskState.SHUTDOWN),)))
    await bed.until(lambda: bed.last() == TaskState.SHUTDOWN)
    await bed.until(lambda: not bed.network.attached)
    assert container_id("t1") in bed.runtime.there  # kept for its logs
    await bed.worker.assign(Assignments(3, False, (), ("t1",)))
    await bed.until(lambda: not bed.runtime.there and not bed.state.tasks())


async def test_what_a_task_waits_for_is_seen_and_goes_away(bed):
    bed.network.error = Unavailable("network n1 is not known on this node yet")
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.reports and "n1 is not known" in bed.reports[-1][1].err)
    assert bed.reports[-1][1].state == TaskState.PREPARING
    bed.network.error = None
    await bed.until(lambda: bed.last() == TaskState.RUNNING)
    assert bed.reports[-1][1].err == ""
    assert len([s for _, s in bed.reports if s.err]) == 1  # said once, not at every try


async def test_an_unexpected_failure_is_shown_and_tried_again(bed):
    bed.network.error = OSError(28, "No space left on device")
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.reports and "No space left" in bed.reports[-1][1].err)
    bed.network.error = None
    await bed.until(lambda: bed.last() == TaskState.RUNNING)


async def test_an_image_nobody_has_rejects_the_task(bed):
    bed.runtime.pull_error = NotFound("No such image: web:1")
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.REJECTED)
    assert "web:1" in bed.reports[-1][1].err


@pytest.mark.parametrize(
    "error",
    [
        NotFound("No such image: web:1 (manifest unknown)"),
        Unavailable("pull of web:1: dial tcp: connection refused"),
        InvalidArgument("invalid reference format"),
    ],
)
async def test_a_failed_pull_is_told_in_the_registrys_words_alone(bed, error):
    """Also when the registry is only away: the manager may find another host, and people see why."""
    bed.runtime.pull_error = error
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.REJECTED)
    assert bed.reports[-1][1].err == error.message


async def test_a_port_its_predecessor_still_holds_is_waited_for(bed):
    """A task that failed gives its host port back only after it said so; its replacement may be here before."""
    port = PortConfig(target_port=80, published_port=8080, publish_mode="host")
    old, new = (msgspec.structs.replace(a_task(id=i), ports=(port,)) for i in ("old", "new"))
    await bed.worker.assign(Assignments(1, True, (old,)))
    await bed.until(lambda: bed.last() == TaskState.RUNNING)
    held = asyncio.Event()
    give_back = bed.network.detach

    async def slow(id):
        await held.wait()
        await give_back(id)

    bed.network.detach = slow
    bed.runtime.now(container_id("old"), status="exited", exit_code=1)
    await bed.until(lambda: bed.last() == TaskState.FAILED)
    bed.network.error = Conflict("Bind for 0.0.0.0:8080 failed: port is already allocated")
    await bed.worker.assign(Assignments(2, False, (new,)))
    await asyncio.sleep(0.05)
    assert ("new", TaskState.REJECTED) not in [(i, s.state) for i, s in bed.reports]
    held.set()
    bed.network.error = None
    await bed.until(lambda: bed.reports[-1][0] == "new" and bed.last() == TaskState.RUNNING)


async def test_a_port_somebody_else_holds_rejects_the_task(bed):
    bed.network.error = Conflict("Bind for 0.0.0.0:8080 failed: port is already allocated")
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.REJECTED)


async def test_a_restarted_agent_goes_on_with_its_running_container(bed):
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.RUNNING)
    await bed.close()
    bed.network.attached.clear()
    bed.reports.clear()
    await bed.open()
    await bed.until(lambda: bed.network.attached == {"t1"})  # DNS and endpoint found again
    # the manager never heard that it runs: it is told
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    assert bed.reports[-1][1].state == TaskState.RUNNING
    assert not bed.runtime.stopped


async def after_losing_its_list(bed):
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.RUNNING)
    await bed.close()
    state = AgentState(bed.folder / "agent.db")
    state.put_tasks((), remove=("t1",))
    state.close()
    await bed.open()
    assert bed.runtime.there and bed.network.attached  # nothing is judged before the manager has spoken


async def test_a_container_of_no_task_goes_once_the_manager_has_spoken(bed):
    await after_losing_its_list(bed)
    await bed.worker.assign(Assignments(1, True, ()))
    assert not bed.runtime.there and not bed.network.attached


async def test_an_agent_that_lost_its_list_keeps_its_containers_running(bed):
    await after_losing_its_list(bed)
    running = msgspec.structs.replace(a_task(), status=TaskStatus(TaskState.RUNNING, 1, "started"))
    await bed.worker.assign(Assignments(1, True, (running,)))
    await asyncio.sleep(0.05)
    assert bed.runtime.there[container_id("t1")].status == "running"
    assert not bed.runtime.stopped and bed.network.attached == {"t1"}


async def test_shutdown_interrupts_a_wait(bed):
    bed.network.error = Unavailable("not yet")
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bool(bed.reports))
    await bed.worker.assign(Assignments(2, False, (a_task(TaskState.SHUTDOWN),)))
    await bed.until(lambda: bed.last() == TaskState.SHUTDOWN)


async def test_an_unhealthy_container_is_stopped_and_fails(bed):
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: bed.last() == TaskState.RUNNING)
    bed.runtime.now(container_id("t1"), health="unhealthy")
    await bed.until(lambda: bed.last() == TaskState.FAILED)
    assert bed.reports[-1][1].err == "task: unhealthy container"
    assert bed.runtime.stopped == [container_id("t1")]
    # secrets go with the task that needed them
    await bed.until(lambda: bed.runtime.erased == [container_id("t1")])


class FakeSandboxRuntime(FakeRuntime):
    """A runtime that makes its containers' namespaces itself, as a Docker Engine does."""

    gated = True

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    async def hold(self, id):
        self.calls.append("hold")
        return Path("/proc/7/ns/net")

    async def release(self, id, resolv_conf, hosts):
        self.calls.append(f"release {resolv_conf.strip()}")
        return self.now(id, status="running", pid=7)


@pytest.fixture
async def sandboxed(tmp_path, monkeypatch):
    monkeypatch.setattr("overlace.agent.worker.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("overlace.agent.worker.DRAIN_SECONDS", 0.0)
    b = Bed(tmp_path)
    b.runtime = FakeSandboxRuntime()
    await b.open()
    yield b
    await b.close()


async def test_where_the_runtime_makes_the_namespace_the_network_comes_between_hold_and_release(sandboxed):
    await sandboxed.worker.assign(Assignments(1, True, (a_task(),)))
    await sandboxed.until(lambda: TaskState.RUNNING in sandboxed.seen())
    assert sandboxed.runtime.calls == ["hold", "release nameserver 127.0.0.11"]
    assert sandboxed.network.netns == Path("/proc/7/ns/net")


async def test_a_held_container_whose_network_fails_is_stopped(sandboxed):
    sandboxed.network.error = InvalidArgument("port 80 is taken")
    await sandboxed.worker.assign(Assignments(1, True, (a_task(),)))
    await sandboxed.until(lambda: sandboxed.last() == TaskState.FAILED)
    await sandboxed.until(lambda: sandboxed.runtime.stopped)
    assert sandboxed.reports[-1][1].err == "starting container failed: port 80 is taken"
    assert sandboxed.runtime.calls == ["hold"]


async def test_a_container_is_attached_again_after_a_restart_only_once_it_runs(sandboxed):
    await sandboxed.worker.assign(Assignments(1, True, (a_task(TaskState.READY),)))
    await sandboxed.until(lambda: sandboxed.last() == TaskState.READY)
    await sandboxed.close()
    await sandboxed.open()
    await sandboxed.worker.assign(Assignments(1, True, (a_task(TaskState.RUNNING),)))
    await sandboxed.until(lambda: TaskState.RUNNING in sandboxed.seen())
    await sandboxed.close()
    sandboxed.runtime.calls.clear()
    sandboxed.network.attached.clear()
    await sandboxed.open()
    await sandboxed.until(lambda: sandboxed.network.attached)
    assert sandboxed.runtime.calls == ["hold"]


async def test_what_failed_for_a_while_is_no_longer_told_once_it_works(bed):
    await bed.worker.assign(Assignments(1, True, (a_task(),)))
    await bed.until(lambda: TaskState.RUNNING in bed.seen())
    inspect = bed.runtime.inspect

    async def away(id):
        raise Unavailable("the engine is away")

    bed.runtime.inspect = away
    bed.runtime.wake.set()
    await bed.until(lambda: bed.reports[-1][1].err == "the engine is away")
    bed.runtime.inspect = inspect
    await bed.until(lambda: bed.reports[-1][1].err == "")
    assert bed.last() == TaskState.RUNNING


class FakeWindowsRuntime(FakeSandboxRuntime):
    """The program runs from `hold` on; `ends`: and has ended by then."""

    gated = False
    ends = False

    async def hold(self, id):
        self.calls.append("hold")
        if self.ends:
            self.now(id, status="exited", exit_code=3)
            return None
        return Path("docker-id")


class FakePreparingNetwork(FakeNetwork):
    def __init__(self):
        super().__init__()
        self.prepare_error = None

    async def prepare(self, wish):
        if self.prepare_error:
            raise self.prepare_error
        self.prepared = wish.task_id
        return Attached(None, "", {"shop": "10.0.0.9/24"}, {}, {})


@pytest.fixture
async def on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("overlace.agent.worker.RETRY_SECONDS", 0.01)
    b = Bed(tmp_path)
    b.runtime, b.network = FakeWindowsRuntime(), FakePreparingNetwork()
    yield b
    await b.close()


async def test_on_windows_endpoints_are_made_before_the_container_and_attached_as_it_starts(on_windows):
    await on_windows.open()
    await on_windows.worker.assign(Assignments(1, True, (a_task(TaskState.RUNNING),)))
    await on_windows.until(lambda: TaskState.RUNNING in on_windows.seen())
    (container,) = on_windows.runtime.there.values()
    assert on_windows.network.prepared == "t1" and on_windows.network.netns == Path("docker-id")
    assert [address for _, address in container.config.hosts] == ["10.0.0.9"]
    assert on_windows.runtime.calls[0] == "hold"


async def test_on_windows_a_network_that_cannot_be_made_keeps_the_program_from_running(on_windows):
    on_windows.network.prepare_error = InvalidArgument("no network host here")
    await on_windows.open()
    await on_windows.worker.assign(Assignments(1, True, (a_task(TaskState.RUNNING),)))
    await on_windows.until(lambda: TaskState.REJECTED in on_windows.seen())
    assert not on_windows.runtime.there


@pytest.mark.parametrize("when", ["before", "while"])
async def test_on_windows_a_program_that_ends_before_it_is_attached_tells_its_own_end(on_windows, when):
    on_windows.runtime.ends = when == "before"

    async def attach(wish, netns=None):
        on_windows.runtime.now(container_id("t1"), status="exited", exit_code=3)
        raise NotFound("no such container runs")

    on_windows.network.attach = attach
    await on_windows.open()
    await on_windows.worker.assign(Assignments(1, True, (a_task(TaskState.RUNNING),)))
    await on_windows.until(lambda: TaskState.FAILED in on_windows.seen())
    assert on_windows.reports[-1][1].err == "task: non-zero exit (3)"
