"""The switch of this host, to look at: its ports, layers, rules, flows and counters.

Owns the questions people may ask of a running host's network. Must not change anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from overlace.model.errors import NotFound
from overlace.model.paths import Notice
from overlace.network.balancing import Balancing
from overlace.network.counted import Hit
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork
from overlace.network.hns.state import State
from overlace.network.vfp.compile import compile_access, vni_of
from overlace.network.vfp.flows import UnifiedFlow, close_both
from overlace.network.vfp.model import HOST_PORT
from overlace.network.vfp.reasons import Counter, explain_counters
from overlace.network.vfp.show import HitsShown, PortShown, find_ports, local_ports, show_port


class Switch:
    """`host`: the host's underlay address; `counters`, `flows`, `drops`, `hits`, `balancing` and `watched`: read the data
    path's."""

    def __init__(
        self,
        state: State,
        host: str,
        counters: Callable[[], Awaitable[dict[str, int]]],
        flows: Callable[[], Awaitable[list[UnifiedFlow]]],
        drops: Callable[[], Awaitable[dict[tuple[int, str], int]]] | None = None,
        hits: Callable[[], Awaitable[list[Hit]]] | None = None,
        balancing: Callable[[], Balancing] | None = None,
        notices: Callable[[int], list[tuple[int, Notice]]] | None = None,
        watched: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self._state = state
        self._host = host
        self._counters = counters
        self._flows = flows
        self._drops = drops
        self._hits = hits
        self._balancing = balancing
        self._notices = notices
        self._watched = watched

    def notices(self, after: int) -> list[tuple[int, Notice]]:
        """What people should hear of this host's network that came later than `after` (ns since the epoch)."""
        return self._notices(after) if self._notices is not None else []

    def ports(self) -> list[PortShown]:
        """Every port, without its layers; the host's own says how services are balanced."""
        found = [show_port(g, self._state, self._host, layers=False) for g in local_ports(self._state)]
        said = self._balancing().words if self._balancing is not None else ""
        return [msgspec.structs.replace(p, balancing=said) if p.name == HOST_PORT else p for p in found]

    async def layers(self, port: str = "") -> list[PortShown]:
        """The ports a person means by `port` (all when empty) with layers and rules. Raises NotFound."""
        found = find_ports(port, self._state) if port else local_ports(self._state)
        if not found:
            raise NotFound(f"no port {port!r} on this host: `overlace vfp ports` lists them")
        hits = await self._hits() if self._hits is not None else []
        return [show_port(g, self._state, self._host, layers=True, hits=hits) for g in found]

    async def judged(self) -> dict[tuple[str, str, str], HitsShown]:
        """What the rules that decide about connections counted, by network's name, IN or OUT, and allow or block."""
        found: dict[tuple[str, str, str], HitsShown] = {}
        for h in await self._hits() if self._hits is not None else ():
            if h.is_late:  # a counter must not fall when a flow is forgotten
                continue
            e = self._state.get(h.endpoint_id, HostComputeEndpoint)
            network = self._state.get(e.host_compute_network, HostComputeNetwork) if e is not None else None
            if e is None or network is None:
                continue
            for c in e.ip_configurations:
                for access in compile_access(e, network, vni_of(network), c.ip_address):
                    if access.number != h.list:
                        continue
                    action = access.rules[h.rule].action if h.rule < len(access.rules) else "block"
                    if action != "pass":
                        key = (network.name, access.direction, action)
                        found[key] = found.get(key, HitsShown()).plus(h)
        return found

    async def counters(self) -> list[Counter]:
        """Packets by what became of them."""
        return explain_counters(await self._counters())

    async def drops(self) -> dict[tuple[str, str], int]:
        """Packets dropped, by network's name (empty: on none) and reason."""
        found: dict[tuple[str, str], int] = {}
        names = {
            vni_of(d): d.name for d in self._state.documents.values() if isinstance(d, HostComputeNetwork)
        }
        for (vni, reason), n in (await self._drops() if self._drops is not None else {}).items():
            key = (names.get(vni, ""), reason)
            found[key] = found.get(key, 0) + n
        return found

    async def watched(self) -> int:
        """Seconds to come in which every connection is remembered, since somebody looks at flows; 0: short ones between
        two containers are not."""
        return await self._watched() if self._watched is not None else 0

    async def flows(self, port: str = "") -> list[UnifiedFlow]:
        """Unified flows, busiest first; of the ports a person means by `port`, or all. Raises NotFound."""
        flows = close_both(await self._flows())
        if port:
            found = set(find_ports(port, self._state))
            if not found:
                raise NotFound(f"no port {port!r} on this host: `overlace vfp ports` lists them")
            flows = [f for f in flows if f.point in found or f.to_endpoint in found]
        return sorted(flows, key=lambda f: -f.bytes)
