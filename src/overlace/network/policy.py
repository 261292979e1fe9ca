"""From who may connect (names, addresses, ingress) to the ACL policies of one endpoint. Pure.

Owns the priorities and what each item means as ACLs; the same go to Windows' HNS and to ours. Must not know the
view's bookkeeping nor VFP.

In order of priority: named services and addresses are allowed; for `ingress`, the hosts' own addresses are allowed
(a Windows host translates a client's address to its own), overlay networks are not, everything else is; the rest is
blocked. What the endpoint opens itself is not restricted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, collapse_addresses
from typing import Literal

from overlace.model.policy import Allowed
from overlace.network.hns import policies as p

LISTED, HOSTS, OVERLAYS, OUTSIDE, REST = 1000, 2000, 3000, 4000, 65500
ANY = "256"


def _acl(
    action: Literal["Allow", "Block"],
    direction: Literal["In", "Out"],
    priority: int,
    remote: Iterable[str] = (),
    protocol: int = 0,
    ports: str = "",
) -> p.Acl:
    return p.Acl(
        p.AclSettings(
            action=action,
            direction=direction,
            protocols=str(protocol) if protocol else ANY,
            remote_addresses=",".join(remote),
            local_ports=ports,
            rule_type="Switch",
            priority=priority,
        )
    )


def shorten(addresses: Iterable[str]) -> list[str]:
    """The fewest prefixes that hold just these."""
    return [str(n) for n in collapse_addresses(IPv4Network(a) for a in addresses)]


def plan_acls(
    allowed: Sequence[Allowed],
    members: Mapping[str, Sequence[str]],
    *,
    own_name: str,
    gateway: str,
    hosts: Sequence[str],
    overlays: Sequence[str],
    published: Sequence[tuple[int, int]],
) -> tuple[p.Acl, ...]:
    """ACLs of an endpoint whose service allows `allowed`.

    `members`: addresses on this network by service name. `own_name`, `gateway`: a task that meets itself behind its own
    VIP comes from the gateway's address. `hosts`: the hosts' own addresses on this network. `overlays`: subnets of
    overlay networks. `published`: (protocol, port of the container) reached from outside by this endpoint.
    """
    out: list[p.Acl] = []
    outside: dict[tuple[int, str], None] = {}
    for item in allowed:
        if item.ingress:
            for protocol, port in published:
                if item.protocol in (0, protocol) and _within(port, item.ports):
                    outside[(protocol, str(port))] = None
            continue
        remote = [item.cidr] if item.cidr else [a for name in item.services for a in members.get(name, ())]
        if own_name in item.services and gateway:
            remote.append(gateway)
        if remote:
            out.append(_acl("Allow", "In", LISTED, shorten(remote), item.protocol, item.ports))
    if outside:
        if hosts:
            out += [_acl("Allow", "In", HOSTS, shorten(hosts), *what) for what in outside]
        if overlays:
            out.append(_acl("Block", "In", OVERLAYS, shorten(overlays)))
        out += [_acl("Allow", "In", OUTSIDE, (), *what) for what in outside]
    out.append(_acl("Block", "In", REST))
    out.append(_acl("Allow", "Out", LISTED))
    return tuple(dict.fromkeys(out))


def _within(port: int, ports: str) -> bool:
    if not ports:
        return True
    low, dash, high = ports.partition("-")
    return int(low) <= port <= int(high if dash else low)
