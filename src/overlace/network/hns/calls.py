"""The HCN calls as computenetwork.dll exports them: handles and JSON texts in, HRESULT, texts and error record out.

Owns handles and which document is v1. Must not hold state of its own beside handles: HnsService does. One
call at a time. Source: hcsshim's call sequences, Microsoft's HCN reference.
"""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from overlace.network.hns.documents import (
    KINDS,
    Document,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeRoute,
    convert,
    normal_guid,
    parse_modify,
    read_object,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.hnscall import hns_call
from overlace.network.hns.queries import matches, present, read_filter, read_query
from overlace.network.hns.service import HnsService
from overlace.network.hns.v1 import from_v1
from overlace.network.hns.v1_documents import is_v1

MAX_HANDLES = 65536  # hcsshim leaks a few: the one longest unused goes first
NULL_GUID = str(uuid.UUID(int=0))
_OPERATION = re.compile(
    r"(Enumerate|Create|Open|Modify|Query|Delete|Close)(Network|Endpoint|Namespace|LoadBalancer|SdnRoute)(s?)"
)


class Reply(NamedTuple):
    """What a call gave: HRESULT (0: fine), handle, result and error record (None: NULL)."""

    hr: int = 0
    handle: int = 0
    result: str | None = None
    record: str | None = None

    @classmethod
    def failed(cls, error: HcnError) -> Reply:
        return cls(int(error.code), 0, None, msgspec.json.encode(error.record()).decode())


class Handle(NamedTuple):
    kind: str
    guid: Guid


class HnsCalls:
    """Handles are numbers that live until they are closed, whatever becomes of their object."""

    def __init__(self, service: HnsService) -> None:
        self.service = service
        self._handles: OrderedDict[int, Handle] = OrderedDict()
        self._next = 1

    def call(self, operation: str, handle: int, guid: str, document: str | None) -> Reply:
        """One call by its wire name. Never raises for what a client sent."""
        try:
            return self._call(operation, handle, guid, document or "")
        except HcnError as e:
            return Reply.failed(e)

    def _call(self, operation: str, handle: int, guid: str, document: str) -> Reply:
        if operation == "HNSCall":
            return Reply(result=hns_call(self.service, document))
        if operation in ("QueryEndpointStats", "QueryEndpointAddresses"):
            return Reply(result=_json(self._beside(operation, handle)))
        match = _OPERATION.fullmatch(operation)
        if match is None or (match[1] == "Enumerate") != bool(match[3]):
            raise HcnError(
                Code.BAD_PARAMETER,
                f"operation {operation!r}: use Enumerate…s, Create…, Open…, Modify…, Query…, Delete… or Close… of "
                "Network, Endpoint, Namespace, LoadBalancer, SdnRoute, or HNSCall",
            )
        kind = match[2].lower()
        match match[1]:
            case "Enumerate":
                return Reply(result=_json(self._enumerate(kind, document)))
            case "Create":
                return Reply(handle=self._create(kind, handle, guid, document))
            case "Open":
                return Reply(handle=self._open(kind, self._existing(kind, guid).id))
            case "Modify":
                self._modify(kind, self._held(kind, handle), document)
            case "Query":
                return Reply(result=_json(self._query(self._held(kind, handle), document)))
            case "Delete":
                self.service.delete(KINDS[kind], self._existing(kind, guid).id)  # type: ignore[type-var]
            case "Close":
                self._known(kind, handle)
                del self._handles[handle]
        return Reply()

    # -- handles ---------------------------------------------------------------------------------------------

    def _open(self, kind: str, guid: Guid) -> int:
        number, self._next = self._next, self._next + 1
        self._handles[number] = Handle(kind, guid)
        if len(self._handles) > MAX_HANDLES:
            self._handles.popitem(last=False)
        return number

    def forget(self, handle: int) -> None:
        """Of a call that was taken back."""
        self._handles.pop(handle, None)

    def network_of(self, handle: int) -> Guid:
        """The network an open handle stands for. Raises HcnError."""
        return self._held("network", handle).id

    def _known(self, kind: str, handle: int) -> Handle:
        found = self._handles.get(handle)
        if found is None or found.kind != kind:
            raise HcnError(Code.INVALID_HANDLE, f"{handle} is no open handle of a {kind}")
        self._handles.move_to_end(handle)
        return found

    def _held(self, kind: str, handle: int) -> Document:
        found = self.service.documents.get(self._known(kind, handle).guid)
        if found is None:
            raise HcnError(Code.OBJECT_USED_AFTER_UNLOAD, f"the {kind} of handle {handle} was deleted")
        return found

    def _existing(self, kind: str, guid: str) -> Document:
        if guid in ("-", ""):
            raise HcnError(Code.BAD_PARAMETER, f"GUID: name the {kind}")
        found: Document = self.service.get(KINDS[kind], guid)  # type: ignore[type-var]
        return found

    # -- verbs -----------------------------------------------------------------------------------------------

    def _create(self, kind: str, handle: int, guid: str, document: str) -> int:
        raw = read_object(document)
        d = read_document(kind, raw, self.service)
        if isinstance(d, HostComputeEndpoint):
            network = self._held("network", handle).id
            named = d.host_compute_network
            if named and normal_guid(named, "HostComputeNetwork") != network:
                raise HcnError(
                    Code.INVALID_ENDPOINT, f"HostComputeNetwork {named} is not the handle's network {network}"
                )
            d = msgspec.structs.replace(d, host_compute_network=network)
        if guid not in ("-", "") and normal_guid(guid, "GUID").lower() != NULL_GUID:
            d = msgspec.structs.replace(d, id=normal_guid(guid, "GUID"))
        elif d.id and normal_guid(d.id).lower() == NULL_GUID:
            d = msgspec.structs.replace(d, id="")
        return self._open(kind, self.service.create(d).id)

    def _modify(self, kind: str, held: Document, document: str) -> None:
        if isinstance(held, (HostComputeLoadBalancer, HostComputeRoute)):
            d = read_document(kind, read_object(document), self.service)
            if d.id and normal_guid(d.id).lower() not in (NULL_GUID, held.id.lower()):
                raise HcnError(Code.BAD_PARAMETER, f"ID {d.id} is not the handle's {kind} {held.id}")
            if isinstance(d, HostComputeLoadBalancer):
                self.service.update_load_balancer(msgspec.structs.replace(d, id=held.id))
            else:
                self.service.replace(msgspec.structs.replace(d, id=held.id))
            return
        request = parse_modify(kind, document)
        self.service.modify(KINDS[kind], held.id, request)  # type: ignore[type-var]

    def _query(self, held: Document, text: str) -> dict[str, Any]:
        return present(held, self.service, read_query(text))

    def _beside(self, operation: str, handle: int) -> Any:
        """What the DLL tells of an endpoint beside its document."""
        d = self._held("endpoint", handle)
        assert isinstance(d, HostComputeEndpoint)
        if operation == "QueryEndpointStats":
            return self.service.stats(d.id)
        return [{"IPAddress": c.ip_address, "PrefixLength": c.prefix_length} for c in d.ip_configurations]

    def _enumerate(self, kind: str, text: str) -> list[Guid]:
        query = read_query(text)
        wanted = read_filter(kind, query)
        return [d.id for d in self.service.documents.values() if d.kind == kind and matches(d, wanted)]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def read_document(kind: str, raw: dict[str, Any], service: HnsService) -> Document:
    """v1 or v2, whichever was written. Raises HcnError."""
    if is_v1(kind, raw):
        return from_v1(kind, raw, service.state)
    d = convert(raw, KINDS[kind])
    if d.schema_version.major != 2:
        raise HcnError(
            Code.BAD_PARAMETER,
            f"SchemaVersion {d.schema_version.major}.{d.schema_version.minor}: use 1.0 or 2.x",
        )
    return d
