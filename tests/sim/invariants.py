"""What must hold after every step of a simulated swarm, whatever happened."""

from __future__ import annotations

import ipaddress
from collections import Counter

import msgspec
from virtual_swarm import VirtualSwarm

from overlace.manager.index import Index
from overlace.manager.orchestrate.jobs import job_size
from overlace.manager.plan import Dirty, plan_tick
from overlace.manager.schedule.filters import first_failure, fits_by_nature, is_ready, needs_of
from overlace.manager.schedule.occupancy import Occupancy, host_ports, reserved
from overlace.model.capabilities import IPV6
from overlace.model.ids import new_id
from overlace.model.objects import Network, Node, Service, Task
from overlace.model.states import NodeState, TaskState
from overlace.store.base import Change, Put


class Invariants:
    """Watches a swarm's store; `check` raises AssertionError at the first violation."""

    def __init__(self, swarm: VirtualSwarm) -> None:
        self.swarm = swarm
        self.watch = swarm.store.watch()
        self.placed = 0
        swarm.observers.append(self.check)

    def check(self) -> None:
        self._events()
        view = self.swarm.store.view()
        tasks = [t for t in view.all(Task) if not t.status.state.terminal]
        self._addresses(tasks)
        self._nodes(tasks)
        self._jobs(tasks)
        self._index()

    def at_rest(self) -> None:
        """A manager that has just started finds nothing to do that the running one left: no retry, no timer is lost."""
        swarm, view, dirty = self.swarm, self.swarm.store.view(), Dirty()
        dirty.everything(view)
        tick = plan_tick(view, Index.of(view), dirty, swarm.now, new_id)
        assert not tick.errors
        left = [c for c in tick.draft.changes() if not self._says_why_anew(c)]
        assert not left, f"left undone: {left}"
        due = min(tick.wakes.values(), default=None)
        waits = swarm.loop.next_wake
        assert due is None or (waits is not None and waits <= due), f"no timer for {tick.wakes}"

    def _says_why_anew(self, change: Change) -> bool:
        """A waiting task's reason counts nodes; it is told anew only when there is a chance for the task."""
        if not isinstance(change, Put) or not isinstance(change.object, Task):
            return False
        old = self.swarm.store.view().get(Task, change.object.id)
        same = old is not None and bool(old.status.err and change.object.status.err)
        return same and old == msgspec.structs.replace(change.object, status=old.status)

    def _index(self) -> None:
        """What the loop keeps from events is what a fresh look at the store gives."""
        kept, fresh = self.swarm.loop._index, Index.of(self.swarm.store.view())
        assert _filled(kept) == _filled(fresh)
        assert kept.book._ports == fresh.book._ports
        assert kept.occupancy._shares == fresh.occupancy._shares
        for node in self.swarm.store.view().all(Node):
            mine, other = kept.occupancy.node(node.id), fresh.occupancy.node(node.id)
            assert (mine.tasks, mine.by_service, mine.nano_cpus, mine.ports) == (
                other.tasks,
                other.by_service,
                other.nano_cpus,
                other.ports,
            )
            assert sorted(kept.networks_of_node(node.id)) == sorted(fresh.networks_of_node(node.id))
        assert set(kept.unallocated) == set(fresh.unallocated)
        assert set(kept.unassigned) == set(fresh.unassigned)

    def _events(self) -> None:
        for batch in self.watch.drain():
            for event in batch.events:
                old, new = event.old, event.new
                if not isinstance(new, Task):
                    continue
                if isinstance(old, Task):
                    assert new.status.state >= old.status.state, f"state fell: {old} -> {new}"
                    assert new.desired_state >= old.desired_state, f"desired state fell: {old} -> {new}"
                    assert old.node_id in ("", new.node_id), f"a task moved: {old} -> {new}"
                elif new.not_before > new.created_at:
                    self._delay(new)
                was = old.status.state if isinstance(old, Task) else TaskState.NEW
                if was < TaskState.ASSIGNED <= new.status.state <= TaskState.RUNNING:
                    self._fit(new)

    def _delay(self, task: Task) -> None:
        """A restart is decided only once the delay of the one before, in the same slot, is over."""
        for other in self.swarm.store.view().tasks_of_service(task.service_id):
            same = (other.slot, other.spec_version) == (task.slot, task.spec_version)
            if not same or other.id == task.id or (not task.slot and other.node_id != task.node_id):
                continue
            over = other.status.state.terminal and other.desired_state == TaskState.SHUTDOWN
            assert not over or other.not_before <= task.created_at, f"restarted too soon: {other} -> {task}"

    def _fit(self, task: Task) -> None:
        view = self.swarm.store.view()
        node = view.get(Node, task.node_id)
        assert node is not None and is_ready(node), f"placed on a node that is not ready: {task.name}"
        others = Occupancy()
        for other in view.tasks_of_node(node.id):
            if other.id != task.id:
                others.observe(other.id, other)
        failed = first_failure(needs_of(task), node, others.node(node.id))
        assert failed in (None, "max-replicas"), f"{task.name} placed on {node.id} against filter {failed}"
        self.placed += 1

    def _addresses(self, tasks: list[Task]) -> None:
        view = self.swarm.store.view()
        owners: Counter[tuple[str, str]] = Counter()
        subnets: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        by_network: dict[str, list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
        for network in view.all(Network):
            for subnet in network.subnets:
                parsed = ipaddress.ip_network(subnet.subnet)
                assert not any(parsed.overlaps(other) for other in subnets), f"{parsed} overlaps"
                subnets.append(parsed)
                by_network.setdefault(network.id, []).append(parsed)
                owners[network.id, subnet.gateway] += 1
        for task in tasks:
            for attachment in task.networks:
                for address in attachment.addresses:
                    owners[attachment.network_id, address.split("/")[0]] += 1
        for service in view.all(Service):
            for vip in service.endpoint.virtual_ips if service.endpoint else ():
                owners[vip.network_id, vip.address.split("/")[0]] += 1
        for node in view.all(Node):
            for network_id, address in node.network_addresses.items():
                owners[network_id, address.split("/")[0]] += 1
        self._families(tasks, by_network)
        twice = [owner for owner, count in owners.items() if count > 1]
        assert not twice, f"addresses given twice: {twice}"
        for network_id, address in owners:
            assert any(ipaddress.ip_address(address) in net for net in by_network.get(network_id, ())), (
                address
            )
        vnis = Counter(n.vni for n in view.all(Network) if n.vni)
        assert all(count == 1 for count in vnis.values()), f"VNI given twice: {vnis}"
        ports = Counter(
            (p.protocol, p.published_port)
            for s in view.all(Service)
            if s.endpoint
            for p in s.endpoint.ports
            if p.publish_mode == "ingress"
        )
        assert all(count == 1 for count in ports.values()), f"published port given twice: {ports}"

    def _jobs(self, tasks: list[Task]) -> None:
        """Never more at once than asked for, never two of a slot, none of an earlier run that is meant to go on."""
        view = self.swarm.store.view()
        wanted: dict[str, list[Task]] = {}
        for task in tasks:
            if task.job_iteration is not None and task.desired_state.wanted:
                wanted.setdefault(task.service_id, []).append(task)
        for id, live in wanted.items():
            service = view.get(Service, id)
            if service is None or service.job_status is None:
                continue
            mine = [t for t in live if t.job_iteration == service.job_status.iteration]
            slots = Counter((t.slot, t.node_id if service.spec.mode.global_job else "") for t in mine)
            assert all(count == 1 for count in slots.values()), f"two tries at once: {slots}"
            if service.spec.mode.replicated_job is not None:
                assert len(mine) <= job_size(service.spec.mode.replicated_job)[0], f"too many at once: {mine}"

    def _families(
        self, tasks: list[Task], subnets: dict[str, list[ipaddress.IPv4Network | ipaddress.IPv6Network]]
    ) -> None:
        """An address, or a VIP, of each family a network has; on hosts without IPv6 it may be of IPv4 alone."""
        view = self.swarm.store.view()
        for task in tasks:
            for given in task.networks:
                if given.addresses:
                    found = sorted(ipaddress.ip_interface(a).version for a in given.addresses)
                    wanted = sorted(net.version for net in subnets[given.network_id])
                    node = view.get(Node, task.node_id)
                    about = node.description if node is not None else None
                    alone = found == [4] and about is not None and IPV6 in about.lacks
                    assert found == wanted or alone, f"{task.name} on {task.node_id}: {given.addresses}"
        for service in view.all(Service):
            vips: dict[str, list[int]] = {}
            for vip in service.endpoint.virtual_ips if service.endpoint else ():
                vips.setdefault(vip.network_id, []).append(ipaddress.ip_interface(vip.address).version)
            for network_id, found in vips.items():
                assert sorted(found) == sorted(net.version for net in subnets[network_id]), service.spec.name

    def _nodes(self, tasks: list[Task]) -> None:
        view = self.swarm.store.view()
        ports: Counter[tuple[str, tuple[str, int]]] = Counter()
        cpus: Counter[str] = Counter()
        for task in tasks:
            if not task.node_id or task.status.state < TaskState.ASSIGNED:
                continue
            for port in host_ports(task):
                ports[task.node_id, port] += 1
            cpus[task.node_id] += reserved(task)[0]
        assert all(count == 1 for count in ports.values()), f"host port taken twice: {ports}"
        for node_id, used in cpus.items():
            node = view.get(Node, node_id)
            if node is not None and node.description is not None:
                assert used <= node.description.resources.nano_cpus, f"node {node_id} is overbooked"


def _filled(index: Index) -> dict[str, dict[int, int]]:
    return {network: dict(used) for network, used in index.book._used.items() if used}


def assert_converged(swarm: VirtualSwarm) -> None:
    """Every service is what its spec asks for, on nodes that may run it."""
    view = swarm.store.view()
    services = {service.id: service for service in view.all(Service)}
    for task in view.all(Task):
        assert task.service_id in services, f"a task outlived its service: {task.name}"
    usable = [
        n for n in view.all(Node) if n.status.state == NodeState.READY and n.spec.availability == "active"
    ]
    for task in view.all(Task):
        if is_stuck(task):
            assert_really_stuck(swarm, task)
    for node in view.all(Node):
        on = {
            a.network_id
            for t in view.tasks_of_node(node.id)
            if TaskState.ASSIGNED <= t.status.state <= TaskState.RUNNING
            for a in t.networks
        }
        assert set(node.network_addresses) == on | {"ingress"}, f"{node.id} lacks or keeps an address"
    for service in services.values():
        state = service.update_status.state if service.update_status else ""
        assert state not in ("updating", "rollback_started"), f"{service.spec.name} is {state} for ever"
        if service.job_status is not None:
            assert_job_done(swarm, service, usable)
            continue
        running = swarm.running(service.id)
        where = [(t.slot, t.node_id) for t in running]
        if service.spec.mode.global_ is not None:
            needed = {n.id for n in usable if _eligible(service, n)}
            # Eligible, but another service holds the port or the resources: the task says so.
            stuck = {t.node_id for t in swarm.tasks(service.id) if is_stuck(t)}
            assert {n for _, n in where} | stuck == needed, f"{service.spec.name}: {where} of {needed}"
            assert len(where) == len({n for _, n in where}), f"two copies on a node: {where}"
        else:
            mode = service.spec.mode.replicated
            wanted = 1 if mode is None or mode.replicas is None else mode.replicas
            # A task no node takes says why; with start-first its predecessor goes on running beside it.
            stuck_slots = {t.slot for t in swarm.tasks(service.id) if is_stuck(t)}
            slots = [slot for slot, _ in where]
            assert len(slots) == len(set(slots)), f"{service.spec.name}: doubled slots {where}"
            assert len(set(slots) | stuck_slots) == wanted, f"{service.spec.name} wants {wanted}: {where}"
            others = [
                t
                for t in swarm.tasks(service.id)
                if t.desired_state <= TaskState.RUNNING and t not in running and not is_stuck(t)
            ]
            assert not others, f"{service.spec.name}: neither running nor saying why: {others}"


def assert_job_done(swarm: VirtualSwarm, service: Service, usable: list[Node]) -> None:
    """Every slot, or every node it fits, completed once in the iteration that is on; what waits says why."""
    assert service.job_status is not None
    tasks = [t for t in swarm.tasks(service.id) if t.job_iteration == service.job_status.iteration]
    done = [t for t in tasks if t.status.state == TaskState.COMPLETE]
    stuck = [t for t in tasks if is_stuck(t)]
    others = [t for t in swarm.tasks(service.id) if not t.status.state.terminal and t not in stuck]
    assert not others, f"{service.spec.name}: neither over nor saying why: {others}"
    if service.spec.mode.global_job is not None:
        needed = {n.id for n in usable if _eligible(service, n)}
        assert needed <= {t.node_id for t in done} | {t.node_id for t in stuck}, (
            f"{service.spec.name}: {done}"
        )
        return
    assert service.spec.mode.replicated_job is not None
    at_once, total = job_size(service.spec.mode.replicated_job)
    left = total - len({t.slot for t in done})
    assert len(stuck) == min(at_once, left), f"{service.spec.name}: {done}"


def assert_really_stuck(swarm: VirtualSwarm, task: Task) -> None:
    """A task says it found no node: then there is none now."""
    view = swarm.store.view()
    assert task.status.state == TaskState.PENDING, f"no network here is ever full: {task.status}"
    occupancy = Index.of(view).occupancy
    for node in view.all(Node):
        if task.node_id in ("", node.id):
            failed = first_failure(needs_of(task), node, occupancy.node(node.id))
            assert failed is not None, f"{task.name} waits ({task.status.err}) though {node.id} would take it"


def is_stuck(task: Task) -> bool:
    live = task.desired_state.wanted
    return live and task.status.state < TaskState.ASSIGNED and bool(task.status.err)


def _eligible(service: Service, node: Node) -> bool:
    return fits_by_nature(service.spec.task_template, node)
