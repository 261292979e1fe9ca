"""This node's half that runs containers: data path, network driver, runtime and agent, built for one membership.

Owns building them in the right order and taking them down again. Must not know managers nor the Engine API.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from overlace.agent.agent import Agent
from overlace.agent.session import AgentSession
from overlace.agent.standalone.attacher import Attacher
from overlace.agent.state import AgentState
from overlace.agent.worker import NodeFacts
from overlace.daemon.drivers import make_driver, remove_network
from overlace.daemon.facts import System, describe
from overlace.daemon.standby import standby_for
from overlace.model.architecture import fold_architecture
from overlace.model.errors import OverlaceError
from overlace.model.generic import GenericResources
from overlace.model.labels import TASK_ID
from overlace.model.objects import NodeDescription
from overlace.network.balancing import Wish
from overlace.runtime.base import Platform, Runtime
from overlace.wire.messages import Refused, Welcome

log = structlog.get_logger(__name__)
LEAVE_SECONDS = 60.0  # for tasks to stop in order; Docker's default grace period is 10 s


def instance_id(data_root: Path) -> str:
    """Names everything of this daemon in the kernel: pins, namespaces, interfaces."""
    return hashlib.sha256(os.path.realpath(data_root).encode()).hexdigest()[:8]


def platform_of(system: System) -> Platform:
    """The image platform this host runs."""
    machine = fold_architecture(system.architecture)
    return Platform(system.os, machine, system.version if system.os == "windows" else "")


def network_folder(exec_root: Path) -> Path:
    """Where what is alive of the network has its files."""
    return exec_root / "network"


class NodeHost:
    """Everything a member node runs. `connect(agent)` makes its session; `others()`: ids of containers that are no
    task's, whose addresses on the swarm's networks `attacher` gets."""

    def __init__(
        self,
        *,
        node_id: str,
        data_root: Path,
        exec_root: Path,
        hostname: str,
        labels: dict[str, str],
        generic: GenericResources,
        underlay_address: str,
        system: System,
        dns: tuple[str, ...],
        balancing: Wish,
        runtime: Runtime,
        connect: Callable[[Agent], AgentSession],
        others: Callable[[], set[str]],
        attacher: Attacher,
        on_refused: Callable[[Refused], None],
        on_welcome: Callable[[Welcome], None],
    ) -> None:
        self.driver = make_driver(
            instance_id(data_root),
            data_root / "network",
            network_folder(exec_root),
            underlay_address,
            os=system.os,
            dns=dns,
            balancing=balancing,
        )
        self._said = (hostname, labels, generic, underlay_address, system)
        platform = platform_of(system)
        facts = NodeFacts(
            node_id=node_id,
            hostname=hostname,
            os=platform.os,
            architecture=system.architecture,
            platform=platform,
        )
        self._agent_folder = data_root / "agent"
        self._standby = standby_for(self.driver, data_root, self._agent_folder / "agent.db")
        self.state = AgentState(self._agent_folder / "agent.db")
        self.agent = Agent(
            facts,
            runtime,
            self.driver,
            self.state,
            self.description,
            connect,
            on_refused,
            on_welcome,
            others,
            attacher,
        )

    def description(self) -> NodeDescription:
        """As it is now: the underlay's MTU may change."""
        hostname, labels, generic, underlay_address, system = self._said
        about = self.driver.describe()
        mtu, lacks = about["mtu"], about["lacks"]
        assert isinstance(mtu, int) and isinstance(lacks, dict)
        return describe(
            hostname=hostname,
            labels=labels,
            generic=generic,
            underlay_address=underlay_address,
            mtu=mtu,
            system=system,
            lacks=lacks,
        )

    async def open(self) -> None:
        if self._standby is not None:
            await self._standby.relieve()
        await self.agent.open()
        if self._standby is not None:
            self._standby.start()

    async def close(self) -> None:
        await self.agent.close()
        self.state.close()
        if self._standby is not None:
            await self._standby.close()

    async def leave(self) -> None:
        """Stop and take away everything; what does not end in time (`LEAVE_SECONDS`) is left to `sweep`."""
        if self._standby is not None:
            await self._standby.leave()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.agent.leave()
        except Exception as e:
            log.warning(
                "could not end all of it in order: removing by force", error=str(e) or type(e).__name__
            )
            await self.agent.close()
            self.state.close()
            return
        self.state.close()
        await asyncio.to_thread(shutil.rmtree, self._agent_folder, True)


def has_leftovers(data_root: Path) -> bool:
    """Whether a membership of this host was not taken away completely."""
    return (data_root / "agent").exists()


async def sweep(
    data_root: Path, exec_root: Path, runtime: Runtime, underlay_address: str, others: set[str]
) -> None:
    """Remove all that a membership makes on a host, without any of its state: it may be damaged. Containers go by force.

    `others`: ids of containers that are no task's and stay.

    Never raises: what cannot be removed is logged and stays marked (`has_leftovers`) for the next start.
    """
    whole, there = True, []
    try:
        there = await runtime.list()
    except OverlaceError as e:
        whole = False
        log.warning("could not look for containers", error=e.message)
    for container in there:
        if not container.config.labels.get(TASK_ID) or container.config.id in others:
            continue
        try:
            await runtime.remove(container.config.id, force=True)
        except OverlaceError as e:
            whole = False
            log.warning("could not remove a container", id=container.config.id, error=e.message)
    try:
        await remove_network(
            instance_id(data_root), data_root / "network", network_folder(exec_root), underlay_address
        )
    except Exception:
        whole = False
        log.exception("could not take the network away")
    await asyncio.to_thread(shutil.rmtree, data_root / "network", True)
    if whole:
        await asyncio.to_thread(shutil.rmtree, data_root / "agent", True)
