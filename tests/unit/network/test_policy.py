"""Who may connect: from a service's policy to what packets experience on the host of its tasks."""

from __future__ import annotations

import msgspec
import pytest

from overlace.model.policy import parse_allow_from
from overlace.network.hns import policies as p
from overlace.network.hns.acl import MAX_RULES, acls_of, parse_acl
from overlace.network.hns.documents import HostComputeEndpoint, encode, parse
from overlace.network.hns.errors import HcnError
from overlace.network.overlay import guid_of
from overlace.network.vfp.model import HOST_PORT, Packet
from overlace.network.vfp.simulate import Verdict, simulate
from overlace.network.vfp.tables import AccessList, LocalEndpoint

from .world import HOST, ME, OTHER, World, endpoint, port, service, shop, task

BACK = guid_of("endpoint", "back", "t1")


def guarded(text: str | None, windows: bool = False) -> World:
    """db runs here on `back` and `ingress`, published at 8080 (its port 80); web elsewhere."""
    w = shop()
    allowed = None if text is None else parse_allow_from(text)
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
    w.change(put=(msgspec.structs.replace(entry, allowed=parse_allow_from("10.0.1.8/29")),))
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
    w.run(msgspec.structs.replace(t, allowed=parse_allow_from("web")))
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
    assert acls[-2]["Action"] == "Block" and acls[-2]["Priority"] == 65500
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
    (only,) = acls_of(e.policies)
    assert (only.allow, only.direction, only.protocols, only.priority) == (False, "Out", (), 7)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"rule_type": "Host"}, "only Switch rules"),
        ({"priority": 0}, "use 1 to 65500"),
        ({"protocols": "tcp"}, "write IANA numbers"),
        ({"protocols": "252"}, "write IANA numbers"),
        ({"remote_addresses": "10.0.0.300"}, "ACL.RemoteAddresses '10.0.0.300'"),
        ({"local_ports": "80"}, "ports belong to TCP and UDP"),
        ({"protocols": "6", "local_ports": "0-9"}, "from 1 to 65535"),
    ],
)
def test_what_cannot_be_enforced_is_refused(members: dict[str, object], words: str) -> None:
    with pytest.raises(HcnError, match=words):
        parse_acl(acl(**members))


def test_too_many_rules_are_refused_by_number() -> None:
    w = guarded(None)
    e = w.hns.get(HostComputeEndpoint, BACK)
    many = ",".join(f"10.0.{n // 200}.{n % 200}/32" for n in range(MAX_RULES + 1))
    loaded = msgspec.structs.replace(e, policies=(*e.policies, p.Acl(acl(remote_addresses=many))))
    with pytest.raises(HcnError, match=f"{MAX_RULES + 1} rules for direction In"):
        w.hns._store(loaded)
