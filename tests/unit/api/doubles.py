"""A daemon for the API's tests: a real store and control, a runtime that only remembers, and a swarm that
obeys.

`Puppets` stands for manager loop and agents: it makes each service's tasks and moves them to running, so
that clients that wait for a service see it converge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from overlace.agent.standalone.attacher import Attacher
from overlace.agent.standalone.keeper import Keeper
from overlace.agent.standalone.places import Places
from overlace.api.backend import (
    ContainerAddress,
    EngineOptions,
    InitRequest,
    JoinRequest,
    LocalEndpoint,
    LocalNetwork,
    LocalSwarm,
)
from overlace.manager.control import Control
from overlace.manager.logs import LogRecord
from overlace.manager.paths import PathBook
from overlace.model.errors import Conflict, NoLeader, NotFound, Unavailable
from overlace.model.findings import Question, Said
from overlace.model.ids import new_id
from overlace.model.objects import (
    Cluster,
    ContainerStatus,
    Endpoint,
    ManagerStatus,
    Network,
    NetworkAttachment,
    Node,
    NodeDescription,
    NodeResources,
    NodeStatus,
    Service,
    Subnet,
    Task,
    TaskStatus,
    VirtualIP,
)
from overlace.model.specs import EndpointSpec, NetworkSpec, NodeSpec, PortConfig
from overlace.model.states import NodeState, TaskState
from overlace.network.base import Attached, TaskNetwork
from overlace.network.switch import Switch
from overlace.runtime.base import (
    Container,
    ContainerConfig,
    ExecConfig,
    ExecOutput,
    Image,
    Interface,
    LogLine,
    LogOptions,
    Platform,
    PullProgress,
    RegistryAuth,
    StoredVolume,
    Usage,
)
from overlace.store.base import Change, Delete, Put
from overlace.store.memory import MemoryStore

NODE = "one".ljust(25, "0")
WINDOWS_NODE = "win".ljust(25, "0")
NOW = 1_700_000_000_123_456_000
DIGEST = "sha256:" + "ab" * 32


def image(
    name: str = "registry:5000/shop/web:1", id: str = "sha256:" + "11" * 32, os: str = "linux"
) -> Image:
    repository = name.rpartition(":")[0]
    return Image(
        id=id,
        tags=(name,),
        digests=(f"{repository}@{DIGEST}",),
        platform=Platform(os, "amd64"),
        created="2026-01-02T03:04:05.5Z",
        size=5_000_000,
        config={"Env": ["PATH=/bin"], "Cmd": ["serve"], "Labels": {"maker": "tests"}},
        layers=("sha256:" + "22" * 32,),
    )


class FakeExec:
    """A program that gives back on stdout what it reads, says its name on stderr and ends with code 5."""

    pid = 7

    def __init__(self, config: ExecConfig) -> None:
        self.config = config
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        if not config.stdin:
            self.close_stdin()

    async def output(self) -> AsyncIterator[ExecOutput]:
        yield ExecOutput("stderr", self.config.argv[0].encode())
        while (piece := await self._pieces.get()) is not None:
            yield ExecOutput("stdout", piece)

    async def write(self, data: bytes) -> None:
        self._pieces.put_nowait(data)

    def close_stdin(self) -> None:
        self._pieces.put_nowait(None)

    def resize(self, height: int, width: int) -> None:
        raise Conflict("cannot resize: the exec has no terminal")

    async def wait(self) -> int:
        return 5

    async def close(self) -> None:
        """Nothing to let go of."""


class FakeRuntime:
    """Containers and images as the tests put them."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.stored: dict[str, Image] = {}
        self.registry: dict[str, Image] = {}
        self.lines: dict[str, list[LogLine]] = {}
        self.kept: dict[str, StoredVolume] = {}
        self.signals: list[tuple[str, str]] = []
        self.following = 0
        self.pulled: list[tuple[str, Platform, RegistryAuth | None]] = []
        self._listeners: set[asyncio.Queue[str]] = set()

    async def version(self) -> dict[str, str]:
        return {"runc": "1.1.5", "conmon": "2.1.6"}

    async def pull(
        self,
        reference: str,
        platform: Platform,
        auth: RegistryAuth | None = None,
        progress: PullProgress | None = None,
    ) -> Image:
        self.pulled.append((reference, platform, auth))
        found = self.registry.get(reference)
        if found is None:
            raise NotFound(f"manifest for {reference} not found: manifest unknown")
        for status in ("Pulling fs layer", "Pull complete"):
            if progress is not None and found.id not in self.stored:
                progress("22" * 6, status)
        self.stored[found.id] = found
        return found

    async def images(self) -> list[Image]:
        return list(self.stored.values())

    async def image(self, name: str) -> Image:
        for found in self.stored.values():
            tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
            if name == found.id or tagged in found.tags or found.id.removeprefix("sha256:").startswith(name):
                return found
        raise NotFound(f"No such image: {name}")

    async def remove_image(self, name: str, force: bool = False) -> list[str]:
        found = await self.image(name)
        del self.stored[found.id]
        return [*(f"Untagged: {tag}" for tag in found.tags), f"Deleted: {found.id}"]

    async def kill(self, container_id: str, signal: str) -> None:
        self.signals.append((container_id, signal))
        if signal == "SIGKILL" and self.containers[container_id].status == "running":
            self.now(container_id, status="exited", exit_code=137, finished_at=time.time_ns())

    async def create(self, config: ContainerConfig) -> Container:
        made = Container(
            config=config, status="created", image_id=(await self.image(config.image)).id, created_at=1
        )
        self.put(made)
        return made

    def now(self, container_id: str, **changed: Any) -> Container:
        self.put(msgspec.structs.replace(self.containers[container_id], **changed))
        return self.containers[container_id]

    async def start(self, container_id: str) -> Container:
        return self.now(container_id, status="running", pid=7, started_at=time.time_ns())

    async def stop(self, container_id: str, grace: int | None = None) -> Container:
        if self.containers[container_id].status != "running":
            return self.containers[container_id]
        return self.now(container_id, status="exited", exit_code=143, finished_at=time.time_ns())

    async def remove(self, container_id: str, force: bool = False, volumes: bool = True) -> None:
        if self.containers.pop(container_id, None) is not None:
            for queue in self._listeners:
                queue.put_nowait(container_id)

    async def rename(self, container_id: str, name: str) -> None:
        config = msgspec.structs.replace(self.containers[container_id].config, name=name)
        self.now(container_id, config=config)

    async def wait(self, container_id: str) -> Container:
        await until(lambda: self.containers[container_id].status != "running")
        return self.containers[container_id]

    def put(self, container: Container) -> None:
        self.containers[container.config.id] = container
        for queue in self._listeners:
            queue.put_nowait(container.config.id)

    async def inspect(self, container_id: str) -> Container:
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"No such container: {container_id}") from None

    async def list(self) -> list[Container]:
        return list(self.containers.values())

    async def exec(self, container_id: str, config: ExecConfig) -> FakeExec:
        return FakeExec(config)

    async def usage(self, container_id: str) -> Usage | None:
        return Usage(
            cpu_total=5 * 10**8,
            system=4 * 10**9,
            memory=3 << 20,
            memory_limit=1 << 30,
            memory_stats={"inactive_file": 1 << 20},
            pids=4,
            io=((8, 0, "read", 2000), (8, 0, "write", 3000)),
            interfaces=(Interface("eth0", rx_bytes=1000, tx_bytes=7000),),
        )

    async def attach(self, container_id: str, early: bool = False) -> FakeExec:
        return FakeExec(ExecConfig(argv=("attached",), stdin=True))

    async def resize(self, container_id: str, height: int, width: int) -> None:
        raise Conflict("cannot resize: it has no terminal")

    async def top(self, container_id: str, arguments: str) -> tuple[list[str], list[list[str]]]:
        return ["PID", "CMD"], [["7", arguments]]

    async def volumes(self) -> list[StoredVolume]:
        return list(self.kept.values())

    async def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> StoredVolume:
        name = name or "ab" * 32
        return self.kept.setdefault(
            name, StoredVolume(name, f"/v/{name}/_data", 1, dict(labels), dict(options))
        )

    async def remove_volume(self, name: str) -> int:
        if self.kept.pop(name, None) is None:
            raise NotFound(f"get {name}: no such volume")
        return 10

    async def layer_size(self, container_id: str) -> int:
        return 4096

    async def changes(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def logs(self, container_id: str, options: LogOptions) -> AsyncIterator[LogLine]:
        for line in self.lines.get(container_id, []):
            if options.stdout if line.stream == "stdout" else options.stderr:
                yield line
        if options.follow:
            self.following += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.following -= 1


def container(name: str = "web.1.task", id: str = "c" * 64, **changes: Any) -> Container:
    config = ContainerConfig(
        id=id,
        name=name,
        image="registry:5000/shop/web:1",
        netns="/run/netns/x",
        labels={"com.docker.swarm.service.name": "web", "com.docker.swarm.task": ""},
        hostname="web",
    )
    started = time.time_ns() - 5_000_000_000
    values: dict[str, Any] = {
        "config": config,
        "status": "running",
        "image_id": "sha256:" + "11" * 32,
        "created_at": started,
        "started_at": started,
        "pid": 4242,
        "argv": ("serve", "--port", "80"),
    }
    return Container(**(values | changes))


class FakeManager:
    """ManagerHandle with a real store and control."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.resolver = self
        self.control = Control(store, resolver=self)
        self.logs = self
        self.paths = PathBook(store.view)
        self.known: dict[str, Any] = {}
        self.lines: list[LogRecord] = []
        self.following = 0
        self.led = True  # False: no manager leads

    node_id = "me"
    addr = "192.0.2.1:2377"

    def leader(self) -> FakeManager | None:
        return self if self.led else None

    async def wait_leader(self) -> FakeManager:
        if not self.led:
            raise NoLeader
        return self

    def ask(self, leader: Any, *request: Any) -> Any:
        raise AssertionError("this manager leads: there is nobody to ask")

    async def caught_up(self, revision: int) -> None:
        pass

    async def ask_node(self, node_id: str, question: Question) -> Said:
        return Said()

    async def subscribe(
        self, task_ids: Sequence[str], options: LogOptions, *, service_id: str = ""
    ) -> AsyncIterator[LogRecord]:
        for line in self.lines:
            wanted = line.task.id in task_ids or line.task.service_id == service_id
            if wanted and (options.stdout if line.stream == "stdout" else options.stderr):
                yield line
        if options.follow:
            self.following += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.following -= 1

    async def inspect(self, reference: str, auth: RegistryAuth | None = None) -> Any:
        """A registry that has what `known` has."""
        found = self.known.get(reference.partition("@")[0])
        if found is None:
            raise Unavailable(f"registry of {reference} does not answer")
        return found


class ResolvedImage(msgspec.Struct, frozen=True):
    digest: str = DIGEST
    media_type: str = "application/vnd.oci.image.index.v1+json"
    size: int = 1234
    platforms: tuple[Platform, ...] = (Platform("linux", "amd64"),)


class FakeNetwork:
    """Gives each container an address and remembers who has one."""

    def __init__(self) -> None:
        self.there: dict[str, TaskNetwork] = {}

    async def attach(self, task: TaskNetwork, netns: Path | None = None) -> Attached:
        self.there[task.task_id] = task
        address = {"bridge": f"172.17.0.{len(self.there) + 1}/16"}
        return Attached(None, "", address, {}, {"bridge": "172.17.0.1"}, task.host_ports)

    async def detach(self, task_id: str) -> None:
        self.there.pop(task_id, None)


class FakeBackend:
    """Backend whose swarm verbs work on the store in memory."""

    def __init__(self, folder: Path = Path("/nonexistent"), **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.network = FakeNetwork()

        async def driver() -> Any:
            return self.network

        places = Places(Attacher(lambda network, address: 24), driver, lambda id: Path("/run/netns") / id)
        self.containers = Keeper(folder, self.runtime, places)  # type: ignore[arg-type]
        self.options = EngineOptions(
            **(
                {
                    "id": "0f" * 16,
                    "hostname": "one",
                    "data_root": "/var/lib/x",
                    "started_at": NOW,
                    "system": "Debian",
                    "kernel": "Linux 6.1",
                    "memory": 1 << 30,
                }
                | options
            )
        )
        self.manager: FakeManager | None = None
        self.switch: Switch | None = None
        self.state = LocalSwarm()
        self.asked: list[Any] = []
        self.networks: list[LocalNetwork] = [
            LocalNetwork(
                id="b" * 64,
                name="bridge",
                driver="bridge",
                scope="local",
                subnets=(Subnet("172.30.0.0/16", "172.30.0.1"),),
                created_at=NOW,
            )
        ]
        self.addresses: dict[str, list[ContainerAddress]] = {}
        self.ports: dict[str, list[PortConfig]] = {}

    def swarm(self) -> LocalSwarm:
        return self.state

    async def swarm_init(self, request: InitRequest) -> str:
        self.asked.append(request)
        store = MemoryStore()
        await store.commit(first_objects(request))
        self.manager = FakeManager(store)
        self.state = LocalSwarm(state="active", node_id=NODE, node_addr="172.28.1.11", control_available=True)
        return NODE

    async def swarm_join(self, request: JoinRequest) -> None:
        self.asked.append(request)
        self.state = LocalSwarm(state="active", node_id=NODE, node_addr="172.28.1.12")

    async def swarm_leave(self, force: bool) -> None:
        self.asked.append(force)
        self.manager = None
        self.state = LocalSwarm()

    def local_networks(self) -> Sequence[LocalNetwork]:
        return self.networks

    async def container_addresses(self, container_id: str) -> Sequence[ContainerAddress]:
        return self.addresses.get(container_id, [])

    async def container_ports(self, container_id: str) -> Sequence[PortConfig]:
        return self.ports.get(container_id, [])


def node(id: str = NODE, hostname: str = "one", os: str = "linux", manager: bool = True) -> Node:
    windows = os == "windows"
    return Node(
        id=id,
        created_at=NOW,
        updated_at=NOW,
        spec=NodeSpec(role="manager" if manager else "worker"),
        description=NodeDescription(
            hostname=hostname,
            os=os,
            architecture="x86_64",
            os_version="10.0.20348.2527" if windows else "6.1.0",
            resources=NodeResources(2_000_000_000, 4 << 30),
            engine_version="0.1.0",
            plugins=(("Network", "overlay"), ("Volume", "local")),
            underlay_address="172.28.1.11",
            emulated=windows,
        ),
        status=NodeStatus(NodeState.READY, addr="172.28.1.11"),
        manager_status=ManagerStatus(True, "reachable", "172.28.1.11:2377") if manager else None,
    )


def first_objects(request: InitRequest) -> list[Change]:
    cluster = Cluster(
        id=new_id(),
        created_at=NOW,
        updated_at=NOW,
        spec=request.spec,
        worker_token="SWMTKN-1-" + "a" * 50 + "-" + "b" * 25,
        manager_token="SWMTKN-1-" + "a" * 50 + "-" + "c" * 25,
    )
    ingress = Network(
        id="ingress".ljust(25, "0"),
        created_at=NOW,
        spec=NetworkSpec(name="ingress", ingress=True),
        vni=4096,
        subnets=(Subnet("10.0.0.0/24", "10.0.0.1"),),
    )
    return [Put(o, 0) for o in (cluster, node(), node(WINDOWS_NODE, "win", "windows", False), ingress)]


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Give other tasks time until something is so; a busy machine may need a lot of it."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  the tests' subjects have no event for everything
            await asyncio.sleep(0.005)


# -- a swarm that obeys --------------------------------------------------------------------------------------


class Puppets:
    """Makes tasks for services and lets them run, at once."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._number = 10

    async def run(self) -> None:
        watch = self._store.watch(0)
        while True:
            await watch.next()
            watch.drain()
            changes = self.plan()
            if changes:
                await self._store.commit(changes)

    def plan(self) -> list[Change]:
        view = self._store.view()
        changes: list[Change] = []
        for network in view.all(Network):
            if not network.vni:
                self._number += 1
                subnet = Subnet(f"10.0.{self._number}.0/24", f"10.0.{self._number}.1")
                changes.append(
                    Put(msgspec.structs.replace(network, vni=4096 + self._number, subnets=(subnet,)))
                )
        services = {s.id: s for s in view.all(Service)}
        for service in services.values():
            changes += self._plan_service(service, list(view.tasks_of_service(service.id)))
        changes += [Delete("task", t.id) for t in view.all(Task) if t.service_id not in services]
        return changes

    def _plan_service(self, service: Service, tasks: list[Task]) -> list[Change]:
        changes: list[Change] = []
        spec = service.spec.endpoint_spec or EndpointSpec()
        ports = tuple(
            msgspec.structs.replace(p, published_port=p.published_port or 30000) for p in spec.ports
        )
        if service.endpoint is None or service.endpoint.spec != spec:
            networks = service.spec.task_template.networks
            vips = tuple(VirtualIP(n.target, f"10.0.{9}.{2 + i}/24") for i, n in enumerate(networks))
            endpoint = Endpoint(spec=spec, ports=ports, virtual_ips=vips)
            changes.append(Put(msgspec.structs.replace(service, endpoint=endpoint)))
        mode = service.spec.mode
        replicas = mode.replicated.replicas if mode.replicated else 1
        wanted = set(range(1, (1 if replicas is None else replicas) + 1))
        for task in tasks:
            if task.desired_state > TaskState.RUNNING:
                continue
            if task.slot not in wanted or task.spec != service.spec.task_template:
                stopped = TaskStatus(TaskState.SHUTDOWN, time.time_ns(), "shutdown")
                changes.append(
                    Put(msgspec.structs.replace(task, desired_state=TaskState.SHUTDOWN, status=stopped))
                )
            else:
                wanted.discard(task.slot)
        return changes + [Put(self._task(service, slot), 0) for slot in sorted(wanted)]

    def _task(self, service: Service, slot: int) -> Task:
        id = new_id()
        return Task(
            id=id,
            created_at=time.time_ns(),
            service_id=service.id,
            slot=slot,
            node_id=NODE,
            spec=service.spec.task_template,
            spec_version=service.spec_version,
            service_name=service.spec.name,
            service_labels=service.spec.labels,
            name=f"{service.spec.name}.{slot}.{id}",
            status=TaskStatus(
                TaskState.RUNNING, time.time_ns(), "started", container=ContainerStatus("c" * 64, 4242, 0)
            ),
            networks=tuple(
                NetworkAttachment(n.target, (f"10.0.9.{10 + slot}/24",))
                for n in service.spec.task_template.networks
            ),
        )


def overlay_here(network: Network) -> LocalNetwork:
    """A swarm network as the node's own view has it, with one container on it."""
    endpoint = LocalEndpoint(
        container_id="c" * 64,
        name="web.1.task",
        endpoint_id="e" * 64,
        mac="02:42:0a:00:09:0b",
        address="10.0.9.11/24",
    )
    return LocalNetwork(id=network.id, name=network.spec.name, subnets=network.subnets, endpoints=(endpoint,))
