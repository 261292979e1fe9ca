"""From who may connect to whom (names, addresses, the outside) to the ACL policies of one endpoint. Pure.

Owns the priorities and what each item means as ACLs; the same go to Windows' HNS and to ours. Must not know the
view's bookkeeping nor VFP.

A connection between two services must be allowed by the receiver's `allow-from` and by the sender's `allow-to`, and both
ends' endpoints get ACLs that say so: the sender's host refuses it before it crosses the underlay, the receiver's does
not depend on that. In order of priority: what named services may do; services that restrict it otherwise are blocked;
addresses; for the outside, the hosts' own addresses (a Windows host translates a client's address to its own), then
overlay networks are blocked and everything else is allowed; the rest is blocked where the endpoint has a policy of its
own for that direction, and allowed where it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Literal

import msgspec

from overlace.model.family import is_six
from overlace.model.policy import Items, holds, meet
from overlace.model.protocols import ICMP, ICMPV6
from overlace.network.hns import policies as p
from overlace.network.hns.acl import MAX_ADDRESSES

LISTED, PEERS, ADDRESSES, BY_HOSTS, OVERLAYS, OUTSIDE, REST = 1000, 1200, 1500, 2000, 3000, 4000, 65500
ANY = "256"
HOSTS = ("", "")  # what a task watches to hear of hosts' addresses
What = tuple[int, str]  # protocol (0: any), ports of the receiver ("": any)
Way = Literal["In", "Out"]
Place = tuple[str, str, tuple[str, ...]]  # (network id, service name, addresses)


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """A service on one network, or a container outside of services; `allowed` and `allowed_to` as in its entry of the
    view."""

    name: str
    addresses: tuple[str, ...] = ()  # of its tasks on this network, of both families
    vip: str = ""
    vip6: str = ""
    allowed: Items | None = None
    allowed_to: Items | None = None

    @property
    def restricts(self) -> bool:
        return self.allowed is not None or self.allowed_to is not None

    @property
    def vips(self) -> tuple[str, ...]:
        return tuple(vip for vip in (self.vip, self.vip6) if vip)

    def or_else(self, default: Party) -> Party:
        """With the default's policies where it has none."""
        return msgspec.structs.replace(
            self,
            allowed=default.allowed if self.allowed is None else self.allowed,
            allowed_to=default.allowed_to if self.allowed_to is None else self.allowed_to,
        )


def shorten(addresses: Iterable[str]) -> Sequence[str]:
    """The fewest prefixes that hold just these."""
    return _shorten(tuple(addresses))


@lru_cache(maxsize=256)  # every task of a host on a network names the same services
def _shorten(addresses: tuple[str, ...]) -> tuple[str, ...]:
    four = collapse_addresses(IPv4Network(a) for a in addresses if not is_six(a))
    six = collapse_addresses(IPv6Network(a) for a in addresses if is_six(a))
    return (*map(str, four), *map(str, six))


class _Acls:
    """ACLs of one direction as they come, same ones once. `way`: In has the container's ports as local ones. `six`:
    the endpoint has IPv6; else (its host's HNS may not know any) what is said of IPv6 alone is left out."""

    def __init__(self, way: Way, *, six: bool) -> None:
        self.way = way
        self.six = six
        self.made: dict[p.Acl, None] = {}

    def add(
        self,
        action: Literal["Allow", "Block"],
        priority: int,
        remote: Sequence[str] = (),
        what: What = (0, ""),
    ) -> None:
        protocol, ports = what
        if not self.six and any(is_six(r) for r in remote):
            remote = [r for r in remote if not is_six(r)]
            if not remote:
                return
        for i in range(0, max(len(remote), 1), MAX_ADDRESSES):
            settings = p.AclSettings(
                action=action,
                direction=self.way,
                protocols=_words(protocol, six=self.six) if protocol else ANY,
                remote_addresses=",".join(remote[i : i + MAX_ADDRESSES]),
                local_ports=ports if self.way == "In" else "",
                remote_ports=ports if self.way == "Out" else "",
                rule_type="Switch",
                priority=priority,
            )
            self.made[p.Acl(settings)] = None


def _words(protocol: int, *, six: bool) -> str:
    """IANA numbers of a policy's protocol: who speaks of ICMP means ICMPv6 too."""
    return f"{ICMP},{ICMPV6}" if protocol == ICMP and six else str(protocol)


def plan_acls(
    own: Party,
    address: str,
    peers: Sequence[Party],
    *,
    gateway: str,
    hosts: Sequence[str],
    overlays: Sequence[str],
    published: Sequence[tuple[int, int]],
    address6: str = "",
    gateway6: str = "",
) -> tuple[p.Acl, ...]:
    """ACLs of the endpoint with `address` (and `address6`) of service `own`; none when nobody restricts anything.

    `peers`: services on this network that restrict who speaks with them or that `own` names; `own` among them when its
    tasks speak to each other. `gateway`: a task that meets itself behind its own VIP comes from this address. `hosts`:
    the hosts' own addresses on this network. `overlays`: subnets of overlay networks. `published`: (protocol, port of
    the container) reached from outside by this endpoint.
    """
    if not own.restricts and not any(peer.restricts for peer in peers):
        return ()
    into, out = (_Acls(way, six=bool(address6)) for way in ("In", "Out"))
    mine = (address, address6) if address6 else (address,)
    _between(into, own, mine, peers, [g for g in (gateway, gateway6) if g])
    _between(out, own, (*mine, *own.vips), peers, ())
    if own.allowed is not None:
        outside = {
            (protocol, str(port)): None
            for item in own.allowed
            if item.outside
            for protocol, port in published
            if item.protocol in (0, protocol) and holds(item.ports, port)
        }
        for what in outside:
            if hosts:
                into.add("Allow", BY_HOSTS, shorten(hosts), what)
        if outside and overlays:
            into.add("Block", OVERLAYS, shorten(overlays))
        for what in outside:
            into.add("Allow", OUTSIDE, (), what)
    if own.allowed_to is not None:
        items = [item for item in own.allowed_to if item.outside]
        if items and overlays:
            out.add("Block", OVERLAYS, shorten(overlays))
        for item in items:
            out.add("Allow", OUTSIDE, (), (item.protocol, item.ports))
    into.add("Allow" if own.allowed is None else "Block", REST)
    out.add("Allow" if own.allowed_to is None else "Block", REST)
    return (*into.made, *out.made)


def _between(
    acls: _Acls, own: Party, mine: tuple[str, ...], peers: Sequence[Party], gateways: Sequence[str]
) -> None:
    """What may pass between the endpoint, whose addresses are `mine`, and other services' tasks."""
    into = acls.way == "In"
    items = own.allowed if into else own.allowed_to
    granted: dict[What, dict[str, None]] = {}
    closed: dict[str, None] = {}
    for peer in peers:
        theirs = peer.allowed_to if into else peer.allowed
        addresses = [*peer.addresses, *(peer.vips if not into else ())]
        if peer.name == own.name:
            addresses += gateways
        if not addresses:
            continue
        if theirs is not None:
            closed |= dict.fromkeys(addresses)
        for where, what in _named(items, peer.name, addresses, anyone=theirs is not None):
            for other in _grants(theirs, own.name, mine):
                both = _meet(what, other)
                if both is not None:
                    granted.setdefault(both, {}).update(dict.fromkeys(where))
    for what, found in sorted(granted.items()):
        acls.add("Allow", LISTED, shorten(found), what)
    if closed:
        acls.add("Block", PEERS, shorten(closed))
    for item in items or ():
        if item.cidr:
            acls.add("Allow", ADDRESSES, (item.cidr,), (item.protocol, item.ports))


def _named(
    items: Items | None, name: str, addresses: Sequence[str], *, anyone: bool
) -> list[tuple[list[str], What]]:
    """Which of a peer's addresses the endpoint's own items allow. `anyone`: the peer restricts, so that items without its
    name count too (else they are ACLs of their own)."""
    if items is None:
        return [(list(addresses), (0, ""))] if anyone else []
    out = []
    for item in items:
        if name in item.services:
            out.append((list(addresses), (item.protocol, item.ports)))
        elif item.cidr and anyone:
            out.append(([a for a in addresses if _in(a, item.cidr)], (item.protocol, item.ports)))
    return [found for found in out if found[0]]


def _grants(items: Items | None, name: str, addresses: Sequence[str]) -> list[What]:
    """What the other side's items allow with service `name` at any of `addresses`."""
    if items is None:
        return [(0, "")]
    return [
        (item.protocol, item.ports)
        for item in items
        if name in item.services or (item.cidr and any(_in(a, item.cidr) for a in addresses))
    ]


def _in(address: str, cidr: str) -> bool:
    return ip_address(address) in ip_network(cidr)


def _meet(a: What, b: What) -> What | None:
    if a[0] and b[0] and a[0] != b[0]:
        return None
    ports = meet(a[1], b[1])
    return None if ports is None else (a[0] or b[0], ports)


class Peers:
    """Who is on which network under which name, and which local tasks' ACLs depend on whom.

    Follows the view's endpoint and service entries; `parties` is what `plan_acls` needs of them. A container outside of
    services is a party of its own under its name, unless a service of the network has that name.
    """

    def __init__(self) -> None:
        # (network, service) -> addresses by endpoint key
        self._by_name: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        # network -> services as last seen, without addresses: by id all, by name those that restrict
        self._parties: dict[str, dict[str, Party]] = {}
        self._restricting: dict[str, dict[str, Party]] = {}
        self._named: dict[tuple[str, str], Party] = {}
        self._containers: dict[
            str, dict[str, Party]
        ] = {}  # network -> parties with addresses, by endpoint key
        self._watching: dict[tuple[str, str], set[str]] = {}  # (network, service) -> local tasks that name it
        self._watched: dict[str, set[tuple[str, str]]] = {}  # the same by task

    def move(self, key: str, old: Place | None, new: Place | None) -> None:
        """An endpoint's (network, service name, addresses) changed."""
        if old is not None:
            members = self._by_name.get(old[:2], {})
            members.pop(key, None)
            if not members:
                self._by_name.pop(old[:2], None)
        if new is not None:
            self._by_name.setdefault(new[:2], {})[key] = new[2]

    def note(self, network_id: str, service_id: str, party: Party | None) -> tuple[set[str], bool]:
        """A service came, changed or went (None): local tasks whose ACLs follow that, and whether those of every task
        on the network do."""
        there = self._parties.setdefault(network_id, {})
        old = there.pop(service_id, None)
        if party is not None:
            there[service_id] = party
        if not there:
            del self._parties[network_id]
        if old == party:
            return set(), False
        restricting = self._restricting.setdefault(network_id, {})
        if old is not None:
            restricting.pop(old.name, None)
            self._named.pop((network_id, old.name), None)
        if party is not None:
            self._named[network_id, party.name] = party
            if party.restricts:
                restricting[party.name] = party
        if not restricting:
            del self._restricting[network_id]
        both = [one for one in (old, party) if one is not None]
        tasks = {t for one in both for t in self.watchers(network_id, one.name)}
        return tasks, any(one.restricts for one in both)

    def services(self) -> list[tuple[str, str]]:
        """Every service noted, by network and id."""
        return [(network_id, id) for network_id, there in self._parties.items() for id in there]

    def note_container(self, network_id: str, key: str, party: Party | None) -> tuple[set[str], bool]:
        """The same for a container outside of services, which has its addresses with it."""
        there = self._containers.setdefault(network_id, {})
        old = there.pop(key, None)
        if party is not None:
            there[key] = party
        if not there:
            del self._containers[network_id]
        if old == party:
            return set(), False
        both = [one for one in (old, party) if one is not None]
        tasks = {t for one in both for t in self.watchers(network_id, one.name)}
        return tasks, any(one.restricts for one in both)

    def container_name(self, network_id: str, name: str) -> str:
        """What policies know the container by; "" where it is a service's name."""
        return "" if (network_id, name) in self._named else name

    def parties(self, network_id: str, names: Iterable[str], default: Party) -> list[Party]:
        """Services and containers of the network that restrict, or that are named, with their addresses. `default`: the
        network's own policy, for those without one."""
        names = set(names)
        if default.restricts:
            found = list(self._parties.get(network_id, {}).values())
        else:
            found = list(self._restricting.get(network_id, {}).values())
        wanted = {n: self._named.get((network_id, n)) or Party(name=n) for n in names}
        wanted |= {party.name: party for party in found}
        wanted = {n: party.or_else(default) for n, party in wanted.items()}
        services = [
            msgspec.structs.replace(party, addresses=self._addresses(network_id, n))
            for n, party in sorted(wanted.items())
        ]
        containers = [
            msgspec.structs.replace(party, name=self.container_name(network_id, party.name)).or_else(default)
            for _, party in sorted(self._containers.get(network_id, {}).items())
            if party.name in names or party.restricts or default.restricts
        ]
        return services + containers

    def _addresses(self, network_id: str, name: str) -> tuple[str, ...]:
        return tuple(a for some in self._by_name.get((network_id, name), {}).values() for a in some)

    def watch(self, task_id: str, names: set[tuple[str, str]]) -> None:
        """Have changes of these services' endpoints bring up the task's ACLs."""
        for where in self._watched.pop(task_id, set()) - names:
            self._watching[where].discard(task_id)
            if not self._watching[where]:
                del self._watching[where]
        for where in names:
            self._watching.setdefault(where, set()).add(task_id)
        if names:
            self._watched[task_id] = names

    def watch_also(self, task_id: str, names: set[tuple[str, str]]) -> None:
        self.watch(task_id, self._watched.get(task_id, set()) | names)

    def watchers(self, network_id: str, name: str) -> set[str]:
        return self._watching.get((network_id, name), set())


def names_of(*items: Items | None) -> set[str]:
    """Every service the items name."""
    return {name for some in items for item in some or () for name in item.services}
