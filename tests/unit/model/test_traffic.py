"""Labels that shape traffic: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.traffic import (
    AFFINITY,
    EGRESS,
    check_traffic_labels,
    kept_affinity,
    kept_egress_limit,
    parse_affinity,
    parse_egress_limit,
)


def test_values() -> None:
    assert [parse_affinity(t) for t in ("none", "client-ip", "client-ip:60")] == [0, 10800, 60]
    assert [parse_egress_limit(t) for t in ("10mbit", "1.5Mbit", "800kbit", "1gbit")] == [
        1_250_000,
        187_500,
        100_000,
        125_000_000,
    ]
    assert kept_affinity({}) == kept_egress_limit({EGRESS: "nonsense"}) == 0


@pytest.mark.parametrize("text", ["", "ip", "client-ip:", "client-ip:0", "client-ip:99999999", "none:3"])
def test_affinity_refusals(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"label overlace\.session-affinity"):
        parse_affinity(text)


@pytest.mark.parametrize("text", ["", "10", "10mb", "1kbit", "1000gbit", "-5mbit"])
def test_rate_refusals(text: str) -> None:
    with pytest.raises(InvalidArgument, match="write 8kbit to 100gbit"):
        parse_egress_limit(text)


def test_labels_that_would_do_nothing_are_refused() -> None:
    check_traffic_labels({AFFINITY: "client-ip", EGRESS: "1mbit"}, (), mode="vip")
    check_traffic_labels({AFFINITY: "none"}, (), mode="dnsrr")
    with pytest.raises(InvalidArgument, match="endpoint mode dnsrr"):
        check_traffic_labels({AFFINITY: "client-ip"}, (), mode="dnsrr")
    with pytest.raises(InvalidArgument, match="put it on the service"):
        check_traffic_labels({}, (EGRESS,), mode="")
