"""Which network driver this host has: our own data path on Linux, the host's HNS on Windows.

Owns that choice. The Linux half is imported on Linux alone: it stands on netlink and eBPF.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from overlace.daemon import windows
from overlace.model.system import ON_WINDOWS
from overlace.network.balancing import Wish
from overlace.network.base import NetworkDriver
from overlace.network.counted import Held
from overlace.network.switch import Switch

if TYPE_CHECKING:
    from overlace.network.windows.adapters import Adapter


class HostDriver(NetworkDriver, Protocol):
    """What the daemon, beside the agent, asks of a network driver."""

    @property
    def local_subnet(self) -> IPv4Network:
        """Of the node's own NAT network; its gateway is the first address."""

    @property
    def switch(self) -> Switch:
        """To look at what is programmed. Raises Unavailable before `open`."""

    async def held(self) -> Held:
        """What the data path carried and holds, for metrics."""


def make_driver(
    instance: str,
    state: Path,
    run: Path,
    underlay_address: str,
    *,
    os: str,
    dns: Sequence[str],
    balancing: Wish = "auto",
) -> HostDriver:
    """A driver for one membership. `instance` names what is ours in the kernel, `os` is what the host is in the swarm.

    Raises Unimplemented on a Windows host without HNS."""
    if ON_WINDOWS:
        from overlace.network.windows.adapters import adapters, nameservers, search_domains
        from overlace.network.windows.driver import WindowsDriver
        from overlace.network.windows.library import Hcn, Library

        found = adapters()
        return WindowsDriver(
            Hcn(Library.load()),
            state,
            underlay_address,
            mtu=_mtu(found, underlay_address) or 1500,
            mtu_now=lambda: _mtu(adapters(), underlay_address),
            upstreams=dns or nameservers(found),
            search=search_domains(found),
            # Wine lets a datagram socket with an interface's address hear that interface alone, not containers' ones
            dns_datagrams_at="0.0.0.0" if windows.wine() else "",
        )
    from overlace.network.driver import OverlayDriver
    from overlace.network.linux.datapath import DataPath
    from overlace.network.linux.resolver.names import ResolverProcess

    path = DataPath(instance, state / "datapath", underlay_address, exec_dir=run, balancing=balancing)
    return OverlayDriver(path, state, os=os, upstreams=dns, make_names=partial(ResolverProcess, folder=run))


def _mtu(found: Iterable[Adapter], address: str) -> int:
    """Of the adapter with the address; 0: none has it."""
    return next((a.mtu for a in found if address in a.addresses), 0)


def sandbox_path(run: Path, sandbox_id: str) -> Path:
    """Where the driver with folder `run` keeps a sandbox's network namespace."""
    return run / "netns" / sandbox_id


async def remove_network(instance: str, state: Path, run: Path, underlay_address: str) -> None:
    """Take away all that a driver made on this host, without any of its state: it may be damaged."""
    if ON_WINDOWS:
        from overlace.network.windows.host import WindowsHost, sweep
        from overlace.network.windows.library import Hcn, Library

        await asyncio.to_thread(sweep, WindowsHost(Hcn(Library.load())))
        return
    from overlace.network.linux.datapath import DataPath
    from overlace.network.linux.resolver.names import end_resolver

    await end_resolver(run)
    await DataPath(instance, state / "datapath", underlay_address, exec_dir=run).destroy()
