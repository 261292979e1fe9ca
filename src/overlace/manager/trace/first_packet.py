"""From a person's question to a first packet.

Owns which task sends, and which address and port are meant (pure). Must not follow packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from overlace.manager.netviews import is_serving
from overlace.manager.trace.answer import Broken, Question
from overlace.manager.trace.hosts import Host, Hosts, task_network
from overlace.manager.trace.places import (
    SOMEBODY,
    SOMEBODY6,
    SOMEWHERE,
    SOMEWHERE6,
    AtAddress,
    AtNode,
    AtService,
    AtTask,
    Outside,
    Place,
    bare,
    called,
    explain_joining,
    explain_none,
    facing,
    find_place,
    of_family,
    running_tasks,
    service_at,
    short_name,
    task_addresses,
)
from overlace.manager.trace.walk import End, Walk
from overlace.model.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from overlace.model.family import is_six
from overlace.model.objects import Network, Node, Service, Task
from overlace.model.protocols import ICMPV6, PROTOCOLS
from overlace.model.specs import PortConfig
from overlace.network.endpoints import LOCAL_NETWORK
from overlace.network.names import Names, lookup
from overlace.network.overlay_documents import gateway_network, guid_of
from overlace.network.vfp.model import Packet, within
from overlace.network.vfp.tables import HOST6
from overlace.store.base import View

SOURCE_PORT = 40000
DEFAULT_PORT = 80
Send = Callable[[Walk], End]


class FirstPacket(msgspec.Struct, frozen=True, kw_only=True):
    """`send`: puts it on a walk; `source`, `target`: both ends in words; `only`: the one backend meant; `sender`: the
    task it leaves; `assumed`: neither the person nor the target names its port."""

    packet: Packet
    host: Host
    send: Send
    source: str
    target: str
    only: Task | None = None
    sender: Task | None = None
    assumed: bool = False


class Stopped(Exception):
    """The question has its answer before a packet leaves. `source`, `target`: both ends in words."""

    def __init__(self, where: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.broken = Broken(where=where, reason=reason, remedy=remedy)
        self.source = self.target = ""


class Maker:
    """`notes` fills with what a person wants to know."""

    def __init__(self, view: View, hosts: Hosts, question: Question) -> None:
        self._view = view
        self._hosts = hosts
        self._question = question
        self._protocol = PROTOCOLS[question.protocol]
        self._source: Place = find_place(view, question.source, "FROM")
        named = self._source.address if isinstance(self._source, (AtTask, AtAddress)) else ""
        self._six = question.ipv6 or is_six(named)
        self._only: Task | None = None
        self._assumed = False
        self.notes: list[str] = []

    def make(self) -> FirstPacket:
        """Raises Stopped; NotFound and InvalidArgument for words that mean nothing; Unavailable, FailedPrecondition."""
        source, sender = str(self._source), None
        inside = isinstance(self._source, (AtTask, AtService, AtNode))
        if self._question.via and inside:
            raise InvalidArgument(
                f"--via {self._question.via!r}: only a client outside chooses the node it talks to: leave it out, "
                "or make FROM client"
            )
        try:
            if isinstance(self._source, (AtTask, AtService)):
                sender, host = self._start()
                source = f"{called(sender)} on {host.name}"
                packet, guid, target = self._from_task(sender, host)
                send: Send = partial(_leave, host, guid, packet)
            else:
                host, packet, target = self._from_outside()
                send = partial(_arrive, host, packet)
        except Stopped as stop:
            stop.source, stop.target = source, self._question.target
            raise
        return FirstPacket(
            packet=packet,
            host=host,
            send=send,
            source=source,
            target=target,
            only=self._only,
            sender=sender,
            assumed=self._assumed,
        )

    def _packet(self, src: str, dst: str, port: int) -> Packet:
        if self._question.protocol == "icmp":
            return Packet(src, dst, ICMPV6 if is_six(dst) else self._protocol, 0, 0)
        return Packet(src, dst, self._protocol, SOURCE_PORT, port)

    def _start(self) -> tuple[Task, Host]:
        """The task that sends, and its host."""
        source = self._source
        if isinstance(source, AtTask):
            task = source.task
        else:
            assert isinstance(source, AtService)
            tasks = running_tasks(self._view, source.service)
            name = source.service.spec.name
            if not tasks:
                raise Stopped(
                    name,
                    f"service {name} has no task that could send",
                    explain_none(source.service),
                )
            task = tasks[0]
            if len(tasks) > 1:
                others = ", ".join(short_name(t) for t in tasks[1:4])
                self.notes.append(
                    f"{name} has {len(tasks)} tasks; this is {short_name(task)}, others: {others}"
                )
        host = self._hosts.get(task.node_id) if task.node_id else None
        if host is None or task.id not in {t.id for t in host.tasks.values()}:
            said = task.status.err or task.status.message
            raise Stopped(
                task.name,
                f"{called(task)} is {task.status.state.word}" + (f": {said}" if said else ""),
                "docker service ps --no-trunc says why; name a task that runs",
            )
        return task, host

    def _from_task(self, task: Task, host: Host) -> tuple[Packet, str, str]:
        """(packet, endpoint it leaves by, the target in words)."""
        wish = task_network(task)
        addresses = task_addresses(task)
        dst, port, words, networks = self._destination(task, host, list(addresses))
        if not addresses:
            guid = guid_of("endpoint", LOCAL_NETWORK, task.id)
            e = host.endpoint(guid)
            self.notes.append(
                f"{short_name(task)} is on no network: its own address is {host.name}'s business"
            )
            return self._packet(e.address if e is not None else "172.17.0.2", dst, port), guid, words
        on = next((n for n in networks if n in addresses), "")
        if not on:
            on = next((n for n in addresses if within(dst, self._subnets(n))), "")
        via = on or gateway_network(wish, host.view) or next(iter(addresses))
        src = facing(addresses[via], dst)
        if not src:
            name = next(iter(self._network_names([via])), via)
            raise Stopped(
                short_name(task),
                f"{short_name(task)} has no IPv6 address on {name}, so it cannot reach {dst}",
                "give it a network with IPv6 (docker network create -d overlay --ipv6) on a Linux host",
            )
        return self._packet(src, dst, port), guid_of("endpoint", via, task.id), words

    def _subnets(self, network_id: str) -> tuple[str, ...]:
        network = self._view.get(Network, network_id)
        return tuple(s.subnet for s in network.subnets) if network is not None else ()

    def _destination(self, task: Task, host: Host, mine: Sequence[str]) -> tuple[str, int, str, list[str]]:
        """(address, port, the target in words, networks that lead there) as `task` sees TO."""
        text = self._question.target
        found = self._by_name(host, mine, text)
        if found:
            self.notes.append(f"{text} is {found} for {short_name(task)}, by its DNS")
            service = service_at(self._view, found)
            return found, self._port(service), f"{text} ({found})", self._holding(found, mine)
        target = find_place(self._view, text, "TO")
        if isinstance(target, AtTask):
            theirs = task_addresses(target.task)
            on = [n for n in mine if n in theirs and (not target.address or target.address in theirs[n])]
            if not on and target.address:
                return target.address, self._port(), str(target), []
            network = self._common(task, mine, theirs, str(target), on)
            service = self._view.get(Service, target.task.service_id)
            to = target.address or self._of(theirs[network], str(target), network)
            return to, self._port(service), str(target), [network]
        if isinstance(target, AtService):
            return self._to_service(task, mine, target.service)
        if isinstance(target, AtNode):
            return target.address, self._port(), str(target), []
        if isinstance(target, AtAddress):
            return target.address, self._port(), str(target), self._holding(target.address, mine)
        somewhere = SOMEWHERE6 if self._six else SOMEWHERE
        return somewhere, self._port(), f"{target} ({somewhere} stands for it)", []

    def _of(self, addresses: Sequence[str], words: str, network_id: str) -> str:
        """The one of the family that is asked for. Raises Stopped when there is none."""
        found = of_family(addresses, six=self._six)
        if not found and (self._question.ipv6 or not addresses):
            name = next(iter(self._network_names([network_id])), network_id)
            raise Stopped(
                words,
                f"{words} has no {'IPv6' if self._six else 'IPv4'} address on {name}",
                "give it a network with IPv6 (docker network create -d overlay --ipv6) on a Linux host",
            )
        return found or addresses[0]

    def _to_service(
        self, task: Task, mine: Sequence[str], service: Service
    ) -> tuple[str, int, str, list[str]]:
        vips: dict[str, list[str]] = {}
        for v in service.endpoint.virtual_ips if service.endpoint is not None else ():
            vips.setdefault(v.network_id, []).append(v.address.split("/")[0])
        tasks = running_tasks(self._view, service)
        wanted = {n.target for n in service.spec.task_template.networks or service.spec.networks}
        on = [n for n in mine if n in vips or n in wanted]
        network = self._common(
            task, mine, dict.fromkeys([*vips, *wanted]), f"service {service.spec.name}", on
        )
        port = self._port(service)
        name = f"service {service.spec.name}"
        if vips.get(network):
            vip = self._of(vips[network], name, network)
            return vip, port, f"{name} (VIP {vip})", [network]
        serving = [t for t in tasks if is_serving(t)]
        for t in serving:
            for a in t.networks:
                if a.network_id == network and a.addresses:
                    address = self._of(bare(a.addresses), name, network)
                    self.notes.append(
                        f"{service.spec.name} has no VIP (endpoint mode dnsrr): DNS gives {len(serving)} "
                        f"addresses, this is {short_name(t)}'s"
                    )
                    return address, port, f"service {service.spec.name} ({address})", [network]
        raise Stopped(
            service.spec.name,
            f"service {service.spec.name} has no task that takes connections",
            explain_none(service),
        )

    def _common(
        self, task: Task, mine: Sequence[str], theirs: Iterable[str], words: str, on: Sequence[str]
    ) -> str:
        """The first network both are on that is not the ingress network. Raises Stopped when there is none."""
        for network_id in on:
            network = self._view.get(Network, network_id)
            if network is not None and not network.spec.ingress:
                return network_id
        names = [self._network_names(mine), self._network_names(theirs)]
        offer = next((n for n in names[1] if n), "NETWORK")
        raise Stopped(
            short_name(task),
            f"{short_name(task)} is on {_list(names[0])}, {words} on {_list(names[1])}: they share no network, so "
            "neither DNS nor the overlay leads there",
            explain_joining(task, offer),
        )

    def _network_names(self, ids: Iterable[str]) -> list[str]:
        found = [n for i in ids if (n := self._view.get(Network, i)) is not None and not n.spec.ingress]
        return [n.spec.name for n in found]

    def _by_name(self, host: Host, mine: Sequence[str], text: str) -> str:
        """What the containers' DNS answers for a name on the networks of the sender; empty: nothing."""
        names = Names()
        names.update(host.view, None)
        answer = lookup(names, mine, text, "AAAA" if self._six else "A")
        return answer.addresses[0] if answer.addresses else ""

    def _holding(self, address: str, networks: Sequence[str]) -> list[str]:
        return [n for n in networks if within(address, self._subnets(n))]

    def _port(self, service: Service | None = None) -> int:
        """The port asked for, else the service's first target port of the protocol."""
        if self._question.port:
            return self._question.port
        for p in _ports(service):
            if p.protocol == self._question.protocol:
                return p.target_port
        self._assumed = True
        return DEFAULT_PORT

    # -- from outside ----------------------------------------------------------------------------------------

    def _from_outside(self) -> tuple[Host, Packet, str]:
        """(the host it arrives at, packet, the target in words)."""
        somebody = SOMEBODY6 if self._six else SOMEBODY
        src = self._source.address if isinstance(self._source, (AtNode, AtAddress)) else somebody
        if src == somebody:
            self.notes.append(f"{somebody} stands for any address outside the swarm")
        for network in self._view.all(Network):
            if within(src, tuple(s.subnet for s in network.subnets)):
                raise Stopped(
                    src,
                    f"{src} is an address of network {network.spec.name}, and no task that runs has it",
                    f"docker network inspect -v {network.spec.name} shows who holds what; a task of that address "
                    "may have been replaced",
                )
        target = find_place(self._view, self._question.target, "TO")
        if isinstance(target, AtNode):
            host = self._host(target.node)
            if self._question.via and self._via().node.id != target.node.id:
                raise InvalidArgument(f"--via {self._question.via!r}: TO is {target} already: leave one out")
            return host, self._packet(src, self._own_address(host, src), self._port()), str(target)
        if isinstance(target, AtAddress) and self._question.via and not self._of_overlay(target.address):
            return self._at_other_address(target.address)
        if isinstance(target, (AtAddress, Outside)):
            raise Stopped(
                "outside",
                f"{target} is not reached through this swarm from outside: overlay addresses are known only in it",
                "publish a port (docker service update --publish-add) and name the service or a node; to another "
                "address of a node: --via NODE",
            )
        service = target.service if isinstance(target, AtService) else None
        if isinstance(target, AtTask):
            service = self._view.get(Service, target.task.service_id)
            self._only = target.task
        port = self._published(service, str(target))
        tasks = running_tasks(self._view, service) if service is not None else []
        if self._only is not None:
            tasks = [self._only]
        host = self._entry(tasks, host_mode=port.publish_mode == "host")
        number = self._number(port, tasks, host)
        own = self._own_address(host, src)
        return host, self._packet(src, own, number), f"{target}, published at {host.name}:{number}"

    def _of_overlay(self, address: str) -> bool:
        return any(within(address, tuple(s.subnet for s in n.subnets)) for n in self._view.all(Network))

    def _at_other_address(self, address: str) -> tuple[Host, Packet, str]:
        """A node is known by one address; a person who names the node may know others."""
        host, source = self._via(), self._source
        src = source.address if isinstance(source, AtAddress) else SOMEBODY6 if is_six(address) else SOMEBODY
        if is_six(src) != is_six(address):
            raise InvalidArgument(f"{src} and {address} are not of one address family: name two that are")
        self.notes.append(f"{address} is taken as an address of {host.name}, as --via says")
        return (
            host,
            self._packet(src, self._own_address(host, src), self._port()),
            f"{address} on {host.name}",
        )

    def _own_address(self, host: Host, src: str) -> str:
        """The address of the host that such a client talks to. Raises InvalidArgument when none is known."""
        if facing([host.address], src):
            return host.address
        if not is_six(src):
            raise InvalidArgument(
                f"{src} is IPv4, and {host.name} is known by {host.address} alone: its IPv4 addresses are its own "
                "business; trace from an IPv6 address, or --ipv6"
            )
        self.notes.append(f"{HOST6} stands for any global IPv6 address of {host.name}")
        return HOST6

    def _published(self, service: Service | None, words: str) -> PortConfig:
        ports = [p for p in _ports(service) if p.protocol == self._question.protocol]
        asked = self._question.port
        for p in ports:
            if asked in (0, p.published_port):
                return p
        for p in ports:
            if asked == p.target_port:
                self.notes.append(
                    f"port {asked} is the containers' own; from outside it is {p.published_port}"
                )
                return p
        name = service.spec.name if service is not None else words
        have = ", ".join(f"{p.published_port}/{p.protocol}" for p in _ports(service))
        if self._only is not None and self._only.attachment:
            raise Stopped(
                self._only.name,
                f"{words} is no service: the swarm publishes no port of it",
                f"a container's ports are published when it is made, at its own host: docker run -p "
                f"{asked or 8080}:{asked or 80} ...; those of a service (docker service create --publish) at every node",
            )
        raise Stopped(
            name,
            f"{name} publishes no {self._question.protocol} port{f' {asked}' if asked else ''}"
            + (f", only {have}" if have else ""),
            f"docker service update --publish-add published={asked or 8080},target={asked or 80} {name}",
        )

    @staticmethod
    def _number(port: PortConfig, tasks: Sequence[Task], host: Host) -> int:
        """The published number; in host mode the one in force on that host."""
        if port.published_port:
            return port.published_port
        for t in tasks:
            for p in t.status.port_status:
                if t.node_id == host.node.id and (p.protocol, p.target_port) == (
                    port.protocol,
                    port.target_port,
                ):
                    return p.published_port
        return port.target_port

    def _entry(self, tasks: Sequence[Task], *, host_mode: bool) -> Host:
        """The node the client talks to."""
        if self._question.via:
            return self._via()
        if isinstance(self._source, AtNode):
            return self._host(self._source.node)
        holding = {t.node_id for t in tasks}
        ready = [n for n in self._hosts.nodes if (h := self._hosts.get(n.id)) is not None and h.up]
        if self._six:
            ready = [n for n in ready if n.description is None or n.description.os != "windows"] or ready
        if host_mode:
            chosen = [n for n in ready if n.id in holding]
            words = "host-mode ports answer on the tasks' own nodes only; this is"
        else:
            chosen = [n for n in ready if n.id not in holding] or ready
            words = "any node answers; this is"
        if not chosen:
            raise Unavailable("no node that could take the client's packet is ready: docker node ls")
        host = self._host(chosen[0])
        self.notes.append(f"{words} {host.name}, --via names another")
        return host

    def _via(self) -> Host:
        """The node that --via names. Raises InvalidArgument."""
        try:
            place = find_place(self._view, self._question.via, "--via")
        except NotFound:
            place = None
        if not isinstance(place, AtNode):
            raise InvalidArgument(f"--via {self._question.via!r} is no node: docker node ls lists them")
        return self._host(place.node)

    def _host(self, node: Node) -> Host:
        host = self._hosts.get(node.id)
        if host is None:
            raise FailedPrecondition(f"node {node.id} has not described itself yet: wait until it is ready")
        return host


def _leave(host: Host, guid: str, packet: Packet, walk: Walk) -> End:
    return walk.leave(host, guid, packet)


def _arrive(host: Host, packet: Packet, walk: Walk) -> End:
    return walk.arrive(host, packet)


def _ports(service: Service | None) -> Sequence[PortConfig]:
    return service.endpoint.ports if service is not None and service.endpoint is not None else ()


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no overlay network"
