"""/overlace/v1/vfp: what is programmed on this very host. Outside Docker's API, hence its own path.

Owns the routes and how a container names its ports; the answers are network.switch's.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from overlace.api.backend import Switch
from overlace.api.call import Call, Route, answer
from overlace.model.errors import Unavailable
from overlace.model.protocols import WORDS
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.vfp.model import Packet
from overlace.network.vfp.reasons import MEANINGS


def _switch(call: Call) -> Switch:
    switch = call.backend.switch
    if switch is None:
        raise Unavailable(
            "this host takes part in no swarm, so its switch has no ports: docker swarm init, or join one"
        )
    return switch


async def ports(call: Call) -> web.StreamResponse:
    return answer(_switch(call).ports())


async def layers(call: Call) -> web.StreamResponse:
    """`port`: see Switch.layers; also a container's id or the beginning of it. Empty: every port."""
    switch, text = _switch(call), call.text("port")
    names = _of_container(call, text) or [text]
    return answer([port for name in names for port in await switch.layers(name)])


def _of_container(call: Call, text: str) -> list[str]:
    """Endpoint GUIDs of the one container of that id."""
    if len(text) < 12:
        return []
    found = [
        (e.container_id, e.endpoint_id)
        for network in call.backend.local_networks()
        for e in network.endpoints
        if e.container_id.startswith(text)
    ]
    return [guid for _, guid in found] if len({id for id, _ in found}) == 1 else []


async def counters(call: Call) -> web.StreamResponse:
    return answer(await _switch(call).counters())


def show_flow(f: UnifiedFlow, names: Mapping[str, str]) -> dict[str, object]:
    """A unified flow as a document; what it goes on as is left out where nothing was rewritten. `names`: of ports, by
    GUID."""

    def words(p: Packet) -> str:
        protocol = WORDS.get(p.protocol, str(p.protocol))
        src, dst = (f"[{a}]" if ":" in a else a for a in (p.src, p.dst))
        return f"{src}:{p.sport} > {dst}:{p.dport} {protocol}"

    return {
        "Port": f.point,
        "PortName": names.get(f.point, ""),
        "Came": words(f.came),
        "Went": words(f.went) if f.went != f.came else "",
        "Verdict": f.verdict,
        "Vni": f.vni,
        "From": f.from_provider,
        "To": f.provider_address or f.to_endpoint,
        "ToName": "" if f.provider_address else names.get(f.to_endpoint, ""),
        "Service": f.service,
        "Packets": f.packets,
        "Bytes": f.bytes,
        "IdleSeconds": f.idle,
        "Seconds": f.seconds,
        "Closed": f.closed,
        "Current": f.current,
    }


async def flows(call: Call) -> web.StreamResponse:
    """`port`: see layers; empty: every flow."""
    switch, text = _switch(call), call.text("port")
    asked = _of_container(call, text) or [text]
    names = {p.name: p.friendly_name for p in switch.ports()}
    return answer([show_flow(f, names) for port in asked for f in await switch.flows(port)])


async def watched(call: Call) -> web.StreamResponse:
    return answer({"Seconds": await _switch(call).watched()})


async def drops(call: Call) -> web.StreamResponse:
    found = await _switch(call).drops()
    return answer(
        [
            {"Network": network, "Reason": reason, "Packets": n, "Meaning": MEANINGS.get(reason, "")}
            for (network, reason), n in sorted(found.items())
        ]
    )


ROUTES = [
    Route("GET", "/overlace/v1/vfp/ports", ports),
    Route("GET", "/overlace/v1/vfp/layers", layers),
    Route("GET", "/overlace/v1/vfp/counters", counters),
    Route("GET", "/overlace/v1/vfp/flows", flows),
    Route("GET", "/overlace/v1/vfp/watched", watched),
    Route("GET", "/overlace/v1/vfp/drops", drops),
]
