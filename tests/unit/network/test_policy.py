"""Who may connect: from a service's policy to what packets experience on the host of its tasks."""

from __future__ import annotations

import msgspec
import pytest

from overlace.model.policy import ALLOW_FROM, parse_items
from overlace.network.hns import policies as p
from overlace.network.hns.acl import MAX_ADDRESSES, MAX_RULES, parse_acl, tiers_of
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork, encode, parse
from overlace.network.hns.errors import HcnError
from overlace.network.overlay_documents import guid_of
from overlace.network.vfp.model import HOST_PORT, Packet
from overlace.network.vfp.simulate import Verdict, simulate
from overlace.network.vfp.tables import AccessList, AccessRule, LocalEndpoint

from .world import HOST, ME, OTHER, World, endpoint, port, service, shop, task

BACK = guid_of("endpoint", "back", "t1")


def guarded(text: str | None, windows: bool = False) -> World:
    """db runs here on `back` and `ingress`, published at 8080 (its port 80); web elsewhere."""
    w = shop()
    allowed = None if text is None else parse_items(ALLOW_FROM, text)
    w.change(
        put=(
            msgspec.structs.replace(service("db", "back", "10.0.1.5"), allowed=allowed),
            msgspec.structs.replace(service("db", "ingress", "10.0.0.5", port(80, 8080)), allowed=allowed),
            endpoint("t1", "back", ME, "10.0.1.9", "db"),
            endpoint("t1", "ingress", ME, "10.0.0.9", "db"),
            endpoint("t2", "back", OTHER, "10.0.1.10", "web"),
            endpoint("t3", "back", OTHER, "10.0.1.11", "cron"),
        )
    )
    w.run(task("t1", ("back", "10.0.1.9/24"), ("ingress", "10.0.0.9/24"), service="db"))
    return w


def from_peer(w: World, src: str, dport: int = 80, protocol: int = 6) -> Verdict:
    return simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet(src, "10.0.1.9", protocol, 999, dport), 4097)


def from_client(w: World, src: str = "172.28.1.200") -> Verdict:
    return simulate(w.hns.state, HOST, HOST_PORT, "IN", Packet(src, HOST, 6, 999, 8080))


def test_without_a_policy_nothing_is_asked() -> None:
    w = guarded(None)
    assert from_peer(w, "10.0.1.10").action == from_client(w).action == "deliver"
    local = w.data_path.get(("endpoint", 4097, "10.0.1.9"))
    assert isinstance(local, LocalEndpoint) and not local.inbound and not local.outbound
    assert not [e for e in w.data_path if isinstance(e, AccessList)]


def test_only_whom_the_label_names() -> None:
    w = guarded("web:tcp/80")
    assert from_peer(w, "10.0.1.10").action == "deliver"
    for refused in (
        from_peer(w, "10.0.1.10", 81),
        from_peer(w, "10.0.1.10", 80, 17),
        from_peer(w, "10.0.1.11"),
        from_client(w),
    ):
        assert refused.action == "drop" and "an ACL of priority 65500 blocks it" in refused.reason
        assert refused.steps[-1].layer == "FW_ADMIN_LAYER_ID"
    out = simulate(w.hns.state, HOST, BACK, "OUT", Packet("10.0.1.9", "10.0.1.11", 6, 1, 80))
    assert out.action == "encap"  # what it opens itself is free
    local = w.data_path.get(("endpoint", 4097, "10.0.1.9"))
    assert isinstance(local, LocalEndpoint) and local.outbound and not local.lets_out  # not to itself


def test_what_lets_everything_out() -> None:
    def allows_all(*rules: AccessRule) -> bool:
        return AccessList(4097, "10.0.1.9", "OUT", rules).allows_all

    assert allows_all(AccessRule("allow", tier=3), AccessRule("block"))
    assert not allows_all() and not allows_all(AccessRule("allow", 6))
    assert not allows_all(AccessRule("block", remote=("10.0.1.5/32",)), AccessRule("allow"))


def test_tasks_come_and_go() -> None:
    w = guarded("web")
    assert from_peer(w, "10.0.1.12").action == "drop"
    w.change(put=(endpoint("t4", "back", OTHER, "10.0.1.12", "web"),))
    assert from_peer(w, "10.0.1.12").action == "deliver"
    w.change(remove=("endpoint/back/t4",))
    assert from_peer(w, "10.0.1.12").action == "drop"
    before = w.data_path.get(("endpoint", 4097, "10.0.1.9"))
    w.change(put=(endpoint("t5", "back", OTHER, "10.0.1.13", "other"),))  # of no concern
    assert w.data_path.get(("endpoint", 4097, "10.0.1.9")) == before


def test_a_policy_changes_and_goes() -> None:
    w = guarded("none")
    assert from_peer(w, "10.0.1.10").action == "drop"
    entry = service("db", "back", "10.0.1.5")
    w.change(put=(msgspec.structs.replace(entry, allowed=parse_items(ALLOW_FROM, "10.0.1.8/29")),))
    assert [from_peer(w, a).action for a in ("10.0.1.10", "10.0.1.16")] == ["deliver", "drop"]
    w.change(put=(entry,))
    assert from_peer(w, "10.0.1.16").action == "deliver"


def test_ingress_is_the_outside_and_not_the_overlay() -> None:
    w = guarded("ingress")
    assert from_client(w).action == "deliver" and from_peer(w, "10.0.1.10").action == "drop"
    inside = Packet("10.0.0.77", "10.0.0.9", 6, 1, 80)
    assert simulate(w.hns.state, HOST, HOST_PORT, "IN", inside, 4096).action == "drop"
    # a Windows host gives a client its own address on the network
    host = msgspec.structs.replace(inside, src="10.0.0.3")
    assert simulate(w.hns.state, HOST, HOST_PORT, "IN", host, 4096).action == "deliver"
    other = msgspec.structs.replace(host, dport=81)  # not published
    assert simulate(w.hns.state, HOST, HOST_PORT, "IN", other, 4096).action == "drop"
    assert from_client(guarded("ingress:udp")).action == "drop"


def test_a_task_behind_its_own_vip() -> None:
    """It comes from the gateway's address then."""
    assert from_peer(guarded("db"), "10.0.1.1").action == "deliver"
    assert from_peer(guarded("web"), "10.0.1.1").action == "drop"


def test_a_service_that_goes_leaves_its_tasks_guarded() -> None:
    w = guarded("web")
    t = w.tasks["t1"].task
    w.run(msgspec.structs.replace(t, allowed=parse_items(ALLOW_FROM, "web")))
    w.change(remove=("service/back/db", "service/ingress/db"))
    assert [from_peer(w, a).action for a in ("10.0.1.10", "10.0.1.11")] == ["deliver", "drop"]


def test_windows_gets_the_same_documents() -> None:
    w = guarded("web:tcp/80, ingress")
    e = w.hns.get(HostComputeEndpoint, BACK)
    sent = msgspec.json.decode(encode(e))
    acls = [x["Settings"] for x in sent["Policies"] if x["Type"] == "ACL"]
    assert {
        "Action": "Allow",
        "Direction": "In",
        "Protocols": "6",
        "RemoteAddresses": "10.0.1.10/32",
        "LocalPorts": "80",
        "RuleType": "Switch",
        "Priority": 1000,
    } in acls
    assert [(a["Action"], a["Direction"]) for a in acls if a["Priority"] == 65500] == [
        ("Block", "In"),
        ("Allow", "Out"),
    ]
    assert parse("endpoint", encode(e)) == e


# -- ACL documents -------------------------------------------------------------------------------------------


def acl(**members: object) -> p.AclSettings:
    given = {"action": "Allow", "direction": "In", "rule_type": "Switch", "priority": 100, **members}
    return p.AclSettings(**given)  # type: ignore[arg-type]


def test_numbers_and_any_case_are_understood() -> None:
    raw = (
        b'{"HostComputeNetwork":"x","Policies":[{"Type":1,"Settings":{"Action":1,"Direction":"OUT",'
        b'"Protocols":"256","RuleType":"switch","Priority":7}}]}'
    )
    e = parse("endpoint", raw)
    assert isinstance(e, HostComputeEndpoint)
    (tier,) = tiers_of(e.policies, "Out")
    (only,) = tier.rules
    assert (only.action, only.direction, only.protocols, only.priority) == ("block", "Out", (), 7)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"action": "Pass"}, "Pass belongs to rules of a TierAcl"),
        ({"priority": 0}, "use 1 to 65500"),
        ({"protocols": "tcp"}, "write IANA numbers"),
        ({"protocols": "253"}, "write IANA numbers"),
        ({"remote_addresses": "10.0.0.300"}, "ACL.RemoteAddresses '10.0.0.300'"),
        ({"local_ports": "80"}, "ports belong to TCP, UDP and SCTP"),
        ({"protocols": "6", "local_ports": "0-9"}, "from 1 to 65535"),
    ],
)
def test_what_cannot_be_enforced_is_refused(members: dict[str, object], words: str) -> None:
    with pytest.raises(HcnError, match=words):
        parse_acl(acl(**members))


def add(w: World, *policies: p.EndpointPolicy) -> None:
    e = w.hns.get(HostComputeEndpoint, BACK)
    w.hns._store(msgspec.structs.replace(e, policies=(*e.policies, *policies)))


def test_thousands_of_addresses_are_one_rule() -> None:
    w = guarded(None)
    many = [f"10.{n // 200}.{n % 200}.7/32" for n in range(MAX_ADDRESSES)]
    add(w, p.Acl(acl(remote_addresses=",".join(many))))
    w.compiler.update(w.hns.drain())
    found = w.compiler.tables.get(("access", 4097, "10.0.1.9", "IN"))
    assert isinstance(found, AccessList) and len(found.rules) == 1
    assert from_peer(w, "10.20.95.7").action == "deliver" and from_peer(w, "10.20.96.7").action == "drop"


def test_too_many_are_refused_by_number() -> None:
    w = guarded(None)
    many = ",".join(f"10.{n // 200}.{n % 200}.7/32" for n in range(MAX_ADDRESSES + 1))
    with pytest.raises(HcnError, match=f"ACL.RemoteAddresses '{MAX_ADDRESSES + 1} items'"):
        add(w, p.Acl(acl(remote_addresses=many)))
    ports = ",".join(str(n) for n in range(1, 2 * MAX_RULES + 2, 2))
    with pytest.raises(HcnError, match=f"{MAX_RULES + 1} rules for direction In"):
        add(w, p.Acl(acl(protocols="6", local_ports=ports)))


# -- tiers, sets, host rules ---------------------------------------------------------------------------------


def tier(name: str, order: int, *rules: tuple[str, str]) -> p.TierAcl:
    """Rules are (action, remote addresses), in order."""
    made = tuple(
        p.TierAclRule(tier_acl_rule_action=action, remote_addresses=remote, priority=i)  # type: ignore[arg-type]
        for i, (action, remote) in enumerate(rules)
    )
    return p.TierAcl(p.TierAclSettings(name=name, direction="In", order=order, tier_acl_rules=made))


def test_tiers_decide_before_plain_acls_and_pass_lets_the_next_decide() -> None:
    w = guarded(None)
    add(
        w,
        p.Acl(acl(remote_addresses="10.0.1.10")),
        tier("base", 2, ("Block", "10.0.1.0/28"), ("Allow", "10.0.2.0/24")),
        tier("admin", 1, ("Pass", "10.0.1.12/31"), ("Allow", "10.0.1.0/29"), ("Block", "10.0.2.9")),
    )
    verdicts = {
        a: from_peer(w, a).action for a in ("10.0.1.4", "10.0.1.10", "10.0.1.12", "10.0.2.7", "10.0.2.9")
    }
    assert verdicts == {
        "10.0.1.4": "deliver",  # admin allows it
        "10.0.1.10": "drop",  # base blocks it before the ACL is asked
        "10.0.1.12": "drop",  # admin passes, base blocks
        "10.0.2.7": "deliver",
        "10.0.2.9": "drop",
    }
    assert "tier base: an ACL of priority 0 blocks it" in from_peer(w, "10.0.1.12").reason
    assert "no ACL IN allows it" in from_peer(w, "10.0.3.1").reason


def test_host_rules_block_and_allow_nothing_by_themselves() -> None:
    w = guarded(None)
    add(w, p.Acl(acl(rule_type="Host", action="Block", remote_addresses="10.0.1.11", priority=0)))
    assert [from_peer(w, a).action for a in ("10.0.1.10", "10.0.1.11")] == ["deliver", "drop"]
    add(w, p.Acl(acl(rule_type="Host", priority=0)), p.Acl(acl(remote_addresses="10.0.1.11,10.0.1.12")))
    assert [from_peer(w, a).action for a in ("10.0.1.10", "10.0.1.11", "10.0.1.12")] == [
        "drop",
        "drop",
        "deliver",
    ]


def test_the_host_itself_is_judged_by_the_endpoints_acls() -> None:
    """Rules of type Host are no way round those of type Switch: Calico gives every endpoint an Allow of that type beside
    its default Block, and lets its host in by a rule of type Switch."""
    w = guarded(None)

    def from_host() -> Verdict:
        packet = Packet(HOST, "10.0.1.9", 6, 999, 80)
        return simulate(w.hns.state, HOST, HOST_PORT, "OUT", packet)

    assert (from_host().action, from_host().port) == ("deliver", guid_of("endpoint", "back", "t1"))
    anyone = p.Acl(acl(rule_type="Host", priority=0))
    block = p.Acl(acl(action="Block", priority=1001))
    add(w, anyone, block)
    assert (from_host().action, from_peer(w, "10.0.1.10").action) == ("drop", "drop")
    assert "priority 1001 blocks it" in from_host().reason
    add(w, anyone, block, p.Acl(acl(priority=900, remote_addresses=HOST)))
    assert (from_host().action, from_peer(w, "10.0.1.10").action) == ("deliver", "drop")
    w = guarded(None)
    add(w, p.Acl(acl(rule_type="Host", action="Block", remote_addresses=HOST, priority=0)))
    assert (from_host().action, from_peer(w, "10.0.1.10").action) == ("drop", "deliver")
    nowhere = simulate(w.hns.state, HOST, HOST_PORT, "OUT", Packet(HOST, "10.0.1.10", 6, 999, 80))
    assert nowhere.action == "host", "a container elsewhere: the host's own routes say where that leads"


def network_sets(w: World, **values: str) -> None:
    n = w.hns.get(HostComputeNetwork, guid_of("network", "back"))
    kept = tuple(x for x in n.policies if not isinstance(x, p.SetPolicy))
    made = (
        p.SetPolicy(
            p.SetPolicySettings(
                id=name,
                name=name,
                policy_type="NESTEDIPSET" if name.startswith("all") else "IPSET",
                values=text,
            )
        )
        for name, text in values.items()
    )
    w.hns._store(msgspec.structs.replace(n, policies=(*kept, *made)))


def test_sets_are_named_by_acls_and_change_by_themselves() -> None:
    w = guarded(None)
    with pytest.raises(HcnError, match="'web': no address, and the network has no SetPolicy of this Id"):
        add(w, p.Acl(acl(remote_addresses="web")))
    network_sets(w, web="10.0.1.10", cron="10.0.1.11", all="web,cron")
    add(w, p.Acl(acl(remote_addresses="web,10.0.1.12")))
    assert [from_peer(w, f"10.0.1.1{n}").action for n in range(3)] == ["deliver", "drop", "deliver"]
    w.compiler.update(w.hns.drain())
    network_sets(w, web="", cron="10.0.1.11", all="web,cron")
    delta = w.compiler.update(w.hns.drain())
    assert ("access", 4097, "10.0.1.9", "IN") in {e.key for e in delta.put}
    assert [from_peer(w, f"10.0.1.1{n}").action for n in range(3)] == ["drop", "drop", "deliver"]
    add(w, p.Acl(acl(remote_addresses="all")))
    assert from_peer(w, "10.0.1.11").action == "deliver"
    with pytest.raises(HcnError, match="SetPolicy 'all' is used by an ACL of endpoint"):
        network_sets(w, web="", cron="")
    with pytest.raises(HcnError, match=r"SetPolicy all\.Values 'nobody': name IPSETs"):
        network_sets(w, web="", all="nobody")
