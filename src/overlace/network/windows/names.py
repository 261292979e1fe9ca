"""Names for the containers of a Windows host: one resolver on the host's underlay address.

Owns the sockets and who asks, which is told by the container's address: whoever is not a container of this host is
refused. Docker on Windows listens on each network's gateway, inside a compartment that HNS makes for it; the gateway
address is no host's own on our networks, so it is the host that is asked here. Must not know HNS.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import structlog

from overlace.model.netview import NetView
from overlace.network.dns import Asker, OwnUpstreams, Resolver, Upstream
from overlace.network.records import Record
from overlace.network.resolv_conf import container_resolv_conf, host_resolv_conf

log = structlog.get_logger(__name__)
KEY = "host"


class HostNames:
    """`address`:`port` is where it listens (its datagram socket at `datagrams_at`, when given); `upstreams` are asked for
    everything that is not ours, `search` are the host's domains."""

    def __init__(
        self, address: str, port: int, upstreams: Sequence[str], search: Sequence[str], datagrams_at: str = ""
    ) -> None:
        self.address, self.port = address, port
        self.datagrams_at = datagrams_at or address
        self._resolver = Resolver(list(upstreams))
        self.search = tuple(search)
        self._askers: dict[
            str, tuple[str, Asker]
        ] = {}  # by a container's address: its task, and what it sees
        self.why_not = ""  # names are not answered because

    @property
    def upstreams(self) -> tuple[str, ...]:
        return tuple(self._resolver.upstreams)

    async def serve(self) -> bool:
        """Listen, if it does not yet; False where the port is taken (`why_not` says so): try again."""
        if self._resolver.serving(KEY):
            return True
        try:
            udp, tcp = _bind(self.datagrams_at, self.address, self.port)
        except OSError as e:
            why = (
                f"names are not answered: {self.address} port {self.port} cannot be bound ({e.strerror or e})"
            )
            if why != self.why_not:
                log.error(why)
            self.why_not = why
            return False
        self.why_not = ""
        await self._resolver.serve_many(KEY, self._asker_of, udp, tcp)
        return True

    async def close(self) -> None:
        await self._resolver.close()

    def update(self, view: NetView, changed: set[str] | None) -> None:
        self._resolver.update(view, changed)

    def know(self, record: Record) -> None:
        """Answer this task."""
        own = None
        if record.asked.nameservers:
            servers = tuple(Upstream(address) for address in record.asked.nameservers)
            own = OwnUpstreams(servers=servers, open_socket=_open_socket)
        asker = Asker(tuple(a.network_id for a in record.asked.attachments), own)
        for address in _addresses(record):
            self._askers[address] = record.asked.task_id, asker

    def forget(self, record: Record) -> None:
        """Answer it no longer."""
        for address in _addresses(record):
            if self._askers.get(address, ("", None))[0] == record.asked.task_id:
                del self._askers[address]

    def _asker_of(self, address: str) -> Asker | None:
        found = self._askers.get(address)
        return found[1] if found is not None else None

    def resolv_conf(self, record: Record) -> str:
        """What the task's container reads. On the node's own network alone there are no names of the swarm."""
        if record.asked.attachments:
            return container_resolv_conf(self.search, (), self.address)
        return host_resolv_conf(record.asked.nameservers or self.upstreams, self.search, ())


def _addresses(record: Record) -> list[str]:
    return [address.split("/")[0] for _, address in record.local.placements]


def _bind(datagrams_at: str, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """(UDP, listening TCP), not blocking. Raises OSError."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        udp.bind((datagrams_at, port))
        tcp.bind((address, port))
        tcp.listen(64)
        udp.setblocking(False)
        tcp.setblocking(False)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp


async def _open_socket(tcp: bool) -> socket.socket:
    """To ask a service's own nameserver: from the host, as nobody gives a socket inside a Windows container."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
