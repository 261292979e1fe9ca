"""The Host Networking Service of a Linux (or emulated Windows) host: documents in, documents out, kept on
disk.

Owns the verbs, the outputs HNS fills in and persistence. In process, synchronous. Must not touch the kernel:
the VFP compiler reads what changed (`drain`). Semantics: shared HCN v2 reference; what Windows would refuse
is refused here.

On disk: `hns.journal`, one JSON line per change, rewritten whole when it has grown well past what lives. A
torn last line (crash while writing) is dropped: the next pass plans that change again. No fsync: after a
power loss the kernel state these documents describe is gone as well.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from overlace.model.netview import container_mac
from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    KINDS,
    D,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    Modify,
    ModifyNamespaceEndpoint,
    NamespaceResource,
    ResourceData,
    encode,
    normal_guid,
    normal_mac,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.plan import (
    Create,
    ModifyNamespace,
    Operation,
    Replace,
    ReplacePolicies,
)
from overlace.network.hns.state import State
from overlace.network.hns.validate import (
    check_attach,
    check_endpoint,
    check_load_balancer,
    check_namespace,
    check_network,
)

JOURNAL = "hns.journal"


class HnsService:
    """One host's HNS. `strict_windows` refuses what only our own data path can do (emulated Windows
    hosts)."""

    def __init__(self, state_dir: Path | None = None, *, strict_windows: bool = False) -> None:
        self._state = State()
        self._dir = state_dir
        self._strict = strict_windows
        self._changed: dict[Guid, None] = {}
        self._pending: list[bytes] = []
        self._depth = 0
        self._lines = 0
        if state_dir is not None:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._load()

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
            facts = {"name": d.name.lower(), "id": d.id.lower()}
            network = getattr(d, "host_compute_network", None)
            if network is not None:
                facts["virtualnetwork"] = facts["hostcomputenetwork"] = network.lower()
            if all(facts.get(k) == v.lower() for k, v in wanted.items()):
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
        changed, self._changed = list(self._changed), {}
        return changed

    # -- writing ---------------------------------------------------------------------------------------------

    def create(self, document: Document) -> Document:
        """Create; returns the document as HNS holds it. Raises HcnError."""
        guid = normal_guid(document.id) if document.id else str(uuid.uuid4()).upper()
        if guid in self._state.documents:
            raise HcnError(Code.ALREADY_EXISTS, f"ID {guid}")
        return self._store(msgspec.structs.replace(document, id=guid))

    def _store(self, d: Document) -> Document:
        """Check, fill in HNS's outputs, keep."""
        checked: Document
        if isinstance(d, HostComputeNetwork):
            checked = self._with_router_mac(check_network(d, self._state))
        elif isinstance(d, HostComputeEndpoint):
            checked = check_endpoint(d, self._state)
            if not checked.mac_address and checked.address:
                mac = normal_mac(container_mac(checked.address))
                checked = msgspec.structs.replace(checked, mac_address=mac)
        elif isinstance(d, HostComputeLoadBalancer):
            checked = check_load_balancer(d, self._state, allow_empty=not self._strict)
        else:
            checked = check_namespace(d, self._state)
        self._put(checked)
        if isinstance(checked, HostComputeNamespace):
            for endpoint in checked.endpoints:
                self._set_namespace(endpoint, checked.id)
        return checked

    @staticmethod
    def _with_router_mac(d: HostComputeNetwork) -> HostComputeNetwork:
        """HNS makes the distributed router's MAC; ours follows the gateway so that it is the same after a
        restart."""
        if d.type != "Overlay" or p.policy_of(d.policies, p.DrMacAddress) is not None:
            return d
        gateway = next(r.next_hop for s in d.subnets for r in s.routes)
        mac = p.DrMacAddress(p.DrMacAddressSettings(normal_mac(container_mac(gateway))))
        return msgspec.structs.replace(d, policies=(*d.policies, mac))

    def update_load_balancer(self, document: HostComputeLoadBalancer) -> HostComputeLoadBalancer:
        """HcnModifyLoadBalancer: the full document, no envelope. Raises HcnError."""
        self.get(HostComputeLoadBalancer, document.id)
        stored = self._store(msgspec.structs.replace(document, id=normal_guid(document.id)))
        assert isinstance(stored, HostComputeLoadBalancer)
        return stored

    def modify(self, kind: type[D], guid: str, request: Modify) -> None:
        """HcnModifyNetwork / Endpoint / Namespace. Raises HcnError."""
        d = self.get(kind, guid)
        if isinstance(request, ModifyNamespaceEndpoint):
            if not isinstance(d, HostComputeNamespace):
                raise HcnError(Code.REQUEST_UNSUPPORTED, f"ResourceType Endpoint on a {kind.kind}")
            self._modify_namespace(d, request)
            return
        if not isinstance(d, (HostComputeNetwork, HostComputeEndpoint)):
            raise HcnError(Code.REQUEST_UNSUPPORTED, f"ResourceType Policy on a {kind.kind}")
        have: tuple[Any, ...] = d.policies
        asked: tuple[Any, ...] = request.settings.policies
        if request.request_type == "Add":
            have = (*have, *asked)
        elif request.request_type == "Remove":
            normal = [_normal_policy(x) for x in asked]
            for policy in normal:
                if policy not in have:
                    raise HcnError(Code.POLICY_NOT_FOUND, f"{type(policy).__name__}")
            have = tuple(x for x in have if x not in normal)
        else:
            kinds: set[type[Any]] = {type(x) for x in asked}
            have = (*(x for x in have if type(x) not in kinds), *asked)
        self._store(msgspec.structs.replace(d, policies=have))

    def _modify_namespace(self, d: HostComputeNamespace, request: ModifyNamespaceEndpoint) -> None:
        endpoint = normal_guid(request.settings.endpoint_id, "EndpointId")
        if request.request_type == "Add":
            check_attach(endpoint, d.id, self._state)
            if endpoint in d.endpoints:
                return
            resource = NamespaceResource("Endpoint", ResourceData(endpoint))
            self._put(msgspec.structs.replace(d, resources=(*d.resources, resource)))
            self._set_namespace(endpoint, d.id)
        elif request.request_type == "Remove":
            if endpoint not in d.endpoints:
                raise HcnError(Code.ENDPOINT_NOT_FOUND, f"EndpointId {endpoint} is not in namespace {d.id}")
            kept = tuple(r for r in d.resources if r.data.id != endpoint)
            self._put(msgspec.structs.replace(d, resources=kept))
            self._set_namespace(endpoint, "")
        else:
            raise HcnError(Code.REQUEST_UNSUPPORTED, f"RequestType {request.request_type}")

    def _set_namespace(self, endpoint: Guid, namespace: Guid) -> None:
        d = self._state.get(endpoint, HostComputeEndpoint)
        if d is not None and d.host_compute_namespace != namespace:
            self._put(msgspec.structs.replace(d, host_compute_namespace=namespace))

    def delete(self, kind: type[D], guid: str) -> None:
        """Raises HcnError: 0x80070490 unknown, 0x803b002c still referred to."""
        d = self.get(kind, guid)
        if isinstance(d, HostComputeNetwork):
            holders = self._state.endpoints_of.get(d.id) or self._state.network_balancers.get(d.id)
            if holders:
                raise HcnError(
                    Code.ENTITY_HAS_REFERENCES,
                    f"network {d.name} is used by {', '.join(sorted(holders)[:3])}",
                )
        elif isinstance(d, HostComputeEndpoint):
            holders = self._state.balancers_of.get(d.id)
            if holders:
                raise HcnError(
                    Code.ENTITY_HAS_REFERENCES, f"endpoint {d.name} is in load balancer {min(holders)}"
                )
            namespace = self._state.namespace_of(d.id)
            if namespace is not None:
                kept = tuple(r for r in namespace.resources if r.data.id != d.id)
                self._put(msgspec.structs.replace(namespace, resources=kept))
        elif isinstance(d, HostComputeNamespace):
            for endpoint in d.endpoints:
                self._set_namespace(endpoint, "")
        self._state.remove(d.id)
        self._note(d.id, b'{"del":"%s"}' % d.id.encode())

    def apply(self, operations: Iterable[Operation]) -> list[tuple[Operation, HcnError]]:
        """Run a plan as one journal write; what is refused comes back and does not stop the rest."""
        refused: list[tuple[Operation, HcnError]] = []
        with self._batch():
            for op in operations:
                try:
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

    # -- keeping ---------------------------------------------------------------------------------------------

    def _put(self, d: Document) -> None:
        if self._state.documents.get(d.id) == d:
            return
        self._state.put(d)
        self._note(d.id, b'{"kind":"%s","put":%s}' % (d.kind.encode(), encode(d)))

    def _note(self, guid: Guid, line: bytes) -> None:
        self._changed[guid] = None
        if self._dir is None:
            return
        self._pending.append(line)
        if self._depth == 0:
            self._flush()

    @contextmanager
    def _batch(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._flush()

    def _flush(self) -> None:
        if self._dir is None or not self._pending:
            return
        pending, self._pending = self._pending, []
        self._lines += len(pending)
        if self._lines > 1000 + 4 * len(self._state.documents):
            self._rewrite()
            return
        with open(self._dir / JOURNAL, "ab") as f:
            f.write(b"\n".join(pending) + b"\n")

    def _rewrite(self) -> None:
        assert self._dir is not None
        lines = [
            b'{"kind":"%s","put":%s}' % (d.kind.encode(), encode(d)) for d in self._state.documents.values()
        ]
        temporary = self._dir / (JOURNAL + ".new")
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(temporary, self._dir / JOURNAL)
        self._lines = len(lines)

    def _load(self) -> None:
        assert self._dir is not None
        path = self._dir / JOURNAL
        data = path.read_bytes() if path.exists() else b""
        lines = data.split(b"\n")
        torn = lines.pop() != b""
        for line in lines:
            try:
                record = msgspec.json.decode(line)
                if "del" in record:
                    self._state.remove(record["del"])
                else:
                    self._state.put(msgspec.convert(record["put"], KINDS[record["kind"]]))
            except (msgspec.MsgspecError, KeyError, TypeError):
                torn = True  # a damaged line: the next pass plans what it held
        self._lines = len(lines)
        if torn or self._lines > 1000 + 4 * len(self._state.documents):
            self._rewrite()
        self._changed = dict.fromkeys(self._state.documents)


def _normal_policy(policy: Any) -> Any:
    """MACs as HNS spells them, so that Remove matches what Add stored."""
    if isinstance(policy, p.RemoteSubnetRoute):
        s = policy.settings
        mac = normal_mac(s.distributed_router_mac_address)
        return p.RemoteSubnetRoute(msgspec.structs.replace(s, distributed_router_mac_address=mac))
    return policy
