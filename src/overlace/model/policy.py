"""Who may open connections to a service: the label `overlace.policy.allow-from`, read.

Owns the grammar (docs/policy.md) and what is refused of it (pure). Must not know addresses of tasks nor how hosts
enforce it.

    label  = "none" / item *( "," item )
    item   = who [ ":" protocol [ "/" port [ "-" port ] ] ]
    who    = service name / "ingress" / IPv4 address / IPv4 prefix
    protocol = "tcp" / "udp" / "icmp"          ports belong to tcp and udp
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

import msgspec

from overlace.model.errors import InvalidArgument

PREFIX = "overlace.policy."
ALLOW_FROM = "overlace.policy.allow-from"
STACK = "com.docker.stack.namespace"
NOBODY, INGRESS = "none", "ingress"
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBERS = re.compile(r"[0-9.]+(/[0-9]+)?")


class Allowed(msgspec.Struct, frozen=True):
    """One item: exactly one of `services` (any of these names), `cidr` and `ingress` is given."""

    services: tuple[str, ...] = ()
    cidr: str = ""
    ingress: bool = False  # clients outside the overlay, through published ports
    protocol: int = 0  # 0: any
    ports: str = ""  # of the receiving container: "80" or "8000-8010"; empty: any


def _bad(number: int, item: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"label {ALLOW_FROM}: item {number} {item!r}: {why}")


def parse_allow_from(text: str, stack: str = "") -> tuple[Allowed, ...]:
    """The items of a label's value; none of them for `none`. `stack`: names of services may leave its name out.

    Raises InvalidArgument naming the item and the remedy.
    """
    if text.strip() == NOBODY:
        return ()
    if not text.strip():
        raise InvalidArgument(
            f"label {ALLOW_FROM} is empty: name who may connect, such as web or ingress:tcp/80, or write none"
        )
    return tuple(_parse(i, item.strip(), stack) for i, item in enumerate(text.split(","), 1))


def _parse(number: int, item: str, stack: str) -> Allowed:
    who, colon, what = item.partition(":")
    who = who.strip()
    if not who:
        raise _bad(number, item, "name a service, ingress or an address")
    if who == NOBODY:
        raise _bad(number, item, "none stands alone")
    if colon and not what.strip():
        raise _bad(number, item, "a protocol is missing after the colon, for example tcp/80")
    protocol, ports = _what(number, item, what.strip())
    if who == INGRESS:
        return Allowed(ingress=True, protocol=protocol, ports=ports)
    if _NUMBERS.fullmatch(who) and ("." in who or "/" in who):
        try:
            cidr = str(IPv4Network(who))
        except ValueError as e:
            raise _bad(number, item, f"{e}; write an IPv4 address or prefix such as 192.0.2.0/24") from None
        return Allowed(cidr=cidr, protocol=protocol, ports=ports)
    if not _NAME.fullmatch(who):
        raise _bad(number, item, "is no service's name, IPv4 address or prefix (IPv6 is not there yet)")
    names = (who, f"{stack}_{who}") if stack else (who,)
    return Allowed(services=names, protocol=protocol, ports=ports)


def _what(number: int, item: str, text: str) -> tuple[int, str]:
    if not text:
        return 0, ""
    word, slash, ports = text.partition("/")
    if word not in PROTOCOLS:
        raise _bad(number, item, f"{word!r} is no protocol: write tcp, udp or icmp, for example tcp/80")
    if not slash:
        return PROTOCOLS[word], ""
    low, dash, high = ports.partition("-")
    high = high if dash else low
    if word == "icmp":
        raise _bad(number, item, "icmp has no ports: leave them out")
    if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) < 65536):
        raise _bad(number, item, f"{ports!r} is no port: write 1 to 65535 or a range such as 8000-8010")
    return PROTOCOLS[word], ports


def allow_from(labels: Mapping[str, str]) -> tuple[Allowed, ...] | None:
    """Of a service's labels; None: no policy, anyone may connect. Raises InvalidArgument."""
    text = labels.get(ALLOW_FROM)
    return None if text is None else parse_allow_from(text, labels.get(STACK, ""))


def allow_from_or_nobody(labels: Mapping[str, str]) -> tuple[Allowed, ...] | None:
    """The same for labels that were checked once: what cannot be read lets nobody in."""
    try:
        return allow_from(labels)
    except InvalidArgument:
        return ()


def check_policy_labels(
    labels: Mapping[str, str], container_labels: Iterable[str], *, reachable: bool
) -> None:
    """Raises InvalidArgument. `reachable`: the service is on an overlay network or publishes in ingress mode."""
    for name in labels:
        if name.startswith(PREFIX) and name != ALLOW_FROM:
            raise InvalidArgument(f"label {name} is not known: {ALLOW_FROM} is")
    for name in container_labels:
        if name.startswith(PREFIX):
            raise InvalidArgument(
                f"label {name} stands on the container: put it on the service (--label, in compose deploy.labels)"
            )
    if allow_from(labels) is not None and not reachable:
        raise InvalidArgument(
            f"label {ALLOW_FROM}: the service is on no overlay network, where it would hold: add one (--network)"
        )
