"""A host's switch as documents for people and clients: ports, layers, groups, rules, in vfpctrl's words.

Owns that shape and how a port is named by people (pure). Must not decide anything about packets.
Source of the words: what vfpctrl prints in Microsoft's SDN and Kubernetes diagnostics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from overlace.network.counted import Hit
from overlace.network.hns import policies as p
from overlace.network.hns.documents import Guid, HostComputeEndpoint, HostComputeNetwork
from overlace.network.hns.state import State
from overlace.network.vfp.access import NO_RULE
from overlace.network.vfp.compile import compile_access, rules_for, vni_of
from overlace.network.vfp.layers import FIREWALL, endpoint_port, host_port
from overlace.network.vfp.model import HOST_PORT, Action, Condition, Group, Port, Rule, explain_action

MIN_PREFIX = 4  # characters of a GUID or task id that are enough to name a port


class Shown(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """PascalCase members, all of them written."""


class HitsShown(Shown, frozen=True, kw_only=True):
    """What counted for a rule since it is there. `connections`: first packets, refused ones among them."""

    connections: int = 0
    packets: int = 0
    bytes: int = 0  # of IP packets

    def plus(self, h: Hit | HitsShown) -> HitsShown:
        return HitsShown(
            connections=self.connections + h.connections,
            packets=self.packets + h.packets,
            bytes=self.bytes + h.bytes,
        )


class RuleShown(Shown, frozen=True):
    name: str
    priority: int
    type: str  # allow | block | pass | meter | lb | snat | answer | encap | deliver
    conditions: dict[str, str]  # vfpctrl's word -> value; empty: matches everything
    action: str
    hits: HitsShown | None = None  # of rules of the firewall layer, where the endpoint has any


class GroupShown(Shown, frozen=True):
    name: str
    direction: str  # OUT: from the container | IN: to it
    priority: int
    rules: tuple[RuleShown, ...]
    conditions: dict[str, str] = {}  # of the whole group, as a rule's


class LayerShown(Shown, frozen=True):
    name: str
    groups: tuple[GroupShown, ...]


class PortShown(Shown, frozen=True):
    """`layers` stand in outbound order; inbound packets walk them in reverse. None: not asked for."""

    name: Guid  # "host": the host's own
    friendly_name: str  # the task's name
    network: str = ""
    vni: int = 0  # 0: none; 1: the host's own network, never on a wire
    address: str = ""  # with prefix length; IPv6 behind IPv4 where there are both
    mac: str = ""
    state: str = "Enabled"  # Enabled | Detached (no container has the endpoint)
    policies: tuple[str, ...] = ()  # types of the endpoint's HNS policies
    layers: tuple[LayerShown, ...] | None = None
    balancing: str = ""  # of the host's own: at which level services are balanced on this host


def show_conditions(c: Condition) -> dict[str, str]:
    found = {
        "Source IP": ",".join(c.src),
        "Destination IP": ",".join(c.dst),
        "Destination IP not": ",".join(dict.fromkeys(c.dst_not)),
        "Protocols": str(c.protocol or "") or ",".join(map(str, c.protocols)),
        "Source ports": _ranges(c.sports),
        "Destination ports": str(c.dport or "") or _ranges(c.dports),
    }
    return {word: value for word, value in found.items() if value}


def _ranges(ports: tuple[tuple[int, int], ...]) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)


def _type(action: Action) -> str:
    return str(type(action).__struct_config__.tag)


def _rule(r: Rule, hits: HitsShown | None = None) -> RuleShown:
    return RuleShown(
        name=r.name,
        priority=r.priority,
        type=_type(r.action),
        conditions=show_conditions(r.condition),
        action=explain_action(r.action),
        hits=hits,
    )


def _group(g: Group, hits: Mapping[str, HitsShown] | None = None) -> GroupShown:
    rules = sorted((*g.rules, *g.by_address.values()), key=lambda r: r.priority)
    last = (g.default,) if g.default is not None else ()
    return GroupShown(
        name=g.name,
        direction=g.direction,
        priority=g.priority,
        conditions=show_conditions(g.condition),
        rules=tuple(
            _rule(r, hits.get(r.name, HitsShown()) if hits is not None else None) for r in (*rules, *last)
        ),
    )


def show_layers(
    port: Port, hits: Mapping[tuple[str, int], HitsShown] | None = None
) -> tuple[LayerShown, ...]:
    """`hits`: of the port's access lists, by direction and place of the rule; None: nothing judges it."""
    out = []
    for layer in port.layers:
        groups = []
        at = {"OUT": 0, "IN": 0}
        for g in layer.groups:
            found = None
            if layer.name == FIREWALL and hits is not None:
                found, at[g.direction] = _group_hits(g, hits, at[g.direction])
            groups.append(_group(g, found))
        out.append(LayerShown(name=layer.name, groups=tuple(groups)))
    return tuple(out)


def _group_hits(
    g: Group, hits: Mapping[tuple[str, int], HitsShown], at: int
) -> tuple[dict[str, HitsShown], int]:
    """Of the group's rules by name, and the place of the next group's first: an access list has a rule for each of a
    rule's protocols and ranges of ports (compile.compile_access)."""
    found = {}
    for r in (*g.rules, *((g.default,) if g.default is not None else ())):
        c = r.condition
        places: Iterable[int] = range(at, at + rules_for(len(c.protocols), len(c.sports), len(c.dports)))
        if r.name == "DEFAULT_BLOCK":
            places = (NO_RULE,)
        total = HitsShown()
        for place in places:
            if (more := hits.get((g.direction, place))) is not None:
                total = total.plus(more)
        found[r.name] = total
        at += len(tuple(places))
    return found, at


def sum_hits(
    hits: Iterable[Hit], e: HostComputeEndpoint, network: HostComputeNetwork
) -> dict[tuple[str, int], HitsShown] | None:
    """What counted for the endpoint's access lists as they are, by direction and place; None: it has none."""
    lists = {
        access.number: access.direction
        for c in e.ip_configurations
        for access in compile_access(e, network, vni_of(network), c.ip_address)
    }
    if not lists:
        return None
    found: dict[tuple[str, int], HitsShown] = {}
    for h in hits:
        if h.endpoint_id == e.id and h.list in lists:
            key = (lists[h.list], h.rule)
            found[key] = found.get(key, HitsShown()).plus(h)
    return found


def show_port(guid: Guid, state: State, host: str, *, layers: bool, hits: Iterable[Hit] = ()) -> PortShown:
    """Raises KeyError when there is no such local endpoint. `host`: the host's underlay address; `hits`: what counted
    for rules, of any endpoint."""
    if guid == HOST_PORT:
        return PortShown(
            name=HOST_PORT,
            friendly_name="the host itself",
            address=host,
            layers=show_layers(host_port(state, host)) if layers else None,
        )
    e = state.get(guid, HostComputeEndpoint)
    if e is None or e.remote:
        raise KeyError(f"{guid} is not a local endpoint")
    network = state.get(e.host_compute_network, HostComputeNetwork)
    return PortShown(
        name=guid,
        friendly_name=e.name,
        network=network.name if network is not None else "",
        vni=vni_of(network) if network is not None else 0,
        address=", ".join(f"{c.ip_address}/{c.prefix_length}" for c in e.ip_configurations),
        mac=e.mac_address,
        state="Enabled" if e.host_compute_namespace else "Detached",
        policies=tuple(dict.fromkeys(_policy_name(x) for x in e.policies)),
        layers=show_layers(endpoint_port(guid, state, host), sum_hits(hits, e, network) if network else None)
        if layers
        else None,
    )


def _policy_name(policy: p.Policy) -> str:
    return str(type(policy).__struct_config__.tag)


def local_ports(state: State) -> list[Guid]:
    """The switch's ports in a stable order: the host's own, then endpoints by network and name."""
    endpoints = [d for d in state.documents.values() if isinstance(d, HostComputeEndpoint) and not d.remote]
    endpoints.sort(key=lambda e: (_network_name(e, state), e.name, e.id))
    return [HOST_PORT, *(e.id for e in endpoints)]


def _network_name(e: HostComputeEndpoint, state: State) -> str:
    network = state.get(e.host_compute_network, HostComputeNetwork)
    return network.name if network is not None else ""


def find_ports(text: str, state: State) -> list[Guid]:
    """What a person means by `text`: "host", a GUID or the beginning of one, an endpoint's name (a task's:
    `web.1` and `web.1.<id>` both), its address. Empty when nothing fits.
    """
    if text.lower() == HOST_PORT:
        return [HOST_PORT]
    ports = [g for g in local_ports(state) if g != HOST_PORT]
    if text.upper() in ports:
        return [text.upper()]
    bare = text.split("/")[0]

    def fits(guid: Guid) -> bool:
        e = state.get(guid, HostComputeEndpoint)
        assert e is not None
        return (
            e.name == text
            or e.name.startswith(f"{text}.")
            or f"_{text}." in f"{e.name}."  # its stack left out
            or (len(text) >= MIN_PREFIX and e.name.rpartition(".")[2].startswith(text))
            or any(c.ip_address == bare for c in e.ip_configurations)
        )

    named = [g for g in ports if fits(g)]
    if named or len(text) < MIN_PREFIX:
        return named
    return [g for g in ports if g.startswith(text.upper())]
