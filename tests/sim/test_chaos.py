"""Random swarms with random trouble: the invariants hold at every step, and peace brings convergence."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from invariants import Invariants, assert_converged
from virtual_swarm import SECOND, VirtualSwarm, is_job

from overlace.model.capabilities import IPV6
from overlace.model.objects import Node, NodeResources, Task
from overlace.model.specs import (
    ContainerSpec,
    EndpointSpec,
    GlobalJob,
    GlobalService,
    Ipam,
    IpamConfig,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    Platform,
    PortConfig,
    ReplicatedJob,
    ReplicatedService,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
    UpdateConfig,
)
from overlace.model.states import TaskState

SEEDS = range(100)


def random_spec(chance: random.Random, name: str, networks: list[str]) -> ServiceSpec:
    windows = chance.random() < 0.3
    constraints = [c for c in ("node.labels.zone==a", "node.labels.disk!=slow") if chance.random() < 0.15]
    placement = Placement(
        constraints=constraints,
        preferences=[PlacementPreference(SpreadOver("node.labels.zone"))] if chance.random() < 0.3 else [],
        max_replicas=chance.choice([0, 0, 0, 2]),
        platforms=[Platform("amd64", "windows", "10.0.20348.1") if windows else Platform("amd64", "linux")],
    )
    ports = []
    if chance.random() < 0.3:
        ports.append(PortConfig(target_port=80))
    if chance.random() < 0.15:
        ports.append(
            PortConfig(target_port=9, published_port=chance.randint(5000, 5001), publish_mode="host")
        )
    template = TaskSpec(
        container_spec=ContainerSpec(image="app"),
        resources=Resources(reservations=Reservations(nano_cpus=chance.choice([0, SECOND // 2, SECOND]))),
        restart_policy=RestartPolicy(delay=chance.choice([0, SECOND, 5 * SECOND])),
        placement=placement,
        networks=[NetworkAttachmentConfig(target=n) for n in networks if chance.random() < 0.6],
    )
    if chance.random() < 0.25:
        mode = ServiceMode(global_=GlobalService())
    else:
        mode = ServiceMode(replicated=ReplicatedService(chance.randint(0, 6)))
    if chance.random() < 0.2:
        at_once = chance.randint(1, 3)
        job = ReplicatedJob(at_once, chance.randint(at_once, 6))
        mode = (
            ServiceMode(global_job=GlobalJob()) if chance.random() < 0.4 else ServiceMode(replicated_job=job)
        )
        return ServiceSpec(
            name=name, task_template=template, mode=mode, endpoint_spec=EndpointSpec(mode="vip", ports=ports)
        )
    update = UpdateConfig(
        parallelism=chance.choice([0, 1, 2]),
        delay=chance.choice([0, 2 * SECOND]),
        monitor=chance.choice([None, SECOND]),
        failure_action=chance.choice(["continue", "pause", "rollback"]),
        max_failure_ratio=chance.choice([0.0, 0.5]),
        order=chance.choice(["stop-first", "start-first"]),
    )
    return ServiceSpec(
        name=name,
        task_template=template,
        mode=mode,
        update_config=update,
        rollback_config=UpdateConfig(parallelism=0, failure_action="continue"),
        endpoint_spec=EndpointSpec(mode="vip", ports=ports),
    )


class Chaos:
    """Random deeds, weighted; then peace."""

    def __init__(self, seed: int, deaths: float = 0.0) -> None:
        self.seed = seed
        self.swarm = VirtualSwarm(seed, jostle=0.2 if seed % 2 else 0.0, deaths=deaths)
        self.chance = self.swarm.chance
        self.invariants = Invariants(self.swarm)
        self.networks: list[str] = []
        self.services: list[str] = []
        self.made = 0

    async def build(self) -> None:
        swarm, chance = self.swarm, self.chance
        await swarm.start()
        for i in range(chance.randint(2, 5)):
            await self.join(f"lin{i}")
        for i in range(chance.randint(0, 2)):
            lacks = {IPV6: "HNS carries IPv4 alone"}
            await self.join(f"win{i}", os="windows", os_version="10.0.20348.2527", lacks=lacks)
        self.networks.append(await swarm.add_network("wide"))
        self.networks.append(await swarm.add_network("auto", enable_ipv6=self.seed % 2 == 0))
        ipam = Ipam(config=[IpamConfig(subnet="fd77::/120")])
        self.networks.append(await swarm.add_network("few", enable_ipv6=True, ipam=ipam))
        swarm.fate = self.fate
        swarm.refuses = self.refuses
        for _ in range(chance.randint(0, 4)):
            await self.create()

    async def join(self, name: str, **about: Any) -> None:
        labels = {"zone": self.chance.choice("ab")} if self.chance.random() < 0.8 else {}
        resources = NodeResources(self.chance.choice([2, 4, 8]) * SECOND, 8 << 30)
        await self.swarm.add_node(name, labels=labels, resources=resources, **about)

    @staticmethod
    def fate(task: Task, chance: random.Random) -> tuple[TaskState, int] | None:
        if chance.random() < 0.15:
            state = chance.choice([TaskState.FAILED, TaskState.FAILED, TaskState.COMPLETE])
            return state, chance.randint(1, 20 * SECOND)
        return None

    @staticmethod
    def refuses(task: Task, chance: random.Random) -> bool:
        return chance.random() < 0.1

    async def deed(self) -> None:
        deeds = [
            (3, self.create),
            (3, self.scale),
            (3, self.update),
            (1, self.remove),
            (2, self.crash),
            (3, self.come_back),
            (2, self.availability),
            (2, self.relabel),
            (1, self.restart_manager),
        ]
        pick = self.chance.choices([d for _, d in deeds], [w for w, _ in deeds])[0]
        await pick()

    async def create(self) -> None:
        if len(self.services) < 6:
            self.made += 1
            spec = random_spec(self.chance, f"s{self.made}", self.networks)
            self.services.append(await self.swarm.add_service(spec))

    async def scale(self) -> None:
        for id in self.some_service():
            spec = self.swarm.service(id).spec
            if spec.mode.replicated is not None:
                mode = ServiceMode(replicated=ReplicatedService(self.chance.randint(0, 7)))
                await self.swarm.update_service(id, msgspec.structs.replace(spec, mode=mode))

    async def update(self) -> None:
        for id in self.some_service():
            old = self.swarm.service(id).spec
            fresh = random_spec(self.chance, old.name, self.networks)
            while is_job(fresh) != is_job(old):
                fresh = random_spec(self.chance, old.name, self.networks)
            template = msgspec.structs.replace(fresh.task_template, force_update=self.chance.randint(0, 9))
            spec = msgspec.structs.replace(fresh, mode=old.mode, task_template=template)
            await self.swarm.update_service(id, spec)

    async def remove(self) -> None:
        for id in self.some_service():
            self.services.remove(id)
            await self.swarm.remove_service(id)

    async def crash(self) -> None:
        self.swarm.crash(self.chance.choice(sorted(self.swarm.agents)))

    async def come_back(self) -> None:
        dead = sorted(name for name, agent in self.swarm.agents.items() if not agent.alive)
        if dead:
            await self.swarm.come_back(self.chance.choice(dead))

    async def availability(self) -> None:
        await self.respec(availability=self.chance.choice(["active", "active", "pause", "drain"]))

    async def relabel(self) -> None:
        await self.respec(
            labels={"zone": self.chance.choice("abc"), "disk": self.chance.choice(["slow", "fast"])}
        )

    async def respec(self, **members: Any) -> None:
        name = self.chance.choice(sorted(self.swarm.agents))
        node = self.swarm.store.view().get(Node, name)
        assert node is not None
        await self.swarm.change(Node, name, spec=msgspec.structs.replace(node.spec, **members))

    async def restart_manager(self) -> None:
        """A manager that dies between two decisions leaves nothing but the store."""
        self.swarm.restart_manager()

    def some_service(self) -> list[str]:
        return [self.chance.choice(self.services)] if self.services else []

    async def peace(self) -> None:
        """Faults stop: everyone is back, nothing fails any more."""
        swarm = self.swarm
        swarm.fate = lambda task, chance: None
        swarm.refuses = lambda task, chance: False
        for agent in swarm.agents.values():
            agent.end.clear()
            agent.refused.clear()
        for name in sorted(swarm.agents):
            await swarm.come_back(name)
            node = swarm.store.view().get(Node, name)
            assert node is not None
            await swarm.change(Node, name, spec=msgspec.structs.replace(node.spec, availability="active"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_troubled_swarm_keeps_its_promises_and_converges(seed: int) -> None:
    chaos = Chaos(seed)
    await chaos.build()
    for _ in range(30):
        await chaos.deed()
        await chaos.swarm.run(chaos.chance.choice([0.3, 2, 10, 40]))
        chaos.invariants.at_rest()
    await chaos.peace()
    # An update that meets tasks no node takes waits a minute for each before it goes on.
    await chaos.swarm.run(1200)
    assert_converged(chaos.swarm)
    quiet = chaos.swarm.store.view().revision
    await chaos.swarm.run(300)
    assert chaos.swarm.store.view().revision == quiet, "the manager goes on writing though nothing happens"


async def test_leaders_that_die_in_the_middle_of_commits_leave_nothing_that_stays_wrong() -> None:
    died = 0
    for seed in range(20):
        chaos = Chaos(seed, deaths=0.3)
        await chaos.build()
        for _ in range(20):
            await chaos.deed()
            await chaos.swarm.run(chaos.chance.choice([0.3, 2, 10, 40]))
            chaos.invariants.at_rest()
        chaos.swarm.deaths = 0.0
        chaos.swarm.restart_manager()
        await chaos.peace()
        await chaos.swarm.run(1200)
        assert_converged(chaos.swarm)
        died += chaos.swarm.died
    assert died > 50, "hardly any leader died: little was tried"


async def test_the_same_seed_makes_the_same_history() -> None:
    async def history() -> bytes:
        chaos = Chaos(7)
        await chaos.build()
        for _ in range(12):
            await chaos.deed()
            await chaos.swarm.run(5)
        return msgspec.msgpack.encode(sorted(chaos.swarm.store.view().all(Task), key=lambda t: t.id))

    assert await history() == await history()
