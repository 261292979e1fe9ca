"""From a person's question to a first packet, and from the walk's end to a sentence.

Owns which address and port are meant, and what an end means for the question (pure). Must not follow packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from overlace.manager.netviews import is_serving
from overlace.manager.trace.answer import ICMPV6, PROTOCOLS, Broken, Member, Origin, Question, Trace
from overlace.manager.trace.hosts import Host, Hosts, task_network
from overlace.manager.trace.places import (
    SOMEBODY,
    SOMEWHERE,
    AtAddress,
    AtNode,
    AtService,
    AtTask,
    Outside,
    Place,
    called,
    facing,
    find_place,
    running_tasks,
    service_at,
    task_addresses,
)
from overlace.manager.trace.walk import End, Walk, show_packet
from overlace.model.errors import FailedPrecondition, InvalidArgument, Unavailable
from overlace.model.objects import Network, Node, Service, Task
from overlace.model.specs import PortConfig
from overlace.network.endpoints import LOCAL_NETWORK
from overlace.network.names import Names, lookup
from overlace.network.overlay_documents import gateway_network, guid_of
from overlace.network.vfp.model import Packet, within
from overlace.network.vfp.tables import Backend
from overlace.store.base import View

SOURCE_PORT = 40000
DEFAULT_PORT = 80
MAX_MEMBERS = 32  # backends walked one by one


def explain_trace(view: View, question: Question) -> Trace:
    """Raises InvalidArgument, NotFound for words that mean nothing; Unavailable when FROM has no running task."""
    if question.protocol not in PROTOCOLS:
        raise InvalidArgument(f"--proto {question.protocol!r}: use {', '.join(PROTOCOLS)}")
    if not 0 <= question.port < 65536:
        raise InvalidArgument(f"--port {question.port} is not a port: use 1 to 65535")
    source = find_place(view, question.source, "FROM")
    return _Tracer(view, question, source).run()


class _Stop(Exception):
    """The question has its answer before a packet leaves."""

    def __init__(self, where: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.broken = Broken(where=where, reason=reason, remedy=remedy)


Send = Callable[[Walk], End]


class _Tracer:
    def __init__(self, view: View, question: Question, source: Place) -> None:
        self._view = view
        self._hosts = Hosts(view)
        self._question = question
        self._protocol = PROTOCOLS[question.protocol]
        self._source = source
        self._notes: list[str] = []
        self._asked = question.target
        self._only: Task | None = None  # the one backend meant
        self._sender: Task | None = None

    def run(self) -> Trace:
        source, target, packet = str(self._source), self._asked, None
        try:
            if isinstance(self._source, (AtTask, AtService)):
                task, host = self._start()
                self._sender = task
                source = f"{called(task)} on {host.name}"
                packet, guid, target = self._from_task(task, host)
                first, at = packet, host
                send: Send = lambda walk: walk.leave(at, guid, first)  # noqa: E731
            else:
                host, packet, target = self._from_outside()
                first, at = packet, host
                send = lambda walk: walk.arrive(at, first)  # noqa: E731
        except _Stop as stop:
            return Trace(
                source=source,
                target=target,
                question="",
                outcome=f"broken: {stop.broken.reason}",
                broken=stop.broken,
                notes=tuple(self._notes),
            )
        return self._answer(source, target, packet, host, send)

    # -- the first packet ------------------------------------------------------------------------------------

    def _packet(self, src: str, dst: str, port: int) -> Packet:
        if self._question.protocol == "icmp":
            return Packet(src, dst, ICMPV6 if ":" in dst else self._protocol, 0, 0)
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
                raise _Stop(
                    name,
                    f"service {name} has no task that could send",
                    "docker service ps --no-trunc says what keeps its tasks from running",
                )
            task = tasks[0]
            if len(tasks) > 1:
                others = ", ".join(_short(t) for t in tasks[1:4])
                self._notes.append(f"{name} has {len(tasks)} tasks; this is {_short(task)}, others: {others}")
        host = self._hosts.get(task.node_id) if task.node_id else None
        if host is None or task.id not in {t.id for t in host.tasks.values()}:
            said = task.status.err or task.status.message
            raise _Stop(
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
            self._notes.append(f"{_short(task)} is on no network: its own address is {host.name}'s business")
            return self._packet(e.address if e is not None else "172.17.0.2", dst, port), guid, words
        on = next((n for n in networks if n in addresses), "")
        if not on:
            on = next((n for n in addresses if within(dst, self._subnets(n))), "")
        via = on or gateway_network(wish, host.view) or next(iter(addresses))
        src = facing(addresses[via], dst)
        if not src:
            name = next(iter(self._network_names([via])), via)
            raise _Stop(
                _short(task),
                f"{_short(task)} has no IPv6 address on {name}, so it cannot reach {dst}",
                "give it a network with IPv6 (docker network create -d overlay --ipv6) on a Linux host",
            )
        return self._packet(src, dst, port), guid_of("endpoint", via, task.id), words

    def _subnets(self, network_id: str) -> tuple[str, ...]:
        network = self._view.get(Network, network_id)
        return tuple(s.subnet for s in network.subnets) if network is not None else ()

    def _destination(self, task: Task, host: Host, mine: Sequence[str]) -> tuple[str, int, str, list[str]]:
        """(address, port, the target in words, networks that lead there) as `task` sees TO."""
        text, port = self._question.target, self._question.port
        found = self._by_name(host, mine, text)
        if found:
            self._notes.append(f"{text} is {found} for {_short(task)}, by its DNS")
            service = service_at(self._view, found)
            return found, port or self._port_of(service), f"{text} ({found})", self._holding(found, mine)
        target = find_place(self._view, text, "TO")
        if isinstance(target, AtTask):
            theirs = task_addresses(target.task)
            on = [n for n in mine if n in theirs and (not target.address or target.address in theirs[n])]
            if not on and target.address:
                return target.address, port or DEFAULT_PORT, str(target), []
            network = self._common(task, mine, theirs, str(target), on)
            service = self._view.get(Service, target.task.service_id)
            to = target.address or theirs[network][0]
            return to, port or self._port_of(service), str(target), [network]
        if isinstance(target, AtService):
            return self._to_service(task, mine, target.service, port)
        if isinstance(target, AtNode):
            return target.address, port or DEFAULT_PORT, str(target), []
        if isinstance(target, AtAddress):
            return target.address, port or DEFAULT_PORT, str(target), self._holding(target.address, mine)
        return SOMEWHERE, port or DEFAULT_PORT, f"{target} ({SOMEWHERE} stands for it)", []

    def _to_service(
        self, task: Task, mine: Sequence[str], service: Service, port: int
    ) -> tuple[str, int, str, list[str]]:
        vips: dict[str, str] = {}
        for v in service.endpoint.virtual_ips if service.endpoint is not None else ():
            vips.setdefault(v.network_id, v.address.split("/")[0])  # the IPv4 one comes first
        tasks = running_tasks(self._view, service)
        wanted = {n.target for n in service.spec.task_template.networks or service.spec.networks}
        on = [n for n in mine if n in vips or n in wanted]
        network = self._common(
            task, mine, dict.fromkeys([*vips, *wanted]), f"service {service.spec.name}", on
        )
        port = port or self._port_of(service)
        if vips.get(network):
            return vips[network], port, f"service {service.spec.name} (VIP {vips[network]})", [network]
        serving = [t for t in tasks if is_serving(t)]
        for t in serving:
            for a in t.networks:
                if a.network_id == network and a.addresses:
                    address = a.addresses[0].split("/")[0]
                    self._notes.append(
                        f"{service.spec.name} has no VIP (endpoint mode dnsrr): DNS gives {len(serving)} "
                        f"addresses, this is {_short(t)}'s"
                    )
                    return address, port, f"service {service.spec.name} ({address})", [network]
        raise _Stop(
            service.spec.name,
            f"service {service.spec.name} has no task that takes connections",
            "docker service ps --no-trunc says what keeps its tasks from running",
        )

    def _common(
        self, task: Task, mine: Sequence[str], theirs: Iterable[str], words: str, on: Sequence[str]
    ) -> str:
        """The first network both are on that is not the ingress network. Raises _Stop when there is none."""
        for network_id in on:
            network = self._view.get(Network, network_id)
            if network is not None and not network.spec.ingress:
                return network_id
        names = [self._network_names(mine), self._network_names(theirs)]
        offer = next((n for n in names[1] if n), "NETWORK")
        raise _Stop(
            _short(task),
            f"{_short(task)} is on {_list(names[0])}, {words} on {_list(names[1])}: they share no network, so "
            "neither DNS nor the overlay leads there",
            f"docker network connect {offer} {task.name}"
            if task.attachment
            else f"docker service update --network-add {offer} {task.service_name}",
        )

    def _network_names(self, ids: Iterable[str]) -> list[str]:
        found = [n for i in ids if (n := self._view.get(Network, i)) is not None and not n.spec.ingress]
        return [n.spec.name for n in found]

    def _by_name(self, host: Host, mine: Sequence[str], text: str) -> str:
        """What the containers' DNS answers for a name on the networks of the sender; empty: nothing."""
        names = Names()
        names.update(host.view, None)
        six = isinstance(self._source, AtTask) and ":" in self._source.address
        answer = lookup(names, mine, text, "AAAA" if six else "A")
        return answer.addresses[0] if answer.addresses else ""

    def _holding(self, address: str, networks: Sequence[str]) -> list[str]:
        return [n for n in networks if within(address, self._subnets(n))]

    def _port_of(self, service: Service | None) -> int:
        """The port meant when none is asked for: the service's first target port of the protocol."""
        for p in _ports(service):
            if p.protocol == self._question.protocol:
                return p.target_port
        return DEFAULT_PORT

    # -- from outside ----------------------------------------------------------------------------------------

    def _from_outside(self) -> tuple[Host, Packet, str]:
        """(the host it arrives at, packet, the target in words)."""
        src = self._source.address if isinstance(self._source, (AtNode, AtAddress)) else SOMEBODY
        if src == SOMEBODY:
            self._notes.append(f"{SOMEBODY} stands for any address outside the swarm")
        target = find_place(self._view, self._question.target, "TO")
        if isinstance(target, AtNode):
            host = self._host(target.node)
            return host, self._packet(src, host.address, self._question.port or DEFAULT_PORT), str(target)
        if isinstance(target, (AtAddress, Outside)):
            raise _Stop(
                "outside",
                f"{target} is not reached through this swarm from outside: overlay addresses are known only in it",
                "publish a port (docker service update --publish-add) and name the service or a node",
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
        if (":" in src) != (":" in host.address):
            raise InvalidArgument(
                f"{src} is of another family than {host.address}, the address {host.name} is known by: "
                "only that is traced from outside"
            )
        return host, self._packet(src, host.address, number), f"{target}, published at {host.name}:{number}"

    def _published(self, service: Service | None, words: str) -> PortConfig:
        ports = [p for p in _ports(service) if p.protocol == self._question.protocol]
        asked = self._question.port
        for p in ports:
            if asked in (0, p.published_port):
                return p
        for p in ports:
            if asked == p.target_port:
                self._notes.append(
                    f"port {asked} is the containers' own; from outside it is {p.published_port}"
                )
                return p
        name = service.spec.name if service is not None else words
        have = ", ".join(f"{p.published_port}/{p.protocol}" for p in _ports(service))
        raise _Stop(
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
            place = find_place(self._view, self._question.via, "--via")
            if not isinstance(place, AtNode):
                raise InvalidArgument(f"--via {self._question.via!r} is no node: docker node ls lists them")
            return self._host(place.node)
        if isinstance(self._source, AtNode):
            return self._host(self._source.node)
        holding = {t.node_id for t in tasks}
        ready = [n for n in self._hosts.nodes if (h := self._hosts.get(n.id)) is not None and h.up]
        if host_mode:
            chosen = [n for n in ready if n.id in holding]
            words = "host-mode ports answer on the tasks' own nodes only; this is"
        else:
            chosen = [n for n in ready if n.id not in holding] or ready
            words = "any node answers; this is"
        if not chosen:
            raise Unavailable("no node that could take the client's packet is ready: docker node ls")
        host = self._host(chosen[0])
        self._notes.append(f"{words} {host.name}, --via names another")
        return host

    def _host(self, node: Node) -> Host:
        host = self._hosts.get(node.id)
        if host is None:
            raise FailedPrecondition(f"node {node.id} has not described itself yet: wait until it is ready")
        return host

    # -- the end ---------------------------------------------------------------------------------------------

    def _answer(self, source: str, target: str, packet: Packet, host: Host, send: Send) -> Trace:
        walk = Walk(self._hosts, self._address_of(self._only) if self._only is not None else "")
        end = send(walk)
        members: list[Member] = []
        if len(walk.candidates) > 1 and self._only is None:
            walk, end, members = self._every_member(walk, end, send)
        self._tell(host, end)
        return Trace(
            source=source,
            target=target,
            question=show_packet(packet),
            outcome=self._outcome(end, members),
            hops=tuple(walk.hops),
            broken=end.broken or self._not_meant(end),
            members=tuple(members),
            origin=self._origin(host, packet),
            notes=tuple(self._notes),
        )

    def _origin(self, host: Host, packet: Packet) -> Origin | None:
        if self._sender is None and not isinstance(self._source, AtNode):
            return None
        return Origin(
            host=host.name,
            task=self._sender.id if self._sender is not None else "",
            source=packet.src,
            target=packet.dst,
            protocol=self._question.protocol,
            port=packet.dport,
        )

    def _address_of(self, task: Task) -> str:
        """The task's address on the network its published ports lead into."""
        on = {n.id for n in self._view.all(Network) if n.spec.ingress}
        return next((a.addresses[0].split("/")[0] for a in task.networks if a.network_id in on), "")

    def _every_member(self, walk: Walk, end: End, send: Send) -> tuple[Walk, End, list[Member]]:
        """Walk to each backend; the shown way is the first broken one, if any."""
        members = []
        backends: Sequence[Backend] = walk.candidates
        if len(backends) > MAX_MEMBERS:
            self._notes.append(f"{len(backends)} backends; the first {MAX_MEMBERS} are looked at")
        shown, last = walk, end
        held = {
            a.split("/")[0]: t.name for t in self._view.all(Task) for n in t.networks for a in n.addresses
        }
        for backend in backends[:MAX_MEMBERS]:
            tried = Walk(self._hosts, backend.address)
            reached = send(tried)
            if reached.broken is not None and last.broken is None:
                shown, last = tried, reached
            members.append(
                Member(
                    task=held.get(backend.address, ""),
                    node=reached.where,
                    address=backend.address,
                    ok=reached.broken is None,
                    reason=reached.broken.reason if reached.broken is not None else "",
                )
            )
        return shown, last, sorted(members, key=lambda m: (m.task, m.address))

    def _tell(self, host: Host, end: End) -> None:
        """What else a person wants to know."""
        service = self._view.get(Service, end.task.service_id) if end.task is not None else None
        if service is not None:
            for t in running_tasks(self._view, service):
                if not is_serving(t):
                    said = t.status.err or t.status.message
                    self._notes.append(f"{_short(t)} takes no connections: {t.status.state.word}, {said}")
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
                        remedy=f"docker service update --network-add {name} SERVICE",
                    )
        return None

    def _outcome(self, end: End, members: Sequence[Member]) -> str:
        broken = end.broken or self._not_meant(end)
        if broken is not None:
            bad = [m for m in members if not m.ok]
            share = f" for {len(bad)} of {len(members)} backends" if bad else ""
            return f"broken at {broken.where}{share}: {broken.reason}"
        if end.kind == "task":
            share = f"; all {len(members)} backends can be reached" if members else ""
            name = end.task.name if end.task is not None else end.packet.dst
            return f"reaches {name} on {end.where}{share}"
        if end.kind == "answered":
            return f"answered by the switch of {end.where}"
        if end.kind == "outside":
            return f"leaves the swarm at {end.where} as {show_packet(end.packet)}"
        return f"reaches the programs of {end.where} itself"


def _short(task: Task) -> str:
    """service.slot"""
    return task.name if task.attachment else task.name.rpartition(".")[0] or task.name


def _ports(service: Service | None) -> Sequence[PortConfig]:
    return service.endpoint.ports if service is not None and service.endpoint is not None else ()


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no overlay network"
