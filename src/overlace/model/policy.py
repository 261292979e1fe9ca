"""Who may open connections to a service, and what its tasks may open: the labels `overlace.policy.*`, read.

Owns the grammar (docs/policy.md) and what is refused of it (pure). Must not know addresses of tasks nor how hosts
enforce it.

    label  = "none" / item *( "," item )
    item   = who [ ":" protocol [ "/" port [ "-" port ] ] ]
    who    = service name / "ingress" or "internet" / IPv4 address / IPv4 prefix
    protocol = "tcp" / "udp" / "sctp" / "icmp" ports belong to the first three
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network

import msgspec

from overlace.model.errors import InvalidArgument
from overlace.model.protocols import PROTOCOLS

PREFIX = "overlace.policy."
ALLOW_FROM = "overlace.policy.allow-from"
ALLOW_TO = "overlace.policy.allow-to"
LABELS = (ALLOW_FROM, ALLOW_TO)
STACK = "com.docker.stack.namespace"
NOBODY, INGRESS, INTERNET = "none", "ingress", "internet"
OUTSIDE = {ALLOW_FROM: INGRESS, ALLOW_TO: INTERNET}  # the word for what is outside the overlay
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBERS = re.compile(r"[0-9.]+(/[0-9]+)?")


class Allowed(msgspec.Struct, frozen=True):
    """One item: exactly one of `services` (any of these names), `cidr` and `outside` is given."""

    services: tuple[str, ...] = ()
    cidr: str = ""
    outside: bool = False  # clients of published ports; of what a task opens, addresses outside the overlay
    protocol: int = 0  # 0: any
    ports: str = ""  # of the receiving container: "80" or "8000-8010"; empty: any


Items = tuple[Allowed, ...]


def _bad(label: str, number: int, item: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"label {label}: item {number} {item!r}: {why}")


def parse_items(label: str, text: str, stack: str = "") -> Items:
    """The items of a label's value; none of them for `none`. `stack`: names of services may leave its name out.

    Raises InvalidArgument naming the item and the remedy.
    """
    if text.strip() == NOBODY:
        return ()
    if not text.strip():
        who = "who may connect" if label == ALLOW_FROM else "what its tasks may open"
        example = f"web or {OUTSIDE[label]}:tcp/80"
        raise InvalidArgument(f"label {label} is empty: name {who}, such as {example}, or write none")
    return tuple(_parse(label, i, item.strip(), stack) for i, item in enumerate(text.split(","), 1))


def _parse(label: str, number: int, item: str, stack: str) -> Allowed:
    who, colon, what = _split(item)
    if _is_six(item):
        raise _bad(label, number, item, f"an IPv6 address stands in brackets: [{item}]")
    if not who:
        raise _bad(label, number, item, f"name a service, {OUTSIDE[label]} or an address")
    if who == NOBODY:
        raise _bad(label, number, item, "none stands alone")
    if colon and not what.strip():
        raise _bad(label, number, item, "a protocol is missing after the colon, for example tcp/80")
    try:
        protocol, ports = _what(what.strip())
    except ValueError as e:
        raise _bad(label, number, item, str(e)) from None
    if who == OUTSIDE[label]:
        return Allowed(outside=True, protocol=protocol, ports=ports)
    if who in (INGRESS, INTERNET):
        raise _bad(label, number, item, f"{who} belongs to the other label; here it is {OUTSIDE[label]}")
    if not item.startswith("[") and _NUMBERS.fullmatch(who) and ("." in who or "/" in who):
        try:
            cidr = str(IPv4Network(who))
        except ValueError as e:
            remedy = f"{e}; write an IPv4 address or prefix such as 192.0.2.0/24"
            raise _bad(label, number, item, remedy) from None
        return Allowed(cidr=cidr, protocol=protocol, ports=ports)
    if item.startswith("["):
        try:
            cidr = str(IPv6Network(who))
        except ValueError as e:
            remedy = f"{e}; write an IPv6 address or prefix in brackets, such as [fd00::/64]"
            raise _bad(label, number, item, remedy) from None
        return Allowed(cidr=cidr, protocol=protocol, ports=ports)
    if not _NAME.fullmatch(who):
        why = "is no service's name, IPv4 address or prefix (an IPv6 one stands in brackets: [fd00::/64])"
        raise _bad(label, number, item, why)
    names = (who, f"{stack}_{who}") if stack else (who,)
    return Allowed(services=names, protocol=protocol, ports=ports)


def _split(item: str) -> tuple[str, str, str]:
    """(who, ":" or "", what) of an item; an IPv6 address, which has colons itself, stands in brackets."""
    if item.startswith("["):
        who, bracket, rest = item[1:].partition("]")
        empty, colon, what = rest.partition(":")
        return (who.strip(), colon, what) if bracket and not empty.strip() else (item, "", "")
    who, colon, what = item.partition(":")
    return who.strip(), colon, what


def _is_six(text: str) -> bool:
    try:
        IPv6Network(text, strict=False)
    except ValueError:
        return False
    return True


def _what(text: str) -> tuple[int, str]:
    """Raises ValueError with the remedy."""
    if not text:
        return 0, ""
    word, slash, ports = text.partition("/")
    if word not in PROTOCOLS:
        raise ValueError(f"{word!r} is no protocol: write tcp, udp, sctp or icmp, for example tcp/80")
    if not slash:
        return PROTOCOLS[word], ""
    low, dash, high = ports.partition("-")
    high = high if dash else low
    if word == "icmp":
        raise ValueError("icmp has no ports: leave them out")
    if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) < 65536):
        raise ValueError(f"{ports!r} is no port: write 1 to 65535 or a range such as 8000-8010")
    return PROTOCOLS[word], ports


def read_policy(label: str, labels: Mapping[str, str]) -> Items | None:
    """What one of LABELS says; None: nothing, so that nobody is kept out. Raises InvalidArgument."""
    text = labels.get(label)
    return None if text is None else parse_items(label, text, labels.get(STACK, ""))


def kept_policy(label: str, labels: Mapping[str, str]) -> Items | None:
    """The same for labels that were checked once: what cannot be read allows nothing."""
    try:
        return read_policy(label, labels)
    except InvalidArgument:
        return ()


def check_known(labels: Iterable[str]) -> None:
    """Raises InvalidArgument for a label of ours that means nothing."""
    for name in labels:
        if name.startswith(PREFIX) and name not in LABELS:
            raise InvalidArgument(f"label {name} is not known: {' and '.join(LABELS)} are")


def check_policy_labels(
    labels: Mapping[str, str], container_labels: Iterable[str], *, reachable: bool
) -> None:
    """Raises InvalidArgument. `reachable`: the service is on an overlay network or publishes in ingress mode."""
    check_known(labels)
    for name in container_labels:
        if name.startswith(PREFIX):
            raise InvalidArgument(
                f"label {name} stands on the container: put it on the service (--label, in compose deploy.labels)"
            )
    for label in LABELS:
        if read_policy(label, labels) is not None and not reachable:
            raise InvalidArgument(
                f"label {label}: the service is on no overlay network, where it would hold: add one (--network)"
            )


def policy_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Of all labels of a container, those that say who may speak with it, and the stack their names are of."""
    found = {name: labels[name] for name in LABELS if name in labels}
    return found | ({STACK: labels[STACK]} if found and STACK in labels else {})


def check_container_labels(labels: Mapping[str, str]) -> None:
    """Of a container outside of services: they hold on the swarm's networks it is on. Raises InvalidArgument."""
    check_network_labels(labels)


def check_network_labels(labels: Mapping[str, str]) -> None:
    """The same labels on a network hold for its services without their own. Raises InvalidArgument."""
    check_known(labels)
    for label in LABELS:
        read_policy(label, labels)


def meet(a: str, b: str) -> str | None:
    """The ports both ranges hold, "" being all of them; None: none."""
    if not a or not b:
        return a or b
    (alow, ahigh), (blow, bhigh) = _range(a), _range(b)
    low, high = max(alow, blow), min(ahigh, bhigh)
    if low > high:
        return None
    return str(low) if low == high else f"{low}-{high}"


def _range(ports: str) -> tuple[int, int]:
    low, dash, high = ports.partition("-")
    return int(low), int(high if dash else low)


def holds(ports: str, port: int) -> bool:
    """Whether `port` is in the range, "" being all of them."""
    low, high = _range(ports) if ports else (0, 65535)
    return low <= port <= high
