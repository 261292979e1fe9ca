"""How traffic is shaped: the labels `overlace.session-affinity` and `overlace.egress-limit` of a service, and a network's
options for broadcast and multicast, read.

Owns their grammar (docs/policy.md) and what is refused of it (pure). Must not know how hosts do it.

    overlace.session-affinity = "none" / "client-ip" [ ":" seconds ]
    overlace.egress-limit     = number ( "bit" / "kbit" / "mbit" / "gbit" )     bits per second, as tc has it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from overlace.model.errors import InvalidArgument
from overlace.model.specs import (
    DEFAULT_MULTICAST_RATE,
    HOST_ACCESS_OPTION,
    MAX_MULTICAST_RATE,
    MULTICAST_OPTION,
    MULTICAST_RATE_OPTION,
)

AFFINITY = "overlace.session-affinity"
EGRESS = "overlace.egress-limit"
DEFAULT_AFFINITY = 10800  # seconds, as Kubernetes' ClientIP affinity has it
MAX_AFFINITY = 30 * 86400
UNITS = {"bit": 1, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}
MIN_RATE, MAX_RATE = 8000, 100 * 1000**3  # bits per second
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(bit|kbit|mbit|gbit)", re.IGNORECASE)


def parse_affinity(text: str) -> int:
    """Seconds in which a client's next connection goes to the same task; 0: any. Raises InvalidArgument."""
    word, colon, seconds = text.strip().partition(":")
    if word == "none" and not colon:
        return 0
    if word != "client-ip":
        raise InvalidArgument(
            f"label {AFFINITY}: {text!r} is not known: write client-ip, client-ip:SECONDS or none"
        )
    if not colon:
        return DEFAULT_AFFINITY
    if not seconds.isdecimal() or not 0 < int(seconds) <= MAX_AFFINITY:
        raise InvalidArgument(f"label {AFFINITY}: {seconds!r} is no time: write 1 to {MAX_AFFINITY} seconds")
    return int(seconds)


def parse_egress_limit(text: str) -> int:
    """Bytes per second. Raises InvalidArgument."""
    found = _RATE.fullmatch(text.strip())
    bits = float(found[1]) * UNITS[found[2].lower()] if found else 0
    if not MIN_RATE <= bits <= MAX_RATE:
        raise InvalidArgument(
            f"label {EGRESS}: {text!r} is no rate: write 8kbit to 100gbit, for example 10mbit"
        )
    return int(bits) // 8


def _kept(label: str, parse: Callable[[str], int], labels: Mapping[str, str]) -> int:
    try:
        return parse(labels[label]) if label in labels else 0
    except InvalidArgument:  # labels were checked once; an older daemon may have let it through
        return 0


def kept_affinity(labels: Mapping[str, str]) -> int:
    return _kept(AFFINITY, parse_affinity, labels)


def kept_egress_limit(labels: Mapping[str, str]) -> int:
    return _kept(EGRESS, parse_egress_limit, labels)


def check_traffic_labels(labels: Mapping[str, str], container_labels: Iterable[str], *, mode: str) -> None:
    """Raises InvalidArgument. `mode`: of the service's endpoint."""
    for label, parse in ((AFFINITY, parse_affinity), (EGRESS, parse_egress_limit)):
        if label in container_labels:
            raise InvalidArgument(
                f"label {label} stands on the container: put it on the service (--label, in compose deploy.labels)"
            )
        if label in labels:
            parse(labels[label])
    if AFFINITY in labels and mode == "dnsrr" and parse_affinity(labels[AFFINITY]):
        raise InvalidArgument(
            f"label {AFFINITY}: the service has no VIP (endpoint mode dnsrr) that could keep clients apart"
        )


def check_container_traffic(labels: Mapping[str, str]) -> None:
    """Of a container outside of services. Raises InvalidArgument."""
    if AFFINITY in labels:
        raise InvalidArgument(f"label {AFFINITY}: a container of its own has no VIP: make a service for that")
    if EGRESS in labels:
        parse_egress_limit(labels[EGRESS])


def multicast_rate(options: Mapping[str, str]) -> int:
    """Broadcast and multicast packets a second that one host may send on a network with these options; 0: none."""
    if options.get(MULTICAST_OPTION) != "true":
        return 0
    text = options.get(MULTICAST_RATE_OPTION, "")
    return min(int(text), MAX_MULTICAST_RATE) if text.isdecimal() and int(text) else DEFAULT_MULTICAST_RATE


def host_access(options: Mapping[str, str]) -> bool:
    """Whether hosts' own processes reach services and containers of a network with these options."""
    return options.get(HOST_ACCESS_OPTION) == "true"
