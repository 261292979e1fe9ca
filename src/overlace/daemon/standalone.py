"""What a host's standalone containers stand on: keeper, attacher, and the host's own network outside a swarm.

Owns their making, and which network driver there is at the moment. Must not decide about containers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from overlace.agent.standalone.attacher import Attacher
from overlace.agent.standalone.keeper import Keeper
from overlace.agent.standalone.places import Places
from overlace.cli.daemon import DaemonOptions
from overlace.daemon.drivers import HostDriver, make_driver, sandbox_path
from overlace.daemon.facts import System, default_address
from overlace.daemon.host import instance_id, network_folder
from overlace.daemon.own_network import OwnNetwork
from overlace.network.subnets import prefix_of
from overlace.runtime.base import Runtime


class Standalone:
    """`member()`: the driver of the swarm this host is in; None: it is in none. Raises Unavailable when it is in one that
    is not open."""

    def __init__(
        self,
        options: DaemonOptions,
        system: System,
        runtime: Runtime,
        member: Callable[[], HostDriver | None],
    ) -> None:
        self._options, self._system, self._member = options, system, member
        self.own = OwnNetwork(self._make_driver)
        self.attacher = Attacher(prefix_of)
        run = network_folder(Path(options.exec_root))
        places = Places(self.attacher, self._driver, lambda id: sandbox_path(run, id), options.dns)
        self.keeper = Keeper(Path(options.data_root) / "standalone", runtime, places)

    async def _driver(self) -> HostDriver:
        return self._member() or await self.own.driver()

    def _make_driver(self) -> HostDriver:
        data_root = Path(self._options.data_root)
        return make_driver(
            instance_id(data_root),
            data_root / "network",
            network_folder(Path(self._options.exec_root)),
            default_address(self._options.underlay_address),
            os=self._system.os,
            dns=self._options.dns,
            balancing=self._options.service_balancing,
        )
