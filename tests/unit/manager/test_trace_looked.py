"""What hosts say, laid over a computed trace: which word it is that the person reads first."""

from __future__ import annotations

import msgspec
import pytest
from paths_kit import A, B, made, path

from overlace.manager.trace.answer import Hop, Member, Origin, Trace
from overlace.manager.trace.looked import with_findings, with_live, with_paths
from overlace.model.findings import Finding, Said, Sighting
from overlace.model.paths import PathState


def hop(kind: str, where: str, what: str, effect: str = "ok") -> Hop:
    return Hop(kind=kind, where=where, what=what, effect=effect, packet="10.0.1.5:40000 > 10.0.1.6:80 tcp")  # type: ignore[arg-type]


TRACE = Trace(
    source="web.1",
    target="store",
    question="10.0.1.5:40000 > 10.0.1.6:80 tcp",
    outcome="reaches store.1 on beta",
    hops=(
        hop("start", "alpha", "container of web.1"),
        hop("rule", "alpha", "MAPPINGS"),
        hop("encap", "alpha", "VXLAN header on"),
        hop("underlay", "underlay", "alpha > beta"),
        hop("decap", "beta", "VXLAN 4097"),
        hop("end", "beta", "container of store.1"),
    ),
    origin=Origin(host="alpha", task="t1", source="10.0.1.5", target="10.0.1.6", protocol="tcp", port=80),
)


async def traced(state: PathState | None, size: int = 0) -> Trace:
    store = await made()
    return with_paths(TRACE, store.view(), {(A.id, B.id): state} if state else {}, size)


async def test_a_measured_path_takes_the_place_of_the_assumed_one() -> None:
    found = await traced(path(B, loss=2))
    assert found.broken is None and "measured" in found.hops[3].effect and "2 % lost" in found.hops[3].effect


async def test_a_path_that_is_down_ends_the_way_there() -> None:
    found = await traced(path(B, state="down"))
    assert found.broken is not None and found.broken.where == "alpha > beta"
    assert "UDP 4789" in found.outcome and len(found.hops) == 4 and not found.hops[-1].ok


async def test_a_packet_too_big_for_the_path_is_named_with_what_fits() -> None:
    assert (await traced(path(B, mtu=1400), 1350)).broken is None
    found = await traced(path(B, mtu=1400), 1351)
    assert found.broken is not None and "1351 bytes" in found.broken.reason and "1350" in found.broken.reason


def test_what_a_host_finds_wrong_ends_the_way_at_that_host() -> None:
    wrong = Finding(what="a stale endpoint: 10.0.1.6", remedy="restart", about=("10.0.1.6",))
    found = with_findings(TRACE, {"beta": Said(findings=(wrong,))}, {})
    assert found.broken is not None and (found.broken.where, found.broken.remedy) == ("beta", "restart")


def test_what_is_about_others_is_not_this_traces_business() -> None:
    other = Finding(what="a stale endpoint: 10.0.9.9", remedy="restart", about=("10.0.9.9",))
    assert with_findings(TRACE, {"beta": Said(findings=(other,))}, {}).broken is None
    whole = Finding(what="the underlay's interface eth0 is down", remedy="up")
    assert with_findings(TRACE, {"alpha": Said(findings=(whole,))}, {}).broken is not None


def test_a_host_that_does_not_answer_is_said_and_breaks_nothing() -> None:
    found = with_findings(TRACE, {"beta": Said(error="it did not answer within 5 s")}, {})
    assert found.broken is None and "beta could not be asked: it did not answer within 5 s" in found.notes


def seen(reason: str = "", at: int = 1) -> Sighting:
    return Sighting(at=at, interface="eth0", reason=reason, packet="" if reason else "a > b", vni=4097)


@pytest.mark.parametrize(
    ("answer", "alpha", "beta", "where", "word"),
    [
        ("refused (RST)", ("encapsulated",), ("delivered",), "beta", "nothing there listens on port 80"),
        ("", ("encapsulated",), ("delivered",), "beta", "does not answer"),
        ("", ("encapsulated",), (), "underlay", "seen on no other host"),
        ("", ("drop_policy",), (), "alpha", "drop_policy"),
        ("", ("encapsulated",), ("drop_wrong_provider",), "beta", "drop_wrong_provider"),
        ("", (), (), "alpha", "never came to the switch"),
    ],
)
def test_a_lost_packet_is_named_by_where_it_was_last_seen(
    answer: str, alpha: tuple[str, ...], beta: tuple[str, ...], where: str, word: str
) -> None:
    told = {
        "beta": Said(sightings=tuple(x for r in beta for x in (seen(), seen(r)))),
        "alpha": Said(sightings=tuple(x for r in alpha for x in (seen(), seen(r)))),
    }
    found = with_live(TRACE, 7, Said(answer=answer), told)
    assert found.broken is not None and found.broken.where == where and word in found.broken.reason
    assert found.live is not None and found.live.broken == found.broken


def test_an_accepted_packet_breaks_nothing_and_doubts_a_computed_break() -> None:
    told = {"alpha": Said(sightings=(seen(), seen("encapsulated")))}
    assert with_live(TRACE, 7, Said(answer="accepted (SYN+ACK)"), told).broken is None
    wrong = Finding(what="wrong VNI", remedy="restart")
    doubted = with_findings(TRACE, {"beta": Said(findings=(wrong,))}, {})
    found = with_live(doubted, 7, Said(answer="accepted (SYN+ACK)"), told)
    assert any("got through" in n for n in found.notes)


def test_a_stopped_program_whose_kernel_accepts_is_no_contradiction() -> None:
    stopped = Finding(what="its program is stopped (SIGSTOP): connections wait for ever", remedy="go on")
    found = with_live(
        with_findings(TRACE, {"beta": Said(findings=(stopped,))}, {}),
        7,
        Said(answer="accepted (SYN+ACK)"),
        {},
    )
    assert any("kernel" in n for n in found.notes) and not any("got through" in n for n in found.notes)


def test_a_host_that_cannot_mark_packets_breaks_nothing() -> None:
    found = with_live(TRACE, 7, Said(error="HNS has no call for it", unable=True), {})
    assert found.broken is None and found.live is None and found.outcome == TRACE.outcome
    assert any("HNS has no call for it" in n for n in found.notes)


TAKEN = Finding(what="python3 of this host keeps the port", remedy="stop it", port="9001/tcp")


@pytest.mark.parametrize(
    ("first", "packet", "broken"),
    [
        ("rule", "192.0.2.10:40000 > 192.168.0.12:9001 tcp", True),
        ("rule", "192.0.2.10:40000 > 192.168.0.12:9002 tcp", False),
        ("decap", "192.0.2.10:40000 > 10.0.0.6:9001 tcp", False),  # a container's port
        ("start", "10.0.1.5:40000 > 10.0.1.6:9001 tcp", False),
        ("start", "10.0.1.5:40000 > 192.168.0.12:9001 tcp", True),  # a container to its own host's port
    ],
)
def test_a_port_that_a_program_of_the_host_has_taken_ends_the_way_there(
    first: str, packet: str, broken: bool
) -> None:
    way = tuple(
        Hop(kind=kind, where="beta", what="x", effect="ok", packet=packet)  # type: ignore[arg-type]
        for kind in (first, "rule", "end")
    )
    members = (Member(task="web.1", node="beta", address="10.0.0.6", ok=True),)
    trace = Trace(
        source="client", target="web", question=packet, outcome="reaches", hops=way, members=members
    )
    found = with_findings(trace, {"beta": Said(findings=(TAKEN,))}, {"beta": "192.168.0.12"})
    assert (found.broken is not None) == broken and not found.notes
    if found.broken is not None:
        assert (found.broken.where, found.broken.reason) == ("beta", TAKEN.what) and found.members == ()
    mild = msgspec.structs.replace(TAKEN, mild=True)
    noted = with_findings(trace, {"beta": Said(findings=(mild,))}, {"beta": "192.168.0.12"})
    assert noted.broken is None and bool(noted.notes) == broken


def test_what_could_not_be_sent_says_why() -> None:
    found = with_live(msgspec.structs.replace(TRACE), 7, Said(error="Network is unreachable"), {})
    assert found.broken is not None and "Network is unreachable" in found.broken.reason
