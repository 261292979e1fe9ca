"""The overlay driver of a Windows host: the agent's network on the host's own HNS.

Owns the order of effects on that host, its resolver and what is kept for a restart. Decisions are the pure modules', as
for Linux hosts; the calls are host.py's, on one thread. Every pass compares what is wanted with what HNS holds, so that
a crash anywhere, a restart of HNS or somebody's deletion is mended by the next. It deletes nothing it did not make.
Nothing here, nor anything it imports, may need Linux.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from overlace.model.errors import Conflict, NotFound, OverlaceError, Unavailable
from overlace.model.findings import Question, Said
from overlace.model.netview import NetView
from overlace.model.paths import PathState
from overlace.model.system import ON_WINDOWS
from overlace.network import hostports
from overlace.network.admission import Admission, check_host_ips, host_network_refused
from overlace.network.base import Attached, TaskNetwork
from overlace.network.counted import Carried, Held
from overlace.network.endpoints import LOCAL_NETWORK
from overlace.network.hns.documents import (
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
    colon_mac,
)
from overlace.network.hns.plan import Create, Operation
from overlace.network.hns.state import State
from overlace.network.hns.versions import NO_WAY_BACK, lacks
from overlace.network.hostports import HostPort
from overlace.network.keeping import Keeping
from overlace.network.overlay import OverlayPlanner
from overlace.network.overlay_documents import gateway_network, guid_of
from overlace.network.passes import Passes
from overlace.network.records import Record, Records
from overlace.network.refusals import Refusals
from overlace.network.switch import Switch
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.windows import ports
from overlace.network.windows.errors import is_away
from overlace.network.windows.host import WindowsHost, sweep
from overlace.network.windows.library import Hcn
from overlace.network.windows.look import look
from overlace.network.windows.names import HostNames
from overlace.network.windows.path_keeper import HostPathKeeper, HostPaths
from overlace.network.windows.shape import Shape
from overlace.network.windows.wanted import Wanted
from overlace.network.windows.watch import HnsWatch

log = structlog.get_logger(__name__)
T = TypeVar("T")
PATIENCE = 10.0


class WindowsDriver:
    """Implements overlace.network.base.NetworkDriver on the HNS behind `hcn`.

    `state_dir` survives restarts. `underlay_address`: what this node tells the swarm; `mtu`: of its interface,
    for which `mtu_now` is asked later. `patience`: seconds a new task waits for its paths to be measured, at most.
    `upstreams`: nameservers for everything that is not ours. `attach`'s `netns` is the engine's id of a running
    container (its last part counts), into which endpoints are attached; None: a namespace document of their own.
    """

    def __init__(
        self,
        hcn: Hcn,
        state_dir: Path,
        underlay_address: str,
        *,
        mtu: int = 1500,
        mtu_now: Callable[[], int] | None = None,
        patience: float = PATIENCE,
        upstreams: Sequence[str] = (),
        search: Sequence[str] = (),
        local_subnet: str = "172.17.0.0/16",
        listening: Callable[[], Iterable[HostPort]] = ports.listening if ON_WINDOWS else hostports.listening,
        dns_port: int = 53,
        dns_datagrams_at: str = "",
    ) -> None:
        self._host = WindowsHost(hcn)
        self._state_dir = state_dir
        self._address = underlay_address
        self._under = HostPaths(underlay_address, mtu, mtu_now)
        self._path_keeper = HostPathKeeper(self._under, lambda news: self.on_paths(news), patience)
        self.names = HostNames(underlay_address, dns_port, upstreams, search, dns_datagrams_at)
        self._records = Records(state_dir / "tasks")
        self._admission = Admission(self._records, local_subnet, listening)
        self._passes = Passes(self._pass)
        self._keeping = Keeping(self._records, self._admission, self._seen, self._forget)
        self._refusals = Refusals()
        self._watch = HnsWatch(hcn, self._do, self.reconcile)
        self._pool = ThreadPoolExecutor(1, "overlace-hns")
        self._view: NetView | None = None
        self._planner: OverlayPlanner | None = None
        self._shape: Shape | None = None
        self._wanted = Wanted()
        self._node_id = ""
        self._inside: dict[
            Guid, str
        ] = {}  # endpoint -> container it was attached to, since HNS was read last
        self.on_paths: Callable[[Sequence[PathState]], None] = lambda paths: None

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def local_subnet(self) -> IPv4Network:
        """Of the node's own NAT network; its gateway is the first address."""
        return self._admission.local_subnet

    async def open(self, node_id: str) -> None:
        """Take over what HNS holds of an earlier process. An HNS that does not answer (yet) is waited for: passes say so
        until it does."""
        self._node_id = node_id
        self._records.load()
        self._planner = OverlayPlanner(
            node_id, self._address, windows=True, direct=False, local_subnet=str(self.local_subnet)
        )
        for record in self._records:
            self.names.know(record)
        if not await self._listen():
            self._watch.refused()
        self._passes.suspect()
        await self._watch.start()
        try:
            await self._passes.follow(set())
        except OverlaceError as e:
            log.warning("HNS does not answer yet", error=str(e))
            self._watch.lost()

    async def _listen(self) -> bool:
        """Names are answered and paths measured; False where one of them has to be tried again."""
        named, measured = await self.names.serve(), await self._path_keeper.open()
        return named and measured

    async def close(self) -> None:
        await self._path_keeper.close()
        await self._watch.end()
        await self.names.close()
        await self._passes.ended()
        self._pool.shutdown(wait=False)
        self._pool = ThreadPoolExecutor(1, "overlace-hns")  # starts its thread when it is used

    async def leave(self, kept: Collection[str] = ()) -> None:
        """Nothing is kept: a Windows host has no containers outside of services (api/routes/single.py refuses them)."""
        await self._path_keeper.close()
        await self._watch.end()
        await self.names.close()
        await self._passes.ended()
        await self._do(lambda: sweep(self._host))
        self._records.clear()
        self._planner = None
        self._wanted, self._inside = Wanted(), {}
        shutil.rmtree(self._state_dir / "tasks", ignore_errors=True)

    def describe(self) -> dict[str, object]:
        version = self._shape.version if self._shape is not None else None
        return {
            "underlay_address": self._address,
            "mtu": self._under.mtu,
            "data_path": "HNS",
            "os": "windows",
            "hns_version": ".".join(map(str, version)) if version is not None else "",
            "provider_addresses": sorted({x.provider_address for x in self._host.learned.values()}),
            "router_macs": {n: x.router_mac for n, x in sorted(self._host.learned.items())},
            "documents": len(self._host.documents),
            "tasks": len(self._records.ids()),
            "refused": self._refusals.texts(),
            "lacks": NO_WAY_BACK | (lacks(version) if version is not None else {}),
        }

    def paths(self) -> list[PathState]:
        """What was measured of the way to other hosts, by a socket of this program: HNS measures none."""
        return self._path_keeper.states()

    async def ask(self, question: Question) -> Said:
        """Look at this host, as far as documents tell."""
        return await look(question, self._differences, self._refusals.texts(), self.names.why_not)

    async def _differences(self) -> list[Operation]:
        """What a pass over everything would do now."""
        self._open_planner()

        def body() -> list[Operation]:
            self._host.refresh()
            return self._host.plan(self._wanted.documents)

        return await self._do(body)

    async def held(self) -> Held:
        """What the containers' interfaces carried, for metrics; HNS counts no drops by reason and has no tables."""
        ids = [d.id for d in self._host.documents.values() if _is_port(d)]
        return await self._do(lambda: Held(tuple(self._carried(ids)), {}, {}))

    def _carried(self, ids: Sequence[Guid]) -> Iterator[Carried]:
        for guid in ids:
            n = self._host.counters(guid)
            if n:
                yield Carried(
                    guid,
                    n.get("BytesReceived", 0),
                    n.get("PacketsReceived", 0),
                    n.get("BytesSent", 0),
                    n.get("PacketsSent", 0),
                )

    @property
    def switch(self) -> Switch:
        """To look at what is programmed: the documents HNS holds, as layers and rules of our model of VFP. Raises
        Unavailable before `open`."""
        self._open_planner()
        state = State()
        for d in list(self._host.documents.values()):
            state.put(d)

        async def counters() -> dict[str, int]:
            return {}

        async def flows() -> list[UnifiedFlow]:
            return []

        return Switch(state, self._address, counters, flows)

    def _open_planner(self) -> OverlayPlanner:
        if self._planner is None:
            raise Unavailable("the node's network is not open")
        return self._planner

    # -- following -------------------------------------------------------------------------------------------

    async def apply_view(self, view: NetView, changed: set[str] | None) -> None:
        self._open_planner()
        first = self._view is None
        self._view = view
        self._path_keeper.follow(view, self._node_id, None if first else changed)
        self.names.update(view, None if first else changed)
        try:
            await self._passes.follow(None if first else changed)
        except OverlaceError as e:
            if not is_away(e):
                raise
            self._watch.lost()  # it follows the view when HNS is back

    async def reconcile(self, whole: bool = True) -> bool:
        """Compare HNS with what is wanted (`whole`), or try again what it refused, and mend it; whether it still refuses
        something. The watch does it after every restart of HNS, after refusals and now and then."""
        if whole:
            self._passes.suspect()
        deaf = not await self._listen()
        await self._passes.follow(set())
        return deaf or bool(self._refusals.ids or self._host.short)

    async def _pass(self, changed: set[str] | None, touched: set[str], doubt: bool) -> None:
        planner = self._open_planner()
        if self._view is None:  # only the tasks touched are planned: nothing may be judged missing yet
            changed = set()
        tasks = {r.asked.task_id: r.local for r in self._records}
        # first of all: a change of the view must not be lost because HNS is away
        ids = planner.refresh(self._seen(), changed, tasks, touched)
        try:
            if doubt or self._shape is None:
                await self._do(self._host.refresh)
                self._inside = {}
                version = await self._do(lambda: self._host.version)
                self._shape = Shape(
                    version=version,
                    resolver=self._address,
                    upstreams=self.names.upstreams,
                    search=self.names.search,
                    nat=self._host.borrowed(),
                )
            ids |= {guid_of("namespace", t) for t in touched}  # its container may be known now
            whole = changed is None
            changed_ids = self._form(None if whole else ids)
            looked = changed_ids | self._refusals.ids | self._host.short if changed_ids is not None else None
            await self._apply(looked)
            if self._borrow_nat() or self._follow_provider(planner):
                planner.refresh(self._seen(), None, tasks, tasks)
                self._form(None)
                await self._apply(None)
        except OverlaceError as e:
            if is_away(e):
                self._watch.lost()
            raise
        if self._refusals.ids or self._host.short:
            self._watch.refused()

    def _seen(self) -> NetView:
        return self._view if self._view is not None else NetView()

    def _form(self, ids: set[Guid] | None) -> set[Guid] | None:
        """Bring what is wanted up to the planner's documents; which of it may differ (None: any)."""
        planner, to = self._open_planner(), self._shape
        assert to is not None
        held = {guid_of("namespace", r.asked.task_id) for r in self._records if not _has_namespace(r)}
        looked = self._wanted.form(planner.documents, to, ids, held)
        return None if ids is None else looked

    async def _apply(self, ids: set[Guid] | None) -> None:
        """Run what the documents `ids` need. Containers whose endpoints were made anew get them back."""
        operations = await self._do(lambda: self._host.plan(self._wanted.documents, ids))
        if not operations and ids is not None:
            self._refusals.note(())
            return
        refused = await self._do(lambda: self._host.apply(operations))
        self._refusals.note(refused)
        if any(isinstance(e, NotFound | Conflict) for _, e in refused):
            self._passes.suspect()  # HNS holds other things than was thought: the next try looks first
        new = {op.document.id for op in operations if isinstance(op, Create)}
        for guid in new:
            self._inside.pop(guid, None)
        for record in self._records:
            container = _container(record)
            if container and new & {g for g in _endpoints(record)}:
                await self._hot_attach(record, container)

    def _borrow_nat(self) -> bool:
        """Where HNS takes no second NAT network, the one that is there does: Docker's, mostly."""
        own = guid_of("network", LOCAL_NETWORK)
        if self._shape is None or self._shape.nat or own not in self._refusals.ids or not self._host.nats:
            return False
        nats = sorted(self._host.nats.values(), key=lambda d: (d.name.lower() != "nat", d.name))
        log.info("tasks without a network share the host's own", network=nats[0].name)
        self._shape = msgspec.structs.replace(self._shape, nat=nats[0].id)
        return True

    def _follow_provider(self, planner: OverlayPlanner) -> bool:
        """HNS decides which address it carries overlays over; whether it is another than was thought."""
        found = {x.provider_address for x in self._host.learned.values()}
        if not found or planner.provider_address in found:
            return False
        planner.provider_address = min(found)
        log.error(
            "HNS carries overlay networks over another address than this node tells the swarm: other hosts will not "
            "reach its containers; start the daemon with that --advertise-addr",
            hns=planner.provider_address,
            told=self._address,
        )
        return True

    # -- tasks -----------------------------------------------------------------------------------------------

    def _outside(self, task: TaskNetwork) -> Attached:
        """A task on no network: there is nothing to make, nor to give back."""
        if task.mode == "host":
            raise host_network_refused(task)
        return Attached(sandbox=None, resolv_conf="", addresses={}, macs={}, gateways={})

    async def prepare(self, task: TaskNetwork) -> Attached:
        """Everything of `attach` that needs no container yet: what can fail fails before its program runs."""
        return await self._attach(task, "")

    async def attach(self, task: TaskNetwork, netns: Path | None = None) -> Attached:
        own = guid_of("namespace", task.task_id).lower()
        return await self._attach(task, netns.name if netns is not None else own)

    async def _attach(self, task: TaskNetwork, sandbox: str) -> Attached:
        if task.mode:
            return self._outside(task)
        self._open_planner()
        return await self._keeping.attach(
            task, lambda: self._admit(task), lambda record: self._connect(record, sandbox)
        )

    async def _admit(self, task: TaskNetwork) -> Record:
        check_host_ips(task)
        view = self._seen()
        networks = [a.network_id for a in task.attachments] or [LOCAL_NETWORK]
        mtus = await self._path_keeper.mtus(view, networks, self._node_id)
        taken = State()
        for d in list(self._host.documents.values()) if task.host_ports else ():
            taken.put(d)
        return self._admission.admit(task, view, taken.by_outer, mtus)

    async def _connect(self, record: Record, sandbox: str) -> Attached:
        """Everything of an admitted task, again and again with the same result. `sandbox`: empty, it has none yet."""
        task = record.local.task
        if sandbox and record.sandbox != sandbox:
            record = msgspec.structs.replace(record, sandbox=sandbox)
            self._records.put(record)
        self.names.know(record)
        await self._passes.follow(set(), (task.task_id,))
        addresses: dict[str, str] = {}
        macs: dict[str, str] = {}
        gateways: dict[str, str] = {}
        for (network_id, address), guid in zip(record.local.placements, _endpoints(record), strict=True):
            d = self._host.documents.get(guid)
            network = self._network(network_id)
            if not isinstance(d, HostComputeEndpoint) or not isinstance(network, HostComputeNetwork):
                namespace = guid_of("namespace", task.task_id)
                raise self._refusals.explain(
                    task.task_name, (guid_of("network", network_id), guid, namespace)
                )
            name = LOCAL_NETWORK if network_id == LOCAL_NETWORK else network.name
            if network.id in self._host.nats:
                address = f"{d.address}/{d.ip_configurations[0].prefix_length}"
            addresses[name], macs[name] = address, colon_mac(d.mac_address)
            gateways[name] = _gateway(network, address)
        if _container(record):
            await self._hot_attach(record, _container(record))
        elif sandbox and not isinstance(
            self._host.documents.get(guid_of("namespace", task.task_id)), HostComputeNamespace
        ):
            raise self._refusals.explain(task.task_name, (guid_of("namespace", task.task_id),))
        return Attached(
            sandbox=Path(sandbox) if sandbox else None,
            resolv_conf=self.names.resolv_conf(record),
            addresses=addresses,
            macs=macs,
            gateways=gateways,
            host_ports=task.host_ports,
        )

    def _network(self, network_id: str) -> Document | None:
        """As HNS has it: the host's own NAT network may be somebody else's."""
        nat = self._shape.nat if self._shape is not None and network_id == LOCAL_NETWORK else ""
        return self._host.nats[nat] if nat else self._host.documents.get(guid_of("network", network_id))

    async def _hot_attach(self, record: Record, container: str) -> None:
        """In the order of the networks, the one with the way out first: a container takes its first default route."""
        via = gateway_network(record.local.task, self._seen())
        placed = list(zip(record.local.placements, _endpoints(record), strict=True))
        for _, guid in sorted(placed, key=lambda x: x[0][0] != via):
            if self._inside.get(guid) == container or guid not in self._host.documents:
                continue
            try:
                await self._do(partial(self._host.hot_attach, guid, container))
            except NotFound as e:  # somebody deleted it: the next pass looks, and makes it again
                self._passes.suspect()
                raise Unavailable(e.message) from e
            self._inside[guid] = container

    async def detach(self, task_id: str) -> None:
        await self._keeping.detach(task_id)

    async def _forget(self, record: Record) -> None:
        """Give back; the record's file goes last, so that a crash in between is finished by `keep_only`."""
        task_id = record.asked.task_id
        self.names.forget(record)
        container = _container(record)
        for guid in _endpoints(record):
            self._inside.pop(guid, None)
            if container and guid in self._host.documents:
                try:
                    await self._do(partial(self._host.hot_detach, guid))
                except OverlaceError as e:  # its container is gone: the endpoint goes all the same
                    log.debug("could not detach", endpoint=guid, error=str(e))
        self._records.remove(task_id)
        await self._passes.follow(set(), (task_id,))

    async def keep_only(self, task_ids: set[str]) -> None:
        await self._keeping.keep_only(task_ids)


def _endpoints(record: Record) -> list[Guid]:
    return [guid_of("endpoint", n, record.asked.task_id) for n, _ in record.local.placements]


def _has_namespace(record: Record) -> bool:
    """Whether its endpoints are in a namespace document; else the engine has its container."""
    return record.sandbox == guid_of("namespace", record.asked.task_id).lower()


def _container(record: Record) -> str:
    """The engine's container the task's endpoints are attached to; empty: none, or there is none yet."""
    return "" if _has_namespace(record) else record.sandbox


def _gateway(network: HostComputeNetwork, address: str) -> str:
    parsed = IPv4Address(address.split("/")[0])
    mine = (s for s in network.subnets if parsed in IPv4Network(s.ip_address_prefix))
    return next((r.next_hop for s in mine for r in s.routes), "")


def _is_port(d: Document) -> bool:
    return isinstance(d, HostComputeEndpoint) and not d.remote
