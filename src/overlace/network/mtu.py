"""The MTU of containers' interfaces: the largest that fits the measured path to every host of their network.

Owns the rule (pure). Must not measure nor set anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from overlace.model.netview import NetView, NodeEntry
from overlace.model.specs import MIN_MTU, MTU_OPTION
from overlace.network.endpoints import LOCAL_NETWORK


def peers(view: NetView, network_id: str, me: str) -> Iterator[NodeEntry]:
    """The other hosts of a network."""
    there = {e.node_id for e in view.endpoints(network_id)}
    return (n for n in view.of(NodeEntry) if n.id != me and (network_id in n.addresses or n.id in there))


def plan_mtu(
    view: NetView, network_id: str, me: str, own: int, measured: Mapping[str, int], overhead: int
) -> int:
    """Bytes of the largest IP packet on the network: what every path takes (as measured, by underlay address; until
    then what both hosts' interfaces say), less `overhead`, the encapsulation's, capped by the network's own option."""
    if network_id == LOCAL_NETWORK:
        return own
    smallest = own
    for node in peers(view, network_id, me):
        smallest = min(smallest, measured.get(node.provider_address, 0) or node.mtu or own)
    fits = max(smallest, MIN_MTU) - overhead
    network = view.network(network_id)
    text = network.driver_opts.get(MTU_OPTION, "") if network is not None else ""
    asked = int(text) if text.isdigit() else 0
    return min(fits, asked) if asked >= MIN_MTU else fits


def plan_mtus(
    view: NetView, network_ids: Iterable[str], me: str, own: int, measured: Mapping[str, int], overhead: int
) -> dict[str, int]:
    """The same for each of a task's networks."""
    return {n: plan_mtu(view, n, me, own, measured, overhead) for n in network_ids}
