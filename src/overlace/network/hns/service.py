"""The Host Networking Service of a Linux (or emulated Windows) host: documents in, documents out, kept on
disk.

Owns the verbs, the order of checking and filling in, what changed and what happened. In process, synchronous.
Must not touch the kernel: the VFP compiler reads what changed (`drain`). Semantics: shared HCN v2 reference; what
Windows would refuse is refused here. Each verb does all or nothing, on disk as well (ledger.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from overlace.network.hns.check_services import (
    check_attach,
    check_default,
    check_load_balancer,
    check_namespace,
    check_route,
)
from overlace.network.hns.documents import (
    KINDS,
    D,
    Document,
    EndpointResourceSettings,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeRoute,
    Modify,
    ModifyNamespaceContainer,
    ModifyNamespaceEndpoint,
    NamespaceResource,
    ResourceData,
    encode,
    normal_guid,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.events import Event, Notification
from overlace.network.hns.fill import (
    fill_endpoint,
    fill_namespace,
    fill_network,
    fill_provider,
    fill_router_mac,
    fill_routes,
)
from overlace.network.hns.ledger import Changes, Ledger
from overlace.network.hns.modify import plan_modify
from overlace.network.hns.plan import (
    Create,
    ModifyNamespace,
    Operation,
    Replace,
    ReplacePolicies,
)
from overlace.network.hns.state import State
from overlace.network.hns.validate import check_endpoint, check_inside, check_network
from overlace.network.hns.versions import LATEST, HnsVersion, check_modify_balancer, check_version

COUNTERS = (
    "BytesReceived",
    "BytesSent",
    "DroppedPacketsIncoming",
    "DroppedPacketsOutgoing",
    "PacketsReceived",
    "PacketsSent",
)


class HostFacts(msgspec.Struct, frozen=True):
    """What a host's HNS knows of its host, for clients other than our driver: it fills in more then, and holds
    to more of Windows' rules. `check`: what this host's data path cannot do, refused (raises HcnError); `stats`:
    counters of an endpoint's port, by hcsshim's names."""

    provider_address: str = ""
    version: HnsVersion = LATEST
    check: Callable[[Document, State], None] | None = None
    stats: Callable[[Guid], dict[str, int]] | None = None


NO_GUID = "00000000-0000-0000-0000-000000000000"


class HnsService:
    """One host's HNS. `strict_windows` refuses what only our own data path can do (emulated Windows
    hosts)."""

    def __init__(
        self, state_dir: Path | None = None, *, strict_windows: bool = False, facts: HostFacts | None = None
    ) -> None:
        self._ledger = Ledger(state_dir, facts.provider_address if facts is not None else "")
        self._state = self._ledger.state
        self._ours = not strict_windows and facts is None
        self._facts = facts

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def documents(self) -> Mapping[Guid, Document]:
        return self._state.documents

    def get(self, kind: type[D], guid: str) -> D:
        """Open + query. Raises HcnError 0x80070490 for an unknown id."""
        found = self._state.get(normal_guid(guid), kind)
        if found is None:
            raise HcnError(Code.NOT_FOUND, f"{kind.kind} {guid}")
        return found

    def query(self, kind: type[D], guid: str) -> bytes:
        """The document as HNS writes it: JSON. Raises HcnError 0x80070490 for an unknown id."""
        return encode(self.get(kind, guid))

    def enumerate(self, kind: type[D], filter: Mapping[str, str] | None = None) -> list[Guid]:
        """GUIDs of that kind; filter keys as clients send them: Name, ID, VirtualNetwork /
        HostComputeNetwork."""
        wanted = {k.lower(): v for k, v in (filter or {}).items()}
        out = []
        for d in self._state.documents.values():
            if not isinstance(d, kind):
                continue
            known = {"name": d.name.lower(), "id": d.id.lower()}
            network = getattr(d, "host_compute_network", None)
            if network is not None:
                known["virtualnetwork"] = known["hostcomputenetwork"] = network.lower()
            if all(known.get(k) == v.lower() for k, v in wanted.items()):
                out.append(d.id)
        return out

    def balancers_of(self, endpoint: Guid) -> Iterable[Guid]:
        return tuple(self._state.balancers_of.get(endpoint, ()))

    @property
    def state(self) -> State:
        """Read-only use by the VFP compiler."""
        return self._state

    def drain(self) -> list[Guid]:
        """GUIDs created, modified or deleted since the last call."""
        return self._ledger.drain()

    @property
    def changed(self) -> bool:
        """Whether `drain` has something."""
        return self._ledger.changed

    def take_events(self) -> list[Event]:
        """What happened since the last call; only kept for a host with facts."""
        return self._ledger.take_events()

    @property
    def version(self) -> HnsVersion:
        return self._facts.version if self._facts is not None else LATEST

    def stats(self, endpoint: Guid) -> dict[str, object]:
        """Counters of an endpoint; all zero where nothing carries packets."""
        found = self._facts.stats(endpoint) if self._facts is not None and self._facts.stats else {}
        return {"EndpointId": endpoint, "InstanceId": endpoint} | {k: found.get(k, 0) for k in COUNTERS}

    @property
    def version_number(self) -> int:
        """HNS's version as documents write it."""
        return self.version[0] << 32 | self.version[1]

    def recording(self) -> AbstractContextManager[Changes]:
        """What the verbs inside change, for `restore`; kept on disk as one write at the end."""
        return self._ledger.recording()

    def restore(self, changes: Changes) -> None:
        """Take back what `recording` gave, inside it."""
        self._ledger.restore(changes)

    # -- writing ---------------------------------------------------------------------------------------------

    def create(self, document: Document) -> Document:
        """Create; returns the document as HNS holds it. Raises HcnError."""
        guid = normal_guid(document.id) if document.id else str(uuid.uuid4()).upper()
        if guid in self._state.documents:
            raise HcnError(Code.ALREADY_EXISTS, f"ID {guid}")
        wanted = ""
        if isinstance(document, HostComputeEndpoint) and document.host_compute_namespace:
            wanted = normal_guid(document.host_compute_namespace, "HostComputeNamespace")
            document = msgspec.structs.replace(document, host_compute_namespace="")
        with self._ledger.batch():
            made = self._store(msgspec.structs.replace(document, id=guid), new=True, whole=True)
            if wanted and wanted != NO_GUID:
                settings = EndpointResourceSettings(guid)
                join = ModifyNamespaceEndpoint(request_type="Add", settings=settings)
                self.modify(HostComputeNamespace, wanted, join)
                made = self._state.documents[guid]
            if isinstance(made, HostComputeNetwork):
                self._happened(Notification.NETWORK_PRE_CREATE, guid, guid)
                self._happened(Notification.NETWORK_CREATE, guid, guid)
            elif isinstance(made, HostComputeNamespace):
                self._happened(Notification.NAMESPACE_CREATE, guid)
                for endpoint in made.endpoints:
                    self._attached(endpoint, made, Notification.ENDPOINT_ATTACHED)
        return made

    def _store(self, d: Document, *, new: bool = False, whole: bool = False) -> Document:
        """Check, fill in HNS's outputs, keep. `whole`: as a client wrote it, not what HNS holds with a change."""
        facts = self._facts
        checked: Document
        if isinstance(d, HostComputeNetwork):
            if facts is not None:
                d = fill_network(d, self._state, facts.provider_address)
                holder = self._state.by_network_name.get(d.name.lower())
                if holder is not None and holder != d.id:
                    raise HcnError(Code.NETWORK_ALREADY_EXISTS, f"Name {d.name}: it is {holder}")
            checked = fill_router_mac(check_network(d, self._state, overlay_six=self._ours))
        elif isinstance(d, HostComputeEndpoint):
            network = self._state.get(
                normal_guid(d.host_compute_network, "HostComputeNetwork"), HostComputeNetwork
            )
            if network is not None:
                d = fill_endpoint(d, network, self._state)
                if whole:
                    d = fill_provider(d, network)
                if facts is not None and new:
                    d = fill_routes(d, network)
            checked = check_endpoint(d, self._state, overlay_six=self._ours)
        elif isinstance(d, HostComputeLoadBalancer):
            checked = check_load_balancer(d, self._state, ours=self._ours)
        elif isinstance(d, HostComputeRoute):
            checked = check_route(d, self._state)
        else:
            checked = check_namespace(d, self._state)
            if facts is not None:
                checked = fill_namespace(checked, self._state)
                check_default(checked, self._state)
        if facts is not None:
            check_version(checked, facts.version)
            if facts.check is not None:
                facts.check(checked, self._state)
        self._ledger.put(checked)
        if isinstance(checked, HostComputeNamespace):
            for endpoint in checked.endpoints:
                self._set_namespace(endpoint, checked.id)
        return checked

    def replace(self, document: Document) -> Document:
        """The whole document anew, under its old id (v1's POST on an id; SDN routes). Raises HcnError."""
        old = self.get(KINDS[document.kind], document.id)  # type: ignore[type-var]
        d = msgspec.structs.replace(document, id=old.id)
        if isinstance(d, HostComputeEndpoint) and isinstance(old, HostComputeEndpoint):
            if normal_guid(d.host_compute_network, "HostComputeNetwork") != old.host_compute_network:
                raise HcnError(
                    Code.INVALID_ENDPOINT,
                    f"HostComputeNetwork {d.host_compute_network}: an endpoint stays on its network, which is "
                    f"{old.host_compute_network}",
                )
            d = msgspec.structs.replace(d, host_compute_namespace=old.host_compute_namespace)
        if isinstance(d, HostComputeNetwork) and isinstance(old, HostComputeNetwork) and d.type != old.type:
            raise HcnError(
                Code.INVALID_NETWORK_TYPE,
                f"Type {d.type}: network {old.name} is {old.type} and stays so; write that",
            )
        with self._ledger.batch():
            self._check_in_use(old, d)
            return self._store(d, whole=True)

    def update_load_balancer(self, document: HostComputeLoadBalancer) -> HostComputeLoadBalancer:
        """HcnModifyLoadBalancer: the full document, no envelope. Raises HcnError."""
        self.get(HostComputeLoadBalancer, document.id)
        check_modify_balancer(self.version)
        with self._ledger.batch():
            stored = self._store(msgspec.structs.replace(document, id=normal_guid(document.id)))
        assert isinstance(stored, HostComputeLoadBalancer)
        return stored

    def modify(self, kind: type[D], guid: str, request: Modify) -> None:
        """HcnModifyNetwork / Endpoint / Namespace. Raises HcnError."""
        d = self.get(kind, guid)
        with self._ledger.batch():
            if isinstance(d, HostComputeNamespace):
                if isinstance(request, ModifyNamespaceEndpoint):
                    self._modify_namespace(d, request)
                    return
                if isinstance(request, ModifyNamespaceContainer):
                    self._modify_containers(d, request)
                    return
            planned = plan_modify(d, request)
            self._check_in_use(d, planned)
            self._store(planned)
            if request.request_type == "Refresh":
                self._ledger.touch(d.id)

    def _check_in_use(self, old: Document, new: Document) -> None:
        """A subnet goes only when nothing has an address in it."""
        if not isinstance(old, HostComputeNetwork) or not isinstance(new, HostComputeNetwork):
            return
        kept = {s.ip_address_prefix for s in new.subnets}
        if all(s.ip_address_prefix in kept for s in old.subnets):
            return
        for guid in self._state.endpoints_of.get(old.id, ()):
            endpoint = self._state.get(guid, HostComputeEndpoint)
            if endpoint is None:
                continue
            try:
                check_inside(endpoint, new)
            except HcnError:
                raise HcnError(
                    Code.ENTITY_HAS_REFERENCES,
                    f"Subnets: endpoint {guid} has address {endpoint.address} there",
                ) from None

    def _modify_namespace(self, d: HostComputeNamespace, request: ModifyNamespaceEndpoint) -> None:
        endpoint = normal_guid(request.settings.endpoint_id, "EndpointId")
        if request.request_type == "Add":
            check_attach(endpoint, d.id, self._state)
            if endpoint in d.endpoints:
                return
            resource = NamespaceResource("Endpoint", ResourceData(endpoint))
            self._ledger.put(msgspec.structs.replace(d, resources=(*d.resources, resource)))
            self._set_namespace(endpoint, d.id)
            self._attached(endpoint, d, Notification.ENDPOINT_ATTACHED)
        elif request.request_type == "Remove":
            if endpoint not in d.endpoints:
                raise HcnError(Code.ENDPOINT_NOT_FOUND, f"EndpointId {endpoint} is not in namespace {d.id}")
            kept = tuple(r for r in d.resources if r.data.id != endpoint)
            self._ledger.put(msgspec.structs.replace(d, resources=kept))
            self._set_namespace(endpoint, "")
            self._attached(endpoint, d, Notification.ENDPOINT_DETACHED)
        else:
            raise HcnError(Code.REQUEST_UNSUPPORTED, f"RequestType {request.request_type}")

    def _modify_containers(self, d: HostComputeNamespace, request: ModifyNamespaceContainer) -> None:
        resource = NamespaceResource("Container", ResourceData(request.settings.container_id))
        if not resource.data.id:
            raise HcnError(Code.BAD_PARAMETER, "Settings.ContainerId is empty: name the container")
        if request.request_type == "Add":
            if resource in d.resources:
                return
            self._store(msgspec.structs.replace(d, resources=(*d.resources, resource)))
        elif request.request_type == "Remove":
            if resource not in d.resources:
                raise HcnError(Code.NOT_FOUND, f"ContainerId {resource.data.id}")
            self._store(msgspec.structs.replace(d, resources=tuple(r for r in d.resources if r != resource)))
        else:
            raise HcnError(Code.REQUEST_UNSUPPORTED, f"RequestType {request.request_type}")

    def _set_namespace(self, endpoint: Guid, namespace: Guid) -> None:
        d = self._state.get(endpoint, HostComputeEndpoint)
        if d is not None and d.host_compute_namespace != namespace:
            self._ledger.put(msgspec.structs.replace(d, host_compute_namespace=namespace))

    def _attached(self, endpoint: Guid, namespace: HostComputeNamespace, what: Notification) -> None:
        d = self._state.get(endpoint, HostComputeEndpoint)
        network = d.host_compute_network if d is not None else ""
        self._happened(what, endpoint, network, {"HostComputeNamespace": namespace.id})

    def _happened(self, what: Notification, guid: Guid, network: Guid = "", data: object = None) -> None:
        if self._facts is not None:
            self._ledger.tell(Event(what, guid, network, data))

    def delete(self, kind: type[D], guid: str) -> None:
        """Raises HcnError: 0x80070490 unknown, 0x803b002c still referred to."""
        d = self.get(kind, guid)
        with self._ledger.batch():
            if isinstance(d, HostComputeNetwork):
                holders = self._state.endpoints_of.get(d.id) or self._state.network_balancers.get(d.id)
                if holders:
                    raise HcnError(
                        Code.ENTITY_HAS_REFERENCES,
                        f"network {d.name or d.id} is used by {', '.join(sorted(holders)[:3])}: delete those first",
                    )
                self._happened(Notification.NETWORK_PRE_DELETE, d.id, d.id)
                self._happened(Notification.NETWORK_DELETE, d.id, d.id)
            elif isinstance(d, HostComputeEndpoint):
                self._check_unused(d)
                namespace = self._state.namespace_of(d.id)
                if namespace is not None:
                    kept = tuple(r for r in namespace.resources if r.data.id != d.id)
                    self._ledger.put(msgspec.structs.replace(namespace, resources=kept))
                    self._attached(d.id, namespace, Notification.ENDPOINT_DETACHED)
            elif isinstance(d, HostComputeNamespace):
                for endpoint in d.endpoints:
                    self._set_namespace(endpoint, "")
                    self._attached(endpoint, d, Notification.ENDPOINT_DETACHED)
                self._happened(Notification.NAMESPACE_DELETE, d.id)
            self._ledger.delete(d)

    def _check_unused(self, d: HostComputeEndpoint) -> None:
        holders = self._state.balancers_of.get(d.id)
        if holders:
            raise HcnError(
                Code.ENTITY_HAS_REFERENCES,
                f"endpoint {d.name or d.id} is in load balancer {min(holders)}: take it out there first",
            )
        holders = self._state.routes_of.get(d.id)
        if holders:
            raise HcnError(
                Code.ENTITY_HAS_REFERENCES,
                f"endpoint {d.name or d.id} is in SDN route {min(holders)}: take it out there first",
            )

    def apply(self, operations: Iterable[Operation]) -> list[tuple[Operation, HcnError]]:
        """Run a plan as one journal write; what is refused comes back and does not stop the rest."""
        refused: list[tuple[Operation, HcnError]] = []
        with self._ledger.batch():
            for op in operations:
                try:
                    with self._ledger.batch():
                        self._run(op)
                except HcnError as e:
                    refused.append((op, e))
        return refused

    def _run(self, op: Operation) -> None:
        if isinstance(op, Create):
            self.create(op.document)
        elif isinstance(op, Replace):
            self.update_load_balancer(op.document)
        elif isinstance(op, ReplacePolicies):
            d = op.document
            if isinstance(d, HostComputeEndpoint):
                namespace = self.get(HostComputeEndpoint, d.id).host_compute_namespace
                self._store(msgspec.structs.replace(d, host_compute_namespace=namespace))
            else:
                self._store(d)
        elif isinstance(op, ModifyNamespace):
            self.modify(HostComputeNamespace, op.namespace, op.request)
        else:
            try:
                self.delete(KINDS[op.kind], op.id)  # type: ignore[type-var]
            except HcnError as e:
                if e.code is not Code.NOT_FOUND:  # gone already is what was asked
                    raise
