"""A standalone container's places on networks: asked of the swarm where they are its, made by the host's driver.

Owns the order of the two, and what the runtime is told of the result. Must not know records nor start anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from overlace.agent.standalone.attacher import Attacher
from overlace.agent.standalone.network import plan_attachments, plan_network, resolv_conf
from overlace.agent.standalone.records import Wish
from overlace.model.errors import Conflict
from overlace.network.base import Attached, NetworkDriver
from overlace.runtime.base import ContainerConfig

RESOLV_CONF = Path("/etc/resolv.conf")


class Places:
    """`driver()`: the host's network, opened when there is none yet (raises Unavailable). `sandbox(id)`: where that keeps
    a container's namespace."""

    def __init__(
        self,
        attacher: Attacher,
        driver: Callable[[], Awaitable[NetworkDriver]],
        sandbox: Callable[[str], Path],
        upstreams: tuple[str, ...] = (),
        host_resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        self._attacher = attacher
        self._driver = driver
        self._sandbox = sandbox
        self._upstreams = upstreams
        self._host_resolv_conf = host_resolv_conf

    def config(self, wish: Wish, *, own_namespace: bool) -> ContainerConfig:
        """What the runtime is to make: with the namespace this host will have for it, or the runtime's own."""
        if wish.mode == "host":
            netns = "host"
        else:
            netns = "" if wish.mode == "none" or own_namespace else str(self._sandbox(wish.id))
        return msgspec.structs.replace(wish.config, netns=netns, resolv_conf=self.resolv_conf(wish))

    def resolv_conf(self, wish: Wish) -> str:
        try:
            host = self._host_resolv_conf.read_text()
        except OSError:
            host = ""
        return resolv_conf(wish, host, self._upstreams)

    def want(self, wish: Wish) -> None:
        """Its addresses are in use: before a manager is told what this node has attached."""
        self._attacher.want(plan_attachments(wish))

    async def attach(self, wish: Wish, netns: Path | None) -> tuple[Wish, Attached | None]:
        """Put it on its networks, in `netns` when it runs there; the wish comes back with what the swarm calls them.

        Raises as `Attacher.given` and `NetworkDriver.attach`."""
        driver = await self._driver()
        wanted = plan_attachments(wish)
        given = await self._attacher.given(wanted)
        places = {one.target: place for one, place in zip(wanted, given, strict=True)}
        networks = tuple(
            msgspec.structs.replace(j, name=place.network, network_id=place.network_id)
            if (place := places.get(j.target)) is not None
            else j
            for j in wish.networks
        )
        wish = msgspec.structs.replace(wish, networks=networks)
        if networks:
            return wish, await driver.attach(plan_network(wish, given), netns)
        if netns is None:
            raise Conflict(
                f"container {wish.config.name} is on no network: docker network connect it to one first"
            )
        await driver.detach(wish.id)  # taken off its last network while it runs
        return wish, None

    async def detach(self, wish: Wish) -> None:
        """Give back all it has."""
        if not wish.mode:
            await (await self._driver()).detach(wish.id)
            self._attacher.drop(one.id for one in plan_attachments(wish))

    def drop(self, gone: Wish, kept: Wish) -> None:
        """Give back the addresses `gone` has and `kept` has not."""
        stay = {one.id for one in plan_attachments(kept)}
        self._attacher.drop(one.id for one in plan_attachments(gone) if one.id not in stay)
