"""/swarm. Checks are `swarm_requests`, effects the daemon's."""

from __future__ import annotations

from aiohttp import web

from overlace.api.backend import InitRequest, JoinRequest
from overlace.api.call import Call, Route, answer, empty
from overlace.api.convert.cluster import swarm as show_swarm
from overlace.api.swarm_requests import check_init, check_join, check_leave, complete_spec
from overlace.model.errors import Conflict, Unavailable, Unimplemented
from overlace.model.objects import Cluster, Node
from overlace.model.specs import Doc, SwarmSpec
from overlace.network.addresses import interface_addresses, six_hosts
from overlace.store.base import View


class UnlockRequest(Doc, frozen=True):
    unlock_key: str = ""


def cluster(view: View) -> Cluster:
    for found in view.all(Cluster):
        return found
    raise Unavailable("the swarm is not ready yet: its cluster object is not there; try again")


def managers(view: View) -> int:
    return sum(1 for n in view.all(Node) if n.manager_status is not None and not n.removed)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(show_swarm(cluster(call.manager().store.view())))


def _interfaces() -> dict[str, str]:
    return {**{name: a for a, name in six_hosts().items()}, **interface_addresses()}


async def init(call: Call) -> web.StreamResponse:
    request = check_init(await call.body(InitRequest), call.backend.swarm(), _interfaces())
    return answer(await call.backend.swarm_init(request))


async def join(call: Call) -> web.StreamResponse:
    request = check_join(await call.body(JoinRequest), call.backend.swarm(), _interfaces())
    await call.backend.swarm_join(request)
    return empty()


async def leave(call: Call) -> web.StreamResponse:
    force = call.flag("force")
    manager = call.backend.manager
    check_leave(call.backend.swarm(), force, managers(manager.store.view()) if manager else 0)
    await call.backend.swarm_leave(force)
    return empty()


async def update(call: Call) -> web.StreamResponse:
    version = call.object_version("swarm")
    spec = complete_spec(await call.body(SwarmSpec))
    manager = call.manager()
    if call.flag("rotateManagerUnlockKey"):
        raise Unimplemented("rotateManagerUnlockKey is not supported yet: managers cannot be locked")
    await manager.control.update_swarm(
        version, spec, call.flag("rotateWorkerToken"), call.flag("rotateManagerToken")
    )
    return empty()


async def unlock_key(call: Call) -> web.StreamResponse:
    call.manager()
    return answer({"UnlockKey": ""})  # this swarm is not locked, and Docker answers so too


async def unlock(call: Call) -> web.StreamResponse:
    await call.body(UnlockRequest)
    call.manager()
    raise Conflict("swarm is not locked")


ROUTES = [
    Route("GET", "/swarm", inspect),
    Route("POST", "/swarm/init", init),
    Route("POST", "/swarm/join", join),
    Route("POST", "/swarm/leave", leave),
    Route("POST", "/swarm/update", update),
    Route("GET", "/swarm/unlockkey", unlock_key),
    Route("POST", "/swarm/unlock", unlock),
]
