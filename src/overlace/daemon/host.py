"""This node's half that runs containers: data path, network driver, runtime and agent, built for one membership.

Owns building them in the right order and taking them down again. Must not know managers nor the Engine API.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from overlace.agent.agent import Agent
from overlace.agent.session import AgentSession
from overlace.agent.state import AgentState
from overlace.agent.worker import NodeFacts
from overlace.daemon.facts import describe
from overlace.model.objects import NodeDescription
from overlace.network.driver import OverlayDriver
from overlace.network.linux.datapath import DataPath
from overlace.runtime.base import Platform, Runtime
from overlace.wire.messages import Refused, Welcome

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def instance_id(data_root: Path) -> str:
    """Names everything of this daemon in the kernel: pins, namespaces, interfaces."""
    return hashlib.sha256(os.path.realpath(data_root).encode()).hexdigest()[:8]


def platform_of(windows_build: str) -> Platform:
    """The image platform this host runs."""
    machine = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    return Platform("windows", machine, windows_build) if windows_build else Platform("linux", machine)


class NodeHost:
    """Everything a member node runs. `connect(agent)` makes its session."""

    def __init__(
        self,
        *,
        node_id: str,
        data_root: Path,
        exec_root: Path,
        hostname: str,
        labels: dict[str, str],
        underlay_address: str,
        windows_build: str,
        dns: tuple[str, ...],
        runtime: Runtime,
        connect: Callable[[Agent], AgentSession],
        on_refused: Callable[[Refused], None],
        on_welcome: Callable[[Welcome], None],
    ) -> None:
        self.datapath = DataPath(
            instance_id(data_root),
            data_root / "network" / "datapath",
            underlay_address,
            exec_dir=exec_root / "network",
        )
        self.driver = OverlayDriver(
            self.datapath,
            data_root / "network",
            os="windows" if windows_build else "linux",
            upstreams=dns,
        )
        self._said = (hostname, labels, underlay_address, windows_build)
        platform = platform_of(windows_build)
        facts = NodeFacts(
            node_id=node_id,
            hostname=hostname,
            os=platform.os,
            architecture=os.uname().machine,
            platform=platform,
        )
        self.state = AgentState(data_root / "agent" / "agent.db")
        self.agent = Agent(
            facts, runtime, self.driver, self.state, self.description, connect, on_refused, on_welcome
        )

    def description(self) -> NodeDescription:
        """As it is now: the underlay's MTU may change."""
        hostname, labels, underlay_address, windows_build = self._said
        return describe(
            hostname=hostname,
            labels=labels,
            underlay_address=underlay_address,
            mtu=self.datapath.underlay().mtu,
            windows_build=windows_build,
        )

    async def open(self) -> None:
        await self.agent.open()

    async def close(self) -> None:
        await self.agent.close()
        self.state.close()

    async def leave(self) -> None:
        await self.agent.leave()
        self.state.close()
