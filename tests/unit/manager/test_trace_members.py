"""One dead backend among several is found and named, whatever the others do."""

from __future__ import annotations

import msgspec
import pytest
from paths_kit import A, B, made, path

from overlace.manager.trace.answer import Broken, Hop, Member, Origin, Reached, Trace, explain_broken
from overlace.manager.trace.members import explain_each, explain_members, with_each, with_members
from overlace.model.findings import Finding, OpenSockets, Said, Sighting, Socket
from overlace.model.paths import PathState
from overlace.network.socket_tables import read_sctp, read_table

GOOD, DEAD = "10.0.1.6", "10.0.1.7"


def hop(kind: str, where: str, effect: str = "ok") -> Hop:
    packet = f"10.0.1.5:40000 > {GOOD}:80 tcp"
    return Hop(kind=kind, where=where, what="x", effect=effect, packet=packet)  # type: ignore[arg-type]


TRACE = Trace(
    source="web.1",
    target="store",
    question="10.0.1.5:40000 > 10.0.1.2:80 tcp",
    outcome="reaches store.1 on beta",
    hops=(hop("start", "alpha"), hop("encap", "alpha"), hop("end", "beta")),
    members=tuple(
        Member(task=f"store.{n}", node="beta", address=a, ok=True) for n, a in ((1, GOOD), (2, DEAD))
    ),
    reached=tuple(
        Reached(task=f"t{n}", name=f"store.{n}", host="beta", address=a, port=80)
        for n, a in ((1, GOOD), (2, DEAD))
    ),
    origin=Origin(host="alpha", task="t0", source="10.0.1.5", target="10.0.1.2", protocol="tcp", port=80),
)
WEB = Socket(address="0.0.0.0", port=80)


def told(*of_dead: Socket, good: Socket | None = WEB) -> Said:
    return Said(
        listening=(
            OpenSockets(task_id="t1", sockets=(good,) if good else ()),
            OpenSockets(task_id="t2", sockets=of_dead),
        )
    )


async def judged(
    said: Said, trace: Trace = TRACE, states: dict[tuple[str, str], PathState] | None = None
) -> tuple[Trace, tuple[str, ...]]:
    bad, notes = explain_members(trace, "tcp", (await made()).view(), states or {}, {"beta": said})
    return with_members(trace, bad), notes


@pytest.mark.parametrize(
    ("sockets", "words"),
    [
        ((), "nothing listens on tcp port 80"),
        ((Socket(address="::", port=5432),), "port 80, only on 5432"),
        ((Socket(address="127.0.0.1", port=80),), "at 127.0.0.1 alone, not at 10.0.1.7"),
        ((Socket(address="127.0.0.11", port=80),), "nothing listens"),
        ((Socket(address="0.0.0.0", port=80, stopped=True),), "is stopped (SIGSTOP)"),
    ],
)
async def test_the_backend_that_takes_nothing_is_named(sockets: tuple[Socket, ...], words: str) -> None:
    found, _ = await judged(told(*sockets))
    assert found.broken is not None and words in found.broken.reason and found.broken.where == "beta"
    assert [m.ok for m in found.members] == [True, False] and words in found.members[1].reason
    assert "for 1 of 2 backends" in found.outcome


@pytest.mark.parametrize("address", ["0.0.0.0", "::", DEAD])
async def test_who_listens_there_is_well(address: str) -> None:
    found, notes = await judged(told(Socket(address=address, port=80)))
    assert found == TRACE and notes == ()


async def test_connections_nobody_accepts_are_worth_a_word() -> None:
    found, notes = await judged(told(Socket(address="::", port=80, waiting=3)))
    assert found.broken is None and "3 connections wait to be accepted by store.2" in notes[0]


async def test_an_assumed_port_is_no_fault_unless_another_backend_has_it() -> None:
    guessed = msgspec.structs.replace(TRACE, assumed=True)
    found, _ = await judged(told(), guessed)
    assert found.broken is not None
    db = Socket(address="0.0.0.0", port=5432)
    found, notes = await judged(told(db, good=db), guessed)
    assert found.broken is None and "port 80 was assumed" in notes[0] and "tcp 5432; --port" in notes[0]


async def test_who_cannot_say_is_not_blamed() -> None:
    found, notes = await judged(Said())
    assert found.broken is None and notes == (
        "whether containers on beta listen is not known: its overlace is older and does not say",
    )
    windows = Said(listening=(OpenSockets(task_id="t1", error="HNS has no call"),))
    assert "HNS has no call" in (await judged(windows))[1][0]
    assert (await judged(Said(error="it did not answer")))[1] == ()  # said by with_findings


async def test_a_way_that_is_down_and_a_wrong_row_are_the_member_s() -> None:
    found, _ = await judged(told(WEB), states={(A.id, B.id): path(B, state="down")})
    assert found.broken is not None and found.broken.where == "alpha > beta"
    assert [m.ok for m in found.members] == [False, False]
    wrong = Finding(what="a stale endpoint", remedy="restart", about=(DEAD,))
    found, _ = await judged(msgspec.structs.replace(told(WEB), findings=(wrong,)))
    assert [m.ok for m in found.members] == [True, False] and found.broken is not None


def test_backends_of_several_hosts_are_not_all_put_on_one() -> None:
    members = tuple(
        Member(task=f"web.{node}", node=node, address="10.0.1.5", ok=False, reason="x")
        for node in ("alpha", "beta", "alpha")
    )
    said = explain_broken(members, Broken(where="alpha", reason="it is stopped", remedy="go on"))
    assert said == "broken for 3 of 3 backends, on alpha, beta; at alpha: it is stopped"


def sent(answer: str, verdict: str) -> tuple[Trace, bool]:
    assert TRACE.origin is not None
    seen = {"beta": Said(sightings=(Sighting(at=1, interface="eth0", reason=verdict),))}
    from overlace.manager.trace.looked import with_live

    shown = with_live(TRACE, 1, Said(answer="accepted (SYN+ACK)"), seen)
    member = explain_each(TRACE.origin, TRACE.reached[1], Said(answer=answer), seen)
    found = with_each(shown, [member])
    assert found.live is not None
    return found, found.live.members[0].ok


def test_a_packet_to_each_finds_the_one_that_refuses() -> None:
    found, ok = sent("refused (RST)", "delivered")
    assert not ok and found.broken is not None and "listens on port 80" in found.broken.reason
    assert [m.ok for m in found.members] == [True, False] and "for 1 of 2 backends" in found.outcome
    found, ok = sent("accepted (SYN+ACK)", "delivered")
    assert ok and found.broken is None


def test_a_policy_for_the_service_s_address_alone_breaks_nothing() -> None:
    found, ok = sent("", "drop_policy")
    assert ok and found.broken is None


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 8101 1 0 100 0 0 10 0
   1: 0B00007F:A1B2 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8102 1 0 100 0 0 10 0
   2: 0601000A:0050 0501000A:C000 01 00000000:00000000 00:00000000 00000000     0        0 8103 1 0 20 4 30 10 -1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 0:0 0 0 0 8104 1
"""
EPS = """\
 ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
ffff9a     ffff9b 2   10  29   5001     0  8105  10.0.1.6 10.0.2.6
ffff9c     ffff9d 2   7   29   5002     0  8106  10.0.1.6
"""


def test_the_kernel_s_tables_are_read() -> None:
    assert list(read_table(TCP, "0A")) == [
        (Socket(address="0.0.0.0", port=80, waiting=2), 8101),
        (Socket(address="127.0.0.11", port=0xA1B2), 8102),
    ]
    assert list(read_table(TCP6, "0A")) == [(Socket(address="::1", port=8080), 8104)]
    assert [(s.address, s.port, inode) for s, inode in read_sctp(EPS)] == [
        ("10.0.1.6", 5001, 8105),
        ("10.0.2.6", 5001, 8105),
    ]
