"""Query documents: which objects, and in which shape they are shown.

Owns reading a HostComputeQuery and writing an object as it asks. Must not change anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from overlace.network.hns.documents import (
    KINDS,
    Document,
    HostComputeEndpoint,
    HostComputeNamespace,
    HostComputeNetwork,
    HostComputeQuery,
    HostComputeQueryFlags,
    HostComputeRoute,
    Version,
    convert,
    read_object,
)
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.service import HnsService
from overlace.network.hns.v1 import to_v1


def read_query(text: str) -> HostComputeQuery:
    """A query document; nothing written asks for everything. Raises HcnError."""
    return convert(read_object(text), HostComputeQuery) if text.strip() else HostComputeQuery()


# filter keys clients use for members of another name
_FILTER = {"virtualnetwork": "hostcomputenetwork", "networkid": "hostcomputenetwork"}


def read_filter(kind: str, query: HostComputeQuery) -> dict[str, Any]:
    """Members (lower case) and what they must be. Raises HcnError for a member no document of the kind has."""
    raw = query.filter
    if isinstance(raw, str):
        if not raw.strip():
            return {}
        raw = read_object(raw)
    known = {f.encode_name.lower() for f in msgspec.structs.fields(KINDS[kind])}
    out: dict[str, Any] = {}
    for name, value in raw.items():
        member = _FILTER.get(name.lower(), name.lower())
        if member not in known:
            raise HcnError(Code.BAD_PARAMETER, f"Filter: a {kind} has no member {name!r}")
        out[member] = value
    return out


def matches(d: Document, wanted: dict[str, Any]) -> bool:
    if not wanted:
        return True
    members = {
        f.encode_name.lower(): msgspec.to_builtins(getattr(d, f.name)) for f in msgspec.structs.fields(d)
    }
    return all(_same(members[name], value) for name, value in wanted.items())


def _same(have: Any, want: Any) -> bool:
    if isinstance(have, str) and isinstance(want, str):
        return have.lower() == want.lower()
    if isinstance(have, list) and isinstance(want, str):
        return any(_same(item, want) for item in have)
    return bool(have == want)


def present(d: Document, service: HnsService, query: HostComputeQuery) -> dict[str, Any]:
    """The document as `query` asks for it: v1 with SchemaVersion 1.x, Detailed with what HNS knows beside."""
    if query.schema_version.major == 1:
        return to_v1(d, service.state, service.version_number)
    plain = msgspec.structs.replace(d, schema_version=Version(2, 0))
    if isinstance(d.additional_params, dict) and "V1" in d.additional_params:
        rest = {k: v for k, v in d.additional_params.items() if k != "V1"}
        plain = msgspec.structs.replace(plain, additional_params=rest or None)
    out: dict[str, Any] = msgspec.to_builtins(plain)
    if isinstance(d, HostComputeRoute) and "Routes" in out:
        out["Setting"] = out["Routes"]
    if query.flags & HostComputeQueryFlags.Detailed:
        out["Version"] = service.version_number
        out["State"] = 2 if isinstance(d, HostComputeEndpoint) and d.host_compute_namespace else 1
        out["Health"] = {"Extra": {"Resources": _resources(d, service)}}
    return out


def _resources(d: Document, service: HnsService) -> dict[str, Any]:
    state = service.state
    if isinstance(d, HostComputeNetwork):
        return {
            "Endpoints": sorted(state.endpoints_of.get(d.id, ())),
            "LoadBalancers": sorted(state.network_balancers.get(d.id, ())),
        }
    if isinstance(d, HostComputeEndpoint):
        return {
            "LoadBalancers": sorted(state.balancers_of.get(d.id, ())),
            "SdnRoutes": sorted(state.routes_of.get(d.id, ())),
        }
    if isinstance(d, HostComputeNamespace):
        return {"Endpoints": list(d.endpoints), "Containers": list(d.containers)}
    return {"Endpoints": list(d.host_compute_endpoints)}
