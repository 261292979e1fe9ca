"""The overlay driver of a host: the agent's network, on planner, HNS, VFP and a data path.

Owns the order of effects, batching, what is kept for a restart and the errors an agent sees. Decisions are
the pure modules'. One pass at a time follows what changed (view keys, tasks); changes that come meanwhile
share the next pass, so fifty tasks at once cost a few passes. A driver serves one membership: after `leave`
make a new one.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import structlog

from overlace.model.errors import Unavailable
from overlace.model.family import is_six
from overlace.model.findings import Examine, Question, Said
from overlace.model.netview import NetView, NetworkEntry, NodeEntry
from overlace.model.paths import PathState, tunnel_overhead
from overlace.network.admission import Admission, check_host_ips, host_network_refused
from overlace.network.base import Attached, Inside, TaskNetwork
from overlace.network.counted import Held
from overlace.network.datapath import DataPath
from overlace.network.endpoints import LOCAL_NETWORK, LOCAL_SUBNET
from overlace.network.hns.documents import Guid, HostComputeNetwork
from overlace.network.hns.plan import plan_hns
from overlace.network.hns.service import HnsService
from overlace.network.hns.versions import LATEST, lacks
from overlace.network.host_access import HostAccesses, asked, plan_host_access
from overlace.network.host_watch import HostWatch
from overlace.network.hostports import listening, own_addresses
from overlace.network.keeping import Keeping
from overlace.network.looking import look
from overlace.network.mtu import plan_mtus
from overlace.network.naming import Client, MakeNames, OwnNames
from overlace.network.notices import Notices
from overlace.network.overlay import OverlayPlanner
from overlace.network.overlay_documents import gateway_network, guid_of
from overlace.network.passes import Passes
from overlace.network.path_keeper import Interface, PathKeeper
from overlace.network.placed import Placed, placed_at
from overlace.network.port_guard import PortGuard
from overlace.network.records import Record, Records
from overlace.network.refusals import Refusals
from overlace.network.resolv_conf import container_resolv_conf, host_resolv_conf, parse_resolv_conf
from overlace.network.switch import Switch
from overlace.network.vfp.compile import Compiler, vni_of
from overlace.network.vfp.tables import LocalEndpoint

log = structlog.get_logger(__name__)

RESOLV_CONF = Path("/etc/resolv.conf")


class OverlayDriver:
    """Implements overlace.network.base.NetworkDriver.

    `state_dir` survives restarts. `os` "windows": only documents Windows' HNS takes (emulated hosts too).
    `upstreams`: nameservers for everything that is not ours; none: those of the host's resolv.conf. `make_names`: who
    answers for names; by default this process does.
    """

    def __init__(
        self,
        datapath: DataPath,
        state_dir: Path,
        *,
        os: str = "linux",
        upstreams: Sequence[str] = (),
        local_subnet: str = LOCAL_SUBNET,
        resolv_conf: Path = RESOLV_CONF,
        make_names: MakeNames = OwnNames,
    ) -> None:
        self._datapath = datapath
        self._state_dir = state_dir
        self._windows = os == "windows"
        try:
            servers, self._search, self._options = parse_resolv_conf(resolv_conf.read_text())
        except OSError as e:
            if not upstreams:
                log.warning(
                    "containers resolve no names but their own",
                    error=str(e),
                    remedy="start the daemon with --dns",
                )
            servers, self._search, self._options = [], [], []
        self._names = make_names(datapath, list(upstreams) or servers)
        self._records = Records(state_dir / "tasks")
        self._admission = Admission(self._records, local_subnet, listening)
        self._view: NetView | None = None
        self._planner: OverlayPlanner | None = None
        self._hns: HnsService | None = None
        self._compiler: Compiler | None = None
        self._keeping = Keeping(self._records, self._admission, self._seen, self._forget)
        self._passes = Passes(self._pass)
        self._refusals = Refusals()
        self._notices = Notices()
        self._watch = HostWatch(datapath, self._notices)
        self._guard = PortGuard(
            listening, datapath.apply, self._notices, own_addresses, self._admission.at_one_address
        )
        self._host_access = HostAccesses(datapath)
        self._node_id = ""
        self._aside: set[asyncio.Task[None]] = set()
        self.on_paths: Callable[[Sequence[PathState]], None] = lambda paths: None
        self._path_keeper = PathKeeper(
            datapath, self._interfaces, lambda news: self.on_paths(news), self._unreachable
        )

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def local_subnet(self) -> IPv4Network:
        """Of the node's own NAT network; its gateway is the first address."""
        return self._admission.local_subnet

    async def open(self, node_id: str) -> None:
        await self._datapath.open()
        under = self._datapath.underlay()
        self._node_id = node_id
        self._records.load()
        self._hns = HnsService(self._state_dir / "hns", strict_windows=self._windows)
        self._compiler = Compiler(self._hns.state, under.client_address)
        self._compiler.update(self._hns.drain())
        self._planner = OverlayPlanner(
            node_id, under.address, windows=self._windows, local_subnet=str(self.local_subnet)
        )
        differed = await self._datapath.reconcile(self._compiler.tables)
        if differed:
            log.info(
                "data path brought up to the kept state", put=len(differed.put), removed=len(differed.remove)
            )
        await self._guard.open(self._compiler.tables, differed)
        await self._path_keeper.open(self._datapath.underlay().mtu)
        await self._names.open(_client(record) for record in self._records if record.sandbox)
        await self._watch.start()

    async def close(self) -> None:
        await self._path_keeper.close()
        await self._watch.end()
        await self._guard.close()
        await self._names.close()
        await self._passes.ended()
        await self._datapath.close()

    async def leave(self, kept: Collection[str] = ()) -> None:
        stay = {r.asked.task_id for r in self._records if not r.asked.attachments} & set(kept)
        if stay:
            await self.keep_only(stay)
            await self.apply_view(NetView(), None)
            await self.close()
            return
        await self._path_keeper.close()
        await self._watch.end()
        await self._guard.close()
        await self._names.leave()
        await self._passes.ended()
        await self._datapath.destroy()
        self._records.clear()
        self._planner = self._compiler = self._hns = None
        shutil.rmtree(self._state_dir / "hns", ignore_errors=True)
        shutil.rmtree(self._state_dir / "tasks", ignore_errors=True)

    def describe(self) -> dict[str, object]:
        under = self._datapath.underlay()
        return {
            "underlay_address": under.address,
            "underlay_interface": under.ifname,
            "mtu": under.mtu,
            "data_path": type(self._datapath).__name__,
            "os": "windows" if self._windows else "linux",
            "lacks": lacks(LATEST) if self._windows else {},
            "documents": len(self._hns.documents) if self._hns is not None else 0,
            "tasks": len(self._records.ids()),
            "refused": [*self._refusals.texts(), *self._guard.texts(), *self._host_access.refused()],
        }

    def paths(self) -> list[PathState]:
        """What was measured of the way to other hosts."""
        return self._path_keeper.states()

    def _unreachable(self, nodes: frozenset[str]) -> None:
        """Take their tasks out of new connections here, or put them back."""
        if self._planner is None:
            return
        changed = self._planner.set_unreachable(nodes)
        if changed:
            follow = asyncio.get_running_loop().create_task(self._passes.follow(changed))
            self._aside.add(follow)
            follow.add_done_callback(self._aside_done)

    def _aside_done(self, task: asyncio.Task[None]) -> None:
        self._aside.discard(task)
        if not task.cancelled() and task.exception() is not None:  # the next pass compares everything
            log.warning("could not follow which hosts answer, will retry", error=str(task.exception()))

    async def ask(self, question: Question) -> Said:
        """Look at this host."""
        said = await look(self._datapath, question, self._inside, self._sandbox, self._refusals.texts())
        if not isinstance(question, Examine):
            return said
        return msgspec.structs.replace(said, findings=(*said.findings, *self._guard.findings()))

    async def held(self) -> Held:
        """What the data path carried and holds, for metrics."""
        return await self._datapath.held(self._inside())

    def _sandbox(self, task_id: str) -> Path | None:
        record = self._records.get(task_id)
        return Path(record.sandbox) if record is not None and record.sandbox else None

    def _inside(self) -> Iterator[Inside]:
        view = self._seen()
        for record in self._records:
            via = gateway_network(record.local.task, view)
            for network_id, name in record.local.interfaces.items():
                if record.sandbox:
                    guid = guid_of("endpoint", network_id, record.asked.task_id)
                    yield Inside(guid, Path(record.sandbox), name, network_id == via)
        yield from self._host_access.inside()

    @property
    def switch(self) -> Switch:
        """To look at what is programmed. Raises Unavailable before `open`."""
        _, hns, _ = self._open_parts()
        path = self._datapath
        return Switch(
            hns.state,
            path.underlay().client_address,
            path.counters,
            path.flows,
            path.drops,
            path.hits,
            path.balancing,
            self._notices.since,
            path.watched,
        )

    def _open_parts(self) -> tuple[OverlayPlanner, HnsService, Compiler]:
        if self._planner is None or self._hns is None or self._compiler is None:
            raise Unavailable("the node's network is not open")
        return self._planner, self._hns, self._compiler

    # -- following -------------------------------------------------------------------------------------------

    async def apply_view(self, view: NetView, changed: set[str] | None) -> None:
        self._open_parts()
        first = self._view is None
        self._view = view
        self._names.update(view, None if first else changed)
        if changed is None or first or any(key.startswith("node/") for key in changed):
            six = is_six(self._datapath.underlay().address)
            others = (n for n in view.of(NodeEntry) if n.id != self._node_id and n.measurable)
            others = (n for n in others if is_six(n.provider_address) == six)
            self._path_keeper.follow({n.id: (n.provider_address, n.hostname) for n in others})
        await self._passes.follow(None if first else changed, ())
        await self._names.told()

    async def _pass(self, changed: set[str] | None, touched: set[str], doubt: bool) -> None:
        planner, hns, compiler = self._open_parts()
        view = self._view if self._view is not None else NetView()
        if self._view is None:  # only the tasks touched are planned: nothing may be judged missing yet
            changed = set()
        tasks = {r.asked.task_id: r.local for r in self._records}
        ids: set[Guid] | None = planner.refresh(view, changed, tasks, touched)
        if changed is None:
            ids = None
        else:
            assert ids is not None
            ids |= self._refusals.ids
        operations = plan_hns(hns.documents, planner.documents, ids, hns.balancers_of)
        self._refusals.note(hns.apply(operations))
        delta = self._guard.passed(compiler.update(hns.drain()))
        if doubt:
            await self._datapath.reconcile(self._guard.tables(compiler.tables))
        elif delta:
            await self._datapath.apply(delta)
        await self._open_to_host(view, changed, doubt, compiler)

    async def _open_to_host(
        self, view: NetView, changed: set[str] | None, doubt: bool, compiler: Compiler
    ) -> None:
        """Let this host's own processes into the networks that ask for it, when anything of that may have changed."""
        own = f"node/{self._node_id}"
        kept = changed is not None and not any(k == own or k.startswith("network/") for k in changed)
        if self._view is None or self._windows or (kept and not doubt and self._host_access.settled):
            return
        me, networks = view.node(self._node_id), asked(view)
        entries: dict[str, LocalEndpoint] = {}
        for n in networks:
            address = me.addresses.get(n.id, "").split("/")[0] if me is not None else ""
            entry = compiler.tables.get(("endpoint", n.vni, address))
            if isinstance(entry, LocalEndpoint):
                entries[n.id] = entry
        mtus = self._network_mtus(view, [n.id for n in networks])
        await self._host_access.follow(plan_host_access(networks, entries, mtus))

    # -- tasks -----------------------------------------------------------------------------------------------

    def _outside(self, task: TaskNetwork) -> Attached:
        """A task on the host's own stack, or on none: there is nothing to make, nor to give back."""
        if task.mode == "host" and self._windows:
            raise host_network_refused(task)
        servers = task.nameservers or self._names.upstreams
        text = host_resolv_conf(servers, self._search, self._options) if task.mode == "host" else ""
        return Attached(sandbox=None, resolv_conf=text, addresses={}, macs={}, gateways={})

    async def attach(self, task: TaskNetwork, netns: Path | None = None) -> Attached:
        if task.mode:
            return self._outside(task)
        return await self._keeping.attach(
            task,
            lambda: self._admit(task),
            lambda record: self._connect(record, netns),
            (lambda old: self._change(old, task)) if netns is not None else None,
        )

    async def _change(self, old: Record, task: TaskNetwork) -> Record | None:
        """Put a running task on other networks; None: it differs in more. What goes, goes before it is forgotten."""
        new = self._admission.changed(old, task, self._seen(), self._mtus(task, self._seen()))
        if new is not None:
            for network_id in old.local.interfaces.keys() - new.local.interfaces.keys():
                await self._datapath.detach(guid_of("endpoint", network_id, task.task_id))
            self._records.put(new)
            self._names.drop(task.task_id)
        return new

    def _seen(self) -> NetView:
        return self._view if self._view is not None else NetView()

    async def _admit(self, task: TaskNetwork) -> Record:
        """Check the wish, fill it in and keep it. Raises InvalidArgument, Conflict, Unavailable."""
        _, hns, _ = self._open_parts()
        view = self._seen()
        if self._windows:
            check_host_ips(task)
        return self._admission.admit(task, view, hns.state.by_outer, self._mtus(task, view))

    def _mtus(self, task: TaskNetwork, view: NetView) -> dict[str, int]:
        """Interface MTUs by network."""
        networks = [a.network_id for a in task.attachments] + [LOCAL_NETWORK] * task.on_local
        return self._network_mtus(view, networks)

    def _network_mtus(self, view: NetView, networks: Iterable[str]) -> dict[str, int]:
        under = self._datapath.underlay()
        overhead = tunnel_overhead(under.address)
        return plan_mtus(view, networks, self._node_id, under.mtu, self._path_keeper.measured(), overhead)

    def _interfaces(self) -> Iterator[Interface]:
        """What MTU each attached task's interfaces should have now; a change is kept for a restart."""
        view = self._view
        if view is None:
            return
        there = self._network_mtus(view, [n.id for n in view.of(NetworkEntry)])
        yield from self._host_access.interfaces({n.name: there[n.id] for n in view.of(NetworkEntry)})
        for record in self._records:
            task = record.local.task
            if not record.sandbox:
                continue
            mtus = {a.network_id: there[a.network_id] for a in task.attachments if a.network_id in there}
            if {**record.local.mtu, **record.mtu, **mtus} != {**record.local.mtu, **record.mtu}:
                record = msgspec.structs.replace(record, mtu={**record.mtu, **mtus})
                self._records.put(record)
            for network_id, name in record.local.interfaces.items():
                if network_id in mtus:
                    guid = guid_of("endpoint", network_id, task.task_id)
                    yield Interface(guid, Path(record.sandbox), name, mtus[network_id])

    async def _connect(self, record: Record, netns: Path | None) -> Attached:
        """Everything of an admitted task, again and again with the same result."""
        _, hns, compiler = self._open_parts()
        task = record.local.task
        await self._passes.follow(set(), (task.task_id,))
        placements = record.local.placements
        entries = [self._entry(record, n, a, hns, compiler) for n, a in placements]
        sandbox = await self._datapath.ensure_sandbox(task.task_id, netns)
        if record.sandbox != str(sandbox):
            record = msgspec.structs.replace(record, sandbox=str(sandbox))
            self._records.put(record)
        via = gateway_network(task, self._seen())
        under = self._datapath.underlay()
        for (network_id, name), placed in zip(record.local.interfaces.items(), entries, strict=True):
            await self._datapath.attach(
                placed.entry,
                sandbox,
                name,
                network_id == via,
                placed.gateway,
                record.mtu.get(network_id)
                or record.local.mtu.get(network_id)
                or under.mtu - tunnel_overhead(under.address),
                placed.others,
                six=placed.six,
                gateway6=placed.gateway6,
            )
        await self._names.ensure(_client(record))
        self._path_keeper.touch()  # its peers may be others than when it was admitted
        return Attached(
            sandbox=sandbox,
            resolv_conf=container_resolv_conf(self._search, self._options),
            addresses={e.network: e.address for e in entries},
            macs={e.network: e.entry.mac for e in entries},
            gateways={e.network: e.gateway for e in entries},
            host_ports=task.host_ports,
            addresses6={e.network: e.address6 for e in entries if e.address6},
            gateways6={e.network: e.gateway6 for e in entries if e.address6},
            ports6=next(
                (e.network for (n, _), e in zip(placements, entries, strict=True) if n == via and e.address6),
                "",
            ),
        )

    def _entry(
        self, record: Record, network_id: str, address: str, hns: HnsService, compiler: Compiler
    ) -> Placed:
        """One placement. Raises why HNS does not have it."""
        guid = guid_of("endpoint", network_id, record.asked.task_id)
        network = hns.state.get(guid_of("network", network_id), HostComputeNetwork)
        if network is not None:
            vni = vni_of(network)
            address6 = "" if self._windows else record.local.address6(network_id)
            entry, six = (
                found
                if isinstance(found := compiler.tables.get(("endpoint", vni, bare)), LocalEndpoint)
                and found.endpoint_id == guid
                else None
                for bare in (address.split("/")[0], address6.split("/")[0])
            )
            if entry is not None and (six is not None or not address6):
                return placed_at(network, address, entry, address6, six)
        namespace = guid_of("namespace", record.asked.task_id)
        raise self._refusals.explain(record.asked.task_name, (guid, namespace))

    async def detach(self, task_id: str) -> None:
        await self._keeping.detach(task_id)

    async def _forget(self, record: Record) -> None:
        """Give back; the record's file goes last, so that a crash in between is finished by `keep_only`."""
        task_id = record.asked.task_id
        self._names.drop(task_id)
        for network_id, _ in record.local.placements:
            await self._datapath.detach(guid_of("endpoint", network_id, task_id))
        await self._datapath.remove_sandbox(task_id)
        self._records.remove(task_id)
        await self._passes.follow(set(), (task_id,))

    async def keep_only(self, task_ids: set[str]) -> None:
        await self._keeping.keep_only(task_ids)


def _client(record: Record) -> Client:
    asked = record.asked
    networks = tuple(a.network_id for a in asked.attachments)
    return Client(asked.task_id, networks, record.sandbox, asked.nameservers)
