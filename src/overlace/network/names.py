"""Which names a container may ask for and what they mean. Pure.

Owns the index of names over a network view (incremental) and the lookup. Must not know sockets or DNS
messages. Meaning as in Docker: a service's name or alias is its VIP (all tasks that take connections when it
has none), `tasks.NAME` those tasks, a task's own name its address; `NAME.NETWORK` asks one network. Only
networks the asking task shares count, in the order of its interfaces; the ingress network has no names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from sys import intern

import msgspec

from overlace.model.family import is_six
from overlace.model.netview import EndpointEntry, Entry, NetView, NetworkEntry, ServiceEntry

REVERSE, REVERSE6 = ".in-addr.arpa", ".ip6.arpa"


class Answer(msgspec.Struct, frozen=True):
    """`known` False: not a name of this cluster (forward it). Known without addresses or names: exists,
    empty."""

    known: bool
    addresses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of a PTR query


UNKNOWN = Answer(False)
EMPTY = Answer(True)


class _Network:
    """Names of one network. Values are dicts used as ordered sets."""

    def __init__(self) -> None:
        self.name = ""
        self.ingress = False
        self.subnets: tuple[IPv4Network | IPv6Network, ...] = ()
        self.services: dict[str, dict[str, None]] = {}  # name or alias -> service ids
        self.service: dict[str, ServiceEntry] = {}
        self.members: dict[str, dict[str, EndpointEntry]] = {}  # service id -> endpoints by task
        self.service_names: dict[str, dict[str, int]] = {}  # service name -> ids, as endpoints tell (counted)
        # most names and addresses are one task's: then it stands there itself, and no dict of one
        self.tasks: dict[str, EndpointEntry | dict[str, EndpointEntry]] = {}  # task name or alias -> by task
        self.reverse: dict[str, str | dict[str, None]] = {}  # address -> names


class Names:
    """The index. `update` after every change of the view; cost follows the change."""

    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}
        self._seen: dict[str, Entry] = {}

    def update(self, view: NetView, changed: set[str] | None) -> set[str]:
        """Follow the view for the keys in `changed` (None: all); returns ids of networks whose names may
        differ."""
        keys = set(self._seen) | {e.key for e in view} if changed is None else changed
        touched: set[str] = set()
        for key in keys:
            old, new = self._seen.get(key), view.get(key)
            if old == new:
                continue
            for entry, add in ((old, False), (new, True)):
                network_id = self._index(entry, add)
                if network_id:
                    touched.add(network_id)
            if new is None:
                del self._seen[key]
            else:
                self._seen[intern(key)] = new
        return touched

    def _index(self, e: Entry | None, add: bool) -> str:
        if isinstance(e, NetworkEntry):
            n = self._networks.setdefault(e.id, _Network())
            n.name, n.ingress = (e.name.lower(), e.ingress) if add else ("", False)
            n.subnets = tuple(ip_network(s) for s in e.subnets) if add else ()
            return e.id
        if isinstance(e, ServiceEntry):
            n = self._networks.setdefault(e.network_id, _Network())
            for name in {e.name.lower(), *(a.lower() for a in e.aliases)}:
                _member(n.services, name, e.service_id, add)
            for vip in e.vips:
                _name(n.reverse, vip.split("/")[0], e.name, add)
            if add:
                n.service[e.service_id] = e
            else:
                n.service.pop(e.service_id, None)
            return e.network_id
        if isinstance(e, EndpointEntry):
            n = self._networks.setdefault(e.network_id, _Network())
            _entry(n.members, e.service_id, e, add)
            counts = n.service_names.setdefault(e.service_name.lower(), {})
            counts[e.service_id] = counts.get(e.service_id, 0) + (1 if add else -1)
            if not counts[e.service_id]:
                del counts[e.service_id]
            if not counts:
                del n.service_names[e.service_name.lower()]
            for name in {e.task_name.lower(), *(a.lower() for a in e.aliases)}:
                _task(n.tasks, name, e, add)
            for address in e.addresses:
                _name(n.reverse, address.split("/")[0], e.task_name, add)
            return e.network_id
        return ""

    def resolve(self, network_id: str, name: str) -> tuple[str, ...] | None:
        """Addresses of a name on one network, of both families; None when the network does not know it."""
        n = self._networks.get(network_id)
        if n is None or n.ingress:
            return None
        known = False
        out: dict[str, None] = {}
        services = n.services.get(name)
        for service_id in services or ():
            known = True
            vips = [vip.split("/")[0] for vip in self._vips(n, service_id)]
            out.update(dict.fromkeys(vips or self._serving(n, service_id)))
        if services:
            return tuple(out)
        if name.startswith("tasks."):
            base = name[len("tasks.") :]
            for service_id in {**n.services.get(base, {}), **n.service_names.get(base, {})}:
                known = True
                out.update(dict.fromkeys(self._serving(n, service_id)))
        found = n.tasks.get(name, {})
        for e in found.values() if isinstance(found, dict) else (found,):
            known = True
            # a task's own name answers as soon as it exists, a shared alias only with tasks that take
            # connections
            if e.serving or e.task_name.lower() == name:
                out.update(dict.fromkeys(a.split("/")[0] for a in e.addresses))
        return tuple(out) if known else None

    @staticmethod
    def _vips(n: _Network, service_id: str) -> tuple[str, ...]:
        """Without that of a family in which none of the tasks that take connections can: on Windows hosts they have IPv4
        alone, and a client prefers IPv6."""
        service = n.service[service_id]
        if not service.vip6:
            return service.vips
        serving = [e for e in n.members.get(service_id, {}).values() if e.serving]
        return service.vips if not serving or any(e.address6 for e in serving) else (service.vip,)

    @staticmethod
    def _serving(n: _Network, service_id: str) -> Iterable[str]:
        members = n.members.get(service_id, {}).values()
        return (a.split("/")[0] for e in members if e.serving for a in e.addresses)

    def network_name(self, network_id: str) -> str:
        n = self._networks.get(network_id)
        return n.name if n is not None else ""

    def reverse(self, network_id: str, address: str) -> tuple[str, ...] | None:
        """Names of an address; None when the address is in none of the network's subnets."""
        n = self._networks.get(network_id)
        if n is None or n.ingress:
            return None
        found = n.reverse.get(address)
        if found:
            return tuple(f"{name}.{n.name}" for name in ((found,) if isinstance(found, str) else found))
        return () if any(ip_address(address) in s for s in n.subnets) else None


def lookup(names: Names, networks: Sequence[str], qname: str, qtype: str) -> Answer:
    """What a task on `networks` gets for `qname` (no final dot, any case). `qtype` A, AAAA, PTR or any other: known
    names have A and AAAA records only, so other types are known and empty. A and AAAA come of one network, the first that
    has any address for the name: a client that tries both families never speaks with two services."""
    qname = qname.lower()
    if is_reverse(qname):
        return _reverse(names, networks, qname) if qtype == "PTR" else UNKNOWN
    known = False
    for network_id in networks:
        for name in _as_seen_on(names, network_id, qname):
            found = names.resolve(network_id, name)
            if found is not None:
                known = True
                if found:
                    return Answer(True, tuple(a for a in found if qtype in (_RECORD[is_six(a)], "ANY")))
    return EMPTY if known else UNKNOWN


_RECORD = {False: "A", True: "AAAA"}


def is_reverse(qname: str) -> bool:
    """Whether a name (lower case) is an address's, of either family."""
    return qname.endswith((REVERSE, REVERSE6))


def _reversed(qname: str) -> str:
    """The address a reverse name stands for (RFC 1035 3.5, RFC 3596 2.5); "" when it is none."""
    try:
        if qname.endswith(REVERSE):
            return str(ip_address(".".join(reversed(qname[: -len(REVERSE)].split(".")))))
        digits = qname[: -len(REVERSE6)].split(".")
        if len(digits) != 32 or any(len(digit) != 1 for digit in digits):
            return ""
        return str(IPv6Address(bytes.fromhex("".join(reversed(digits)))))
    except ValueError:
        return ""


def _as_seen_on(names: Names, network_id: str, qname: str) -> Iterable[str]:
    yield qname
    suffix = "." + names.network_name(network_id)
    if len(suffix) > 1 and qname.endswith(suffix):
        yield qname[: -len(suffix)]


def _reverse(names: Names, networks: Sequence[str], qname: str) -> Answer:
    address = _reversed(qname)
    if not address:
        return UNKNOWN
    for network_id in networks:
        found = names.reverse(network_id, address)
        if found is not None:
            return Answer(True, names=found)
    return UNKNOWN


def _member(index: dict[str, dict[str, None]], key: str, value: str, add: bool) -> None:
    if add:
        index.setdefault(key, {})[value] = None
    elif key in index:
        index[key].pop(value, None)
        if not index[key]:
            del index[key]


def _entry(index: dict[str, dict[str, EndpointEntry]], key: str, e: EndpointEntry, add: bool) -> None:
    if add:
        index.setdefault(key, {})[e.task_id] = e
    elif key in index:
        index[key].pop(e.task_id, None)
        if not index[key]:
            del index[key]


def _task(
    index: dict[str, EndpointEntry | dict[str, EndpointEntry]], key: str, e: EndpointEntry, add: bool
) -> None:
    old = index.get(key)
    if isinstance(old, dict):
        if add:
            old[e.task_id] = e
        else:
            old.pop(e.task_id, None)
            if not old:
                del index[key]
    elif old is None or old.task_id == e.task_id:
        if add:
            index[key] = e
        else:
            index.pop(key, None)
    elif add:
        index[key] = {old.task_id: old, e.task_id: e}


def _name(index: dict[str, str | dict[str, None]], key: str, name: str, add: bool) -> None:
    old = index.get(key)
    if isinstance(old, dict):
        if add:
            old[name] = None
        else:
            old.pop(name, None)
            if not old:
                del index[key]
    elif old is None or old == name:
        if add:
            index[key] = name
        else:
            index.pop(key, None)
    elif add:
        index[key] = {old: None, name: None}
