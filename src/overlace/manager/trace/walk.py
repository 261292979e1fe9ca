"""One packet through the hosts, hop by hop.

Owns following the simulator's verdicts from host to host, and where the way ends (pure). Must not know what a
person asked for: trace.py turns the question into a first packet and the end into a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import assert_never

import msgspec

from overlace.manager.trace.answer import PINGS, Broken, Hop, Kind
from overlace.manager.trace.hosts import Host, Hosts
from overlace.manager.trace.places import explain_joining, explain_none, service_at
from overlace.manager.trace.policies import explain_refusal
from overlace.model.family import is_six
from overlace.model.objects import VXLAN_PORT, Task
from overlace.model.paths import tunnel_overhead
from overlace.model.protocols import WORDS
from overlace.model.states import NodeState, TaskState
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    HostComputeEndpoint,
    HostComputeNetwork,
)
from overlace.network.vfp.compile import compile_network
from overlace.network.vfp.layers import network_by_vni
from overlace.network.vfp.model import HOST_PORT, Packet, within
from overlace.network.vfp.simulate import Step, Verdict, choose, simulate
from overlace.network.vfp.tables import Backend

UNDERLAY = "underlay"
ALL_HERE = "255.255.255.255"  # RFC 919
FEW = 8  # of a rule's backends that are shown


def show_packet(packet: Packet) -> str:
    word = WORDS.get(packet.protocol, str(packet.protocol))
    if not packet.dport:
        return f"{packet.src} > {packet.dst} {word}"
    src, dst = (f"[{a}]" if is_six(a) else a for a in (packet.src, packet.dst))
    return f"{src}:{packet.sport} > {dst}:{packet.dport} {word}"


class End(msgspec.Struct, frozen=True, kw_only=True):
    """`kind`: task (in a container), answered (by the switch itself), copied (broadcast or multicast), outside (left the
    swarm), host (the host's own stack) or broken."""

    kind: str
    where: str
    packet: Packet
    task: Task | None = None
    broken: Broken | None = None


class Walk:
    """Follows one packet; `hops` and `candidates` (backends of the load balancer it met) fill as it goes.

    `prefer`: the address of the backend to take when there is a choice.
    """

    def __init__(self, hosts: Hosts, prefer: str = "") -> None:
        self._hosts = hosts
        self._prefer = prefer
        self.hops: list[Hop] = []
        self.candidates: tuple[Backend, ...] = ()

    def note(
        self, kind: Kind, where: str, what: str, effect: str, packet: Packet, *, ok: bool = True
    ) -> None:
        shown = show_packet(packet)
        self.hops.append(Hop(kind=kind, where=where, what=what, effect=effect, packet=shown, ok=ok))

    def break_off(self, kind: Kind, where: str, what: str, reason: str, remedy: str, packet: Packet) -> End:
        """The packet ends here and should not."""
        self.note(kind, where, what, reason, packet, ok=False)
        return self._broken(where, reason, remedy, packet)

    @staticmethod
    def _broken(where: str, reason: str, remedy: str, packet: Packet) -> End:
        broken = Broken(where=where, reason=reason, remedy=remedy)
        return End(kind="broken", where=where, packet=packet, broken=broken)

    def _pick(self, backends: Sequence[Backend], packet: Packet) -> Backend:
        self.candidates = tuple(backends)
        return next((b for b in backends if b.address == self._prefer), None) or choose(backends, packet)

    # -- from the ends ---------------------------------------------------------------------------------------

    def leave(self, host: Host, guid: str, packet: Packet) -> End:
        """Out of the container that has endpoint `guid`."""
        if not host.up:
            return self._down(host, packet)
        try:
            verdict = simulate(host.state, host.address, guid, "OUT", packet, pick=self._pick)
        except KeyError:
            return self._no_endpoint(host, guid, packet)
        self._start(host, guid, packet)
        stopped = _not_carried(host, guid, packet)
        if stopped is not None and verdict.action != "replicate" and not _blocked(verdict):
            reason, remedy = stopped
            return self.break_off("rule", host.name, "switch", reason, remedy, packet)
        return self._follow(host, verdict, packet)

    def arrive(self, host: Host, packet: Packet, vni: int = 0, sender: Host | None = None) -> End:
        """On the host's underlay interface: plain, or inside VXLAN `vni` from `sender`."""
        if not host.up:
            return self._down(host, packet)
        if vni:
            refusal = _refuses_sender(host, packet, vni, sender)
            if refusal:
                return self.break_off(
                    "decap",
                    host.name,
                    f"VXLAN {vni}",
                    refusal,
                    "an entry is out of date: the host's next pass repairs it; if it stays, see its daemon's log",
                    packet,
                )
            self.note("decap", host.name, f"VXLAN {vni}", "outer headers off", packet)
        verdict = simulate(host.state, host.address, HOST_PORT, "IN", packet, vni, pick=self._pick)
        return self._follow(host, verdict, packet)

    def _down(self, host: Host, packet: Packet) -> End:
        state = host.node.status.state
        said = host.node.status.message or "no word from it"
        word = "down" if state == NodeState.DOWN else state.word
        return self.break_off(
            "underlay",
            host.name,
            "host",
            f"node {host.name} is {word}: {said}",
            f"start {host.name} and its daemon, or let the swarm move its tasks; docker node ls shows it",
            packet,
        )

    def _start(self, host: Host, guid: str, packet: Packet) -> None:
        task, e = host.tasks.get(guid), host.endpoint(guid)
        network = host.state.get(e.host_compute_network, HostComputeNetwork) if e is not None else None
        what = f"container of {task.name}" if task is not None else guid
        on = f"leaves by network {network.name}" if network is not None else "leaves"
        self.note("start", host.name, what, on, packet)

    def _no_endpoint(self, host: Host, guid: str, packet: Packet) -> End:
        refused = f"; HNS refuses: {host.refused[0]}" if host.refused else ""
        return self.break_off(
            "start",
            host.name,
            "switch",
            f"{host.name} has no endpoint {guid}{refused}",
            "docker service ps --no-trunc says what keeps the task from starting",
            packet,
        )

    # -- along the way ---------------------------------------------------------------------------------------

    def _follow(self, host: Host, verdict: Verdict, packet: Packet) -> End:
        steps = verdict.steps
        said = verdict.action == "drop" and bool(steps) and _says(steps[-1], verdict.reason or "dropped")
        for i, step in enumerate(steps):
            ok = not (said and i == len(steps) - 1)
            what = f"{step.layer} {step.direction} {step.group}/{step.rule}"
            self.note("rule", host.name, what, _short(step.effect), step.packet, ok=ok)
        packet = verdict.packet
        match verdict.action:
            case "drop":
                reason = verdict.reason or "dropped"
                if not said:
                    self.note("rule", host.name, "switch", reason, packet, ok=False)
                refusal = explain_refusal(self._hosts.view, packet) if _blocked(verdict) else None
                if refusal is None:
                    return self._broken(host.name, reason, self._remedy(host, verdict), packet)
                return self._broken(host.name, f"{reason}: {refusal.reason}", refusal.remedy, packet)
            case "encap":
                return self._tunnel(host, verdict)
            case "deliver":
                return self._deliver(host, verdict)
            case "world":
                return self._into_the_world(host, packet)
            case "replicate":
                return self._copied(host, verdict)
            case "answer":
                if packet.protocol in PINGS:
                    self.note("end", host.name, "switch", "the switch answers the ping itself", packet)
                    return End(kind="answered", where=host.name, packet=packet)
                return self.break_off(
                    "end",
                    host.name,
                    "switch",
                    f"{packet.dst} is the network's gateway: it takes no connections",
                    "name the task or service meant",
                    packet,
                )
            case "host":
                meant = "to the host's own programs: no published port is meant"
                self.note("end", host.name, "host", meant, packet)
                return End(kind="host", where=host.name, packet=packet)
        assert_never(verdict.action)

    def _copied(self, host: Host, verdict: Verdict) -> End:
        """Broadcast or multicast: one copy to each other endpoint here, one to each host with more of them."""
        packet, names = verdict.packet, []
        for to in verdict.copies:
            peer, task = self._hosts.at(to), host.tasks.get(to)
            if peer is not None:
                names.append(f"host {peer.name}, for its containers")
            else:
                names.append(f"container of {task.name}" if task is not None else to)
        for name in names or ["nobody else on the network"]:
            self.note("end", host.name, "copy", f"to {name}", packet)
        return End(kind="copied", where=host.name, packet=packet)

    def _tunnel(self, host: Host, verdict: Verdict) -> End:
        packet, pa = verdict.packet, verdict.provider_address
        outer = f"outer {host.address} > {pa} UDP {VXLAN_PORT}, VNI {verdict.vni}, inner MAC {verdict.mac}"
        self.note("encap", host.name, "VXLAN header on", outer, packet)
        peer = self._hosts.at(pa)
        if peer is None:
            return self.break_off(
                "underlay",
                UNDERLAY,
                pa,
                f"no node of this swarm has the underlay address {pa}",
                "an entry is out of date, or the node was removed: docker node ls",
                packet,
            )
        mtu = min(_mtu(host), _mtu(peer))
        room = f"IP packets of up to {mtu - tunnel_overhead(pa)} bytes fit (underlay MTU {mtu})"
        self.note("underlay", UNDERLAY, f"{host.name} > {peer.name}", room, packet)
        return self.arrive(peer, packet, verdict.vni, host)

    def _deliver(self, host: Host, verdict: Verdict) -> End:
        packet, task = verdict.packet, host.tasks.get(verdict.port)
        if task is None:
            self.note("end", host.name, "endpoint", verdict.port, packet)
            return End(kind="task", where=host.name, packet=packet)
        state = task.status.state
        if state != TaskState.RUNNING:
            said = task.status.err or task.status.message
            return self.break_off(
                "end",
                host.name,
                f"container of {task.name}",
                f"{task.name} is {state.word}" + (f": {said}" if said else ""),
                "docker service ps --no-trunc says why",
                packet,
            )
        self.note("end", host.name, f"container of {task.name}", "delivered", packet)
        return End(kind="task", where=host.name, packet=packet, task=task)

    def _into_the_world(self, host: Host, packet: Packet) -> End:
        peer = self._hosts.at(packet.dst)
        if peer is None:
            self.note("end", "outside", packet.dst, "left the swarm by the host's own routes", packet)
            return End(kind="outside", where=host.name, packet=packet)
        if peer.node.id != host.node.id:
            self.note(
                "underlay", UNDERLAY, f"{host.name} > {peer.name}", "plain, by the host's routes", packet
            )
        return self.arrive(peer, packet)

    # -- why -------------------------------------------------------------------------------------------------

    def _remedy(self, host: Host, verdict: Verdict) -> str:
        """What a person can do about a dropped packet."""
        packet = verdict.packet
        step = verdict.steps[-1] if verdict.steps else None
        if step is not None and step.layer.startswith("FW_"):
            return "an ACL document says so: overlace vfp rules on that host shows them, overlace policy show all labels"
        if step is not None and step.layer.startswith("SLB_"):
            return explain_none(service_at(self._hosts.view, packet.dst))
        network = network_by_vni(verdict.vni, host.state)
        if network is None:
            return "the host takes no part in that network: does a task there need it?"
        other = _network_of(host, packet.dst)
        if other is not None and other.id != network.id:
            return (
                f"{packet.dst} is on network {other.name}, the sender on {network.name}: give both a common one, "
                + explain_joining(
                    host.tasks.get(verdict.steps[0].port) if verdict.steps else None, other.name
                )
            )
        if not within(packet.dst, tuple(s.ip_address_prefix for s in network.subnets)):
            return (
                f"the way out of network {network.name} is closed (docker network create --internal), or the "
                f"address is on an overlay network {host.name} has no part in: use a network both ends share"
            )
        return (
            f"nobody holds {packet.dst} on network {network.name}: docker network inspect -v {network.name} on "
            "a node shows who holds what; a task of that address may have been replaced"
        )


def _short(effect: str) -> str:
    """A rule's action with the first few of what it lists: `overlace vfp rules` has all."""
    first, rest = (parts := effect.split(", "))[:FEW], len(parts) - FEW
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _blocked(verdict: Verdict) -> bool:
    """By an ACL."""
    return verdict.action == "drop" and bool(verdict.steps) and verdict.steps[-1].layer.startswith("FW_")


def _not_carried(host: Host, guid: str, packet: Packet) -> tuple[str, str] | None:
    """Reason and remedy where the packet is for everybody and the sender's network carries no such; None: it does, or
    the packet is for one."""
    e = host.endpoint(guid)
    network = host.state.get(e.host_compute_network, HostComputeNetwork) if e is not None else None
    if network is None or network.type != "Overlay" or network.multicast_rate:
        return None
    subnets = (ip_network(s.ip_address_prefix) for s in network.subnets)
    everybody = {ALL_HERE, *(str(s.broadcast_address) for s in subnets if s.version == 4)}
    if not ip_address(packet.dst).is_multicast and packet.dst not in everybody:
        return None
    reason = (
        f"network {network.name} carries no broadcast and multicast: the switch drops it (drop_unsupported)"
    )
    d = host.node.description
    if d is not None and d.os == "windows":
        return (
            reason,
            "a Windows host's switch carries none: send to each task's own address (DNS: tasks.SERVICE)",
        )
    return (
        reason,
        "a network made with docker network create -d overlay -o overlace.multicast=true carries them",
    )


def _says(step: Step, reason: str) -> bool:
    return reason in step.effect


def _mtu(host: Host) -> int:
    return host.node.description.mtu if host.node.description is not None else 1500


def _network_of(host: Host, address: str) -> HostComputeNetwork | None:
    for d in host.state.documents.values():
        if isinstance(d, HostComputeNetwork) and within(
            address, tuple(s.ip_address_prefix for s in d.subnets)
        ):
            return d
    return None


def _refuses_sender(host: Host, packet: Packet, vni: int, sender: Host | None) -> str:
    """Why the host does not believe the inner source address, as its data path decides; empty: it does."""
    network = network_by_vni(vni, host.state)
    if network is None or sender is None:
        return ""  # the simulator says so itself
    guid = host.state.by_address.get((network.id, packet.src))
    e = host.state.get(guid, HostComputeEndpoint) if guid is not None else None
    if e is None:
        outside = _network_of(host, packet.src) is None
        published = compile_network(network, host.state).ingress
        return "" if outside and published else f"{host.name} does not know {packet.src} on {network.name}"
    pa = p.policy_of(e.policies, p.ProviderAddress)
    behind = pa.settings.provider_address if pa is not None else ""
    if not e.remote or behind != sender.address:
        return f"{host.name} holds {packet.src} to be behind {behind or 'itself'}, not {sender.address}"
    return ""
