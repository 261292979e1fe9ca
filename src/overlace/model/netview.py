"""The slice of the cluster a node's network needs, as the manager pushes it: a flat set of entries with revisions.

Owns the entries, the delta and its checksum (pure). Sent by the dispatcher, kept on disk by the agent, read by the
overlay driver and the DNS resolver. Must not know HNS documents or sockets. Addresses have no prefix length here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from sys import intern
from typing import TypeVar, Union

import msgspec

from overlace.model.policy import Items
from overlace.model.specs import PortConfig


class NodeEntry(msgspec.Struct, frozen=True, tag="node"):
    """A host that shares a network with this node (or this node itself)."""

    id: str
    hostname: str
    provider_address: str  # VTEP
    os: str
    # its own address on each network it takes part in, by network id: source VIP on Windows, ingress address
    addresses: dict[str, str] = {}
    mtu: int = 1500
    # left out where it does, so that agents of before it know what is sent, and its checksum
    answers_probes: bool | msgspec.UnsetType = msgspec.UNSET
    # the same of whether answers to clients outside go back through the node they came in by, so that containers see the
    # clients' own addresses; where they do not, containers see that node's
    sees_clients: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        return f"node/{self.id}"

    @property
    def measurable(self) -> bool:
        """Whether the way to it can be measured by asking it."""
        return bool(self.provider_address) and self.answers_probes is not False


class NetworkEntry(msgspec.Struct, frozen=True, tag="network"):
    """`allowed`, `allowed_to`: as in ServiceEntry, for services that do not say. Subnets and their gateways: IPv4 first,
    then IPv6 where the network has it."""

    id: str
    name: str
    vni: int
    subnets: tuple[str, ...]
    gateways: tuple[str, ...]
    internal: bool = False
    ingress: bool = False
    driver_opts: dict[str, str] = {}
    allowed: Items | None = None
    allowed_to: Items | None = None

    @property
    def key(self) -> str:
        return f"network/{self.id}"


class EndpointEntry(msgspec.Struct, frozen=True, tag="endpoint"):
    """A task's address on a network. `serving` says it takes new connections (task running, healthy, not stopping).

    `address6` is left out where the network has no IPv6, so that what is sent, and its checksum, is what agents of before
    IPv6 know."""

    task_id: str
    network_id: str
    node_id: str
    service_id: str
    service_name: str
    task_name: str
    address: str
    mac: str
    aliases: tuple[str, ...] = ()
    serving: bool = False
    address6: str | msgspec.UnsetType = msgspec.UNSET
    # as in ServiceEntry, of a container outside of services; left out where it says nothing
    allowed: Items | msgspec.UnsetType = msgspec.UNSET
    allowed_to: Items | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        return f"endpoint/{self.network_id}/{self.task_id}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """IPv4 first."""
        return (self.address, self.address6) if self.address6 else (self.address,)


class ServiceEntry(msgspec.Struct, frozen=True, tag="service"):
    """A service on a network; `vip` empty with dnsrr, `vip6` left out without IPv6. `ports`: ingress-mode ports, on the
    ingress network only.
    `allowed`: who may open connections to its tasks there, `allowed_to`: what they may open; None: as the network says,
    else anyone, anything. `affinity`: seconds in which a client keeps its backend, 0: each connection anew. `egress`:
    bytes per second each task may send, 0: no limit."""

    service_id: str
    network_id: str
    name: str
    vip: str = ""
    aliases: tuple[str, ...] = ()
    ports: tuple[PortConfig, ...] = ()
    allowed: Items | None = None
    allowed_to: Items | None = None
    affinity: int = 0
    egress: int = 0
    vip6: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        return f"service/{self.network_id}/{self.service_id}"

    @property
    def vips(self) -> tuple[str, ...]:
        """IPv4 first; none with dnsrr."""
        return tuple(vip for vip in (self.vip, self.vip6) if vip)


Entry = Union[NodeEntry, NetworkEntry, EndpointEntry, ServiceEntry]
E = TypeVar("E", NodeEntry, NetworkEntry, EndpointEntry, ServiceEntry)

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def entry_hash(entry: Entry) -> int:
    """64-bit digest of one entry; a view's checksum is the XOR of its entries', so it follows deltas in O(change)."""
    return int.from_bytes(hashlib.blake2b(_encode(entry), digest_size=8).digest(), "big")


class NetDelta(msgspec.Struct, frozen=True):
    """From revision `base` (0: from nothing, replaces everything) to `revision`; `checksum` is the view's after it."""

    base: int
    revision: int
    put: tuple[Entry, ...] = ()
    remove: tuple[str, ...] = ()
    checksum: int = 0


class NetView:
    """A set of entries by key with an index per network; mutable, owned by one loop."""

    def __init__(self, entries: Iterable[Entry] = (), revision: int = 0) -> None:
        self.revision = revision
        self.checksum = 0
        self._entries: dict[str, Entry] = {}
        self._by_network: dict[str, set[str]] = {}
        for e in entries:
            self.put(e)

    def put(self, entry: Entry) -> None:
        key = intern(entry.key)  # who indexes the view by key has no copy of its own
        self.remove(key)
        self._entries[key] = entry
        self.checksum ^= entry_hash(entry)
        if isinstance(entry, (EndpointEntry, ServiceEntry)):
            self._by_network.setdefault(entry.network_id, set()).add(key)

    def remove(self, key: str) -> None:
        old = self._entries.pop(key, None)
        if old is None:
            return
        self.checksum ^= entry_hash(old)
        if isinstance(old, (EndpointEntry, ServiceEntry)):
            keys = self._by_network.get(old.network_id)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._by_network[old.network_id]

    def apply(self, delta: NetDelta) -> set[str]:
        """Apply; returns the keys that changed. Raises ValueError when the delta does not follow this view or the
        checksum differs afterwards: the caller then asks for a complete one."""
        changed: set[str] = set()
        if delta.base == 0:
            fresh = {e.key for e in delta.put}
            for key in [k for k in self._entries if k not in fresh]:
                self.remove(key)
                changed.add(key)
        elif delta.base != self.revision:
            raise ValueError(f"network view is at revision {self.revision}, delta starts at {delta.base}")
        for key in delta.remove:
            if key in self._entries:
                self.remove(key)
                changed.add(key)
        for entry in delta.put:
            if self._entries.get(entry.key) != entry:
                self.put(entry)
                changed.add(entry.key)
        self.revision = delta.revision
        if self.checksum != delta.checksum:
            raise ValueError(f"network view checksum differs at revision {delta.revision}")
        return changed

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, kind: type[E]) -> Iterator[E]:
        return (e for e in self._entries.values() if isinstance(e, kind))

    def node(self, node_id: str) -> NodeEntry | None:
        e = self._entries.get(f"node/{node_id}")
        return e if isinstance(e, NodeEntry) else None

    def network(self, network_id: str) -> NetworkEntry | None:
        e = self._entries.get(f"network/{network_id}")
        return e if isinstance(e, NetworkEntry) else None

    def endpoints(self, network_id: str) -> Iterator[EndpointEntry]:
        for key in self._by_network.get(network_id, ()):
            e = self._entries[key]
            if isinstance(e, EndpointEntry):
                yield e

    def services(self, network_id: str) -> Iterator[ServiceEntry]:
        for key in self._by_network.get(network_id, ()):
            e = self._entries[key]
            if isinstance(e, ServiceEntry):
                yield e


def container_mac(address: str) -> str:
    """Docker's MAC for an overlay address: 02:42 and the four bytes."""
    return "02:42:" + ":".join(f"{int(part):02x}" for part in address.split("/")[0].split("."))
