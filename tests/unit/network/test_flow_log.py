"""Connections opened and ended, as told by looks at what the switch counts."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from overlace.network.vfp.flow_log import CLOSED_IDLE, IDLE, FlowLog, Happened, Seen, see
from overlace.network.vfp.flows import Closed, UnifiedFlow, close_both
from overlace.network.vfp.model import Packet


def seen(key: str, packets: int, idle: int = 0) -> Seen:
    return Seen(key, packets, 100 * packets, idle, {"name": key})


def words(happened: list[Happened]) -> list[tuple[str, object, int, int]]:
    return [(h.event, h.facts["name"], h.packets, h.bytes) for h in happened]


def test_a_connections_life() -> None:
    log = FlowLog()
    assert words(log.look([seen("there", 5), seen("quiet", 7, IDLE)])) == [("found", "there", 5, 500)]
    assert words(log.look([seen("there", 6), seen("new", 1)])) == [("opened", "new", 1, 100)]
    assert words(log.look([seen("there", 9), seen("new", 4, IDLE - 1)])) == []
    assert words(log.look([seen("new", 4, IDLE)])) == [("ended", "new", 4, 400), ("ended", "there", 9, 900)]
    assert words(log.look([seen("new", 4, IDLE + 2)])) == [], "told once"
    assert words(log.look([seen("new", 10)])) == [("opened", "new", 6, 600)], "the same ports again"
    assert words(log.look([])) == [("ended", "new", 6, 600)]


def test_a_flow_that_was_forgotten_and_begun_anew() -> None:
    log = FlowLog()
    log.look([seen("a", 50)])
    assert words(log.look([seen("a", 2)])) == [("ended", "a", 50, 5000), ("opened", "a", 2, 200)]


def test_what_tcp_closed_is_told_soon_with_how_long_it_took() -> None:
    log = FlowLog()

    def at(packets: int, idle: int, seconds: int, closed: str = "") -> list[tuple[str, int, int, str]]:
        found = log.look([Seen("a", packets, 100 * packets, idle, {}, seconds, closed)])
        return [(h.event, h.packets, h.seconds, h.why) for h in found]

    log.look([])
    assert at(5, 0, 3) == [("opened", 5, 0, "")]
    assert at(7, 1, 6, "fin") == [], "answers may be on their way"
    assert at(9, 0, 9, "fin") == [], "or the other end goes on"
    assert at(9, CLOSED_IDLE, 9, "fin") == [("ended", 9, 9, "fin")]
    assert at(10, 0, 11, "fin") == [], "a late segment opens nothing"
    assert at(12, 0, 0) == [("opened", 2, 0, "")], "the same ports again, begun by a SYN"
    assert at(13, CLOSED_IDLE, 5, "rst") == [("ended", 3, 5, "rst")]


def test_a_connection_shorter_than_two_looks_is_written() -> None:
    log = FlowLog()
    log.look([])
    short = Seen("a", 4, 400, CLOSED_IDLE, {}, 1, "fin")
    assert [(h.event, h.packets) for h in log.look([short])] == [("opened", 4), ("ended", 4)]
    assert log.look([short]) == []


def test_a_reset_closes_both_directions() -> None:
    def flow(came: Packet, went: Packet, closed: Closed = "") -> UnifiedFlow:
        return UnifiedFlow(
            point="GUID", ifindex=7, came=came, went=went, verdict="deliver", vni=0, from_provider="",
            provider_address="", to_ifindex=0, mac="", packets=3, bytes=180, idle=0, generation=1, current=True,
            closed=closed,
        )  # fmt: skip

    out = Packet("10.0.1.5", "10.0.1.2", 6, 40000, 80), Packet("10.0.1.5", "10.0.1.6", 6, 40000, 80)
    back = Packet("10.0.1.6", "10.0.1.5", 6, 80, 40000), Packet("10.0.1.2", "10.0.1.5", 6, 80, 40000)
    other = Packet("10.0.1.5", "10.0.1.6", 6, 40001, 80)
    closed = close_both([flow(*out), flow(*back, "rst"), flow(other, other)])
    assert [f.closed for f in closed] == ["rst", "rst", ""]


def test_drops_by_what_was_added() -> None:
    log = FlowLog()
    assert log.drops({("shop", "drop_policy"): 5}) == [], "of before"
    now = {("shop", "drop_policy"): 7, ("shop", "drop_rate"): 3}
    assert log.drops(now) == [
        Happened("dropped", 2, 0, {"network": "shop", "reason": "drop_policy"}),
        Happened("limited", 3, 0, {"network": "shop", "reason": "drop_rate"}),
    ]
    assert log.drops(now) == []


LOOKS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 3), st.integers(0, 2 * IDLE))),
    max_size=12,
)


@given(LOOKS)
def test_every_life_is_opened_once_and_its_packets_add_up(looks: list[dict[str, tuple[int, int]]]) -> None:
    """Whatever comes and goes: opened and ended alternate, and the lives together have the packets that were counted."""
    log, count, told = FlowLog(), dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    alive: set[object] = set()
    known: set[str] = set()
    for look in [*looks, {}]:
        flows = []
        for key in known - look.keys():
            count[key] = 0
        for key, (more, idle) in look.items():
            count[key] += more + (key not in known)
            flows.append(seen(key, count[key], 0 if more else idle))
        known = set(look)
        for h in log.look(flows):
            name = h.facts["name"]
            if h.event == "ended":
                assert name in alive
                alive.discard(name)
                told[str(name)] += h.packets
            else:
                assert name not in alive
                alive.add(name)
            assert h.packets >= 0 and h.bytes == 100 * h.packets
    assert not alive


def test_what_is_written_of_a_flow() -> None:
    came, went = Packet("10.0.1.5", "10.0.1.2", 6, 40000, 80), Packet("10.0.1.5", "10.0.1.6", 6, 40000, 80)
    flow = UnifiedFlow(
        point="GUID", ifindex=7, came=came, went=went, verdict="encapsulate", vni=4097, from_provider="",
        provider_address="192.0.2.2", to_ifindex=0, mac="", packets=3, bytes=180, idle=0, generation=1, current=True,
    )  # fmt: skip
    assert see(flow).facts == {
        "port": "GUID",
        "protocol": "tcp",
        "src": "10.0.1.5",
        "sport": 40000,
        "dst": "10.0.1.2",
        "dport": 80,
        "verdict": "encapsulate",
        "went": {"src": "10.0.1.5", "sport": 40000, "dst": "10.0.1.6", "dport": 80},
        "vni": 4097,
        "to": "192.0.2.2",
    }
    given = see(msgspec.structs.replace(flow, came=went, service="10.0.1.2:80")).facts
    assert "went" not in given and (given["dst"], given["service"]) == ("10.0.1.6", "10.0.1.2:80")
    other = see(UnifiedFlow(**{f: getattr(flow, f) for f in flow.__struct_fields__} | {"ifindex": 8}))
    assert other.key != see(flow).key
