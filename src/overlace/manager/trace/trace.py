"""A person's question, answered by following its first packet.

Owns what the walk's end means for the question, and what becomes of a packet for each backend (pure). Must not follow
packets: walk.py does; nor choose them: first_packet.py does.
"""

from __future__ import annotations

from collections.abc import Sequence

from overlace.manager.netviews import is_serving
from overlace.manager.trace.answer import Broken, Member, Origin, Question, Reached, Trace, explain_broken
from overlace.manager.trace.first_packet import FirstPacket, Maker, Stopped
from overlace.manager.trace.hosts import Host, Hosts
from overlace.manager.trace.places import (
    AtNode,
    AtService,
    AtTask,
    bare,
    explain_joining,
    facing,
    find_place,
    running_tasks,
    short_name,
)
from overlace.manager.trace.walk import End, Walk, show_packet
from overlace.model.capabilities import explain_clients
from overlace.model.errors import InvalidArgument
from overlace.model.family import is_six
from overlace.model.objects import Network, Service, Task
from overlace.model.protocols import PROTOCOLS
from overlace.network.vfp.model import within
from overlace.network.vfp.tables import Backend
from overlace.store.base import View

MAX_MEMBERS = 32  # backends walked one by one


def explain_trace(view: View, question: Question, prefer: str = "") -> Trace:
    """`prefer`: address of the backend whose way is shown; by default the first whose way is broken, or one that a
    connection could get.

    Raises InvalidArgument, NotFound for words that mean nothing; Unavailable when FROM has no running task.
    """
    if question.protocol not in PROTOCOLS:
        raise InvalidArgument(f"--proto {question.protocol!r}: use {', '.join(PROTOCOLS)}")
    if not 0 <= question.port < 65536:
        raise InvalidArgument(f"--port {question.port} is not a port: use 1 to 65535")
    hosts = Hosts(view)
    maker = Maker(view, hosts, question)
    try:
        first = maker.make()
    except Stopped as stop:
        return Trace(
            source=stop.source,
            target=stop.target,
            question="",
            outcome=f"broken: {stop.broken.reason}",
            broken=stop.broken,
            notes=tuple(maker.notes),
        )
    return _Answer(view, hosts, question, first, maker.notes).trace(prefer)


class _Answer:
    def __init__(
        self, view: View, hosts: Hosts, question: Question, first: FirstPacket, notes: list[str]
    ) -> None:
        self._view = view
        self._hosts = hosts
        self._question = question
        self._first = first
        self._source = find_place(view, question.source, "FROM")
        self._notes = notes

    def trace(self, prefer: str = "") -> Trace:
        """`prefer`: address of the backend whose way is shown."""
        first = self._first
        only = self._address_of(first.only) if first.only is not None else prefer
        walk = Walk(self._hosts, only)
        end = first.send(walk)
        members: list[Member] = []
        reached = [(end, walk)]
        if len(walk.candidates) > 1 and first.only is None:
            members, reached = self._every_member(walk.candidates)
            bad = next((r for r in reached if r[0].broken is not None), None)
            if bad is not None and not prefer:
                end, walk = bad
        self._tell(first.host, end)
        asked = (b for b in walk.candidates if first.only is None or b.address == only)
        if any(b.source for b in asked):  # also where the way shown is another's
            places = {first.host.name: first.host} | {e.where: self._named(e.where) for e, _ in reached}
            if where := explain_clients(h.node for h in places.values() if h is not None):
                self._notes.append(where)
        return Trace(
            source=first.source,
            target=first.target,
            question=show_packet(first.packet),
            outcome=self._outcome(end, members),
            hops=tuple(walk.hops),
            broken=end.broken or self._not_meant(end),
            members=tuple(members),
            reached=tuple(_reached(e) for e, _ in reached if e.task is not None),
            assumed=first.assumed,
            origin=self._origin(),
            notes=tuple(self._notes),
        )

    def _origin(self) -> Origin | None:
        first = self._first
        if first.sender is None and not isinstance(self._source, AtNode):
            return None
        return Origin(
            host=first.host.name,
            task=first.sender.id if first.sender is not None else "",
            source=first.packet.src,
            target=first.packet.dst,
            protocol=self._question.protocol,
            port=first.packet.dport,
        )

    def _address_of(self, task: Task) -> str:
        """The task's address on the network its published ports lead into."""
        on = {n.id for n in self._view.all(Network) if n.spec.ingress}
        found = (
            facing(bare(a.addresses), self._first.packet.dst) for a in task.networks if a.network_id in on
        )
        return next(found, "")

    def _every_member(self, backends: Sequence[Backend]) -> tuple[list[Member], list[tuple[End, Walk]]]:
        """Walk to each backend."""
        members, ends = [], []
        if len(backends) > MAX_MEMBERS:
            self._notes.append(
                f"{len(backends)} backends; the first {MAX_MEMBERS} are looked at: name a task (web.40) for another"
            )
        held = {
            a.split("/")[0]: t.name for t in self._view.all(Task) for n in t.networks for a in n.addresses
        }
        for backend in backends[:MAX_MEMBERS]:
            walk = Walk(self._hosts, backend.address)
            end = self._first.send(walk)
            ends.append((end, walk))
            members.append(
                Member(
                    task=held.get(backend.address, ""),
                    node=end.where,
                    address=backend.address,
                    ok=end.broken is None,
                    reason=end.broken.reason if end.broken is not None else "",
                )
            )
        return sorted(members, key=lambda m: (m.task, m.address)), ends

    def _tell(self, host: Host, end: End) -> None:
        """What else a person wants to know."""
        service = self._view.get(Service, end.task.service_id) if end.task is not None else None
        if service is not None:
            for t in running_tasks(self._view, service):
                if not is_serving(t):
                    said = t.status.err or t.status.message
                    self._notes.append(f"{short_name(t)} takes no connections: {t.status.state.word}, {said}")
        if (
            not isinstance(self._source, (AtTask, AtService))
            and end.kind == "task"
            and end.where != host.name
        ):
            self._notes.append(
                f"the answer goes back through {host.name}, which gives it the published address again"
            )
        for h in {host.name: host, end.where: self._named(end.where)}.values():
            if h is None:
                continue
            self._notes += [f"HNS on {h.name} refuses: {x}" for x in h.refused[:3]]
            d = h.node.description
            if d is not None and d.emulated:
                self._notes.append(f"{h.name} is an emulated Windows host")

    def _named(self, name: str) -> Host | None:
        for node in self._hosts.nodes:
            host = self._hosts.get(node.id)
            if host is not None and host.name == name:
                return host
        return None

    def _not_meant(self, end: End) -> Broken | None:
        """An end that is one, but not where the person wanted to go."""
        if end.kind == "host" and self._question.target != end.where:
            if is_six(end.packet.dst) and not self._ingress_has_ipv6():
                return Broken(
                    where=end.where,
                    reason="the ingress network has no IPv6, so that published ports are reached over IPv4 alone",
                    remedy="make it anew before the first service that publishes: docker network rm ingress; docker "
                    "network create -d overlay --ingress --ipv6 ingress",
                )
            return Broken(
                where=end.where,
                reason=f"nothing of the swarm takes port {end.packet.dport} on {end.where}",
                remedy="docker service ls shows published ports; a port in host mode answers on its task's node only",
            )
        if end.kind == "outside":
            for network in self._view.all(Network):
                if within(end.packet.dst, tuple(s.subnet for s in network.subnets)):
                    name = network.spec.name
                    return Broken(
                        where=end.where,
                        reason=f"{end.packet.dst} is on network {name}, which the sender is not on: the packet "
                        "leaves the swarm as any other",
                        remedy=explain_joining(self._first.sender, name),
                    )
        return None

    def _ingress_has_ipv6(self) -> bool:
        return any(is_six(s.subnet) for n in self._view.all(Network) if n.spec.ingress for s in n.subnets)

    def _outcome(self, end: End, members: Sequence[Member]) -> str:
        broken = end.broken or self._not_meant(end)
        if broken is not None:
            return explain_broken(members, broken)
        if end.kind == "task":
            seen = " that were looked at" if len(members) == MAX_MEMBERS else ""
            share = f"; all {len(members)} backends{seen} can be reached" if members else ""
            name = end.task.name if end.task is not None else end.packet.dst
            return f"reaches {name} on {end.where}{share}"
        if end.kind == "answered":
            return f"answered by the switch of {end.where}"
        if end.kind == "copied":
            return f"copied by {end.where} to every other endpoint of its network that may have it"
        if end.kind == "outside":
            return f"leaves the swarm at {end.where} as {show_packet(end.packet)}"
        return f"reaches the programs of {end.where} itself"


def _reached(end: End) -> Reached:
    assert end.task is not None
    return Reached(
        task=end.task.id, name=end.task.name, host=end.where, address=end.packet.dst, port=end.packet.dport
    )
