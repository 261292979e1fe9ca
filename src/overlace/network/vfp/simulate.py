"""What a packet experiences on this host: the definition the data path must agree with, and the answer to
`why`.

Owns walking a packet through the layers (pure). An established connection keeps its backend; this looks at
the first packet of one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from overlace.model.family import is_six
from overlace.model.protocols import ICMP, ICMPV6, SCTP
from overlace.network.hns.documents import HostComputeEndpoint
from overlace.network.hns.state import State
from overlace.network.vfp.layers import (
    BALANCE,
    ENCAP,
    HAIRPIN,
    MULTICAST,
    behind_rules,
    endpoint_port,
    hairpin_group,
    host_port,
    mapping_group,
    multicast_rules,
    network_by_vni,
    routed_here,
)
from overlace.network.vfp.model import (
    HOST_PORT,
    Allow,
    Answer,
    Block,
    Deliver,
    Direction,
    Encap,
    Group,
    Hairpin,
    LoadBalance,
    Packet,
    Port,
    Replicate,
    Rule,
    SourceNat,
    ToHost,
    ToPublished,
    explain_action,
)
from overlace.network.vfp.tables import Backend

RENUMBERED = "SCTP to another port than the published one: its checksum covers the ports"


def takes(backend: Backend, packet: Packet) -> bool:
    """Whether the backend can have the packet: SCTP's checksum covers the ports, and stays as it is."""
    return packet.protocol != SCTP or backend.port in (0, packet.dport)


class Step(msgspec.Struct, frozen=True):
    """A rule that matched; `packet` is what went on from there."""

    port: str
    layer: str
    group: str
    direction: Direction
    rule: str
    effect: str
    packet: Packet


Action = Literal["deliver", "encap", "answer", "host", "world", "replicate", "drop"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`action`: deliver (to `port`), encap (to `provider_address` in `vni`), answer (by the router), host
    (the host's own stack), world (out on the underlay, source translated) replicate or drop. `packet` is what arrives
    there."""

    action: Action
    packet: Packet
    port: str = ""
    vni: int = 0
    provider_address: str = ""
    mac: str = ""
    candidates: tuple[Backend, ...] = ()
    copies: tuple[str, ...] = ()  # replicate: ports and hosts that get one
    reason: str = ""
    steps: tuple[Step, ...] = ()


def choose(backends: Sequence[Backend], packet: Packet) -> Backend:
    """One backend per 5-tuple. The data path may pick another; both must pick from the same list."""
    seed = f"{packet.src},{packet.dst},{packet.protocol},{packet.sport},{packet.dport}".encode()
    return backends[zlib.crc32(seed) % len(backends)]


def is_ping(packet: Packet) -> bool:
    """Of ICMP, the packet's own: rules see no more of it."""
    return packet.protocol == (ICMPV6 if is_six(packet.dst) else ICMP)


Choose = Callable[[Sequence[Backend], Packet], Backend]


class _Walk:
    def __init__(self, packet: Packet, pick: Choose) -> None:
        self.packet = packet
        self.pick = pick
        self.steps: list[Step] = []
        self.candidates: tuple[Backend, ...] = ()
        self.vni = 0
        self.backend = ""
        self.member = ""  # whose port it goes to under the destination it has

    def copy(self) -> _Walk:
        made = _Walk(self.packet, self.pick)
        made.vni = self.vni
        return made

    def note(self, port: str, layer: str, group: Group, rule: Rule) -> None:
        effect = explain_action(rule.action)
        self.steps.append(Step(port, layer, group.name, group.direction, rule.name, effect, self.packet))

    def change(self, **fields: object) -> None:
        """Rewrite the packet: the last step did it."""
        self.packet = msgspec.structs.replace(self.packet, **fields)
        self.steps[-1] = msgspec.structs.replace(self.steps[-1], packet=self.packet)

    def rewrite(self, action: LoadBalance) -> bool:
        """False when none of the backends can have the packet."""
        self.candidates = tuple(b for b in action.backends if takes(b, self.packet))
        if not self.candidates:
            return False
        backend = self.pick(self.candidates, self.packet)
        self.vni, self.backend = backend.vni, backend.address
        if backend.source:
            self.change(src=backend.source)
        if action.preserves:
            self.member = backend.address
        else:
            self.change(dst=backend.address, dport=backend.port or self.packet.dport)
        return True

    def done(self, action: Action, **facts: object) -> Verdict:
        known: dict[str, object] = {"vni": self.vni, "candidates": self.candidates, **facts}
        return msgspec.convert(
            {"action": action, "packet": self.packet, "steps": tuple(self.steps), **known},
            Verdict,
            from_attributes=True,
        )


def simulate(
    state: State,
    host: str,
    port: str,
    direction: Direction,
    packet: Packet,
    vni: int = 0,
    pick: Choose = choose,
) -> Verdict:
    """Walk `packet` through `port` ("host" or a local endpoint's GUID).

    OUT: it leaves the container, or a program of the host itself. IN at the host port: it arrives on the
    underlay, inside VXLAN `vni` or plain (0). `pick` chooses the backend. Raises KeyError for an unknown port.
    """
    walk = _Walk(packet, pick)
    if port == HOST_PORT:
        guid = routed_here(state, packet.dst) if direction == "OUT" else None
        if guid is not None:
            return _into(walk, endpoint_port(guid, state, host))
        return _from_wire(walk, state, host, vni)
    p = endpoint_port(port, state, host)
    walk.vni = p.vni
    if direction == "IN":
        return _into(walk, p)
    for layer in p.layers:
        if layer.name == BALANCE and is_ping(packet) and _is_vip(state, port, packet.dst):
            return walk.done("answer")  # a VIP is no machine
        for group in sorted((g for g in layer.groups if g.direction == "OUT"), key=lambda g: g.priority):
            rule = group.match(walk.packet)
            if rule is None:
                continue
            walk.note(p.name, layer.name, group, rule)
            action = rule.action
            if isinstance(action, LoadBalance):
                if not walk.rewrite(action):
                    return walk.done("drop", reason=RENUMBERED)
                _hairpin(walk, state, p)
                if walk.member:
                    return _mapped(walk, state, host)
                break
            if isinstance(action, ToPublished):
                if host_port(state, host).layers[0].groups[0].match(walk.packet) is None:
                    walk.steps.pop()
                    continue
                walk.change(src=action.address)
                return _from_wire(walk, state, host, 0)
            verdict = _finish(walk, state, host, action)
            if verdict is not None:
                return verdict
            if isinstance(action, Allow):
                break
    return walk.done("drop", reason="no rule of the last layer matched")


def _is_vip(state: State, guid: str, address: str) -> bool:
    e = state.get(guid, HostComputeEndpoint)
    return e is not None and any((n, a) == (e.host_compute_network, address) for n, a, _, _ in state.by_vip)


def _hairpin(walk: _Walk, state: State, p: Port) -> None:
    """The client on port `p` may have been given itself."""
    network = network_by_vni(walk.vni, state)
    if (walk.vni, walk.backend) != (p.vni, walk.packet.src) or network is None:
        return
    group = hairpin_group(network, walk.backend, state)
    rule = group.rules[0]
    assert isinstance(rule.action, Hairpin)
    walk.note(p.name, HAIRPIN, group, rule)
    walk.change(src=rule.action.address)


def _finish(walk: _Walk, state: State, host: str, action: object) -> Verdict | None:
    """The end of the way, or None when the packet goes on to the next layer."""
    if isinstance(action, Block):
        return walk.done("drop", reason=action.reason)
    if isinstance(action, SourceNat):
        walk.change(src=action.address)
        return walk.done("world")
    if isinstance(action, Replicate):
        copies = [
            guid
            for guid in action.ports
            if guid != walk.steps[0].port
            and _into(walk.copy(), endpoint_port(guid, state, host)).action == "deliver"
        ]
        return walk.done("replicate", copies=(*copies, *action.provider_addresses))
    if isinstance(action, ToHost):
        return walk.done("host")
    if isinstance(action, Answer):
        return walk.done("answer", mac=action.mac)
    if isinstance(action, Encap):
        return walk.done("encap", vni=action.vni, provider_address=action.provider_address, mac=action.mac)
    if isinstance(action, Deliver):
        return _into(walk, endpoint_port(action.port, state, host))
    return None


def _into(walk: _Walk, p: Port) -> Verdict:
    """Inbound on an endpoint's port: the layers in reverse."""
    for layer in reversed(p.layers):
        for group in layer.groups:
            if group.direction != "IN":
                continue
            rule = group.match(walk.packet)
            if rule is None:
                continue
            walk.note(p.name, layer.name, group, rule)
            if isinstance(rule.action, Block):
                return walk.done("drop", reason=rule.action.reason)
            if isinstance(rule.action, Allow):
                break
    return walk.done("deliver", port=p.name, vni=p.vni)


def _mapped(walk: _Walk, state: State, host: str) -> Verdict:
    """To the chosen backend's port, whatever the packet's destination."""
    network = network_by_vni(walk.vni, state)
    group = mapping_group(network, state) if network is not None else Group("MAPPINGS", "OUT", 100)
    rule = group.by_address.get(walk.member)
    if rule is None:
        return walk.done("drop", reason=f"the backend {walk.member} is attached nowhere")
    walk.note(HOST_PORT, ENCAP, group, rule)
    verdict = _finish(walk, state, host, rule.action)
    assert verdict is not None
    return verdict


def _from_wire(walk: _Walk, state: State, host: str, vni: int) -> Verdict:
    if vni == 0:
        p = host_port(state, host)
        rule = p.layers[0].groups[0].match(walk.packet)
        if rule is None:
            return walk.done("host")
        walk.note(p.name, p.layers[0].name, p.layers[0].groups[0], rule)
        if isinstance(rule.action, Block):
            return walk.done("drop", reason=rule.action.reason)
        assert isinstance(rule.action, LoadBalance)
        if not walk.rewrite(rule.action):
            return walk.done("drop", reason=RENUMBERED)
        vni = walk.vni
        may_leave = True
    else:
        may_leave = False
    walk.vni = vni
    network = network_by_vni(vni, state)
    if network is None:
        return walk.done("drop", reason=f"VNI {vni} is not known on this host")
    if walk.member:
        return _mapped(walk, state, host)
    group = Group("MULTICAST_IN", "IN", 100, multicast_rules(network, state) if may_leave is False else ())
    rule = group.match(walk.packet)
    if rule is not None and isinstance(rule.action, Replicate):
        walk.note(HOST_PORT, MULTICAST, group, rule)
        verdict = _finish(walk, state, host, msgspec.structs.replace(rule.action, provider_addresses=()))
        assert verdict is not None
        return verdict
    group = mapping_group(network, state, behind_rules(network, state))
    rule = group.match(walk.packet)
    assert rule is not None
    walk.note(HOST_PORT, ENCAP, group, rule)
    if isinstance(rule.action, Encap) and not may_leave:
        return walk.done("drop", reason="the endpoint is on another host; VXLAN packets are not passed on")
    verdict = _finish(walk, state, host, rule.action)
    assert verdict is not None
    return verdict
