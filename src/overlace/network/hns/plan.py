"""From the documents a host has to the documents it must have: an ordered list of HNS operations.

Owns the order HNS needs (pure). Source of the order: what public drivers must keep (network before endpoint
before namespace before load balancer, the reverse on removal; a stale endpoint with the same address goes
first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Union

import msgspec

from overlace.network.hns import policies as p
from overlace.network.hns.documents import (
    Document,
    EndpointResourceSettings,
    Guid,
    HostComputeEndpoint,
    HostComputeLoadBalancer,
    HostComputeNamespace,
    HostComputeNetwork,
    ModifyNamespaceEndpoint,
    normal_mac,
)


class Create(msgspec.Struct, frozen=True):
    document: Document


class Replace(msgspec.Struct, frozen=True):
    """A load balancer's whole new document under its old GUID (HcnModifyLoadBalancer; delete + create before
    15.4)."""

    document: HostComputeLoadBalancer


class ReplacePolicies(msgspec.Struct, frozen=True):
    """Exchange an endpoint's or network's policies in place: Modify Remove of the old, Add of the new."""

    document: Union[HostComputeEndpoint, HostComputeNetwork]


class ModifyNamespace(msgspec.Struct, frozen=True):
    namespace: Guid
    request: ModifyNamespaceEndpoint


class Delete(msgspec.Struct, frozen=True):
    kind: str
    id: Guid


Operation = Union[Create, Replace, ReplacePolicies, ModifyNamespace, Delete]


def _comparable(d: Document, *, policies: bool) -> Document:
    """Without what HNS itself fills in (and without policies when asked)."""
    if isinstance(d, HostComputeNetwork):
        kept = tuple(x for x in d.policies if not isinstance(x, p.DrMacAddress)) if policies else ()
        return msgspec.structs.replace(d, policies=kept)
    if isinstance(d, HostComputeEndpoint):
        mac = normal_mac(d.mac_address) if d.mac_address else ""
        kept_e = d.policies if policies else ()
        return msgspec.structs.replace(d, host_compute_namespace="", mac_address=mac, policies=kept_e)
    if isinstance(d, HostComputeNamespace):
        return msgspec.structs.replace(d, resources=(), namespace_id=0)
    return d


def plan_hns(
    actual: Mapping[Guid, Document],
    desired: Mapping[Guid, Document],
    ids: Iterable[Guid] | None = None,
    balancers_of: Callable[[Guid], Iterable[Guid]] | None = None,
) -> list[Operation]:
    """Operations that turn `actual` into `desired`, looking only at `ids` (None: at all of both).

    `balancers_of(endpoint)` names the load balancers in `actual` that refer to it; without it they are
    searched for. A GUID in neither mapping is nothing to do. Cost follows `ids` and the load balancers of
    recreated endpoints.
    """
    looked = list(dict.fromkeys(ids)) if ids is not None else list({**actual, **desired})
    create: list[Document] = []
    delete: list[Document] = []
    replace: dict[Guid, HostComputeLoadBalancer] = {}
    policies: list[HostComputeEndpoint | HostComputeNetwork] = []
    namespaces: list[tuple[HostComputeNamespace | None, HostComputeNamespace]] = []
    for guid in looked:
        have, want = actual.get(guid), desired.get(guid)
        if isinstance(want, HostComputeNamespace) and (
            have is None or isinstance(have, HostComputeNamespace)
        ):
            namespaces.append((have, want))
            continue
        if have == want:
            continue
        if want is None:
            if have is not None:
                delete.append(have)
        elif have is None:
            create.append(want)
        elif isinstance(have, HostComputeLoadBalancer) and isinstance(want, HostComputeLoadBalancer):
            replace[guid] = want
        elif _comparable(have, policies=False) != _comparable(want, policies=False):
            delete.append(have)
            create.append(want)
        elif _comparable(have, policies=True) != _comparable(want, policies=True):
            assert isinstance(want, (HostComputeEndpoint, HostComputeNetwork))
            policies.append(want)

    gone = {d.id for d in delete}
    recreated = gone & {d.id for d in create}
    # a recreated network takes its endpoints and load balancers down and up again
    nets = {d.id for d in delete if isinstance(d, HostComputeNetwork)}
    if nets:
        for d in list(actual.values()):
            on = getattr(d, "host_compute_network", "")
            if on in nets and d.id not in gone:
                delete.append(d)
                gone.add(d.id)
                replace.pop(d.id, None)
                want = desired.get(d.id)
                if want is not None:
                    create.append(want)
                    recreated.add(d.id)
    policies = [d for d in policies if d.id not in gone]

    operations: list[Operation] = []
    operations += [Delete(d.kind, d.id) for d in delete if isinstance(d, HostComputeLoadBalancer)]
    # load balancers let go of endpoints that leave, and take them back after
    for d in delete:
        if not isinstance(d, HostComputeEndpoint):
            continue
        for lb_id in balancers_of(d.id) if balancers_of else _search(actual, d.id):
            lb = actual.get(lb_id)
            if lb_id not in gone and lb_id not in replace and isinstance(lb, HostComputeLoadBalancer):
                wanted = desired.get(lb_id)
                if isinstance(wanted, HostComputeLoadBalancer):
                    replace[lb_id] = wanted
                else:
                    operations.append(Delete("loadbalancer", lb_id))
                    gone.add(lb_id)
    later: list[Operation] = []
    for lb_id, wanted_lb in replace.items():
        have_lb = actual[lb_id]
        assert isinstance(have_lb, HostComputeLoadBalancer)
        dropped = set(have_lb.host_compute_endpoints) & gone
        if dropped:
            kept = tuple(e for e in have_lb.host_compute_endpoints if e not in gone)
            if kept:
                operations.append(Replace(msgspec.structs.replace(have_lb, host_compute_endpoints=kept)))
                later.append(Replace(wanted_lb))
            else:
                operations.append(Delete("loadbalancer", lb_id))
                later.append(Create(wanted_lb))
        else:
            later.append(Replace(wanted_lb))

    for kind in (HostComputeNamespace, HostComputeEndpoint, HostComputeNetwork):
        operations += [Delete(d.kind, d.id) for d in delete if isinstance(d, kind)]
    for kind in (HostComputeNetwork, HostComputeEndpoint):
        operations += [Create(d) for d in create if isinstance(d, kind)]
    operations += [ReplacePolicies(d) for d in policies]
    for have_ns, want_ns in namespaces:
        operations += _namespace(have_ns, want_ns, gone)
    # a recreated local endpoint goes back into its namespace
    seen = {want.id for _, want in namespaces}
    for guid in sorted(recreated):
        old = actual.get(guid)
        ns = desired.get(old.host_compute_namespace) if isinstance(old, HostComputeEndpoint) else None
        if isinstance(ns, HostComputeNamespace) and ns.id not in seen and guid in ns.endpoints:
            operations.append(_attach(ns.id, guid, "Add"))
    operations += [Create(d) for d in create if isinstance(d, HostComputeLoadBalancer)]
    operations += later
    return operations


def _attach(namespace: Guid, endpoint: Guid, request: str) -> ModifyNamespace:
    return ModifyNamespace(
        namespace,
        ModifyNamespaceEndpoint(
            request_type="Add" if request == "Add" else "Remove", settings=EndpointResourceSettings(endpoint)
        ),
    )


def _namespace(
    have: HostComputeNamespace | None, want: HostComputeNamespace, gone: set[Guid]
) -> list[Operation]:
    operations: list[Operation] = []
    if have is None:
        operations.append(Create(msgspec.structs.replace(want, resources=())))
    held = set(have.endpoints) - gone if have is not None else set()
    wanted = set(want.endpoints)
    operations += [_attach(want.id, e, "Remove") for e in sorted(held - wanted)]
    operations += [_attach(want.id, e, "Add") for e in want.endpoints if e not in held]
    return operations


def _search(actual: Mapping[Guid, Document], endpoint: Guid) -> list[Guid]:
    return [
        d.id
        for d in actual.values()
        if isinstance(d, HostComputeLoadBalancer) and endpoint in d.host_compute_endpoints
    ]
