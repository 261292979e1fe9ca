"""A Windows host's HNS, driven by the same plans as ours: what there is, what differs, and the operations that mend it.

Owns the order and form of the calls, what the host's HNS fills in by itself, and what its version cannot do. It never
touches an object of another owner. Synchronous: callers put it on a thread. Must not decide what there should be; that is
overlay.py's. Source: what flannel, Calico and kube-proxy do (ordering, provider address, fallbacks by version).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping

import msgspec

from overlace.model.errors import NotFound, OverlaceError, Unavailable
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
from overlace.network.hns.errors import HcnError
from overlace.network.hns.plan import Create, ModifyNamespace, Operation, Replace, ReplacePolicies, plan_hns
from overlace.network.hns.versions import HnsVersion, supports
from overlace.network.overlay import OWNER
from overlace.network.windows.library import Hcn

NAMES = {
    "network": "Network",
    "endpoint": "Endpoint",
    "namespace": "Namespace",
    "loadbalancer": "LoadBalancer",
    "sdnroute": "SdnRoute",
}
# what HNS writes into a network by itself
OUTPUTS = (p.DrMacAddress, p.ProviderAddress)
# what a node of this HNS version lacks, as a person reads it
LACKS = {
    "V2Api": "HCN v2 documents: no overlay networks from here",
    "DSR": "direct server return: services answer through the host's source address",
    "SessionAffinity": "session affinity",
    "VxlanPort": "another VXLAN port than 4789",
    "TierAcl": "access tiers",
    "SetPolicy": "address sets",
    "ModifyLoadBalancer": "changing a load balancer in place: its service pauses for the moment between two",
}


class WindowsHost:
    """`documents` holds what is ours, as `refresh` last read it and `apply` changed it since."""

    def __init__(self, hcn: Hcn, owner: str = OWNER) -> None:
        self._hcn = hcn
        self._owner = owner
        self._version: HnsVersion | None = None
        self.documents: dict[Guid, Document] = {}

    @property
    def version(self) -> HnsVersion:
        if self._version is None:
            self._version = self._hcn.version()
        return self._version

    def lacks(self) -> list[str]:
        """Sentences about what this host's HNS cannot do."""
        missing = [words for feature, words in LACKS.items() if not supports(self.version, feature)]
        return [f"HNS {self.version[0]}.{self.version[1]} has no {words}" for words in missing] + [
            "HNS has no IPv6 on overlay networks"
        ]

    # -- reading ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read everything again: after every start, reboot or restart of HNS. Raises OverlaceError."""
        found: dict[Guid, Document] = {}
        for kind in KINDS:
            if kind == "sdnroute":
                continue  # we make none
            for guid in self._hcn.enumerate(NAMES[kind]):
                try:
                    d = self._read(kind, guid)
                except NotFound:
                    continue  # gone meanwhile
                if d is not None and d.owner == self._owner:
                    found[d.id] = d
        self.documents = found

    def _read(self, kind: str, guid: uuid.UUID) -> Document | None:
        with self._hcn.opened(NAMES[kind], guid) as handle:
            text = self._hcn.query(NAMES[kind], handle)
        try:
            d = parse(kind, text)
        except HcnError:
            return None  # of another maker, with something our schema has not: not ours to judge
        return msgspec.structs.replace(d, id=normal_guid(d.id))

    def provider_address(self, network: Guid, pause: Callable[[], None], tries: int = 10) -> str:
        """The underlay address of an overlay network; HNS fills it in a while after create. Raises Unavailable when it
        does not come."""
        for attempt in range(tries):
            if attempt:
                pause()
            d = self._read("network", uuid.UUID(network))
            if isinstance(d, HostComputeNetwork):
                found = p.policy_of(d.policies, p.ProviderAddress)
                if found is not None and found.settings.provider_address:
                    return str(found.settings.provider_address)
        raise Unavailable(
            f"HNS gave network {network} no provider address: is its adapter up, and is no other switch bound to it?"
        )

    # -- writing ---------------------------------------------------------------------------------------------

    def plan(self, desired: Mapping[Guid, Document], ids: Iterable[Guid] | None = None) -> list[Operation]:
        """What turns what is there into `desired`; what HNS filled in is no difference."""
        actual = {
            guid: settled(d, desired[guid]) if guid in desired else d for guid, d in self.documents.items()
        }
        return plan_hns(actual, desired, ids)

    def apply(self, operations: Iterable[Operation]) -> list[tuple[Operation, OverlaceError]]:
        """Run a plan; what is refused comes back and does not stop the rest."""
        refused: list[tuple[Operation, OverlaceError]] = []
        for op in operations:
            try:
                self._run(op)
            except OverlaceError as e:
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
                self._modify("namespace", op.namespace, encode(op.request).decode())
                self._note("namespace", op.namespace)
                self._note("endpoint", normal_guid(op.request.settings.endpoint_id))
            case _:
                self._delete(op.kind, op.id)

    def _create(self, d: Document) -> None:
        network = ""
        if isinstance(d, HostComputeEndpoint):
            network = d.host_compute_network
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

    def _replace(self, d: HostComputeLoadBalancer) -> None:
        """In place where HNS can, else gone and back under the same id, as hcsshim does."""
        if supports(self.version, "ModifyLoadBalancer") and self._hcn.library.has("HcnModifyLoadBalancer"):
            self._modify("loadbalancer", d.id, encode(d).decode())
            self._note("loadbalancer", d.id)
            return
        self._delete("loadbalancer", d.id)
        self._create(d)

    def _policies(self, d: HostComputeEndpoint | HostComputeNetwork) -> None:
        """Exchange what differs: first what goes, then what comes."""
        held = self.documents.get(d.id)
        have: list[object] = list(getattr(held, "policies", ()))
        want: list[object] = list(d.policies)
        gone = [
            x
            for x in have
            if x not in want and not (isinstance(x, OUTPUTS) and isinstance(d, HostComputeNetwork))
        ]
        new = [x for x in want if x not in have]
        for request, policies in (("Remove", gone), ("Add", new)):
            if policies:
                settings = msgspec.convert({"Policies": msgspec.to_builtins(policies)}, PolicySettings)
                body = ModifyPolicies(
                    request_type="Remove" if request == "Remove" else "Add", settings=settings
                )
                self._modify(d.kind, d.id, encode(body).decode())
                self._note(d.kind, d.id)

    def _modify(self, kind: str, guid: Guid, text: str) -> None:
        with self._hcn.opened(NAMES[kind], uuid.UUID(guid)) as handle:
            self._hcn.modify(NAMES[kind], handle, text)

    def _delete(self, kind: str, guid: Guid) -> None:
        try:
            self._hcn.delete(NAMES[kind], uuid.UUID(guid))
        except NotFound:
            pass  # gone already is what was asked
        self.documents.pop(guid, None)

    def _note(self, kind: str, guid: Guid) -> None:
        """Hold an object as HNS has it now."""
        try:
            d = self._read(kind, uuid.UUID(guid))
        except NotFound:
            d = None
        if d is not None:
            self.documents[guid] = d
        else:
            self.documents.pop(guid, None)


def settled(have: Document, want: Document) -> Document:
    """`want` itself when `have` is it, apart from spelling and from what HNS fills in; else `have`."""
    return want if _told(have, want) == _told(want, want) else have


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
            flags=d.flags | want.flags,
            policies=tuple(sorted(kept, key=repr)),
        )
    if isinstance(d, HostComputeEndpoint) and isinstance(want, HostComputeEndpoint):
        configs = tuple(msgspec.structs.replace(c, ip_subnet_id="") for c in d.ip_configurations)
        mac = normal_mac(d.mac_address) if d.mac_address and want.mac_address else ""
        return msgspec.structs.replace(
            d,
            host_compute_network=normal_guid(d.host_compute_network),
            host_compute_namespace="",
            mac_address=mac,
            routes=d.routes if want.routes else (),
            ip_configurations=configs,
            policies=tuple(sorted(d.policies, key=repr)),
        )
    if isinstance(d, HostComputeLoadBalancer) and isinstance(want, HostComputeLoadBalancer):
        return msgspec.structs.replace(
            d,
            host_compute_network=want.host_compute_network,
            host_compute_endpoints=tuple(sorted(normal_guid(e) for e in d.host_compute_endpoints)),
        )
    return d
