"""Who answers containers' questions for names: the words between the overlay driver and a resolver, and the resolver in
the daemon itself.

Owns the contract. `OwnNames` answers in this process, so that nobody answers while it is away; linux/resolver is a
process of its own. Must not know DNS messages nor records.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from overlace.model.netview import NetView
from overlace.network.dns import OwnUpstreams, Resolver, Upstream

log = structlog.get_logger(__name__)


class Client(msgspec.Struct, frozen=True):
    """A task that may ask: where its container looks for names and what it sees."""

    task_id: str
    networks: tuple[str, ...]  # ids, in the order of its interfaces
    sandbox: str  # file of its network namespace
    nameservers: tuple[str, ...] = ()  # its own, asked from its namespace


class NameService(Protocol):
    """One per host. Every call is idempotent."""

    @property
    def upstreams(self) -> list[str]:
        """Addresses of the nameservers that are asked for what is not ours."""

    async def open(self, clients: Iterable[Client]) -> None:
        """Answer these, and nobody else of an earlier daemon. What cannot be done yet is said, not raised."""

    def update(self, view: NetView, changed: set[str] | None) -> None:
        """Names follow the view; keys that changed, None: any."""

    async def told(self) -> None:
        """Back when who answers has heard of all updates, or does not in time."""

    async def ensure(self, client: Client) -> None:
        """Answer this one; back when it is so. Raises OSError, Unavailable."""

    def drop(self, task_id: str) -> None:
        """Answer it no longer."""

    async def close(self) -> None:
        """The daemon ends, the node stays a member."""

    async def leave(self) -> None:
        """The node is no member any more."""


class Binder(Protocol):
    """What is needed of a data path."""

    async def bind_dns(self, sandbox: Path) -> tuple[socket.socket, socket.socket]: ...
    async def client_socket(self, sandbox: Path, tcp: bool) -> socket.socket: ...


MakeNames = Callable[[Binder, Sequence[str]], NameService]


class OwnNames:
    """Implements NameService in this process."""

    def __init__(self, binder: Binder, upstreams: Sequence[str]) -> None:
        self._binder = binder
        self._resolver = Resolver(upstreams)

    @property
    def upstreams(self) -> list[str]:
        return self._resolver.upstreams

    async def open(self, clients: Iterable[Client]) -> None:
        for client in clients:
            try:
                await self.ensure(client)
            except OSError as e:  # after a reboot the sandbox is gone; attach makes it anew
                log.info("no DNS for a kept task yet", task=client.task_id, error=str(e))

    def update(self, view: NetView, changed: set[str] | None) -> None:
        self._resolver.update(view, changed)

    async def told(self) -> None:
        return

    async def ensure(self, client: Client) -> None:
        if self._resolver.serving(client.task_id):
            return
        sandbox = Path(client.sandbox)
        udp, tcp = await self._binder.bind_dns(sandbox)
        own = None
        if client.nameservers:
            own = OwnUpstreams(
                servers=tuple(Upstream(address) for address in client.nameservers),
                open_socket=lambda tcp: self._binder.client_socket(sandbox, tcp),
            )
        await self._resolver.serve(client.task_id, client.networks, udp, tcp, own)

    def drop(self, task_id: str) -> None:
        self._resolver.drop(task_id)

    async def close(self) -> None:
        await self._resolver.close()

    async def leave(self) -> None:
        await self._resolver.close()
