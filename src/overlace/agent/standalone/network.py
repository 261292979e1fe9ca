"""From a standalone container's wish to what it asks of the host's network. Pure.

Owns that translation. Must not know how an address is got, nor touch disk or sockets.
"""

from __future__ import annotations

from collections.abc import Sequence

from overlace.agent.standalone.attacher import Given, attachment_id
from overlace.agent.standalone.records import Dns, Wish
from overlace.model.objects import NetworkAttachment
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, kept_policy, policy_labels
from overlace.model.traffic import kept_egress_limit
from overlace.network.base import TaskNetwork
from overlace.network.resolv_conf import container_resolv_conf, host_resolv_conf, parse_resolv_conf
from overlace.wire.messages import Attachment


def plan_attachments(wish: Wish) -> list[Attachment]:
    """What a manager is asked for: a place on each of the swarm's networks, under the container's name and aliases."""
    return [
        Attachment(
            id=attachment_id(wish.id, j.target, j.turn),
            container_id=wish.id,
            name=wish.config.name,
            target=j.target,
            aliases=tuple(dict.fromkeys((*j.aliases, wish.id[:12], wish.config.hostname))),
            addresses=j.addresses,
            labels=policy_labels(wish.config.labels),
        )
        for j in wish.networks
        if j.target
    ]


def plan_network(wish: Wish, given: Sequence[Given]) -> TaskNetwork:
    """`given`: the places on the swarm's networks, in the order they were asked for."""
    places = iter(given)
    attachments = tuple(
        NetworkAttachment(place.network_id, place.addresses, j.aliases)
        for j in wish.networks
        if j.target and (place := next(places))
    )
    return TaskNetwork(
        task_id=wish.id,
        task_name=wish.config.name,
        service_id="",
        service_name="",
        attachments=attachments,
        local=not wish.mode and any(not j.target for j in wish.networks),
        host_ports=wish.ports,
        mode=wish.mode,
        nameservers=wish.dns.servers,
        allowed=kept_policy(ALLOW_FROM, wish.config.labels),
        allowed_to=kept_policy(ALLOW_TO, wish.config.labels),
        egress=kept_egress_limit(wish.config.labels),
    )


def resolv_conf(wish: Wish, host: str, upstreams: Sequence[str]) -> str:
    """The container's /etc/resolv.conf; `host`: the text of this host's, `upstreams`: what the daemon was told to ask."""
    if wish.mode == "none":
        return ""
    servers, search, options = parse_resolv_conf(host)
    own: Dns = wish.dns
    search = [s for s in own.search if s != "."] if own.search else search
    options = list(own.options) or options
    if wish.mode == "host":
        return host_resolv_conf(own.servers or upstreams or servers, search, options)
    return container_resolv_conf(search, options)
