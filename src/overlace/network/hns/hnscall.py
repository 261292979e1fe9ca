"""HNSCall, the v1 way in: METHOD PATH and a body to `{"Success", "Error", "Output"}`.

Owns the paths. What objects mean is the service's, their v1 form v1.py's. An unknown id has the words clients
compare: moby for networks and endpoints, hcsshim for namespaces. Source: hcsshim's internal/hns, hns.psm1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from overlace.network.hns.documents import (
    KINDS,
    ContainerResourceSettings,
    Document,
    EndpointResourceSettings,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeQuery,
    ModifyNamespaceContainer,
    ModifyNamespaceEndpoint,
    NamespaceResource,
    ResourceData,
    Version,
    convert,
    normal_guid,
    read_object,
)
from overlace.network.hns.errors import TEXTS, Code, HcnError
from overlace.network.hns.queries import present
from overlace.network.hns.service import HnsService
from overlace.network.hns.v1 import from_v1, resource
from overlace.network.hns.v1_documents import V1Attach, V1Resource, is_v1
from overlace.network.hns.v1_update import carry_over

ROOMS = {
    "networks": "network",
    "endpoints": "endpoint",
    "policylists": "loadbalancer",
    "namespaces": "namespace",
}
OWNER = "HNSCall"  # of namespaces that attach made
_V1 = HostComputeQuery(schema_version=Version(1, 0))
Answer = Callable[[], Any]


def hns_call(service: HnsService, text: str) -> str:
    """Answer `METHOD PATH\\nBODY`. Refusals are in the answer, as HNS has them; raises HcnError for a first line
    that is none."""
    head, _, body = text.partition("\n")
    method, _, path = head.strip().partition(" ")
    if not method or not path.startswith("/"):
        raise HcnError(Code.BAD_PARAMETER, f"{head!r}: write METHOD /PATH, a line end and the body")
    try:
        output = _answer(service, method.upper(), path, body)
    except HcnError as e:
        record = e.record()
        return msgspec.json.encode(
            {"Success": False, "Error": record["Error"], "ErrorCode": int(e.code)}
        ).decode()
    answer: dict[str, Any] = {"Success": True}
    if output is not None:
        answer["Output"] = output
    return msgspec.json.encode(answer).decode()


def _answer(service: HnsService, method: str, path: str, body: str) -> Any:
    plain = path.partition("?")[0]  # ?detailed: our answers are
    room, *rest = [part for part in plain.strip("/").lower().split("/") if part] or [""]
    guid, verb = [*rest, "", ""][:2]
    if room in ROOMS and len(rest) <= 2:
        return _object(service, method, ROOMS[room], guid, verb, body)
    if method != "GET":
        raise _unsupported(method, path)
    if room == "globals" and guid == "version":
        return {"Major": service.version[0], "Minor": service.version[1]}
    if room == "endpointaddresses" and guid:
        d = _get(service, "endpoint", guid)
        assert isinstance(d, HostComputeEndpoint)
        return [{"IPAddress": c.ip_address, "PrefixLength": c.prefix_length} for c in d.ip_configurations]
    if room == "endpointstats" and guid:
        return service.stats(_get(service, "endpoint", guid).id)
    if room == "portpools":
        return [
            {"Protocol": protocol, "Port": port, "Owner": owner} | ({"VIP": address} if address else {})
            for (address, protocol, port), owner in sorted(service.state.by_outer.items())
        ]
    if room in ("activities", "plugins"):
        return []  # no activity outlives its call here, and there are no plugins
    raise _unsupported(method, path)


def _unsupported(method: str, path: str) -> HcnError:
    return HcnError(Code.REQUEST_UNSUPPORTED, f"{method} {path}")


def _object(service: HnsService, method: str, kind: str, guid: str, verb: str, body: str) -> Any:
    if verb:
        if method != "POST":
            raise _unsupported(method, f".../{verb}")
        return _verb(service, kind, guid, verb, body)
    if method == "GET":
        if guid:
            return _shown(_get(service, kind, guid), service)
        return [_shown(d, service) for d in service.documents.values() if d.kind == kind]
    if method == "POST":
        return _post(service, kind, guid, body)
    if method == "DELETE" and guid:
        service.delete(KINDS[kind], _get(service, kind, guid).id)  # type: ignore[type-var]
        return None
    raise _unsupported(method, f"/{kind}")


def _get(service: HnsService, kind: str, guid: str) -> Document:
    wanted = normal_guid(guid)
    d = service.documents.get(wanted)
    if d is None or d.kind != kind:
        code = Code.NOT_FOUND if kind == "namespace" else Code.OBJECT_NOT_FOUND
        raise HcnError(code, f"{kind} {wanted}: {TEXTS[code]}")
    return d


def _shown(d: Document, service: HnsService) -> dict[str, Any]:
    return present(d, service, _V1)


def _post(service: HnsService, kind: str, guid: str, body: str) -> Any:
    raw = read_object(body)
    second = kind == "network" and not is_v1(kind, raw) and "Ipams" in raw
    d: Document = convert(raw, KINDS[kind]) if second else from_v1(kind, raw, service.state)
    if not guid:
        return _shown(service.create(d), service)
    old = _get(service, kind, guid)
    if not second:
        d = carry_over(old, d)
    elif not d.name:
        d = msgspec.structs.replace(d, name=old.name)
    return _shown(service.replace(msgspec.structs.replace(d, id=old.id)), service)


def _verb(service: HnsService, kind: str, guid: str, verb: str, body: str) -> Any:
    d = _get(service, kind, guid)
    raw = read_object(body) if body.strip() else {}
    if isinstance(d, HostComputeEndpoint) and verb in ("attach", "detach"):
        request = convert(raw, V1Attach)
        if request.system_type == "VirtualMachine":
            raise HcnError(Code.REQUEST_UNSUPPORTED, "SystemType VirtualMachine: this host has none")
        with service.recording():
            (_attach if verb == "attach" else _detach)(service, d, request)
        return _shown(_get(service, kind, guid), service)
    if isinstance(d, HostComputeNamespace) and verb in ("addresource", "removeresource"):
        _resource(service, d, convert(raw, V1Resource), "Add" if verb == "addresource" else "Remove")
        return _shown(_get(service, kind, guid), service)
    raise _unsupported("POST", f"/{kind}s/ID/{verb}")


def _resource(service: HnsService, d: HostComputeNamespace, r: V1Resource, request: str) -> None:
    wanted = resource(r)
    kind: Any = "Add" if request == "Add" else "Remove"
    if wanted.type == "Endpoint":
        settings = EndpointResourceSettings(wanted.data.id)
        service.modify(
            HostComputeNamespace, d.id, ModifyNamespaceEndpoint(request_type=kind, settings=settings)
        )
    else:
        container = ContainerResourceSettings(wanted.data.id)
        service.modify(
            HostComputeNamespace, d.id, ModifyNamespaceContainer(request_type=kind, settings=container)
        )


def _attach(service: HnsService, d: HostComputeEndpoint, request: V1Attach) -> None:
    """To the namespace of the container (made when there is none), or to a compartment's."""
    if d.host_compute_namespace:
        held = service.get(HostComputeNamespace, d.host_compute_namespace)
        if request.container_id and request.container_id in held.containers:
            return
        raise HcnError(Code.ENDPOINT_ALREADY_ATTACHED, f"it is in namespace {held.id}")
    namespace: HostComputeNamespace | None = None
    if request.system_type == "Host":
        number = request.compartment_id or 1
        found = service.state.by_namespace_id.get(number)
        namespace = service.get(HostComputeNamespace, found) if found is not None else None
        if namespace is None:
            made = service.create(HostComputeNamespace(type="Host", namespace_id=number))
            assert isinstance(made, HostComputeNamespace)
            namespace = made
    else:
        if not request.container_id:
            raise HcnError(Code.BAD_PARAMETER, "ContainerId is empty: name the container")
        namespace = container_namespace(service, request.container_id)
        if namespace is None:
            container = NamespaceResource("Container", ResourceData(request.container_id))
            made = service.create(HostComputeNamespace(type="Host", owner=OWNER, resources=(container,)))
            assert isinstance(made, HostComputeNamespace)
            namespace = made
    settings = EndpointResourceSettings(d.id)
    service.modify(
        HostComputeNamespace, namespace.id, ModifyNamespaceEndpoint(request_type="Add", settings=settings)
    )


def container_namespace(service: HnsService, container: str) -> HostComputeNamespace | None:
    """The namespace a container is in."""
    for d in service.documents.values():
        if isinstance(d, HostComputeNamespace) and container in d.containers:
            return d
    return None


def _detach(service: HnsService, d: HostComputeEndpoint, request: V1Attach) -> None:
    """Out of its namespace; the one attach made for a container goes with its last endpoint."""
    if not d.host_compute_namespace:
        raise HcnError(Code.ENDPOINT_NOT_ATTACHED, f"endpoint {d.id}")
    held = service.get(HostComputeNamespace, d.host_compute_namespace)
    if request.container_id and request.container_id not in held.containers:
        raise HcnError(
            Code.ENDPOINT_NOT_ATTACHED, f"ContainerId {request.container_id} is not where it is attached"
        )
    settings = EndpointResourceSettings(d.id)
    service.modify(
        HostComputeNamespace, held.id, ModifyNamespaceEndpoint(request_type="Remove", settings=settings)
    )
    left = service.get(HostComputeNamespace, held.id)
    if not left.endpoints and left.owner == OWNER:
        service.delete(HostComputeNamespace, held.id)
