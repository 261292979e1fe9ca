"""A Windows host's HNS, driven by the same plans as ours: what there is, what differs, and the operations that mend it.

Owns the order and form of the calls, what the host's HNS fills in by itself, and what its version cannot do. It never
touches an object of another owner. Synchronous: callers put it on a thread. Must not decide what there should be; that is
overlay.py's. Source: what flannel, Calico and kube-proxy do (ordering, provider address, fallbacks by version).
"""

from __future__ import annotations

import time
import uuid
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
import structlog

from overlace.model.errors import Conflict, NotFound, OverlaceError, Unavailable
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    KINDS,
    Base,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    ModifyPolicies,
    PolicySettings,
    encode,
    normal_guid,
    normal_mac,
    parse,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.plan import (
    Create,
    Delete,
    ModifyNamespace,
    Operation,
    Replace,
    ReplacePolicies,
    plan_hns,
)
from overlace.network.hns.versions import HnsVersion, supports
from overlace.network.overlay_documents import OWNER
from overlace.network.windows.errors import HnsFailed, answered, is_away
from overlace.network.windows.library import Hcn

log = structlog.get_logger(__name__)
PAUSE_SECONDS = 0.5  # between looks for the provider address, as flannel has it

NAMES = {
    "network": "Network",
    "endpoint": "Endpoint",
    "namespace": "Namespace",
    "loadbalancer": "LoadBalancer",
    "sdnroute": "SdnRoute",
}
# what HNS writes into a network by itself
OUTPUTS = (p.DrMacAddress, p.ProviderAddress)


class Learned(msgspec.Struct, frozen=True):
    """What HNS said of an overlay network: the underlay address it carries it over, and its router's MAC."""

    provider_address: str
    router_mac: str


class WindowsHost:
    """`documents` holds what is ours, as `refresh` last read it and `apply` changed it since; `learned` what HNS filled
    into our overlay networks."""

    def __init__(
        self,
        hcn: Hcn,
        owner: str = OWNER,
        pause: Callable[[], None] = lambda: time.sleep(PAUSE_SECONDS),
    ) -> None:
        self._hcn = hcn
        self._owner = owner
        self._pause = pause
        self._version: HnsVersion | None = None
        self.documents: dict[Guid, Document] = {}
        self.learned: dict[Guid, Learned] = {}
        self.nats: dict[Guid, HostComputeNetwork] = {}  # NAT networks of others
        self._standing: dict[Guid, Guid] = {}  # load balancers that stand under their other id
        self._spare: set[Guid] = set()  # load balancers that a crash left beside their successor
        self.short: set[Guid] = (
            set()
        )  # load balancers that lack backends HNS does not have: to be looked at again
        self._late: set[Guid] = set()  # networks without provider address, waited for in this run already

    @property
    def version(self) -> HnsVersion:
        if self._version is None:
            self._version = self._hcn.version()
        return self._version

    # -- reading ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read everything again: after every start, reboot or restart of HNS. Raises OverlaceError."""
        found: dict[Guid, Document] = {}
        standing: dict[Guid, Guid] = {}
        spare: set[Guid] = set()
        self._version = None  # a restart may have been an update
        self.learned, self.nats = {}, {}
        for kind in KINDS:
            if kind == "sdnroute":
                continue  # we make none
            for guid in self._hcn.enumerate(NAMES[kind]):
                try:
                    d = self._read(kind, guid)
                except NotFound:
                    continue  # gone meanwhile
                if d is None or d.owner != self._owner:
                    if isinstance(d, HostComputeNetwork) and d.type == "NAT":
                        self.nats[d.id] = d
                    continue
                own = canonical(d.id) if kind == "loadbalancer" else d.id
                if own in found:
                    spare.add(d.id)
                    continue
                if own != d.id:
                    standing[own] = d.id
                found[own] = msgspec.structs.replace(d, id=own)
                self._learn(found[own])
        self.documents, self._standing, self._spare = found, standing, spare

    def borrowed(self) -> Guid:
        """Another's NAT network that endpoints of ours are on; empty: there is none."""
        on = {d.host_compute_network for d in self.documents.values() if isinstance(d, HostComputeEndpoint)}
        return next((guid for guid in sorted(self.nats) if guid in {normal_guid(n) for n in on}), "")

    def _read(self, kind: str, guid: uuid.UUID) -> Document | None:
        with self._hcn.opened(NAMES[kind], guid) as handle:
            text = self._hcn.query(NAMES[kind], handle)
        try:
            d = parse(kind, text)
        except HcnError as e:
            log.debug("an HNS object that our schema has not", kind=kind, id=str(guid), error=str(e))
            return None  # of another maker: not ours to judge
        return msgspec.structs.replace(d, id=normal_guid(d.id))

    def _learn(self, d: Document) -> None:
        if not isinstance(d, HostComputeNetwork) or d.type != "Overlay":
            return
        address, router = p.policy_of(d.policies, p.ProviderAddress), p.policy_of(d.policies, p.DrMacAddress)
        if address is not None and address.settings.provider_address:
            mac = router.settings.address if router is not None else ""
            self.learned[d.id] = Learned(address.settings.provider_address, mac)

    def provider_address(self, network: Guid, tries: int = 10) -> str:
        """The underlay address of an overlay network; HNS fills it in a while after create. Raises Unavailable when it
        does not come."""
        for attempt in range(tries):
            if attempt:
                self._pause()
            d = self._read("network", uuid.UUID(network))
            if d is not None:
                self._learn(d)
            if network in self.learned:
                return self.learned[network].provider_address
        raise Unavailable(
            f"HNS gave network {network} no provider address: is its adapter up, and is no other switch bound to it?"
        )

    # -- writing ---------------------------------------------------------------------------------------------

    def plan(self, desired: Mapping[Guid, Document], ids: Iterable[Guid] | None = None) -> list[Operation]:
        """What turns what is there into `desired`, looking at `ids` (None: at all); what HNS filled in is no
        difference."""
        looked = list(ids) if ids is not None else list(self.documents)
        same = {
            guid: settled(self.documents[guid], desired[guid])
            for guid in looked
            if guid in self.documents and guid in desired
        }
        spare: list[Operation] = [Delete("loadbalancer", guid) for guid in sorted(self._spare)]
        return spare + plan_hns(ChainMap(same, self.documents), desired, ids, self._balancers())

    def _balancers(self) -> Callable[[Guid], Iterable[Guid]]:
        """Of an endpoint, the load balancers that refer to it; found once, when the first is asked for."""
        index: dict[Guid, list[Guid]] = {}

        def of(endpoint: Guid) -> Iterable[Guid]:
            if not index:
                index[""] = []  # looked
                for d in self.documents.values():
                    for member in d.host_compute_endpoints if isinstance(d, HostComputeLoadBalancer) else ():
                        index.setdefault(normal_guid(member), []).append(d.id)
            return index.get(endpoint, ())

        return of

    def apply(self, operations: Iterable[Operation]) -> list[tuple[Operation, OverlaceError]]:
        """Run a plan; what is refused comes back and does not stop the rest. Raises Unavailable when HNS is away."""
        refused: list[tuple[Operation, OverlaceError]] = []
        self._late = set()
        for op in operations:
            try:
                self._run(op)
            except OverlaceError as e:
                if is_away(e):
                    raise
                refused.append((op, e))
        return refused

    def _run(self, op: Operation) -> None:
        match op:
            case Create():
                self._create(op.document)
            case Replace():
                self._replace(op.document)
            case ReplacePolicies():
                self._policies(op.document)
            case ModifyNamespace():
                if op.request.request_type == "Add":
                    self._out_of_container(normal_guid(op.request.settings.endpoint_id))
                self._modify("namespace", op.namespace, encode(op.request).decode())
                self._note("namespace", op.namespace)
                self._note("endpoint", normal_guid(op.request.settings.endpoint_id))
            case _:
                self._delete(op.kind, op.id)

    def _create(self, d: Document) -> None:
        network = ""
        if isinstance(d, HostComputeEndpoint):
            network = d.host_compute_network
            self._wait_for(network)
        elif isinstance(d, HostComputeLoadBalancer):
            d = self._with_members(d)
        text = encode(d).decode()
        guid = uuid.UUID(d.id)
        if network:
            with self._hcn.opened("Network", uuid.UUID(network)) as held:
                handle = self._hcn.create("Endpoint", text, guid, held)
        else:
            handle = self._hcn.create(NAMES[d.kind], text, guid)
        self._hcn.close(NAMES[d.kind], handle)
        self._note(d.kind, d.id)
        if isinstance(d, HostComputeNamespace):
            for endpoint in d.endpoints:
                self._note("endpoint", endpoint)

    def _wait_for(self, network: Guid) -> None:
        """Endpoints come after their network's provider address. Raises Unavailable."""
        d = self.documents.get(network)
        if not isinstance(d, HostComputeNetwork) or d.type != "Overlay" or network in self.learned:
            return
        late = network in self._late
        self._late.add(network)
        self.provider_address(network, 1 if late else 10)
        self._note("network", network)

    def _with_members(self, d: HostComputeLoadBalancer) -> HostComputeLoadBalancer:
        """Without backends that HNS does not have (yet): one that it refuses must not cost the service the others. The
        next plan finds what is missing. Raises Unavailable when none is left."""
        there = tuple(e for e in d.host_compute_endpoints if e in self.documents)
        (self.short.discard if there == d.host_compute_endpoints else self.short.add)(canonical(d.id))
        if not there:
            raise Unavailable(f"load balancer {d.name}: none of its backends has an endpoint in HNS yet")
        return msgspec.structs.replace(d, host_compute_endpoints=there)

    def _replace(self, d: HostComputeLoadBalancer) -> None:
        """In place where HNS can (15.4), else the new one is made under the other of its two ids before the old one goes.
        An HNS that takes no second load balancer for the VIP or port says so: then the old one goes first, and the
        service pauses for the two calls."""
        d = self._with_members(d)
        now = self._standing.get(d.id, d.id)
        if supports(self.version, "ModifyLoadBalancer") and self._hcn.library.has("HcnModifyLoadBalancer"):
            self._modify("loadbalancer", now, encode(msgspec.structs.replace(d, id=now)).decode())
            self._note("loadbalancer", now)
            return
        other = twin(now)
        try:
            self._create(msgspec.structs.replace(d, id=other))
        except Conflict as e:
            log.debug("HNS keeps one load balancer per frontend", balancer=d.name, error=str(e))
            self._delete("loadbalancer", now)
            self._create(d)
            return
        self._spare.add(now)  # a crash before the next line: refresh finds both, and plan drops one
        self._delete("loadbalancer", now)

    def _policies(self, d: HostComputeEndpoint | HostComputeNetwork) -> None:
        """Exchange what differs: first what goes, then what comes."""
        held = self.documents.get(d.id)
        have: list[object] = list(getattr(held, "policies", ()))
        want: list[object] = list(d.policies)
        bare_have, bare_want = [_bare(x) for x in have], [_bare(x) for x in want]
        gone = [
            x
            for x, bare in zip(have, bare_have, strict=True)
            if bare not in bare_want and not (isinstance(x, OUTPUTS) and isinstance(d, HostComputeNetwork))
        ]
        new = [x for x, bare in zip(want, bare_want, strict=True) if bare not in bare_have]
        # one that an object has once is exchanged: without its provider address HNS takes no endpoint
        kinds = {type(x) for x in gone if not isinstance(x, p.REPEATED)}
        changed = [x for x in new if type(x) in kinds]
        gone = [x for x in gone if type(x) not in {type(y) for y in changed}]
        new = [x for x in new if type(x) not in kinds]
        requests: tuple[tuple[Literal["Remove", "Update", "Add"], list[object]], ...] = (
            ("Remove", gone),
            ("Update", changed),
            ("Add", new),
        )
        for request, policies in requests:
            if policies:
                settings = msgspec.convert({"Policies": msgspec.to_builtins(policies)}, PolicySettings)
                body = ModifyPolicies(request_type=request, settings=settings)
                self._modify(d.kind, d.id, encode(body).decode())
                self._note(d.kind, d.id)

    def _modify(self, kind: str, guid: Guid, text: str) -> None:
        with self._hcn.opened(NAMES[kind], uuid.UUID(guid)) as handle:
            self._hcn.modify(NAMES[kind], handle, text)

    def _delete(self, kind: str, guid: Guid) -> None:
        if guid in self._spare:
            self._hcn_delete(kind, guid)
            self._spare.discard(guid)
            return
        self._hcn_delete(kind, self._standing.get(guid, guid))
        own = canonical(guid) if kind == "loadbalancer" else guid
        self._standing.pop(own, None)
        self.documents.pop(own, None)
        self.short.discard(own)
        self.learned.pop(guid, None)

    def _hcn_delete(self, kind: str, guid: Guid) -> None:
        try:
            self._hcn.delete(NAMES[kind], uuid.UUID(guid))
        except NotFound:
            pass  # gone already is what was asked

    def _note(self, kind: str, guid: Guid) -> None:
        """Hold an object as HNS has it now."""
        try:
            d = self._read(kind, uuid.UUID(guid))
        except NotFound:
            d = None
        own = canonical(guid) if kind == "loadbalancer" else guid
        if d is None:
            self.documents.pop(own, None)
            self._standing.pop(own, None)
            return
        self.documents[own] = msgspec.structs.replace(d, id=own)
        self._learn(d)
        if own != guid:
            self._standing[own] = guid
        else:
            self._standing.pop(own, None)

    # -- containers ------------------------------------------------------------------------------------------

    def hot_attach(self, endpoint: Guid, container: str) -> None:
        """Put an endpoint into a running container of the engine's; done already is what was asked. HCN v2 has no call
        for it: v1's is what Docker's own clients use. Raises HnsFailed."""
        body = msgspec.json.encode({"ContainerId": container, "SystemType": "Container"}).decode()
        try:
            self._hns(f"/endpoints/{endpoint}/attach", body)
        except HnsFailed as e:
            if e.hresult != Code.ENDPOINT_ALREADY_ATTACHED:
                raise
            if container in self._containers_of(endpoint):
                return
            self.hot_detach(endpoint)  # of a container this one comes after
            self._hns(f"/endpoints/{endpoint}/attach", body)
        self._note("endpoint", endpoint)

    def hot_detach(self, endpoint: Guid) -> None:
        """Take an endpoint out of the container it is in; in none is what was asked. Raises HnsFailed."""
        try:
            self._hns(f"/endpoints/{endpoint}/detach", "{}")
        except HnsFailed as e:
            if e.hresult != Code.ENDPOINT_NOT_ATTACHED and not isinstance(e, NotFound):
                raise
        self._note("endpoint", endpoint)

    def _out_of_container(self, endpoint: Guid) -> None:
        """HNS takes an endpoint into a namespace of ours only once it has left its container's, which HNS made: a task
        that stopped while HNS was away, or whose driver was killed then, may still be in one."""
        place = getattr(self.documents.get(endpoint), "host_compute_namespace", "")
        if place and normal_guid(place) not in self.documents:
            self.hot_detach(endpoint)

    def _containers_of(self, endpoint: Guid) -> list[str]:
        found = self._hns(f"/endpoints/{endpoint}", method="GET")
        return [str(c) for c in found.get("SharedContainers") or ()] if isinstance(found, dict) else []

    def _hns(self, path: str, body: str = "", method: str = "POST") -> object:
        return answered(f"HNSCall {method} {path}", self._hcn.hns_call(method, path, body))

    def counters(self, endpoint: Guid) -> dict[str, int]:
        """Of an endpoint's port, by hcsshim's names; empty when it has none."""
        try:
            found = self._hns(f"/endpointstats/{endpoint}", method="GET")
        except NotFound:
            return {}
        return {k: v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}


def sweep(host: WindowsHost) -> None:
    """Delete all that is ours in HNS, without any state; blocking. Raises Unavailable for what stays."""
    host.refresh()
    for d in list(host.documents.values()):
        place = getattr(d, "host_compute_namespace", "")
        if place and place not in host.documents:
            host.hot_detach(d.id)  # what HNS made for its container goes with it
    refused = host.apply(host.plan({}))
    if refused:
        raise Unavailable(f"HNS keeps {len(refused)} objects of the swarm: {refused[0][1]}")


def twin(guid: Guid) -> Guid:
    """The other id of a load balancer: version 5 of a UUID becomes 8 and back."""
    return str(uuid.UUID(int=uuid.UUID(guid).int ^ (0xD << 76))).upper()


def canonical(guid: Guid) -> Guid:
    """Which of the two ids its document has."""
    return twin(guid) if uuid.UUID(guid).version == 8 else guid


def settled(have: Document, want: Document) -> Document:
    """`have` in the words of `want`: `want` itself apart from spelling and from what HNS fills in, `want` with the
    policies HNS has where only those differ, else `have`."""
    told, asked = _told(have, want), _told(want, want)
    if told == asked:
        return want
    if isinstance(told, HostComputeNetwork | HostComputeEndpoint):
        assert isinstance(asked, HostComputeNetwork | HostComputeEndpoint)
        if msgspec.structs.replace(told, policies=()) == msgspec.structs.replace(asked, policies=()):
            return msgspec.structs.replace(want, policies=told.policies)
    return have


def _told(d: Document, want: Document) -> Document:
    plain = {f: getattr(want, f) for f in Base.__struct_fields__ if f not in ("id", "name", "owner")}
    d = msgspec.structs.replace(d, **plain)
    if isinstance(d, HostComputeNetwork) and isinstance(want, HostComputeNetwork):
        asked = {type(x) for x in want.policies}
        ipams = tuple(
            msgspec.structs.replace(
                i, subnets=tuple(msgspec.structs.replace(s, id="", name="", ip_subnets=()) for s in i.subnets)
            )
            for i in d.ipams
        )
        kept = [x for x in d.policies if type(x) in asked or not isinstance(x, OUTPUTS)]
        return msgspec.structs.replace(
            d,
            ipams=ipams,
            mac_pool=want.mac_pool,
            dns=want.dns,
            flags=d.flags | want.flags,
            policies=tuple(sorted(kept, key=repr)),
        )
    if isinstance(d, HostComputeEndpoint) and isinstance(want, HostComputeEndpoint):
        configs = tuple(msgspec.structs.replace(c, ip_subnet_id="") for c in d.ip_configurations)
        if not want.ip_configurations:
            configs = ()  # HNS was left the choice
        mac = normal_mac(d.mac_address) if d.mac_address and want.mac_address else ""
        return msgspec.structs.replace(
            d,
            host_compute_network=normal_guid(d.host_compute_network),
            host_compute_namespace="",
            mac_address=mac,
            routes=d.routes if want.routes else (),
            ip_configurations=configs,
            dns=want.dns if d.dns.server_list == want.dns.server_list else d.dns,
            policies=tuple(sorted(map(_bare, d.policies), key=repr)),
        )
    if isinstance(d, HostComputeLoadBalancer) and isinstance(want, HostComputeLoadBalancer):
        return msgspec.structs.replace(
            d,
            host_compute_network=want.host_compute_network,
            host_compute_endpoints=tuple(sorted(normal_guid(e) for e in d.host_compute_endpoints)),
        )
    return d


def _bare(policy: object) -> object:
    """Without the id HNS gives an ACL."""
    if isinstance(policy, p.Acl):
        return p.Acl(msgspec.structs.replace(policy.settings, id=""))
    return policy
