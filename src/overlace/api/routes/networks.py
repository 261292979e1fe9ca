"""/networks: the swarm's (through manager.control) and this host's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from aiohttp import web

from overlace.api import codec
from overlace.api.backend import LocalNetwork, ManagerHandle
from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert import network as show
from overlace.api.named import matches
from overlace.api.swarm_requests import NOT_MANAGER
from overlace.manager.control import lookup
from overlace.model.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
from overlace.model.objects import Network, Node, Service
from overlace.model.specs import HOST_NETWORKS, Doc, Ipam, NetworkSpec

FILTERS = frozenset(("dangling", "driver", "id", "label", "name", "scope", "type"))
PRUNE_FILTERS = frozenset(("label", "label!", "until"))
PREDEFINED = frozenset((*HOST_NETWORKS, "default"))
Found = Network | LocalNetwork


class CreateRequest(Doc, frozen=True):
    """POST /networks/create (moby api/types/network CreateRequest)."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: Ipam = msgspec.field(default=Ipam(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: dict[str, str] | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)


def plan_spec(request: CreateRequest) -> NetworkSpec:
    """What to create. Raises InvalidArgument, PermissionDenied, Unimplemented for what there is not."""
    if request.name in PREDEFINED:
        raise PermissionDenied(f"operation is not permitted on predefined {request.name} network")
    source = (request.config_from or {}).get("Network", "")
    if request.config_only:
        return _plan_configuration(request, source)
    if source and (request.ipam.config or request.ipam.options or request.options or request.labels):
        raise PermissionDenied(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if not request.enable_ipv4:
        raise Unimplemented("EnableIPv4=false is not supported: overlay networks carry IPv4")
    driver = request.driver or ("overlay" if request.scope == "swarm" or request.ingress else "bridge")
    if driver != "overlay":
        raise Unimplemented(
            f"network driver {driver!r} is not supported: create an overlay network"
            " (docker network create -d overlay)"
        )
    if request.scope not in ("", "swarm"):
        if request.scope == "local":
            raise PermissionDenied("cannot downgrade network scope for overlay networks")
        raise InvalidArgument(
            f"Scope {request.scope!r} is not possible with driver overlay: use swarm or leave it out"
        )
    return NetworkSpec(
        name=request.name,
        driver=driver,
        labels=request.labels,
        options=request.options,
        internal=request.internal,
        attachable=request.attachable,
        ingress=request.ingress,
        enable_ipv6=request.enable_ipv6,
        ipam=request.ipam,
        scope="swarm",
        config_from=source,
    )


def _plan_configuration(request: CreateRequest, source: str) -> NetworkSpec:
    """A network that is only a name for settings others are made from (moby libnetwork validateConfiguration)."""
    if request.internal or request.attachable or request.ingress or request.scope:
        raise PermissionDenied(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )
    if source:
        raise PermissionDenied("a configuration network cannot depend on another configuration network")
    return NetworkSpec(
        name=request.name,
        driver="null",
        labels=request.labels,
        options=request.options,
        enable_ipv6=request.enable_ipv6,
        ipam=request.ipam,
        scope="swarm",
        config_only=True,
    )


# -- looking -------------------------------------------------------------------------------------------------


def _everything(call: Call) -> tuple[list[Network], list[LocalNetwork]]:
    """The swarm's networks as the manager keeps them, and this host's own.

    A worker knows the swarm's from its node's view; on a manager that view may still hold what was just removed.
    """
    manager = call.backend.manager
    local = list(call.backend.local_networks())
    if manager is None:
        return [], local
    return list(manager.store.view().all(Network)), [n for n in local if n.scope != "swarm"]


def _name(found: Found) -> str:
    return found.spec.name if isinstance(found, Network) else found.name


def _scope(found: Found) -> str:
    return "swarm" if isinstance(found, Network) else found.scope


def find(call: Call, ref: str, scope: str = "") -> Found:
    """By full id, then name, then id prefix. Raises NotFound, InvalidArgument (ambiguous)."""
    swarm, local = _everything(call)
    everything: list[Found] = [*swarm, *local]
    there = [n for n in everything if not scope or _scope(n) == scope]
    found = matches(there, ref, lambda n: n.id, _name)
    if len(found) > 1:
        raise InvalidArgument(f"network {ref} is ambiguous ({len(found)} matches found)")
    if found:
        return found[0]
    raise NotFound(f"network {ref} not found")


def label_matches(labels: dict[str, str], wanted: Iterable[str]) -> bool:
    """Every `key` or `key=value` holds."""
    for text in wanted:
        key, given, value = text.partition("=")
        if key not in labels or (given and labels[key] != value):
            return False
    return True


def _kept(found: LocalNetwork, filters: dict[str, list[str]]) -> bool:
    """The filters on what only this host knows; those of the swarm's networks are manager.control's."""
    predefined = found.name in PREDEFINED
    tests: dict[str, Callable[[str], bool]] = {
        "driver": lambda v: found.driver == v,
        "id": lambda v: v in found.id,
        "name": lambda v: v in found.name,  # Docker matches any part of the name
        "scope": lambda v: found.scope == v,
        "type": lambda v: predefined == (v == "builtin"),
        "dangling": lambda v: (bool(found.endpoints) or predefined) != codec.flag(v),
    }
    return label_matches(found.labels, filters.get("label", ())) and all(
        any(tests[key](v) for v in values) for key, values in filters.items() if key in tests and values
    )


def _show(call: Call, found: Network) -> msgspec.Raw:
    return call.shared.rendered.get("network", found.id, (found,), lambda: show.network(found))


async def list_networks(call: Call) -> web.StreamResponse:
    filters = call.filters(lookup.NETWORK_FILTERS)
    for value in filters.get("scope", ()):
        if value not in ("swarm", "local", "global"):
            raise InvalidArgument(f"invalid filter 'scope={value}'")
    manager = call.backend.manager
    swarm = lookup.list_networks(manager.store.view(), filters) if manager else []
    local = [n for n in _everything(call)[1] if _kept(n, filters)]
    return answer([*(show.local_network(n) for n in local), *(_show(call, n) for n in swarm)])


def _predefined(name: str) -> LocalNetwork:
    driver = "null" if name == "none" else name
    return LocalNetwork(id=name, name=name, driver=driver, labels={"com.docker.swarm.predefined": "true"})


async def inspect(call: Call) -> web.StreamResponse:
    scope = call.text("scope")
    if scope not in ("", "swarm", "local", "global"):
        raise InvalidArgument(f"invalid scope {scope!r}: use swarm or local")
    if scope == "swarm" and call.args["id"] in HOST_NETWORKS:
        # what `docker service create --network host` asks first: in the swarm it goes by its name
        return answer(show.local_network(_predefined(call.args["id"])))
    found = find(call, call.args["id"], scope)
    if isinstance(found, LocalNetwork):
        return answer(show.local_network(found))
    shown = show.network(found)
    manager = call.manager()
    view = manager.store.view()
    nodes = {n.id: n for n in view.all(Node) if not n.removed}
    tasks = list(view.tasks_of_network(found.id))
    shown["Peers"] = show.peers(nodes.values(), tasks, found)
    for here in call.backend.local_networks():
        if here.id == found.id:
            shown["Containers"] = show.local_containers(here.endpoints)
    if call.flag("verbose"):
        users = list(view.services_of_network(found.id))
        if found.spec.ingress:
            users = [s for s in view.all(Service) if s.endpoint and _on(s, found.id)]
        shown["Services"] = show.verbose_services(found, {s.id: s for s in users}, tasks, nodes)
    return answer(shown)


def _on(service: Service, network_id: str) -> bool:
    endpoint = service.endpoint
    return endpoint is not None and any(v.network_id == network_id for v in endpoint.virtual_ips)


# -- changing ------------------------------------------------------------------------------------------------


def _manager(call: Call) -> ManagerHandle:
    if call.backend.manager is None and call.backend.swarm().state == "inactive":
        raise PermissionDenied(NOT_MANAGER)  # 403 here, as Docker's network router answers
    return call.manager()


async def create(call: Call) -> web.StreamResponse:
    spec = plan_spec(await call.body(CreateRequest))
    manager = _manager(call)
    if any(n.name == spec.name and n.scope == "local" for n in call.backend.local_networks()):
        raise Conflict(f"network with name {spec.name} already exists")
    id, warning = await manager.control.create_network(spec)
    return answer({"Id": id, "Warning": warning}, 201)


class PolicyRequest(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """The network's overlace.policy labels, all of them."""

    labels: dict[str, str]


async def set_policy(call: Call) -> web.StreamResponse:
    """Not Docker's: a network's labels cannot be changed there."""
    asked = await call.body(PolicyRequest)
    await _manager(call).control.set_network_policy(call.args["name"], asked.labels)
    return answer({})


async def remove(call: Call) -> web.StreamResponse:
    found = find(call, call.args["id"])
    if isinstance(found, LocalNetwork):
        if found.scope == "swarm":
            call.manager()  # a worker sees the network but cannot remove it
        raise PermissionDenied(f"{found.name} is a pre-defined network and cannot be removed")
    await call.manager().control.remove_network(found.id)
    return empty(204)


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters(PRUNE_FILTERS)
    until = max((codec.parse_time(text, "until") for text in filters.get("until", ())), default=0)
    manager = call.backend.manager
    deleted = []
    for found in _everything(call)[0] if manager else ():
        labels = found.spec.labels
        if (
            found.spec.ingress
            or found.spec.config_only
            or lookup.network_in_use(call.manager().store.view(), found)
            or not label_matches(labels, filters.get("label", ()))
            or any(label_matches(labels, [text]) for text in filters.get("label!", ()))
            or (until and found.created_at >= until)
        ):
            continue
        try:
            await call.manager().control.remove_network(found.id)
        except (FailedPrecondition, NotFound, PermissionDenied):
            continue  # in use since, gone already, or not ours to remove
        deleted.append(found.spec.name)
    return answer({"NetworksDeleted": deleted or None})


ROUTES = [
    Route("GET", "/networks", list_networks),
    Route("POST", "/networks/create", create),
    Route("POST", "/networks/prune", prune),
    Route("POST", "/overlace/v1/networks/{name}/policy", set_policy),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
]
