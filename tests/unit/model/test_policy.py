"""The label overlace.policy.allow-from: what it means, and what is refused with which words."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.policy import ALLOW_FROM, ALLOW_TO, Allowed, check_policy_labels, parse_items, read_policy

LABEL = "overlace.policy.allow-from"


def test_items() -> None:
    assert parse_items(ALLOW_FROM, " web , ingress:tcp/80,10.0.0.0/8:udp/53-54, 192.0.2.7:icmp,db:tcp") == (
        Allowed(services=("web",)),
        Allowed(outside=True, protocol=6, ports="80"),
        Allowed(cidr="10.0.0.0/8", protocol=17, ports="53-54"),
        Allowed(cidr="192.0.2.7/32", protocol=1),
        Allowed(services=("db",), protocol=6),
    )
    assert parse_items(ALLOW_FROM, "none") == ()
    assert parse_items(ALLOW_TO, "internet:tcp/443, web") == (
        Allowed(outside=True, protocol=6, ports="443"),
        Allowed(services=("web",)),
    )
    assert parse_items(ALLOW_FROM, "web", "shop") == (Allowed(services=("web", "shop_web")),)
    assert parse_items(ALLOW_FROM, "[FD00::/64]:tcp/80, [fd00::1]") == (
        Allowed(cidr="fd00::/64", protocol=6, ports="80"),
        Allowed(cidr="fd00::1/128"),
    )
    assert read_policy(ALLOW_FROM, {}) is None
    assert read_policy(ALLOW_FROM, {LABEL: "web", "com.docker.stack.namespace": "shop"}) == parse_items(
        ALLOW_FROM, "web", "shop"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: name who may connect, such as web or ingress:tcp/80, or write none"),
        ("internet", "internet belongs to the other label; here it is ingress"),
        ("web,", "item 2 '': name a service, ingress or an address"),
        ("web,none", "item 2 'none': none stands alone"),
        ("web:", "a protocol is missing after the colon, for example tcp/80"),
        ("web:tpc/80", "'tpc' is no protocol: write tcp, udp, sctp or icmp, for example tcp/80"),
        ("web:80", "'80' is no protocol"),
        ("web:tcp/0", "'0' is no port: write 1 to 65535 or a range"),
        ("web:tcp/90-80", "'90-80' is no port"),
        ("web:tcp/", "'' is no port"),
        ("web:icmp/8", "icmp has no ports"),
        ("10.0.0.1/8", "has host bits set; write an IPv4 address or prefix"),
        ("10.0.0.300", "write an IPv4 address or prefix"),
        ("fd00::1", "an IPv6 address stands in brackets: [fd00::1]"),
        ("fd00::/64", "an IPv6 address stands in brackets: [fd00::/64]"),
        ("[fd00::1/64]:tcp/80", "has host bits set; write an IPv6 address or prefix in brackets"),
        ("[10.0.0.1]", "write an IPv6 address or prefix in brackets, such as [fd00::/64]"),
        ("[fd00::1]tcp/80", "write an IPv6 address or prefix in brackets"),
        ("[fd00::1", "write an IPv6 address or prefix in brackets"),
        ("[fd00::/64]:tpc", "'tpc' is no protocol"),
        ("[]", "name a service, ingress or an address"),
        ("we b", "is no service's name, IPv4 address or prefix"),
    ],
)
def test_refusals_name_the_item_and_the_remedy(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_items(ALLOW_FROM, text)
    assert f"label {LABEL}" in refused.value.message and words in refused.value.message


def test_labels_that_would_do_nothing_are_refused() -> None:
    def refusal(labels: dict[str, str], container: tuple[str, ...] = (), *, reachable: bool = True) -> str:
        with pytest.raises(InvalidArgument) as refused:
            check_policy_labels(labels, container, reachable=reachable)
        return refused.value.message

    check_policy_labels({LABEL: "web", "other": ""}, ["maker"], reachable=True)
    assert f"{LABEL} and overlace.policy.allow-to are" in refusal({"overlace.policy.allowfrom": "web"})
    assert "put it on the service" in refusal({}, (LABEL,))
    assert "--network" in refusal({LABEL: "web"}, reachable=False)
